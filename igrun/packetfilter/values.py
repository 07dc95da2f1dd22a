"""What a filter computes: numbers out of a packet, comparisons of them, and what joins the comparisons.

Numbers have 32 bits and wrap around. What reads past the packet's end, or divides by zero, ends the whole filter: the
packet does not match, `not` or no `not` before it.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator

from igrun.dataclass import dataclass

WORD = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Const:
    """A number."""

    number: int


@dataclass(frozen=True, slots=True)
class Length:
    """The packet's bytes."""


@dataclass(frozen=True, slots=True)
class Variable:
    """What was assigned last; before that, an offset behind the end of every packet."""

    number: int


@dataclass(frozen=True, slots=True)
class Load:
    """`size` bytes (1, 2 or 4), big-endian, `offset` + the value of `base` behind the packet's start.

    The sum of offset and base does not wrap around.
    """

    base: Value | None
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Binary:
    """left, one of + - * / % & | ^ << >>, right."""

    op: str
    left: Value
    right: Value


@dataclass(frozen=True, slots=True)
class Negative:
    """0 - value."""

    value: Value


Value = Const | Length | Variable | Load | Binary | Negative

ARITHMETIC = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.floordiv,
    "%": operator.mod,
    "&": operator.and_,
    "|": operator.or_,
    "^": operator.xor,
    "<<": operator.lshift,
    ">>": operator.rshift,
}


def binary(op: str, left: Value, right: Value) -> Value:
    """The operation, or its result if that is known already."""
    if isinstance(left, Const) and isinstance(right, Const):
        if op in ("<<", ">>") and right.number > 31:
            return Const(0)
        if right.number or op not in ("/", "%"):
            return Const(ARITHMETIC[op](left.number, right.number) & WORD)
    return Binary(op, left, right)


def parts(value: Value) -> Iterator[Value]:
    """It and all it is computed from."""
    yield value
    match value:
        case Load(base=base) if base is not None:
            yield from parts(base)
        case Binary(left=left, right=right):
            yield from parts(left)
            yield from parts(right)
        case Negative(value=inner):
            yield from parts(inner)


# ------------------------------------------------------------------------------------------------ conditions


@dataclass(frozen=True, slots=True)
class Test:
    """left, one of == > >= &, right; numbers are unsigned."""

    op: str
    left: Value
    right: Value


@dataclass(frozen=True, slots=True, eq=False)
class Fixed:
    """True or False."""

    value: bool


@dataclass(frozen=True, slots=True, eq=False)
class Assign:
    """True, and afterwards the variables have these values, given one after the other."""

    values: tuple[tuple[Variable, Value], ...]


@dataclass(frozen=True, slots=True, eq=False)
class Not:
    """The opposite."""

    inner: Condition


@dataclass(frozen=True, slots=True, eq=False)
class And:
    """Both: `right` is looked at only if `left` is true."""

    left: Condition
    right: Condition


@dataclass(frozen=True, slots=True, eq=False)
class Or:
    """One of them: `right` is looked at only if `left` is false."""

    left: Condition
    right: Condition


@dataclass(frozen=True, slots=True, eq=False)
class If:
    """`then` if the test is true, else `otherwise`."""

    test: Condition
    then: Condition
    otherwise: Condition


Condition = Test | Fixed | Assign | Not | And | Or | If


def all_of(*conditions: Condition | None) -> Condition:
    """All that are given, looked at in this order."""
    first, *others = [one for one in conditions if one is not None]
    for one in others:
        first = And(first, one)
    return first


def any_of(*conditions: Condition) -> Condition:
    """One of them, looked at in this order."""
    first, *others = conditions
    for one in others:
        first = Or(first, one)
    return first


def holds(op: str, left: int, right: int) -> bool:
    """The comparison of two known numbers."""
    match op:
        case "==":
            return left == right
        case ">":
            return left > right
        case ">=":
            return left >= right
    return left & right != 0
