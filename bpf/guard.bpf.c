// SPDX-License-Identifier: GPL-2.0
// Stand before programs that the kernel keeps attached without a link.
// It empties the map when its owner ends, even by a signal: what was left
// behind does nothing.
#include <vmlinux.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} gadget_tail_call SEC(".maps");

// lwt_in, lwt_out, lwt_xmit and lwt_seg6local: the type is set where it is loaded.
SEC("lwt_in")
int ig_lwt(struct __sk_buff *skb)
{
	bpf_tail_call(skb, &gadget_tail_call, 0);
	return BPF_OK;
}

SEC("sk_reuseport")
int ig_reuseport(struct sk_reuseport_md *context)
{
	bpf_tail_call(context, &gadget_tail_call, 0);
	return SK_PASS;
}

char LICENSE[] SEC("license") = "GPL";
