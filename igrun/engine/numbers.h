/* SPDX-License-Identifier: Apache-2.0 */
/* Numbers as text: decimal and hexadecimal, durations, sizes, addresses. */
#ifndef NUMBERS_H
#define NUMBERS_H

#include "text.h"

/* ------------------------------------------------------------------------------------- integers */

static const char PAIRS[] = "0001020304050607080910111213141516171819"
			    "2021222324252627282930313233343536373839"
			    "4041424344454647484950515253545556575859"
			    "6061626364656667686970717273747576777879"
			    "8081828384858687888990919293949596979899";

HOT void put_pair(u8 *p, u32 value)
{
	__builtin_memcpy(p, PAIRS + 2 * value, 2);
}

/* How many digits it has. */
HOT u32 digits(u64 value)
{
	u32 count = 1;

	for (; value >= 10000; value /= 10000)
		count += 4;
	return count + (value >= 10) + (value >= 100) + (value >= 1000);
}

/* One or two digits. */
HOT u8 *put_few(u8 *p, u32 value)
{
	if (value < 10) {
		*p = '0' + value;
		return p + 1;
	}
	put_pair(p, value);
	return p + 2;
}

/* Up to four digits. */
HOT u8 *put_small(u8 *p, u32 value)
{
	if (value < 100)
		return put_few(p, value);
	p = put_few(p, value / 100);
	put_pair(p, value % 100);
	return p + 2;
}

/* The last four digits. */
HOT u8 *put_four(u8 *p, u32 value)
{
	put_pair(p, value / 100);
	put_pair(p + 2, value % 100);
	return p + 4;
}

/* The last eight digits: halves, halves of these and again, side by side in one number. */
HOT u8 *put_eight(u8 *p, u32 value)
{
	u64 fours = value / 10000 | (u64)(value % 10000) << 32;
	u64 upper = fours * 5243 >> 19 & 0x0000007f0000007f; /* of each, / 100 */
	u64 pairs = upper | (fours - upper * 100) << 16;
	u64 tens = pairs * 103 >> 10 & 0x000f000f000f000f; /* of each, / 10 */

	WRITE(p, (tens | (pairs - tens * 10) << 8) + 0x3030303030303030);
	return p + 8;
}

HOT u8 *put_u32(u8 *p, u32 value)
{
	if (value < 10000)
		return put_small(p, value);
	if (value < 100000000)
		return put_four(put_small(p, value / 10000), value % 10000);
	return put_eight(put_few(p, value / 100000000), value % 100000000);
}

#define EIGHT_DIGITS 100000000u

COLD u8 *put_u64(u8 *p, u64 value)
{
	u64 upper, top;

	if (value >> 32 == 0)
		return put_u32(p, value);
	upper = value / EIGHT_DIGITS;
	if (upper < EIGHT_DIGITS) {
		p = put_u32(p, upper);
	} else {
		top = upper / EIGHT_DIGITS;
		p = put_eight(put_small(p, top), upper - top * EIGHT_DIGITS);
	}
	return put_eight(p, value - upper * EIGHT_DIGITS);
}

COLD u8 *put_integer(u8 *p, u64 value, bool is_signed)
{
	if (is_signed && (s64)value < 0) {
		*p++ = '-';
		value = -value;
	}
	return put_u64(p, value);
}

COLD u8 *put_hexadecimal(u8 *p, u64 value, bool is_signed)
{
	u32 shift;

	p = copy_literal(p, "0x");
	if (is_signed && (s64)value < 0) {
		*p++ = '-';
		value = -value;
	}
	for (shift = 60; shift && value >> shift == 0;)
		shift -= 4;
	for (;; shift -= 4) {
		*p++ = "0123456789ABCDEF"[value >> shift & 15];
		if (!shift)
			return p;
	}
}

/* -------------------------------------------------------------------------- durations and sizes */

/* Where value / 1000 lies half-way between two decimals: is the double nearest to it above that, or
 * even? */
static bool rounds_up(u32 value, u32 hundredths)
{
	double nearest = value / 1e3;
	u64 bits = READ(u64, &nearest);
	/* nearest = mantissa / 2^shift; it is in [1, 1000), so that both products fit */
	u64 mantissa = (bits & ((1ull << 52) - 1)) | 1ull << 52, shift = 1075 - (bits >> 52);
	u64 have = mantissa * 1000, half = (u64)value << shift;

	return have > half || (have == half && hundredths & 1);
}

