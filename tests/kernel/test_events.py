"""What a loaded program delivers: events, tables, losses, and how it ends."""

import ctypes
import os
import signal
import socket
import struct
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

from igrun import load as load_module
from igrun import readers
from igrun.bpfmap import PERF_EVENT_ARRAY, possible_cpus
from igrun.errors import ImageError, ParamError, UnsupportedError
from igrun.record import TICK, DataSource, Kind, Reason

pytestmark = pytest.mark.kernel

CALLS = """
#define SIZE %(size)s
struct event {
	__u64 number;
	__u32 length;
	__u8 filler[52];
};
GADGET_TRACER_MAP(events, SIZE);
GADGET_TRACER(calls, events, event);
const volatile __u32 only_pid = 0;
__u64 tried = 0;

SEC("tracepoint/syscalls/sys_enter_getpgid")
int enter(struct trace_event_raw_sys_enter *ctx)
{
	struct event *event;

	if (bpf_get_current_pid_tgid() >> 32 != only_pid)
		return 0;
	__sync_fetch_and_add(&tried, 1);
	event = gadget_reserve_buf(&events, sizeof(*event));
	if (!event)
		return 0;
	event->number = ctx->args[0];
	event->length = 0xffffffff;
	gadget_submit_buf(ctx, &events, event, sizeof(*event));
	return 0;
}
"""


def tried(started) -> int:
    return int.from_bytes((started.loaded.map("gadget.bss").lookup(bytes(4)) or b"")[:8], "little")


def mine() -> dict[str, int]:
    return {"only_pid": os.getpid()}


def numbers(batches) -> list[int]:
    return [value for batch in batches for value in batch.values("number")]


LIBC = ctypes.CDLL(None)


def calls(numbers: Iterable[int]) -> None:
    """Call getpgid with each number, as fast as goes; other threads run meanwhile."""
    for number in numbers:
        LIBC.getpgid(number)


class Stopper(threading.Thread):
    """Makes calls in other threads, `each` in each, then stops the run."""

    def __init__(self, started, each: int, threads: int = 1) -> None:
        super().__init__()
        self.started = started
        self.ranges = [range(thread * each, (thread + 1) * each) for thread in range(threads)]
        self.start()

    def run(self) -> None:
        workers = [threading.Thread(target=calls, args=(numbers,)) for numbers in self.ranges]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        self.started.events.stop()


@pytest.mark.parametrize(("size", "threads"), [("4096", 2), ("(256 * 1024)", 1), ("(8 * 1024 * 1024)", 2)])
def test_every_record_is_delivered_or_counted_as_lost(start, size, threads):
    started = start(CALLS % {"size": size}, constants=mine())
    stopper = Stopper(started, 60_000, threads)

    batches = started.batches(30)

    stopper.join()
    lost = sum(batch.lost.get(Reason.KERNEL, 0) for batch in batches)
    seen = numbers(batches)
    # Where a program can be preempted the kernel leaves out runs, and counts them.
    assert tried(started) + started.loaded.missed() == 60_000 * threads
    assert len(seen) + lost == tried(started)
    assert len(set(seen)) == len(seen)
    assert started.events.lost() == {"calls": lost}
    assert started.events.countable("calls")


def test_the_first_event_comes_at_once(start):
    started = start(CALLS % {"size": 4096}, constants=mine())
    run = started.events.run(5)
    threading.Timer(0.2, lambda: calls(range(1))).start()
    before = time.monotonic()

    batch = next(batch for batch in run if batch.source.name)

    assert list(batch.values("number")) == [0]
    assert 0.15 < time.monotonic() - before < 0.28
    run.close()


def test_a_run_without_events_only_ticks(start):
    started = start(CALLS % {"size": 4096}, constants={"only_pid": 1 << 30})
    busy = time.process_time()

    batches = list(started.events.run(2.5))

    assert [batch.source for batch in batches] == [TICK, TICK]
    assert time.process_time() - busy < 0.1


def test_what_is_in_the_buffer_at_the_end_is_delivered(start):
    started = start(CALLS % {"size": "(64 * 1024)"}, constants=mine())
    run = started.events.run()
    started.events.stop()
    calls(range(50))

    assert numbers(batch for batch in run if batch.source.name) == list(range(50))


def test_a_signal_handler_can_stop_a_run(start):
    started = start(CALLS % {"size": 4096}, constants={"only_pid": 1 << 30})
    old = signal.signal(signal.SIGUSR1, lambda *_: started.events.stop())
    try:
        threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGUSR1)).start()
        before = time.monotonic()
        started.batches(20)
    finally:
        signal.signal(signal.SIGUSR1, old)

    assert time.monotonic() - before < 2


