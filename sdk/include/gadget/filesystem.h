/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
#ifndef __GADGET_FILESYSTEM_H
#define __GADGET_FILESYSTEM_H

#include <gadget/base.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

/* Room for a path in an event. */
#define GADGET_PATH_MAX 512

/* A path is written from its end, in the middle of the scratch buffer, to its start. */
#define GADGET_PATH_SCRATCH 32768
#define GADGET_PATH_END (GADGET_PATH_SCRATCH / 2)
#define GADGET_PATH_COMPONENTS 80
#define GADGET_NAME_MAX 255

/*
 * start: where the path begins. It lives here because of the verifier: what comes from memory is
 * just some number to it, so all rounds of the loop look the same, and it need not follow each of
 * them.
 */
struct gadget_path_scratch {
	char text[GADGET_PATH_SCRATCH - sizeof(__u32)];
	__u32 start;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct gadget_path_scratch);
} bufs SEC(".maps");

/*
 * The path as text, from the root of its mount namespace; of more than GADGET_PATH_COMPONENTS
 * components the last ones. It lies in a buffer that the next call on this CPU overwrites. NULL: no
 * buffer.
 */
static __noinline char *get_path_str(struct path *path)
{
	struct dentry *dentry = BPF_CORE_READ(path, dentry);
	struct vfsmount *vfsmnt = BPF_CORE_READ(path, mnt);
	struct mount *mnt = (void *)vfsmnt - bpf_core_field_offset(struct mount, mnt);
	struct gadget_path_scratch *scratch;
	__u32 zero = 0;

	scratch = bpf_map_lookup_elem(&bufs, &zero);
	if (!scratch)
		return NULL;
	scratch->text[GADGET_PATH_END] = '\0';
	scratch->start = GADGET_PATH_END;

	for (int i = 0; i < GADGET_PATH_COMPONENTS; i++) {
		struct dentry *root = BPF_CORE_READ(mnt, mnt.mnt_root);
		struct dentry *parent = BPF_CORE_READ(dentry, d_parent);
		const unsigned char *name;
		__u32 length, start;

		if (dentry == root) {
			struct mount *above = BPF_CORE_READ(mnt, mnt_parent);

			if (mnt == above)
				break;
			dentry = BPF_CORE_READ(mnt, mnt_mountpoint);
			mnt = above;
			continue;
		}
		if (dentry == parent)
			break;

		length = BPF_CORE_READ(dentry, d_name.len) & GADGET_NAME_MAX;
		start = scratch->start;
		if (start < length + 1)
			break;
		start = (start - length - 1) & (GADGET_PATH_END - 1);
		scratch->start = start;
		scratch->text[start] = '/';
		name = BPF_CORE_READ(dentry, d_name.name);
		bpf_probe_read_kernel(&scratch->text[start + 1], length, name);
		dentry = parent;
	}

	if (scratch->start == GADGET_PATH_END) {
		scratch->start--;
		scratch->text[GADGET_PATH_END - 1] = '/';
	}
	return &scratch->text[scratch->start & (GADGET_PATH_END - 1)];
}

/* The open file behind a descriptor of the running task; NULL if there is none. */
static __always_inline struct file *get_struct_file_for_fd(int fd)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct fdtable *table = BPF_CORE_READ(task, files, fdt);
	struct file **files = BPF_CORE_READ(table, fd);
	struct file *file = NULL;

	if (fd < 0 || (unsigned int)fd >= BPF_CORE_READ(table, max_fds))
		return NULL;
	bpf_probe_read_kernel(&file, sizeof(file), &files[fd]);
	return file;
}

/* Put the path of an open file of the running task into `buf`. Its length with the NUL, or < 0. */
static __always_inline long read_full_path_of_open_file_fd(int fd, char *buf, size_t len)
{
	struct file *file = get_struct_file_for_fd(fd);
	char *path;

	buf[0] = '\0';
	if (!file)
		return -1;
	path = get_path_str(&file->f_path);
	if (!path)
		return -1;
	return bpf_probe_read_kernel_str(buf, len, path);
}

#endif /* __GADGET_FILESYSTEM_H */
