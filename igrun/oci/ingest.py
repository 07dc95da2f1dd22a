"""Blobs on their way into a store: verified while they are written, and gone on with after a break.

What has come of a large blob is kept in `ingest/<hex>.part`. Whoever writes it holds a lock on it, so that two
processes never write the same one; a process that was killed leaves it to the next.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from igrun.digests import Hash, sha256
from igrun.errors import ImageError
from igrun.oci.folder import TEMPORARY, Folder
from igrun.oci.model import Descriptor, Stream

CHUNK = 1 << 20
SMALL = 1 << 20  # what is not larger is held in memory and not kept after a break
PART = ".part"
STUCK_S = 5.0  # how long another process may write nothing before we fetch the blob ourselves


def receive(folder: Folder, path: Path, descriptor: Descriptor, stream: Stream) -> None:
    """Put a blob at `path`. ImageError: its bytes are not what the descriptor says; nothing is there then."""
    if descriptor.size <= SMALL:
        data = whole(descriptor, stream)
        with folder.writing():
            folder.put(path, data)
        return
    while True:
        with folder.writing():
            part = claimed(folder, path, descriptor)
        if part is None:
            return
        temporary, fd = part
        with open(fd, "r+b", buffering=CHUNK >> 2) as file, contextlib.ExitStack() as stack:
            if temporary.suffix != PART:
                stack.callback(temporary.unlink, missing_ok=True)
            start = min(os.fstat(fd).st_size, descriptor.size)
            if filled(folder, file, start, descriptor, stream):
                with folder.writing():
                    file.flush()
                    os.fsync(fd)
                    folder.place(temporary, path)
                return
            # never take up again what is wrong
            with folder.writing():
                temporary.unlink(missing_ok=True)
        if start == 0:
            raise wrong(descriptor)


def whole(descriptor: Descriptor, stream: Stream) -> bytes:
    """A small blob, verified."""
    parts: list[bytes] = []
    digest = sha256(size=descriptor.size)
    end = pour(descriptor, stream, 0, digest, parts.append)
    check(descriptor, end, digest)
    return b"".join(parts)


def filled(folder: Folder, file: Writable, start: int, descriptor: Descriptor, stream: Stream) -> bool:
    """Write what is missing of a blob. False: it is not the blob that it should be."""
    digest = sha256(size=descriptor.size)
    with folder.writing():
        file.seek(0)
        left = start
        while left:
            chunk = file.read(min(CHUNK, left))
            if not chunk:
                return False
            digest.update(chunk)
            left -= len(chunk)
        file.seek(start)
        file.truncate()
        space = os.statvfs(folder.ingest)
        if space.f_bavail * space.f_frsize < descriptor.size - start:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write(chunk: bytes) -> None:
        # only errors of the disk are the store's, not those of the stream
        with folder.writing():
            file.write(chunk)

    end = pour(descriptor, stream, start, digest, write)
    if end < descriptor.size:
        check(descriptor, end, digest)
    return end == descriptor.size and f"sha256:{digest.hexdigest()}" == descriptor.digest


class Writable(Protocol):
    """A file to read and write."""

    def seek(self, offset: int, /) -> int: ...

    def read(self, size: int, /) -> bytes: ...

    def write(self, data: bytes, /) -> int: ...

    def truncate(self) -> int: ...


def pour(descriptor: Descriptor, stream: Stream, start: int, digest: Hash, write: Callable[[bytes], object]) -> int:
    """Take what comes from an offset on, asking again after a break as long as more comes each time.

    Returns where it ended: before the blob's end if no more came, behind it if there is more than announced.
    """
    at = start
    while at < descriptor.size:
        before = at
        for chunk in stream(at):
            at += len(chunk)
            if at > descriptor.size:
                return at
            digest.update(chunk)
            write(chunk)
        if at == before:
            break
    return at


def check(descriptor: Descriptor, end: int, digest: Hash) -> None:
    """ImageError: what came is not what the descriptor says."""
    if end < descriptor.size:
        raise ImageError(f"blob {descriptor.digest} ended after {end} of {descriptor.size} bytes", hint="try again")
    if end > descriptor.size or f"sha256:{digest.hexdigest()}" != descriptor.digest:
        raise wrong(descriptor)


def wrong(descriptor: Descriptor) -> ImageError:
    """The error for bytes that are not those of the digest."""
    return ImageError(
        f"blob {descriptor.digest} is not what it should be: its source sent other bytes",
        hint="the source is damaged, or somebody changed what it sent",
    )


def claimed(folder: Folder, path: Path, descriptor: Descriptor) -> tuple[Path, int] | None:
    """A file of our own for the blob, with what is there of it; None: another process has just put the blob there."""
    temporary = folder.ingest / f"{path.name}{PART}"
    size, since = -1, time.monotonic()
    while True:
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, fd)
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise ImageError(f"{temporary} is no regular file")
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # it may have become the blob, or been deleted, before we had the lock
                if same(status, temporary):
                    stack.pop_all()
                    return temporary, fd
                if path.exists():
                    return None
                continue
        if status.st_size != size:
            size, since = status.st_size, time.monotonic()
        elif time.monotonic() - since > STUCK_S:
            temporary = own(folder, path)
            continue
        time.sleep(0.05)


def own(folder: Folder, path: Path) -> Path:
    """The name of a file that nobody else knows."""
    return folder.ingest / f"{path.name}.{os.getpid()}.{os.urandom(6).hex()}{TEMPORARY}"


def same(status: os.stat_result, path: Path) -> bool:
    """Whether a path still leads to the file that was opened."""
    try:
        now = path.lstat()
    except FileNotFoundError:
        return False
    return (now.st_dev, now.st_ino) == (status.st_dev, status.st_ino)


def sent(fd: int, descriptor: Descriptor, start: int, offset: int = 0) -> Iterator[bytes]:
    """The bytes of a blob in an open file, verified at the end if all of them are asked for.

    offset: where the blob begins in the file
    """
    digest = None if start else sha256(size=descriptor.size)
    at = start
    while at < descriptor.size:
        try:
            chunk = os.pread(fd, min(CHUNK, descriptor.size - at), offset + at)
        except OSError as error:
            raise ImageError(f"cannot read blob {descriptor.digest}: {error.strerror}") from None
        at += len(chunk)
        if digest:
            digest.update(chunk)
        ends = at == descriptor.size and digest
        if not chunk or (ends and f"sha256:{ends.hexdigest()}" != descriptor.digest):
            raise ImageError(f"blob {descriptor.digest} is damaged")
        yield chunk
