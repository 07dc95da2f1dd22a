"""Every record a gadget produces is delivered, or counted with the reason it was not."""

import select
import subprocess
import sys

import pytest

import igrun
from igrun import Reason

pytestmark = pytest.mark.kernel

OPENS = 60_000
OPENER = f"""
import os, sys
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
        for _ in run:
            if select.select([opener.stdout], [], [], 0)[0]:
                run.stop()
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
