"""Kernels on disk that hold their BTF."""

from __future__ import annotations

import os
import stat
import struct
from pathlib import Path

from igrun.errors import ImageError
from igrun.kernel_btf.memory import bounded

PLACES = (
    "boot/vmlinux-{}",
    "lib/modules/{}/vmlinux-{}",
    "lib/modules/{}/build/vmlinux",
    "usr/lib/modules/{}/kernel/vmlinux",
    "usr/lib/debug/boot/vmlinux-{}",
    "usr/lib/debug/boot/vmlinux-{}.debug",
    "usr/lib/debug/lib/modules/{}/vmlinux",
)
HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
SECTION = struct.Struct("<IIQQQQIIQQ")
MOST_SECTIONS, LARGEST_NAMES = 1000, 1 << 20
COMPRESSED = 0x800


def places(root: Path, release: str) -> list[Path]:
    """Where such kernels are."""
    return [root / place.replace("{}", release) for place in PLACES]


def btf_of(path: Path) -> bytes:
    """The contents of section .BTF. ImageError: there is none; OSError: it cannot be read."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ImageError("no regular file")
        head = os.pread(fd, HEADER.size, 0)
        if len(head) < HEADER.size or head[:6] != b"\x7fELF\x02\x01":
            raise ImageError("no ELF file of 64 bits")
        *_, start, _, _, _, _, each, count, names = HEADER.unpack(head)
        if each != SECTION.size or not 0 < count <= MOST_SECTIONS or names >= count:
            raise ImageError("its table of sections is broken")
        table = read(fd, count * each, start)
        sections = list(SECTION.iter_unpack(table))
        _, _, _, _, at, size, *_ = sections[names]
        if size > LARGEST_NAMES:
            raise ImageError("its table of sections is broken")
        texts = read(fd, size, at)
        for name, _, flags, _, at, size, *_ in sections:
            if texts[name : name + 5] == b".BTF\0":
                if flags & COMPRESSED:
                    raise ImageError("its section .BTF is compressed")
                bounded(size, "its section .BTF")
                return read(fd, size, at)
        raise ImageError("it has no section .BTF")
    finally:
        os.close(fd)


def read(fd: int, size: int, at: int) -> bytes:
    """That many bytes. ImageError: they are not there."""
    data = os.pread(fd, size, at) if at < 1 << 62 else b""
    if len(data) != size:
        raise ImageError("it is cut off")
    return data
