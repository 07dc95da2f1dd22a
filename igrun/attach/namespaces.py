"""Network namespaces: which one a target has, and what is done inside of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from ctypes import get_errno
from errno import ENOENT
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, TypeVar

from igrun.clib import libc
from igrun.dataclass import dataclass, field
from igrun.errors import AttachError, KernelError

if TYPE_CHECKING:
    from igrun.host import Target
    from igrun.program import Hook

T = TypeVar("T")
PROC, NET = Path("/proc"), "ns/net"
CLONE_NEWNET = 0x40000000


@dataclass(frozen=True, slots=True)
class Namespace:
    """A network namespace: two are the same if device and inode are. path: one of the ways to it."""

    device: int
    inode: int
    path: Path = field(compare=False)

    @classmethod
    def at(cls, path: Path) -> Namespace:
        """The one that a path leads to. OSError: it is gone."""
        found = path.stat()
        return cls(found.st_dev, found.st_ino, path)


def own() -> Namespace:
    """That of this thread. Its path leads there from other threads too."""
    return Namespace.at(PROC / (PROC / "thread-self").readlink() / NET)


def of_machine() -> tuple[Namespace, ...]:
    """Those that are the host's: that of this process, and that of process 1, if it is another."""
    mine = own()
    try:
        first = Namespace.at(PROC / "1" / NET)
    except OSError:
        return (mine,)
    return (mine,) if first == mine else (mine, first)


def of(target: Target, hook: Hook) -> Namespace:
    """That of a target. AttachError: it is gone."""
    if target.netns is None:
        return own()
    try:
        return Namespace.at(target.netns)
    except OSError as error:
        reason = f"its network namespace {target.netns} cannot be found ({error.strerror})"
        number = error.errno or ENOENT
        raise AttachError(number, hook.program, hook.section, target.name, reason=reason) from None


def inside(namespace: Namespace, function: Callable[[], T]) -> T:
    """What the function returns, or raises, in the namespace; this process never leaves its own.

    KernelError: the namespace is gone, or closed to this process
    """
    if namespace == own():
        return function()
    found: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        # A namespace belongs to a thread, and this one ends here.
        try:
            enter(namespace)
            found.append(function())
        except BaseException as error:
            failed.append(error)

    thread = Thread(target=run, name="netns")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return found[0]


def enter(namespace: Namespace) -> None:
    """Let this thread go there. KernelError."""
    fd = opened(namespace)
    try:
        if libc().setns(fd, CLONE_NEWNET) < 0:
            hint = "CAP_SYS_ADMIN is needed to look into a network namespace"
            raise KernelError(get_errno(), f"enter network namespace {namespace.path}", hint=hint)
    finally:
        os.close(fd)


def opened(namespace: Namespace) -> int:
    """A descriptor of it, for the caller to close. KernelError: it is gone."""
    what = f"open network namespace {namespace.path}"
    try:
        fd = os.open(namespace.path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise KernelError(error.errno or ENOENT, what) from None
    if os.fstat(fd).st_ino != namespace.inode:
        os.close(fd)
        # The process that it was found by has ended, and its number is another's now.
        raise KernelError(ENOENT, what)
    return fd
