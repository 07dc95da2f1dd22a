"""Values of an expression: parts of one, with their kinds, and what a row's values have to be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from igrun.record import Field

ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v", "0": "\0"}
MOST_ITEMS = 100_000  # of a range
Row = tuple[Any, ...]
Code = Callable[[Row], Any]


class ExpressionError(ValueError):
    """The expression is wrong; says why, and where."""


class Typed(NamedTuple):
    """A part of an expression. kind: int, float, string, bool, list, nil, or any where it is not known."""

    code: Code
    kind: str


def literal(value: Any) -> Typed:
    kind = {bool: "bool", int: "int", float: "float", str: "string"}[type(value)]
    return Typed(lambda row: value, kind)


def kind_of(field: Field) -> str:
    from igrun.engine.shapes import shape

    form = shape(str(field.dtype))
    if form.items is not None:
        return "list"
    return {"i": "int", "u": "int", "f": "float", "b": "bool"}.get(form.kind, "string" if form.kind in "ST" else "any")


def a_number(text: str) -> int | float:
    digits = text.replace("_", "")
    if digits[:2].lower() in ("0x", "0b", "0o"):
        found: int | float = int(digits, 0)
    else:
        found = float(digits) if any(sign in digits for sign in ".eE") else int(digits)
    if isinstance(found, int) and found >= 1 << 64:
        raise ExpressionError(f"{text} has more than 64 bits")
    return found


def unquoted(text: str) -> str:
    if text[0] == "`":
        return text[1:-1]
    out, rest = "", iter(text[1:-1])
    for sign in rest:
        if sign != "\\":
            out += sign
            continue
        following = next(rest)
        if following in "xuU":
            digits = "".join(next(rest, "") for _ in range({"x": 2, "u": 4, "U": 8}[following]))
            try:
                out += chr(int(digits, 16))
            except (ValueError, OverflowError):
                raise ExpressionError(f"invalid escape \\{following}{digits}") from None
        elif following in ESCAPES or following in "\"'\\`/":
            out += ESCAPES.get(following, following)
        else:
            raise ExpressionError(f"invalid escape \\{following}")
    return out


def expect(part: Typed, kind: str, sign: str) -> None:
    """ExpressionError: a part cannot be of that kind."""
    fine = ("int", "float", "any") if kind == "number" else (kind, "any")
    if part.kind not in fine:
        raise ExpressionError(f"{sign} is not for {part.kind}")


def boolean(value: Any) -> bool:
    if value is True or value is False:
        return bool(value)
    raise TypeError("no boolean")


def number(value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    raise TypeError("no number")


def integer(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise TypeError("no integer")


def string(value: Any) -> str:
    if isinstance(value, str):
        return value
    raise TypeError("no text")


def wrapped(value: Any) -> Any:
    """An integer as 64 bits hold it."""
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
        return (value + (1 << 63)) % (1 << 64) - (1 << 63)
    return value


def negative(part: Typed) -> Typed:
    code = part.code
    return Typed(lambda row: wrapped(-number(code(row))), part.kind)


def negation(part: Typed) -> Typed:
    expect(part, "bool", "not")
    code = part.code
    return Typed(lambda row: not boolean(code(row)), "bool")
