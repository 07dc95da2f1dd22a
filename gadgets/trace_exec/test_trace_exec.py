"""trace_exec sees what this process runs."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.kernel

SPACE = "\u00a0"
TRUE = "/bin/true"
NOBODY = 4294967295


def fork(child):
    """Run `child` in a process of its own, and wait for it."""
    pid = os.fork()
    if not pid:
        try:
            child()
        finally:
            os._exit(1)
    os.waitpid(pid, 0)
    return pid


@pytest.fixture
def seen(rows_of):
    """The row whose arguments begin with `args`."""

    def seen_(args, act, **params):
        def wanted(row):
            return row["args"].split(SPACE)[: len(args)] == args

        rows = [row for row in rows_of("trace_exec", act, wanted, **params) if wanted(row)]
        assert len(rows) == 1
        return rows[0]

    return seen_


def test_a_program_is_seen_with_its_arguments(seen):
    pids = []

    row = seen(["one", "two words", ""], lambda: pids.append(fork(lambda: os.execv(TRUE, ["one", "two words", ""]))))

    assert row["args"] == f"one{SPACE}two words{SPACE}"
    assert (row["args_count"], row["args_size"]) == (3, len(row["args"].encode()))
    assert row["proc.comm"] == "true"
    assert row["proc.pid"] == row["proc.tid"] == pids[0]
    assert row["proc.parent.pid"] == os.getpid()
    assert row["error"] == ""


def test_a_file_descriptor_can_be_run(seen):
    def act():
        with open(TRUE, "rb") as program:
            fork(lambda: os.execve(program.fileno(), ["by-descriptor"], {}))

    assert seen(["by-descriptor"], act, paths=True)["exepath"].endswith("/true")


def test_what_runs_is_told_from_the_file_system(seen):
    row = seen(["facts"], lambda: fork(lambda: os.execv(TRUE, ["facts"])))

    status = Path(TRUE).stat()
    assert row["ctime"] == row["fctime"] == status.st_ctime_ns
    assert row["pctime"] == Path(sys.executable).stat().st_ctime_ns
    assert row["inode"] == status.st_ino
    # Of a folder's: overlay file systems show another device for most of their files.
    device = Path(TRUE).resolve().parent.stat().st_dev
    assert (row["dev_major"], row["dev_minor"]) == (os.major(device), os.minor(device))
    assert (row["cwd"], row["file"], row["exepath"], row["parent_exepath"]) == ("", "", "", "")


def test_the_login_is_that_of_the_process(seen):
    row = seen(["login"], lambda: fork(lambda: os.execv(TRUE, ["login"])))

    # Not there without CONFIG_AUDIT.
    login, session = Path("/proc/self/loginuid"), Path("/proc/self/sessionid")
    assert row["loginuid"] == (int(login.read_text()) if login.exists() else NOBODY)
    assert row["sessionid"] == (int(session.read_text()) if session.exists() else NOBODY)
    if row["loginuid"] == NOBODY:
        assert row["loginuser"] == f"uid:{NOBODY}"


def test_paths_shows_what_runs_and_what_ran_it(seen, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    row = seen(["paths"], lambda: fork(lambda: os.execv(TRUE, ["paths"])), paths=True)

    assert row["cwd"].endswith(str(tmp_path))
    assert row["file"] == row["exepath"]
    assert row["exepath"].endswith(os.path.realpath(TRUE))
    assert row["parent_exepath"].endswith(os.path.realpath(sys.executable))


def test_a_script_is_the_file_and_its_interpreter_the_executable(seen, tmp_path, monkeypatch):
    script = tmp_path / "script.sh"
    script.write_text("#!/bin/sh\nexit 0\n")
    script.chmod(0o755)
    monkeypatch.chdir(tmp_path)

    row = seen(["./script.sh", "x"], lambda: subprocess.run(["./script.sh", "x"], check=True), paths=True)

    assert row["file"].endswith(f"{tmp_path}/./script.sh")
    assert row["exepath"].endswith(os.path.realpath("/bin/sh"))
    assert row["proc.comm"] == "script.sh"


def test_an_interpreters_script_has_an_absolute_name(seen, tmp_path):
    script = tmp_path / "script.sh"
    script.write_text("#!/bin/sh\nexit 0\n")
    script.chmod(0o755)

    row = seen([str(script)], lambda: subprocess.run([script], check=True), paths=True)

    assert row["file"] == str(script)


def test_failures_are_left_out(rows_of):
    def act():
        fork(lambda: os.execv("/absent/program", ["fails"]))
        fork(lambda: os.execv(TRUE, ["last"]))

    rows = rows_of("trace_exec", act, lambda row: row["args"] == "last")

    assert "fails" not in [row["args"] for row in rows]


def test_failures_are_shown_where_asked_for(seen):
    row = seen(["fails"], lambda: fork(lambda: os.execv("/absent/program", ["fails"])), ignore_failed=False)

    assert (row["error"], row["error_raw"]) == ("ENOENT", 2)


def test_twenty_arguments_are_seen(seen):
    args = [f"{n:02}" for n in range(25)]

    row = seen(args[:20], lambda: fork(lambda: os.execv(TRUE, args)))

    assert row["args"] == SPACE.join(args[:20])
    assert row["args_count"] == 20


def test_long_arguments_are_cut(seen):
    args = [f"{n:02}" + "x" * 300 for n in range(20)]

    row = seen([args[0][:255]], lambda: fork(lambda: os.execv(TRUE, args)))

    found = row["args"].split(SPACE)
    assert found[:19] == [arg[:255] for arg in args[:19]]
    assert len(row["args"].encode()) == 20 * 256


def test_a_program_without_arguments_is_seen(rows_of):
    def act():
        pids.append(fork(lambda: ctypes.CDLL(None).execve(TRUE.encode(), None, None)))

    pids: list[int] = []
    rows = rows_of("trace_exec", act, lambda row: row["proc.pid"] in pids)

    # Linux 5.18 (dcd46d897adb, "exec: Force single empty string when argv is empty") gives it an empty one.
    assert [row["args"] for row in rows if row["proc.pid"] in pids] == [""]


def test_a_thread_becomes_its_process(seen):
    program = f"import os, threading; threading.Thread(target=os.execv, args=({TRUE!r}, ['by-thread'])).start()"

    row = seen(["by-thread"], lambda: subprocess.run([sys.executable, "-c", program], check=True))

    assert row["proc.tid"] == row["proc.pid"]


def test_a_terminal_is_told_by_its_number(seen):
    def child():
        os.setsid()
        _, other = os.openpty()
        # The first terminal that the leader of a session opens becomes its own.
        os.open(os.ttyname(other), os.O_RDWR)
        os.execv(TRUE, ["on-terminal", str(os.minor(os.fstat(other).st_rdev))])

    row = seen(["on-terminal"], lambda: fork(child))

    assert row["tty_major"] == 136
    assert row["tty_minor"] == int(row["args"].split(SPACE)[1])
    assert row["tty"] == os.makedev(row["tty_major"], row["tty_minor"])


def test_filters_look_at_the_new_program(rows_of):
    def act():
        fork(lambda: os.execv(TRUE, ["true"]))
        fork(lambda: os.execv("/bin/sleep", ["sleep", "0"]))

    rows = rows_of("trace_exec", act, lambda row: row["proc.comm"] == "sleep", comm="sleep")

    assert {row["proc.comm"] for row in rows} == {"sleep"}


def test_the_command_prints_json_without_the_arguments_sizes(ig_json):
    rows = ig_json("trace_exec", act=lambda: fork(lambda: os.execv(TRUE, ["json", "here"])))

    (row,) = [row for row in rows if row["args"] == f"json{SPACE}here"]
    assert sorted(row) == [
        *("args", "ctime", "cwd", "dev_major", "dev_minor", "error", "error_raw", "exepath", "fctime", "file"),
        *("file_from_rootfs", "from_rootfs", "fupper_layer", "inode", "loginuid", "loginuser", "parent_exepath"),
        *("pctime", "proc", "pupper_layer", "sessionid", "timestamp", "timestamp_raw", "tty", "tty_major"),
        *("tty_minor", "upper_layer"),
    ]


def test_the_command_prints_columns(ig):
    head, *lines = ig("trace_exec", act=lambda: fork(lambda: os.execv(TRUE, ["cols", "x"])))

    assert head.split() == ["COMM", "PID", "TID", "TTY", "ARGS", "ERROR"]
    assert any(r"cols\u00a0x" in line for line in lines)
