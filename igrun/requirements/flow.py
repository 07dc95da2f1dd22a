"""Which instructions of a function can be reached, if CO-RE says so much.

`bpf_core_enum_value_exists` and its like become a constant while an object is loaded, and the verifier does not look at
the branch that this constant rules out. So here constants are followed through registers, from those places on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from igrun.requirements.code import CALL, EXIT, LD_IMM64, Instruction

State = tuple[int | None, ...]
UNKNOWN: State = (None,) * 16
JA, JA32, JCOND = 0x05, 0x06, 0xE5
ALU, ALU64, JMP, JMP32, LDX = 4, 7, 5, 6, 1
OPERATIONS: Mapping[int, Callable[[int, int, int], int]] = MappingProxyType(
    {
        0x00: lambda left, right, bits: left + right,
        0x10: lambda left, right, bits: left - right,
        0x40: lambda left, right, bits: left | right,
        0x50: lambda left, right, bits: left & right,
        0x60: lambda left, right, bits: left << (right % bits),
        0x70: lambda left, right, bits: left >> (right % bits),
        0xA0: lambda left, right, bits: left ^ right,
        0xC0: lambda left, right, bits: (left - (left >> (bits - 1) << bits)) >> (right % bits),
    }
)
# Conditions: on both sides unsigned, then on both signed
TESTS: Mapping[int, Callable[[int, int, int, int], bool]] = MappingProxyType(
    {
        0x10: lambda left, right, low, high: left == right,
        0x20: lambda left, right, low, high: left > right,
        0x30: lambda left, right, low, high: left >= right,
        0x40: lambda left, right, low, high: bool(left & right),
        0x50: lambda left, right, low, high: left != right,
        0x60: lambda left, right, low, high: low > high,
        0x70: lambda left, right, low, high: low >= high,
        0xA0: lambda left, right, low, high: left < right,
        0xB0: lambda left, right, low, high: left <= right,
        0xC0: lambda left, right, low, high: low < high,
        0xD0: lambda left, right, low, high: low <= high,
    }
)


def reached(instructions: Mapping[int, Instruction], start: int, end: int, given: Mapping[int, int | None]) -> set[int]:
    """Slots of a function that can be reached from its first one.

    given: slot -> the constant that its instruction loads, None: one that is not known
    """
    # Registers are kept where jumps lead to; in between they follow from there.
    leaders = {start}
    for at in range(start, end):
        if at in instructions:
            following = step(instructions[at], UNKNOWN, {})[0]
            leaders.update(following if instructions[at].op in (JA, JA32) else following[1:])
    states: dict[int, State] = {start: UNKNOWN}
    seen: set[int] = set()
    work = [start]
    while work:
        at = work.pop()
        state = states[at]
        while start <= at < end and at in instructions:
            seen.add(at)
            following, state = step(instructions[at], state, given)
            work += [place for place in following[1:] if arrive(states, place, state)]
            if not following:
                break
            at = following[0]
            if at in leaders:
                if arrive(states, at, state):
                    work.append(at)
                break
    return seen


def arrive(states: dict[int, State], at: int, state: State) -> bool:
    """Join a state with what is known of a place. True if it has to be looked at (again)."""
    known = states.get(at)
    if known is None:
        states[at] = state
        return True
    joined = tuple(old if old == new else None for old, new in zip(known, state, strict=True))
    states[at] = joined
    return joined != known


def step(one: Instruction, state: State, given: Mapping[int, int | None]) -> tuple[tuple[int, ...], State]:
    """Where it goes on, the nearest way last for branches, and the registers then."""
    kind, op = one.op & 7, one.op
    after = one.at + (2 if op == LD_IMM64 else 1)
    if one.at in given:
        return (after,), put(state, one.dst, given[one.at])
    if kind in (ALU, ALU64):
        return (after,), put(state, one.dst, computed(one, state))
    if op == LD_IMM64:
        return (after,), put(state, one.dst, None if one.src else one.imm)
    if op == EXIT:
        return (), state
    if op == JA:
        return (after + one.off,), state
    if op == JA32:
        return (after + one.imm,), state
    if op == CALL or op == CALL | 8:
        return (after,), (None,) * 6 + state[6:]
    if op == JCOND:
        return (after, after + one.off), state
    if kind in (JMP, JMP32):
        taken = decided(one, state)
        if taken is None:
            return (after, after + one.off), state
        return (after + one.off if taken else after,), state
    if kind == LDX:
        return (after,), put(state, one.dst, None)
    if kind == 3 and op & 0xE0 == 0xC0:  # an atomic operation may fetch into its source, or into r0
        return (after,), put(put(state, one.src, None), 0, None)
    if kind == 0:
        return (after,), put(state, 0, None)
    return (after,), state


def put(state: State, register: int, value: int | None) -> State:
    return state if state[register] == value else (*state[:register], value, *state[register + 1 :])


def computed(one: Instruction, state: State) -> int | None:
    """What an arithmetic instruction leaves, None if that is not known."""
    operation = one.op & 0xF0
    right = state[one.src] if one.op & 8 else one.imm
    left = state[one.dst]
    wide = one.op & 7 == ALU64
    bits = 64 if wide else 32
    mask = (1 << bits) - 1
    if operation == 0xB0:
        return None if right is None or one.off else right & mask
    if left is None or right is None or one.off:
        return None
    left, right = left & mask, right & mask
    operate = OPERATIONS.get(operation)
    return operate(left, right, bits) & mask if operate else None


def decided(one: Instruction, state: State) -> bool | None:
    """Whether a conditional jump is taken, None if that is not known."""
    right = state[one.src] if one.op & 8 else one.imm
    left = state[one.dst]
    if left is None or right is None:
        return None
    bits = 64 if one.op & 7 == JMP else 32
    left, right = left & ((1 << bits) - 1), right & ((1 << bits) - 1)
    half = 1 << (bits - 1)
    low, high = left - (left >= half) * 2 * half, right - (right >= half) * 2 * half
    test = TESTS.get(one.op & 0xF0)
    return test(left, right, low, high) if test else None
