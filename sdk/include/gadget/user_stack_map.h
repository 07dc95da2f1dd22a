/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
#ifndef __GADGET_USER_STACK_MAP_H
#define __GADGET_USER_STACK_MAP_H

#include <gadget/fnv1a.h>
#include <gadget/macros.h>
#include <gadget/types.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

const volatile bool collect_ustack = false;
GADGET_PARAM(collect_ustack);

const volatile bool collect_build_id = false;
GADGET_PARAM(collect_build_id);

/* By the OpenTelemetry profiler, which unwinds what has no frame pointers. */
const volatile bool collect_otel_stack = false;
GADGET_PARAM(collect_otel_stack);

const volatile int ig_build_id_max_entries = 1024;
GADGET_PARAM(ig_build_id_max_entries);

#define GADGET_USER_STACK_DEPTH 127
#define GADGET_USER_STACKS 10000

/* The runtime fills in what bpf_stack_build_id says: a build id and an offset per frame. */
struct gadget_build_ids {
	struct bpf_stack_build_id frames[GADGET_USER_STACK_DEPTH];
};

struct {
	__uint(type, BPF_MAP_TYPE_STACK_TRACE);
	__uint(max_entries, GADGET_USER_STACKS);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, GADGET_USER_STACK_DEPTH * sizeof(__u64));
} ig_ustack SEC(".maps");

/* By stack id. Its size is ig_build_id_max_entries, set by the runtime. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 0);
	__type(key, __u32);
	__type(value, struct gadget_build_ids);
} ig_build_id SEC(".maps");

/* What the profiler's unwinder, the first entry of the program arrays, is told about the event. */
struct gadget_otel_params {
	__u64 correlation_id;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct gadget_otel_params);
} otel_generic_params SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u32));
} otel_tc_kprobe SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u32));
} otel_tc_perf SEC(".maps");

static struct gadget_build_ids __gadget_no_build_ids;

/* struct inode before Linux 6.7 (12cd44023651, "fs: rename inode i_atime and i_mtime fields") */
struct inode___before_6_7 {
	struct timespec64 i_mtime;
} __attribute__((preserve_access_index));

/* struct inode from 6.7 to 6.10 */
struct inode___since_6_7 {
	struct timespec64 __i_mtime;
} __attribute__((preserve_access_index));

/* struct inode since Linux 6.11 (3aa63a569c64, "fs: switch timespec64 fields in inode to discrete
 * integers") */
struct inode___since_6_11 {
	__s64 i_mtime_sec;
	__u32 i_mtime_nsec;
} __attribute__((preserve_access_index));

static __always_inline void __gadget_get_mtime(void *inode, struct gadget_user_stack *ustack)
{
	struct inode___since_6_11 *newest = inode;
	struct inode___since_6_7 *newer = inode;
	struct inode___before_6_7 *old = inode;

	if (bpf_core_field_exists(newest->i_mtime_sec)) {
		ustack->mtime_sec = BPF_CORE_READ(newest, i_mtime_sec);
		ustack->mtime_nsec = BPF_CORE_READ(newest, i_mtime_nsec);
	} else if (bpf_core_field_exists(newer->__i_mtime)) {
		ustack->mtime_sec = BPF_CORE_READ(newer, __i_mtime.tv_sec);
		ustack->mtime_nsec = BPF_CORE_READ(newer, __i_mtime.tv_nsec);
	} else {
		ustack->mtime_sec = BPF_CORE_READ(old, i_mtime.tv_sec);
		ustack->mtime_nsec = BPF_CORE_READ(old, i_mtime.tv_nsec);
	}
}

static __always_inline void __gadget_get_pid_level(struct pid *pid, unsigned int level,
						   __u32 *number, __u32 *pidns)
{
	/* numbers[] is declared with one element on some kernels, so CO-RE refuses a second one. */
	struct upid *upid = (void *)pid + bpf_core_field_offset(struct pid, numbers) +
			    level * bpf_core_type_size(struct upid);

	*number = BPF_CORE_READ(upid, nr);
	*pidns = BPF_CORE_READ(upid, ns, ns.inum);
}

static __always_inline void __gadget_get_build_ids(void *ctx, __u32 stack_id)
{
	struct gadget_build_ids *ids;

	/* The first one to see this stack fills the entry in; the others have nothing to do. */
	if (bpf_map_update_elem(&ig_build_id, &stack_id, &__gadget_no_build_ids, BPF_NOEXIST))
		return;
	ids = bpf_map_lookup_elem(&ig_build_id, &stack_id);
	if (ids)
		bpf_get_stack(ctx, ids, sizeof(*ids), BPF_F_USER_STACK | BPF_F_USER_BUILD_ID);
}

