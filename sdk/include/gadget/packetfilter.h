/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
#ifndef __GADGET_PACKETFILTER_H
#define __GADGET_PACKETFILTER_H

#include <gadget/base.h>
#include <bpf/bpf_helpers.h>

/*
 * Declare a packet filter `name`, which may be empty. The runtime puts the filter that its user
 * gives in front of this function's code. It finds the packet in the fourth and the fifth argument,
 * and leaves 0 in all but the fourth, so that what follows tells whether that is another than 0.
 * Without a filter every packet that is not empty passes.
 */
#define GADGET_PF(name)                                                                         \
	static __noinline bool gadget_pf_##name(void *skb1, void *skb2, void *skb3, void *data, \
						void *data_end)                                 \
	{                                                                                       \
		return data != data_end && skb1 == skb2 && skb2 == skb3;                        \
	}

#define __GADGET_PF_MATCHES3(skb, data, data_end) \
	gadget_pf_((void *)(skb), (void *)(skb), (void *)(skb), (void *)(data), (void *)(data_end))
#define __GADGET_PF_MATCHES4(name, skb, data, data_end)                               \
	gadget_pf_##name((void *)(skb), (void *)(skb), (void *)(skb), (void *)(data), \
			 (void *)(data_end))
#define __GADGET_FIFTH(_1, _2, _3, _4, fifth, ...) fifth

/* gadget_pf_matches([name,] skb, data, data_end): does the packet pass? */
#define gadget_pf_matches(...) \
	__GADGET_FIFTH(__VA_ARGS__, __GADGET_PF_MATCHES4, __GADGET_PF_MATCHES3, )(__VA_ARGS__)

#endif /* __GADGET_PACKETFILTER_H */
