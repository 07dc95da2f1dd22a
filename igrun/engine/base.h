/* SPDX-License-Identifier: Apache-2.0 */
/* What all parts of the record engine share: numbers in records, rows, what stops it. */
#ifndef BASE_H
#define BASE_H

#include <stdbool.h>
#include <stdint.h>
#include <wasm_simd128.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int8_t s8;
typedef int16_t s16;
typedef int32_t s32;
typedef int64_t s64;

/*
 * What runs for each value of each record is compiled into the loops; the rest is kept out of them,
 * where it would only take registers.
 */
#define HOT static inline __attribute__((always_inline))
#define COLD static __attribute__((noinline))

#define min(a, b) ((a) < (b) ? (a) : (b))
#define max(a, b) ((a) > (b) ? (a) : (b))

#define READ(type, from)                                         \
	({                                                       \
		type value_;                                     \
		__builtin_memcpy(&value_, from, sizeof(value_)); \
		value_;                                          \
	})
#define WRITE(to, value)                                       \
	do {                                                   \
		__typeof__(value) value_ = value;              \
		__builtin_memcpy(to, &value_, sizeof(value_)); \
	} while (0)

/* Addresses in the structs that the host writes are offsets in this memory. */
#define AT(address) ((u8 *)(uintptr_t)(address))
#define ADDRESS(pointer) ((u32)(uintptr_t)(pointer))

/*
 * Bytes are copied 16 at a time, past the end of what is meant: whatever is read or written so
 * has at least this many bytes behind it.
 */
#define SLACK 64

/* ------------------------------------------------------------------------------- what stops it */

enum why {
	DONE,
	FULL,	 /* there is no room for the next text, or the next record */
	MISSING, /* a table has no text for `key` */
	UNKNOWN, /* it is not known which characters of page `key` are printable */
};

/* The last stop: why, at which memo, for which key or page. */
static struct {
	u32 why, memo;
	u64 key;
} stop;

COLD void *stopped(u32 why, u32 memo, u64 key)
{
	stop.why = why;
	stop.memo = memo;
	stop.key = key;
	return 0;
}

/* ------------------------------------------------------------------------------------ integers */

enum load {
	U8,
	U16,
	U32,
	U64,
	S8,
	S16,
	S32,
	S64,
	BOOL,	 /* a byte; 1 where it is not 0 */
	BIG_U16, /* the most significant byte comes first */
	BIG_U32,
	BIG_U64,
	BIG_S16,
	BIG_S32,
	BIG_S64,
	WALL, /* boot time (u64) as wall-clock time */
};

/* An integer in a record. */
struct cell {
	u32 offset;
	u8 load; /* enum load */
	u8 is_signed;
	u8 shift, bits; /* of a bit-field; bits: 0 where it is none */
};
_Static_assert(sizeof(struct cell) == 8, "the host writes it");

/* Wall-clock time: what boot time 0 stands for, and what is added to any other. */
static struct {
	u64 now, offset;
} wall;

COLD u64 load_other(const u8 *at, u32 load)
{
	u64 boot;

	switch (load) {
	case U8:
		return *at;
	case U16:
		return READ(u16, at);
	case S8:
		return (s64)READ(s8, at);
	case S16:
		return (s64)READ(s16, at);
	case S32:
		return (s64)READ(s32, at);
	case BOOL:
		return *at != 0;
	case BIG_U16:
		return __builtin_bswap16(READ(u16, at));
	case BIG_U32:
		return __builtin_bswap32(READ(u32, at));
	case BIG_U64:
	case BIG_S64:
		return __builtin_bswap64(READ(u64, at));
	case BIG_S16:
		return (s64)(s16)__builtin_bswap16(READ(u16, at));
	case BIG_S32:
		return (s64)(s32)__builtin_bswap32(READ(u32, at));
	default: /* WALL */
		boot = READ(u64, at);
		return boot ? boot + wall.offset : wall.now;
	}
}

/* The value as 64 bits, the sign in all upper ones. */
HOT u64 load_here(const u8 *data, const struct cell *cell)
{
	const u8 *at = data + cell->offset;
	u64 value;

	if (cell->load == U32)
		value = READ(u32, at);
	else if (cell->load == U64 || cell->load == S64)
		value = READ(u64, at);
	else
		value = load_other(at, cell->load);
	if (cell->bits) {
		value = value >> cell->shift << (64 - cell->bits);
		value = cell->is_signed ? (u64)((s64)value >> (64 - cell->bits))
					: value >> (64 - cell->bits);
	}
	return value;
}

/* The same, where it is not that frequent. */
COLD u64 load(const u8 *data, const struct cell *cell)
{
	return load_here(data, cell);
}

/* ---------------------------------------------------------------------------------------- rows */

/* One record. */
struct row {
	const u8 *data; /* with zeros behind its end, as far as the program reads numbers */
	const u8 *raw;	/* as it is in the region */
	u32 length;	/* of raw */
	u32 rest;	/* where its rest begins, behind the C struct */
	u32 number;	/* of the row among those that are printed */
};

#define SPAN 65536 /* bytes of a record that numbers can be in */

/* A copy of a record with zeros behind it. */
COLD const u8 *padded(const u8 *raw, u32 length)
{
	static u8 copy[SPAN + SLACK];
	static u32 used; /* behind it are zeros */
	u32 at, end;

	for (at = 0; at < length; at += 16)
		wasm_v128_store(copy + at, wasm_v128_load(raw + at));
	end = max(at, used);
	for (at = length; at < end; at++)
		copy[at] = 0;
	used = length;
	return copy;
}

#endif
