"""What a dtype text (`<u4`, `|S16`, `(27,)<u4`, `T`) says, without numpy."""

from __future__ import annotations

from functools import lru_cache
from struct import Struct
from typing import Any, NamedTuple

from igrun.record import Value
from igrun.regex import regex

_DTYPE = regex(r"(?:\((\d+),?\)|(\d+))?([<>|=]?)([a-zA-Z?])(\d*)")
_ALIASES = dict(zip("?bBhHiIlLqQefd", "b1 i1 u1 i2 u2 i4 u4 i8 u8 i8 u8 f2 f4 f8".split(), strict=True))
_CODES = dict(zip("b1 i1 u1 i2 u2 i4 u4 i8 u8 f2 f4 f8 S V".split(), "?bBhHiIqQefdss", strict=True))


class Shape(NamedTuple):
    """kind: i u f b (numbers), S (text of fixed size), T (text), V (bytes of fixed size), O (bytes)
    size: bytes of one item, 0 where it varies; items: of an array, None for a single value
    """

    kind: str
    size: int
    items: int | None = None
    big_endian: bool = False

    @property
    def code(self) -> str:
        """Its format letter of module struct; a single S or V has its size before it."""
        return _CODES[self.kind if self.kind in "SVTO" else f"{self.kind}{self.size}"]

    @property
    def bytes(self) -> int:
        """Its size in a record."""
        return self.size * (1 if self.items is None else self.items)

    @property
    def integer(self) -> bool:
        """A single integer (not a bool)."""
        return self.kind in "iu" and self.items is None


@lru_cache(256)
def shape(dtype: str) -> Shape:
    """Read a dtype text. ValueError: it is none that a field can have."""
    match = _DTYPE.fullmatch(dtype)
    if match is None:
        raise ValueError(f"dtype {dtype!r} is not known")
    count, letter, digits = match[1] or match[2], match[4], match[5]
    if not digits and letter in _ALIASES:
        letter, digits = _ALIASES[letter][0], _ALIASES[letter][1:]
    if letter not in "SVTO" and letter + digits not in _CODES:
        raise ValueError(f"dtype {dtype!r} is not known")
    return Shape(letter, int(digits or 0), None if count is None else int(count), match[3] == ">")


def text(raw: bytes) -> str:
    """Text up to the first NUL; bytes that are no UTF-8 as surrogate escapes."""
    return raw.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def finisher(form: Shape, bits: tuple[int, int] | None) -> Any:
    """What turns a raw column's item into the value, None where it is the value already."""
    if form.items is not None:
        return _list_of(form)
    if bits is not None:
        return _bits_of(form, *bits)
    if form.kind == "S":
        return text
    if form.big_endian and form.size > 1:
        number = Struct(">" + form.code)
        return lambda raw: number.unpack(raw)[0]
    return None


def raw_code(form: Shape, bits: tuple[int, int] | None) -> str:
    """The struct format of the raw item."""
    if form.kind in "TO":
        raise ValueError(f"a field of dtype {form.kind} has no place in a C struct")
    if form.items is not None or form.kind in "SV" or (form.big_endian and form.size > 1):
        return f"{form.bytes}s"
    return "B" if bits is not None and form.kind == "b" else form.code


def _list_of(form: Shape) -> Any:
    if form.kind in "SV":
        size, one = form.size, (text if form.kind == "S" else bytes)
        return lambda raw: [one(raw[at : at + size]) for at in range(0, len(raw), size)] if size else []
    items = Struct(f"{'>' if form.big_endian else '<'}{form.items}{form.code}")
    return lambda raw: list(items.unpack(raw))


def _bits_of(form: Shape, shift: int, width: int) -> Any:
    mask = (1 << width) - 1
    sign = 1 << (width - 1) if form.kind == "i" and width else 0
    order: Any = "big" if form.big_endian and form.size > 1 else None

    def value(raw: Any) -> Value:
        found: int = (int.from_bytes(raw, order) if order else raw) >> shift & mask
        if form.kind == "b":
            return found != 0
        return (found ^ sign) - sign

    return value
