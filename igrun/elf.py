"""The ELF object that a compiler makes of a BPF program: its sections and symbols.

An own reader, because `elftools` takes 50 ms to import and fails on broken files in many ways; the tests hold the two
equal on good ones.
"""

from __future__ import annotations

from functools import cached_property
from struct import Struct
from typing import NamedTuple

from igrun.errors import ImageError

HEADER = Struct("<16sHHIQQQIHHHHHH")
SECTION = Struct("<IIQQQQIIQQ")
SYMBOL = Struct("<IBBHQQ")

RELOCATABLE, BPF_MACHINE = 1, 247
PROGBITS, SYMTAB, NOBITS = 1, 2, 8
EXECUTABLE, COMPRESSED = 4, 0x800
OBJECT, FUNCTION = 1, 2
LOCAL = 0
HIGH_NUMBER = 0xFF00  # from here on a section number means something else
LONGEST_NAME = 4096
LARGEST_ZEROS = 1 << 26  # bytes of a section that has none in the file


class Section(NamedTuple):
    """A section. number: as symbols say it; link: number of the section it refers to."""

    number: int
    name: str
    type: int
    flags: int
    offset: int
    size: int
    link: int


class Symbol(NamedTuple):
    """A symbol. value: bytes from the start of its section; section: its number, 0 if it is undefined."""

    name: str
    value: int
    size: int
    type: int
    bind: int
    section: int


class Elf:
    """A little-endian 64-bit relocatable object for BPF."""

    def __init__(self, data: bytes) -> None:
        """ImageError: it is no such object, or its section table does not fit into it."""
        if data[:4] != b"\x7fELF":
            raise ImageError("not an ELF object: it does not begin with \\x7fELF")
        if len(data) < HEADER.size:
            raise ImageError(f"ELF: {len(data)} bytes are too few for a header")
        ident, kind, machine, _, _, _, table, _, _, _, _, each, count, names = HEADER.unpack_from(data)
        if ident[4] != 2 or ident[5] != 1:
            raise ImageError("ELF: not a little-endian 64-bit object", hint="compile with `clang -target bpf`")
        if kind != RELOCATABLE or machine != BPF_MACHINE:
            what = f"type {kind}, machine {machine}"
            raise ImageError(f"ELF: not a BPF object ({what})", hint="compile with `clang -target bpf -c`")
        if each != SECTION.size or count == 0 or table + count * each > len(data):
            raise ImageError(f"ELF: {count} section headers at byte {table} do not fit into {len(data)} bytes")
        self.data = data
        rows = [SECTION.unpack_from(data, table + each * number) for number in range(count)]
        if names >= count:
            raise ImageError(f"ELF: no section {names} with the names of sections")
        texts = self._bytes("section names", *rows[names][4:6])
        self.sections = tuple(
            Section(number, text(texts, row[0]), row[1], row[2], row[4], row[5], row[6])
            for number, row in enumerate(rows)
        )

    @cached_property
    def by_name(self) -> dict[str, Section]:
        """The first section of each name."""
        return {section.name: section for section in reversed(self.sections) if section.name}

    @cached_property
    def symbols(self) -> tuple[Symbol, ...]:
        """All symbols that have a name. ImageError: the table is broken."""
        table = next((section for section in self.sections if section.type == SYMTAB), None)
        if table is None:
            return ()
        if table.link >= len(self.sections):
            raise ImageError(f"ELF: symbol table {table.name!r} has no section of names")
        rows, names = self.content(table), self.content(self.sections[table.link])
        if len(rows) % SYMBOL.size:
            raise ImageError(f"ELF: symbol table {table.name!r} has {len(rows)} bytes, no whole number of symbols")
        return tuple(
            Symbol(text(names, name), value, size, info & 0xF, info >> 4, 0 if section >= HIGH_NUMBER else section)
            for name, info, _, section, value, size in SYMBOL.iter_unpack(rows)
            if name
        )

    def content(self, section: Section) -> bytes:
        """Its bytes; zeros where it has none in the file."""
        if section.flags & COMPRESSED:
            raise ImageError(f"ELF: section {section.name!r} is compressed")
        if section.type != NOBITS:
            return self._bytes(section.name, section.offset, section.size)
        if section.size > LARGEST_ZEROS:
            raise ImageError(f"ELF: section {section.name!r} of {section.size} bytes is too large")
        return bytes(section.size)

    @cached_property
    def functions(self) -> dict[int, list[Symbol]]:
        """The functions of each section that has some, in the order in which they stand there."""
        found: dict[int, list[Symbol]] = {}
        for one in sorted(self.symbols, key=lambda one: one.value):
            if one.type == FUNCTION:
                found.setdefault(one.section, []).append(one)
        return found

    def _bytes(self, name: str, offset: int, size: int) -> bytes:
        if offset + size > len(self.data):
            raise ImageError(f"ELF: section {name!r} reaches over the end of the {len(self.data)} bytes")
        return self.data[offset : offset + size]


def text(table: bytes, offset: int) -> str:
    """The string at that offset of a string table. ImageError: there is none, or it is not text that can be printed."""
    end = table.find(b"\0", offset, offset + LONGEST_NAME)
    if end < 0:
        raise ImageError(f"ELF: there is no name at {offset} of {len(table)} bytes")
    try:
        name = table[offset:end].decode()
    except UnicodeDecodeError:
        name = "\0"
    if not name.isprintable():
        raise ImageError(f"ELF: the name at {offset} is no name")
    return name
