/* SPDX-License-Identifier: Apache-2.0 */
/* A record as text: a program of operations, each a literal and a value behind it. */
#ifndef FORMAT_H
#define FORMAT_H

#include "numbers.h"
#include "tables.h"

struct piece {
	u32 at, length;
};

enum code {
	PUT_NOTHING, /* but the literal */
	PUT_INTEGER,
	PUT_HEXADECIMAL,
	PUT_BOOL,
	PUT_RAW,   /* text up to a NUL as it is, ... */
	PUT_UTF8,  /* valid, */
	PUT_JSON,  /* between the quotes of JSON, */
	PUT_CELL,  /* between those of Go */
	PUT_BYTES, /* as they are, */
	PUT_HEX,   /* as hex digits, */
	PUT_COUNT, /* only how many */
	PUT_ADDRESS,
	PUT_ENDPOINT,
	PUT_DURATION,
	PUT_SIZE,
	PUT_TIME,
	PUT_KNOWN, /* what a memo has for the row */
	PUT_SIDE,  /* what the host has for the row */
	PUT_ARRAY, /* its operations have the literals before, between and after items, and an item
		    */
};

enum finish {
	AS_IS,
	FIT,
	QUOTE
};

#define REST 0xffffffff /* the size of what is the record's rest */
#define SMALL 1024	/* bytes; for larger values, room is looked for when their size is known */

struct op {
	struct piece before;
	u8 code, finish;
	u8 has_length; /* of REST: `other` says how much of it is meant */
	u8 spare;
	u32 memo; /* its address; of an array that of its operations */
	struct fit fit;
	struct cell cell;  /* the number; the version of an address */
	struct cell other; /* the port of an endpoint */
	u32 offset, size;  /* of text and bytes; offset: of an address */
	u32 count;	   /* of an array, or of a time's fractions; number of a side column */
	u32 stride;	   /* of an array; the address of a time's fractions */
};
_Static_assert(sizeof(struct op) == 64, "the host writes it");

#define SECOND 1000000000u /* ns */

/* A part of a second: `separator`, then so many digits. */
struct fraction {
	u8 separator, digits, without_zeros, spare;
};

/* Where texts go. Behind `limit` there is room for all literals and all values that are small. */
static struct {
	u64 limit;
	const struct side *sides;
} output;

/* What the host has for rows, one text after the other. */
struct side {
	u32 texts, ends; /* u8[], u32[] */
};

HOT bool has_room(const u8 *p, u64 size)
{
	return ADDRESS(p) + size <= output.limit || stopped(FULL, 0, 0);
}

/* ------------------------------------------------------------------------------ text and bytes */

struct bytes {
	const u8 *at, *end;
};

/* Of the record's rest, or of a field: what there is of it. */
HOT struct bytes bytes_of(const struct op *op, const struct row *row)
{
	u32 offset = op->offset, size = op->size;

	if (size == REST) {
		offset = row->rest;
		if (op->has_length) {
			s64 length = load(row->data, &op->other);

			if (length < 0)
				length = op->other.is_signed ? 0 : REST;
			size = min(length, REST);
		}
	}
	if (offset >= row->length)
		return (struct bytes){ row->raw, row->raw };
	return (struct bytes){ row->raw + offset,
			       row->raw + offset + min(size, row->length - offset) };
}

/* Bytes of a field: zeros where the record has ended. */
HOT struct bytes all_bytes_of(const struct op *op, const struct row *row)
{
	const u8 *at = row->data + op->offset;

	return op->size == REST ? bytes_of(op, row) : (struct bytes){ at, at + op->size };
}

/* The most that the text of these bytes takes. */
COLD u64 most(u32 code, u64 size)
{
	switch (code) {
	case PUT_JSON:
		return 6 * size;
	case PUT_CELL:
		return 4 * size;
	case PUT_UTF8:
		return 3 * size;
	case PUT_HEX:
		return 2 * size;
	}
	return size;
}

COLD u8 *put_bytes(const struct op *op, const struct row *row, u8 *p)
{
	struct bytes bytes = all_bytes_of(op, row);

	if (op->size > SMALL && !has_room(p, most(op->code, bytes.end - bytes.at)))
		return 0;
	if (op->code == PUT_BYTES)
		return copy(p, bytes.at, bytes.end - bytes.at);
	for (; bytes.at < bytes.end; bytes.at++)
		p = put_hex(p, *bytes.at, 2);
	return p;
}

