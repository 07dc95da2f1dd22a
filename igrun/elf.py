"""The ELF object that a compiler makes of a BPF program: its sections and symbols, read by pyelftools."""

from __future__ import annotations

from functools import cached_property
from io import BytesIO
from struct import Struct
from struct import error as StructError
from typing import NamedTuple

from igrun.errors import ImageError

HEADER = Struct("<16sHHIQQQIHHHHHH")
SECTION_HEADER = 64  # bytes
RELOCATABLE, BPF_MACHINE = 1, 247
PROGBITS, SYMTAB, NOBITS = "SHT_PROGBITS", "SHT_SYMTAB", "SHT_NOBITS"
EXECUTABLE, COMPRESSED = 4, 0x800
OBJECT, FUNCTION = "STT_OBJECT", "STT_FUNC"
LOCAL = "STB_LOCAL"
LONGEST_NAME = 4096
LARGEST_ZEROS = 1 << 26  # bytes of a section that has none in the file
MOST_SYMBOLS = 1 << 18
# How pyelftools fails on a broken file, beside its own errors
BROKEN = (ValueError, LookupError, AttributeError, TypeError, ArithmeticError, AssertionError, StructError)


class Section(NamedTuple):
    """A section. number: as symbols say it; type: as elf.h names it, or its number where that has no name."""

    number: int
    name: str
    type: str | int
    flags: int
    offset: int
    size: int


class Symbol(NamedTuple):
    """A symbol. value: bytes from the start of its section; section: its number, 0 if it is undefined."""

    name: str
    value: int
    size: int
    type: str | int
    bind: str | int
    section: int


class Elf:
    """A little-endian 64-bit relocatable object for BPF."""

    def __init__(self, data: bytes) -> None:
        """ImageError: it is no such object, or its section table does not fit into it."""
        from elftools.common.exceptions import ELFError
        from elftools.construct import ConstructError
        from elftools.elf.elffile import ELFFile

        refuse_foreign(data)
        self.data = data
        self._failures = (ELFError, ConstructError, *BROKEN)
        try:
            self._file = ELFFile(BytesIO(data))
            self._sections = list(self._file.iter_sections())
            self.sections = tuple(
                Section(
                    number,
                    checked(one.name),
                    one["sh_type"],
                    one["sh_flags"],
                    one["sh_offset"],
                    one["sh_size"],
                )
                for number, one in enumerate(self._sections)
            )
        except self._failures as error:
            raise ImageError(f"ELF: the table of sections is broken ({one_line(error)})") from None

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
        self.content(table)  # it is all there
        from elftools.elf.sections import SymbolTableSection

        try:
            source = self._sections[table.number]
            if not isinstance(source, SymbolTableSection) or source.num_symbols() > MOST_SYMBOLS:
                raise ImageError(f"ELF: symbol table {table.name!r} has more than {MOST_SYMBOLS} symbols")
            return tuple(
                Symbol(
                    checked(one.name),
                    one["st_value"],
                    one["st_size"],
                    one["st_info"]["type"],
                    one["st_info"]["bind"],
                    one["st_shndx"] if isinstance(one["st_shndx"], int) else 0,
                )
                for one in source.iter_symbols()
                if one.name
            )
        except self._failures as error:
            raise ImageError(f"ELF: symbol table {table.name!r} is broken ({one_line(error)})") from None

    def content(self, section: Section) -> bytes:
        """Its bytes; zeros where it has none in the file."""
        if section.flags & COMPRESSED:
            raise ImageError(f"ELF: section {section.name!r} is compressed")
        if section.type != NOBITS:
            end = section.offset + section.size
            if end > len(self.data):
                raise ImageError(f"ELF: section {section.name!r} reaches over the end of the {len(self.data)} bytes")
            return self.data[section.offset : end]
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


def refuse_foreign(data: bytes) -> None:
    """ImageError if it is no ELF object for BPF, or its section table lies outside of it."""
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
    if each != SECTION_HEADER or count == 0 or table + count * each > len(data):
        raise ImageError(f"ELF: {count} section headers at byte {table} do not fit into {len(data)} bytes")
    if names >= count:
        raise ImageError(f"ELF: no section {names} with the names of sections")


def checked(name: str) -> str:
    """The name. ImageError: it is not text that can be printed, or endless."""
    if len(name) > LONGEST_NAME or not name.isprintable() or "\ufffd" in name:
        raise ImageError("ELF: a section or symbol has a name that is none")
    return name


def one_line(error: BaseException) -> str:
    """What the error says, in a few words that can be printed."""
    words = " ".join(str(error).split())
    return "".join(c for c in words if c.isprintable())[:80] or type(error).__name__
