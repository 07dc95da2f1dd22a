// SPDX-License-Identifier: GPL-2.0
// Which system calls do processes make, how often and how long do they take?
#include <vmlinux.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#include <gadget/filter.h>
#include <gadget/macros.h>
#include <gadget/mntns.h>
#include <gadget/types.h>

#define MAX_ERRNO 4095

struct call_key {
	gadget_mntns_id mntns_id;
	gadget_pid pid;
	gadget_comm comm[TASK_COMM_LEN];
	gadget_syscall syscall_raw;
};

struct call_stats {
	__u64 count;
	__u64 errors;
	gadget_duration latency_raw;
	gadget_duration max_latency_raw;
};

/* A call that has not returned yet. time: 0 if the thread is in none */
struct start {
	__u64 time;
	__u64 syscall;
};

/*
 * By thread. An entry stays from call to call: to write into it is cheaper than to make it anew.
 * Those of threads that are gone make room.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 32768);
	__type(key, __u32);
	__type(value, struct start);
} starts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 10240);
	__type(key, struct call_key);
	__type(value, struct call_stats);
} calls SEC(".maps");

/* Calls that found no room in the map above. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} calls_lost_samples SEC(".maps");

GADGET_MAPITER(syscalls, calls);

SEC("raw_tracepoint/sys_enter")
int ig_top_sys_e(struct bpf_raw_tracepoint_args *ctx)
{
	__u32 tid = (__u32)bpf_get_current_pid_tgid();
	struct start start = { .syscall = ctx->args[1] };
	struct start *known;

	/* A tracer or seccomp has called it off. */
	if ((long)start.syscall < 0)
		return 0;
	if (gadget_should_discard_data_current())
		return 0;
	start.time = bpf_ktime_get_ns();
	known = bpf_map_lookup_elem(&starts, &tid);
	if (known)
		*known = start;
	else
		bpf_map_update_elem(&starts, &tid, &start, BPF_ANY);
	return 0;
}

SEC("raw_tracepoint/sys_exit")
int ig_top_sys_x(struct bpf_raw_tracepoint_args *ctx)
{
	__u64 pid_tgid = bpf_get_current_pid_tgid();
	struct call_key key = {};
	struct call_stats none = {};
	struct call_stats *stats;
	__u32 tid = (__u32)pid_tgid;
	__u32 zero = 0;
	struct start *start;
	long ret = ctx->args[1];
	__u64 latency;

	start = bpf_map_lookup_elem(&starts, &tid);
	if (!start || !start->time)
		return 0;
	latency = bpf_ktime_get_ns() - start->time;
	key.syscall_raw = start->syscall;
	start->time = 0;

	key.mntns_id = gadget_get_current_mntns_id();
	key.pid = pid_tgid >> 32;
	bpf_get_current_comm(key.comm, sizeof(key.comm));

	stats = bpf_map_lookup_elem(&calls, &key);
	if (!stats) {
		bpf_map_update_elem(&calls, &key, &none, BPF_NOEXIST);
		stats = bpf_map_lookup_elem(&calls, &key);
	}
	if (!stats) {
		__u64 *lost = bpf_map_lookup_elem(&calls_lost_samples, &zero);

		if (lost)
			__sync_fetch_and_add(lost, 1);
		return 0;
	}

	__sync_fetch_and_add(&stats->count, 1);
	__sync_fetch_and_add(&stats->latency_raw, latency);
	if (ret < 0 && ret >= -MAX_ERRNO)
		__sync_fetch_and_add(&stats->errors, 1);
	/* Two threads of a process may race here; before Linux 5.12 there is no atomic exchange. */
	if (latency > stats->max_latency_raw)
		stats->max_latency_raw = latency;
	return 0;
}

char _license[] SEC("license") = "GPL";
