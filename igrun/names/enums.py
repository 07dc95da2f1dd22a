"""C enumerations as text, and those of a kernel's BTF found by name.

A kernel's BTF has 150 000 types, of which a gadget wants one or two; these are searched for, the rest is not parsed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from struct import Struct

Members = Sequence[tuple[str, int]]
MAGIC = 0xEB9F
HEADER = Struct("<HBBIIIII")
TYPE = Struct("<III")
ENUM, ENUM64 = 6, 19
MEMBER = {ENUM: Struct("<Ii"), ENUM64: Struct("<IiI")}


def enum_text(members: Members, size: int) -> Callable[[int], str]:
    """The first name of a value, `UNKNOWN` if it has none. size: bytes of the field."""
    mask = (1 << 8 * size) - 1
    names: dict[int, str] = {}
    for name, value in members:
        names.setdefault(value & mask, name)
    return lambda value: names.get(value & mask, "UNKNOWN")


def set_text(members: Members, size: int, separator: str = "|") -> Callable[[int], str]:
    """Every name whose bits are all set, joined; names of 0 and of several bits count too."""
    mask = (1 << 8 * size) - 1
    bits = [(name, value & mask) for name, value in members]
    return lambda value: separator.join(name for name, bit in bits if value & bit == bit)


def enums_named(btf: bytes, name: str) -> Iterator[list[tuple[str, int]]]:
    """The members of each enumeration of that name. btf: a little-endian BTF file; a bad one gives nothing."""
    if len(btf) < HEADER.size:
        return
    magic, _, _, length, type_start, type_length, text_start, text_length = HEADER.unpack_from(btf)
    if magic != MAGIC or not name:
        return
    types = slice(length + type_start, min(length + type_start + type_length, len(btf)))
    texts = btf[length + text_start : length + text_start + text_length]
    at = texts.find(b"\0" + name.encode() + b"\0")
    if at < 0:
        return
    wanted = (at + 1).to_bytes(4, "little")
    place = btf.find(wanted, types.start, types.stop)
    while place >= 0:
        # The same number elsewhere in a type is a member's name offset or a type id; what follows it then is no enum's
        # kind, nor is its size.
        if (place - types.start) % 4 == 0 and place + TYPE.size <= types.stop:
            members = _members(btf, place, types.stop, texts)
            if members:
                yield members
        place = btf.find(wanted, place + 1, types.stop)


def _members(btf: bytes, place: int, end: int, texts: bytes) -> list[tuple[str, int]]:
    _, info, size = TYPE.unpack_from(btf, place)
    kind, count, signed = info >> 24 & 0x1F, info & 0xFFFF, info >> 31
    layout = MEMBER.get(kind)
    first = place + TYPE.size
    if layout is None or size not in (1, 2, 4, 8) or first + count * layout.size > end:
        return []
    found = []
    for offset in range(first, first + count * layout.size, layout.size):
        name, value, *high = layout.unpack_from(btf, offset)
        if kind == ENUM64:
            value = (value & 0xFFFFFFFF) | high[0] << 32
            value -= (value >> 63) << 64 if signed else 0
        stop = texts.find(b"\0", name)
        if name >= len(texts) or stop < 0:
            return []
        found.append((texts[name:stop].decode("utf-8", "replace"), value))
    return found
