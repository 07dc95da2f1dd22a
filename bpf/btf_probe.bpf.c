// SPDX-License-Identifier: GPL-2.0
/*
 * Is this the kernel's BTF? A wrong one loads and reads zeros. So a thread of the runtime gives
 * itself a name that nobody else has and makes a system call; this program then reads through CO-RE
 * what the runtime knows about that thread. What the BTF does not describe stays untold in `has`.
 */
#include <vmlinux.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

enum {
	HAS_TGID = 1,
	HAS_PID = 2,
	HAS_COMM = 4,
	HAS_MNTNS = 8,
};

struct answer {
	char name[16];	/* of the thread to look at, from the runtime */
	__u64 pid_tgid; /* as the helper tells it, which needs no BTF; 0: it was not seen yet */
	__u32 has;
	__u32 tgid;
	__u32 pid;
	__u32 mntns;
	char comm[16];
};

/* No global variables: kernels before 5.2 have none. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct answer);
} answers SEC(".maps");

SEC("raw_tp/sys_enter")
int btf_probe(void *ctx)
{
	struct task_struct *task;
	struct answer *answer;
	__u64 comm[2] = {};
	__u64 *name;
	__u32 zero = 0;

	answer = bpf_map_lookup_elem(&answers, &zero);
	if (!answer || answer->pid_tgid)
		return 0;
	name = (__u64 *)answer->name;
	bpf_get_current_comm(comm, sizeof(comm));
	if (comm[0] != name[0] || comm[1] != name[1])
		return 0;

	task = (struct task_struct *)bpf_get_current_task();
	if (bpf_core_field_exists(task->tgid)) {
		answer->has |= HAS_TGID;
		answer->tgid = BPF_CORE_READ(task, tgid);
	}
	if (bpf_core_field_exists(task->pid)) {
		answer->has |= HAS_PID;
		answer->pid = BPF_CORE_READ(task, pid);
	}
	if (bpf_core_field_exists(task->comm)) {
		answer->has |= HAS_COMM;
		bpf_core_read(&answer->comm, sizeof(answer->comm), &task->comm);
	}
	if (bpf_core_field_exists(task->nsproxy) &&
	    bpf_core_field_exists(((struct nsproxy *)0)->mnt_ns) &&
	    bpf_core_field_exists(((struct mnt_namespace *)0)->ns.inum)) {
		answer->has |= HAS_MNTNS;
		answer->mntns = BPF_CORE_READ(task, nsproxy, mnt_ns, ns.inum);
	}
	answer->pid_tgid = bpf_get_current_pid_tgid();
	return 0;
}
