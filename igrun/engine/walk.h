/* SPDX-License-Identifier: Apache-2.0 */
/* Where each record lies in a region, for every framing; any bytes at all give an answer. */
#ifndef WALK_H
#define WALK_H

#include "base.h"

enum framing {
	RING,
	PERF,
	FIXED
};

/* The host sets all but the results. */
struct walk {
	u32 region, size;
	u32 framing, stride;
	u32 offsets, lengths; /* where they go: u64[room], u32[room] */
	u32 room;
	u32 at;	   /* result: where the next record would be; the next call goes on there */
	u32 count; /* result: records found */
	u32 more;  /* result: there was no room for the next one */
	u64 lost;  /* result: records that a perf buffer says it lost */
};
_Static_assert(sizeof(struct walk) == 48, "the host writes it");

static void found(struct walk *walk, u32 offset, u32 length)
{
	u64 *offsets = (u64 *)AT(walk->offsets);
	u32 *lengths = (u32 *)AT(walk->lengths);

	offsets[walk->count] = offset;
	lengths[walk->count++] = length;
}

/* kernel/bpf/ringbuf.c: u32 length with two flags above it, u32 page, data, padded to 8 bytes */
#define RING_HEADER 8
#define RING_BUSY (1u << 31)
#define RING_DISCARD (1u << 30)

/*
 * Where the next header is says the one before, and each is in a cache line of its own: if the
 * records are of one size, those that follow are fetched meanwhile.
 */
#define AHEAD 8

HOT void ahead(const u8 *region, u32 size, u32 at)
{
	if (at < size)
		*(const volatile u8 *)(region + at);
}

static void walk_ring(struct walk *walk)
{
	const u8 *region = AT(walk->region);
	u32 at = walk->at;

	while (walk->size >= RING_HEADER && at <= walk->size - RING_HEADER) {
		u32 head = READ(u32, region + at);
		u32 length = head & (RING_DISCARD - 1), start = at + RING_HEADER;

		if (head & RING_BUSY || length > walk->size - start)
			break;
		ahead(region, walk->size, at + AHEAD * (RING_HEADER + ((length + 7) & ~7u)));
		if (!(head & RING_DISCARD)) {
			if (walk->count == walk->room) {
				walk->more = true;
				break;
			}
			found(walk, start, length);
		}
		at = start + ((length + 7) & ~7u);
	}
	walk->at = at;
}

/* include/uapi/linux/perf_event.h: struct perf_event_header, what its type says */
#define PERF_HEADER 8
#define PERF_RECORD_LOST 2   /* u64 id, u64 lost */
#define PERF_RECORD_SAMPLE 9 /* PERF_SAMPLE_RAW: u32 size, data */

static void walk_perf(struct walk *walk)
{
	const u8 *region = AT(walk->region);
	u32 at = walk->at;

	while (walk->size >= PERF_HEADER && at <= walk->size - PERF_HEADER) {
		u32 type = READ(u32, region + at), size = READ(u16, region + at + 6);
		const u8 *body = region + at + PERF_HEADER;

		if (size < PERF_HEADER || size > walk->size - at)
			break;
		if (type == PERF_RECORD_LOST && size >= PERF_HEADER + 16)
			walk->lost += READ(u64, body + 8);
		if (type == PERF_RECORD_SAMPLE && size >= PERF_HEADER + 4 &&
		    READ(u32, body) <= size - PERF_HEADER - 4) {
			if (walk->count == walk->room) {
				walk->more = true;
				break;
			}
			found(walk, at + PERF_HEADER + 4, READ(u32, body));
		}
		at += size;
	}
	walk->at = at;
}

static void walk_fixed(struct walk *walk)
{
	if (!walk->stride)
		return;
	for (; walk->stride <= walk->size - walk->at; walk->at += walk->stride) {
		if (walk->count == walk->room) {
			walk->more = true;
			break;
		}
		found(walk, walk->at, walk->stride);
	}
}

static void walk_region(struct walk *walk)
{
	walk->count = walk->more = 0;
	walk->lost = 0;
	switch (walk->framing) {
	case RING:
		walk_ring(walk);
		break;
	case PERF:
		walk_perf(walk);
		break;
	case FIXED:
		walk_fixed(walk);
		break;
	}
}

#endif
