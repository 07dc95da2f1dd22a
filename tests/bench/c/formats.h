/* A JSON object for each record, as `ig run -o json` prints it: keys in order, names beside
 * numbers, the container. */

static u64 wall_minus_boot_ns;

/* Of gadgets/bench_events. */
struct call_event {
	u64 timestamp, mntns_id;
	u32 pid, tid, ppid, uid, gid, flags, error, mode;
	char comm[16], pcomm[16], fname[256];
};

/* Of the bundled trace_open, without fpath. */
struct open_event {
	u64 timestamp;
	struct {
		char comm[16];
		u32 pid, tid;
		u64 mntns_id;
		u32 uid, gid;
		struct {
			char comm[16];
			u32 pid, tid;
		} parent;
	} proc;
	u32 error, fd, flags, mode;
	struct {
		u32 major, minor;
		u64 inode, mtime_sec;
		u32 mtime_nsec, base_addr_hash, stack_id, tgid_level0;
		u32 pid_level0, pidns_level0, pid_level1, pidns_level1;
		u64 otel_correlation_id, boot_timestamp;
	} ustack;
	char fname[255];
};

static inline char *put_k8s(char *to, const struct container *container)
{
	memcpy(to, container->k8s, container->k8s_bytes);
	return to + container->k8s_bytes;
}

static inline char *put_runtime(char *to, const struct container *container)
{
	memcpy(to, container->runtime, container->runtime_bytes);
	return to + container->runtime_bytes;
}

static char *put_call(char *to, const void *data)
{
	const struct call_event *event = data;
	const struct container *container = container_of(event->mntns_id);
	u64 time = event->timestamp + wall_minus_boot_ns;

	to = put_string(PUT(to, "{\"comm\":\""), event->comm, sizeof(event->comm));
	to = put_errno(PUT(to, "\",\"error\":\""), event->error);
	to = put_u32(PUT(to, "\",\"error_raw\":"), event->error);
	to = put_flags(PUT(to, ",\"flags\":\""), event->flags);
	to = put_u32(PUT(to, "\",\"flags_raw\":"), event->flags);
	to = put_string(PUT(to, ",\"fname\":\""), event->fname, sizeof(event->fname));
	to = put_u32(PUT(to, "\",\"gid\":"), event->gid);
	to = put_group(PUT(to, ",\"group\":\""), event->gid);
	to = put_k8s(PUT(to, "\",\"k8s\":"), container);
	to = put_u64(PUT(to, ",\"mntns_id\":"), event->mntns_id);
	to = put_mode(PUT(to, ",\"mode\":\""), event->mode);
	to = put_u32(PUT(to, "\",\"mode_raw\":"), event->mode);
	to = put_string(PUT(to, ",\"pcomm\":\""), event->pcomm, sizeof(event->pcomm));
	to = put_u32(PUT(to, "\",\"pid\":"), event->pid);
	to = put_u32(PUT(to, ",\"ppid\":"), event->ppid);
	to = put_runtime(PUT(to, ",\"runtime\":"), container);
	to = put_u32(PUT(to, ",\"tid\":"), event->tid);
	to = put_time(PUT(to, ",\"timestamp\":\""), time);
	to = put_u64(PUT(to, "\",\"timestamp_raw\":"), time);
	to = put_u32(PUT(to, ",\"uid\":"), event->uid);
	to = put_user(PUT(to, ",\"user\":\""), event->uid);
	return PUT(to, "\"}\n");
}

