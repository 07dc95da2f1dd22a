"""A filter's graph -> instructions of eBPF.

At the start the packet's first byte is in R4, its end in R5, and what the kernel knows of it in R1: the arguments of
the function in front of which the instructions stand. They fall out of their end with R1 to R3 and R5 all 0 and R4 = 1
if the packet matches; else they return 0 from the function.

Registers: R6 the context, R7 the packet's start, R8 its end, R9 the value computed last. Numbers that are needed again,
variables and operands that wait are on the stack, which is kept small: a caller's is counted with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from enum import Enum
from struct import Struct

from igrun.dataclass import dataclass
from igrun.packetfilter.graph import ACCEPT, REJECT, Block, Graph, TooLongError, mentions, values
from igrun.packetfilter.values import Binary, Const, Length, Load, Negative, Test, Value, Variable, parts

INSTRUCTION = Struct("<BBhi")
MOST = 30_000  # instructions: a jump reaches no further than 32767
MOST_KEPT = 12  # values on the stack
MOST_WAITING = 16  # operands on the stack, as many as libpcap has
MOST_VARIABLES = 24
FARTHEST = 0xF000  # from the packet's start: the verifier follows pointers up to 65535 bytes
LOAD_BYTES = 26  # bpf_skb_load_bytes
NOWHERE = 0x7FFFFFFF  # an offset behind the end of every packet
SCRATCH = 8  # bytes on the stack that the helper writes to
ALU32 = {"+": 0x04, "-": 0x14, "*": 0x24, "/": 0x34, "|": 0x44, "&": 0x54, "<<": 0x64, ">>": 0x74, "%": 0x94, "^": 0xA4}
JUMP32 = {"==": 0x16, ">": 0x26, ">=": 0x36, "&": 0x46, "!=": 0x56, "<": 0xA6, "<=": 0xB6}
OPPOSITE = {"==": "!=", ">": "<=", ">=": "<"}
BY_SIZE = {1: 0x71, 2: 0x69, 4: 0x61}  # BPF_LDX | BPF_MEM
REGISTER = 0x08  # the operand is a register, not a number


class Access(Enum):
    """How a program reads a packet.

    DIRECT: through the pointers to its start and end (xdp)
    BOTH:   so, and by a helper what is not in the first piece of the packet (classifier)
    HELPER: by that helper only (socket filter)
    """

    DIRECT = "direct"
    BOTH = "both"
    HELPER = "helper"


@dataclass(slots=True)
class Slots:
    """Places of four bytes on the stack."""

    kept: dict[Value, int]
    variables: dict[Value, int]
    waiting: int  # the first place of operands

    @staticmethod
    def place(number: int) -> int:
        """Offset from R10."""
        return -SCRATCH - 4 * (number + 1)


def assemble(graph: Graph, access: Access) -> bytes:
    """The instructions. TooLongError."""
    order = graph.order()
    if graph.root != ACCEPT and all(ACCEPT not in graph.blocks[at].targets() for at in order):
        return reject_all()
    return Assembler(graph, order, access).assembled()


def reject_all() -> bytes:
    """Instructions that match nothing."""
    # R0 = 0; return it, if it is not 1: the verifier wants a way to what follows.
    return b"".join(INSTRUCTION.pack(*one) for one in ((0xB7, 0, 0, 0), (0x15, 0, 1, 1), (0x95, 0, 0, 0)))


class Assembler:
    """Writes the blocks one after the other; all jumps go forward."""

    def __init__(self, graph: Graph, order: list[int], access: Access) -> None:
        self.graph, self.order, self.access = graph, order, access
        self.code: list[tuple[int, int, int, int]] = []
        self.jumps: list[tuple[int, int]] = []  # (instruction, block)
        self.starts: dict[int, int] = {}
        self.slots = self._slots()
        self.available: set[Value] = set()
        self.depth = 0

    def assembled(self) -> bytes:
        self.put(0xBF, 6, 1)  # R6 = R1
        if self.access is not Access.HELPER:  # where the compiler may have left them out, if they are constants
            self.put(0xBF, 7, 4)
            self.put(0xBF, 8, 5)
        for number in self.slots.variables.values():
            self.put(0x62, 10, 0, Slots.place(number), NOWHERE)  # *(u32 *)(R10 + place) = NOWHERE
        before = arrivals(self.graph, self.order, self.slots.kept.__contains__)
        for position, at in enumerate(self.order):
            self.starts[at] = len(self.code)
            self.available = set(before[at])
            following = self.order[position + 1] if position + 1 < len(self.order) else ACCEPT
            self.block(self.graph.blocks[at], following)
        self.starts[ACCEPT] = len(self.code)
        self.put(0xB7, 4, 0, 0, 1)  # R4 = 1
        if any(block == REJECT for _, block in self.jumps):
            self.put(0x05, 0, 0, 2)
            self.starts[REJECT] = len(self.code)
            self.put(0xB7, 0, 0, 0, 0)  # R0 = 0; exit
            self.put(0x95)
        for register in (1, 2, 3, 5):
            self.put(0xB7, register, 0, 0, 0)
        if len(self.code) > MOST:
            raise TooLongError
        for at, block in self.jumps:
            op, registers, _, number = self.code[at]
            self.code[at] = (op, registers, self.starts[block] - at - 1, number)
        return b"".join(INSTRUCTION.pack(*one) for one in self.code)

    def _slots(self) -> Slots:
        """The values worth keeping: those that would be computed most often again."""
        variables: dict[Value, int] = {}
        for at in self.order:
            for value in values(self.graph.blocks[at]):
                for part in parts(value):
                    if isinstance(part, Variable):
                        variables.setdefault(part, len(variables))
            for variable, _ in self.graph.blocks[at].assigned:
                variables.setdefault(variable, len(variables))
        if len(variables) > MOST_VARIABLES:
            raise TooLongError
        best = [value for value, _ in repeated(self.graph, self.order).most_common(MOST_KEPT)]
        first = len(variables)
        kept = {value: first + number for number, value in enumerate(best)}
        return Slots(kept, variables, first + len(kept))

    # ---------------------------------------------------------------------------------------- instructions

    def put(self, op: int, target: int = 0, source: int = 0, offset: int = 0, number: int = 0) -> None:
        signed = number - (1 << 32) if number > 0x7FFFFFFF else number
        self.code.append((op, source << 4 | target, offset, signed))
        if len(self.code) > 2 * MOST:
            raise TooLongError

    def jump(self, block: int, op: int = 0x05, target: int = 0, source: int = 0, number: int = 0) -> None:
        """Jump to a block; op: a conditional jump."""
        self.jumps.append((len(self.code), block))
        self.put(op, target, source, 0, number)

    def block(self, block: Block, following: int) -> None:
        for variable, value in block.assigned:
            self.evaluate(value)
            self.store(self.slots.variables[variable])
            self.available = {one for one in self.available if not mentions(one, {variable})}
        if block.test is not None:
            self.test(block.test, block.yes, block.no, following)
        elif block.yes != following:
            self.jump(block.yes)

    def test(self, test: Test, yes: int, no: int, following: int) -> None:
        """Compare, and go on at `yes` or `no`."""
        if isinstance(test.right, Const):
            self.evaluate(test.left)
            source, register, number = 0, 0, test.right.number
        else:
            self.operands(test.left, test.right)
            source, register, number = REGISTER, 1, 0
        if yes == following and test.op in OPPOSITE:
            self.jump(no, JUMP32[OPPOSITE[test.op]] | source, 9, register, number)
            return
        self.jump(yes, JUMP32[test.op] | source, 9, register, number)
        if no != following:
            self.jump(no)

    # ---------------------------------------------------------------------------------------- values

    def evaluate(self, value: Value) -> None:
        """Compute it into R9."""
        kept = self.slots.kept.get(value)
        if kept is not None and value in self.available:
            self.fetch(kept)
            return
        match value:
            case Const(number=number):
                self.put(0xB4, 9, 0, 0, number)  # W9 = number
            case Variable():
                self.fetch(self.slots.variables[value])
            case Length():
                self.length()
            case Negative(value=inner):
                self.evaluate(inner)
                self.put(0x84, 9)
            case Binary(op=op, left=left, right=right):
                self.binary(op, left, right)
            case Load():
                self.load(value)
        if kept is not None:
            self.store(kept)
            self.available.add(value)

    def fetch(self, slot: int, register: int = 9) -> None:
        self.put(0x61, register, 10, Slots.place(slot))

    def store(self, slot: int) -> None:
        self.put(0x63, 10, 9, Slots.place(slot))

    def length(self) -> None:
        if self.access is Access.DIRECT:
            self.put(0xBF, 9, 8)  # R9 = R8 - R7
            self.put(0x1F, 9, 7)
        else:
            self.put(0x61, 9, 6)  # skb->len, the first member of struct __sk_buff

    def operands(self, left: Value, right: Value) -> None:
        """Compute left into R9 and right into R1."""
        if self.depth >= MOST_WAITING:
            raise TooLongError
        self.evaluate(left)
        waiting = self.slots.waiting + self.depth
        self.store(waiting)
        self.depth += 1
        self.evaluate(right)
        self.depth -= 1
        self.put(0xBC, 1, 9)  # W1 = W9
        self.fetch(waiting)

    def binary(self, op: str, left: Value, right: Value) -> None:
        if isinstance(right, Const):
            self.evaluate(left)
            self.with_number(op, right.number)
            return
        self.operands(left, right)
        if op in ("/", "%"):
            self.jump(REJECT, JUMP32["=="], 1)
        if op in ("<<", ">>"):
            # Everything is shifted out.
            self.put(JUMP32["<="], 1, 0, 2, 31)
            self.put(0xB4, 9)
            self.put(0x05, 0, 0, 1)
        self.put(ALU32[op] | REGISTER, 9, 1)

    def with_number(self, op: str, number: int) -> None:
        """Apply an operation with a known right side to R9."""
        if op in ("/", "%") and number == 0:
            # The verifier wants to see what follows, although nobody gets there.
            self.jump(REJECT, JUMP32[">="], 9, 0, 0)
        elif op in ("<<", ">>") and number > 31:
            self.put(0xB4, 9)
        else:
            self.put(ALU32[op], 9, 0, 0, number)

    # ---------------------------------------------------------------------------------------- the packet

    def load(self, load: Load) -> None:
        """Read bytes of the packet into R9; to REJECT if it has none there."""
        base, offset = load.base, load.offset
        if base is not None:
            self.evaluate(base)
        if offset + load.size > NOWHERE:  # no packet is so long
            self.jump(REJECT, JUMP32[">="], 9) if base is not None else self.nowhere()
            return
        if base is None:
            self.put(0xB7, 1, 0, 0, offset)
            behind = offset > FARTHEST
        else:
            self.put(0xBF, 1, 9)
            self.put(0x07, 1, 0, 0, offset)
            self.jump(REJECT, 0x25, 1, 0, NOWHERE - 8)
            behind = False
        if self.access is Access.HELPER or (self.access is Access.BOTH and behind):
            self.by_helper(load.size)
        elif self.access is Access.DIRECT and behind:
            self.nowhere()
            return
        else:
            self.by_pointer(load.size, base is not None)
        if load.size > 1:
            self.put(0xDC, 9, 0, 0, 8 * load.size)  # from big-endian

    def nowhere(self) -> None:
        """To REJECT, in a way that lets the verifier reach what follows."""
        self.put(0xB4, 9)
        self.jump(REJECT, JUMP32["=="], 9)

    def by_pointer(self, size: int, varies: bool) -> None:
        """Read at R1 bytes behind the packet's start."""
        misses = []
        if varies:
            misses.append(len(self.code))
            self.put(0x25, 1, 0, 0, FARTHEST)
        self.put(0xBF, 2, 7)
        self.put(0x0F, 2, 1)
        self.put(0xBF, 3, 2)
        self.put(0x07, 3, 0, 0, size)
        misses.append(len(self.code))
        self.put(0x2D, 3, 8)  # if R3 > R8
        self.put(BY_SIZE[size], 9, 2)
        if self.access is Access.DIRECT:
            self.jumps += [(at, REJECT) for at in misses]
            return
        over = len(self.code)
        self.put(0x05)
        for at in misses:
            op, registers, _, number = self.code[at]
            self.code[at] = (op, registers, len(self.code) - at - 1, number)
        self.by_helper(size)
        self.code[over] = (0x05, 0, len(self.code) - over - 1, 0)

    def by_helper(self, size: int) -> None:
        """Let the kernel copy from R1 bytes behind the packet's start."""
        self.put(0xBF, 2, 1)
        self.put(0xBF, 1, 6)
        self.put(0xBF, 3, 10)
        self.put(0x07, 3, 0, 0, -SCRATCH)
        self.put(0xB7, 4, 0, 0, size)
        self.put(0x85, 0, 0, 0, LOAD_BYTES)
        self.jump(REJECT, 0x55, 0)
        self.put(BY_SIZE[size], 9, 10, -SCRATCH)


