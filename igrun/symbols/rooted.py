"""Files in a root directory that is not ours, a container's for example: no path in it leads out of it."""

from __future__ import annotations

import ctypes as C
import os
import stat
from errno import EACCES, EAGAIN, EINVAL, EISDIR, ELOOP, ENOENT, ENOSYS, ENOTDIR, EPERM
from pathlib import Path
from struct import pack
from types import TracebackType
from typing import Protocol

from igrun.clib import libc, syscall
from igrun.errors import KernelError

RESOLVE_NO_MAGICLINKS, RESOLVE_IN_ROOT = 0x02, 0x10
PROCFS = 0x9FA0  # PROC_SUPER_MAGIC
MOST_LINKS = 40  # as many as the kernel follows
MOST_RETRIES = 100
MOST_NAMES = 1 << 16  # of a directory
WAY = os.O_PATH | os.O_CLOEXEC


class Readable(Protocol):
    """Bytes at offsets."""

    size: int

    def read(self, offset: int, length: int) -> bytes:
        """Fewer where it ends."""
        ...


class Memory:
    """Bytes that are here already."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    def read(self, offset: int, length: int) -> bytes:
        return self._data[offset : offset + length]


class File:
    """A regular file, open for reading. fd, size; path: as its root directory knows it, links resolved."""

    def __init__(self, fd: int, path: str) -> None:
        self.fd, self.path = fd, path
        self.size = os.fstat(fd).st_size

    def __enter__(self) -> File:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Again: nothing."""
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1

    def read(self, offset: int, length: int) -> bytes:
        """Fewer bytes where it ends. OSError."""
        length = min(length, self.size - offset)
        parts = []
        while length > 0:
            part = os.pread(self.fd, min(length, 1 << 24), offset)
            if not part:  # it was cut meanwhile
                break
            parts.append(part)
            offset, length = offset + len(part), length - len(part)
        return b"".join(parts)


class Root:
    """A root directory. Paths mean what they mean to a process that has it as its root. All may raise KernelError."""

    def __init__(self, path: Path) -> None:
        """KernelError: there is no such directory."""
        try:
            self._fd = os.open(path, WAY | os.O_DIRECTORY)
        except OSError as error:
            raise KernelError(error.errno or EINVAL, f"open root directory {path}") from None

    def __enter__(self) -> Root:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.close(self._fd)

    def open(self, path: str) -> File:
        """A regular file. Nothing else is ever opened: a device or a pipe may do something then."""
        way = self._way(path)
        try:
            kind = os.fstat(way).st_mode
            if not stat.S_ISREG(kind):
                raise KernelError(EISDIR if stat.S_ISDIR(kind) else EINVAL, f"open {path}: it is no regular file")
            try:
                fd = os.open(f"/proc/self/fd/{way}", os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise KernelError(error.errno or EACCES, f"open {path}") from None
        finally:
            os.close(way)
        return File(fd, self._seen(fd) or path)

    def read(self, path: str, most: int) -> bytes:
        """All bytes of a regular file; at most so many."""
        with self.open(path) as file:
            return file.read(0, most)

    def names(self, path: str) -> list[str]:
        """What is in a directory, sorted."""
        way = self._way(path)
        try:
            if not stat.S_ISDIR(os.fstat(way).st_mode):
                raise KernelError(ENOTDIR, f"list {path}")
            try:
                with os.scandir(f"/proc/self/fd/{way}") as entries:
                    return sorted(entry.name for entry, _ in zip(entries, range(MOST_NAMES), strict=False))
            except OSError as error:
                raise KernelError(error.errno or EACCES, f"list {path}") from None
        finally:
            os.close(way)

    def _way(self, path: str) -> int:
        """An O_PATH descriptor."""
        if not path or "\0" in path:
            raise KernelError(ENOENT, f"open {path!r}")
        # struct open_how
        how = C.create_string_buffer(pack("=QQQ", WAY, 0, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS), 24)
        for _ in range(MOST_RETRIES):
            try:
                return syscall("openat2", self._fd, os.fsencode(path), how, 24, what=f"open {path}")
            except KernelError as error:
                # EAGAIN: a directory was moved somewhere while a `..` was looked up.
                if error.errno == EAGAIN:
                    continue
                # Before Linux 5.6 (fddb5d430ad9, "open: introduce openat2(2) syscall") it is not there; sandboxes
                # of that time answer EPERM to what they do not know.
                if error.errno in (ENOSYS, EPERM):
                    break
                raise
        return walked(self._fd, path)

    def _seen(self, fd: int) -> str:
        """The path of an open file in this root directory, "" if it has none there."""
        try:
            top, path = (str(Path(f"/proc/self/fd/{one}").readlink()) for one in (self._fd, fd))
        except OSError:
            return ""
        top = top.rstrip("/")
        return path.removeprefix(top) if path.startswith(f"{top}/") else ""


def walked(root: int, path: str) -> int:
    """As openat2 with RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS, one name at a time. KernelError.

    Each directory on the way is held, and `..` goes back to the one before: nobody can move it to the outside.
    """
    held = [os.dup(root)]
    todo = path.split("/")[::-1]
    links = 0
    try:
        while todo:
            name = todo.pop()
            if name in ("", ".", "..") and not stat.S_ISDIR(os.fstat(held[-1]).st_mode):
                raise KernelError(ENOTDIR, f"open {path}")
            if name in ("", "."):
                continue
            if name == "..":
                if len(held) > 1:
                    os.close(held.pop())
                continue
            fd = os.open(name, WAY | os.O_NOFOLLOW, dir_fd=held[-1])
            if not stat.S_ISLNK(os.fstat(fd).st_mode):
                held.append(fd)
                continue
            try:
                target = os.readlink("", dir_fd=fd)
                links += 1
                if links > MOST_LINKS or (is_magic(fd) and not target[:1].isdigit() and target[:5] != "self/"):
                    raise KernelError(ELOOP, f"open {path}")
            finally:
                os.close(fd)
            if target.startswith("/"):
                while len(held) > 1:
                    os.close(held.pop())
            todo += target.split("/")[::-1]
        return held.pop()
    except KernelError:
        raise
    except OSError as error:
        raise KernelError(error.errno or EINVAL, f"open {path}") from None
    finally:
        for fd in held:
            os.close(fd)


def is_magic(fd: int) -> bool:
    """Whether a link is procfs's, where most lead to anywhere."""
    return filesystem_of(fd) == PROCFS


def filesystem_of(fd: int) -> int:
    """The magic number of the file system that it is on, 0 if that cannot be told."""
    buffer = C.create_string_buffer(256)  # struct statfs; its first member is a long f_type
    return 0 if libc().fstatfs(fd, buffer) < 0 else C.c_ulong.from_buffer(buffer).value & 0xFFFFFFFF
