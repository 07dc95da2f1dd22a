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
FEW, MANY = 4, 60
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
def works(ig, another_ig, plain, repository, tmp_path) -> dict[str, Work]:
    """Every command that writes to a store or to a registry."""
    way = ("--insecure-registries", plain.address)
    there, sent = plain.named(repository), plain.named(f"{repository}/sent")
    archive = tmp_path / "it.tar"
    with another_ig.store() as store:
        large(store, there, SIZE)
        large(store, NEW, SIZE)
    another_ig("image", "push", there, *way)
    another_ig("image", "export", NEW, archive)
    with ig.store() as store:
        for name, content in zip(OLD, (b"old", b"older"), strict=True):
            attach(store, put(store, name, content, content), "application/vnd.example.sbom")
        large(store, sent, SIZE)

    def without(name: str) -> Callable[[Store], object]:
        return lambda store: store.remove(name) if any(one.name == name for one in store.list()) else None

    def has(name: str) -> Callable[[], bool]:
        def there_() -> bool:
            with ig.store(writable=False) as store:
                return any(one.name == name for one in store.list())

        return there_

    def litter(store: Store) -> None:
        root = large(store, "example.org/g/litter:v1", SIZE)
        store.untag("example.org/g/litter:v1")
        past = time.time() - 7 * 24 * 3600
        for path in (store.root / "blobs/sha256").iterdir():
            os.utime(path, (past, past))
        assert root

    return {
        "pull": Work(("image", "pull", there, *way), without(there), has(there)),
        "push": Work(
            ("image", "push", sent, *way), lambda store: None, lambda: bool(plain.digest(f"{repository}/sent"))
        ),
        "import": Work(("image", "import", archive), without(NEW), has(NEW)),
        "prune": Work(("image", "prune"), litter, lambda: True),
        "build": Work(("image", "build", GADGET, "-t", NEW, "--local"), without(NEW), has(NEW)),
        "remove": Work(("image", "remove", NEW), lambda store: large(store, NEW, SIZE), lambda: not has(NEW)()),
    }


@pytest.mark.parametrize("what", ["pull", "push", "import", "prune", "build", "remove"])
def test_a_store_survives_kills(what, works, ig, request, measured):
    work = works[what]
    kills = MANY if request.config.getoption(OPTION) else FEW
    seed = random.randrange(1 << 32)
    moments = random.Random(seed)
    with ig.store(writable=False) as store:
        before = {(name, descriptor.digest) for name, descriptor in store.list() if name != NEW}

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
        finished += once(moments.uniform(longest_s * 0.2, longest_s)) >= 0
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
    measured(f"ig image {what}: {kills} times kill -9 ({finished} of them came too late), nothing lost")
