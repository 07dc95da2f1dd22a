// SPDX-License-Identifier: GPL-2.0
// Which programs are run, with which arguments, and by whom?
#include <vmlinux.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

/* Events are sent from the map that collects them. */
#define GADGET_NO_BUF_RESERVE

#include <gadget/buffer.h>
#include <gadget/common.h>
#include <gadget/core_fixes.bpf.h>
#include <gadget/filesystem.h>
#include <gadget/filter.h>
#include <gadget/macros.h>
#include <gadget/types.h>

#define MAX_ARGS 20
/* of one argument, its NUL included */
#define MAX_ARG_SIZE 256
#define MAX_ARGS_SIZE (MAX_ARGS * MAX_ARG_SIZE)
#define NO_ID ((__u32)-1)

/* include/uapi/linux/magic.h */
#define OVERLAYFS_SUPER_MAGIC 0x794c7630

/* What stands between two arguments: U+00A0, no-break space, in UTF-8. */
#define SEPARATOR_1 '\xc2'
#define SEPARATOR_2 '\xa0'

/*
 * exe, *_from_rootfs, ...: there are two files. `file` is what was to be run; the executable, whose
 * fields have no prefix, is what runs: the interpreter where `file` is a script. p...: the parent's
 * executable. *upper_layer: the file has been changed in, or added to, a container's image.
 */
struct event {
	gadget_timestamp timestamp_raw;
	struct gadget_process proc;
	gadget_uid loginuid;
	__u32 sessionid;
	gadget_errno error_raw;
	__u32 args_count;
	__u32 tty;
	__u32 tty_major;
	__u32 tty_minor;
	bool from_rootfs;
	bool file_from_rootfs;
	bool upper_layer;
	bool fupper_layer;
	bool pupper_layer;
	__u32 args_size;
	char cwd[GADGET_PATH_MAX];
	char file[GADGET_PATH_MAX];
	__u32 dev_major;
	__u32 dev_minor;
	__u64 inode;
	__u64 ctime;
	__u64 fctime;
	__u64 pctime;
	char exepath[GADGET_PATH_MAX];
	char parent_exepath[GADGET_PATH_MAX];
	/* The last field: only what is used of it is sent. */
	char args[MAX_ARGS_SIZE];
};

/* A call that has not returned yet. */
struct call {
	struct event event;
	/* Where the last argument ends if all of them are of full size. */
	char rest[2 * MAX_ARG_SIZE];
	const char *const *argv;
	/* Some argument could not be read: its page was not there yet. */
	bool incomplete;
};

const volatile bool ignore_failed = true;
GADGET_PARAM(ignore_failed);

const volatile bool paths = false;
GADGET_PARAM(paths);

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 512);
	__type(key, __u32);
	__type(value, struct call);
} calls SEC(".maps");

GADGET_TRACER_MAP(events, 1024 * 256);
GADGET_TRACER(exec, events, event);

static struct call no_call;

static __always_inline struct call *new_call(__u32 tid)
{
	if (bpf_map_update_elem(&calls, &tid, &no_call, BPF_ANY))
		return NULL;
	return bpf_map_lookup_elem(&calls, &tid);
}

/* Add an argument to the others. Its size with the NUL; < 0: it could not be read. */
static __always_inline long add_arg(struct event *event, const char *arg)
{
	__u64 used;
	long size;

	/*
	 * Without it clang jumps into the middle of the loops around this, as it knows what the
	 * first round reads; kernels before 6.2 take no such loop.
	 */
	barrier();
	used = event->args_size;

	if (used > MAX_ARGS_SIZE)
		return 0;
	if (event->args_count) {
		event->args[used] = SEPARATOR_1;
		event->args[used + 1] = SEPARATOR_2;
		used += 2;
	}
	size = bpf_probe_read_user_str(&event->args[used], MAX_ARG_SIZE, arg);
	if (size < 0)
		return -1;
	/* Older kernels, 5.10 among them, say 0 of an empty string, not 1. */
	if (!size)
		size = 1;
	event->args_size = used + size - 1;
	event->args_count++;
	return size;
}

/* The arguments as the caller passes them. */
static __always_inline void read_args(struct call *call)
{
	struct event *event = &call->event;

	event->args_count = 0;
	event->args_size = 0;
	call->incomplete = false;
	for (int i = 0; i < MAX_ARGS; i++) {
		const char *arg = NULL;

		if (bpf_probe_read_user(&arg, sizeof(arg), &call->argv[i])) {
			/* No list at all is allowed. */
			call->incomplete = call->argv != NULL;
			break;
		}
		if (!arg)
			break;
		if (add_arg(event, arg) < 0) {
			call->incomplete = true;
			break;
		}
	}
}