HOT u8 *put_text(const struct op *op, const struct row *row, u8 *p)
{
	struct bytes bytes = bytes_of(op, row);

	if (op->size > SMALL && !has_room(p, most(op->code, bytes.end - bytes.at)))
		return 0;
	switch (op->code) {
	case PUT_RAW:
		return put_raw(p, bytes.at, bytes.end);
	case PUT_UTF8:
		return put_utf8(p, bytes.at, bytes.end);
	case PUT_JSON:
		return put_json(p, bytes.at, bytes.end);
	default: /* PUT_CELL */
		return put_cell(p, bytes.at, bytes.end);
	}
}

COLD u8 *put_count(const struct op *op, const struct row *row, u8 *p)
{
	struct bytes bytes = bytes_of(op, row);

	return copy_literal(put_u32(copy_literal(p, "<"), bytes.end - bytes.at), " bytes>");
}

/* ------------------------------------------------------------------------- memos, side columns */

HOT u8 *put_entry(const struct entry *entry, u8 *p)
{
	if (!entry || !has_room(p, entry->length))
		return 0;
	return copy(p, AT(entry->text), entry->length);
}

COLD u8 *put_side(const struct op *op, const struct row *row, u8 *p)
{
	const struct side *side = output.sides + op->count;
	const u32 *ends = (u32 *)AT(side->ends);
	u32 start = row->number ? ends[row->number - 1] : 0, length = ends[row->number] - start;

	return has_room(p, length) ? copy(p, AT(side->texts) + start, length) : 0;
}

/* --------------------------------------------------------------------------------------- times */

HOT u8 *put_nine(u8 *p, u32 value)
{
	*p = '0' + value / 100000000;
	return put_eight(p + 1, value % 100000000);
}

COLD u8 *put_fraction(struct fraction fraction, u32 ns, u8 *p)
{
	u8 text[16];
	u32 count = fraction.digits;

	put_nine(text, ns);
	while (fraction.without_zeros && count && (count > 9 || text[count - 1] == '0'))
		count--;
	if (!count)
		return p;
	*p++ = fraction.separator;
	for (u32 at = 0; at < count; at++)
		*p++ = at < 9 ? text[at] : '0';
	return p;
}

/*
 * The memo has what stands around the fractions in this second: the length of each piece (u32), one
 * more than there are fractions, then the pieces.
 */
COLD u8 *put_time(const struct op *op, const struct row *row, u8 *p)
{
	struct memo *memo = (struct memo *)AT(op->memo);
	const struct fraction *fraction = (struct fraction *)AT(op->stride),
			      *end = fraction + op->count;
	const struct entry *entry = (struct entry *)AT(memo->entries) + memo->last;
	u64 ns = load_here(row->data, &op->cell), rest = ns - entry->key * SECOND;
	const u8 *length, *text;

	if (!entry->text || rest >= SECOND) {
		entry = known(memo, ns / SECOND);
		rest = ns % SECOND;
	}
	if (!entry || !has_room(p, entry->length))
		return 0;
	length = AT(entry->text);
	text = length + 4 * (op->count + 1);
	for (;; fraction++, length += 4) {
		p = copy(p, text, READ(u32, length));
		text += READ(u32, length);
		if (fraction == end)
			return p;
		if (fraction->digits == 9 && !fraction->without_zeros) {
			*p = fraction->separator;
			p = put_nine(p + 1, rest);
		} else {
			p = put_fraction(*fraction, rest, p);
		}
	}
}

/* -------------------------------------------------------------------------------------- values */

COLD u8 *put_endpoint(const struct op *op, const struct row *row, u8 *p)
{
	u8 *start = p;

	p = put_address(p, row->data + op->offset, load(row->data, &op->cell));
	if (op->code == PUT_ADDRESS || p == start)
		return p;
	*p++ = ':';
	return put_integer(p, load(row->data, &op->other), op->other.is_signed);
}

COLD u8 *put_known_size(const struct op *op, const struct row *row, u8 *p)
{
	u64 size = load(row->data, &op->cell);

	if (size < SIZE_LIMIT || (op->cell.is_signed && (s64)size < 0))
		return put_size(p, size, op->cell.is_signed);
	return put_entry(known((struct memo *)AT(op->memo), size), p);
}

static u8 *put_array(const struct op *op, const struct row *row, u8 *p);

