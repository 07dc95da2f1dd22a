"""Executables and libraries: their segments and sections, and where in the file an address is."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from struct import Struct
from struct import error as StructError
from typing import NamedTuple

from igrun.errors import ImageError
from igrun.symbols.rooted import Readable

# elf.h
EXEC = 2  # ET_EXEC
LOAD, DYNAMIC, INTERP, NOTE = 1, 2, 3, 4  # PT_*
X = 1  # PF_X
PROGBITS, SYMTAB, STRTAB, SHT_NOTE, NOBITS, DYNSYM = 1, 2, 3, 7, 8, 11
VERDEF, VERSYM = 0x6FFFFFFD, 0x6FFFFFFF
COMPRESSED = 0x800
I386, ARM, X86_64, AARCH64 = 3, 40, 62, 183
# What a machine can run; its own first
MACHINES = {"x86_64": (X86_64, I386), "aarch64": (AARCH64, ARM)}
DT_NEEDED, DT_STRTAB, DT_STRSZ, DT_SONAME, DT_RPATH, DT_RUNPATH = 1, 5, 10, 14, 15, 29
MOST_SECTIONS, MOST_SEGMENTS = 1 << 16, 128
MOST_DYNAMIC = 1 << 10
MOST_NAMES = 1 << 20  # bytes of the names of sections
MOST_NOTES = 16 << 20
LONGEST = 1 << 14  # bytes of a name; C++ has long ones

HEADERS = {True: Struct("<16sHHIQQQIHHHHHH"), False: Struct("<16sHHIIIIIHHHHHH")}
SECTIONS = {True: Struct("<IIQQQQIIQQ"), False: Struct("<10I")}
SEGMENTS = {True: Struct("<IIQQQQQQ"), False: Struct("<8I")}
DYNAMICS = {True: Struct("<qQ"), False: Struct("<iI")}


class Section(NamedTuple):
    """A section. link: the number of the one that belongs to it; each: bytes of an entry."""

    name: str
    type: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    each: int


class Segment(NamedTuple):
    """A segment. size: bytes in the file."""

    type: int
    flags: int
    offset: int
    address: int
    size: int


class Note(NamedTuple):
    """An entry of a note section."""

    owner: bytes
    type: int
    content: bytes


class Binary:
    """An executable or library of this machine. machine: EM_*; wide: it is a 64-bit one.

    Reading it takes no more memory than its tables say, and those are bounded.
    """

    def __init__(self, file: Readable) -> None:
        """ImageError: it is none, or its tables do not fit into it."""
        self.file = file
        ident = file.read(0, 16)
        if ident[:4] != b"\x7fELF":
            raise ImageError("it is no ELF file")
        if len(ident) < 16 or ident[4] not in (1, 2) or ident[5] != 1:
            raise ImageError("it is not of a little-endian machine")
        self.wide = ident[4] == 2
        header = HEADERS[self.wide]
        try:
            fields = header.unpack(file.read(0, header.size))
        except StructError:
            raise ImageError("ELF: it is cut off") from None
        self.type: int = fields[1]
        self.machine: int = fields[2]
        self._segments_at, self._sections_at = fields[5:7]
        self._segment_size, self._segment_count, self._section_size, self._section_count, self._names = fields[9:]

    @property
    def fixed(self) -> bool:
        """Whether it runs at the addresses that it says."""
        return self.type == EXEC

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """ImageError: the table is broken."""
        form = SEGMENTS[self.wide]
        if self._segment_count and (self._segment_size != form.size or self._segment_count > MOST_SEGMENTS):
            raise ImageError(f"ELF: {self._segment_count} segments of {self._segment_size} bytes")
        found = []
        for row in form.iter_unpack(self._exactly(self._segments_at, form.size * self._segment_count)):
            if self.wide:
                kind, flags, offset, address, _, size, _, _ = row
            else:
                kind, offset, address, _, size, _, flags, _ = row
            found.append(Segment(kind, flags, offset, address, size))
        return tuple(found)

    @cached_property
    def sections(self) -> tuple[Section, ...]:
        """Empty where they were stripped. ImageError: the table is broken."""
        form = SECTIONS[self.wide]
        if not self._sections_at:
            return ()
        if self._section_size != form.size:
            raise ImageError("ELF: the sections have a size that they cannot have")
        first = form.unpack(self._exactly(self._sections_at, form.size))
        # Numbers that are too large for the header stand in the first section.
        count = self._section_count or first[5]
        names_at = first[6] if self._names == 0xFFFF else self._names
        if not 0 < count <= MOST_SECTIONS:
            raise ImageError(f"ELF: {count} sections")
        rows = list(form.iter_unpack(self._exactly(self._sections_at, form.size * count)))
        names = b""
        if 0 < names_at < count:
            names = self.file.read(rows[names_at][4], min(rows[names_at][5], MOST_NAMES))
        found = []
        for name, kind, flags, address, offset, size, link, _, _, each in rows:
            found.append(Section(text(names, name), kind, flags, address, offset, size, link, each))
        return tuple(found)

    def section(self, name: str) -> Section | None:
        """The first one of that name."""
        return next((one for one in self.sections if one.name == name), None)

    def content(self, section: Section, most: int) -> bytes:
        """Its bytes, none where it has none in the file. ImageError: they are too many, or not all there."""
        if section.type == NOBITS:
            return b""
        if section.flags & COMPRESSED or section.size > most:
            raise ImageError(f"ELF: section {section.name!r} of {section.size} bytes is too large, or compressed")
        return self._exactly(section.offset, section.size)

    def offset_of(self, address: int, *, code: bool = True) -> int | None:
        """Where in the file the byte of an address is. code: None too if it is never run."""
        for one in self.segments:
            if one.type == LOAD and 0 <= address - one.address < one.size and (one.flags & X or not code):
                return address - one.address + one.offset
        return None

    def address_of(self, offset: int) -> int | None:
        """The address of a place in the file, None if it is never loaded."""
        for one in self.segments:
            if one.type == LOAD and 0 <= offset - one.offset < one.size:
                return offset - one.offset + one.address
        return None

    def at(self, address: int, length: int) -> bytes:
        """The bytes of an address as they are in the file; fewer where it ends."""
        offset = self.offset_of(address, code=False)
        return b"" if offset is None else self.file.read(offset, length)

    def notes(self, name: str) -> Iterator[Note]:
        """The notes of a section; what follows a broken one is left out."""
        section = self.section(name)
        data = self.content(section, MOST_NOTES) if section else b""
        form, at = Struct("<III"), 0
        while at + form.size <= len(data):
            owner_size, size, kind = form.unpack_from(data, at)
            at += form.size
            start = at + -(-owner_size // 4) * 4
            if start + size > len(data):
                return
            yield Note(data[at : at + owner_size].rstrip(b"\0"), kind, data[start : start + size])
            at = start + -(-size // 4) * 4

    @cached_property
    def build_id(self) -> bytes:
        """Which build it is, b"" if it does not say."""
        for name in (".note.gnu.build-id", ".notes"):
            for note in self.notes(name):
                if note.owner == b"GNU" and note.type == 3 and 2 < len(note.content) <= 64:
                    return note.content
        return b""

    # -------------------------------------------------------------------------------------------- dynamic linking

    @cached_property
    def _dynamic(self) -> dict[int, list[int]]:
        form = DYNAMICS[self.wide]
        found: dict[int, list[int]] = {}
        for one in self.segments:
            if one.type == DYNAMIC:
                size = min(one.size, MOST_DYNAMIC * form.size) // form.size * form.size
                data = self.file.read(one.offset, size)
                for tag, value in form.iter_unpack(data[: len(data) // form.size * form.size]):
                    if tag == 0:
                        break
                    found.setdefault(tag, []).append(value)
        return found

    def _texts(self, tag: int) -> list[str]:
        tables = self._dynamic.get(DT_STRTAB, ())
        return [text(self.at(tables[0] + value, LONGEST), 0) for value in self._dynamic.get(tag, ()) if tables]

    @property
    def needed(self) -> list[str]:
        """The libraries that it is linked to."""
        return self._texts(DT_NEEDED)

    @property
    def soname(self) -> str:
        return next(iter(self._texts(DT_SONAME)), "")

    @property
    def rpath(self) -> list[str]:
        """Directories of DT_RPATH."""
        return [one for line in self._texts(DT_RPATH) for one in line.split(":") if one]

    @property
    def runpath(self) -> list[str]:
        """Directories of DT_RUNPATH."""
        return [one for line in self._texts(DT_RUNPATH) for one in line.split(":") if one]

    @property
    def interpreter(self) -> str:
        """The dynamic linker that it asks for, "" if none."""
        for one in self.segments:
            if one.type == INTERP:
                return text(self.file.read(one.offset, min(one.size, LONGEST)), 0)
        return ""

    def _exactly(self, offset: int, length: int) -> bytes:
        if offset + length > self.file.size:
            raise ImageError(f"ELF: {length} bytes at {offset} reach over the end of the file")
        data = self.file.read(offset, length)
        if len(data) < length:
            raise ImageError("ELF: it became shorter while it was read")
        return data


def text(data: bytes, start: int) -> str:
    """The text that begins there, "" if there is none that ends."""
    end = data.find(b"\0", start, start + LONGEST)
    return data[start:end].decode(errors="replace") if 0 <= start <= end else ""
