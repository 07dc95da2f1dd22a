/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which rows are kept. A predicate is a graph of tests: each says which one follows if it holds and
 * which if not, and both stand behind it, so that it ends.
 */
#ifndef FILTER_H
#define FILTER_H

#include "format.h"

enum kind {
	TEST_INTEGER, /* low <= value <= high, as unsigned numbers counted from low */
	TEST_F4,      /* how the value compares with `number` is among `accepted` */
	TEST_F8,
	TEST_TEXT,   /* likewise; text up to a NUL */
	TEST_PREFIX, /* text begins with the literal, */
	TEST_PART,   /* has it in it */
	TEST_KNOWN,  /* what a memo has for the row is not empty */
};

/* How one value compares with another. */
enum order {
	LESS = 1,
	EQUAL = 2,
	GREATER = 4,
	UNORDERED = 8
};

/* The test that follows, or the verdict. */
#define KEEP 0xffff
#define DROP 0xfffe

struct test {
	u8 kind, accepted;
	u16 then, otherwise;
	u16 spare;
	union {
		u64 low;
		double number;
		struct piece literal;
	};
	u64 span;	 /* high - low */
	u32 memo;	 /* its address */
	struct op value; /* of which only the place of the value is used */
};
_Static_assert(sizeof(struct test) == 96, "the host writes it");

static u32 order_of_numbers(double one, double other)
{
	return one < other ? LESS : one > other ? GREATER : one == other ? EQUAL : UNORDERED;
}

static u32 order_of_texts(struct bytes text, struct piece literal)
{
	const u8 *other = AT(literal.at), *end = other + literal.length;

	for (;; text.at++, other++) {
		bool ended = text.at == text.end || !*text.at;

		if (other == end)
			return ended ? EQUAL : GREATER;
		if (ended || *text.at < *other)
			return LESS;
		if (*text.at > *other)
			return GREATER;
	}
}

static bool begins_with(struct bytes text, struct piece literal)
{
	const u8 *other = AT(literal.at), *end = other + literal.length;

	/* a literal has no NUL */
	while (other < end && text.at < text.end && *text.at == *other) {
		text.at++;
		other++;
	}
	return other == end;
}

static bool has(struct bytes text, struct piece literal)
{
	for (;; text.at++) {
		if (begins_with(text, literal))
			return true;
		if (text.at == text.end || !*text.at)
			return false;
	}
}

enum verdict {
	DROPPED,
	KEPT,
	UNDECIDED
};

static enum verdict judged(const struct test *tests, u32 next, const struct row *row)
{
	while (next < DROP) {
		const struct test *test = tests + next;
		const struct op *value = &test->value;
		const struct entry *entry;
		bool holds;

		switch (test->kind) {
		case TEST_INTEGER:
			holds = load_here(row->data, &value->cell) - test->low <= test->span;
			break;
		case TEST_F4:
			holds = order_of_numbers(READ(float, row->data + value->offset),
						 test->number) &
				test->accepted;
			break;
		case TEST_F8:
			holds = order_of_numbers(READ(double, row->data + value->offset),
						 test->number) &
				test->accepted;
			break;
		case TEST_TEXT:
			holds = order_of_texts(bytes_of(value, row), test->literal) &
				test->accepted;
			break;
		case TEST_PREFIX:
			holds = begins_with(bytes_of(value, row), test->literal);
			break;
		case TEST_PART:
			holds = has(bytes_of(value, row), test->literal);
			break;
		default: /* TEST_KNOWN */
			entry = known_of((struct memo *)AT(test->memo), row);
			if (!entry)
				return UNDECIDED;
			holds = entry->length;
		}
		next = holds ? test->then : test->otherwise;
	}
	return next == KEEP ? KEPT : DROPPED;
}

#endif