def test_a_loss_is_told_with_the_next_batch_of_its_source(start):
    started = start(CALLS % {"size": 4096}, constants=mine())
    calls(range(1000))
    batches = started.batches(0.2)

    assert sum(batch.lost.get(Reason.KERNEL, 0) for batch in batches) == 1000 - len(numbers(batches)) > 0
    again = sum(batch.lost.get(Reason.KERNEL, 0) for batch in started.events.run(0.1))
    assert again == 0


PLAIN = """
struct event {
	__u64 number;
};
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} plain SEC(".maps");
GADGET_TRACER(calls, plain, event);

SEC("raw_tp/sys_enter")
int enter(void *ctx)
{
	struct event event = {};

	bpf_ringbuf_output(&plain, &event, sizeof(event), 0);
	return 0;
}
"""


def test_without_a_counter_losses_cannot_be_told(start):
    started = start(PLAIN)

    assert not started.events.countable("calls")
    assert started.events.lost() == {}


# ------------------------------------------------------------------------------------------------ perf buffers


def no_ring_buffers(monkeypatch, folder: Path):
    """Make the object and the runtime believe that the kernel has no ring buffers.

    The runtime's question is answered with no; the object asks the kernel's BTF for the helpers' numbers, so it gets
    one in which they have other names.
    """
    monkeypatch.setattr(load_module, "has_ring_buffers", lambda: False)
    kernel = Path("/sys/kernel/btf/vmlinux").read_bytes()
    path = folder / "old.btf"
    path.write_bytes(kernel.replace(b"\0BPF_FUNC_ringbuf_", b"\0BPF_FUNC_RINGBUF_"))

    def prepare(plan) -> None:
        plan.kernel_btf = str(path)

    return prepare


def test_without_ring_buffers_events_come_through_perf_buffers(start, monkeypatch, tmp_path):
    started = start(CALLS % {"size": "(256 * 1024)"}, constants=mine(), prepare=no_ring_buffers(monkeypatch, tmp_path))
    assert started.loaded.map("events").type == PERF_EVENT_ARRAY
    threading.Timer(0.1, lambda: calls(range(100))).start()

    assert sorted(numbers(started.batches(0.5))) == list(range(100))


def test_what_a_perf_buffer_loses_is_counted(start, monkeypatch, tmp_path):
    started = start(CALLS % {"size": "(256 * 1024)"}, constants=mine(), prepare=no_ring_buffers(monkeypatch, tmp_path))
    stopper = Stopper(started, 60_000, 2)

    # The reader sleeps where a real one prints, and no thread reads beside it: the buffers run over, again and again.
    started.events.intake.take_back()
    batches = []
    for batch in started.events.run(60):
        batches.append(batch)
        time.sleep(0.1)

    stopper.join()
    batches = [batch for batch in batches if batch.source.name]
    lost = sum(batch.lost.get(Reason.KERNEL, 0) for batch in batches)
    seen = numbers(batches)
    assert lost > 0
    assert len(seen) + lost == tried(started) == 120_000 - started.loaded.missed()
    assert len(set(seen)) == len(seen)


def test_a_program_that_knows_ring_buffers_only_needs_them(start, monkeypatch, tmp_path):
    with pytest.raises(UnsupportedError, match=r"no ring buffers \(Linux 5\.8"):
        start(PLAIN, prepare=no_ring_buffers(monkeypatch, tmp_path))


# ------------------------------------------------------------------------------------------------ maps

COUNTS = """
struct who {
	__u32 core;
	__u32 number;
};
struct what {
	__u64 count;
	__u32 pid;
	__u32 spare;
};
struct {
	__uint(type, %(type)s);
	__uint(max_entries, 20000);
	__type(key, struct who);
	__type(value, struct what);
} counts SEC(".maps");
GADGET_MAPITER(top, counts);
const volatile __u32 only_pid = 0;
__u64 failed = 0;

SEC("tracepoint/syscalls/sys_enter_getpgid")
int enter(struct trace_event_raw_sys_enter *ctx)
{
	struct who key = { .core = 7 };
	struct what value = { .count = 1 };

	if (bpf_get_current_pid_tgid() >> 32 != only_pid)
		return 0;
	key.number = ctx->args[0];
	value.count = (__u64)key.number * 1000;
	value.pid = only_pid;
	if (bpf_map_update_elem(&counts, &key, &value, 0))
		__sync_fetch_and_add(&failed, 1);
	return 0;
}
"""
HASH_COUNTS = COUNTS % {"type": "BPF_MAP_TYPE_HASH"}


