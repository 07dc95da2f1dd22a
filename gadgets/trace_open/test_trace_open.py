"""trace_open sees what this process opens."""

import ctypes
import os
import platform
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.kernel

LIBC = ctypes.CDLL(None, use_errno=True)
AT_FDCWD = -100
SYS_OPENAT2 = 437
SYS_OPEN, SYS_CREAT = 2, 85  # of amd64; arm64 has none of them
OLD_CALLS = pytest.mark.skipif(platform.machine() != "x86_64", reason="arm64 has no open and no creat")


def fail_to_open(path):
    with pytest.raises(OSError):
        os.open(path, os.O_RDONLY)


@pytest.fixture
def seen(rows_of):
    """The row of the one file that this process opens in `act`."""

    def seen_(name, act, **params):
        def wanted(row):
            return row["fname"] == str(name)

        rows = [row for row in rows_of("trace_open", act, wanted, pid=os.getpid(), **params) if wanted(row)]
        assert len(rows) == 1
        return rows[0]

    return seen_


def test_a_file_that_is_opened_is_seen_with_the_process_that_opens_it(seen, tmp_path):
    path = tmp_path / "read"
    path.touch()

    row = seen(path, lambda: os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK)))

    assert row["error"] == ""
    assert row["fd"] > 2
    assert row["flags"] == "O_RDONLY|O_NONBLOCK|O_CLOEXEC"
    assert row["proc.pid"] == row["proc.tid"] == os.getpid()
    assert row["proc.parent.pid"] == os.getppid()
    assert row["proc.creds.uid"] == os.getuid()
    assert row["proc.comm"] == Path("/proc/self/comm").read_text().strip()
    assert row["proc.mntns_id"] == Path("/proc/self/ns/mnt").stat().st_ino


def test_a_file_that_is_not_there_is_seen_with_its_error(seen, tmp_path):
    path = tmp_path / "absent"

    row = seen(path, lambda: fail_to_open(path))

    assert (row["error"], row["error_raw"], row["fd"]) == ("ENOENT", 2, 0)


def test_failed_shows_failures_only(rows_of, tmp_path):
    def act():
        (tmp_path / "good").touch()
        fail_to_open(tmp_path / "bad")

    rows = rows_of("trace_open", act, lambda row: row["fname"].endswith("bad"), pid=os.getpid(), failed=True)

    assert str(tmp_path / "bad") in [row["fname"] for row in rows]
    assert all(row["error"] for row in rows)


def test_the_mode_counts_only_where_a_file_is_created(seen, tmp_path):
    path = tmp_path / "file"

    created = seen(path, lambda: os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o640)))
    opened = seen(path, lambda: os.close(os.open(path, os.O_RDONLY, 0o777)))

    assert (created["mode_raw"], created["mode"]) == (0o640, "-rw-r-----")
    assert (opened["mode_raw"], opened["mode"]) == (0, "----------")


def test_a_file_without_a_name_has_a_mode(seen, tmp_path):
    row = seen(tmp_path, lambda: os.close(os.open(tmp_path, os.O_TMPFILE | os.O_RDWR, 0o600)))

    assert row["mode_raw"] == 0o600


def test_openat2_is_seen(seen, tmp_path):
    path = tmp_path / "file"
    how = (ctypes.c_uint64 * 3)(os.O_CREAT | os.O_WRONLY, 0o604, 0)

    row = seen(path, lambda: os.close(LIBC.syscall(SYS_OPENAT2, AT_FDCWD, os.fsencode(path), how, 24)))

    assert (row["flags"], row["mode_raw"]) == ("O_WRONLY|O_CREAT", 0o604)


@OLD_CALLS
def test_open_is_seen(seen, tmp_path):
    path = tmp_path / "file"

    row = seen(path, lambda: os.close(LIBC.syscall(SYS_OPEN, os.fsencode(path), os.O_CREAT | os.O_RDWR, 0o611)))

    assert (row["flags"], row["mode_raw"]) == ("O_RDWR|O_CREAT", 0o611)


@OLD_CALLS
def test_creat_is_seen_with_the_flags_it_stands_for(seen, tmp_path):
    path = tmp_path / "file"

    row = seen(path, lambda: os.close(LIBC.syscall(SYS_CREAT, os.fsencode(path), 0o600)))

    assert (row["flags"], row["mode_raw"]) == ("O_WRONLY|O_CREAT|O_TRUNC", 0o600)


def test_paths_shows_where_a_name_leads(seen, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    monkeypatch.chdir(tmp_path)

    row = seen("./link", lambda: os.close(os.open("./link", os.O_RDONLY)), paths=True)
    plain = seen("./link", lambda: os.close(os.open("./link", os.O_RDONLY)))

    assert row["fpath"].endswith(str(tmp_path / "file"))
    assert plain["fpath"] == ""


def test_a_name_that_is_too_long_is_cut(seen, tmp_path):
    long = f"{tmp_path}/" + "x/" * 200

    row = seen(long[:254], lambda: fail_to_open(long))

    assert row["error"] == "ENOENT"


def test_a_name_nowhere_in_memory_is_seen_empty(seen):
    row = seen("", lambda: LIBC.syscall(SYS_OPENAT2, AT_FDCWD, ctypes.c_void_p(8), ctypes.c_void_p(8), 24))

    assert row["error"] == "EFAULT"


def test_collect_ustack_tells_the_executable(seen, tmp_path):
    path = tmp_path / "file"

    row = seen(path, path.touch, collect_ustack=True)

    executable = Path("/proc/self/exe").stat()
    assert row["ustack.inode"] == executable.st_ino
    # Of a folder's: overlay file systems show another device for most of their files.
    device = Path("/proc/self/exe").resolve().parent.stat().st_dev
    assert (row["ustack.major"], row["ustack.minor"]) == (os.major(device), os.minor(device))
    assert row["ustack.mtime_sec"] == int(executable.st_mtime)
    assert row["ustack.tgid_level0"] == os.getpid()
    assert row["ustack.stack_id"] < 0xFFFFFF00


def test_the_command_prints_the_row_as_json(ig_json, tmp_path):
    path = tmp_path / "file"
    path.write_text("")

    rows = ig_json("trace_open", "--comm", "cat", act=lambda: subprocess.run(["cat", path], check=True))

    (row,) = [row for row in rows if row["fname"] == str(path)]
    assert sorted(row) == [
        *("error", "error_raw", "fd", "flags", "flags_raw", "fname", "fpath", "mode", "mode_raw", "proc"),
        *("timestamp", "timestamp_raw", "ustack"),
    ]
    assert {row["proc"]["comm"] for row in rows} == {"cat"}


def test_the_command_prints_columns(ig, tmp_path):
    path = tmp_path / "f"
    path.write_text("")

    head, *lines = ig("trace_open", "--comm", "cat", act=lambda: subprocess.run(["cat", path], check=True))

    assert head.split() == ["COMM", "PID", "TID", "FD", "FNAME", "FPATH", "ERROR", "MODE"]
    assert any(str(path)[:20] in line for line in lines)