/* All of `ustack` but otel_correlation_id. */
static __always_inline void __gadget_get_user_stack(void *ctx, struct gadget_user_stack *ustack)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct mm_struct *mm = BPF_CORE_READ(task, mm);
	struct inode *inode = BPF_CORE_READ(mm, exe_file, f_inode);
	struct pid *pid = BPF_CORE_READ(task, thread_pid);
	__u64 pid_tgid = bpf_get_current_pid_tgid();
	__u32 device = BPF_CORE_READ(inode, i_sb, s_dev);
	__u32 hash = fnv_32a_init();

	ustack->major = device >> 20;
	ustack->minor = device & 0xfffff;
	ustack->inode = BPF_CORE_READ(inode, i_ino);
	__gadget_get_mtime(inode, ustack);

	hash = fnv_32a_update_u64(hash, (__u64)mm);
	hash = fnv_32a_update_u64(hash, BPF_CORE_READ(mm, start_code));
	hash = fnv_32a_update_u64(hash, BPF_CORE_READ(mm, start_stack));
	ustack->base_addr_hash = hash;

	ustack->tgid_level0 = pid_tgid >> 32;
	__gadget_get_pid_level(pid, 0, &ustack->pid_level0, &ustack->pidns_level0);
	ustack->pid_level1 = 0;
	ustack->pidns_level1 = 0;
	if (BPF_CORE_READ(pid, level) > 0)
		__gadget_get_pid_level(pid, 1, &ustack->pid_level1, &ustack->pidns_level1);

	ustack->boot_timestamp = bpf_ktime_get_boot_ns();
	ustack->stack_id =
		bpf_get_stackid(ctx, &ig_ustack, BPF_F_USER_STACK | BPF_F_FAST_STACK_CMP);
	if (collect_build_id && (__s32)ustack->stack_id >= 0)
		__gadget_get_build_ids(ctx, ustack->stack_id);
}

/* Not inlined: a tail call does not come back to the function that makes it. */
static __noinline int __gadget_otel_from_kprobe(struct pt_regs *ctx)
{
	bpf_tail_call(ctx, &otel_tc_kprobe, 0);
	return 0;
}

static __noinline int __gadget_otel_from_perf_event(struct bpf_perf_event_data *ctx)
{
	bpf_tail_call(ctx, &otel_tc_perf, 0);
	return 0;
}

/* An id that the profiler gives back with the stack; 0 if it cannot be told. */
static __always_inline __u64 __gadget_otel_correlation_id(void)
{
	__u32 zero = 0;
	struct gadget_otel_params *params = bpf_map_lookup_elem(&otel_generic_params, &zero);

	if (!params)
		return 0;
	params->correlation_id = bpf_ktime_get_ns() << 8 | (bpf_get_smp_processor_id() & 0xff);
	return params->correlation_id;
}

static __always_inline void gadget_get_user_stack_from_kprobe(struct pt_regs *ctx,
							      struct gadget_user_stack *ustack)
{
	__builtin_memset(ustack, 0, sizeof(*ustack));
	if (!collect_ustack)
		return;
	__gadget_get_user_stack(ctx, ustack);
	if (collect_otel_stack) {
		ustack->otel_correlation_id = __gadget_otel_correlation_id();
		__gadget_otel_from_kprobe(ctx);
	}
}

static __always_inline void gadget_get_user_stack_from_perf_event(struct bpf_perf_event_data *ctx,
								  struct gadget_user_stack *ustack)
{
	__builtin_memset(ustack, 0, sizeof(*ustack));
	if (!collect_ustack)
		return;
	__gadget_get_user_stack(ctx, ustack);
	if (collect_otel_stack) {
		ustack->otel_correlation_id = __gadget_otel_correlation_id();
		__gadget_otel_from_perf_event(ctx);
	}
}

static __always_inline void gadget_get_user_stack_from_tracepoint(void *ctx,
								  struct gadget_user_stack *ustack)
{
	__builtin_memset(ustack, 0, sizeof(*ustack));
	if (!collect_ustack)
		return;
	/*
	 * The profiler has no unwinder for tracepoints. Asked for one, the program must not load:
	 * this calls a helper that no kernel has.
	 */
	if (collect_otel_stack)
		((void (*)(void))0xbad2310)();
	__gadget_get_user_stack(ctx, ustack);
}

/* For kprobes, uprobes and perf events; what it does follows from the type of `ctx`. */
#define gadget_get_user_stack(ctx, ustack)                                         \
	_Generic((ctx), struct pt_regs *                                           \
		 : gadget_get_user_stack_from_kprobe, struct bpf_perf_event_data * \
		 : gadget_get_user_stack_from_perf_event)(ctx, ustack)

#endif /* __GADGET_USER_STACK_MAP_H */
