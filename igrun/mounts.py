"""Kernel file systems: tracefs even where nobody mounted it, and mounting them on request."""

from __future__ import annotations

import ctypes as C
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from errno import ENODEV, ENOENT, ENOSYS, EPERM
from pathlib import Path
from types import MappingProxyType

from igrun.clib import libc, syscall
from igrun.errors import KernelError, UnsupportedError

# type -> magic (include/uapi/linux/magic.h), places under the root; it is mounted on the first one
KINDS: Mapping[str, tuple[int, tuple[str, ...]]] = MappingProxyType(
    {
        "bpf": (0xCAFE4A11, ("sys/fs/bpf",)),
        "debugfs": (0x64626720, ("sys/kernel/debug",)),
        "tracefs": (0x74726163, ("sys/kernel/tracing", "sys/kernel/debug/tracing")),
        "securityfs": (0x73636673, ("sys/kernel/security",)),
    }
)
WANTED = ("bpf", "tracefs", "debugfs")  # debugfs last: with it comes a tracefs of its own
ROOT = Path("/")


def magic(path: Path) -> int:
    """What kind of file system `path` lies on (its magic number), 0 if there is no such path."""
    buffer = C.create_string_buffer(256)  # struct statfs; its first member is a long f_type
    if libc().statfs(os.fsencode(path), buffer) < 0:
        return 0
    return C.c_ulong.from_buffer(buffer).value & 0xFFFFFFFF


def mount_missing(root: Path = ROOT) -> tuple[Path, ...]:
    """Mount bpffs, debugfs and tracefs where they are not mounted; returns what was mounted, for the caller to undo.

    KernelError: the mount was refused. A kernel without debugfs is not an error: only old tools want it.
    """
    done: list[Path] = []
    for kind in WANTED:
        number, places = KINDS[kind]
        if any(magic(root / place) == number for place in places):
            continue
        where = root / places[0]
        if libc().mount(b"none", os.fsencode(where), kind.encode(), 0, None) < 0:
            error = C.get_errno()
            if kind == "debugfs" and error == ENODEV:
                continue
            unmount(done)
            hint = {
                EPERM: "CAP_SYS_ADMIN is needed to mount",
                ENOENT: "" if root == ROOT else f"HOST_ROOT must name the host's root directory, not {root}",
            }.get(error, "")
            raise KernelError(error, f"mount {kind} on {where}", hint=hint)
        done.append(where)
    return tuple(done)


def unmount(places: Sequence[Path]) -> None:
    """Undo `mount_missing`; one that is busy is let go when its last user is gone."""
    detach = 2  # MNT_DETACH
    for place in reversed(places):
        libc().umount2(os.fsencode(place), detach)


def tracefs(root: Path = ROOT) -> AbstractContextManager[int]:
    """A directory descriptor of tracefs: of the mounted one, else of a mount that no other process sees.

    UnsupportedError: the kernel has no tracefs, or is too old for a detached mount. KernelError: refused.
    """
    return filesystem("tracefs", root)


@contextmanager
def filesystem(kind: str, root: Path = ROOT) -> Iterator[int]:
    """As `tracefs`, of one of the `KINDS`."""
    fd = opened(kind, root)
    try:
        yield fd
    finally:
        os.close(fd)


def opened(kind: str, root: Path = ROOT) -> int:
    """As `filesystem`; the caller closes it."""
    number, places = KINDS[kind]
    for place in places:
        if magic(root / place) == number:
            return os.open(root / place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    return detached(kind)


def detached(kind: str) -> int:
    """The directory descriptor of a new mount that stands nowhere in the file system; it ends with the descriptor."""
    cloexec, create = 1, 6  # FSOPEN_CLOEXEC and FSMOUNT_CLOEXEC; FSCONFIG_CMD_CREATE
    how = f"run `mount -t {kind} {kind} /{KINDS[kind][1][0]}`"
    try:
        context = syscall("fsopen", kind.encode(), cloexec)
        try:
            syscall("fsconfig", context, create, None, None, 0)
            return syscall("fsmount", context, cloexec, 0)
        finally:
            os.close(context)
    except KernelError as error:
        if error.errno == ENOSYS:
            # Before Linux 5.2 (24dcb3d90a1f, "vfs: syscall: Add fsopen() to prepare for superblock creation").
            lacks = "it is not mounted, and this kernel cannot mount it for one process alone"
            raise UnsupportedError(kind, lacks, since="5.2", hint=how) from None
        if error.errno == ENODEV:
            raise UnsupportedError(kind, "this kernel was built without it") from None
        hint = how + (", or give CAP_SYS_ADMIN" if error.errno == EPERM else "")
        raise KernelError(error.errno or EPERM, f"{kind} is not mounted, and could not be", hint=hint) from None


def read(directory: int, path: str) -> str:
    """A file's text, by its path under the descriptor. OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    with os.fdopen(fd, errors="surrogateescape") as file:
        return file.read()


def listing(directory: int, path: str) -> list[str]:
    """The names in a directory, by its path under the descriptor. OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    try:
        with os.scandir(fd) as entries:
            return [entry.name for entry in entries]
    finally:
        os.close(fd)
