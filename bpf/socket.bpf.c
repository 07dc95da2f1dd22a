// SPDX-License-Identifier: GPL-2.0
// Stands before a socket filter: it leaves the network namespace in cb[0].
#include <vmlinux.h>
#include <bpf/bpf_helpers.h>

const volatile __u32 netns = 0;

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} tail_call SEC(".maps");

SEC("socket")
int ig_socket(struct __sk_buff *skb)
{
	skb->cb[0] = netns;
	bpf_tail_call(skb, &tail_call, 0);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
