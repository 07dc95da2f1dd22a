// SPDX-License-Identifier: GPL-2.0
// Stands before a classifier: it leaves the network namespace in cb[0].
// The kernel empties the map when its owner ends, even by a signal: a filter
// that was left behind does nothing.
#include <vmlinux.h>
#include <bpf/bpf_helpers.h>

#define TC_ACT_UNSPEC -1

const volatile __u32 netns = 0;

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} gadget_tail_call SEC(".maps");

SEC("tc")
int ig_tc(struct __sk_buff *skb)
{
	skb->cb[0] = netns;
	bpf_tail_call(skb, &gadget_tail_call, 0);
	return TC_ACT_UNSPEC;
}

char LICENSE[] SEC("license") = "GPL";
