"""Symbols of a stripped binary that are kept elsewhere: in itself but packed, or in a separate debug file."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import PurePosixPath

from igrun.errors import ImageError
from igrun.symbols.binary import Binary
from igrun.symbols.rooted import Memory, Readable, Root

FOLDER = "/usr/lib/debug"
MOST_PACKED, MOST_UNPACKED = 64 << 20, 256 << 20
MOST_CHECKED = 2 << 30  # bytes of a debug file, whose checksum is to be taken


def companions(binary: Binary, path: str, *roots: Root) -> Iterator[Binary]:
    """The binaries that have more of its symbols, the nearest first; each is closed when the next one is asked for.

    path: of the binary in the first root directory; in the others debug files are looked for by the build's number only
    """
    packed = unpacked(binary)
    if packed is not None:
        yield packed
    for number, root in enumerate(roots):
        for place in places(binary, path if not number else ""):
            try:
                file = root.open(place)
            except OSError:
                continue
            with file:
                try:
                    found = Binary(file)
                    if fits(found, binary, file):
                        yield found
                except ImageError:
                    continue


def unpacked(binary: Binary) -> Binary | None:
    """What section .gnu_debugdata holds ("mini-debuginfo"); None: nothing that can be read."""
    section = binary.section(".gnu_debugdata")
    if section is None:
        return None
    import lzma

    try:
        unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MOST_UNPACKED)
        data = unpacker.decompress(binary.content(section, MOST_PACKED), MOST_UNPACKED)
        return Binary(Memory(data)) if unpacker.eof else None
    except (lzma.LZMAError, ImageError):
        return None


def places(binary: Binary, path: str) -> Iterator[str]:
    """Where its debug file may be."""
    number = binary.build_id.hex()
    if number:
        yield f"{FOLDER}/.build-id/{number[:2]}/{number[2:]}.debug"
    name, _ = link(binary)
    if name and path:
        folder = str(PurePosixPath(path).parent)
        for place in (f"{folder}/{name}", f"{folder}/.debug/{name}", f"{FOLDER}{folder}/{name}"):
            if place != path:
                yield place


def fits(found: Binary, binary: Binary, file: Readable) -> bool:
    """Whether a debug file is of this very build."""
    if (found.machine, found.wide) != (binary.machine, binary.wide):
        return False
    if binary.build_id and found.build_id:
        return binary.build_id == found.build_id
    _, checksum = link(binary)
    return checksum is not None and file.size <= MOST_CHECKED and crc(file) == checksum


def link(binary: Binary) -> tuple[str, int | None]:
    """Name and CRC-32 of the debug file that section .gnu_debuglink names; "" and None: of none."""
    section = binary.section(".gnu_debuglink")
    data = binary.content(section, 1 << 12) if section else b""
    name = data.partition(b"\0")[0]
    at = (len(name) + 4) // 4 * 4
    if not name or b"/" in name or name in (b".", b"..") or len(data) < at + 4:
        return "", None
    return name.decode(errors="surrogateescape"), int.from_bytes(data[at : at + 4], "little")


def crc(file: Readable) -> int:
    """The CRC-32 of all of it."""
    found = 0
    for start in range(0, file.size, 1 << 20):
        found = zlib.crc32(file.read(start, 1 << 20), found)
    return found
