// SPDX-License-Identifier: GPL-2.0
// An event of 336 bytes for each getpgid() of one process: what it says depends on its number
// alone.
#include <vmlinux.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#include <gadget/buffer.h>
#include <gadget/filter.h>
#include <gadget/macros.h>
#include <gadget/types.h>

#include "table.h"

#ifdef __TARGET_ARCH_x86
#define GETPGID 121
#else
#define GETPGID 155
#endif

#define ENOENT 2
#define EACCES 13
#define O_WRONLY_CREAT_TRUNC 01101
#define O_CLOEXEC 02000000

struct event {
	gadget_timestamp timestamp_raw;
	gadget_mntns_id mntns_id;
	gadget_pid pid;
	gadget_tid tid;
	gadget_ppid ppid;
	gadget_uid uid;
	gadget_gid gid;
	gadget_file_flags flags_raw;
	gadget_errno error_raw;
	gadget_file_mode mode_raw;
	gadget_comm comm[TASK_COMM_LEN];
	gadget_pcomm pcomm[TASK_COMM_LEN];
	char fname[PATH_BYTES];
};

GADGET_TRACER_MAP(events, 256 * 1024);
GADGET_TRACER(calls, events, event);

/* How many there were on this CPU. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} numbers SEC(".maps");

SEC("raw_tracepoint/sys_enter")
int ig_calls(struct bpf_raw_tracepoint_args *ctx)
{
	__u64 pid_tgid, uid_gid, n, *number;
	struct task_struct *parent;
	struct event *event;
	__u32 zero = 0;

	if (ctx->args[1] != GETPGID || gadget_should_discard_data_current())
		return 0;
	number = bpf_map_lookup_elem(&numbers, &zero);
	if (!number)
		return 0;
	n = (*number)++;

	event = gadget_reserve_buf(&events, sizeof(*event));
	if (!event)
		return 0;
	parent = BPF_CORE_READ((struct task_struct *)bpf_get_current_task(), real_parent);
	pid_tgid = bpf_get_current_pid_tgid();
	uid_gid = bpf_get_current_uid_gid();

	event->timestamp_raw = bpf_ktime_get_boot_ns();
	event->mntns_id = FIRST_MNTNS + (n * 7) % CONTAINERS;
	event->pid = pid_tgid >> 32;
	event->tid = (__u32)pid_tgid;
	event->ppid = BPF_CORE_READ(parent, tgid);
	event->uid = (__u32)uid_gid;
	event->gid = uid_gid >> 32;
	event->error_raw = n % 8 == 3 ? ENOENT : n % 64 == 5 ? EACCES : 0;
	event->flags_raw = n & 1 ? O_CLOEXEC : n & 2 ? O_WRONLY_CREAT_TRUNC : 0;
	event->mode_raw = n & 2 ? 0644 : 0;
	bpf_get_current_comm(event->comm, sizeof(event->comm));
	bpf_probe_read_kernel_str(event->pcomm, sizeof(event->pcomm), parent->comm);
	/* As a program does it that reads a name: what stands behind the text is from the record
	 * before. */
	bpf_probe_read_kernel_str(event->fname, sizeof(event->fname), paths[n * 13 % PATHS]);
	gadget_submit_buf(ctx, &events, event, sizeof(*event));
	return 0;
}

char _license[] SEC("license") = "GPL";
