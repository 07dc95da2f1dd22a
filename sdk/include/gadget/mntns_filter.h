/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
#ifndef __GADGET_MNTNS_FILTER_H
#define __GADGET_MNTNS_FILTER_H

#include <gadget/types.h>
#ifdef __VMLINUX_H__
#include <gadget/mntns.h>
#endif
#include <bpf/bpf_helpers.h>

/* Both are set by the runtime: whether only some containers are wanted, and which ones. */
const volatile bool gadget_filter_by_mntns = false;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, gadget_mntns_id);
	__type(value, __u32);
} gadget_mntns_filter_map SEC(".maps");

static __always_inline bool gadget_should_discard_mntns_id(gadget_mntns_id mntns_id)
{
	return gadget_filter_by_mntns && !bpf_map_lookup_elem(&gadget_mntns_filter_map, &mntns_id);
}

#endif /* __GADGET_MNTNS_FILTER_H */