def rows(batch, form: str = "=IIQII") -> set[tuple[int, ...]]:
    assert batch.region.stride == struct.calcsize(form)
    found = list(struct.iter_unpack(form, batch.region.memory))
    assert len(set(found)) == len(found) == len(batch)
    return set(found)


@pytest.mark.parametrize("kind", ["BPF_MAP_TYPE_HASH", "BPF_MAP_TYPE_LRU_HASH"])
def test_a_map_is_drained_at_each_interval(start, kind):
    started = start(
        COUNTS % {"type": kind}, constants=mine(), values={"map-fetch-interval": "100ms", "map-fetch-count": "3"}
    )
    calls(range(5000))

    batches = started.batches(1)

    assert [len(batch) for batch in batches] == [5000, 0, 0]
    assert rows(batches[0]) == {(7, n, n * 1000, os.getpid(), 0) for n in range(5000)}
    assert batches[0].source.kind is Kind.TABLE


@pytest.mark.parametrize("kind", ["BPF_MAP_TYPE_PERCPU_HASH", "BPF_MAP_TYPE_LRU_PERCPU_HASH"])
def test_an_entry_of_a_per_cpu_map_has_a_row_for_each_cpu(start, kind):
    started = start(
        COUNTS % {"type": kind}, constants=mine(), values={"map-fetch-interval": "100ms", "map-fetch-count": "2"}
    )
    cpus = range(possible_cpus())
    here = os.sched_getaffinity(0)
    try:
        for cpu in here:
            os.sched_setaffinity(0, {cpu})
            calls(range(1, 501))
    finally:
        os.sched_setaffinity(0, here)

    batches = started.batches(0.5)

    written = [(n * 1000, os.getpid(), 0) for n in range(1, 501)]
    assert rows(batches[0], "=IIQIIQ") == {
        (7, n + 1, *(value if cpu in here else (0, 0, 0)), cpu) for n, value in enumerate(written) for cpu in cpus
    }
    assert set(batches[0].values("cpu")) == set(cpus)
    assert len(batches[1]) == 0


KEEP = """
name: test
datasources:
  top:
    annotations:
      ebpf.map.keep-entries: "true"
"""


@pytest.mark.parametrize("kind", ["HASH", "LRU_HASH", "PERCPU_HASH", "LRU_PERCPU_HASH"])
def test_entries_stay_where_the_gadget_says_so(start, kind):
    values = {"map-fetch-interval": "100ms", "map-fetch-count": "3"}
    started = start(COUNTS % {"type": f"BPF_MAP_TYPE_{kind}"}, constants=mine(), values=values, yaml=KEEP)
    calls(range(2000))

    batches = started.batches(1)

    assert len(batches) == 3
    for batch in batches:
        assert sorted(set(batch.values("number"))) == list(range(2000))


def test_every_entry_that_is_made_while_the_map_is_drained_comes_exactly_once(start):
    started = start(HASH_COUNTS, constants=mine(), values={"map-fetch-interval": "5ms"}, yaml=FLUSH)
    stopper = Stopper(started, 60_000, 2)

    seen = numbers(started.batches(100))

    stopper.join()
    # Where the map is full a program cannot make an entry; nor does it run where it interrupts the kernel in the middle
    # of the draining (bpf_disable_instrumentation), which a kernel that is preempted lets happen.
    made = 120_000 - failed(started)
    assert len(seen) == len(set(seen))
    assert 40_000 < made - started.loaded.missed() <= len(seen) <= made


def failed(started) -> int:
    return int.from_bytes((started.loaded.map("gadget.bss").lookup(bytes(4)) or b"")[:8], "little")


def test_interval_zero_and_count_one_fetches_once_at_the_start(start):
    started = start(HASH_COUNTS, constants=mine(), values={"map-fetch-interval": "0", "map-fetch-count": "1"})
    calls(range(3))

    assert [len(batch) for batch in started.batches(0.3)] == [3]


FLUSH = """
name: test
datasources:
  top:
    annotations:
      ebpf.map.flush-on-stop: "true"
"""


def test_a_map_is_flushed_at_the_end_where_the_gadget_says_so(start):
    started = start(HASH_COUNTS, constants=mine(), values={"map-fetch-interval": "0"}, yaml=FLUSH)
    calls(range(4))

    assert [len(batch) for batch in started.batches(0.2)] == [4]


