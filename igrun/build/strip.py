"""Take the debug information out of an object. What a run needs stays: code, maps, symbols and BTF.

It is done here and not by `llvm-strip`, so that any clang is enough, zig's among them, and the bytes depend on the
compiler alone.
"""

from __future__ import annotations

from struct import Struct
from struct import error as StructError
from typing import NamedTuple

from igrun.errors import BuildError

HEADER = Struct("<16sHHIQQQIHHHHHH")
SECTION = Struct("<IIQQQQIIQQ")
SYMBOL = Struct("<IBBHQQ")
RELOCATIONS = {9: Struct("<QQ"), 4: Struct("<QQq")}  # by SHT_REL, SHT_RELA
SYMTAB, STRTAB, NOBITS, ADDRSIG = 2, 3, 8, 0x6FFF4C03
FILE = 4  # STT_FILE
LARGEST_ALIGN = 1 << 16
RESERVED = 0xFF00  # section numbers from here on are none


class Section(NamedTuple):
    """A section's header."""

    name: int
    type: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    align: int
    entry: int


def strip(data: bytes) -> bytes:
    """The object without debug information. BuildError: it is no object that a compiler makes."""
    try:
        return stripped(data)
    except (StructError, ValueError, LookupError, OverflowError) as error:
        raise BuildError(f"the compiler made a broken object: {error}") from None


def stripped(data: bytes) -> bytes:
    header = HEADER.unpack_from(data)
    if header[0][:6] != b"\x7fELF\x02\x01" or header[11] != SECTION.size or not 0 < header[12] < RESERVED:
        raise ValueError("no little-endian ELF64 object")
    sections = [Section(*SECTION.unpack_from(data, header[6] + i * SECTION.size)) for i in range(header[12])]
    if any(one.align > LARGEST_ALIGN for one in sections):
        raise ValueError("a section is aligned to too much")
    contents = [b"" if one.type == NOBITS else data[one.offset : one.offset + one.size] for one in sections]
    names = [name(contents[header[13]], one.name) for one in sections]

    gone = {i for i, one in enumerate(names) if one.startswith(b".debug_") or sections[i].type == ADDRSIG}
    gone |= {i for i, one in enumerate(sections) if one.type in RELOCATIONS and one.info in gone}
    kept = [i for i in range(len(sections)) if i not in gone]
    moved = {old: new for new, old in enumerate(kept)}
    (table,) = (i for i in kept if sections[i].type == SYMTAB)
    texts = Texts()

    # symbols, and where each one stands now
    old_texts = contents[sections[table].link]
    symbols: list[bytes] = []
    places: dict[int, int] = {}
    local = 0
    for number, fields in enumerate(SYMBOL.iter_unpack(contents[table])):
        text, kind, other, section, value, size = fields
        if section in gone or (kind & 15) == FILE:
            continue
        places[number] = len(symbols)
        local += kind >> 4 == 0
        symbols.append(
            SYMBOL.pack(texts.add(name(old_texts, text)), kind, other, moved.get(section, section), value, size)
        )
    contents[table] = b"".join(symbols)
    for i in kept:
        form = RELOCATIONS.get(sections[i].type)
        if form:
            contents[i] = b"".join(
                form.pack(at, places[info >> 32] << 32 | info & 0xFFFFFFFF, *rest)
                for at, info, *rest in form.iter_unpack(contents[i])
            )

    section_names = [texts.add(names[i]) for i in kept]
    for i in {header[13], sections[table].link}:
        contents[i] = bytes(texts.data)
    body, headers = bytearray(HEADER.size), []
    for i, text in zip(kept, section_names, strict=True):
        one = sections[i]
        if i:
            body += bytes(-len(body) % max(one.align, 1))
        info = local if i == table else moved[one.info] if one.type in RELOCATIONS else one.info
        size = one.size if one.type == NOBITS else len(contents[i])
        offset = len(body) if i else 0
        headers.append(one._replace(name=text, offset=offset, size=size, link=moved[one.link], info=info))
        body += contents[i]
    body += bytes(-len(body) % 8)
    HEADER.pack_into(body, 0, *header[:6], len(body), *header[7:12], len(kept), moved[header[13]])
    return bytes(body) + b"".join(SECTION.pack(*one) for one in headers)


class Texts:
    """A string table that is being filled."""

    def __init__(self) -> None:
        self.data = bytearray(1)
        self._places = {b"": 0}

    def add(self, text: bytes) -> int:
        """Where the text stands."""
        if text not in self._places:
            self._places[text] = len(self.data)
            self.data += text + b"\0"
        return self._places[text]


def name(table: bytes, at: int) -> bytes:
    """The text of a string table at a place."""
    return table[at : table.index(b"\0", at)]
