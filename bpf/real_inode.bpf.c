// SPDX-License-Identifier: GPL-2.0
/*
 * Which file is this really? Of a file on overlayfs user space sees the overlay's inode; uprobes
 * sit on that of the layer below. What is mapped is the layer's file, and this tells its inode.
 */
#include <vmlinux.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

const volatile __u64 address = 0; /* where the process that reads this has mapped the file */

struct answer {
	__u64 inode;
	__u32 device; /* as the kernel has it: 12 bits major, 20 bits minor */
	__u32 unused;
};

SEC("iter/task_vma")
int real_inode(struct bpf_iter__task_vma *ctx)
{
	struct task_struct *task = ctx->task;
	struct vm_area_struct *vma = ctx->vma;
	struct answer answer = {};
	struct inode *inode;

	if (!task || !vma || !vma->vm_file)
		return 0;
	if (task->tgid != bpf_get_current_pid_tgid() >> 32 || vma->vm_start != address)
		return 0;
	inode = vma->vm_file->f_inode;
	answer.inode = inode->i_ino;
	answer.device = inode->i_sb->s_dev;
	bpf_seq_write(ctx->meta->seq, &answer, sizeof(answer));
	return 0;
}
