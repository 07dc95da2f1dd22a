"""What each program of an object uses on one kernel: what CO-RE and constants rule out is left out, as at load."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from igrun.btf import EXTERN, Btf, Type, TypeKind
from igrun.btfgen.match import Matching
from igrun.btfgen.relocations import Kind as RelocationKind
from igrun.btfgen.relocations import read
from igrun.elf import Elf
from igrun.errors import ImageError
from igrun.requirements import MOST_FUNCTIONS, Reader, Requirements
from igrun.requirements.code import EXISTS, LD_IMM64, Code, Function
from igrun.requirements.features import Found, Where
from igrun.requirements.flow import LDX, reached

if TYPE_CHECKING:
    from igrun.program import Program

Place = tuple[int, int]
"""Section and slot of an instruction."""
RODATA = ".rodata"
SIZES = {0x61: 4, 0x69: 2, 0x71: 1, 0x79: 8}  # ldxw, ldxh, ldxb, ldxdw
WEAK = 2
STRUCT_OPS = (".struct_ops", ".struct_ops.link")
RELOCATION_BYTES = 16


class Extern(NamedTuple):
    """Something that the kernel must have. kind: config or symbol; typed: BTF tells of it, else kallsyms"""

    kind: str
    name: str
    weak: bool
    typed: bool


class Member(NamedTuple):
    """What a program is in a struct of functions."""

    struct: str
    member: str


class Uses:
    """What an object's programs use.

    settled: the questions of CO-RE were answered; False: what is used may be ruled out
    """

    def __init__(self, program: Program, btf: Btf | None, constants: Mapping[str, bytes]) -> None:
        """btf: that CO-RE is resolved against; constants: variable -> its bytes, where they are not the object's."""
        self._program = program
        self._reader = Reader(Elf(program.elf), program.btf, program.hooks, program.maps, program.variables)
        self.code: Code = self._reader.code
        self.settled = btf is not None or not self._asked
        self._given = {**self._answers(btf), **self._loaded(constants)}

    @cached_property
    def requirements(self) -> Requirements:
        """What the object needs of any kernel."""
        return self._reader.requirements()

    def of(self, program: str, section: str) -> Found:
        """Of one program, with all functions that it calls. ImageError: its code is broken."""
        entry = self._reader.entries.get((section, program))
        total = Found()
        seen: set[Place] = set()
        work = [(entry.section, entry.start)] if entry else []
        while work:
            place = work.pop()
            function = self.code.by_start.get(place)
            if place in seen or function is None:
                continue
            seen.add(place)
            if len(seen) > MOST_FUNCTIONS:
                raise ImageError(f"program {program!r} calls more than {MOST_FUNCTIONS} functions")
            found = self._one(function)
            total.join(found)
            work += reversed(found.callees)
        return total

    def _one(self, function: Function) -> Found:
        known = self.code.instructions(function.section)
        given = {
            at: value
            for (section, at), value in self._given.items()
            if section == function.section and function.start <= at < function.end
        }
        slots = reached(known, function.start, function.end, given) if given else None
        return Where(self.code, function, slots).found()

    # ------------------------------------------------------------------------------------------ what is known

    @property
    def _asked(self) -> list[Place]:
        return [place for place, core in self.code.cores.items() if core.kind in EXISTS]

    def _answers(self, btf: Btf | None) -> dict[Place, int | None]:
        """What `bpf_core_..._exists` and its like give there; None: that is not known."""
        answers: dict[Place, int | None] = dict.fromkeys(self._asked)
        if btf is None:
            return answers
        questions = {}
        for place in self._asked:
            core = self.code.cores[place]
            questions[place] = read(self._program.btf, RelocationKind(core.kind), core.type, core.access)
        named = {place: one for place, one in questions.items() if one.type.name}
        if not named:
            return answers
        matching = Matching(btf, named.values())
        return answers | {place: int(any(True for _ in matching.found(one))) for place, one in named.items()}

    def _loaded(self, constants: Mapping[str, bytes]) -> dict[Place, int]:
        """What is read from constants, whose values the verifier knows."""
        areas: dict[str, bytearray] = {}
        for one in self._program.variables.values():
            if one.section == RODATA:
                value = constants.get(one.name, one.value).ljust(one.size, b"\0")
                area = areas.setdefault(one.section, bytearray())
                area.extend(bytes(max(0, one.offset + one.size - len(area))))
                area[one.offset : one.offset + one.size] = value[: one.size]
        found: dict[Place, int] = {}
        if areas:
            for many in self.code.functions.values():
                for function in many:
                    found.update(self._reads(function, areas))
        return found

    def _reads(self, function: Function, areas: Mapping[str, bytearray]) -> dict[Place, int]:
        """Between the address of a constant and its use compilers put no jump target, and here none is looked past."""
        found: dict[Place, int] = {}
        held: dict[int, tuple[str, int]] = {}
        section = function.section
        leads = {one.at + 1 + one.off for one in self.code.body(function) if one.op & 7 in (5, 6) and one.op != 0x85}
        for one in self.code.body(function):
            if one.at in leads:
                held.clear()
            target = self.code.targets.get((section, one.at))
            if one.op == LD_IMM64 and target is not None and target.kind == "data" and target.name in areas:
                held[one.dst] = (target.name, target.value)
                continue
            if one.op in SIZES and one.src in held:
                name, start = held[one.src]
                raw = bytes(areas[name][start + one.off : start + one.off + SIZES[one.op]])
                if len(raw) == SIZES[one.op]:
                    found[section, one.at] = int.from_bytes(raw, "little")
            if one.op == 0x85:
                for register in range(6):
                    held.pop(register, None)
            elif one.op & 7 in (LDX, 0, 4, 7):
                held.pop(one.dst, None)
        return found

    # ------------------------------------------------------------------------------------------ other things

    def declares(self, name: str, function: Type, btf: Btf) -> bool:
        """Whether a function of the kernel is as the object declares it, as far as libbpf compares."""
        ours = self._program.btf.find(name, TypeKind.FUNC)
        return ours is None or Matching(btf, ()).fits(self._program.btf, ours.value, function.value)

    def externs(self) -> list[Extern]:
        """Values of the configuration and variables of the kernel that it refers to; functions are no such."""
        weak = {one.name for one in self.code.symbols if one.bind == WEAK}
        btf = self._program.btf
        found = []
        for area in btf.of_kind(TypeKind.DATASEC):
            if area.name not in (".kconfig", ".ksyms"):
                continue
            for one in btf.variables(area):
                variable = btf.type(one.type)
                if variable.kind is TypeKind.VAR and btf.linkage(variable) == EXTERN:
                    kind = "config" if area.name == ".kconfig" else "symbol"
                    typed = btf.resolve(variable.value).type.kind is not TypeKind.VOID
                    found.append(Extern(kind, variable.name, variable.name in weak, typed))
        return found

    def members(self) -> dict[str, Member]:
        """Program -> what it is in a struct of functions."""
        btf, elf = self._program.btf, self.code.elf
        found = {}
        for area in btf.of_kind(TypeKind.DATASEC):
            table = elf.by_name.get(f".rel{area.name}")
            if area.name not in STRUCT_OPS or table is None:
                continue
            places = {}
            variables = {btf.type(one.type).name: btf.type(one.type) for one in btf.variables(area)}
            section = elf.by_name[area.name].number
            for symbol in self.code.symbols:
                if symbol.section == section and symbol.name in variables:
                    record = btf.resolve(variables[symbol.name].value).type
                    for member in btf.members(record):
                        places[symbol.value + member.bit_offset // 8] = Member(record.name, member.name)
            content = elf.content(table)
            for at in range(0, len(content) // RELOCATION_BYTES * RELOCATION_BYTES, RELOCATION_BYTES):
                offset = int.from_bytes(content[at : at + 8], "little")
                number = int.from_bytes(content[at + 12 : at + 16], "little")
                if offset in places and number < len(self.code.symbols):
                    found[self.code.symbols[number].name] = places[offset]
        return found
