"""The instructions of a BPF object, and what its relocations say of them. Never trusted, always bounded."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from struct import Struct
from typing import NamedTuple

from igrun.btf import Btf
from igrun.dataclass import dataclass
from igrun.elf import EXECUTABLE, HEADER, PROGBITS, SECTION_HEADER, Elf, Section
from igrun.errors import ImageError

SLOT = Struct("<BBhi")
SYMBOL, RELOCATION = Struct("<IBBHQQ"), Struct("<QQ")
REL = "SHT_REL"
MOST_INSTRUCTIONS = 1 << 20  # the verifier of a kernel takes a million for a program
MOST_RECORDS = 1 << 20
LD_IMM64, CALL, EXIT = 0x18, 0x85, 0x95
PSEUDO_CALL = 1
FUNCTION, SECTION, WEAK = 2, 3, 2  # STT_FUNC, STT_SECTION, STB_WEAK
EXISTS = {2: "field_exists", 8: "type_exists", 10: "enumval_exists", 12: "type_matches"}
KINDS = (
    "byte_off byte_sz field_exists signed lshift_u64 rshift_u64 local_type_id target_type_id type_exists type_size "
    "enumval_exists enumval_value type_matches"
)


class Instruction(NamedTuple):
    """One instruction. at: in slots of 8 bytes from its section's start; imm: of ld_imm64 all 64 bits, unsigned."""

    at: int
    op: int
    dst: int
    src: int
    off: int
    imm: int


class Target(NamedTuple):
    """What a relocation puts into an instruction.

    kind:  map, data (a variable's section), function, or extern (a kfunc, a kernel symbol, a config value)
    name:  of the map, section, function or extern
    value: offset in the data section, or the function's first slot
    section: the function's
    """

    kind: str
    name: str
    value: int = 0
    section: int = 0
    weak: bool = False


class Core(NamedTuple):
    """A CO-RE relocation. kind: see KINDS; type: BTF id in the object; access: as clang writes it (0:1:2)."""

    kind: int
    type: int
    access: str


@dataclass(frozen=True, slots=True)
class Function:
    """A function. start, end: slots in its section."""

    name: str
    section: int
    start: int
    end: int
    is_global: bool


class Symbol(NamedTuple):
    """A symbol of the whole table, the unnamed ones of sections among it."""

    name: str
    type: int
    bind: int
    section: int
    value: int
    size: int


