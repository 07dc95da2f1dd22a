"""/etc/ld.so.cache: where glibc's dynamic linker finds libraries, in its old, its new, and the combined format."""

from __future__ import annotations

from struct import Struct
from struct import error as StructError
from typing import NamedTuple

from igrun.errors import ImageError

CACHE = "/etc/ld.so.cache"
MOST_BYTES = 16 << 20
OLD, NEW = b"ld.so-1.7.0\0", b"glibc-ld.so.cache1.1"
OLD_HEADER, OLD_ENTRY = Struct("<12xI"), Struct("<iII")
NEW_HEADER, NEW_ENTRY = Struct("<20xII20x"), Struct("<iIIIQ")
LONGEST = 4096
# The flags of a library for this machine (sysdeps/generic/ldconfig.h in glibc): FLAG_X8664_LIB64, FLAG_AARCH64_LIB64
NATIVE = {"x86_64": 0x0300, "aarch64": 0x0A00}
ABI = 0xFF00


class Entry(NamedTuple):
    """A library. name: its soname, mostly."""

    name: str
    path: str
    flags: int


def entries(data: bytes) -> list[Entry]:
    """All libraries, in the cache's order. ImageError: it is no such file."""
    try:
        if data.startswith(NEW):
            return new_entries(data)
        if not data.startswith(OLD):
            raise ImageError("ld.so.cache has no known format")
        (count,) = OLD_HEADER.unpack_from(data)
        strings = OLD_HEADER.size + count * OLD_ENTRY.size
        # A new one may follow, aligned as its 64-bit numbers are, on 32-bit machines to 4; its offsets count from it.
        for alignment in (8, 4):
            start = -(-strings // alignment) * alignment
            if data[start : start + len(NEW)] == NEW:
                return new_entries(data[start:])
        table = data[OLD_HEADER.size : strings]
        if len(table) < count * OLD_ENTRY.size:
            raise ImageError("ld.so.cache is cut off")
        return named(data[strings:], list(OLD_ENTRY.iter_unpack(table)))
    except StructError:
        raise ImageError("ld.so.cache is cut off") from None


def new_entries(data: bytes) -> list[Entry]:
    """Of the new format, which begins with the first byte."""
    count, _ = NEW_HEADER.unpack_from(data)
    table = data[NEW_HEADER.size : NEW_HEADER.size + count * NEW_ENTRY.size]
    if len(table) < count * NEW_ENTRY.size:
        raise ImageError("ld.so.cache is cut off")
    return named(data, [row[:3] for row in NEW_ENTRY.iter_unpack(table)])


def named(data: bytes, rows: list[tuple[int, ...]]) -> list[Entry]:
    """The rows (flags, where the name begins, where the path does) with the texts themselves."""
    return [Entry(text(data, key), text(data, value), flags) for flags, key, value in rows]


def text(data: bytes, start: int) -> str:
    """The text at that place. ImageError: there is none."""
    end = data.find(b"\0", start, start + LONGEST)
    if end < 0:
        raise ImageError("ld.so.cache has a name that is none")
    return data[start:end].decode(errors="surrogateescape")