def test_without_interval_and_flush_a_map_is_not_read(start):
    started = start(HASH_COUNTS, constants=mine(), values={"map-fetch-interval": "0"})
    calls(range(4))

    assert started.batches(0.2) == []


def test_a_count_needs_an_interval(start):
    with pytest.raises(ParamError, match='map iterator "top" has count > 1 but interval is zero'):
        start(HASH_COUNTS, values={"map-fetch-interval": "top:0", "map-fetch-count": "2"})


def test_an_interval_for_a_map_that_is_none_is_refused(start):
    with pytest.raises(ParamError, match='map fetch interval found for non-existing iterator "tip"'):
        start(HASH_COUNTS, values={"map-fetch-interval": "tip:1s"})


def test_each_source_can_have_its_own_interval():
    sources = [DataSource("one", Kind.TABLE), DataSource("two", Kind.TABLE), DataSource("three", Kind.TABLE)]
    values = {"map-fetch-interval": "one:2s,two:300ms", "map-fetch-count.three": "5"}

    found = readers.map_schedules(values, sources)

    assert {name: (one.interval_s, one.count) for name, one in found.items()} == {
        "one": (2, 0),
        "two": (0.3, 0),
        "three": (1, 5),
    }


@pytest.mark.parametrize("sizes", [(4, 8), (8, 16), (1, 3), (2, 6), (12, 20), (16, 8)])
def test_keys_and_values_are_put_side_by_side(sizes):
    key_size, value_size = sizes
    keys = [os.urandom(key_size) for _ in range(50)]
    values = [os.urandom(value_size) for _ in range(50)]

    both = readers.joined(b"".join(keys), key_size, b"".join(values), value_size)

    assert both == b"".join(key + value for key, value in zip(keys, values, strict=True))
    assert readers.joined(b"", key_size, b"", value_size) == b""


@pytest.mark.parametrize("sizes", [(4, 8), (8, 16), (1, 3), (2, 6), (12, 20), (16, 8)])
@pytest.mark.parametrize("cpus", [1, 3])
def test_keys_are_put_beside_the_value_of_each_cpu(sizes, cpus):
    key_size, value_size = sizes
    keys = [os.urandom(key_size) for _ in range(50)]
    values = [[os.urandom(value_size) for _ in range(cpus)] for _ in range(50)]
    padding = bytes(-value_size % 8)

    flat = b"".join(value + padding for of_key in values for value in of_key)
    both = readers.joined(b"".join(keys), key_size, flat, value_size, cpus)

    assert both == b"".join(
        key + value + cpu.to_bytes(8, "little")
        for key, of_key in zip(keys, values, strict=True)
        for cpu, value in enumerate(of_key)
    )
    assert readers.joined(b"", key_size, b"", value_size, cpus) == b""


# ------------------------------------------------------------------------------------------------ iterators

TASKS = """
struct task {
	__u32 pid;
	__u32 tid;
};
GADGET_ITER(tasks, task, walk);

SEC("iter/task")
int walk(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;
	struct task row = {};

	if (!task)
		return 0;
	row.pid = task->tgid;
	row.tid = task->pid;
	bpf_seq_write(ctx->meta->seq, &row, sizeof(row));
	return 0;
}
"""


def schedule_yaml(source: str, **annotations: str) -> str:
    lines = "".join(f'      {name}: "{value}"\n' for name, value in annotations.items())
    return f"name: test\ndatasources:\n  {source}:\n    annotations:\n{lines}"


def test_an_iterator_runs_once_at_the_start(start):
    batches = start(TASKS).batches(0.3)

    assert len(batches) == 1
    assert batches[0].source.kind is Kind.TABLE
    seen = set(struct.iter_unpack("=II", batches[0].region.memory))
    assert (os.getpid(), threading.get_native_id()) in seen


def test_an_iterator_runs_as_often_as_its_annotations_say(start):
    yaml = schedule_yaml("tasks", **{"fetch-interval": "100ms", "fetch-count": "2"})
    started = start(TASKS, yaml=yaml)
    before = time.monotonic()
    times = [time.monotonic() - before for batch in started.events.run(0.6) if batch.source.name]

    assert len(times) == 2
    assert 0.09 < times[0] < 0.19
    assert 0.19 < times[1] < 0.29


def test_an_iterator_runs_once_more_at_the_end_where_the_gadget_says_so(start):
    yaml = schedule_yaml("tasks", **{"fetch-interval": "10s", "fetch-count": "0", "ebpf.iter.fetch-on-stop": "true"})

    assert len(start(TASKS, yaml=yaml).batches(0.1)) == 1


