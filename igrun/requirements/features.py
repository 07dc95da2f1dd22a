"""What a function uses: helpers, kfuncs, maps, and instructions that only newer kernels know."""

from __future__ import annotations

from collections.abc import Mapping

from igrun.dataclass import dataclass, field
from igrun.requirements.code import CALL, LD_IMM64, Code, Function, Instruction
from igrun.requirements.versions import Version

# Helper -> what it does with a map, as the ecosystem's diagrams call it, and in which argument that stands
OPERATIONS = {
    1: ("Lookup", 1),
    2: ("Update", 1),
    3: ("Delete", 1),
    195: ("Lookup", 1),
    87: ("Push", 1),
    88: ("Pop", 1),
    89: ("Peek", 1),
    12: ("TailCall", 2),
    22: ("EventRead", 1),
    25: ("EventOutput", 2),
    55: ("EventRead", 1),
    111: ("EventOutput", 2),
    121: ("EventOutput", 2),
    27: ("GetStackID", 2),
    130: ("EventOutput", 1),
    131: ("EventReserve", 1),
    134: ("EventQuery", 1),
    198: ("EventReserve", 1),
    209: ("EventDrain", 1),
    164: ("ForEach", 1),
    51: ("Redirect", 1),
    52: ("Redirect", 2),
    72: ("Redirect", 2),
    60: ("Redirect", 2),
    71: ("Redirect", 2),
    53: ("Update", 2),
    70: ("Update", 2),
    82: ("Select", 2),
    81: ("Lookup", 1),
    107: ("Lookup", 1),
    108: ("Delete", 1),
    145: ("Lookup", 1),
    146: ("Delete", 1),
    156: ("Lookup", 1),
    157: ("Delete", 1),
    210: ("Lookup", 1),
    211: ("Delete", 1),
    33: ("Lookup", 2),
    37: ("Lookup", 1),
    169: ("Timer", 2),
}
ALU, ALU64, JMP, JMP32, LDX, STX = 4, 7, 5, 6, 1, 3
ATOMIC, MEMSX = 0xC0, 0x80
# A call of what no kernel has: source code says so that a place must not be reached (libbpf has 0xbad2310 for it).
TRAP = 1 << 16


@dataclass(slots=True)
class Found:
    """What code uses, each in the order of first use. features: what -> version; kfuncs: name -> is it weak."""

    helpers: dict[int, None] = field(default_factory=dict)
    kfuncs: dict[str, bool] = field(default_factory=dict)
    maps: dict[tuple[str, str], None] = field(default_factory=dict)
    calls: list[tuple[str, str]] = field(default_factory=list)
    features: dict[str, Version] = field(default_factory=dict)
    callees: list[tuple[int, int]] = field(default_factory=list)
    instructions: int = 0

    def join(self, other: Found) -> None:
        """Add what another function uses."""
        self.helpers |= other.helpers
        for name, weak in other.kfuncs.items():
            self.kfuncs[name] = weak and self.kfuncs.get(name, True)
        self.maps |= other.maps
        self.calls += other.calls
        self.features = {**other.features, **self.features}
        self.instructions += other.instructions


class Where:
    """Looks through one function. slots: those that can be reached, None: all."""

    def __init__(self, code: Code, function: Function, slots: set[int] | None) -> None:
        self.code, self.function, self.slots = code, function, slots

    def found(self) -> Found:
        found = Found()
        # Which map a register holds: between a map's address and its use a compiler rarely does more than a move.
        held: dict[int, str] = {}
        section = self.function.section
        for one in self.code.body(self.function):
            found.instructions += 1
            if self.slots is not None and one.at not in self.slots:
                continue
            if one.op == CALL:
                self._call(one, held, found)
                for register in range(6):
                    held.pop(register, None)
                continue
            target = self.code.targets.get((section, one.at))
            if one.op == LD_IMM64 and target is not None:
                held.pop(one.dst, None)
                if target.kind == "map":
                    held[one.dst] = target.name
                elif target.kind == "function":
                    found.callees.append((target.section, target.value))
                    found.features["addresses of functions"] = (5, 13)
                continue
            if one.op == (ALU64 | 0xB8) and not one.off:  # r1 = r2
                if one.src in held:
                    held[one.dst] = held[one.src]
                else:
                    held.pop(one.dst, None)
            elif one.op & 7 in (ALU, ALU64, LDX, 0):
                held.pop(one.dst, None)
            for version, what in instruction_needs(one):
                found.features[what] = version
        return found

    def _call(self, one: Instruction, held: Mapping[int, str], found: Found) -> None:
        target = self.code.targets.get((self.function.section, one.at))
        callee = self.code.callee(self.function.section, one)
        if callee is not None:
            found.callees.append(callee)
        elif target is not None and target.kind == "extern":
            found.kfuncs[target.name] = target.weak and found.kfuncs.get(target.name, True)
            found.features["kfuncs"] = (5, 13)
        elif one.src == 0 and one.imm < TRAP:
            found.helpers[one.imm] = None
            if one.imm in OPERATIONS:
                operation, argument = OPERATIONS[one.imm]
                name = held.get(argument)
                if name:
                    found.maps[name, operation] = None
                    found.calls.append((name, operation))


def instruction_needs(one: Instruction) -> list[tuple[Version, str]]:
    """What an instruction by itself needs of the kernel beyond the oldest ones."""
    kind, operation = one.op & 7, one.op & 0xF0
    if kind == JMP32:
        if operation == 0 and not one.op & 8:
            return [((6, 6), "jumps over more than 32767 instructions (cpu v4)")]
        return [((5, 1), "32-bit jumps (cpu v3)"), *backward(one)]
    if kind == JMP:
        if one.op == 0xE5:
            return [((6, 9), "loops that may end (may_goto)")]
        if one.op == 0x0D:
            return [((6, 19), "indirect jumps")]
        new = [((4, 14), "jumps if less (cpu v2)")] if operation in (0xA0, 0xB0, 0xC0, 0xD0) else []
        return [*new, *backward(one)] if operation not in (0x80, 0x90) else []
    if kind in (ALU, ALU64):
        if operation in (0x30, 0x90) and one.off == 1:
            return [((6, 6), "signed division (cpu v4)")]
        if operation == 0xB0 and one.op & 8 and one.off:
            if one.off == 1 and one.imm:
                return [((6, 9), "addresses in an arena")]
            return [((6, 6), "moves that extend the sign (cpu v4)")]
        if operation == 0xD0 and kind == ALU64:
            return [((6, 6), "byte swaps (cpu v4)")]
        return []
    if kind == LDX and one.op & 0xE0 == MEMSX:
        return [((6, 6), "loads that extend the sign (cpu v4)")]
    if kind == STX and one.op & 0xE0 == ATOMIC:
        if one.imm in (0x100, 0x110):
            return [((6, 15), "atomic loads and stores with order")]
        if one.imm:
            return [((5, 12), "atomic operations that fetch, or other than add")]
    return []


def backward(one: Instruction) -> list[tuple[Version, str]]:
    """Loops: before Linux 5.3 (2589726d12a1, "bpf: introduce bounded loops") the verifier refuses them."""
    return [((5, 3), "loops")] if one.off < 0 else []
