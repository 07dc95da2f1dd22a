"""Killed at any moment, igrun leaves a store that has what it had, and the next attempt works."""

import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from igrun.image import unpack
from igrun.oci.store import Store
from tests.registry.machine import Ig, attach, large, put
from tests.registry.plugin import OPTION

pytestmark = pytest.mark.root
FEW, MANY = 3, 60
OLD = ("example.org/g/old:v1", "example.org/g/older:v1")
NEW = "example.org/g/new:v1"
SIZE = 3 << 20
GADGET = Path(__file__).parent.parent.parent / "gadgets/trace_open"


@dataclass
class Work:
    """A command to kill. before: makes the store as it is to find it"""

    arguments: tuple[str | Path, ...]
    before: Callable[[Store], object]
    done: Callable[[], bool]


def whole(ig: Ig, before: set[tuple[str, str]]) -> None:
    """The store has every name that it had, and every image of it can be read to the last byte."""
    with ig.store(writable=False) as store:
        there = {(name, descriptor.digest) for name, descriptor in store.list()}
        assert before <= there
        for name, descriptor in store.list():
            for architecture in ("amd64", "arm64"):
                if "/" in name:
                    unpack(store, descriptor, architecture)
        for name in OLD:
            assert len(store.referrers(store.resolve(name))) == 1


@pytest.fixture
def old(ig) -> Ig:
    """A machine with two images and something about each."""
    with ig.store() as store:
        for name, content in zip(OLD, (b"old", b"older"), strict=True):
            attach(store, put(store, name, content, content), "application/vnd.example.sbom")
    return ig


def has(ig: Ig, name: str) -> bool:
    with ig.store(writable=False) as store:
        return any(one.name == name for one in store.list())


def remove(store: Store, name: str) -> None:
    if any(one.name == name for one in store.list()):
        store.remove(name)


def litter(store: Store) -> None:
    """Put an image there that has no name, old enough for nobody to want it."""
    large(store, NEW, SIZE)
    store.untag(NEW)
    past = time.time() - 7 * 24 * 3600
    for path in (store.root / "blobs/sha256").iterdir():
        os.utime(path, (past, past))


@pytest.fixture
def pull(old, another_ig, plain, repository) -> Work:
    name, way = plain.named(repository), ("--insecure-registries", plain.address)
    with another_ig.store() as store:
        large(store, name, SIZE)
    another_ig("image", "push", name, *way)
    return Work(("image", "pull", name, *way), lambda store: remove(store, name), lambda: has(old, name))


@pytest.fixture
def push(old, plain, repository) -> Work:
    """The image has other bytes each time, else there was nothing to send."""
    name, way = plain.named(repository), ("--insecure-registries", plain.address)
    sent = []
    return Work(
        ("image", "push", name, *way),
        lambda store: sent.append(large(store, name, SIZE).digest),
        lambda: plain.digest(repository) == sent[-1],
    )


@pytest.fixture
def import_(old, another_ig, tmp_path) -> Work:
    archive = tmp_path / "it.tar"
    with another_ig.store() as store:
        large(store, NEW, SIZE)
    another_ig("image", "export", NEW, archive)
    return Work(("image", "import", archive), lambda store: remove(store, NEW), lambda: has(old, NEW))


@pytest.fixture
def prune(old) -> Work:
    return Work(("image", "prune"), litter, lambda: True)


@pytest.fixture
def build(old, tool) -> Work:
    command = ("image", "build", GADGET, "-t", NEW, "--local")
    return Work(command, lambda store: remove(store, NEW), lambda: has(old, NEW))


@pytest.fixture
def remove_(old) -> Work:
    return Work(("image", "remove", NEW), lambda store: large(store, NEW, SIZE), lambda: not has(old, NEW))


@pytest.mark.parametrize("what", ["pull", "push", "import_", "prune", "build", "remove_"])
def test_a_store_survives_kills(what, ig, request, measured):
    work: Work = request.getfixturevalue(what)
    kills = MANY if request.config.getoption(OPTION) else FEW
    seed = random.randrange(1 << 32)
    moments = random.Random(seed)
    with ig.store(writable=False) as store:
        before = {(name, descriptor.digest) for name, descriptor in store.list() if name in OLD}

    def once(after_s: float | None) -> float:
        """Run it, whole or until it is killed; how long it took."""
        with ig.store() as store:
            work.before(store)
        start = time.monotonic()
        process = ig.start(*work.arguments)
        if after_s is not None:
            time.sleep(after_s)
            process.send_signal(signal.SIGKILL)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0 or after_s is not None, err
        return time.monotonic() - start if process.returncode == 0 else -1.0

    longest_s = once(None)
    finished = 0
    for kill in range(kills):
        # Most of a command is the start of Python, which writes nothing.
        took_s = once(moments.uniform(longest_s * 0.2, longest_s))
        if took_s >= 0:
            finished, longest_s = finished + 1, min(longest_s, took_s)
        try:
            whole(ig, before)
            if kill % 10 == 9:
                once(None)
                assert work.done()
        except BaseException as error:
            error.add_note(f"seed {seed}, kill {kill}")
            raise
    once(None)

    assert work.done()
    whole(ig, before)
    measured(f"ig image {what.strip('_')}: {kills} times kill -9 ({finished} of them came too late), nothing lost")
