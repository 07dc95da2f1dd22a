"""However a run ends, its exit status tells how, and nothing of it stays behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.kernel

IG = [sys.executable, "-m", "igrun"]
TRACE_OPEN = [*IG, "run", "trace_open", "--host"]


def gadget_programs() -> set[str]:
    """BPF programs in the kernel that a run of trace_open loads."""
    listed = subprocess.run(["bpftool", "-j", "prog", "show"], capture_output=True, text=True, check=True)
    return {
        f"{prog['id']} {prog.get('name')}" for prog in json.loads(listed.stdout) if "ig_open" in prog.get("name", "")
    }


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    mounts = Path("/proc/self/mounts").read_text()
    temporary = set(Path("/tmp").glob("ig*"))
    before = gadget_programs()
    yield
    deadline = time.monotonic() + 5  # the kernel frees programs after a grace period
    while gadget_programs() - before and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not gadget_programs() - before
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_ends_a_run_with_0(number: signal.Signals) -> None:
    run = started()

    run.send_signal(number)

    assert run.wait(10) == 0


def test_a_timeout_ends_a_run_with_0() -> None:
    began = time.monotonic()

    assert subprocess.run([*TRACE_OPEN, "--timeout", "1"], stdout=subprocess.DEVNULL, timeout=20).returncode == 0
    assert 1 <= time.monotonic() - began < 5


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


def test_a_run_whose_reader_went_away_ends_though_nothing_happens() -> None:
    run = started("--comm", "nobody-has-it", stdout=subprocess.PIPE)
    assert run.stdout is not None

    run.stdout.close()

    assert run.wait(5) == 0


def test_an_exception_half_way_undoes_what_was_attached(tmp_path: Path) -> None:
    script = tmp_path / "half.py"
    script.write_text(
        "import igrun, igrun.attach\n"
        "real, calls = igrun.attach.attach, []\n"
        "def failing(*args):\n"
        "    calls.append(args)\n"
        "    if len(calls) == 2: raise igrun.GadgetError('half-way')\n"
        "    return real(*args)\n"
        "igrun.attach.attach = failing\n"
        "try: igrun.run('trace_open', host=True)\n"
        "except igrun.GadgetError as error: print(error)\n"
    )

    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=30, cwd=os.getcwd())

    assert done.stdout == "half-way\n", done.stderr
