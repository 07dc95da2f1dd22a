// SPDX-License-Identifier: GPL-2.0
// Which processes are there?
#include <vmlinux.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#include <gadget/filter.h>
#include <gadget/macros.h>
#include <gadget/types.h>

const volatile bool threads = false;
GADGET_PARAM(threads);

GADGET_ITER(processes, gadget_process, ig_snap_proc);

SEC("iter/task")
int ig_snap_proc(struct bpf_iter__task *ctx)
{
	struct seq_file *seq = ctx->meta->seq;
	struct task_struct *task = ctx->task;
	struct gadget_process process = {};
	struct task_struct *parent;

	if (!task)
		return 0;

	process.pid = task->tgid;
	process.tid = task->pid;
	if (!threads && process.pid != process.tid)
		return 0;

	process.mntns_id = BPF_CORE_READ(task, nsproxy, mnt_ns, ns.inum);
	process.creds.uid = BPF_CORE_READ(task, cred, uid.val);
	process.creds.gid = BPF_CORE_READ(task, cred, gid.val);
	__builtin_memcpy(process.comm, task->comm, sizeof(process.comm));
	if (gadget_should_discard_data(process.mntns_id, process.pid, process.tid, process.comm,
				       process.creds.uid, process.creds.gid))
		return 0;

	parent = BPF_CORE_READ(task, real_parent);
	process.parent.pid = BPF_CORE_READ(parent, tgid);
	process.parent.tid = BPF_CORE_READ(parent, pid);
	bpf_core_read(process.parent.comm, sizeof(process.parent.comm), &parent->comm);

	bpf_seq_write(seq, &process, sizeof(process));
	return 0;
}

char _license[] SEC("license") = "GPL";
