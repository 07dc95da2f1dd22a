/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The record engine: it walks regions of raw records, filters and prints them.
 *
 * It is compiled to WebAssembly, so that whatever a region holds, nothing outside its own memory is
 * read or written. The host puts regions into that memory, and programs: what to print of a record,
 * and which records. Where only the host knows a text, it is asked for it once, and a memo has it
 * from then on.
 *
 * The host is trusted: its programs read no number behind `span`, and refer to nothing that is not
 * there. Records are not: any bytes give an answer, in bounded time.
 */
#include "walk.h"
#include "filter.h"

#define EXPORT(name) __attribute__((export_name(#name)))

struct program {
	u32 span;	      /* bytes of a record that its numbers are in; at most SPAN */
	u32 first;	      /* test, or verdict */
	u32 tests;	      /* struct test[] */
	u32 ops, op_count;    /* struct op[] */
	struct piece between; /* two records */
	u32 longest; /* the most that a record takes, but for what looks for room itself; `prepare`
			knows it */
};
_Static_assert(sizeof(struct program) == 32, "the host writes it");

/* What to do: the rows `at` to `rows`. */
struct job {
	u32 program;
	u32 region, size;
	u32 rest; /* where the rest of a record begins */
	u32 offsets, lengths,
		records; /* u64[], u32[]: of the records in the region, and how many there are */
	u32 selected;	 /* u32[rows]: records; 0: all of them in order */
	u32 at, rows;	 /* at: moves on */
	u32 out, end;	 /* where texts go, and its end; out: moves on */
	u32 sides;	 /* struct side[] */
	u32 printed, filtered; /* grow */
	u32 why, memo, record; /* why it stopped, before which record */
	u64 key;
	u64 now, wall_minus_boot;
};
_Static_assert(sizeof(struct job) == 96, "the host writes it");

/* The record that a row is; there is none where the host was wrong. */
HOT u32 record_of(const struct job *job, u32 number)
{
	return job->selected ? READ(u32, AT(job->selected) + 4 * number) : number;
}

HOT struct row row_of(const struct job *job, const struct program *program, u32 number)
{
	u32 record = record_of(job, number), length = 0, offset = 0;

	if (record < job->records) {
		offset = min(READ(u64, AT(job->offsets) + 8 * record), job->size);
		length = min(READ(u32, AT(job->lengths) + 4 * record), job->size - offset);
	}
	const u8 *raw = AT(job->region) + offset;

	return (struct row){ length < program->span ? padded(raw, length) : raw, raw, length,
			     job->rest, number };
}

static void begin(const struct job *job)
{
	stop.why = DONE;
	wall.now = job->now;
	wall.offset = job->wall_minus_boot;
}

static u32 end(struct job *job, u32 number)
{
	job->at = number;
	job->why = stop.why;
	job->memo = stop.memo;
	job->key = stop.key;
	job->record = number < job->rows ? record_of(job, number) : 0;
	return stop.why;
}

/* Print the rows that are kept. */
EXPORT(print) u32 print(struct job *job)
{
	const struct program *program = (struct program *)AT(job->program);
	const struct op *ops = (struct op *)AT(program->ops), *ops_end = ops + program->op_count;
	u32 at = job->at;
	u8 *p = AT(job->out), *start;

	begin(job);
	output.sides = (struct side *)AT(job->sides);
	output.limit = job->end - min(job->end, program->longest + SLACK);
	for (; at < job->rows; at++) {
		struct row row = row_of(job, program, at);
		enum verdict verdict =
			judged((struct test *)AT(program->tests), program->first, &row);

		if (verdict == UNDECIDED)
			break;
		if (verdict == DROPPED) {
			job->filtered++;
			continue;
		}
		if (!has_room(p, 0))
			break;
		start = p;
		if (job->printed)
			start = copy(p, AT(program->between.at), program->between.length);
		start = put_record(ops, ops_end, &row, start);
		if (!start)
			break;
		p = start;
		job->printed++;
	}
	job->out = ADDRESS(p);
	return end(job, at);
}

/* Write the records that are kept to `out`, u32 each. */
EXPORT(select) u32 select(struct job *job)
{
	const struct program *program = (struct program *)AT(job->program);
	u32 at = job->at;

	begin(job);
	for (; at < job->rows; at++) {
		struct row row = row_of(job, program, at);
		enum verdict verdict =
			judged((struct test *)AT(program->tests), program->first, &row);

		if (verdict == UNDECIDED)
			break;
		if (verdict == DROPPED)
			continue;
		if (job->end - job->out < 4) {
			stopped(FULL, 0, 0);
			break;
		}
		WRITE(AT(job->out), record_of(job, at));
		job->out += 4;
	}
	return end(job, at);
}

EXPORT(walk) u32 walk(struct walk *walk)
{
	walk_region(walk);
	return walk->count;
}

/* Make a program ready. */
EXPORT(prepare) void prepare(struct program *program)
{
	const struct op *op = (struct op *)AT(program->ops), *end = op + program->op_count;
	u64 sum = program->between.length;

	for (; op < end; op++)
		sum += longest(op);
	program->longest = min(sum, 0xffffffff - SLACK);
}

/* Let keys collide as nobody can foresee. */
EXPORT(mix) void mix(u64 odd)
{
	secret = odd | 1;
}

EXPORT(remember) u32 remember_text(struct memo *memo, u64 key, const u8 *text, u32 length)
{
	return remember(memo, key, text, length);
}

EXPORT(forget) void forget_all(struct memo *memo)
{
	forget(memo);
}

EXPORT(move) void move_memo(struct memo *memo, u32 entries, u32 count, u32 pool, u32 pool_size)
{
	move(memo, entries, count, pool, pool_size);
}

/* Say which characters of a page are printable: a bit each. */
EXPORT(tell) void tell(u32 page, const u8 *bits)
{
	__builtin_memcpy(printable.bits[page], bits, sizeof(printable.bits[page]));
	printable.is_known[page] = true;
}
