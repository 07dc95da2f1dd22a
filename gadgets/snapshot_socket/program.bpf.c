// SPDX-License-Identifier: GPL-2.0
// Which TCP and UDP sockets are there?
#include <vmlinux.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include <gadget/macros.h>
#include <gadget/types.h>

#define AF_INET 2
#define AF_INET6 10

struct socket_entry {
	struct gadget_l4endpoint_t src;
	struct gadget_l4endpoint_t dst;
	__u32 state;
	__u64 ino;
	gadget_netns_id netns_id;
};

GADGET_ITER(sockets, socket_entry, ig_snap_tcp, ig_snap_udp);

static __always_inline void read_addresses(struct socket_entry *entry,
					   const struct sock_common *skc)
{
	__u16 family = BPF_CORE_READ(skc, skc_family);

	if (family == AF_INET) {
		entry->src.version = entry->dst.version = 4;
		entry->src.addr_raw.v4 = BPF_CORE_READ(skc, skc_rcv_saddr);
		entry->dst.addr_raw.v4 = BPF_CORE_READ(skc, skc_daddr);
	} else if (family == AF_INET6) {
		entry->src.version = entry->dst.version = 6;
		BPF_CORE_READ_INTO(&entry->src.addr_raw.v6, skc, skc_v6_rcv_saddr.in6_u.u6_addr8);
		BPF_CORE_READ_INTO(&entry->dst.addr_raw.v6, skc, skc_v6_daddr.in6_u.u6_addr8);
	}
	entry->dst.port = bpf_ntohs(BPF_CORE_READ(skc, skc_dport));
	entry->src.port = BPF_CORE_READ(skc, skc_num);
	entry->state = BPF_CORE_READ(skc, skc_state);
	entry->netns_id = BPF_CORE_READ(skc, skc_net.net, ns.inum);
}

/* Only whole sockets have an inode: not those that only shake hands or only wait. */
static __always_inline __u64 read_inode(struct sock *sk)
{
	struct socket *socket = BPF_CORE_READ(sk, sk_socket);

	/* The inode lies behind the socket, in one struct socket_alloc. */
	if (!socket)
		return 0;
	return BPF_CORE_READ((struct socket_alloc *)socket, vfs_inode.i_ino);
}

SEC("iter/tcp")
int ig_snap_tcp(struct bpf_iter__tcp *ctx)
{
	struct sock_common *skc = ctx->sk_common;
	struct socket_entry entry = {};
	struct tcp_sock *tcp;

	if (!skc)
		return 0;
	entry.src.proto_raw = entry.dst.proto_raw = IPPROTO_TCP;
	read_addresses(&entry, skc);

	tcp = bpf_skc_to_tcp_sock(skc);
	if (tcp)
		entry.ino = read_inode((struct sock *)tcp);

	bpf_seq_write(ctx->meta->seq, &entry, sizeof(entry));
	return 0;
}

SEC("iter/udp")
int ig_snap_udp(struct bpf_iter__udp *ctx)
{
	struct udp_sock *udp = ctx->udp_sk;
	struct socket_entry entry = {};

	if (!udp)
		return 0;
	entry.src.proto_raw = entry.dst.proto_raw = IPPROTO_UDP;
	read_addresses(&entry, (struct sock_common *)udp);
	entry.ino = read_inode((struct sock *)udp);

	bpf_seq_write(ctx->meta->seq, &entry, sizeof(entry));
	return 0;
}

char _license[] SEC("license") = "GPL";
