/* SPDX-License-Identifier: Apache-2.0 */
/* Text: copying, UTF-8, the escapes of JSON and of cells, fitting to a width, CSV's quotes. */
#ifndef TEXT_H
#define TEXT_H

#include "base.h"

/* Reads and writes up to 16 bytes more. */
HOT u8 *copy(u8 *p, const u8 *from, u32 length)
{
	wasm_v128_store(p, wasm_v128_load(from));
#pragma clang loop unroll(disable)
	for (u32 at = 16; at < length; at += 16)
		wasm_v128_store(p + at, wasm_v128_load(from + at));
	return p + length;
}

static u8 *copy_literal(u8 *p, const char *text)
{
	while (*text)
		*p++ = *text++;
	return p;
}

COLD u8 *put_hex(u8 *p, u32 value, u32 digits)
{
	while (digits--)
		*p++ = "0123456789abcdef"[value >> 4 * digits & 15];
	return p;
}

/* ---------------------------------------------------------------------------- finding odd bytes */

/* A bit for each of 16 bytes that is not just copied. Bytes that are not ASCII are negative. */
typedef u32 odd_bytes(v128_t bytes);

#define ANY(byte) wasm_i8x16_eq(bytes, wasm_i8x16_splat(byte))
#define BELOW(byte) wasm_i8x16_lt(bytes, wasm_i8x16_splat(byte))

HOT u32 odd_in_raw(v128_t bytes)
{
	return wasm_i8x16_bitmask(ANY(0));
}

HOT u32 odd_in_utf8(v128_t bytes)
{
	return wasm_i8x16_bitmask(BELOW(1));
}

HOT u32 odd_in_json(v128_t bytes)
{
	return wasm_i8x16_bitmask(wasm_v128_or(BELOW(' '), wasm_v128_or(ANY('"'), ANY('\\'))));
}

HOT u32 odd_in_cell(v128_t bytes)
{
	return odd_in_json(bytes) | wasm_i8x16_bitmask(ANY(0x7f));
}

/* Copy bytes up to the first odd one or `end`, where `from` is left. */
HOT u8 *copy_plain(u8 *p, const u8 **from, const u8 *end, odd_bytes *odd_bytes)
{
	const u8 *at = *from;

	for (;; at += 16, p += 16) {
		v128_t bytes = wasm_v128_load(at);
		u32 odd = odd_bytes(bytes);

		wasm_v128_store(p, bytes);
		if (end - at < 16)
			odd |= 0xffffffff << (end - at);
		if (odd) {
			u32 plain = __builtin_ctz(odd);

			*from = at + plain;
			return p + plain;
		}
	}
}

/* ---------------------------------------------------------------------------------------- UTF-8 */

/* The length of the character that begins here, 0 where it is not valid UTF-8. */
COLD u32 character(const u8 *at, const u8 *end)
{
	u8 first = *at;
	u32 length = 2 + (first >= 0xe0) + (first >= 0xf0);

	if (first < 0x80)
		return 1;
	if (first < 0xc2 || first > 0xf4 || length > (u32)(end - at))
		return 0;
	for (u32 i = 1; i < length; i++)
		if ((at[i] & 0xc0) != 0x80)
			return 0;
	/* too long a form, a surrogate, or above U+10FFFF */
	if ((first == 0xe0 && at[1] < 0xa0) || (first == 0xed && at[1] > 0x9f) ||
	    (first == 0xf0 && at[1] < 0x90) || (first == 0xf4 && at[1] > 0x8f))
		return 0;
	return length;
}

static u32 code_point(const u8 *at, u32 length)
{
	u32 code = length == 1 ? *at : *at & 0xff >> (length + 1);

	for (u32 i = 1; i < length; i++)
		code = code << 6 | (at[i] & 0x3f);
	return code;
}

/* --------------------------------------------------------------------------------- whole texts */

/* Text up to a NUL, at most `end`. */
COLD u8 *put_raw(u8 *p, const u8 *at, const u8 *end)
{
	return copy_plain(p, &at, end, odd_in_raw);
}

/* The same; what is not UTF-8 as U+FFFD. At most 3 times as long. */
COLD u8 *put_utf8(u8 *p, const u8 *at, const u8 *end)
{
	for (;;) {
		p = copy_plain(p, &at, end, odd_in_utf8);
		if (at == end || !*at)
			return p;
		u32 length = character(at, end);

		p = length ? copy(p, at, length) : copy_literal(p, "\xef\xbf\xbd");
		at += length ? length : 1;
	}
}

COLD u8 *put_json_escape(u8 *p, u8 byte)
{
	*p++ = '\\';
	switch (byte) {
	case '\n':
		*p++ = 'n';
		return p;
	case '\r':
		*p++ = 'r';
		return p;
	case '\t':
		*p++ = 't';
		return p;
	case '"':
	case '\\':
		*p++ = byte;
		return p;
	}
	*p++ = 'u';
	return put_hex(p, byte, 4);
}

/* As in a JSON string; what is not UTF-8 as \ufffd. At most 6 times as long. */
COLD u8 *put_json(u8 *p, const u8 *at, const u8 *end)
{
	for (;;) {
		p = copy_plain(p, &at, end, odd_in_json);
		if (at == end || !*at)
			return p;
		if (*at < 0x80) {
			p = put_json_escape(p, *at++);
			continue;
		}
		u32 length = character(at, end);

		if (!length)
			p = copy_literal(p, "\\ufffd");
		else if (length == 3 && (code_point(at, 3) | 1) == 0x2029)
			p = put_hex(copy_literal(p, "\\u"), code_point(at, 3), 4);
		else
			p = copy(p, at, length);
		at += length ? length : 1;
	}
}