/* The arguments as the new program finds them, one after the other. */
static __always_inline void read_new_args(struct event *event, struct mm_struct *mm)
{
	const char *arg = (const char *)BPF_CORE_READ(mm, arg_start);
	const char *end = (const char *)BPF_CORE_READ(mm, arg_end);

	event->args_count = 0;
	event->args_size = 0;
	for (int i = 0; i < MAX_ARGS; i++) {
		long size;

		if (arg >= end)
			break;
		size = add_arg(event, arg);
		/* Where a long one ends is not known. */
		if (size <= 0 || size == MAX_ARG_SIZE)
			break;
		arg += size;
	}
}

static __always_inline void read_tty(struct event *event, struct task_struct *task)
{
	struct tty_struct *tty = BPF_CORE_READ(task, signal, tty);

	if (!tty)
		return;
	event->tty_major = BPF_CORE_READ(tty, driver, major);
	event->tty_minor = BPF_CORE_READ(tty, driver, minor_start) + BPF_CORE_READ(tty, index);
	/* as tty_nr in /proc/PID/stat */
	event->tty = (event->tty_minor & 0xff) | event->tty_major << 8 |
		     (event->tty_minor & ~0xff) << 12;
}

static __always_inline void read_login(struct event *event, struct task_struct *task)
{
	event->loginuid = NO_ID;
	event->sessionid = NO_ID;
	/* Kernels without CONFIG_AUDIT have neither. */
	if (bpf_core_field_exists(task->loginuid))
		event->loginuid = BPF_CORE_READ(task, loginuid.val);
	if (bpf_core_field_exists(task->sessionid))
		event->sessionid = BPF_CORE_READ(task, sessionid);
}

static __always_inline bool is_from_rootfs(struct task_struct *task, struct file *file)
{
	return BPF_CORE_READ(file, f_path.mnt) == BPF_CORE_READ(task, fs, root.mnt);
}

/* Is this a file of an overlay file system that stands in its upper layer? */
static __always_inline bool is_in_upper_layer(struct inode *inode)
{
	struct dentry *upper = NULL;

	if (BPF_CORE_READ(inode, i_sb, s_magic) != OVERLAYFS_SUPER_MAGIC)
		return false;
	/* struct ovl_inode, which is known only to a module, has it right behind the inode. */
	bpf_probe_read_kernel(&upper, sizeof(upper),
			      (void *)inode + bpf_core_type_size(struct inode));
	return upper != NULL;
}

static __always_inline void read_path(char *buf, struct path *path)
{
	char *text = get_path_str(path);

	if (text)
		bpf_probe_read_kernel_str(buf, GADGET_PATH_MAX, text);
}

static __always_inline void read_exe(struct event *event, struct task_struct *task)
{
	struct file *exe = BPF_CORE_READ(task, mm, exe_file);
	struct inode *inode = BPF_CORE_READ(exe, f_inode);

	if (!exe)
		return;
	event->from_rootfs = is_from_rootfs(task, exe);
	event->upper_layer = is_in_upper_layer(inode);
	event->ctime = gadget_get_ctime_nanosec_from_inode(inode);
	if (paths)
		read_path(event->exepath, &exe->f_path);
}

static __always_inline void read_parent(struct event *event, struct task_struct *task)
{
	struct file *exe = BPF_CORE_READ(task, real_parent, mm, exe_file);
	struct inode *inode = BPF_CORE_READ(exe, f_inode);

	if (!exe)
		return;
	event->pupper_layer = is_in_upper_layer(inode);
	event->pctime = gadget_get_ctime_nanosec_from_inode(inode);
	if (paths)
		read_path(event->parent_exepath, &exe->f_path);
}

/* What was to be run is what runs: the executable. */
static __always_inline void read_file(struct event *event, struct task_struct *task)
{
	struct file *exe = BPF_CORE_READ(task, mm, exe_file);
	struct inode *inode = BPF_CORE_READ(exe, f_inode);
	__u32 device = BPF_CORE_READ(inode, i_sb, s_dev);

	event->dev_major = device >> 20;
	event->dev_minor = device & 0xfffff;
	event->inode = BPF_CORE_READ(inode, i_ino);
	event->file_from_rootfs = event->from_rootfs;
	event->fupper_layer = event->upper_layer;
	event->fctime = event->ctime;
	if (paths)
		bpf_probe_read_kernel_str(event->file, sizeof(event->file), event->exepath);
}

