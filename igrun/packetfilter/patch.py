"""A filter put into an ELF object: in front of the code of `gadget_pf_<name>`.

Nothing in the object moves: the function gets a new place behind the others of its section, which itself moves to the
end of the file. What points to the function, or lies in it, is changed: its symbol, calls, relocations, and the
records of .BTF.ext. Its old place stays as a hole that belongs to no function, which libbpf leaves out.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from struct import error as StructError

from igrun.dataclass import dataclass
from igrun.elf import EXECUTABLE, HEADER, PROGBITS, SECTION_HEADER, Elf, Section
from igrun.errors import ImageError

SYMBOL, RELOCATION, SLOT = Struct("<IBBHQQ"), Struct("<QQ"), Struct("<BBhi")
OFFSET_AND_SIZE = Struct("<QQ")  # in a section's header
CALL, LOAD_ADDRESS, PSEUDO_CALL = 0x85, 0x18, 1
FUNCTION, SECTION = 2, 3  # STT_FUNC, STT_SECTION
MOST_RECORDS = 1 << 20  # instructions, symbols, relocations, records of .BTF.ext
WORDS = Struct("<II")
BTF_MAGIC = 0xEB9F


@dataclass(frozen=True, slots=True)
class Function:
    """A function. entry: its symbol's place in the table; section: its number; start, end: bytes in the section."""

    name: str
    entry: int
    section: int
    start: int
    end: int