class Code:
    """The code of an object. Every member raises ImageError where what it looks at is broken."""

    def __init__(self, elf: Elf, btf: Btf) -> None:
        self.elf, self.btf = elf, btf
        self._instructions: dict[int, dict[int, Instruction]] = {}
        self._room = MOST_INSTRUCTIONS

    @classmethod
    def of(cls, elf: bytes) -> Code:
        """Of an object's bytes. ImageError: it is none."""
        object_ = Elf(elf)
        section = object_.by_name.get(".BTF")
        if section is None:
            raise ImageError("the BPF object has no section .BTF with its types", hint="compile with `clang -g`")
        return cls(object_, Btf.parse(object_.content(section)))

    def instructions(self, section: int) -> dict[int, Instruction]:
        """Those of a section by their slot."""
        if section not in self._instructions:
            content = self.elf.content(self.elf.sections[section])
            if len(content) % SLOT.size:
                raise ImageError(f"ELF: section {self.elf.sections[section].name!r} is no whole number of instructions")
            self._room -= len(content) // SLOT.size
            if self._room < 0:
                raise ImageError(f"the object has more than {MOST_INSTRUCTIONS} instructions")
            self._instructions[section] = dict(decoded(content))
        return self._instructions[section]

    def body(self, function: Function) -> Iterator[Instruction]:
        """The instructions of a function, in order."""
        known = self.instructions(function.section)
        for at in range(function.start, function.end):
            if at in known:
                yield known[at]

    def relocated(self) -> frozenset[str]:
        """Names of the functions that have CO-RE relocations, or call one that has, and so on."""
        callers: dict[tuple[int, int], list[Function]] = {}
        work = []
        for function in self.by_start.values():
            slots = [(function.section, one.at) for one in self.body(function)]
            if any(slot in self.cores for slot in slots):
                work.append(function)
            for one in self.body(function):
                called = self.callee(function.section, one)
                if called:
                    callers.setdefault(called, []).append(function)
        found = set()
        while work:
            function = work.pop()
            if function not in found:
                found.add(function)
                work += callers.get((function.section, function.start), ())
        return frozenset(one.name for one in found)

    # ------------------------------------------------------------------------------------------ symbols

    @cached_property
    def symbols(self) -> tuple[Symbol, ...]:
        table = next((one for one in self.elf.sections if one.type == "SHT_SYMTAB"), None)
        if table is None:
            return ()
        names = self._linked(table)
        content = self.elf.content(table)
        strings = self.elf.content(names)
        found = []
        for name, info, _, section, value, size in SYMBOL.iter_unpack(content[: len(content) // 24 * 24]):
            text = strings[name : strings.find(b"\0", name)].decode("utf-8", "replace") if name else ""
            found.append(Symbol(text, info & 15, info >> 4, section, value, size))
        return tuple(found)

    @cached_property
    def functions(self) -> dict[int, tuple[Function, ...]]:
        """The functions of each section, in order."""
        found: dict[int, list[Function]] = {}
        for one in self.symbols:
            if one.type == FUNCTION and 0 < one.section < len(self.elf.sections):
                section = self.elf.sections[one.section]
                if section.flags & EXECUTABLE and section.type == PROGBITS:
                    start, end = one.value // 8, min(one.value + one.size, section.size) // 8
                    found.setdefault(one.section, []).append(Function(one.name, one.section, start, end, one.bind != 0))
        return {section: tuple(sorted(many, key=lambda one: one.start)) for section, many in found.items()}

    @cached_property
    def by_start(self) -> dict[tuple[int, int], Function]:
        """Section and first slot -> function."""
        return {(one.section, one.start): one for many in self.functions.values() for one in many}

    # ------------------------------------------------------------------------------------------ relocations

    @cached_property
    def targets(self) -> dict[tuple[int, int], Target]:
        """Section and slot of an instruction -> what stands in it."""
        found = {}
        for table in self.elf.sections:
            if table.type != REL:
                continue
            section = self._header(table)[1]
            if not 0 < section < len(self.elf.sections) or not self.elf.sections[section].flags & EXECUTABLE:
                continue
            known = self.instructions(section)
            content = self.elf.content(table)
            for offset, info in RELOCATION.iter_unpack(content[: len(content) // 16 * 16]):
                at, number = offset // 8, info >> 32
                if at not in known or number >= len(self.symbols):
                    raise ImageError(f"ELF: section {table.name!r} relocates what is not there")
                target = self._target(self.symbols[number], known[at])
                if target:
                    found[section, at] = target
        return found

    @cached_property
    def _maps(self) -> dict[tuple[int, int], str]:
        """Section and offset -> map."""
        return {(one.section, one.value): one.name for one in self.symbols if one.name and one.type == 1}

    def _target(self, symbol: Symbol, instruction: Instruction) -> Target | None:
        if symbol.section == 0 or symbol.section >= len(self.elf.sections):
            return Target("extern", symbol.name, weak=symbol.bind == WEAK) if symbol.name else None
        section = self.elf.sections[symbol.section]
        # Of ld_imm64 and of calls alike, the addend stands in the instruction.
        addend = instruction.imm & 0xFFFFFFFF
        if section.name == ".maps":
            name = symbol.name if symbol.type != SECTION else self._maps.get((symbol.section, addend), "")
            return Target("map", name) if name else None
        if section.flags & EXECUTABLE:
            slot = symbol.value // 8
            # A call's is in slots, from the next instruction on; an address' is in bytes.
            slot += instruction.imm + 1 if instruction.op == CALL else addend // 8
            function = self.by_start.get((symbol.section, slot))
            return Target("function", function.name if function else "", slot, symbol.section)
        return Target("data", section.name, symbol.value + addend if instruction.op == LD_IMM64 else symbol.value)

    def callee(self, section: int, instruction: Instruction) -> tuple[int, int] | None:
        """Section and first slot of the function of this object that an instruction calls or takes the address of."""
        target = self.targets.get((section, instruction.at))
        if target is not None:
            return (target.section, target.value) if target.kind == "function" else None
        if instruction.op == CALL and instruction.src == PSEUDO_CALL:
            return section, instruction.at + instruction.imm + 1
        return None

    # ------------------------------------------------------------------------------------------ .BTF.ext

    @cached_property
    def cores(self) -> dict[tuple[int, int], Core]:
        """Section and slot -> CO-RE relocation."""
        return {
            (section, words[0] // 8): Core(words[3], words[1], self.btf.text(words[2]))
            for section, words in self._extra(2)
        }

    @cached_property
    def lines(self) -> dict[tuple[int, int], str]:
        """Section and slot -> line of C, where one begins."""
        found: dict[tuple[int, int], str] = {}
        for section, words in self._extra(1):
            text = self._line(words[2])
            if text:
                found[section, words[0] // 8] = text
        return found

    def _line(self, offset: int) -> str:
        """A line of source, without what a terminal would obey."""
        end = self.btf.strings.find(b"\0", offset)
        text = self.btf.strings[offset : min(end, offset + 500)].decode("utf-8", "replace").strip()
        return "".join(letter if letter.isprintable() else " " for letter in text)

    def _extra(self, which: int) -> Iterator[tuple[int, tuple[int, ...]]]:
        """The records of table 0 (functions), 1 (lines) or 2 (CO-RE) of section .BTF.ext, each with its section."""
        area = self.elf.by_name.get(".BTF.ext")
        if area is None:
            return
        content = self.elf.content(area)
        length = int.from_bytes(content[4:8], "little")
        place = 8 + 8 * which
        if length < place + 8 or len(content) < length:
            return
        offset, size = (int.from_bytes(content[at : at + 4], "little") for at in (place, place + 4))
        table = content[length + offset : length + offset + size]
        each = int.from_bytes(table[:4], "little")
        if len(table) < 4 or each < 16 or each % 4:
            return
        words = Struct(f"<{each // 4}I")
        at, left = 4, MOST_RECORDS
        while at + 8 <= len(table):
            name, count = (int.from_bytes(table[i : i + 4], "little") for i in (at, at + 4))
            at, left = at + 8, left - count
            if left < 0 or at + count * each > len(table):
                raise ImageError("BTF: section .BTF.ext is cut off")
            section = self.elf.by_name.get(self.btf.text(name))
            if section is not None:
                for record in words.iter_unpack(table[at : at + count * each]):
                    yield section.number, record
            at += count * each

    # ------------------------------------------------------------------------------------------ section headers

    def _header(self, section: Section) -> tuple[int, int]:
        """sh_link and sh_info."""
        table = HEADER.unpack_from(self.elf.data)[6]
        at = table + section.number * SECTION_HEADER + 40
        return int.from_bytes(self.elf.data[at : at + 4], "little"), int.from_bytes(
            self.elf.data[at + 4 : at + 8], "little"
        )

    def _linked(self, section: Section) -> Section:
        number = self._header(section)[0]
        if number >= len(self.elf.sections):
            raise ImageError(f"ELF: section {section.name!r} has no strings")
        return self.elf.sections[number]


def decoded(content: bytes) -> Iterator[tuple[int, Instruction]]:
    """Every instruction with its slot; the second slot of ld_imm64 belongs to the first."""
    slots = enumerate(SLOT.iter_unpack(content))
    for at, (op, registers, off, imm) in slots:
        if op == LD_IMM64:
            _, (_, _, _, high) = next(slots, (0, (0, 0, 0, 0)))
            imm = (imm & 0xFFFFFFFF) | (high & 0xFFFFFFFF) << 32
        yield at, Instruction(at, op, registers & 15, registers >> 4, off, imm)
