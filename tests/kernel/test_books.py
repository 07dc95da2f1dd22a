"""Every record a gadget produces is delivered, or counted with the reason it was not.

`--hypothesis-profile=many` tries many more ways to run a gadget, and kills it at many more moments.
"""

import functools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

import igrun
from igrun import Reason
from igrun.display import Display
from igrun.errors import GadgetError
from igrun.image import GadgetImage
from igrun.metadata import GadgetMetadata
from igrun.ringbuf import opened
from igrun.runtime import Gadget, Run
from igrun.sink import Sink
from tests.vm.plugin import IN_GUEST

pytestmark = pytest.mark.kernel

# A guest takes seconds for what a machine does in a tenth of one.
EXAMPLES = settings().max_examples // (40 if IN_GUEST in os.environ else 10)
OPENS = 60_000
OPENER = f"""
import os, sys
print("ready", flush=True)
sys.stdin.readline()
for _ in range({OPENS}):
    os.close(os.open("/dev/null", os.O_RDONLY))
print("done", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def opener():
    """A process that opens files as fast as it can once it is told to."""
    with subprocess.Popen([sys.executable, "-c", OPENER], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()  # what it opened until then is none of this
        yield process
        process.kill()


def go(process: subprocess.Popen[bytes]) -> None:
    process.stdin.write(b"\n")
    process.stdin.flush()


@pytest.mark.parametrize("passing", [True, False])
def test_what_was_produced_was_delivered_or_is_counted(opener, passing):
    with igrun.run(
        "trace_open", host=True, pid=opener.pid, filter="fname==/dev/null" if passing else "fd>70000"
    ) as run:
        go(opener)
        threading.Thread(target=lambda: opener.stdout.readline() and run.stop()).start()
        for _ in run:
            pass
        lost = run.lost["open"]

        # A run that the kernel left out, at either end of the call, may have been of another process.
        told = run.delivered["open"] + lost[Reason.KERNEL] + lost[Reason.FILTERED]
        assert OPENS - run.missed <= told <= OPENS
        assert lost[Reason.FILTERED] == 0 if passing else run.delivered["open"] == 0


def test_a_slow_reader_loses_records_and_says_how_many(opener):
    with igrun.run("trace_open", host=True, pid=opener.pid) as run:
        go(opener)
        opener.stdout.readline()  # all is done before anything is read
        run.stop()
        rows = sum(len(batch) for batch in run)

        assert rows == run.delivered["open"] < OPENS
        assert OPENS - run.missed <= rows + run.lost["open"][Reason.KERNEL] <= OPENS


# ------------------------------------------------------------------------------------------------ the equality

CALLS = """
struct event {
	__u64 number;
	__u32 cpu;
	__u8 filler[52];
};
%(map)s
GADGET_TRACER(calls, events, event);
const volatile __u32 first_pid = 0, last_pid = 0;
GADGET_PARAM(first_pid);
GADGET_PARAM(last_pid);
__u64 tried = 0;

SEC("tracepoint/syscalls/sys_enter_getpgid")
int enter(struct trace_event_raw_sys_enter *ctx)
{
	struct event event = { .number = ctx->args[0], .cpu = bpf_get_smp_processor_id() };
	__u32 pid = bpf_get_current_pid_tgid() >> 32;

	if (pid != first_pid && pid != last_pid)
		return 0;
	__sync_fetch_and_add(&tried, 1);
	%(output)s;
	return 0;
}
"""
SIZE = "12 + (event.number & 31)"  # not all records have the whole struct
TRANSPORTS = {
    "ring": CALLS
    % {
        "map": "GADGET_TRACER_MAP(events, 4096);",
        "output": f"gadget_output_buf(ctx, &events, &event, {SIZE})",
    },
    "uncounted": CALLS
    % {
        "map": 'struct { __uint(type, BPF_MAP_TYPE_RINGBUF); __uint(max_entries, 4096); } events SEC(".maps");',
        "output": f"bpf_ringbuf_output(&events, &event, {SIZE}, 0)",
    },
    "perf": CALLS
    % {
        "map": "struct { __uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY); __uint(key_size, 4); __uint(value_size, 4); }"
        ' events SEC(".maps");',
        "output": f"bpf_perf_event_output(ctx, &events, BPF_F_CURRENT_CPU, &event, {SIZE})",
    },
}
CALLER = """
import ctypes, sys, time
getpgid = ctypes.CDLL(None).getpgid
first, last, pause_every = map(int, sys.stdin.readline().split())
for number in range(first, last):
    getpgid(number)
    if pause_every and number % pause_every == 0:
        time.sleep(0.001)
