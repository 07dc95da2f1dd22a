/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memos: what was printed for a key before. Where one has no text for a key, the engine stops, the
 * host makes the text and has it remembered, and the engine goes on with the same record.
 */
#ifndef TABLES_H
#define TABLES_H

#include "base.h"

/* A part of a key that is wider than 64 bits. */
enum part_kind {
	PART_INTEGER,
	PART_TEXT,
	PART_BYTES
};

struct part {
	struct cell cell;
	u32 kind;
	u32 size; /* of text (up to its NUL) and bytes; in the key rounded up to 8 bytes */
};
_Static_assert(sizeof(struct part) == 16, "the host writes it");

struct entry {
	u64 key;  /* a wide key's hash; the key itself stands before the text */
	u32 text; /* 0: this entry is free */
	u32 length;
};

struct memo {
	u32 entries;			/* struct entry[] */
	u32 mask;			/* their number - 1; a power of two */
	u32 used;			/* at most 3/4 of them */
	u32 pool, pool_size, pool_used; /* texts, with SLACK behind them */
	u32 parts, part_count;		/* struct part[] of a wide key */
	u32 key_size; /* of a wide key, in bytes; 0: the key is what `cell` loads */
	u32 last;     /* the entry found last */
	struct cell cell;
};
_Static_assert(sizeof(struct memo) == 48, "the host writes it");

#define KEY_SIZE 512
static u8 wide_key[KEY_SIZE];

/* An odd number that nobody knows who makes records: keys that collide cannot be made on purpose.
 */
static u64 secret = 0x9e3779b97f4a7c15;

static u64 mixed(u64 key)
{
	key *= secret;
	return key ^ key >> 32;
}

/* Gather the key of a row in `wide_key`; its hash. */
COLD u64 gather(const struct memo *memo, const struct row *row)
{
	const struct part *part = (struct part *)AT(memo->parts), *end = part + memo->part_count;
	u64 hash = 0;
	u8 *to = wide_key;

	for (; part < end; part++) {
		const u8 *from = row->data + part->cell.offset;
		u32 size = part->kind == PART_INTEGER ? 8 : (part->size + 7) & ~7u, filled = 0;

		if (part->kind == PART_INTEGER) {
			WRITE(to, load(row->data, &part->cell));
			filled = 8;
		}
		while (filled < part->size && (part->kind == PART_BYTES || from[filled])) {
			to[filled] = from[filled];
			filled++;
		}
		for (; filled < size; filled++)
			to[filled] = 0;
		for (filled = 0; filled < size; filled += 8)
			hash = mixed(hash ^ READ(u64, to + filled));
		to += size;
	}
	return hash;
}

static bool is_wide_key(const u8 *key, u32 size)
{
	for (u32 at = 0; at < size; at += 8)
		if (READ(u64, key + at) != READ(u64, wide_key + at))
			return false;
	return true;
}

/* Where to look for a key first. */
static u32 place(const struct memo *memo, u64 key)
{
	return key * secret >> (64 - __builtin_popcount(memo->mask));
}

/* The text for a key; 0 if there is none. */
COLD const struct entry *known(struct memo *memo, u64 key)
{
	struct entry *entries = (struct entry *)AT(memo->entries), *entry;

	for (u32 at = place(memo, key);; at = (at + 1) & memo->mask) {
		entry = entries + at;
		if (!entry->text)
			return stopped(MISSING, ADDRESS(memo), key);
		if (entry->key == key &&
		    (!memo->key_size ||
		     is_wide_key(AT(entry->text - memo->key_size), memo->key_size))) {
			memo->last = at;
			return entry;
		}
	}
}

/* The text for a row; 0 if there is none. */
HOT const struct entry *known_of(struct memo *memo, const struct row *row)
{
	const struct entry *last = (struct entry *)AT(memo->entries) + memo->last;
	u64 key;

	if (memo->key_size)
		return known(memo, gather(memo, row));
	key = load_here(row->data, &memo->cell);
	return last->key == key && last->text ? last : known(memo, key);
}

/* ----------------------------------------------------------------------------- filling it */

/* Remember a text for the key that was missed last. False: that takes more entries or pool. */
static bool remember(struct memo *memo, u64 key, const u8 *text, u32 length)
{
	struct entry *entries = (struct entry *)AT(memo->entries);
	u32 at = place(memo, key);
	u8 *to = AT(memo->pool) + memo->pool_used;

	if (memo->used >= memo->mask - memo->mask / 4 ||
	    (u64)memo->key_size + length + 8 > memo->pool_size - memo->pool_used)
		return false;
	while (entries[at].text)
		at = (at + 1) & memo->mask;
	__builtin_memcpy(to, wide_key, memo->key_size);
	__builtin_memcpy(to + memo->key_size, text, length);
	entries[at] = (struct entry){ key, ADDRESS(to) + memo->key_size, length };
	memo->pool_used += (memo->key_size + length + 8) & ~7u;
	memo->used++;
	return true;
}

/* Forget everything. */
static void forget(struct memo *memo)
{
	__builtin_memset(AT(memo->entries), 0, (memo->mask + 1) * sizeof(struct entry));
	memo->used = memo->pool_used = memo->last = 0;
}

/* Go on with more entries (`count`, a power of two; zeros) and a larger pool. */
static void move(struct memo *memo, u32 entries, u32 count, u32 pool, u32 pool_size)
{
	const struct entry *old = (struct entry *)AT(memo->entries), *end = old + memo->mask + 1;
	struct entry *new = (struct entry *)AT(entries);
	u32 moved = pool - memo->pool;

	__builtin_memcpy(AT(pool), AT(memo->pool), memo->pool_used);
	memo->mask = count - 1;
	memo->last = 0;
	for (; old < end; old++) {
		u32 at = place(memo, old->key);

		if (!old->text)
			continue;
		while (new[at].text)
			at = (at + 1) & memo->mask;
		new[at] = (struct entry){ old->key, old->text + moved, old->length };
	}
	memo->entries = entries;
	memo->pool = pool;
	memo->pool_size = pool_size;
}

#endif
