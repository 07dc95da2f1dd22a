"""Functions of Go programs, stripped ones too: the runtime needs the table .gopclntab for stack traces."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property
from struct import Struct, iter_unpack, unpack_from
from struct import error as StructError

from igrun.errors import ImageError
from igrun.symbols.binary import PROGBITS, Binary, Section, text
from igrun.symbols.tables import tables

# internal/abi/symtab.go in Go's sources
GO_1_2, GO_1_16, GO_1_18, GO_1_20 = 0xFFFFFFFB, 0xFFFFFFFA, 0xFFFFFFF0, 0xFFFFFFF1
START = re.compile(rb"[\xfb\xfa\xf0\xf1]\xff\xff\xff\0\0[\1\2\4][\4\x08]")
NAMES = (".gopclntab", ".data.rel.ro.gopclntab")
# Where the table may be without a section of its own: an external linker joins sections
PARTS = (".data.rel.ro", ".rodata")
MOST_BYTES = 256 << 20
MOST_FUNCTIONS = 1 << 20
MOST_TEXT = 256 << 20  # bytes of all names
MOST_TRIED = 4  # of what looks like a table
MOST_PLACES = 1 << 16  # of one name among the names
RELA, RELATIVE = 4, {62: 8, 183: 1027}  # SHT_RELA; R_X86_64_RELATIVE, R_AARCH64_RELATIVE by machine


class GoFunctions:
    """The functions in the table at `start` of `data`. address: of its first byte, where it is loaded."""

    def __init__(self, binary: Binary, data: bytes, start: int, address: int) -> None:
        """ImageError: the table is broken."""
        self._binary, self._address = binary, address
        self._data = data = data[start:]
        try:
            self._magic, size = unpack_from("<I3xB", data)
            word = {4: "I", 8: "Q"}[size]
            self._word = size

            def field(number: int) -> int:
                value: int = unpack_from(f"<{word}", data, 8 + number * size)[0]
                return value

            count = field(0)
            if not 0 < count <= MOST_FUNCTIONS:
                raise ImageError(f"Go: {count} functions")
            if self._magic == GO_1_2:
                names, functions, table = 0, 0, 8 + size
            elif self._magic == GO_1_16:
                names, functions = field(2), field(6)
                table = functions
            else:
                names, functions = field(3), field(7)
                table = functions
        except (StructError, KeyError):
            raise ImageError("Go: the table of functions is cut off") from None
        self._short = self._magic in (GO_1_18, GO_1_20)  # offsets of 32 bits in the place of addresses
        pair = Struct("<II" if self._short else f"<{word}{word}")
        rows = data[table : table + pair.size * count]
        if len(rows) < pair.size * count or names >= len(data):
            raise ImageError("Go: the table of functions is cut off")
        self._rows = [(address, functions + at) for address, at in pair.iter_unpack(rows)]
        self._names = names
        self._before = 4 if self._short else size  # bytes of a function's data before its name

    def named(self, name: str) -> list[int]:
        """Addresses of the functions of that name. ImageError: where they begin cannot be found."""
        wanted = name.encode(errors="surrogateescape") + b"\0"
        places = set()
        at = self._data.find(wanted, self._names)
        while at >= 0:
            if at == self._names or self._data[at - 1] == 0:
                places.add(at - self._names)
                if len(places) > MOST_PLACES:
                    raise ImageError("Go: the names of functions are no such")
            at = self._data.find(wanted, at + 1)
        if not places:
            return []
        found = [(address, self._id(row)) for row, (address, place) in enumerate(self._functions()) if place in places]
        # An assembly function has a wrapper of its name for callers with another calling convention.
        real = [address for address, kind in found if kind != self._wrapper]
        return real or [address for address, _ in found]

    def all(self) -> Iterator[tuple[str, int]]:
        """Name and address of each one."""
        signs = 0
        for address, place in self._functions():
            name = text(self._data, self._names + place)
            signs += len(name)
            if signs > MOST_TEXT:
                raise ImageError("Go: the names of functions are no such")
            if name:
                yield name, address

    @cached_property
    def addresses(self) -> frozenset[int]:
        """Where its functions begin."""
        return frozenset(address for address, _ in self._functions())

    def _functions(self) -> Iterator[tuple[int, int]]:
        """Address of each function, and where its name is among the names."""
        base = self._text if self._short else 0
        for entry, at in self._rows:
            place = self._data[at + self._before : at + self._before + 4]
            if len(place) < 4:
                raise ImageError("Go: a function's data is cut off")
            yield base + entry, int.from_bytes(place, "little")

    def _id(self, row: int) -> int:
        """What is special about a function (FuncID), -1 where the table does not say it at a known place."""
        before = {GO_1_16: 32 + self._word, GO_1_18: 36, GO_1_20: 40}.get(self._magic, 0)
        at = self._rows[row][1] + before
        return self._data[at] if before and at < len(self._data) else -1

    @cached_property
    def _wrapper(self) -> int:
        """The FuncID of wrappers. Its number differs from version to version, but it is always the one after this."""
        at = self._data.find(b"\0runtime.systemstack_switch\0", self._names) + 1 - self._names
        rows = (row for row, (_, place) in enumerate(self._functions()) if place == at)
        return max((self._id(row) for row in rows), default=-2) + 1

    @cached_property
    def _text(self) -> int:
        """The address that entries count from (runtime.text). ImageError: it is not to be found."""
        ends = (self._rows[0][0], self._rows[-1][0])
        for found in self._texts():
            # Where the first and the last function are said to be there is code.
            if found and all(self._binary.offset_of(found + one) is not None for one in ends):
                return found
        raise ImageError("Go: where the program's code begins is not to be found")

    def _texts(self) -> Iterator[int]:
        """What it may be, the surest first."""
        form = "<Q" if self._word == 8 else "<I"
        at = 8 + 2 * self._word
        # Up to Go 1.25 the header has it, as something to be relocated in programs that may lie anywhere. Since 1.26
        # it is only in the module's data, which have a section of their own.
        module = self._binary.section(".go.module")
        places = {self._address + at: unpack_from(form, self._data, at)[0]}
        if module:
            text_at = 22 * self._word  # pcHeader, six slices, findfunctab, minpc, maxpc, text
            data = self._binary.content(module, MOST_BYTES)[text_at : text_at + self._word]
            if len(data) == self._word:
                places = {module.address + text_at: unpack_from(form, data)[0], **places}
        yield from places.values()
        for table in tables(self._binary):
            yield from (one.address for one in table.named("runtime.text"))
        yield from self._relocated(set(places))
        code = self._binary.section(".text")  # where nothing but Go was linked
        if code:
            yield code.address

    def _relocated(self, places: set[int]) -> Iterator[int]:
        """What the dynamic linker will write there."""
        for one in self._binary.sections:
            if one.type == RELA and self._binary.wide:
                data = self._binary.content(one, MOST_BYTES)
                for where, kind, value in iter_unpack("<QQq", data[: len(data) // 24 * 24]):
                    if where in places and kind == RELATIVE.get(self._binary.machine):
                        yield value


def go_functions(binary: Binary) -> GoFunctions | None:
    """Of a Go program; None if it is none. ImageError: its table is broken."""
    named = next((one for name in NAMES if (one := binary.section(name))), None)
    if named:
        return GoFunctions(binary, binary.content(named, MOST_BYTES), 0, named.address)
    if binary.section(".go.buildinfo") is None:
        return None
    for name in PARTS:
        section = binary.section(name)
        if section is not None and section.type == PROGBITS and section.size <= MOST_BYTES:
            found = searched(binary, section)
            if found:
                return found
    return None


def searched(binary: Binary, section: Section) -> GoFunctions | None:
    """The table inside of a section."""
    data = binary.content(section, MOST_BYTES)
    tried = 0
    for match in START.finditer(data):
        if match.start() % 8:
            continue
        tried += 1
        if tried > MOST_TRIED:
            break
        try:
            found = GoFunctions(binary, data, match.start(), section.address + match.start())
            if all(binary.offset_of(address) is not None for address in list(found.addresses)[:16]):
                return found
        except ImageError:
            continue
    return None
