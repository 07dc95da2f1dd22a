/*
 * What `ig run` is compared with: loads the same object through libbpf and prints the same lines.
 *     consume OBJECT calls|opens|top [-p PID] [-r RING_BYTES] [-t TICK_MS] [-c CONTAINERS]
 * With a tick it reads, sleeps, reads ..., as igrun does; without one it is libbpf's usual loop
 * around epoll. Ends at SIGTERM.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <unistd.h>

#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <bpf/libbpf.h>

#include "text.h"
#include "containers.h"
#include "formats.h"

#define OUT_BYTES (1 << 20)
#define LONGEST_LINE 8192
#define SHORTEST_TICK_NS 300000

static volatile sig_atomic_t stopping;
static char out[OUT_BYTES], *out_end = out;
static char *(*put_event)(char *to, const void *data);
static u64 taken; /* bytes of the ring since the last sleep */

static void stop(int signal)
{
	(void)signal;
	stopping = 1;
}

static u64 now_ns(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static void flush(void)
{
	for (char *from = out; from < out_end;) {
		ssize_t written = write(1, from, out_end - from);

		if (written < 0 && errno != EINTR)
			err(1, "write");
		from += written > 0 ? written : 0;
	}
	out_end = out;
}

static int on_event(void *context, void *data, size_t size)
{
	(void)context;
	taken += (size + 8 + 7) / 8 * 8;
	out_end = put_event(out_end, data);
	if (out_end > out + OUT_BYTES - LONGEST_LINE)
		flush();
	return 0;
}

/* As in igrun: twice as long as the last time, but no longer than a quarter of the ring takes to
 * fill. */
static u64 pause_ns(u64 longest, u64 ring_bytes, u64 *before)
{
	static u64 tick = SHORTEST_TICK_NS;
	u64 now = now_ns(CLOCK_MONOTONIC);

	tick = tick * 2 < longest ? tick * 2 : longest;
	if (*before && taken) {
		u64 quarter = (now - *before) * (ring_bytes / 4) / taken;

		tick = quarter < tick ? quarter : tick;
		tick = tick < SHORTEST_TICK_NS ? SHORTEST_TICK_NS : tick;
	}
	*before = now;
	taken = 0;
	return tick;
}

static void sleep_ns(u64 ns)
{
	struct timespec t = { .tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000 };

	nanosleep(&t, NULL);
}

static void read_ring(struct bpf_map *map, u64 tick_ns)
{
	struct ring_buffer *ring = ring_buffer__new(bpf_map__fd(map), on_event, NULL, NULL);
	u64 size = bpf_map__max_entries(map), before = 0;

	if (!ring)
		err(1, "open the ring");
	while (!stopping) {
		if (tick_ns && ring_buffer__consume(ring) > 0) {
			flush();
			sleep_ns(pause_ns(tick_ns, size, &before));
			continue;
		}
		before = 0;
		ring_buffer__poll(ring, 100);
		flush();
	}
	ring_buffer__consume(ring);
	flush();
	ring_buffer__free(ring);
}

#define BATCH 16384

static void print_top(int map)
{
	static struct entry_key keys[BATCH];
	static struct entry_value values[BATCH];
	struct top top = {};
	u32 here, there;
	bool first = true;

	for (;;) {
		u32 count = BATCH;
		int error = bpf_map_lookup_and_delete_batch(map, first ? NULL : &here, &there, keys,
							    values, &count, NULL);

		if (error && errno != ENOENT)
			err(1, "read the map");
		for (u32 i = 0; i < count; i++)
			add_to_top(&top, &keys[i], &values[i]);
		if (error)
			break;
		here = there;
		first = false;
	}
	out_end = put_top(out_end, &top);
	flush();
}

static void read_table(struct bpf_map *map)
{
	while (!stopping) {
		sleep_ns(1000000000);
		print_top(bpf_map__fd(map));
	}
}

/* A `const volatile __u32` of the object. */
static void set_variable(struct bpf_object *object, const char *name, u32 value)
{
	const struct btf *btf = bpf_object__btf(object);
	int section = btf__find_by_name_kind(btf, ".rodata", BTF_KIND_DATASEC);
	const struct btf_type *type = btf__type_by_id(btf, section);
	struct bpf_map *map;

	bpf_object__for_each_map(map, object)
	{
		const char *of = bpf_map__name(map);
		size_t size;
		char *data;

		if (strlen(of) < 7 || strcmp(of + strlen(of) - 7, ".rodata"))
			continue;
		data = (char *)bpf_map__initial_value(map, &size); /* const before libbpf 1.4 */
		for (int i = 0; i < btf_vlen(type); i++) {
			const struct btf_var_secinfo *variable = &btf_var_secinfos(type)[i];
			const struct btf_type *about = btf__type_by_id(btf, variable->type);

			if (!strcmp(btf__name_by_offset(btf, about->name_off), name)) {
				memcpy(data + variable->offset, &value, sizeof(value));
				return;
			}
		}
	}
	errx(1, "the object has no variable %s", name);
}

static int complain(enum libbpf_print_level level, const char *format, va_list arguments)
{
	return level == LIBBPF_WARN ? vfprintf(stderr, format, arguments) : 0;
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_handler = stop };
	u32 pid = 0, ring_bytes = 0, tick_ms = 0;
	struct bpf_program *program;
	struct bpf_object *object;
	struct bpf_map *map, *records;
	bool table;
	int option;

	while ((option = getopt(argc, argv, "p:r:t:c:")) != -1) {
		if (option == 'p')
			pid = atoi(optarg);
		else if (option == 'r')
			ring_bytes = atoi(optarg);
		else if (option == 't')
			tick_ms = atoi(optarg);
		else if (option == 'c')
			read_containers(optarg);
		else
			return 2;
	}
	if (argc - optind != 2)
		errx(2, "which object, and what are its records?");
	table = !strcmp(argv[optind + 1], "top");
	put_event = strcmp(argv[optind + 1], "opens") ? put_call : put_open;
	wall_minus_boot_ns = now_ns(CLOCK_REALTIME) - now_ns(CLOCK_BOOTTIME);
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGINT, &action, NULL);
	libbpf_set_print(complain);

	object = bpf_object__open_file(argv[optind], NULL);
	if (!object)
		err(1, "%s", argv[optind]);
	set_variable(object, "targ_pid", pid);
	records = bpf_object__find_map_by_name(object, table ? "entries" : "events");
	if (!records)
		errx(1, "the object has not the map for it");
	if (!table && ring_bytes)
		bpf_map__set_max_entries(records, ring_bytes);
	bpf_object__for_each_map(map, object) if (!bpf_map__max_entries(map))
		bpf_map__set_max_entries(map, 1024); /* left to a flag */
	if (bpf_object__load(object))
		err(1, "load");
	bpf_object__for_each_program(program, object) if (!bpf_program__attach(program))
		err(1, "attach %s", bpf_program__name(program));
	if (table)
		read_table(records);
	else
		read_ring(records, tick_ms * 1000000ull);
	bpf_object__close(object);
	return 0;
}