/* A value that is not among the most frequent ones; 0 where something is missing. */
COLD u8 *put_other(const struct op *op, const struct row *row, u8 *p)
{
	switch (op->code) {
	case PUT_HEXADECIMAL:
		return put_hexadecimal(p, load(row->data, &op->cell), op->cell.is_signed);
	case PUT_BOOL:
		return copy_literal(p, load(row->data, &op->cell) ? "true" : "false");
	case PUT_BYTES:
	case PUT_HEX:
		return put_bytes(op, row, p);
	case PUT_COUNT:
		return put_count(op, row, p);
	case PUT_ADDRESS:
	case PUT_ENDPOINT:
		return put_endpoint(op, row, p);
	case PUT_DURATION:
		return put_duration(p, load(row->data, &op->cell), op->cell.is_signed);
	case PUT_SIZE:
		return put_known_size(op, row, p);
	case PUT_SIDE:
		return put_side(op, row, p);
	case PUT_ARRAY:
		return put_array(op, row, p);
	default: /* PUT_NOTHING */
		return p;
	}
}

/* The value of an operation; 0 where something is missing. */
HOT u8 *put_value(const struct op *op, const struct row *row, u8 *p)
{
	bool negative;
	u32 length;
	u64 value;

	switch (op->code) {
	case PUT_INTEGER:
		value = load_here(row->data, &op->cell);
		negative = op->cell.is_signed && (s64)value < 0;
		if (negative)
			value = -value;
		if (op->fit.right) {
			length = digits(value) + negative;
			p = blanks(p, max(op->fit.width, length) - length);
		}
		if (negative)
			*p++ = '-';
		return value < 10000 ? put_small(p, value) : put_u64(p, value);
	case PUT_RAW:
	case PUT_UTF8:
	case PUT_JSON:
	case PUT_CELL:
		return put_text(op, row, p);
	case PUT_KNOWN:
		return put_entry(known_of((struct memo *)AT(op->memo), row), p);
	case PUT_TIME:
		return put_time(op, row, p);
	default:
		return put_other(op, row, p);
	}
}

static u8 *put_array(const struct op *op, const struct row *row, u8 *p)
{
	const struct op *before = (struct op *)AT(op->memo), *between = before + 1,
			*after = before + 2;
	struct row item = *row;

	p = copy(p, AT(before->before.at), before->before.length);
	for (u32 at = 0; at < op->count; at++) {
		if (!has_room(p, between->before.length + 6 * SMALL))
			return 0;
		if (at)
			p = copy(p, AT(between->before.at), between->before.length);
		p = put_value(before + 3, &item, p);
		if (!p)
			return 0;
		item.data += op->stride;
		item.raw += op->stride;
		item.length -= min(op->stride, item.length);
	}
	return copy(p, AT(after->before.at), after->before.length);
}

COLD u8 *finished(const struct op *op, u8 *start, u8 *end)
{
	u32 count = end - start;

	/* to read what was just written byte by byte takes long */
	if (op->code == PUT_CELL)
		count -= continuations;
	else if (op->code == PUT_TIME || op->code == PUT_DURATION)
		count = characters(start, end);
	if (op->finish == FIT)
		return fitted(&op->fit, start, end, count);
	return has_room(start, 2 * (u64)(end - start)) ? quoted(start, end) : 0;
}

/* The text of a record; 0 where something is missing. */
COLD u8 *put_record(const struct op *op, const struct op *end, const struct row *row, u8 *p)
{
	for (; op < end; op++) {
		u8 *start = copy(p, AT(op->before.at), op->before.length);

		p = put_value(op, row, start);
		if (p && op->finish)
			p = finished(op, start, p);
		if (!p)
			return 0;
	}
	return p;
}

/* The most that an operation takes, but for what looks for room itself. */
static u64 longest(const struct op *op)
{
	/* what copying writes behind it; the mark of a fit */
	u64 sum = op->before.length + 4 * (u64)op->fit.width + 32;

	switch (op->code) {
	case PUT_NOTHING:
	case PUT_SIDE:
	case PUT_KNOWN:
		return sum;
	case PUT_TIME:
		return sum + op->count * 256;
	case PUT_RAW:
	case PUT_UTF8:
	case PUT_JSON:
	case PUT_CELL:
	case PUT_BYTES:
	case PUT_HEX:
		return sum + (op->size > SMALL ? 0 : most(op->code, op->size));
	case PUT_ARRAY:
		for (u32 at = 0; at < 4; at++)
			sum += longest((struct op *)AT(op->memo) + at);
		return sum;
	default:
		return sum + 80;
	}
}

#endif