"""


@pytest.fixture(scope="module")
def gadgets(compiled) -> dict[str, Gadget]:
    found = {}
    for name, source in TRANSPORTS.items():
        text = b"name: calls\n"
        image = GadgetImage(
            GadgetMetadata.parse(text, strict=True), text, compiled(source), None, None, "sha256:" + "0" * 64
        )
        found[name] = Gadget.of(image)
    return found


class Callers:
    """Processes that call getpgid, each with numbers of its own, on a CPU of its own."""

    def __init__(self, number: int, calls: int, pause_every: int) -> None:
        self.calls, self.pause_every = calls, pause_every
        cpus = sorted(os.sched_getaffinity(0))
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-c", CALLER],
                stdin=subprocess.PIPE,
                preexec_fn=functools.partial(os.sched_setaffinity, 0, {cpus[turn % len(cpus)]}),
            )
            for turn in range(number)
        ]
        self.pids = [process.pid for process in self.processes]
        self.total = number * calls

    def go(self) -> None:
        for turn, process in enumerate(self.processes):
            span = f"{turn * self.calls} {(turn + 1) * self.calls} {self.pause_every}\n"
            process.stdin.write(span.encode())
            process.stdin.close()

    def wait(self) -> None:
        for process in self.processes:
            process.wait()

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
            with suppress(OSError):
                process.stdin.close()


class Reader(threading.Thread):
    """Reads text to its end. before: called before each part is read, with what was read so far; true: no more."""

    def __init__(self, fd: int, before: Callable[[int], bool]) -> None:
        super().__init__()
        self.fd, self.before, self.text = fd, before, b""
        self.start()

    def run(self) -> None:
        while not self.before(len(self.text)):
            part = os.read(self.fd, 1 << 16)
            if not part:
                break
            self.text += part
        os.close(self.fd)


def perf_buffers_count() -> bool:
    """Since Linux 6.0."""
    fd, counts = opened(min(os.sched_getaffinity(0)), 4096)
    os.close(fd)
    return counts


def tried(run: Run) -> int:
    return int.from_bytes((run._loaded.map("gadget.bss").lookup(bytes(4)) or b"")[:8], "little")


def shown(gadget: Gadget, callers: Callers, sink: str, folder: Path, params: dict[str, object]) -> tuple[Run, bytes]:
    """A run that prints to a sink of that kind while the callers call. Its books are closed; what was printed."""
    done = threading.Event()
    with ExitStack() as stack:
        if sink == "file":
            path = folder / "file"
            path.write_bytes(b"")
            into = os.open(path, os.O_WRONLY)
            reader = None
        else:
            out, into = os.pipe()
            if sink == "non-blocking":
                os.set_blocking(into, False)
            before: dict[str, Callable[[int], bool]] = {
                "slow": lambda length: time.sleep(0.002) is not None,
                "blocked": lambda length: not done.wait(60),
                "closed": lambda length: length > 100_000,
                "closed at once": lambda length: True,
            }
            reader = Reader(out, before.get(sink, lambda length: False))
        stack.callback(os.close, into)
        writes = Sink(into)
        run = stack.enter_context(gadget.run(display=Display(writes, into, sink=writes), output="json", **params))

        def work() -> None:
            callers.go()
            callers.wait()
            done.set()
            run.stop()

        worker = threading.Thread(target=work)
        worker.start()
        try:
            run.show()
            made, missed = tried(run), run.missed
        finally:
            callers.close()
            worker.join()
    if reader:
        reader.join()
    assert sink.startswith("closed") or made + missed == callers.total
    assert made == run.books.made("calls") or not run.countable("calls")
    return run, reader.text if reader else path.read_bytes()


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    transport=st.sampled_from(["ring", "ring", "perf", "uncounted"]),
    ring_kib=st.sampled_from([0, 16, 256, 1024, None]),
    backlog_kib=st.sampled_from([0, 1100, None]),
    number=st.integers(1, 2),
    calls=st.sampled_from([0, 1, 1000, 20_000, 50_000]),
    pause_every=st.sampled_from([0, 0, 10, 1000]),
    sink=st.sampled_from(["fast", "slow", "blocked", "non-blocking", "closed", "closed at once", "file"]),
    passing=st.sampled_from([None, "number>=500", "number<0"]),
    engine=st.sampled_from(["", "reference"]),
)
def test_the_books_balance_however_a_gadget_is_run(
    gadgets,
    tmp_path_factory,
    transport,
    ring_kib,
    backlog_kib,
    number,
    calls,
    pause_every,
    sink,
    passing,
    engine,
):
    params: dict[str, object] = {"loss_records": True}
    if ring_kib is not None:
        params["ring_size"] = ring_kib
    if backlog_kib is not None:
        params["backlog_size"] = backlog_kib
    if passing:
        params["filter"] = passing
    callers = Callers(number, calls, min(pause_every, calls))
    params |= {"first_pid": callers.pids[0], "last_pid": callers.pids[-1]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IGRUN_ENGINE", engine)
        run, text = shown(gadgets[transport], callers, sink, tmp_path_factory.mktemp("books"), params)
    lost, delivered = run.lost["calls"], run.delivered["calls"]
    note(f"delivered {delivered}, {lost}")

    countable = transport == "ring" or (transport == "perf" and perf_buffers_count())
    assert run.countable("calls") is countable
    lines = text.split(b"\n")
    assert sink.startswith("closed") or not lines[-1]
    rows = [json.loads(line) for line in lines[:-1]]
    seen = [row["number"] for row in rows if "@lost" not in row]
    told = [row["@lost"] for row in rows if "@lost" in row]
    assert len(seen) == len(set(seen)) <= delivered + sink.startswith("closed") * callers.total
    assert all(one < callers.total for one in seen)
    assert all(one >= 500 for one in seen) if passing == "number>=500" else not seen or not passing
    assert lost[Reason.CLOSED] == 0 or sink.startswith("closed")
    if not sink.startswith("closed"):
        assert len(seen) == delivered
        if not countable:
            assert told[0] == {"datasource": "calls", "kernel": "not countable"}
            del told[0]
        for reason in (Reason.KERNEL, Reason.BACKLOG):
            assert sum(one.get(reason.value, 0) for one in told) == lost[reason]
        assert sum(sum(one.get("cpus", {}).values()) for one in told) == lost[Reason.KERNEL]
    assert sum(run.books.lost_on["calls"].values()) == lost[Reason.KERNEL]
    assert transport != "uncounted" or Reason.KERNEL not in lost
    assert not countable or Reason.BACKLOG not in lost


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    ring_kib=st.sampled_from([0, 256, None]),
    backlog_kib=st.sampled_from([0, None]),
    calls=st.sampled_from([100, 20_000]),
    leave_after=st.integers(0, 40),
    pause_s=st.sampled_from([0, 0.002, 0.03]),
    passing=st.sampled_from([None, "number>=500"]),
)
def test_the_books_balance_though_nobody_reads_to_the_end(
    gadgets, ring_kib, backlog_kib, calls, leave_after, pause_s, passing
):
    callers = Callers(2, calls, 0)
    given_ = {"ring_size": ring_kib, "backlog_size": backlog_kib, "filter": passing}
    params = {key: value for key, value in given_.items() if value is not None}
    kept = []
    with gadgets["ring"].run(first_pid=callers.pids[0], last_pid=callers.pids[1], **params) as run:
        callers.go()
        threading.Timer(1.5, run.stop).start()
        for turn, batch in enumerate(run):
            kept.append(batch)
            if turn >= leave_after:
                break
            time.sleep(pause_s)
        callers.wait()
        run._loaded.detach()
        made = tried(run)
    callers.close()

    assert run.books.made("calls") == made
    assert run.delivered["calls"] == sum(len(batch) for batch in kept)
    # Batches stay as they are however long they are kept.
    numbers = [number for batch in kept for number in batch.values("number")]
    assert len(numbers) == len(set(numbers)) == run.delivered["calls"]


def test_a_write_that_blocks_loses_nothing_that_fits_into_the_backlog(gadgets, tmp_path):
    callers = Callers(2, 30_000, 20)  # some 4 MB of records
    params = {"ring_size": 2048, "first_pid": callers.pids[0], "last_pid": callers.pids[1]}

    run, text = shown(gadgets["ring"], callers, "blocked", tmp_path, params)

    assert run.lost["calls"].total() == 0
    assert text.count(b"\n") == run.delivered["calls"] == 60_000 - run.missed


def test_without_a_backlog_it_loses_what_the_ring_cannot_hold(gadgets, tmp_path):
    callers = Callers(2, 30_000, 0)
    params = {"ring_size": 1024, "backlog_size": 0, "first_pid": callers.pids[0], "last_pid": callers.pids[1]}

    run, text = shown(gadgets["ring"], callers, "blocked", tmp_path, params)

    assert run.lost["calls"][Reason.KERNEL] > 0
    assert text.count(b"\n") == run.delivered["calls"]


@pytest.mark.parametrize("lossy", [True, False])
def test_losses_fail_a_run_that_is_to_fail_on_them(gadgets, lossy):
    callers = Callers(1, 20_000, 0)
    with gadgets["ring"].run(
        fail_on_loss=True, ring_size=0 if lossy else 8192, first_pid=callers.pids[0], last_pid=callers.pids[0]
    ) as run:
        callers.go()
        callers.wait()
        run.stop()
        if lossy:
            with pytest.raises(GadgetError, match=r"^\d+ records were lost$"):
                list(run)
        else:
            assert sum(len(batch) for batch in run) == 20_000 - run.missed
    callers.close()


# ------------------------------------------------------------------------------------------------ the command

IG = [sys.executable, "-m", "igrun", "run", "trace_open", "--host"]
FAST = """
import os, sys
number = 0
while True:
    try:
        os.open(f"/nowhere/{number}", os.O_RDONLY)
    except OSError:
        number += 1
