"""What was worked out once and is kept for the next run, in a folder that only its owner can write.

An entry is found by what it was made from (digests) and by the code that made it; one that is damaged, or that another
user could have written, is none. `ig image prune --cache` deletes them all.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TypeVar

from igrun.digests import sha256

T = TypeVar("T")
PACKAGE = Path(__file__).parent
MOST = 256  # entries of a kind; the oldest go
LARGEST = 16 << 20  # bytes of one


def home() -> Path:
    """The folder of this user's caches."""
    return Path("/var/cache/ig") if os.geteuid() == 0 else Path.home() / ".cache" / "ig"


def remembered(kind: type[T], of: tuple[bytes | str, ...], make: Callable[[], T]) -> T:
    """What `make` returns, or returned when it was asked for the same thing before.

    kind: the class of it, whose objects pickle
    of:   everything that the result depends on
    """
    path = home() / "parsed" / f"{kind.__name__}-{key(of)}"
    data = read(path)
    if data is not None:
        from _pickle import loads  # what module pickle adds to it takes 2 ms to import

        with suppress(Exception):  # whatever a damaged file, or one of older code, does
            found = loads(data)
            if isinstance(found, kind):
                return found
    made = make()
    from pickle import dumps

    write(path, dumps(made))
    return made


def key(of: tuple[bytes | str, ...]) -> str:
    """A name for what an entry was made from, and by which code."""
    digest = sha256(code())
    for part in of:
        raw = part if isinstance(part, bytes) else part.encode("utf-8", "surrogateescape")
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.hexdigest()


@cache
def code() -> bytes:
    """What tells this igrun from another one, or from itself before it was changed: its files' times and sizes."""
    folders = (PACKAGE, PACKAGE / "metadata")
    states = (one.stat() for folder in folders for one in os.scandir(folder) if one.name.endswith(".py"))
    return repr([PACKAGE, *sorted((state.st_mtime_ns, state.st_size) for state in states)]).encode()


def read(path: Path) -> bytes | None:
    """What a file of the cache holds; None if it is not there, or somebody else could have written it."""
    try:
        if not ours(os.lstat(path.parent)):
            return None
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as file:
            status = os.fstat(fd)
            if not (stat.S_ISREG(status.st_mode) and ours(status) and status.st_size <= LARGEST):
                return None
            return file.read(LARGEST)
    except OSError:
        return None


def writable(path: Path) -> bool:
    """Whether `write` is likely to keep it: nothing needs to be made that cannot be kept."""
    folder = next((one for one in path.parents if one.exists()), path)
    return os.access(folder, os.W_OK | os.X_OK)


def write(path: Path, data: bytes) -> bool:
    """Keep a file, whole or not at all. False: it cannot be kept here, which only costs time."""
    if len(data) > LARGEST:
        return False
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not ours(os.lstat(path.parent)):
            return False
        trim(path.parent)
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(data)
            beside.rename(path)
        except OSError:
            beside.unlink()
            raise
    except OSError:
        return False
    return True


def trim(folder: Path) -> None:
    """Make room for one more entry."""
    found = list(os.scandir(folder))
    if len(found) >= MOST:
        found.sort(key=lambda one: one.stat(follow_symlinks=False).st_mtime_ns)
        for one in found[: len(found) - MOST + 1]:
            Path(one.path).unlink()


def ours(status: os.stat_result) -> bool:
    """Whether only this user, or root, can change it."""
    return status.st_uid in (0, os.geteuid()) and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