class Patch:
    """An object that is being changed. ImageError: it is broken."""

    def __init__(self, elf: Elf) -> None:
        self.elf = elf
        self.data = bytearray(elf.data)
        self.code = {
            one.number: bytearray(elf.content(one))
            for one in elf.sections
            if one.type == PROGBITS and one.flags & EXECUTABLE and one.size
        }
        for number, content in self.code.items():
            if len(content) % SLOT.size or len(content) > MOST_RECORDS * SLOT.size:
                raise ImageError(f"ELF: section {elf.sections[number].name!r} is no list of instructions")
        table = next((one for one in elf.sections if one.type == "SHT_SYMTAB"), None)
        if table is None:
            raise ImageError("ELF: there is no symbol table")
        self.symbols = table
        self.names = elf.content(self._linked(table))
        elf.content(table)
        if table.size > MOST_RECORDS * SYMBOL.size:
            raise ImageError(f"ELF: symbol table {table.name!r} is too large")

    def finished(self) -> bytes:
        """The object with all changes."""
        for number, content in self.code.items():
            section = self.elf.sections[number]
            if len(content) == section.size:
                self.data[section.offset : section.offset + section.size] = content
                continue
            self.data += bytes(-len(self.data) % 8)
            place = self._header(section) + 24
            OFFSET_AND_SIZE.pack_into(self.data, place, len(self.data), len(content))
            self.data += content
        return bytes(self.data)

    # ---------------------------------------------------------------------------------------- what is there

    def _header(self, section: Section) -> int:
        first: int = HEADER.unpack_from(self.elf.data)[6]
        return first + SECTION_HEADER * section.number

    def _linked(self, section: Section, field: int = 40) -> Section:
        """The section that its header refers to: sh_link, or sh_info (field 44)."""
        number = int.from_bytes(self.elf.data[self._header(section) + field :][:4], "little")
        if number >= len(self.elf.sections):
            raise ImageError(f"ELF: section {section.name!r} refers to section {number}, which is none")
        return self.elf.sections[number]

    def functions(self) -> Iterator[Function]:
        """All functions in sections of code."""
        for entry in range(self.symbols.offset, self.symbols.offset + self.symbols.size - 23, SYMBOL.size):
            name, info, _, section, value, size = SYMBOL.unpack_from(self.data, entry)
            if info & 15 != FUNCTION or section not in self.code:
                continue
            if value % 8 or size % 8 or not size or value + size > len(self.code[section]):
                raise ImageError("ELF: a function does not lie within its section")
            yield Function(self._name(name), entry, section, value, value + size)

    def _name(self, place: int) -> str:
        return self.names[place : self.names.find(b"\0", place)].decode("utf-8", "replace")

    def relocations(self) -> Iterator[tuple[int, int, int, tuple[int, int]]]:
        """Of code: the relocation's place in the file, its section, its offset there; its symbol's place and type."""
        for table in self.elf.sections:
            if table.type != "SHT_REL" or self._linked(table, 44).number not in self.code:
                continue
            self.elf.content(table)
            if table.size > MOST_RECORDS * RELOCATION.size:
                raise ImageError(f"ELF: relocation table {table.name!r} is too large")
            section = self._linked(table, 44).number
            for place in range(table.offset, table.offset + table.size - 15, RELOCATION.size):
                offset, info = RELOCATION.unpack_from(self.data, place)
                entry = self.symbols.offset + (info >> 32) * SYMBOL.size
                if entry + SYMBOL.size > self.symbols.offset + self.symbols.size:
                    raise ImageError(f"ELF: relocation table {table.name!r} refers to a symbol that is none")
                if offset + SLOT.size > len(self.code[section]) or offset % SLOT.size:
                    raise ImageError(f"ELF: relocation table {table.name!r} refers to an instruction that is none")
                yield place, section, offset, (entry, SYMBOL.unpack_from(self.data, entry)[1] & 15)

    def calls(self) -> Iterator[tuple[int, int, int, int, bool]]:
        """Calls of functions: section and offset of the call, section and offset of the target; True: by section.

        True if the call holds the target's place itself, so that it changes with it.
        """
        related = {}
        for _, section, offset, (entry, kind) in self.relocations():
            related[section, offset] = (entry, kind)
        for section, content in self.code.items():
            for offset in range(0, len(content), SLOT.size):
                if content[offset] != CALL or content[offset + 1] >> 4 != PSEUDO_CALL:
                    continue
                number = int.from_bytes(content[offset + 4 : offset + 8], "little", signed=True)
                if (section, offset) not in related:
                    yield section, offset, section, offset + 8 * (number + 1), True
                    continue
                entry, kind = related[section, offset]
                _, _, _, other, value, _ = SYMBOL.unpack_from(self.data, entry)
                yield section, offset, other, value + 8 * (number + 1), kind == SECTION

    def callers(self, function: Function) -> set[str]:
        """Sections of the programs that reach it."""
        functions = list(self.functions())
        reached, pending = {function}, [function]
        calls: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for section, offset, other, target, _ in self.calls():
            calls.setdefault((other, target), []).append((section, offset))
        while pending:
            one = pending.pop()
            for section, offset in calls.get((one.section, one.start), ()):
                for caller in functions:
                    if caller.section == section and caller.start <= offset < caller.end and caller not in reached:
                        reached.add(caller)
                        pending.append(caller)
        sections = {self.elf.sections[one.section].name for one in reached}
        return sections - {self.elf.sections[function.section].name}

    # ---------------------------------------------------------------------------------------- changes

    def prepend(self, function: Function, code: bytes) -> None:
        """Put code in front of a function's."""
        content = self.code[function.section]
        start, size = len(content), function.end - function.start
        moved = start + len(code) - function.start
        calls = list(self.calls())
        for place, section, offset, (entry, kind) in list(self.relocations()):
            inside = section == function.section and function.start <= offset < function.end
            if inside:
                RELOCATION.pack_into(self.data, place, offset + moved, RELOCATION.unpack_from(self.data, place)[1])
            address = content if section == function.section else self.code[section]
            if address[offset] == LOAD_ADDRESS and kind == SECTION:
                self._move_address(entry, section, offset, function, start)
        body = content[function.start : function.end]
        content += code + body
        for section, offset, other, target, held in calls:
            if (other, target) == (function.section, function.start) and held:
                self._add_to_number(section, offset, (start - function.start) // 8)
        related = {(section, offset) for _, section, offset, _ in self.relocations()}
        for offset in range(function.start, function.end, SLOT.size):
            if content[offset] == CALL and content[offset + 1] >> 4 == PSEUDO_CALL:
                # A call in the function itself tells how far away its target is. Its copy is further away.
                there = offset + moved
                if (function.section, there) not in related:
                    content[there : there + 8] = content[offset : offset + 8]
                    self._add_to_number(function.section, there, -moved // 8)
        name, info, other_, section, _, _ = SYMBOL.unpack_from(self.data, function.entry)
        SYMBOL.pack_into(self.data, function.entry, name, info, other_, section, start, len(code) + size)
        self._move_records(function, start, moved)

    def _add_to_number(self, section: int, offset: int, change: int) -> None:
        content = self.code[section]
        op, registers, off, number = SLOT.unpack_from(content, offset)
        SLOT.pack_into(content, offset, op, registers, off, number + change)

    def _move_address(self, entry: int, section: int, offset: int, function: Function, start: int) -> None:
        """An instruction that loads the function's address holds its place in the section."""
        _, _, _, other, value, _ = SYMBOL.unpack_from(self.data, entry)
        op, registers, off, number = SLOT.unpack_from(self.code[section], offset)
        if other == function.section and value + number == function.start:
            SLOT.pack_into(self.code[section], offset, op, registers, off, start - value)

    # ---------------------------------------------------------------------------------------- .BTF.ext

    def _move_records(self, function: Function, start: int, moved: int) -> None:
        """The records of the function go behind the others of its section, as libbpf wants them in order."""
        section = self.elf.by_name.get(".BTF.ext")
        if section is None:
            return
        self.elf.content(section)
        name = self.elf.sections[function.section].name
        try:
            for table in self._tables(section):
                for place, count, size in self._records(section, table, name):
                    self._move(place, count, size, function, start, moved)
        except StructError:
            raise ImageError("ELF: section .BTF.ext is broken") from None

    def _tables(self, section: Section) -> Iterator[tuple[int, int]]:
        """Begin and end in the file of the tables of functions, lines and CO-RE relocations."""
        magic, _, _, length = Struct("<HBBI").unpack_from(self.data, section.offset)
        if magic != BTF_MAGIC:
            raise ImageError("ELF: section .BTF.ext is broken")
        for field in range(8, min(length, 32) - 7, 8):
            offset, size = WORDS.unpack_from(self.data, section.offset + field)
            begin = section.offset + length + offset
            if begin + size > section.offset + section.size:
                raise ImageError("ELF: a table of .BTF.ext lies outside of it")
            if size:
                yield begin, begin + size

    def _records(self, section: Section, table: tuple[int, int], name: str) -> Iterator[tuple[int, int, int]]:
        """Place, number and size of the records of the section `name`."""
        begin, end = table
        size = int.from_bytes(self.data[begin : begin + 4], "little")
        if size < 8 or size % 4:
            raise ImageError("ELF: section .BTF.ext is broken")
        place = begin + 4
        while place + 8 <= end:
            named, count = WORDS.unpack_from(self.data, place)
            place += 8
            if place + count * size > end or count > MOST_RECORDS:
                raise ImageError("ELF: a table of .BTF.ext lies outside of it")
            if self._btf_text(named) == name:
                yield place, count, size
            place += count * size

    def _btf_text(self, place: int) -> str:
        section = self.elf.by_name.get(".BTF")
        if section is None:
            raise ImageError("ELF: there is a section .BTF.ext without .BTF")
        content = self.elf.content(section)
        if len(content) < 24:
            raise ImageError("ELF: section .BTF is broken")
        begin = int.from_bytes(content[4:8], "little") + int.from_bytes(content[16:20], "little") + place
        return content[begin : content.find(b"\0", begin)].decode("utf-8", "replace")

    def _move(self, place: int, count: int, size: int, function: Function, start: int, moved: int) -> None:
        records = []
        for at in range(place, place + count * size, size):
            offset = int.from_bytes(self.data[at : at + 4], "little")
            if offset == function.start:
                offset = start  # what is said of the function's begin is said of the filter
            elif function.start < offset < function.end:
                offset += moved
            records.append((offset, bytes(self.data[at + 4 : at + size])))
        records.sort(key=lambda one: one[0])
        self.data[place : place + count * size] = b"".join(
            offset.to_bytes(4, "little") + rest for offset, rest in records
        )
