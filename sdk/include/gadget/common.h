/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
#ifndef __GADGET_COMMON_H
#define __GADGET_COMMON_H

#include <gadget/types.h>
#include <gadget/mntns.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

/* Fill in the running task and its parent. */
static __always_inline void gadget_process_populate(struct gadget_process *process)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct task_struct *parent = BPF_CORE_READ(task, real_parent);
	__u64 pid_tgid = bpf_get_current_pid_tgid();
	__u64 uid_gid = bpf_get_current_uid_gid();

	bpf_get_current_comm(process->comm, sizeof(process->comm));
	process->pid = pid_tgid >> 32;
	process->tid = (__u32)pid_tgid;
	process->mntns_id = BPF_CORE_READ(task, nsproxy, mnt_ns, ns.inum);
	process->creds.uid = (__u32)uid_gid;
	process->creds.gid = uid_gid >> 32;

	bpf_core_read(process->parent.comm, sizeof(process->parent.comm), &parent->comm);
	process->parent.pid = BPF_CORE_READ(parent, tgid);
	process->parent.tid = BPF_CORE_READ(parent, pid);
}

#endif /* __GADGET_COMMON_H */