"""


@pytest.fixture
def failing():
    """A process that fails to open files with numbers, without end."""
    with subprocess.Popen([sys.executable, "-c", FAST]) as process:
        yield process
        process.kill()


def told_of(*flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*IG, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=60)


def slow(process: subprocess.Popen[bytes], *flags: str) -> tuple[int, str]:
    """Exit status and stderr of a run of 3.5 seconds whose output nobody reads for two."""
    command = [*IG, "-o", "json", "--pid", str(process.pid), "--failed", "--timeout", "4", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        assert run.stdout and run.stderr
        time.sleep(2)
        threading.Thread(target=run.stdout.read).start()
        return run.wait(60), run.stderr.read()


def test_losses_are_told_at_most_once_a_second_and_in_all_at_the_end(failing):
    status, said = slow(failing, "--ring-size", "0", "--backlog-size", "0")

    lines = [line for line in said.splitlines() if " records lost: the buffer in the kernel was full (CPU " in line]
    news = [int(line.split()[2]) for line in lines if " more records lost" in line]
    (total,) = [int(line.split()[2]) for line in lines if " more records lost" not in line]
    assert status == 0
    assert 1 <= len(news) <= 4
    assert sum(news) <= total


def test_fail_on_loss_ends_with_an_error_after_the_summary(failing):
    status, said = slow(failing, "--ring-size", "0", "--backlog-size", "0", "--fail-on-loss")

    assert status == 1
    assert said.splitlines()[-2].endswith(" records were lost")


def test_without_losses_fail_on_loss_changes_nothing():
    done = told_of("--timeout", "1", "--comm", "nobody-has-it", "--fail-on-loss", "-v")

    assert done.returncode == 0
    assert "open: 0 records shown; not shown: none" in done.stderr


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    delay_s=st.floats(0, 0.5),
    flags=st.sampled_from([("-o", "json"), ("-o", "columns", "--fields", "fname"), ("-o", "yaml")]),
    appending=st.booleans(),
)
def test_after_kill_9_a_file_holds_whole_records_only(failing, tmp_path_factory, delay_s, flags, appending):
    path = tmp_path_factory.mktemp("kill") / "out"
    path.write_bytes(b"")
    with path.open("ab" if appending else "wb") as file:
        command = [*IG, *flags, "--pid", str(failing.pid), "--failed"]
        run = subprocess.Popen(command, stdout=file, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 30
        while path.stat().st_size < 10_000 and time.monotonic() < end:
            time.sleep(0.002)
        time.sleep(delay_s)
    finally:
        run.kill()
        run.wait()

    text = path.read_text()
    assert text.endswith("\n") or not text
    match flags[1]:
        case "json":
            names = [json.loads(line)["fname"] for line in text.splitlines()]
        case "columns":
            names = text.split()[1:]
        case _:
            records = text.split("---\n")[1:]
            names = [line.removeprefix("fname: ") for line in text.splitlines() if line.startswith("fname: ")]
            assert len(records) == len(names)
            assert all(record.count("\n") == records[0].count("\n") for record in records)
    assert all(name.startswith("/nowhere/") for name in names)
    assert len(set(names)) == len(names)