static char *put_open(char *to, const void *data)
{
	const struct open_event *event = data;
	const struct container *container = container_of(event->proc.mntns_id);
	u64 time = event->timestamp + wall_minus_boot_ns;

	to = put_errno(PUT(to, "{\"error\":\""), event->error);
	to = put_u32(PUT(to, "\",\"error_raw\":"), event->error);
	to = put_u32(PUT(to, ",\"fd\":"), event->fd);
	to = put_flags(PUT(to, ",\"flags\":\""), event->flags);
	to = put_u32(PUT(to, "\",\"flags_raw\":"), event->flags);
	to = put_string(PUT(to, ",\"fname\":\""), event->fname, sizeof(event->fname));
	to = put_k8s(PUT(to, "\",\"fpath\":\"\",\"k8s\":"), container);
	to = put_mode(PUT(to, ",\"mode\":\""), event->mode);
	to = put_u32(PUT(to, "\",\"mode_raw\":"), event->mode);
	to = put_string(PUT(to, ",\"proc\":{\"comm\":\""), event->proc.comm,
			sizeof(event->proc.comm));
	to = put_u32(PUT(to, "\",\"creds\":{\"gid\":"), event->proc.gid);
	to = put_group(PUT(to, ",\"group\":\""), event->proc.gid);
	to = put_u32(PUT(to, "\",\"uid\":"), event->proc.uid);
	to = put_user(PUT(to, ",\"user\":\""), event->proc.uid);
	to = put_u64(PUT(to, "\"},\"mntns_id\":"), event->proc.mntns_id);
	to = put_string(PUT(to, ",\"parent\":{\"comm\":\""), event->proc.parent.comm,
			sizeof(event->proc.parent.comm));
	to = put_u32(PUT(to, "\",\"pid\":"), event->proc.parent.pid);
	to = put_u32(PUT(to, ",\"tid\":"), event->proc.parent.tid);
	to = put_u32(PUT(to, "},\"pid\":"), event->proc.pid);
	to = put_u32(PUT(to, ",\"tid\":"), event->proc.tid);
	to = put_runtime(PUT(to, "},\"runtime\":"), container);
	to = put_time(PUT(to, ",\"timestamp\":\""), time);
	to = put_u64(PUT(to, "\",\"timestamp_raw\":"), time);
	to = put_u32(PUT(to, ",\"ustack\":{\"base_addr_hash\":"), event->ustack.base_addr_hash);
	to = put_u64(PUT(to, ",\"boot_timestamp\":"), event->ustack.boot_timestamp);
	to = put_u64(PUT(to, ",\"inode\":"), event->ustack.inode);
	to = put_u32(PUT(to, ",\"major\":"), event->ustack.major);
	to = put_u32(PUT(to, ",\"minor\":"), event->ustack.minor);
	to = put_u32(PUT(to, ",\"mtime_nsec\":"), event->ustack.mtime_nsec);
	to = put_u64(PUT(to, ",\"mtime_sec\":"), event->ustack.mtime_sec);
	to = put_u64(PUT(to, ",\"otel_correlation_id\":"), event->ustack.otel_correlation_id);
	to = put_u32(PUT(to, ",\"pid_level0\":"), event->ustack.pid_level0);
	to = put_u32(PUT(to, ",\"pid_level1\":"), event->ustack.pid_level1);
	to = put_u32(PUT(to, ",\"pidns_level0\":"), event->ustack.pidns_level0);
	to = put_u32(PUT(to, ",\"pidns_level1\":"), event->ustack.pidns_level1);
	to = put_u32(PUT(to, ",\"stack_id\":"), event->ustack.stack_id);
	to = put_u32(PUT(to, ",\"tgid_level0\":"), event->ustack.tgid_level0);
	return PUT(to, "}}\n");
}

/* ------------------------------------------------------------------------------------------- a
 * table */

#define TOP 20

/* Of gadgets/bench_entries. */
struct entry_key {
	u64 number;
	u32 pid, tid;
	char comm[16];
};

struct entry_value {
	u64 weight, calls, bytes;
};

struct top {
	u32 count;
	struct entry_key keys[TOP];
	struct entry_value values[TOP];
};

/* Keep the entry if it is among the heaviest. */
static inline void add_to_top(struct top *top, const struct entry_key *key,
			      const struct entry_value *value)
{
	u32 at = top->count;

	if (at == TOP && value->weight <= top->values[TOP - 1].weight)
		return;
	if (at < TOP)
		top->count++;
	else
		at--;
	for (; at && top->values[at - 1].weight < value->weight; at--) {
		top->keys[at] = top->keys[at - 1];
		top->values[at] = top->values[at - 1];
	}
	top->keys[at] = *key;
	top->values[at] = *value;
}

static char *put_top(char *to, const struct top *top)
{
	*to++ = '[';
	for (u32 i = 0; i < top->count; i++) {
		if (i)
			*to++ = ',';
		to = put_u64(PUT(to, "{\"bytes\":"), top->values[i].bytes);
		to = put_u64(PUT(to, ",\"calls\":"), top->values[i].calls);
		to = put_string(PUT(to, ",\"comm\":\""), top->keys[i].comm,
				sizeof(top->keys[i].comm));
		to = put_u64(PUT(to, "\",\"number\":"), top->keys[i].number);
		to = put_u32(PUT(to, ",\"pid\":"), top->keys[i].pid);
		to = put_u32(PUT(to, ",\"tid\":"), top->keys[i].tid);
		to = put_u64(PUT(to, ",\"weight\":"), top->values[i].weight);
		*to++ = '}';
	}
	return PUT(to, "]\n");
}
