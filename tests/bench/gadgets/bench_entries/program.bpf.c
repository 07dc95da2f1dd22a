// SPDX-License-Identifier: GPL-2.0
// An entry of a map for each getpgid() of one process, to be fetched each second.
#include <vmlinux.h>
#include <bpf/bpf_helpers.h>

#include <gadget/buffer.h>
#include <gadget/filter.h>
#include <gadget/macros.h>
#include <gadget/types.h>

#ifdef __TARGET_ARCH_x86
#define GETPGID 121
#else
#define GETPGID 155
#endif

struct entry_key {
	__u64 number;
	gadget_pid pid;
	gadget_tid tid;
	gadget_comm comm[TASK_COMM_LEN];
};

struct entry_value {
	__u64 weight;
	__u64 calls;
	__u64 bytes;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 512 * 1024);
	__type(key, struct entry_key);
	__type(value, struct entry_value);
} entries SEC(".maps");

/* Entries that found no room in the map above. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} entries_lost_samples SEC(".maps");

/* How many there were on this CPU. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} numbers SEC(".maps");

GADGET_MAPITER(rows, entries);

SEC("raw_tracepoint/sys_enter")
int ig_entries(struct bpf_raw_tracepoint_args *ctx)
{
	struct entry_value value = {};
	struct entry_key key = {};
	__u64 pid_tgid, *number;
	__u32 zero = 0;

	if (ctx->args[1] != GETPGID || gadget_should_discard_data_current())
		return 0;
	number = bpf_map_lookup_elem(&numbers, &zero);
	if (!number)
		return 0;
	pid_tgid = bpf_get_current_pid_tgid();
	key.number = (*number)++;
	key.pid = pid_tgid >> 32;
	key.tid = (__u32)pid_tgid;
	bpf_get_current_comm(key.comm, sizeof(key.comm));
	/* All distinct as long as there are fewer than 2^20, in no order. */
	value.weight = key.number * 0x9e375 % (1 << 20);
	value.calls = 1;
	value.bytes = value.weight * 3;
	if (bpf_map_update_elem(&entries, &key, &value, BPF_ANY))
		__gadget_count_lost(&entries_lost_samples);
	return 0;
}

char _license[] SEC("license") = "GPL";
