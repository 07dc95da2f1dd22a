"""Programs that run by counters: clocks, page faults, switches, and those of the CPU where it has some."""

import mmap
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from igrun.errors import AttachError, UnsupportedError
from tests.counting import close_and_check, mine
from tests.kernel.networks import HITS
from tests.kernel.test_network import hits
from tests.typetable import COUNTERS, SECTION

pytestmark = pytest.mark.kernel

SEEING = f"""{HITS}
const volatile __u32 only_pid = 0;

SEC("perf_event/sample")
int count(struct bpf_perf_event_data *ctx)
{{
	if (only_pid && bpf_get_current_pid_tgid() >> 32 != only_pid)
		return 0;
	hit(0, 1);
	see(1, ctx->sample_period);
	return 0;
}}
"""


def counter(config: str, kind: str = "software", **more: int) -> str:
    """gadget.yaml of a sampler. more: frequency, period, pid."""
    lines = "".join(
        f"    {'perf' if key == 'pid' else 'sampler'}.{key}: {value}\n"
        for key, value in {**(more or {"period": 1})}.items()
    )
    return f"""name: test
programs:
  sample:
    perf.type: {kind}
    perf.config: {config}
    perf.sampleType: sample_raw
{lines}"""


def spin(seconds: float = 0.3) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


PAGES = 64


def touch_pages() -> None:
    """Fault in so many pages, one by one."""
    with mmap.mmap(-1, PAGES * mmap.PAGESIZE, mmap.MAP_PRIVATE) as memory:
        memory.madvise(15)  # MADV_NOHUGEPAGE
        for at in range(0, len(memory), mmap.PAGESIZE):
            memory[at] = 1


def sleep_often() -> None:
    for _ in range(40):  # where it is slow the time of some has passed before they sleep
        time.sleep(0.001)


def migrate() -> None:
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        raise UnsupportedError("cpu_migrations", "this machine has one CPU")
    try:
        for at in range(20):
            os.sched_setaffinity(0, {cpus[at % 2]})
    finally:
        os.sched_setaffinity(0, cpus)


# what is counted -> how it happens, and how often at least
HAPPENS: dict[str, tuple[Callable[[], None], int]] = {
    "page_faults": (touch_pages, PAGES),
    "page_faults_min": (touch_pages, PAGES),
    "context_switches": (sleep_often, 20),
    "cpu_migrations": (migrate, 10),
}


@pytest.mark.fires
@pytest.mark.parametrize("name", HAPPENS)
def test_a_program_runs_each_time_that_something_happens_and_leaves_nothing(start, name):
    happen, number = HAPPENS[name]
    started = start(SEEING, constants=mine(), yaml=counter(f"count_sw_{name}"))

    happen()

    assert hits(started) >= number
    assert hits(started, 1) == 1
    started.loaded.detach()
    before = hits(started)
    happen()
    assert hits(started) == before
    close_and_check(started)


@pytest.mark.fires
@pytest.mark.parametrize("section", ["perf_event/sample", "perf_event"])
def test_a_program_has_its_options_under_the_name_in_its_section_or_its_own(start, section):
    source, yaml = SEEING.replace("perf_event/sample", section), counter("count_sw_page_faults")
    started = start(source, constants=mine(), yaml=yaml if "/" in section else yaml.replace("sample:", "count:"))

    touch_pages()

    assert hits(started) >= PAGES
    close_and_check(started)


def test_a_period_is_a_number_of_events(start):
    started = start(SEEING, constants=mine(), yaml=counter("count_sw_page_faults", period=8))

    touch_pages()

    # counted on each CPU, whoever faults there
    assert PAGES // 8 - 2 <= hits(started) < PAGES
    assert hits(started, 1) == 8


@pytest.mark.parametrize("clock", ["cpu_clock", "task_clock"])
def test_the_period_of_a_clock_is_in_nanoseconds(start, clock):
    started = start(SEEING, constants=mine(), yaml=counter(f"count_sw_{clock}", period=10_000_000))

    spin()

    assert 10 < hits(started) < 50
    assert hits(started, 1) == 10_000_000


