"""Processes that are killed, or work at the same time: a store keeps what it had, and the next attempt completes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from igrun.oci.archive import Archive, restore
from igrun.oci.copy import copy
from igrun.oci.export import export
from igrun.oci.model import INDEX, Descriptor, Index, Manifest
from igrun.oci.store import Store
from tests.images import about, image, legacy

NAME = "ghcr.io/a/pulled:1"
PULL = """
from igrun.oci.copy import copy
from igrun.oci.store import Store

class Slow:
    def __init__(self, store):
        self.store = store
    def __getattr__(self, name):
        return getattr(self.store, name)
    def stream(self, descriptor, start=0):
        data = b"".join(self.store.stream(descriptor))[start:]
        for at in range(0, len(data), 1 << 18):
            yield data[at : at + (1 << 18)]
            time.sleep(0.001)

with Store.open(source, writable=False) as there, Store.open(target) as here:
    copy(Slow(there), here, NAME)
"""
COPY = """
from igrun.oci.copy import copy
from igrun.oci.store import Store
with Store.open(source, writable=False) as there, Store.open(target) as here:
    copy(there, here, NAME)
"""
IMPORT = """
from igrun.oci.archive import Archive, restore
from igrun.oci.store import Store
with Archive.open(archive) as there, Store.open(target) as here:
    restore(there, here)
"""
PRUNE = """
from igrun.oci.store import Store
from igrun.oci.model import INDEX, Descriptor
for n in range(1000):
    with Store.open(target) as here:
        here.keep(here.write("application/layer", b"%d" % n))
    with Store.open(target) as here:
        here.prune(fresh_s=0)
"""
TAG = """
from igrun.oci.store import Store
with Store.open(target) as here:
    for n in range(1000):
        here.tag(here.resolve("ghcr.io/a/before:1"), f"ghcr.io/a/tag{n % 3}:1")
        here.untag(f"ghcr.io/a/tag{n % 3}:1")
"""


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A store with one image of 6 MB and its signatures, and an archive of it."""
    folder = tmp_path_factory.mktemp("given")
    with Store.open(folder / "source") as store:
        root = image(store, bytes(range(256)) * 12_000, bytes(range(255)) * 12_000)
        store.tag(root, NAME)
        about(store, root)
        legacy(store, root)
        export(store, [NAME], folder / "archive.tar")
    return folder


@pytest.fixture
def target(tmp_path):
    """A store with an image that must survive."""
    with Store.open(tmp_path / "target") as store:
        root = image(store, b"before" * 1000)
        store.untag(store.list()[0].name)
        store.tag(root, "ghcr.io/a/before:1")
        about(store, root)
    return tmp_path / "target"


def start(given: Path, target: Path, work: str) -> subprocess.Popen[bytes]:
    """A process that does it."""
    head = (
        "import time\n"
        "import igrun.oci.archive, igrun.oci.copy, igrun.oci.store\n"
        f"source, archive, target = {str(given / 'source')!r}, {str(given / 'archive.tar')!r}, {str(target)!r}\n"
        f"NAME = {NAME!r}\n"
        "print('ready', flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", head + work], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def kill(process: subprocess.Popen[bytes], after_s: float) -> None:
    time.sleep(after_s)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def finish(process: subprocess.Popen[bytes]) -> None:
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors.decode()


def read(store: Store, descriptor: Descriptor) -> None:
    """Read an image and what is about it to the last blob."""
    for one in Index.parse(store.read(descriptor)).manifests if descriptor.media_type == INDEX else (descriptor,):
        manifest = Manifest.parse(store.read(one))
        for blob in (manifest.config, *manifest.layers):
            assert store.has(blob)
    for referrer in store.referrers(descriptor):
        read(store, referrer.descriptor)


def whole(target: Path) -> set[str]:
    """The names in a store, every image read to the last blob. The one that must survive has its signature."""
    with Store.open(target, writable=False) as store:
        names = {one.name for one in store.list() if "/" in one.name}
        for name in names:
            read(store, store.resolve(name))
        assert len(store.referrers(store.resolve("ghcr.io/a/before:1"))) == 1
        if NAME in names:
            # the name comes last, so nothing that verification needs is missing
            assert len(store.referrers(store.resolve(NAME))) == 2
    return names


@pytest.mark.parametrize("work", [PULL, COPY, IMPORT, PRUNE, TAG], ids=["pull", "copy", "import", "prune", "tag"])
def test_a_process_killed_at_any_moment_takes_nothing_with_it(given, target, work):
    for attempt in range(7):
        kill(start(given, target, work), 0.001 + 0.006 * attempt)
        assert "ghcr.io/a/before:1" in whole(target)
    if work in (PULL, COPY, IMPORT):
        finish(start(given, target, work))
        assert NAME in whole(target)
    with Store.open(target) as store:
        store.prune(fresh_s=0)
        assert list((target / "ingest").iterdir()) == []
    whole(target)


def test_a_download_that_was_killed_goes_on_where_it_ended(given, target):
    process = start(given, target, PULL)
    deadline = time.monotonic() + 20
    while not any(path.stat().st_size for path in (target / "ingest").glob("*.part")) and time.monotonic() < deadline:
        time.sleep(0.001)
    kill(process, 0.004)
    left = {path.name.removesuffix(".part"): path.stat().st_size for path in (target / "ingest").glob("*.part")}
    assert any(left.values())

    starts = {}
    with Store.open(given / "source", writable=False) as source, Store.open(target) as store:
        whole_stream = source.stream

        def stream(descriptor, start=0):
            starts[descriptor.digest[7:]] = start
            return whole_stream(descriptor, start)

        source.stream = stream
        copy(source, store, NAME)
    assert {digest: starts[digest] for digest in left} == left
    assert NAME in whole(target)


def test_two_that_pull_the_same_image_get_it_whole(given, target):
    running = [start(given, target, PULL) for _ in range(3)]
    for process in running:
        finish(process)

    assert NAME in whole(target)
    assert list((target / "ingest").iterdir()) == []


def test_pruning_while_others_pull_takes_nothing_from_them(given, target):
    for _ in range(2):
        pruning = start(given, target, PRUNE)
        pulling = start(given, target, PULL)
        finish(pulling)
        kill(pruning, 0)
        assert NAME in whole(target)
        with Store.open(target) as store:
            store.remove(NAME)


def test_removing_while_others_import_takes_nothing_from_them(given, target):
    for _ in range(3):
        importing = start(given, target, IMPORT)
        with Store.open(target) as store:
            root = image(store, os.urandom(10), bytes(range(255)) * 12_000)
            store.tag(root, "ghcr.io/a/other:1")
            store.remove("ghcr.io/a/other:1")
        finish(importing)
        assert NAME in whole(target)


def test_an_import_after_a_crash_completes(given, target):
    with Archive.open(given / "archive.tar") as archive, Store.open(target) as store:
        (target / "ingest" / ("0" * 64 + ".part")).write_bytes(b"left")
        restore(archive, store)
    assert NAME in whole(target)
