/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
#ifndef __GADGET_TYPES_H
#define __GADGET_TYPES_H

#include <gadget/base.h>

/*
 * The runtime knows a field by the name of its type: it shows a gadget_errno as ENOENT, finds the
 * container by a gadget_mntns_id, and so on.
 */

/* Where the event comes from. */
typedef __u64 gadget_mntns_id;
typedef __u32 gadget_netns_id;

/* Process. */
typedef char gadget_comm;
typedef char gadget_pcomm;
typedef __u32 gadget_pid;
typedef __u32 gadget_ppid;
typedef __u32 gadget_tid;
typedef __u32 gadget_ptid;
typedef __u32 gadget_uid;
typedef __u32 gadget_gid;

/* Nanoseconds since boot (bpf_ktime_get_boot_ns). */
typedef __u64 gadget_timestamp;
/* Nanoseconds. */
typedef __u64 gadget_duration;
typedef __u64 gadget_bytes;

typedef __u32 gadget_signal;
/* Positive; 0 where nothing failed. */
typedef __u32 gadget_errno;
typedef __u64 gadget_syscall;
typedef __u32 gadget_file_mode;
typedef __u32 gadget_file_flags;

/* Id of a stack in the map ig_kstack. */
typedef __u32 gadget_kernel_stack;

/* Metrics. */
typedef __u32 gadget_counter__u32;
typedef __u64 gadget_counter__u64;
typedef __u32 gadget_gauge__u32;
typedef __u64 gadget_gauge__u64;
typedef __u32 gadget_histogram_slot__u32;
typedef __u64 gadget_histogram_slot__u64;

union gadget_ip_addr_t {
	__u8 v6[16];
	unsigned __int128 v6_raw;
	__u32 v4;
};

/* version: 4 or 6 */
struct gadget_l3endpoint_t {
	union gadget_ip_addr_t addr_raw;
	__u8 version;
};

/* port in the machine's byte order; proto_raw: IPPROTO_* */
struct gadget_l4endpoint_t {
	union gadget_ip_addr_t addr_raw;
	__u16 port;
	__u16 proto_raw;
	__u8 version;
};

struct gadget_creds {
	gadget_uid uid;
	gadget_gid gid;
};

struct gadget_parent {
	gadget_pcomm comm[TASK_COMM_LEN];
	gadget_ppid pid;
	gadget_ptid tid;
};

struct gadget_process {
	gadget_comm comm[TASK_COMM_LEN];
	gadget_pid pid;
	gadget_tid tid;
	gadget_mntns_id mntns_id;
	struct gadget_creds creds;
	struct gadget_parent parent;
};

/*
 * A user stack, and what finds the executable and the process again.
 *
 * major, minor, inode, mtime_*: the executable file
 * base_addr_hash:  tells two executions of one process id apart
 * stack_id:        in the map ig_ustack; from 0xffffff00 on: there is none
 * *_level0:        ids in the initial PID namespace, *_level1: in the one below it, 0 if none
 */
struct gadget_user_stack {
	__u32 major;
	__u32 minor;
	__u64 inode;
	__u64 mtime_sec;
	__u32 mtime_nsec;
	__u32 base_addr_hash;
	__u32 stack_id;
	__u32 tgid_level0;
	__u32 pid_level0;
	__u32 pidns_level0;
	__u32 pid_level1;
	__u32 pidns_level1;
	__u64 otel_correlation_id;
	__u64 boot_timestamp;
};

/* The socket enricher's map, gadget_sockets. Padding must be zero: it is part of the key. */
struct gadget_socket_key {
	__u32 netns;
	__u16 family;
	__u8 proto;
	/* of this machine, in its byte order */
	__u16 port;
};

#define GADGET_SE_PATH_MAX 4096

/*
 * At run time only the optional fields that are switched on are there, with the sizes that are set;
 * so ask bpf_core_field_exists() and bpf_core_field_size() first.
 */
struct gadget_socket_value {
	__u64 mntns;
	__u64 pid_tgid;
	__u64 uid_gid;
	char task[TASK_COMM_LEN];
	char ptask[TASK_COMM_LEN];
	__u64 sock;
	__u64 deletion_timestamp;
	__u32 ppid;
	__u32 ptid;
	char ipv6only;

	char optional_fields_start[0] __attribute__((aligned(8)));
	char cwd[GADGET_SE_PATH_MAX];
	char exepath[GADGET_SE_PATH_MAX];
} __attribute__((preserve_access_index));

#endif /* __GADGET_TYPES_H */
