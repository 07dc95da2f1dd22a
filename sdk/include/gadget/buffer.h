/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
#ifndef __GADGET_BUFFER_H
#define __GADGET_BUFFER_H

#include <gadget/base.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

/*
 * Events to user space: through a ring buffer, or through a perf buffer on kernels that have no
 * ring buffer (before Linux 5.8). The object finds out by CO-RE while it is loaded, so the branch
 * not taken is dead code to the verifier; the runtime turns the map into a perf event array where
 * there are no ring buffers.
 */

/* The largest event that can be reserved on a kernel without ring buffers. */
#ifndef GADGET_MAX_EVENT_SIZE
#define GADGET_MAX_EVENT_SIZE 10240
#endif

/* An event channel of `size` bytes, a power of two and a multiple of the page size. */
#define GADGET_TRACER_MAP(name, size)                    \
	struct {                                         \
		__uint(type, BPF_MAP_TYPE_RINGBUF);      \
		__uint(max_entries, size);               \
	} name SEC(".maps");                             \
	struct {                                         \
		__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY); \
		__uint(max_entries, 1);                  \
		__type(key, __u32);                      \
		__type(value, __u64);                    \
	} name##_lost_samples SEC(".maps");              \
	const void *gadget_map_tracer_##name __attribute__((unused))

static __always_inline void __gadget_count_lost(void *lost_samples)
{
	__u32 zero = 0;
	__u64 *lost = bpf_map_lookup_elem(lost_samples, &zero);

	/* Atomic: another program may interrupt this one on the same CPU. */
	if (lost)
		__sync_fetch_and_add(lost, 1);
}

#ifndef GADGET_NO_BUF_RESERVE

/* What is reserved where there are no ring buffers: one event at a time per CPU, never zeroed. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, GADGET_MAX_EVENT_SIZE);
} gadget_heap SEC(".maps");

static __always_inline void *__gadget_reserve_buf(void *map, void *lost_samples, __u64 size)
{
	__u32 zero = 0;
	void *buf;

	if (!bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_ringbuf_reserve))
		return bpf_map_lookup_elem(&gadget_heap, &zero);

	buf = bpf_ringbuf_reserve(map, size, 0);
	if (!buf)
		__gadget_count_lost(lost_samples);
	return buf;
}

/*
 * Room for an event of `size` bytes, a constant. NULL: there is none, and the event is counted as
 * lost. The map must be written `&map`: its name makes the name of its counter.
 */
#define gadget_reserve_buf(map, size) __gadget_reserve_buf(map, map##_lost_samples, size)

/* Send what was reserved. 0, or the error of bpf_perf_event_output. */
static __always_inline long gadget_submit_buf(void *ctx, void *map, void *buf, __u64 size)
{
	if (!bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_ringbuf_submit))
		return bpf_perf_event_output(ctx, map, BPF_F_CURRENT_CPU, buf, size);

	bpf_ringbuf_submit(buf, 0);
	return 0;
}

/* Drop what was reserved. */
static __always_inline void gadget_discard_buf(void *buf)
{
	if (bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_ringbuf_discard))
		bpf_ringbuf_discard(buf, 0);
}

#endif /* GADGET_NO_BUF_RESERVE */

static __always_inline long __gadget_output_buf(void *ctx, void *map, void *lost_samples, void *buf,
						__u64 size)
{
	if (!bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_ringbuf_output))
		return bpf_perf_event_output(ctx, map, BPF_F_CURRENT_CPU, buf, size);

	if (bpf_ringbuf_output(map, buf, size, 0))
		__gadget_count_lost(lost_samples);
	return 0;
}

/* Send a copy of `buf`. 0, or the error of bpf_perf_event_output; the map must be written `&map`.
 */
#define gadget_output_buf(ctx, map, buf, size) \
	__gadget_output_buf(ctx, map, map##_lost_samples, buf, size)

#endif /* __GADGET_BUFFER_H */
