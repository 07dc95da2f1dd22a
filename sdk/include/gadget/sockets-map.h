/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
#ifndef __GADGET_SOCKETS_MAP_H
#define __GADGET_SOCKETS_MAP_H

/*
 * Which process owns this socket or packet? The runtime's socket enricher keeps the answers in the
 * map gadget_sockets. Define GADGET_TYPE_NETWORKING in a gadget that sees packets,
 * GADGET_TYPE_TRACING in one that sees sockets.
 */
#if !defined(GADGET_TYPE_NETWORKING) && !defined(GADGET_TYPE_TRACING)
#error "define GADGET_TYPE_NETWORKING or GADGET_TYPE_TRACING before gadget/sockets-map.h"
#endif

#include <gadget/types.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define GADGET_MAX_SOCKETS 16384

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, GADGET_MAX_SOCKETS);
	__type(key, struct gadget_socket_key);
	__type(value, struct gadget_socket_value);
} gadget_sockets SEC(".maps");

#define __GADGET_AF_INET 2
#define __GADGET_AF_INET6 10

/* Fill in the socket's owner; nothing if it is not known. */
static __always_inline void
gadget_process_populate_from_socket(const struct gadget_socket_value *value,
				    struct gadget_process *process)
{
	if (!value)
		return;
	process->mntns_id = value->mntns;
	process->pid = value->pid_tgid >> 32;
	process->tid = (__u32)value->pid_tgid;
	process->creds.uid = (__u32)value->uid_gid;
	process->creds.gid = value->uid_gid >> 32;
	__builtin_memcpy(process->comm, (const void *)value->task, sizeof(process->comm));
	__builtin_memcpy(process->parent.comm, (const void *)value->ptask,
			 sizeof(process->parent.comm));
	process->parent.pid = value->ppid;
	process->parent.tid = value->ptid;
}

#ifdef GADGET_TYPE_NETWORKING

#define __GADGET_ETH_HLEN 14
#define __GADGET_ETH_TYPE 12
#define __GADGET_ETH_P_IP 0x0800
#define __GADGET_ETH_P_IPV6 0x86dd
#define __GADGET_PACKET_HOST 0

#define __GADGET_IP_PROTOCOL 9
#define __GADGET_IPV6_NEXT_HEADER 6
#define __GADGET_IPV6_HLEN 40
#define __GADGET_MAX_EXTENSIONS 6

enum {
	__GADGET_PROTO_HOP_BY_HOP = 0,
	__GADGET_PROTO_TCP = 6,
	__GADGET_PROTO_UDP = 17,
	__GADGET_PROTO_ROUTING = 43,
	__GADGET_PROTO_FRAGMENT = 44,
	__GADGET_PROTO_AUTHENTICATION = 51,
	__GADGET_PROTO_DESTINATION = 60,
};

static __always_inline __u8 __gadget_byte(struct __sk_buff *skb, __u32 offset)
{
	__u8 byte = 0;

	bpf_skb_load_bytes(skb, offset, &byte, sizeof(byte));
	return byte;
}

static __always_inline __u16 __gadget_be16(struct __sk_buff *skb, __u32 offset)
{
	__u16 value = 0;

	bpf_skb_load_bytes(skb, offset, &value, sizeof(value));
	return bpf_ntohs(value);
}

/* Where the header behind IPv6's own and its extensions begins, and its protocol. */
static __always_inline __u32 __gadget_skip_ipv6(struct __sk_buff *skb, __u8 *proto)
{
	__u32 offset = __GADGET_ETH_HLEN + __GADGET_IPV6_HLEN;
	__u8 next = __gadget_byte(skb, __GADGET_ETH_HLEN + __GADGET_IPV6_NEXT_HEADER);

	for (int i = 0; i < __GADGET_MAX_EXTENSIONS; i++) {
		__u8 extension = next;
		__u32 length;

		if (extension != __GADGET_PROTO_HOP_BY_HOP && extension != __GADGET_PROTO_ROUTING &&
		    extension != __GADGET_PROTO_FRAGMENT &&
		    extension != __GADGET_PROTO_AUTHENTICATION &&
		    extension != __GADGET_PROTO_DESTINATION)
			break;
		next = __gadget_byte(skb, offset);
		length = __gadget_byte(skb, offset + 1);
		if (extension == __GADGET_PROTO_FRAGMENT)
			offset += 8;
		else if (extension == __GADGET_PROTO_AUTHENTICATION)
			offset += (length + 2) * 4;
		else
			offset += (length + 1) * 8;
	}
	*proto = next;
	return offset;
}

/* The owner of the socket that sends or gets this packet; NULL if it is not known. */
static __always_inline struct gadget_socket_value *
gadget_socket_lookup_with_direction(struct __sk_buff *skb, bool is_ingress)
{
	struct gadget_socket_key key;
	struct gadget_socket_value *value;
	__u32 offset;

	/* The padding counts too. */
	__builtin_memset(&key, 0, sizeof(key));
	/* The runtime's dispatcher put it there. */
	key.netns = skb->cb[0];

	switch (__gadget_be16(skb, __GADGET_ETH_TYPE)) {
	case __GADGET_ETH_P_IP:
		key.family = __GADGET_AF_INET;
		key.proto = __gadget_byte(skb, __GADGET_ETH_HLEN + __GADGET_IP_PROTOCOL);
		/* The header's length, in words, is in its first byte. */
		offset = __GADGET_ETH_HLEN + (__gadget_byte(skb, __GADGET_ETH_HLEN) & 0xf) * 4;
		break;
	case __GADGET_ETH_P_IPV6:
		key.family = __GADGET_AF_INET6;
		offset = __gadget_skip_ipv6(skb, &key.proto);
		break;
	default:
		return NULL;
	}
	if (key.proto != __GADGET_PROTO_TCP && key.proto != __GADGET_PROTO_UDP)
		return NULL;

	/* Both protocols have the source port first, then the destination port. */
	key.port = __gadget_be16(skb, is_ingress ? offset + 2 : offset);

	value = bpf_map_lookup_elem(&gadget_sockets, &key);
	if (value || key.family != __GADGET_AF_INET)
		return value;

	/* An IPv6 socket gets IPv4 packets too unless it does not want them. */
	key.family = __GADGET_AF_INET6;
	value = bpf_map_lookup_elem(&gadget_sockets, &key);
	if (value && !value->ipv6only)
		return value;
	return NULL;
}

/* The same where the packet itself tells its direction (socket filters). */
static __always_inline struct gadget_socket_value *gadget_socket_lookup(struct __sk_buff *skb)
{
	return gadget_socket_lookup_with_direction(skb, skb->pkt_type == __GADGET_PACKET_HOST);
}

#else /* GADGET_TYPE_TRACING */

/* The owner of a socket in the network namespace `netns` (an inode); NULL if it is not known. */
static __always_inline struct gadget_socket_value *gadget_socket_lookup(const struct sock *sk,
									__u32 netns)
{
	struct gadget_socket_key key;

	/* The padding counts too. */
	__builtin_memset(&key, 0, sizeof(key));
	key.netns = netns;
	key.family = BPF_CORE_READ(sk, __sk_common.skc_family);
	key.port = BPF_CORE_READ(sk, __sk_common.skc_num);
	/* A bit-field before Linux 5.6 (bf9765145b85, "sock: Make sk_protocol a 16-bit value"). */
	key.proto = BPF_CORE_READ_BITFIELD_PROBED(sk, sk_protocol);

	return bpf_map_lookup_elem(&gadget_sockets, &key);
}

#endif

#endif /* __GADGET_SOCKETS_MAP_H */
