"""Functions in the symbol tables of a binary, with the versions of their names."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from struct import Struct
from struct import error as StructError
from typing import NamedTuple

from igrun.errors import ImageError
from igrun.symbols.binary import ARM, DYNSYM, LONGEST, NOBITS, SYMTAB, VERDEF, VERSYM, Binary, Section, text

FUNC, IFUNC = 2, 10  # STT_FUNC, STT_GNU_IFUNC
LOCAL = 0
FORMS = {True: Struct("<IBBHQQ"), False: Struct("<IIIBBH")}
MOST_SYMBOLS = 1 << 24
MOST_TEXT = 256 << 20  # bytes of names, where all of them are wanted
MOST_SEARCHED = 2 << 30  # bytes of names, where one is looked for
MOST_VERSIONS = 1 << 16
MOST_BYTES = 16 << 20  # of what says versions
CHUNK = 24 * 16 * (1 << 12)  # bytes, of whole symbols of either size
MOST_PLACES = 1 << 20  # of one name among the strings
HIDDEN = 0x8000


class Function(NamedTuple):
    """A function. version: of its name, "" if it has none; default: that is the one that new programs get.

    address: as the binary says it; local: only its own source file sees it; chosen: the address is that of a function
    which says, at start, where the real one is (IFUNC)
    """

    name: str
    version: str
    default: bool
    address: int
    local: bool
    chosen: bool


class Table:
    """A table of symbols."""

    def __init__(self, binary: Binary, section: Section) -> None:
        """ImageError: its names are not there."""
        self._binary, self._section = binary, section
        self._form = FORMS[binary.wide]
        self._strings = binary.sections[section.link] if section.link < len(binary.sections) else None
        if self._strings and self._strings.type == NOBITS:
            self._strings = None
        if self._strings and self._strings.offset + self._strings.size > binary.file.size:
            raise ImageError("ELF: the names of symbols reach over the end of the file")

    def named(self, name: str) -> list[Function]:
        """The functions of that name, of whatever version. ImageError: the table is broken."""
        places = self._places(name.encode(errors="surrogateescape"))
        return [one for one in self._functions(places) if one.name == name] if places else []

    def all(self) -> Iterator[Function]:
        """Every function. ImageError: the table is broken, or too large for that."""
        strings = self._strings
        if strings is None:
            return iter(())
        if strings.size > MOST_TEXT:
            raise ImageError(f"ELF: {strings.size} bytes of names are too many")
        return self._functions(None, self._binary.file.read(strings.offset, strings.size))

    def _places(self, name: bytes) -> set[int]:
        """Where the name, or what ends like it, is among the strings."""
        strings = self._strings
        found: set[int] = set()
        if strings is None:
            return found
        if strings.size > MOST_SEARCHED:
            raise ImageError(f"ELF: {strings.size} bytes of names are too many")
        for start in range(0, strings.size, CHUNK):
            length = min(CHUNK + len(name), strings.size - start)  # one that lies across the end is found too
            chunk = self._binary.file.read(strings.offset + start, length)
            at = chunk.find(name)
            while at >= 0:
                if chunk[at + len(name) : at + len(name) + 1] in (b"\0", b"@"):
                    found.add(start + at)
                    if len(found) > MOST_PLACES:
                        raise ImageError("ELF: the names of symbols are no such")
                at = chunk.find(name, at + 1)
        return found

    def _functions(self, places: set[int] | None, names: bytes = b"") -> Iterator[Function]:
        """The functions whose names are there. names: all of them, where None stands for everywhere."""
        count = min(self._section.size // self._form.size, MOST_SYMBOLS)
        thumb = self._binary.machine == ARM
        signs = 0
        for start in range(0, count, CHUNK // self._form.size):
            rows = min(CHUNK // self._form.size, count - start)
            data = self._binary.file.read(self._section.offset + start * self._form.size, rows * self._form.size)
            if len(data) < rows * self._form.size:
                raise ImageError(f"ELF: symbol table {self._section.name!r} is cut off")
            for number, row in enumerate(self._form.iter_unpack(data), start):
                if places is not None and row[0] not in places:
                    continue
                if self._binary.wide:
                    at, info, _, section, address, _ = row
                else:
                    at, address, _, info, _, section = row
                kind = info & 15
                if kind not in (FUNC, IFUNC) or not section or not address:
                    continue
                name, version, default = self._versioned(number, text(names, at) if names else self._text(at))
                signs += len(name)
                if signs > MOST_TEXT:  # more than there are, where many are one's end
                    raise ImageError("ELF: the names of symbols are no such")
                yield Function(
                    name,
                    version,
                    default,
                    address & ~1 if thumb else address,
                    info >> 4 == LOCAL,
                    kind == IFUNC,
                )

    def _text(self, at: int) -> str:
        assert self._strings is not None
        if at >= self._strings.size:
            return ""
        return text(self._binary.file.read(self._strings.offset + at, min(LONGEST, self._strings.size - at)), 0)

    def _versioned(self, number: int, name: str) -> tuple[str, str, bool]:
        """Name, version, and if that is the default one."""
        base, at, version = name.partition("@")
        if at:
            return base, version.removeprefix("@"), version.startswith("@")
        if 2 * number + 2 > len(self._version_of):
            return name, "", True
        index = int.from_bytes(self._version_of[2 * number : 2 * number + 2], "little")
        version = self._versions.get(index & ~HIDDEN, "")
        return name, version, not index & HIDDEN

    @cached_property
    def _version_of(self) -> bytes:
        """For each symbol two bytes: the number of its version."""
        binary = self._binary
        for one in binary.sections:
            if one.type == VERSYM and one.link < len(binary.sections) and binary.sections[one.link] == self._section:
                return binary.content(one, MOST_BYTES)
        return b""

    @cached_property
    def _versions(self) -> dict[int, str]:
        """Number -> version that this binary defines."""
        section = next((one for one in self._binary.sections if one.type == VERDEF), None)
        if section is None:
            return {}
        data = self._binary.content(section, MOST_BYTES)
        found: dict[int, str] = {}
        definition, name = Struct("<HHHHIII"), Struct("<II")
        at = 0
        try:
            for _ in range(MOST_VERSIONS):
                _, flags, number, _, _, first, following = definition.unpack_from(data, at)
                (string, _) = name.unpack_from(data, at + first)
                if not flags & 1:  # VER_FLG_BASE: the file itself
                    found[number] = self._text(string)
                if not following:
                    break
                at += following
        except StructError:
            raise ImageError("ELF: the versions of symbols are broken") from None
        return found


def tables(binary: Binary) -> list[Table]:
    """Its tables of symbols: the full one first, if it has both. ImageError."""
    by_type = {one.type: one for one in reversed(binary.sections) if one.type in (SYMTAB, DYNSYM)}
    return [Table(binary, by_type[kind]) for kind in (SYMTAB, DYNSYM) if kind in by_type]


def preferred(found: list[Function], version: str) -> list[Function]:
    """Of functions of one name those that are meant: of that version; or of the default one, before local ones."""
    if version:
        return [one for one in found if one.version == version]
    public = [one for one in found if not one.local]
    return [one for one in public if one.default] or public or found
