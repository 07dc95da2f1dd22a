"""A replay prints what the live run printed, with the same flags, and other views of the same records."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.kernel
IG = (sys.executable, "-m", "igrun")
OPENER = "while :; do cat /etc/hostname /nonexistent >/dev/null 2>&1; sleep 0.002; done"


@pytest.fixture
def opener():
    child = subprocess.Popen(["sh", "-c", OPENER])
    yield
    child.kill()
    child.wait()


def said(*args: object, **more) -> str:
    done = subprocess.run([*IG, *map(str, args)], capture_output=True, text=True, **more)
    assert done.returncode == 0, done.stderr
    return done.stdout


FLAGS = [
    ("-o", "json"),
    ("-o", "columns", "--fields", "proc.comm,error,fname,flags"),
    ("-o", "yaml", "--filter", "proc.comm==cat,error==ENOENT"),
    ("-o", "json", "--filter", "fname~^/etc"),
]


@pytest.mark.parametrize("flags", FLAGS, ids=" ".join)
def test_a_replay_prints_the_bytes_of_the_live_run(opener, tmp_path, flags):
    live = said("run", "trace_open", "--host", "-t", "1", "--record", tmp_path / "x", *flags)

    assert live.count("\n") > 1
    assert said("replay", tmp_path / "x", *flags) == live


def test_a_table_is_replayed(tmp_path):
    live = said("run", "snapshot_process", "--host", "-o", "json", "--record", tmp_path / "x")

    assert said("replay", tmp_path / "x", "-o", "json") == live


def test_a_recording_holds_what_the_filter_left_out(opener, tmp_path):
    said("run", "trace_open", "--host", "-t", "1", "--record", tmp_path / "x", "--filter", "proc.comm==nobody")

    assert "/etc/hostname" in said("replay", tmp_path / "x")


def test_a_run_that_is_killed_leaves_what_it_recorded(opener, tmp_path):
    path = tmp_path / "x"
    child = subprocess.Popen([*IG, "run", "trace_open", "--host", "--record", path], stdout=subprocess.DEVNULL)
    end = time.monotonic() + 20
    image = 1 << 20  # more than the head has
    while (not path.exists() or path.stat().st_size < image) and time.monotonic() < end:
        time.sleep(0.05)
    child.kill()
    child.wait()

    done = subprocess.run([*IG, "replay", path, "-o", "json"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "/etc/hostname" in done.stdout
    assert "has no end" in done.stderr


def test_a_replay_needs_no_rights(opener, tmp_path):
    path = tmp_path / "x"
    live = said("run", "trace_open", "--host", "-t", "1", "-o", "json", "--record", path)
    path.chmod(0o644)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.is_relative_to("/tmp") and folder != Path("/tmp"):
            folder.chmod(0o755)

    bare = ["setpriv", "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"]
    done = subprocess.run([*bare, *IG, "replay", path, "-o", "json"], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == (live, 0), done.stderr


def test_what_is_wrong_is_one_clear_line(tmp_path):
    (tmp_path / "x").write_text("nothing")
    done = subprocess.run([*IG, "replay", str(tmp_path / "x")], capture_output=True, text=True)

    assert done.returncode == 1
    assert done.stderr.splitlines()[0].endswith("is no recording")
