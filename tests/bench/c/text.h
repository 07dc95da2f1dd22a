/* Text as igrun writes it, put at `to`; each function returns where to go on. */
#include <pwd.h>
#include <grp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

typedef uint8_t u8;
typedef uint32_t u32;
typedef uint64_t u64;

#define PUT(to, literal) (memcpy(to, literal, sizeof(literal) - 1), (to) + sizeof(literal) - 1)

static const char two_digits[] =
	"00010203040506070809101112131415161718192021222324252627282930313233343536373839"
	"40414243444546474849505152535455565758596061626364656667686970717273747576777879"
	"8081828384858687888990919293949596979899";

static inline char *put_text(char *to, const char *text)
{
	while (*text)
		*to++ = *text++;
	return to;
}

static inline char *put_u32(char *to, u32 value)
{
	char digits[10];
	int at = 10;

	while (value >= 100) {
		at -= 2;
		memcpy(digits + at, two_digits + value % 100 * 2, 2);
		value /= 100;
	}
	if (value >= 10) {
		at -= 2;
		memcpy(digits + at, two_digits + value * 2, 2);
	} else {
		digits[--at] = '0' + value;
	}
	for (int i = at; i < 10; i++)
		*to++ = digits[i];
	return to;
}

static inline char *put_8_digits(char *to, u32 value)
{
	u32 high = value / 10000, low = value % 10000;

	memcpy(to, two_digits + high / 100 * 2, 2);
	memcpy(to + 2, two_digits + high % 100 * 2, 2);
	memcpy(to + 4, two_digits + low / 100 * 2, 2);
	memcpy(to + 6, two_digits + low % 100 * 2, 2);
	return to + 8;
}

static inline char *put_u64(char *to, u64 value)
{
	u64 high = value / 100000000;

	if (value <= UINT32_MAX)
		return put_u32(to, value);
	if (high <= UINT32_MAX) {
		to = put_u32(to, high);
	} else {
		to = put_u32(to, high / 100000000);
		to = put_8_digits(to, high % 100000000);
	}
	return put_8_digits(to, value % 100000000);
}

/* -------------------------------------------------------------------------------------------
 * strings in JSON */

/* What cannot be copied as it is: the end, what is escaped, what is not ASCII. */
static const bool special[256] = {
	[0 ... 31] = true, ['"'] = true, ['\\'] = true, [128 ... 255] = true
};

/* Bytes of the valid UTF-8 sequence at `text`, 0 if there is none. */
static u32 utf8_bytes(const u8 *text, u32 size)
{
	u32 bytes = text[0] < 0xc2   ? 0
		    : text[0] < 0xe0 ? 2
		    : text[0] < 0xf0 ? 3
		    : text[0] < 0xf5 ? 4
				     : 0;

	if (!bytes || bytes > size)
		return 0;
	for (u32 i = 1; i < bytes; i++)
		if ((text[i] & 0xc0) != 0x80)
			return 0;
	if ((text[0] == 0xe0 && text[1] < 0xa0) || (text[0] == 0xed && text[1] > 0x9f) ||
	    (text[0] == 0xf0 && text[1] < 0x90) || (text[0] == 0xf4 && text[1] > 0x8f))
		return 0;
	return bytes;
}

static char *put_escaped(char *to, const u8 *text, u32 size)
{
	for (u32 at = 0; at < size && text[at];) {
		u8 c = text[at];
		u32 bytes;

		if (!special[c]) {
			*to++ = c;
			at++;
		} else if (c < 128) {
			*to++ = '\\';
			if (c == '"' || c == '\\')
				*to++ = c;
			else if (c == '\n' || c == '\r' || c == '\t')
				*to++ = c == '\n' ? 'n' : c == '\r' ? 'r' : 't';
			else
				to += sprintf(to, "u%04x", c);
			at++;
		} else if (!(bytes = utf8_bytes(text + at, size - at))) {
			to = PUT(to, "\\ufffd");
			at++;
		} else if (c == 0xe2 && text[at + 1] == 0x80 && (text[at + 2] & ~1) == 0xa8) {
			to += sprintf(to, "\\u202%x", text[at + 2] - 0xa0);
			at += 3;
		} else {
			memcpy(to, text + at, bytes);
			to += bytes;
			at += bytes;
		}
	}
	return to;
}

