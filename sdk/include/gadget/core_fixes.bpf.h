/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
#ifndef __GADGET_CORE_FIXES_BPF_H
#define __GADGET_CORE_FIXES_BPF_H

#include <gadget/base.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

/*
 * What kernels name or place differently. A struct with a "___" suffix is the kernel's struct of
 * the name before it as some kernels have it; CO-RE tells which one this kernel has.
 */

/* For a place that no kernel reaches: the program does not load if the verifier gets here. */
static __always_inline void bpf_core_unreachable(void)
{
	((void (*)(void))0xbad2310)();
}

/* Linux 5.14 (2f064a59a11f, "sched: Change task_struct::state"): `state` became `__state`. */
struct task_struct___before_5_14 {
	volatile long state;
} __attribute__((preserve_access_index));

struct task_struct___since_5_14 {
	unsigned int __state;
} __attribute__((preserve_access_index));

static __always_inline __s64 get_task_state(void *task)
{
	struct task_struct___since_5_14 *newer = task;
	struct task_struct___before_5_14 *older = task;

	if (bpf_core_field_exists(newer->__state))
		return BPF_CORE_READ(newer, __state);
	return BPF_CORE_READ(older, state);
}

/* Linux 5.17 (f3fa33acca9f, "block: remove the ->rq_disk field in struct request") */
struct request___before_5_17 {
	struct gendisk *rq_disk;
} __attribute__((preserve_access_index));

struct request_queue___since_5_17 {
	struct gendisk *disk;
} __attribute__((preserve_access_index));

struct request___since_5_17 {
	struct request_queue___since_5_17 *q;
} __attribute__((preserve_access_index));

/* The disk of a struct request. */
static __always_inline struct gendisk *get_disk(void *request)
{
	struct request___before_5_17 *older = request;
	struct request___since_5_17 *newer = request;

	if (bpf_core_field_exists(older->rq_disk))
		return BPF_CORE_READ(older, rq_disk);
	return BPF_CORE_READ(newer, q, disk);
}

static __always_inline struct gendisk *get_gendisk(void *request)
{
	return get_disk(request);
}

/* Linux 5.18 (d5869fdc189f, "block: introduce block_rq_error tracepoint"): a class for both. */
struct trace_event_raw_block_rq_completion___x {
	dev_t dev;
} __attribute__((preserve_access_index));

static __always_inline bool has_block_rq_completion(void)
{
	return bpf_core_type_exists(struct trace_event_raw_block_rq_completion___x);
}

/* Linux 6.3 (abf08576afe3, "fs: port vfs_*() helpers to struct mnt_idmap") */
struct renamedata___before_6_3 {
	struct user_namespace *old_mnt_userns;
} __attribute__((preserve_access_index));

static __always_inline bool renamedata_has_old_mnt_userns_field(void)
{
	return bpf_core_field_exists(struct renamedata___before_6_3, old_mnt_userns);
}

/*
 * Linux 5.12 (3544de8ee6e4, "mm, tracing: record slab name for kmem_cache_free()"): the events
 * kfree and kmem_cache_free parted; before, both were kmem_free.
 */
struct trace_event_raw_kfree___x {
	const void *ptr;
} __attribute__((preserve_access_index));

static __always_inline bool has_kfree(void)
{
	return bpf_core_type_exists(struct trace_event_raw_kfree___x);
}

struct trace_event_raw_kmem_cache_free___x {
	const void *ptr;
} __attribute__((preserve_access_index));

static __always_inline bool has_kmem_cache_free(void)
{
	return bpf_core_type_exists(struct trace_event_raw_kmem_cache_free___x);
}

/* Newer kernels have a class of its own for this event: it tells why a retransmission failed too.
 */
struct trace_event_raw_tcp_event_sk_skb___x {
	const void *skbaddr;
	const void *skaddr;
} __attribute__((preserve_access_index));

struct trace_event_raw_tcp_retransmit_skb___x {
	const void *skbaddr;
	const void *skaddr;
} __attribute__((preserve_access_index));

static __always_inline const void *gadget_get_tcp_retransmit_skb_skbaddr(void *ctx)
{
	struct trace_event_raw_tcp_retransmit_skb___x *newer = ctx;
	struct trace_event_raw_tcp_event_sk_skb___x *older = ctx;

	if (bpf_core_type_exists(struct trace_event_raw_tcp_retransmit_skb___x))
		return BPF_CORE_READ(newer, skbaddr);
	return BPF_CORE_READ(older, skbaddr);
}

