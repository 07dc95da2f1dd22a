"""However a run ends, its exit status tells how, and nothing of it stays behind."""

import contextlib
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import igrun
from igrun.attach import tracing
from igrun.errors import GadgetError
from igrun.runtime import Gadget

pytestmark = pytest.mark.kernel

IG = [sys.executable, "-m", "igrun"]
TRACE_OPEN = [*IG, "run", "trace_open", "--host"]


def gadget_programs() -> dict[int, set[int]]:
    """Ids of the BPF programs in the kernel that a run of trace_open loads -> the processes that hold them."""
    program = Gadget.open("trace_open").program
    assert program is not None
    names = {hook.program[:15] for hook in program.hooks}
    listed = subprocess.run(["bpftool", "-j", "prog", "show"], capture_output=True, text=True, check=True)
    found: dict[int, set[int]] = {prog["id"]: set() for prog in json.loads(listed.stdout) if prog.get("name") in names}
    for info in Path("/proc").glob("[0-9]*/fdinfo/*"):
        with contextlib.suppress(OSError):
            held = re.search(r"^prog_id:\s*(\d+)", info.read_text(), re.MULTILINE)
            if held and int(held[1]) in found:
                found[int(held[1])].add(int(info.parts[2]))
    return found


def nobodys() -> set[int]:
    """Those of them that no process holds: something else keeps them in the kernel."""
    return {number for number, holders in gadget_programs().items() if not holders}


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    mounts = Path("/proc/self/mounts").read_text()
    temporary = set(Path("/tmp").glob("ig*"))
    before = nobodys()
    yield
    deadline = time.monotonic() + 20  # the kernel frees programs after a grace period, and a busy one has long ones
    while nobodys() - before and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not nobodys() - before
    assert Path("/proc/self/mounts").read_text() == mounts
    assert set(Path("/tmp").glob("ig*")) == temporary


def started(*flags: str, stdout: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
    """A run that has attached everything."""
    run = subprocess.Popen([*TRACE_OPEN, "-v", *flags], stdout=stdout, stderr=subprocess.PIPE, text=True)
    assert run.stderr is not None
    for line in run.stderr:
        if "running..." in line:
            return run
    raise AssertionError(f"it never ran: exit status {run.wait()}")


def test_while_it_runs_its_programs_are_in_the_kernel() -> None:
    run = started()

    there = [number for number, holders in gadget_programs().items() if run.pid in holders]
    run.terminate()

    assert run.wait(10) == 0
    assert len(there) >= 4


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_ends_a_run_with_0(number: signal.Signals) -> None:
    run = started()

    run.send_signal(number)

    assert run.wait(10) == 0


def test_a_timeout_ends_a_run_with_0() -> None:
    began = time.monotonic()

    assert subprocess.run([*TRACE_OPEN, "--timeout", "1"], stdout=subprocess.DEVNULL, timeout=60).returncode == 0
    assert time.monotonic() - began >= 1


def test_what_comes_while_it_is_detached_is_read() -> None:
    opens = (
        "import os, time\nwhile True:\n    for _ in range(20): os.close(os.open('/dev/null', 0))\n    time.sleep(0.001)"
    )
    with subprocess.Popen([sys.executable, "-c", opens]) as busy:
        try:  # the ring is full in 0.2 s; to detach eight programs takes longer
            run = subprocess.run(
                [*TRACE_OPEN, "--timeout", "1", "--ring-size", "1024", "--pid", str(busy.pid), "-o", "json"],
                capture_output=True, text=True, timeout=120,
            )  # fmt: skip
        finally:
            busy.kill()

    assert run.returncode == 0
    assert len(run.stdout.splitlines()) > 100
    assert "lost" not in run.stderr


def test_a_signal_before_anything_runs_ends_with_130() -> None:
    run = subprocess.Popen(TRACE_OPEN, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(0.08)  # the interpreter is up, the program is not loaded yet

    run.send_signal(signal.SIGINT)

    assert run.wait(10) in (130, 0, -signal.SIGINT)


@pytest.mark.parametrize("delay_ms", range(20, 700, 85))
def test_kill_9_at_any_moment_leaves_nothing(delay_ms: int) -> None:
    run = subprocess.Popen(TRACE_OPEN, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(delay_ms / 1000)

    run.kill()

    assert run.wait(10) == -signal.SIGKILL


@pytest.mark.parametrize("mode", ["columns", "json"])
def test_a_closed_stdout_ends_a_run_quietly_with_0(mode: str) -> None:
    run = started("-o", mode, stdout=subprocess.PIPE)
    assert run.stdout is not None and run.stderr is not None

    Path("/etc/hostname").read_text()
    run.stdout.readline()
    run.stdout.close()
    end = time.monotonic() + 10
    while run.poll() is None and time.monotonic() < end:
        Path("/etc/hostname").read_text()
        time.sleep(0.05)

    assert run.wait(1) == 0
    assert "Traceback" not in run.stderr.read()


def test_a_run_without_standard_files_ends_with_0() -> None:
    # the first descriptors it opens would get their numbers
    command = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *TRACE_OPEN, "--timeout", "1"]

    assert subprocess.run(command, timeout=60).returncode == 0


def test_a_run_whose_reader_went_away_ends_though_nothing_happens() -> None:
    run = started("--comm", "nobody-has-it", stdout=subprocess.PIPE)
    assert run.stdout is not None

    run.stdout.close()

    assert run.wait(5) == 0


def test_a_signal_ends_a_run_whose_reader_has_stopped_reading() -> None:
    run = started("-o", "json", stdout=subprocess.PIPE)
    for _ in range(2000):  # more than a pipe holds
        Path("/etc/hostname").read_text()
    time.sleep(0.5)

    run.terminate()

    assert run.wait(10) == 0


def test_a_run_that_is_closed_while_somebody_iterates_gives_nothing_more() -> None:
    run = igrun.run("trace_open", host=True, timeout_s=10)
    batches = iter(run)
    Path("/etc/hostname").read_text()
    next(batches)
    for _ in range(100):  # there is something left to read
        Path("/etc/hostname").read_text()

    run.close()

    assert list(batches) == []
    assert list(run) == []


def test_an_exception_half_way_undoes_what_was_attached(monkeypatch: pytest.MonkeyPatch) -> None:
    real, attached = tracing.attach, []

    def failing(hook, place):
        if len(attached) == 2:
            raise GadgetError("half-way")
        attached.append(real(hook, place))
        return attached[-1]

    monkeypatch.setattr(tracing, "attach", failing)

    with pytest.raises(GadgetError, match="half-way"):
        igrun.run("trace_open", host=True)
    assert len(attached) == 2
