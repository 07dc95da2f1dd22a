"""top_syscall counts the system calls of this process."""

import os
import time
from collections import Counter

import pytest

pytestmark = pytest.mark.kernel

CALLS = 1000


@pytest.fixture
def counted(rows_of):
    """What was counted in `act` in all fetches together: (name, system call) -> (count, errors, time, longest)."""

    def counted_(act, **params):
        sums: dict[str, list[int]] = {}
        rows = rows_of("top_syscall", act, timeout_s=2.5, pid=os.getpid(), **params)
        for row in rows:
            one = sums.setdefault(row["syscall"], [0, 0, 0, 0])
            one[0] += row["count"]
            one[1] += row["errors"]
            one[2] += row["latency_raw"]
            one[3] = max(one[3], row["max_latency_raw"])
        return sums

    return counted_


def test_calls_are_counted(counted):
    def act():
        for _ in range(CALLS):
            os.getppid()

    count, errors, latency, longest = counted(act)["SYS_GETPPID"]

    assert (count, errors) == (CALLS, 0)
    assert latency >= longest > 0


def test_failures_are_counted(counted):
    def act():
        for _ in range(CALLS):
            os.access("/absent", os.F_OK)

    found = counted(act)

    name = "SYS_ACCESS" if "SYS_ACCESS" in found else "SYS_FACCESSAT"
    assert found[name][:2] == [CALLS, CALLS]


def test_time_spent_waiting_is_counted(counted):
    _, _, latency, longest = counted(lambda: (time.sleep(0.2), time.sleep(0.1)))["SYS_CLOCK_NANOSLEEP"]

    assert 300_000_000 <= latency < 3_000_000_000
    assert 200_000_000 <= longest <= latency - 100_000_000


def test_each_fetch_tells_what_is_new(rows_of):
    def act():
        for _ in range(CALLS):
            os.getppid()

    rows = rows_of("top_syscall", act, timeout_s=3.5, pid=os.getpid())

    assert Counter(row["syscall"] for row in rows)["SYS_GETPPID"] == 1


def test_a_filter_by_name_holds(rows_of):
    rows = rows_of("top_syscall", timeout_s=1.5, comm="no such process")

    assert rows == []


def test_the_command_prints_json(ig_json):
    rows = ig_json("top_syscall", "--map-fetch-interval", "1s")

    assert sorted(rows[0]) == [
        *("comm", "count", "errors", "latency", "latency_raw", "max_latency", "max_latency_raw"),
        *("mntns_id", "pid", "syscall", "syscall_raw"),
    ]


def test_the_command_prints_columns(ig):
    lines = ig("top_syscall", "--sort=-latency_raw", "--max-entries", "3")

    head = next(line for line in lines if "COMM" in line)
    assert head.split() == ["PID", "COMM", "COUNT", "ERRORS", "SYSCALL", "LATENCY", "MAX_LATENCY"]
    assert any("SYS_" in line for line in lines)