/* The text of a char[size]: up to its NUL, if it has one. */
static inline char *put_string(char *to, const char *text, u32 size)
{
	const u8 *bytes = (const u8 *)text;
	u32 i;

	for (i = 0; i < size && !special[bytes[i]]; i++)
		to[i] = bytes[i];
	if (i == size || !bytes[i])
		return to + i;
	return put_escaped(to + i, bytes + i, size - i);
}

/* ------------------------------------------------------------------------------------------- names
 * of numbers */

static inline char *put_errno(char *to, u32 number)
{
	const char *name = number < 134 ? strerrorname_np(number) : NULL;

	if (!number)
		return to;
	if (name)
		return put_text(to, name);
	return put_u32(PUT(to, "error#"), number);
}

static const struct {
	u32 bit;
	const char *name;
} open_flags[] = {
	{ 0100, "|O_CREAT" },	     { 0200, "|O_EXCL" },	  { 0400, "|O_NOCTTY" },
	{ 01000, "|O_TRUNC" },	     { 02000, "|O_APPEND" },	  { 04000, "|O_NONBLOCK" },
	{ 010000, "|O_DSYNC" },	     { 020000, "|O_FASYNC" },	  { 040000, "|O_DIRECT" },
	{ 0100000, "|O_LARGEFILE" }, { 0200000, "|O_DIRECTORY" }, { 0400000, "|O_NOFOLLOW" },
	{ 01000000, "|O_NOATIME" },  { 02000000, "|O_CLOEXEC" },
};

static inline char *put_flags(char *to, u32 flags)
{
	static const char *const access[] = { "O_RDONLY", "O_WRONLY", "O_RDWR", "" };

	to = put_text(to, access[flags & 3]);
	for (u32 i = 0; i < sizeof(open_flags) / sizeof(*open_flags); i++)
		if (flags & open_flags[i].bit)
			to = put_text(to, open_flags[i].name);
	return to;
}

/* Of a plain file. */
static inline char *put_mode(char *to, u32 mode)
{
	*to++ = '-';
	for (int bit = 8; bit >= 0; bit--)
		*to++ = mode >> bit & 1 ? "xwr"[bit % 3] : '-';
	return to;
}

#define NAMES 64

struct name {
	bool known;
	u32 id;
	char text[60];
};

static inline char *put_user(char *to, u32 id)
{
	static struct name names[NAMES];
	struct name *name = &names[id % NAMES];

	if (!name->known || name->id != id) {
		struct passwd *found = getpwuid(id);

		name->known = true;
		name->id = id;
		if (found)
			snprintf(name->text, sizeof(name->text), "%s", found->pw_name);
		else
			snprintf(name->text, sizeof(name->text), "uid:%u", id);
	}
	return put_text(to, name->text);
}

static inline char *put_group(char *to, u32 id)
{
	static struct name names[NAMES];
	struct name *name = &names[id % NAMES];

	if (!name->known || name->id != id) {
		struct group *found = getgrgid(id);

		name->known = true;
		name->id = id;
		if (found)
			snprintf(name->text, sizeof(name->text), "%s", found->gr_name);
		else
			snprintf(name->text, sizeof(name->text), "gid:%u", id);
	}
	return put_text(to, name->text);
}

/* 2026-11-20T23:29:15.214584893Z */
static inline char *put_time(char *to, u64 ns)
{
	static u64 known = UINT64_MAX;
	static char text[32];
	u64 second = ns / 1000000000;
	u32 fraction = ns % 1000000000;

	if (second != known) {
		time_t time = second;

		strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%S.", gmtime(&time));
		known = second;
	}
	memcpy(to, text, 20);
	to = put_8_digits(to + 20, fraction / 10);
	*to++ = '0' + fraction % 10;
	*to++ = 'Z';
	return to;
}
