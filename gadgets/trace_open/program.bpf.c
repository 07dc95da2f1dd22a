// SPDX-License-Identifier: GPL-2.0
// Which files do processes open?
#include <vmlinux.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#include <gadget/buffer.h>
#include <gadget/common.h>
#include <gadget/filesystem.h>
#include <gadget/filter.h>
#include <gadget/macros.h>
#include <gadget/types.h>
#include <gadget/user_stack_map.h>

#define NAME_MAX 255

/* include/uapi/asm-generic/fcntl.h; the same on amd64 and arm64 */
#define O_WRONLY 00000001
#define O_CREAT 00000100
#define O_TRUNC 00001000
#define __O_TMPFILE 020000000

struct event {
	gadget_timestamp timestamp_raw;
	struct gadget_process proc;
	gadget_errno error_raw;
	__u32 fd;
	gadget_file_flags flags_raw;
	gadget_file_mode mode_raw;
	struct gadget_user_stack ustack;
	char fname[NAME_MAX];
	/* The last field: it is sent only when wanted. */
	char fpath[GADGET_PATH_MAX];
};

/* What a call was given; kept until it returns. */
struct call {
	char fname[NAME_MAX];
	bool has_fname;
	__u32 flags;
	__u32 mode;
	/* Read when the call returns where they could not be read at its start. */
	const char *fname_ptr;
	const struct open_how *how_ptr;
};

const volatile bool failed = false;
GADGET_PARAM(failed);

const volatile bool paths = false;
GADGET_PARAM(paths);

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 10240);
	__type(key, __u32);
	__type(value, struct call);
} calls SEC(".maps");

GADGET_TRACER_MAP(events, 1024 * 256);
GADGET_TRACER(open, events, event);

/* The mode that the kernel looks at: others pass whatever is in the register. */
static __always_inline __u32 used_mode(__u32 flags, __u32 mode)
{
	return flags & (O_CREAT | __O_TMPFILE) ? mode : 0;
}

static __always_inline bool read_how(struct call *call, const struct open_how *how_ptr)
{
	struct open_how how;

	if (bpf_probe_read_user(&how, sizeof(how), how_ptr))
		return false;
	call->flags = how.flags;
	call->mode = used_mode(how.flags, how.mode);
	return true;
}

static __always_inline int enter(struct call *call, const char *fname_ptr)
{
	__u32 tid = (__u32)bpf_get_current_pid_tgid();

	/* The page may not be there yet; it is once the kernel has read the name itself. */
	call->has_fname = bpf_probe_read_user_str(call->fname, sizeof(call->fname), fname_ptr) >= 0;
	call->fname_ptr = fname_ptr;
	if (bpf_map_update_elem(&calls, &tid, call, BPF_ANY))
		__gadget_count_lost(&events_lost_samples);
	return 0;
}

static __always_inline int leave(struct trace_event_raw_sys_exit *ctx)
{
	/* A record that ends early is as good as one that goes on with zeros. */
	const __u64 size = paths ? sizeof(struct event) : offsetof(struct event, fpath);
	__u32 tid = (__u32)bpf_get_current_pid_tgid();
	struct event *event;
	struct call *call;
	long ret = ctx->ret;

	call = bpf_map_lookup_elem(&calls, &tid);
	if (!call)
		return 0;
	if (failed && ret >= 0)
		goto done;

	event = gadget_reserve_buf(&events, size);
	if (!event)
		goto done;

	if (call->how_ptr)
		read_how(call, call->how_ptr);

	gadget_process_populate(&event->proc);
	event->timestamp_raw = bpf_ktime_get_boot_ns();
	event->error_raw = ret < 0 ? -ret : 0;
	event->fd = ret < 0 ? 0 : ret;
	event->flags_raw = call->flags;
	event->mode_raw = call->mode;
	gadget_get_user_stack_from_tracepoint(ctx, &event->ustack);

	if (call->has_fname)
		__builtin_memcpy(event->fname, call->fname, sizeof(event->fname));
	else if (bpf_probe_read_user_str(event->fname, sizeof(event->fname), call->fname_ptr) < 0)
		event->fname[0] = '\0';

	if (paths) {
		event->fpath[0] = '\0';
		if (ret >= 0)
			read_full_path_of_open_file_fd(ret, event->fpath, sizeof(event->fpath));
	}

	gadget_submit_buf(ctx, &events, event, size);
done:
	bpf_map_delete_elem(&calls, &tid);
	return 0;
}

SEC("tracepoint/syscalls/sys_enter_openat")
int ig_openat_e(struct trace_event_raw_sys_enter *ctx)
{
	struct call call = {};

	if (gadget_should_discard_data_current())
		return 0;
	call.flags = ctx->args[2];
	call.mode = used_mode(ctx->args[2], ctx->args[3]);
	return enter(&call, (const char *)ctx->args[1]);
}

SEC("tracepoint/syscalls/sys_exit_openat")
int ig_openat_x(struct trace_event_raw_sys_exit *ctx)
{
	return leave(ctx);
}

SEC("tracepoint/syscalls/sys_enter_openat2")
int ig_openat2_e(struct trace_event_raw_sys_enter *ctx)
{
	const struct open_how *how = (const struct open_how *)ctx->args[2];
	struct call call = {};

	if (gadget_should_discard_data_current())
		return 0;
	if (!read_how(&call, how))
		call.how_ptr = how;
	return enter(&call, (const char *)ctx->args[1]);
}

SEC("tracepoint/syscalls/sys_exit_openat2")
int ig_openat2_x(struct trace_event_raw_sys_exit *ctx)
{
	return leave(ctx);
}

/* arm64 has neither of these calls. */
#ifdef __TARGET_ARCH_x86
SEC("tracepoint/syscalls/sys_enter_open")
int ig_open_e(struct trace_event_raw_sys_enter *ctx)
{
	struct call call = {};

	if (gadget_should_discard_data_current())
		return 0;
	call.flags = ctx->args[1];
	call.mode = used_mode(ctx->args[1], ctx->args[2]);
	return enter(&call, (const char *)ctx->args[0]);
}

SEC("tracepoint/syscalls/sys_exit_open")
int ig_open_x(struct trace_event_raw_sys_exit *ctx)
{
	return leave(ctx);
}

SEC("tracepoint/syscalls/sys_enter_creat")
int ig_creat_e(struct trace_event_raw_sys_enter *ctx)
{
	struct call call = {};

	if (gadget_should_discard_data_current())
		return 0;
	call.flags = O_CREAT | O_WRONLY | O_TRUNC;
	call.mode = ctx->args[1];
	return enter(&call, (const char *)ctx->args[0]);
}

SEC("tracepoint/syscalls/sys_exit_creat")
int ig_creat_x(struct trace_event_raw_sys_exit *ctx)
{
	return leave(ctx);
}
#endif

char _license[] SEC("license") = "GPL";
