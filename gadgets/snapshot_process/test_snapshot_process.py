"""snapshot_process shows what /proc shows."""

import os
import threading
from pathlib import Path

import pytest

pytestmark = pytest.mark.kernel


@pytest.fixture
def second_thread():
    """The id of another thread of this process."""
    ready, done = threading.Event(), threading.Event()
    ids = []

    def wait():
        ids.append(threading.get_native_id())
        ready.set()
        done.wait()

    thread = threading.Thread(target=wait)
    thread.start()
    ready.wait()
    yield ids[0]
    done.set()
    thread.join()


def test_this_process_is_shown(rows_of):
    rows = rows_of("snapshot_process", pid=os.getpid())

    (row,) = rows
    assert (row["pid"], row["tid"]) == (os.getpid(), os.getpid())
    assert row["comm"] == Path("/proc/self/comm").read_text().strip()
    assert row["mntns_id"] == Path("/proc/self/ns/mnt").stat().st_ino
    assert (row["creds.uid"], row["creds.gid"]) == (os.getuid(), os.getgid())
    assert row["parent.pid"] == os.getppid()
    assert row["parent.comm"] == Path(f"/proc/{os.getppid()}/comm").read_text().strip()


def test_all_processes_are_shown(rows_of):
    before = {int(path.name) for path in Path("/proc").glob("[0-9]*")}
    shown = {row["pid"] for row in rows_of("snapshot_process")}
    after = {int(path.name) for path in Path("/proc").glob("[0-9]*")}

    # Machines exist on which BPF does not see process 1.
    assert before & after - {1} <= shown


def test_threads_are_shown_where_asked_for(rows_of, second_thread):
    without = rows_of("snapshot_process", pid=os.getpid())
    threads = rows_of("snapshot_process", pid=os.getpid(), threads=True)

    assert second_thread not in [row["tid"] for row in without]
    assert second_thread in [row["tid"] for row in threads]
    assert {row["pid"] for row in threads} == {os.getpid()}


def test_filters_hold(rows_of):
    name = Path("/proc/self/comm").read_text().strip()

    assert {row["comm"] for row in rows_of("snapshot_process", comm=name)} == {name}
    assert rows_of("snapshot_process", comm="no such process") == []
    assert {row["creds.uid"] for row in rows_of("snapshot_process", uid=os.getuid())} == {os.getuid()}
    assert rows_of("snapshot_process", tid=os.getpid())[0]["pid"] == os.getpid()


def test_the_command_prints_json(ig_json):
    rows = ig_json("snapshot_process", "--pid", str(os.getpid()))

    (row,) = rows
    assert sorted(row) == ["comm", "creds", "mntns_id", "parent", "pid", "tid"]
    assert sorted(row["parent"]) == ["comm", "pid", "tid"]


def test_the_command_prints_columns(ig):
    head, line = ig("snapshot_process", "--pid", str(os.getpid()))

    assert head.split() == ["COMM", "PID", "TID"]
    assert line.split()[-2:] == [str(os.getpid())] * 2