static __always_inline const void *gadget_get_tcp_retransmit_skb_skaddr(void *ctx)
{
	struct trace_event_raw_tcp_retransmit_skb___x *newer = ctx;
	struct trace_event_raw_tcp_event_sk_skb___x *older = ctx;

	if (bpf_core_type_exists(struct trace_event_raw_tcp_retransmit_skb___x))
		return BPF_CORE_READ(newer, skaddr);
	return BPF_CORE_READ(older, skaddr);
}

/* struct inode before Linux 6.6 (13bc24457850, "fs: rename i_ctime field to __i_ctime") */
struct inode___ctime_before_6_6 {
	struct timespec64 i_ctime;
} __attribute__((preserve_access_index));

/* struct inode from 6.6 to 6.10 */
struct inode___ctime_since_6_6 {
	struct timespec64 __i_ctime;
} __attribute__((preserve_access_index));

/* struct inode since Linux 6.11 (3aa63a569c64, "fs: switch timespec64 fields in inode to discrete
 * integers") */
struct inode___ctime_since_6_11 {
	__s64 i_ctime_sec;
	__u32 i_ctime_nsec;
} __attribute__((preserve_access_index));

/* When the inode was changed last, in nanoseconds since 1970. */
static __always_inline __u64 gadget_get_ctime_nanosec_from_inode(void *inode)
{
	struct inode___ctime_since_6_11 *newest = inode;
	struct inode___ctime_since_6_6 *newer = inode;
	struct inode___ctime_before_6_6 *older = inode;
	__u64 seconds, nanoseconds;

	if (bpf_core_field_exists(newest->i_ctime_sec)) {
		seconds = BPF_CORE_READ(newest, i_ctime_sec);
		/* Linux 6.13 keeps a flag in the top bit (I_CTIME_QUERIED). */
		nanoseconds = BPF_CORE_READ(newest, i_ctime_nsec) & 0x7fffffff;
	} else if (bpf_core_field_exists(newer->__i_ctime)) {
		seconds = BPF_CORE_READ(newer, __i_ctime.tv_sec);
		nanoseconds = BPF_CORE_READ(newer, __i_ctime.tv_nsec);
	} else {
		seconds = BPF_CORE_READ(older, i_ctime.tv_sec);
		nanoseconds = BPF_CORE_READ(older, i_ctime.tv_nsec);
	}
	return seconds * 1000000000ULL + nanoseconds;
}

/* The number of the system call that the task with these registers is in. */
static __always_inline __u64 gadget_get_syscall_nr(struct pt_regs *regs)
{
#if defined(__TARGET_ARCH_x86)
	return BPF_CORE_READ(regs, orig_ax);
#elif defined(__TARGET_ARCH_arm64)
	return BPF_CORE_READ(regs, syscallno);
#else
#error "only amd64 and arm64 are known"
#endif
}

/* Its n-th argument, n from 1 to 6. */
static __always_inline __u64 gadget_get_syscall_arg(struct pt_regs *regs, int n)
{
#if defined(__TARGET_ARCH_x86)
	switch (n) {
	case 1:
		return BPF_CORE_READ(regs, di);
	case 2:
		return BPF_CORE_READ(regs, si);
	case 3:
		return BPF_CORE_READ(regs, dx);
	case 4:
		return BPF_CORE_READ(regs, r10);
	case 5:
		return BPF_CORE_READ(regs, r8);
	case 6:
		return BPF_CORE_READ(regs, r9);
	}
#elif defined(__TARGET_ARCH_arm64)
	switch (n) {
	case 1:
		/* regs[0] holds the result once the call has returned. */
		return BPF_CORE_READ(regs, orig_x0);
	case 2:
		return BPF_CORE_READ(regs, regs[1]);
	case 3:
		return BPF_CORE_READ(regs, regs[2]);
	case 4:
		return BPF_CORE_READ(regs, regs[3]);
	case 5:
		return BPF_CORE_READ(regs, regs[4]);
	case 6:
		return BPF_CORE_READ(regs, regs[5]);
	}
#endif
	return 0;
}

#endif /* __GADGET_CORE_FIXES_BPF_H */