/* ns / unit (1e3 or 1e6, and less than 1000 of them) with two decimals, rounded as that quotient's
 * double is. */
COLD u8 *put_hundredths(u8 *p, u32 ns, u32 unit)
{
	u32 step = unit / 100, hundredths = ns / step, rest = ns % step;

	if (rest * 2 > step || (rest * 2 == step && rounds_up(ns / (unit / 1000), hundredths)))
		hundredths++;
	p = put_u32(p, hundredths / 100);
	*p++ = '.';
	put_pair(p, hundredths % 100);
	return p + 2;
}

/* At most 31 bytes. */
COLD u8 *put_duration(u8 *p, u64 ns, bool is_signed)
{
	u64 seconds = ns / 1000000000;
	u32 rest = ns % 1000000000;

	if ((is_signed && (s64)ns < 0) || ns < 1000)
		return copy_literal(put_integer(p, ns, is_signed), "ns");
	if (ns < 1000000)
		return copy_literal(put_hundredths(p, ns, 1000), "\xc2\xb5s");
	if (ns < 1000000000)
		return copy_literal(put_hundredths(p, ns, 1000000), "ms");
	if (seconds >= 3600) {
		p = put_u64(p, seconds / 3600);
		*p++ = 'h';
	}
	if (seconds >= 60) {
		p = put_u32(p, seconds / 60 % 60);
		*p++ = 'm';
	}
	p = put_u32(p, seconds % 60);
	if (rest) {
		*p++ = '.';
		*p = '0' + rest / 100000000;
		p = put_eight(p + 1, rest % 100000000);
		while (p[-1] == '0')
			p--;
	}
	*p++ = 's';
	return p;
}

#define SIZE_LIMIT (1ull << 53) /* from here on, doubles are not exact */

/* Bytes below SIZE_LIMIT in units of 1000. */
COLD u8 *put_size(u8 *p, u64 count, bool is_signed)
{
	u64 unit = 1, tenths;
	u32 power = 0;

	if ((is_signed && (s64)count < 0) || count < 10)
		return copy_literal(put_integer(p, count, is_signed), " B");
	while (count / unit >= 1000) {
		unit *= 1000;
		power++;
	}
	tenths = (u64)((double)count / (double)unit * 10 + 0.5);
	if (tenths < 100) {
		p = put_u32(p, tenths / 10);
		*p++ = '.';
		*p++ = '0' + tenths % 10;
	} else {
		u32 whole = tenths / 10, last = tenths % 10;

		p = put_u32(p, whole + (last > 5 || (last == 5 && whole & 1)));
	}
	*p++ = ' ';
	if (power)
		*p++ = " kMGTP"[power];
	*p++ = 'B';
	return p;
}

/* ------------------------------------------------------------------------------------ addresses */

COLD u8 *put_ipv4(u8 *p, const u8 *address)
{
	for (u32 at = 0; at < 4; at++) {
		p = put_u32(p, address[at]);
		*p++ = '.';
	}
	return p - 1;
}

COLD u8 *put_groups(u8 *p, const u8 *address, u32 from, u32 to)
{
	for (; from < to; from++) {
		u32 group = address[2 * from] << 8 | address[2 * from + 1];

		p = put_hex(p, group, group > 0xfff ? 4 : group > 0xff ? 3 : group > 0xf ? 2 : 1);
		if (from + 1 < to)
			*p++ = ':';
	}
	return p;
}

/* RFC 5952, an IPv4-mapped one as IPv4. */
COLD u8 *put_ipv6(u8 *p, const u8 *address)
{
	u32 start = 0,
	    length = 1; /* of the longest run of zero groups; a single one is not shortened */
	u64 upper = READ(u64, address);

	if (!upper && READ(u32, address + 8) == 0xffff0000)
		return put_ipv4(p, address + 12);
	for (u32 at = 0, end; at < 8; at = end + 1) {
		for (end = at; end < 8 && !address[2 * end] && !address[2 * end + 1];)
			end++;
		if (end - at > length) {
			start = at;
			length = end - at;
		}
	}
	if (length < 2)
		return put_groups(p, address, 0, 8);
	p = copy_literal(put_groups(p, address, 0, start), "::");
	return put_groups(p, address, start + length, 8);
}

/* At most 45 bytes; none for an unknown version. */
COLD u8 *put_address(u8 *p, const u8 *address, u64 version)
{
	return version == 4 ? put_ipv4(p, address) : version == 6 ? put_ipv6(p, address) : p;
}

#endif