def test_a_major_fault_reads_from_the_disk(start, tmp_path):
    path = Path("/var/tmp") / f"igrun-{os.getpid()}"
    started = start(SEEING, constants=mine(), yaml=counter("count_sw_page_faults_maj"))
    path.write_bytes(bytes(1 << 20))
    try:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as memory:
                assert memory[1 << 19] == 0
        finally:
            os.close(fd)
    finally:
        path.unlink()

    if on_memory(path.parent):
        raise UnsupportedError("page_faults_maj", "the files of this machine lie in memory")
    assert hits(started) >= 1


def on_memory(path: Path) -> bool:
    from igrun.mounts import magic

    return magic(path) in (0x01021994, 0x858458F6, 0x794C7630)  # tmpfs, ramfs, overlay


@pytest.mark.parametrize("name", ["alignment_faults", "emulation_faults", "dummy", "bpf_output", "cgroup_switches"])
def test_what_seldom_happens_can_be_counted_too(start, name):
    started = start(SEEING, yaml=counter(f"count_sw_{name}"))

    assert len(started.loaded.links) == len(started.plan.host.online_cpus)
    close_and_check(started)


# ------------------------------------------------------------------------------------------------ one process

SPINNER = """
import sys, threading, time
def spin():
    end = time.monotonic() + 30
    while time.monotonic() < end: pass
threading.Thread(target=spin, daemon=True).start()
print('up', flush=True)
sys.stdin.readline()
threading.Thread(target=spin, daemon=True).start()
print('two', flush=True)
sys.stdin.readline()
"""


@contextmanager
def spinner() -> Iterator[subprocess.Popen[str]]:
    """A process with a thread that spins, and one more once it is told to."""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", SPINNER], stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout
        process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()


def test_one_process_is_sampled_with_all_of_its_threads_and_nobody_else(start):
    with spinner() as process:
        yaml = counter("count_sw_task_clock", period=1_000_000, pid=process.pid)
        started = start(SEEING, yaml=yaml)
        spin(0.2)
        first = hits(started)
        assert first > 5
        assert process.stdin
        assert process.stdout
        process.stdin.write("\n")
        process.stdin.flush()
        process.stdout.readline()
        time.sleep(0.3)

        assert hits(started) > first
        close_and_check(started)


def test_a_thread_that_comes_later_is_sampled(start):
    release, done = threading.Event(), threading.Event()

    def later() -> None:
        release.wait()
        spin(0.1)
        done.set()

    yaml = counter("count_sw_task_clock", period=1_000_000, pid=os.getpid())
    started = start(SEEING, yaml=yaml)
    before = hits(started)
    thread = threading.Thread(target=later)
    thread.start()
    release.set()
    done.wait()
    thread.join()

    assert hits(started) - before > 50


def test_a_process_that_is_not_there_is_told(start):
    with pytest.raises(
        AttachError, match=r"attach 'count' \(perf_event/sample\) to 'process 4194305': there is no such"
    ):
        start(SEEING, yaml=counter("count_sw_task_clock", period=1_000_000, pid=4_194_305))


def test_a_process_may_end_while_it_is_sampled(start):
    with spinner() as process:
        started = start(SEEING, yaml=counter("count_sw_task_clock", period=1_000_000, pid=process.pid))
    close_and_check(started)


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.fires
@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("hardware", "count_hw_cpu_cycles"),
        ("hw_cache", "count_hw_cache_l1d_read_miss"),
        ("raw", "0xc0"),
    ],
)
def test_counters_of_the_cpu_count_or_are_told_to_be_missing(start, record_property, kind, config):
    record_property(SECTION, COUNTERS)
    try:
        started = start(SEEING, constants=mine(), yaml=counter(config, kind, period=100_000))
    except UnsupportedError as error:
        assert f"this machine has no counter {config} to sample" in str(error)
        assert "perf.type software" in error.hint
        raise
    spin()
    assert hits(started) > 0


def test_a_frequency_above_the_machines_limit_names_the_limit(start):
    limit = Path("/proc/sys/kernel/perf_event_max_sample_rate").read_text().strip()

    with pytest.raises(AttachError, match=rf"perf_event_max_sample_rate \({limit}\)"):
        start(SEEING, yaml=counter("count_sw_cpu_clock", frequency=int(limit) + 1))
