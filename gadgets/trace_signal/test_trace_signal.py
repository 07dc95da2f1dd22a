"""trace_signal sees the signals that this process sends."""

import os
import signal
import subprocess
import sys
import threading

import pytest

pytestmark = pytest.mark.kernel

NO_PROCESS = 2**22 + 1  # above any process id


@pytest.fixture
def sleeper():
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process.pid
        process.kill()


def test_a_signal_is_seen_with_its_receiver(rows_of, sleeper):
    def wanted(row):
        return row["tpid"] == sleeper

    rows = rows_of("trace_signal", lambda: os.kill(sleeper, signal.SIGUSR1), wanted, pid=os.getpid())

    (row,) = filter(wanted, rows)
    assert (row["sig"], row["sig_raw"], row["error"]) == ("SIGUSR1", 10, "")
    assert row["proc.pid"] == os.getpid()
    assert row["proc.parent.pid"] == os.getppid()


def test_a_signal_of_the_kernel_is_seen(rows_of):
    def act():
        with subprocess.Popen(["yes"], stdout=subprocess.PIPE) as process:
            process.stdout.read(1)
            process.stdout.close()

    rows = rows_of("trace_signal", act, lambda row: row["sig"] == "SIGPIPE", comm="yes")

    assert all(row["tpid"] == row["proc.pid"] for row in rows if row["sig"] == "SIGPIPE")
    assert "SIGPIPE" in [row["sig"] for row in rows]


def test_a_signal_that_cannot_be_sent_is_seen(rows_of):
    def act():
        with pytest.raises(ProcessLookupError):
            os.kill(NO_PROCESS, signal.SIGTERM)

    rows = rows_of("trace_signal", act, lambda row: row["tpid"] == NO_PROCESS, pid=os.getpid())

    assert [(row["sig"], row["error"]) for row in rows if row["tpid"] == NO_PROCESS] == [("SIGTERM", "ESRCH")]


def test_failed_shows_failures_only(rows_of, sleeper):
    def act():
        os.kill(sleeper, signal.SIGUSR1)
        with pytest.raises(ProcessLookupError):
            os.kill(NO_PROCESS, 0)
        with pytest.raises(ProcessLookupError):
            os.kill(NO_PROCESS, signal.SIGINT)

    rows = rows_of("trace_signal", act, lambda row: row["sig"] == "SIGINT", failed=True, pid=os.getpid())

    assert [(row["sig"], row["error"]) for row in rows] == [("SIGINT", "ESRCH")]


def test_kill_only_shows_the_calls_and_each_of_them(rows_of, sleeper):
    def act():
        os.kill(sleeper, 0)
        signal.pthread_kill(threading.get_ident(), 0)
        os.kill(sleeper, signal.SIGKILL)

    rows = rows_of("trace_signal", act, lambda row: row["sig"] == "SIGKILL", kill_only=True, pid=os.getpid())

    calls = [(row["tpid"], row["sig_raw"]) for row in rows]
    assert calls == [(sleeper, 0), (threading.get_native_id(), 0), (sleeper, 9)]


def test_one_signal_can_be_asked_for(rows_of, sleeper):
    def act():
        os.kill(sleeper, signal.SIGCONT)
        os.kill(sleeper, signal.SIGUSR2)

    rows = rows_of("trace_signal", act, lambda row: row["sig"] == "SIGUSR2", signal=12, pid=os.getpid())

    assert [row["sig"] for row in rows] == ["SIGUSR2"]


def test_the_end_of_a_process_is_no_news_to_a_parent_that_does_not_care(rows_of):
    parent = "import os, time; os.fork() or os._exit(0); time.sleep(0.2); os.kill(os.getpid(), 10)"

    def act():
        subprocess.run([sys.executable, "-c", parent])

    rows = rows_of("trace_signal", act, lambda row: row["sig"] == "SIGUSR1")

    sender = next(row["proc.pid"] for row in rows if row["sig"] == "SIGUSR1")
    assert [row["sig"] for row in rows if row["tpid"] == sender] == ["SIGUSR1"]


def test_the_command_prints_json(ig_json, sleeper):
    rows = ig_json("trace_signal", "--pid", str(os.getpid()), act=lambda: os.kill(sleeper, signal.SIGUSR1))

    assert [row["sig"] for row in rows] == ["SIGUSR1"]
    assert sorted(rows[0]) == ["error", "error_raw", "proc", "sig", "sig_raw", "timestamp", "timestamp_raw", "tpid"]


def test_the_command_prints_columns(ig, sleeper):
    head, *lines = ig("trace_signal", "--pid", str(os.getpid()), act=lambda: os.kill(sleeper, signal.SIGUSR2))

    assert head.split() == ["COMM", "PID", "TID", "TPID", "SIG", "ERROR"]
    assert [line.split()[-2:] for line in lines] == [[str(sleeper), "SIGUSR2"]]
