"""BTF as files in memory, which libbpf and our readers of archives take."""

from __future__ import annotations

import os
from contextlib import ExitStack

from igrun.errors import ImageError

LARGEST = 64 << 20  # bytes of a kernel's BTF; those of today have 4 to 12 MiB


def in_memory(data: bytes, stack: ExitStack) -> str:
    """The path of a file with these bytes, until the stack closes."""
    return f"/proc/self/fd/{descriptor(data, stack)}"


def descriptor(data: bytes, stack: ExitStack) -> int:
    """A file with these bytes, to be read from its beginning."""
    fd = os.memfd_create("btf", os.MFD_CLOEXEC)
    stack.callback(os.close, fd)
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def bounded(size: int, where: str) -> None:
    """ImageError: no kernel's BTF is that large."""
    if size > LARGEST:
        raise ImageError(f"{where} is larger than {LARGEST >> 20} MiB")