def test_half_a_row_is_an_error(start):
    started = start(TASKS.replace("sizeof(row))", "sizeof(row) - !ctx->meta->seq_num)"))

    with pytest.raises(ImageError, match=r'iter "walk" returned an invalid buffer\'s size \d+, expected multiple of 8'):
        started.batches(0.2)


SOCKETS = """
struct endpoint {
	__u32 netns;
	__u32 port;
};
GADGET_ITER(sockets, endpoint, walk);

SEC("iter/tcp")
int walk(struct bpf_iter__tcp *ctx)
{
	struct sock_common *sk = ctx->sk_common;
	struct endpoint row = {};

	if (!sk)
		return 0;
	row.netns = BPF_CORE_READ(sk, skc_net.net, ns.inum);
	row.port = BPF_CORE_READ(sk, skc_num);
	bpf_seq_write(ctx->meta->seq, &row, sizeof(row));
	return 0;
}
"""
LISTEN = """
import socket, sys
with socket.create_server(("127.0.0.1", 0)) as server:
    print(server.getsockname()[1], flush=True)
    sys.stdin.read()
"""


def test_sockets_are_listed_in_every_network_namespace_of_the_host(start):
    own = Path("/proc/self/ns/net").stat().st_ino
    command = ["unshare", "--net", "sh", "-c", f"ip link set lo up && exec python3 -c '{LISTEN}'"]
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other,
    ):
        assert other.stdout and other.stdin
        port = int(other.stdout.readline())
        theirs = Path(f"/proc/{other.pid}/ns/net").stat().st_ino
        batches = start(SOCKETS).batches(0.2)
        other.stdin.close()

        seen = Counter(struct.iter_unpack("=II", batches[0].region.memory))
        assert seen[own, server.getsockname()[1]] == 1
        assert seen[theirs, port] == 1
    assert Path("/proc/thread-self/ns/net").stat().st_ino == own


ELEMENTS = """
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8);
	__type(key, __u32);
	__type(value, __u32);
} pairs SEC(".maps");
struct pair {
	__u32 key;
	__u32 value;
};
GADGET_ITER(elements, pair, walk);
GADGET_ITER_TARGET_MAP(walk, pairs);

SEC("iter/bpf_map_elem")
int walk(struct bpf_iter__bpf_map_elem *ctx)
{
	__u32 *key = ctx->key, *value = ctx->value;
	struct pair row = {};

	if (!key || !value)
		return 0;
	row.key = *key;
	row.value = *value;
	bpf_seq_write(ctx->meta->seq, &row, sizeof(row));
	return 0;
}
"""


def test_an_iterator_walks_the_map_that_the_gadget_names(start):
    started = start(ELEMENTS)
    for number in (1, 2, 3):
        started.loaded.map("pairs").update(number.to_bytes(4, "little"), (number * 10).to_bytes(4, "little"))

    batches = started.batches(0.1)

    assert set(struct.iter_unpack("=II", batches[0].region.memory)) == {(1, 10), (2, 20), (3, 30)}


# ------------------------------------------------------------------------------------------------ other readers


class Pipe:
    def __init__(self, source: DataSource) -> None:
        self.source = source
        self.out, self.into = os.pipe()
        self.texts: list[bytes] = []

    def fileno(self) -> int:
        return self.out

    def read(self):
        self.texts.append(os.read(self.out, 100))
        yield from ()


def test_other_readers_are_served_while_events_pour_in(start):
    pipe = Pipe(DataSource("pipe", Kind.EVENTS))
    started = start(CALLS % {"size": "(1024 * 1024)"}, constants=mine(), prepare=lambda plan: plan.readers.append(pipe))
    stopper = Stopper(started, 100_000)
    os.write(pipe.into, b"now")

    started.batches(20)

    stopper.join()
    assert pipe.texts == [b"now"]


def test_the_trace_pipe_is_logged(start, caplog):
    source = """
const volatile __u32 only_pid = 0;

SEC("tracepoint/syscalls/sys_enter_getpgid")
int enter(void *ctx)
{
	if (bpf_get_current_pid_tgid() >> 32 == only_pid)
		bpf_printk("seen by igrun");
	return 0;
}
"""
    started = start(source, constants=mine(), values={"trace-pipe": "true"})
    calls(range(1))
    with caplog.at_level("INFO", logger="igrun.trace_pipe"):
        started.batches(0.4)

    assert any("seen by igrun" in record.message for record in caplog.records)