/* Of a script nothing is left but its name, from the working directory on if it is relative. */
static __always_inline void read_script(struct event *event, const char *name)
{
	char first = '\0';
	__u64 used;
	long size;

	if (!paths)
		return;
	bpf_probe_read_kernel(&first, sizeof(first), name);
	if (first == '/') {
		bpf_probe_read_kernel_str(event->file, sizeof(event->file), name);
		return;
	}
	size = bpf_probe_read_kernel_str(event->file, sizeof(event->file), event->cwd);
	if (size <= 0 || size >= sizeof(event->file))
		return;
	/* In place of the NUL. */
	used = size - 1;
	event->file[used] = '/';
	used++;
	bpf_probe_read_kernel_str(&event->file[used], sizeof(event->file) - used, name);
}

static __always_inline void emit(void *ctx, struct event *event)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	__u64 size = event->args_size;

	event->timestamp_raw = bpf_ktime_get_boot_ns();
	gadget_process_populate(&event->proc);
	read_login(event, task);
	read_tty(event, task);
	read_parent(event, task);

	if (size > MAX_ARGS_SIZE)
		size = MAX_ARGS_SIZE;
	event->args_size = size;
	gadget_output_buf(ctx, &events, event, offsetof(struct event, args) + size);
}

static __always_inline int enter(const char *const *argv)
{
	__u64 pid_tgid = bpf_get_current_pid_tgid();
	struct call *call;

	/* The user and the name may be others once the program runs. */
	if (gadget_should_discard_pid(pid_tgid >> 32))
		return 0;
	if (gadget_filter_by_mntns && gadget_should_discard_mntns_id(gadget_get_current_mntns_id()))
		return 0;
	call = new_call((__u32)pid_tgid);
	if (!call)
		return 0;
	call->argv = argv;
	read_args(call);
	return 0;
}

/* Only calls that failed come here with their entry. */
static __always_inline int leave(struct trace_event_raw_sys_exit *ctx)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	__u32 tid = (__u32)bpf_get_current_pid_tgid();
	long ret = ctx->ret;
	struct call *call;

	call = bpf_map_lookup_elem(&calls, &tid);
	if (ret >= 0 || ignore_failed || gadget_should_discard_data_current())
		goto done;
	if (!call) {
		__gadget_count_lost(&events_lost_samples);
		return 0;
	}
	/* By now the kernel has read them itself. */
	if (call->incomplete)
		read_args(call);
	call->event.error_raw = -ret;
	if (paths) {
		struct fs_struct *fs = BPF_CORE_READ(task, fs);

		read_path(call->event.cwd, &fs->pwd);
	}
	read_exe(&call->event, task);
	emit(ctx, &call->event);
done:
	if (call)
		bpf_map_delete_elem(&calls, &tid);
	return 0;
}

SEC("tracepoint/syscalls/sys_enter_execve")
int ig_execve_e(struct trace_event_raw_sys_enter *ctx)
{
	return enter((const char *const *)ctx->args[1]);
}

SEC("tracepoint/syscalls/sys_enter_execveat")
int ig_execveat_e(struct trace_event_raw_sys_enter *ctx)
{
	return enter((const char *const *)ctx->args[2]);
}

SEC("tracepoint/syscalls/sys_exit_execve")
int ig_execve_x(struct trace_event_raw_sys_exit *ctx)
{
	return leave(ctx);
}

SEC("tracepoint/syscalls/sys_exit_execveat")
int ig_execveat_x(struct trace_event_raw_sys_exit *ctx)
{
	return leave(ctx);
}

/* The new program is in place. Arguments: the task, its thread id before, the struct linux_binprm.
 */
SEC("raw_tracepoint/sched_process_exec")
int ig_sched_exec(struct bpf_raw_tracepoint_args *ctx)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct linux_binprm *bprm = (struct linux_binprm *)ctx->args[2];
	const char *interp = BPF_CORE_READ(bprm, interp);
	const char *name = BPF_CORE_READ(bprm, filename);
	/* A thread that runs a program becomes its process's first thread. */
	__u32 tid = (__u32)ctx->args[1];
	struct call *call;

	call = bpf_map_lookup_elem(&calls, &tid);
	if (gadget_should_discard_data_current())
		goto done;
	if (!call) {
		/* 32-bit programs call past the tracepoints above. */
		call = new_call(tid);
		if (!call) {
			__gadget_count_lost(&events_lost_samples);
			return 0;
		}
		call->incomplete = true;
	}
	if (call->incomplete)
		read_new_args(&call->event, BPF_CORE_READ(task, mm));
	if (paths) {
		struct fs_struct *fs = BPF_CORE_READ(task, fs);

		read_path(call->event.cwd, &fs->pwd);
	}
	read_exe(&call->event, task);
	if (interp == name)
		read_file(&call->event, task);
	else
		read_script(&call->event, name);
	emit(ctx, &call->event);
done:
	if (call)
		bpf_map_delete_elem(&calls, &tid);
	return 0;
}

char _license[] SEC("license") = "GPL";
