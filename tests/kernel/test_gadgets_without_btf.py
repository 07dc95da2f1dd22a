"""The gadgets that come with igrun, through the command, on a kernel without BTF: from the image, and from BTFHub.

Where the kernel has its own, it is hidden. `make test-nobtf` runs these on a kernel that really has none.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from igrun import data
from igrun.build.btfs import with_btfs
from igrun.image import Objects, pack, unpack
from igrun.oci.store import Store
from tests.kernel.btfless import archive, hidden, hub_with, name, right_btf

pytestmark = pytest.mark.guest

ACTS: dict[str, Callable[[], object]] = {
    "trace_open": lambda: Path("/dev/null").open("rb").close(),
    "trace_exec": lambda: subprocess.run(["true"], check=True),
    "trace_signal": lambda: os.kill(os.getpid(), signal.SIGURG),
    "top_syscall": os.getppid,
}


@pytest.fixture(autouse=True)
def no_kernel_btf(bundled: Path) -> Iterator[None]:
    with hidden():
        yield


@pytest.fixture
def bundled() -> Path:
    """The store of the gadgets that come with igrun."""
    place = data.gadgets()
    if place is None:
        pytest.skip("the bundled gadgets are in the wheel alone: `make test` and `make test-nobtf` install it")
    return place


def ran(
    gadget: str, *flags: str, act: Callable[[], object] = lambda: None, status: int = 0
) -> tuple[list[dict[str, Any]], str]:
    """Run it in JSON until it has shown what this process does; its rows, and what it said."""
    command = [sys.executable, "-m", "igrun", "run", gadget, "--host", "-v", "-o", "json", "--verify-image=false"]
    rows = []
    with subprocess.Popen([*command, *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stderr
        said = ""
        while "running..." not in said and (line := process.stderr.readline()):
            said += line
        act()
        enough = False
        for line in process.stdout:
            rows += flat(json.loads(line))
            if not enough and of_this_process(rows):
                enough = True
                process.send_signal(signal.SIGINT)  # a second one would end it at once
        said += process.stderr.read()
    assert process.returncode == status, said
    return rows, said


def flat(record: Any) -> Sequence[dict[str, Any]]:
    return record if isinstance(record, list) else [record]


def of_this_process(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What they say of the processes that acted: this one, or its child."""
    processes = [row.get("proc", row) for row in rows]
    return [one for one in processes if os.getpid() in (one["pid"], one.get("parent", {}).get("pid"))]


@pytest.mark.parametrize("gadget", ACTS)
def test_a_gadget_runs_with_the_btf_of_btfhub(gadget: str) -> None:
    with hub_with(right_btf()) as hub:
        rows, said = ran(gadget, "--btfhub", hub.url, act=ACTS[gadget])

    assert f"BTF: BTFHub: {hub.url}" in said
    mine = of_this_process(rows)
    assert mine
    # both were read through CO-RE
    assert {one["mntns_id"] for one in mine if "mntns_id" in one} <= {Path("/proc/self/ns/mnt").stat().st_ino}


def test_a_gadget_runs_with_the_btf_that_its_image_brings(bundled: Path, tmp_path: Path) -> None:
    """As `ig image build --btfgen` gives it; compiling it again would take minutes in a guest."""
    kept = tmp_path / f"{name()}.btf.tar.xz"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(archive(right_btf()))
    with Store.open(bundled, writable=False) as store:
        image = unpack(store, "trace_open:latest", "amd64")
    objects, warnings = with_btfs({"amd64": Objects(image.ebpf, image.wasm)}, tmp_path, print)
    with Store.open() as store:
        index = pack(store, image.metadata_text, objects, created="2026-01-01T00:00:00Z", builder_version="1")
        store.tag(index, "ghcr.io/inspektor-gadget/gadget/small:latest")
    rows, said = ran("small", "--pull", "never", act=ACTS["trace_open"])

    assert warnings == ()
    assert "BTF: image: " in said and "mount namespace read with it are right" in said
    (opened,) = [row for row in rows if row["fname"] == "/dev/null" and row["proc"]["pid"] == os.getpid()]
    assert opened["proc"]["mntns_id"] == Path("/proc/self/ns/mnt").stat().st_ino
    assert opened["proc"]["parent"]["pid"] == os.getppid()


@pytest.mark.parametrize("gadget", ["snapshot_process", "snapshot_socket"])
def test_a_gadget_that_needs_btf_in_the_kernel_itself_says_so(gadget: str) -> None:
    with hub_with(right_btf()) as hub:
        rows, said = ran(gadget, "--btfhub", hub.url, status=1)

    assert rows == []
    assert "iter/" in said and "need BTF in" in said
