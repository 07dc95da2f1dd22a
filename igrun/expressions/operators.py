"""Operators of an expression."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

from igrun.expressions.functions import Networks
from igrun.expressions.values import (
    MOST_ITEMS,
    ExpressionError,
    Typed,
    boolean,
    expect,
    integer,
    number,
    string,
    wrapped,
)
from igrun.patterns import python_pattern

ORDERS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
NUMBERS: dict[str, Callable[[Any, Any], Any]] = {
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "**": math.pow,
    "^": math.pow,
}
TEXTS: dict[str, Callable[[str, str], bool]] = {
    "contains": lambda whole, part: part in whole,
    "startsWith": str.startswith,
    "endsWith": str.endswith,
}


def binary(sign: str, left: Typed, right: Typed) -> Typed:
    """Two parts with an operator between. ExpressionError: it is not for such parts."""
    one, other = left.code, right.code
    if sign in ("and", "&&", "or", "||"):
        for part in (left, right):
            expect(part, "bool", sign)
        if sign in ("and", "&&"):
            return Typed(lambda row: boolean(one(row)) and boolean(other(row)), "bool")
        return Typed(lambda row: boolean(one(row)) or boolean(other(row)), "bool")
    if sign in ("==", "!="):
        comparable(sign, left, right)
        turned = sign == "!="
        return Typed(lambda row: equal(one(row), other(row)) != turned, "bool")
    if sign in ORDERS:
        comparable(sign, left, right)
        order = ORDERS[sign]
        return Typed(lambda row: order(*ordered(one(row), other(row))), "bool")
    if sign == "in":
        return Typed(lambda row: contained(one(row), other(row)), "bool")
    if sign == "matches":
        return matching(left, right)
    if sign in TEXTS:
        expect(left, "string", sign)
        expect(right, "string", sign)
        test = TEXTS[sign]
        return Typed(lambda row: test(string(one(row)), string(other(row))), "bool")
    if sign == "..":
        expect(left, "int", sign)
        expect(right, "int", sign)
        return Typed(lambda row: span(one(row), other(row)), "list")
    if sign == "??":
        return Typed(lambda row: other(row) if (found := one(row)) is None else found, "any")
    return arithmetic(sign, left, right)


def comparable(sign: str, left: Typed, right: Typed) -> None:
    kinds = {"number" if part.kind in ("int", "float") else part.kind for part in (left, right)}
    if len(kinds) > 1 and not kinds & {"any", "nil"}:
        raise ExpressionError(f"{left.kind} {sign} {right.kind} compares different types")


def arithmetic(sign: str, left: Typed, right: Typed) -> Typed:
    one, other = left.code, right.code
    kind = "any" if "any" in (left.kind, right.kind) else "float" if "float" in (left.kind, right.kind) else "int"
    if sign == "+":
        if "string" in (left.kind, right.kind):
            expect(left, "string", sign)
            expect(right, "string", sign)
            return Typed(lambda row: string(one(row)) + string(other(row)), "string")
        return Typed(lambda row: added(one(row), other(row)), kind)
    for part in (left, right):
        expect(part, "int" if sign == "%" else "number", sign)
    if sign == "%":
        return Typed(lambda row: int(math.fmod(integer(one(row)), integer(other(row)))), "int")
    count = NUMBERS[sign]
    return Typed(lambda row: wrapped(count(number(one(row)), number(other(row)))), kind if sign in "-*" else "float")


def added(one: Any, other: Any) -> Any:
    if isinstance(one, str):
        return one + string(other)
    return wrapped(number(one) + number(other))


def matching(left: Typed, right: Typed) -> Typed:
    import re

    expect(left, "string", "matches")
    expect(right, "string", "matches")
    one = left.code
    try:
        constant: Any = right.code(())
    except IndexError:
        other = right.code
        return Typed(lambda row: re.search(python_pattern(other(row)), string(one(row))) is not None, "bool")
    try:
        search = re.compile(python_pattern(constant)).search
    except ValueError as error:
        raise ExpressionError(f"invalid regular expression: {error}") from None
    return Typed(lambda row: search(string(one(row))) is not None, "bool")


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, bool) != isinstance(other, bool):
        return False
    return bool(one == other)


def ordered(one: Any, other: Any) -> tuple[Any, Any]:
    if isinstance(one, str):
        return one.encode("utf-8", "surrogateescape"), string(other).encode("utf-8", "surrogateescape")
    return number(one), number(other)


def contained(item: Any, of: Any) -> bool:
    if isinstance(of, Networks):
        return of.has(string(item))
    if isinstance(of, str | bytes | type(None)):
        raise TypeError("no list")
    return any(equal(item, one) for one in of)


def span(first: Any, last: Any) -> range:
    if integer(last) - integer(first) >= MOST_ITEMS:
        raise ValueError("a range of too many numbers")
    return range(first, last + 1)