# ------------------------------------------------------------------------------------------------ what comes again


def worth_keeping(value: Value) -> bool:
    """Reads of the packet, and the length of an IP header."""
    if isinstance(value, Binary):
        return value.op in ("<<", "+") and any(isinstance(part, Load) for part in parts(value))
    return isinstance(value, Load)


def repeated(graph: Graph, order: list[int]) -> Counter[Value]:
    """How often each value would be computed again that was computed before on every way."""
    again: Counter[Value] = Counter()
    arrivals(graph, order, worth_keeping, again)
    return again


def arrivals(
    graph: Graph, order: list[int], keeps: Callable[[Value], bool], again: Counter[Value] | None = None
) -> dict[int, set[Value]]:
    """Block -> the values that are kept on every way to it. again: counts the uses of those."""
    found: dict[int, set[Value]] = {graph.root: set()}
    for at in order:
        kept = computed(graph.blocks[at], found[at], keeps, again)
        for target in graph.blocks[at].targets():
            found[target] = found[target] & kept if target in found else kept
    return found


def computed(
    block: Block, before: set[Value], keeps: Callable[[Value], bool], again: Counter[Value] | None
) -> set[Value]:
    """The values that are kept after a block."""
    kept = set(before)

    def visit(value: Value) -> None:
        if value in kept:
            if again is not None:
                again[value] += 1
            return
        match value:
            case Load(base=base) if base is not None:
                visit(base)
            case Binary(left=left, right=right):
                visit(left)
                visit(right)
            case Negative(value=inner):
                visit(inner)
        if keeps(value):
            kept.add(value)

    for variable, value in block.assigned:
        visit(value)
        kept = {one for one in kept if not mentions(one, {variable})}
    if block.test is not None:
        visit(block.test.left)
        visit(block.test.right)
    return kept
