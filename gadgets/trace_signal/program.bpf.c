// SPDX-License-Identifier: GPL-2.0
// Which signals are sent, and to whom?
#include <vmlinux.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#include <gadget/buffer.h>
#include <gadget/common.h>
#include <gadget/filter.h>
#include <gadget/macros.h>
#include <gadget/types.h>

#define EAGAIN 11

/* include/trace/events/signal.h: the `result` of signal_generate */
enum {
	SIGNAL_IGNORED = 1,
	SIGNAL_OVERFLOW_FAIL = 3,
};

struct event {
	gadget_timestamp timestamp_raw;
	struct gadget_process proc;
	__u32 tpid;
	gadget_signal sig_raw;
	gadget_errno error_raw;
};

/* What a call was given; kept until it returns. */
struct call {
	__u32 tpid;
	__u32 sig;
};

const volatile int target_signal = 0;
GADGET_PARAM(target_signal);

const volatile bool failed = false;
GADGET_PARAM(failed);

const volatile bool kill_only = false;
GADGET_PARAM(kill_only);

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 10240);
	__type(key, __u32);
	__type(value, struct call);
} calls SEC(".maps");

GADGET_TRACER_MAP(events, 1024 * 256);
GADGET_TRACER(signal, events, event);

static __always_inline void emit(void *ctx, __u32 tpid, __u32 sig, __u32 error)
{
	struct event *event = gadget_reserve_buf(&events, sizeof(*event));

	if (!event)
		return;
	event->timestamp_raw = bpf_ktime_get_boot_ns();
	gadget_process_populate(&event->proc);
	event->tpid = tpid;
	event->sig_raw = sig;
	event->error_raw = error;
	gadget_submit_buf(ctx, &events, event, sizeof(*event));
}

static __always_inline int enter(__u32 tpid, __u32 sig)
{
	__u32 tid = (__u32)bpf_get_current_pid_tgid();
	struct call call = { .tpid = tpid, .sig = sig };

	if (target_signal && sig != target_signal)
		return 0;
	if (gadget_should_discard_data_current())
		return 0;
	if (bpf_map_update_elem(&calls, &tid, &call, BPF_ANY))
		__gadget_count_lost(&events_lost_samples);
	return 0;
}

static __always_inline int leave(struct trace_event_raw_sys_exit *ctx)
{
	__u32 tid = (__u32)bpf_get_current_pid_tgid();
	struct call *call = bpf_map_lookup_elem(&calls, &tid);
	long ret = ctx->ret;

	if (!call)
		return 0;
	/*
	 * signal_generate tells what succeeds better: one event per process that gets the signal.
	 * The calls tell what fails, and with --kill-only everything. Signal 0 only asks whether a
	 * process is there.
	 */
	if (ret < 0 ? call->sig || kill_only : kill_only && !failed)
		emit(ctx, call->tpid, call->sig, ret < 0 ? -ret : 0);
	bpf_map_delete_elem(&calls, &tid);
	return 0;
}

SEC("tracepoint/syscalls/sys_enter_kill")
int ig_sig_kill_e(struct trace_event_raw_sys_enter *ctx)
{
	return enter(ctx->args[0], ctx->args[1]);
}

SEC("tracepoint/syscalls/sys_exit_kill")
int ig_sig_kill_x(struct trace_event_raw_sys_exit *ctx)
{
	return leave(ctx);
}

SEC("tracepoint/syscalls/sys_enter_tkill")
int ig_sig_tkill_e(struct trace_event_raw_sys_enter *ctx)
{
	return enter(ctx->args[0], ctx->args[1]);
}

SEC("tracepoint/syscalls/sys_exit_tkill")
int ig_sig_tkill_x(struct trace_event_raw_sys_exit *ctx)
{
	return leave(ctx);
}

SEC("tracepoint/syscalls/sys_enter_tgkill")
int ig_sig_tgkill_e(struct trace_event_raw_sys_enter *ctx)
{
	return enter(ctx->args[1], ctx->args[2]);
}

SEC("tracepoint/syscalls/sys_exit_tgkill")
int ig_sig_tgkill_x(struct trace_event_raw_sys_exit *ctx)
{
	return leave(ctx);
}

SEC("tracepoint/signal/signal_generate")
int ig_sig_generate(struct trace_event_raw_signal_generate *ctx)
{
	/* The event's own `pid` is the receiver; `code` says who sends: the kernel, if above 0. */
	bool ignored = ctx->result == SIGNAL_IGNORED;
	bool lost = ctx->result == SIGNAL_OVERFLOW_FAIL;

	if (kill_only || (failed && !lost))
		return 0;
	/* Each process that ends makes a SIGCHLD, and most parents never see it. */
	if (ignored && ctx->code > 0)
		return 0;
	if (target_signal && ctx->sig != target_signal)
		return 0;
	if (gadget_should_discard_data_current())
		return 0;
	emit(ctx, ctx->pid, ctx->sig, lost ? EAGAIN : 0);
	return 0;
}

char _license[] SEC("license") = "GPL";