/* Bytes of the last cell's text that go on with a character: so many more than characters. */
static u32 continuations;

/* Which characters are printable, as far as the host has told. */
#define PAGES (0x110000 / 256)
static struct {
	u8 is_known[PAGES];
	u8 bits[PAGES][32];
} printable;

COLD u8 *put_cell_escape(u8 *p, u8 byte)
{
	static const char letters[] = "abtnvfr"; /* from 7 on */

	*p++ = '\\';
	if (byte >= 7 && byte <= 13) {
		*p++ = letters[byte - 7];
	} else if (byte == '"' || byte == '\\') {
		*p++ = byte;
	} else {
		*p++ = 'x';
		p = put_hex(p, byte, 2);
	}
	return p;
}

/*
 * As Go's strconv.Quote has it between the quotes; 0 where the host has to tell something. At most
 * 4 times as long.
 */
COLD u8 *put_cell(u8 *p, const u8 *at, const u8 *end)
{
	continuations = 0;
	for (;;) {
		p = copy_plain(p, &at, end, odd_in_cell);
		if (at == end || !*at)
			return p;
		u32 length = character(at, end);

		if (length < 2) {
			p = put_cell_escape(p, *at++);
			continue;
		}
		u32 code = code_point(at, length), page = code >> 8;

		if (!printable.is_known[page])
			return stopped(UNKNOWN, 0, page);
		if (printable.bits[page][code >> 3 & 31] >> (code & 7) & 1) {
			p = copy(p, at, length);
			continuations += length - 1;
		} else if (code < 0x10000) {
			p = put_hex(copy_literal(p, "\\u"), code, 4);
		} else {
			p = put_hex(copy_literal(p, "\\U"), code, 8);
		}
		at += length;
	}
}

/* ----------------------------------------------------------------------------- once it is there */

/* Exactly `width` characters. Of a longer text remain `head`, … if `mark`, and the last `tail`. */
struct fit {
	u32 width, head, tail;
	u8 mark, right;
	u16 spare;
};

HOT u8 *blanks(u8 *p, u32 count)
{
	wasm_v128_store(p, wasm_i8x16_splat(' '));
#pragma clang loop unroll(disable)
	for (u32 at = 16; at < count; at += 16)
		wasm_v128_store(p + at, wasm_i8x16_splat(' '));
	return p + count;
}

/* Move a text to the right, with blanks before it. */
HOT u8 *shifted(u8 *start, u8 *end, u32 gap)
{
	v128_t bytes = wasm_v128_load(start);

	if (end - start <= 16) {
		blanks(start, gap);
		wasm_v128_store(start + gap, bytes);
	} else if (gap) {
		__builtin_memmove(start + gap, start, end - start);
		__builtin_memset(start, ' ', gap);
	}
	return end + gap;
}

static bool begins(u8 byte)
{
	return (byte & 0xc0) != 0x80;
}

HOT u32 characters(const u8 *at, const u8 *end)
{
	u32 count = 0;

	for (; at < end; at += 16) {
		v128_t bytes = wasm_v128_load(at);
		u32 begin = ~wasm_i8x16_bitmask(BELOW((s8)0xc0));

		count += __builtin_popcount(begin &
					    (end - at < 16 ? ~(0xffffffff << (end - at)) : 0xffff));
	}
	return count;
}

/* The place of character `number` (of those there are). */
COLD u8 *nth(u8 *at, u32 number)
{
	while (number)
		number -= begins(*++at);
	return at;
}

/* What becomes of a text of `count` characters, which are too many. */
COLD u8 *cut(const struct fit *fit, u8 *start, u8 *end, u32 count)
{
	u8 *head = start + fit->head, *tail = end - fit->tail;

	if (count != (u32)(end - start)) {
		head = nth(start, fit->head);
		tail = fit->tail ? nth(head, count - fit->tail - fit->head) : end;
	}
	if (!fit->mark)
		return head;
	/* it has three bytes, and may be longer than what it stands for */
	if (fit->tail)
		__builtin_memmove(head + 3, tail, end - tail);
	copy_literal(head, "\xe2\x80\xa6");
	return head + 3 + (end - tail);
}

/* A text of `count` characters. */
HOT u8 *fitted(const struct fit *fit, u8 *start, u8 *end, u32 count)
{
	if (count > fit->width)
		return cut(fit, start, end, count);
	return fit->right ? shifted(start, end, fit->width - count)
			  : blanks(end, fit->width - count);
}

/* In quotes if that is needed in CSV. At most twice as long, and the quotes. */
COLD u8 *quoted(u8 *start, u8 *end)
{
	u32 quotes = 0, odd = 0;

	for (const u8 *at = start; at < end; at++) {
		quotes += *at == '"';
		odd |= *at == '"' || *at == ',' || *at == '\n' || *at == '\r';
	}
	if (!odd)
		return end;
	u8 *to = end + quotes + 2, *after = to;

	*--to = '"';
	while (end > start) {
		*--to = *--end;
		if (*end == '"')
			*--to = '"';
	}
	*--to = '"';
	return after;
}

#endif
