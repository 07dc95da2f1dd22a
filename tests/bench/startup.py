"""How long `ig` takes to start: python startup.py [--ig COMMAND] [--runs N].

Prints the median of each, in ms, beside that of an empty Python program, and the ratio of the two. The last lines are
`ig run` from exec to the first event it prints, also of an image that was built here, alone in the store and among
5,000; they need root, the last ones clang too.
"""

import argparse
import ctypes
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from mmap import mmap
from pathlib import Path

GADGET = Path(__file__).parents[2] / "gadgets" / "trace_open"
IMAGES = 5000
CLONE_NEWNS = 0x20000
LIBC = ctypes.CDLL(None, use_errno=True)
REF_NAME = "org.opencontainers.image.ref.name"
LIMITS_MS = {"ig --help": 60.0, "ig run, exec to first event": 250.0}


def main() -> int:
    """Measure and print; 1 if a limit is passed."""
    read = argparse.ArgumentParser(description=__doc__)
    beside = Path(sys.executable).parent / "ig"
    read.add_argument("--ig", default=str(beside) if beside.exists() else f"{sys.executable} -m igrun")
    read.add_argument("--runs", type=int, default=15)
    given = read.parse_args()
    ig = shlex.split(given.ig)

    measured = {
        "python -c pass": lambda: seconds([sys.executable, "-c", "pass"]),
        "python -c 'import click'": lambda: seconds([sys.executable, "-c", "import click"]),
        "ig --help": lambda: seconds([*ig, "--help"]),
        "ig run trace_open --help": lambda: seconds([*ig, "run", "trace_open", "--help"]),
    }
    if os.geteuid() != 0:
        return table(measured, given.runs)
    run = [*ig, "run", "trace_open", "--host"]
    measured["ig run, exec to first event"] = lambda: first_event(run)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for count in (1, IMAGES):
            apart = with_store(Path(folder) / str(count), ig, count)
            measured[f"  of a store with {count} image{'s'[: count - 1]}"] = lambda apart=apart: first_event(run, apart)
            measured[f"ig image list, {count}"] = lambda apart=apart: seconds([*ig, "image", "list"], apart)
        return table(measured, given.runs)


def with_store(folder: Path, ig: list[str], count: int) -> Callable[[], None]:
    """A mount namespace with an image store of its own, trace_open among so many images: what enters it."""
    from igrun.image import Objects, pack
    from igrun.oci.store import Store

    folder.mkdir()
    Path("/var/lib/ig").mkdir(mode=0o755, exist_ok=True)
    bind = ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /var/lib/ig && echo && exec cat', str(folder)]
    with subprocess.Popen(bind, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as there:
        assert there.stdout
        there.stdout.readline()
        namespace = os.open(f"/proc/{there.pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)  # it lives as long as this is open
        there.communicate()
    here = Path.cwd()

    def enter() -> None:
        if LIBC.setns(namespace, CLONE_NEWNS):
            raise OSError(ctypes.get_errno(), "setns")
        os.chdir(here)

    build = [*ig, "image", "build", str(GADGET), "-t", "trace_open"]
    subprocess.run(build, check=True, capture_output=True, preexec_fn=enter)
    with Store.open(folder / "oci-store") as store:
        objects = {one: Objects(ebpf=b"\x7fELF") for one in ("amd64", "arm64")}
        index = pack(store, b"name: other\n", objects, created="2026-01-01T00:00:00Z", builder_version="1")
        store.tag(index, "example.org/other/image0:v1")
    # Their entries alone: what they are made of is not read.
    path = folder / "oci-store" / "index.json"
    whole = json.loads(path.read_bytes())
    entries = whole["manifests"]
    whole["manifests"] = [
        *({**entries[-1], "annotations": {REF_NAME: f"example.org/g/image{n}:v1"}} for n in range(count - 1)),
        *entries[:-1],
    ]
    path.write_text(json.dumps(whole, separators=(",", ":")))
    return enter


def table(measured: dict[str, Callable[[], float]], runs: int) -> int:
    """Print a line for each; the exit code."""
    times: dict[str, list[float]] = {name: [] for name in measured}
    for measure in measured.values():  # once for the caches
        measure()
    for _ in range(runs):  # in turn, so that what else the machine does disturbs them alike
        for name, measure in measured.items():
            times[name].append(measure() * 1000)
    base = statistics.median(times["python -c pass"])
    status = 0
    print(f"{'':30} {'median':>9} {'best':>9} {'ratio':>7} {'limit':>9}")
    for name, found in times.items():
        median, limit = statistics.median(found), LIMITS_MS.get(name)
        told = f"{limit:6.0f} ms" if limit else ""
        print(f"{name:30} {median:6.1f} ms {min(found):6.1f} ms {median / base:6.1f}x {told:>9}")
        status |= limit is not None and median > limit
    return int(status)


def seconds(command: list[str], apart: Callable[[], None] | None = None) -> float:
    """From exec to exit. apart: what the process does before."""
    clock = Clock(apart)
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True, preexec_fn=clock.start)
    return clock.passed()


class Clock:
    """Tells how long ago a child came to its exec: to fork a large process, and what is done then, is not the child's.

    before: what is done in the child
    """

    def __init__(self, before: Callable[[], None] | None) -> None:
        self._before = before
        self._started = memoryview(mmap(-1, 8)).cast("d")  # shared with the child

    def start(self) -> None:
        """The last thing before exec."""
        if self._before:
            self._before()
        self._started[0] = time.monotonic()

    def passed(self) -> float:
        return time.monotonic() - self._started[0]


def first_event(command: list[str], apart: Callable[[], None] | None = None) -> float:
    """From exec to the first line below the header, while a thread opens a file again and again.

    apart: what the process does before
    """
    done = threading.Event()

    def opens() -> None:
        while not done.wait(0.002):
            Path("/dev/null").open("rb").close()

    thread = threading.Thread(target=opens)
    thread.start()
    try:
        clock = Clock(apart)
        with subprocess.Popen(command, stdout=subprocess.PIPE, preexec_fn=clock.start) as process:
            assert process.stdout
            process.stdout.readline()
            process.stdout.readline()
            took = clock.passed()
            process.terminate()
    finally:
        done.set()
        thread.join()
    return took


if __name__ == "__main__":
    sys.exit(main())
