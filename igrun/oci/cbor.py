"""Read CBOR (RFC 8949): as much of it as COSE needs, and never more than it is given."""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

from igrun.errors import ImageError

DEEPEST = 16
MOST_ITEMS = 4096
UNSIGNED, NEGATIVE, BYTES, TEXT, ARRAY, MAP, TAG, SIMPLE = range(8)
SIMPLES: dict[int, Any] = {20: False, 21: True, 22: None, 23: None}
FLOATS = {25: ">e", 26: ">f", 27: ">d"}


class Tagged(NamedTuple):
    """A value with a tag that says what it means."""

    tag: int
    value: Any


def loads(data: bytes) -> Any:
    """The one value in these bytes. ImageError: it is damaged, or of a kind that COSE does not use."""
    reader = Reader(data)
    value = reader.value()
    if reader.at != len(data):
        raise ImageError("CBOR: bytes are left over")
    return value


def head(major: int, number: int) -> bytes:
    """The first bytes of a value: its kind and its number or length."""
    if number < 24:
        return bytes((major << 5 | number,))
    width = next(one for one in (1, 2, 4, 8) if number < 1 << 8 * one)
    return bytes((major << 5 | 24 + width.bit_length() - 1,)) + number.to_bytes(width, "big")


class Reader:
    """Bytes and the place in them."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0
        self._left = MOST_ITEMS

    def value(self, depth: int = 0) -> Any:
        """The next value."""
        self._left -= 1
        if depth > DEEPEST or self._left < 0:
            raise ImageError("CBOR: too deep or too many values")
        first = self._take(1)[0]
        major, small = first >> 5, first & 31
        if major == SIMPLE:
            return self._simple(small)
        number = self._number(small)
        match major:
            case 0:
                return number
            case 1:
                return -1 - number
            case 2:
                return self._take(number)
            case 3:
                try:
                    return self._take(number).decode()
                except UnicodeDecodeError:
                    raise ImageError("CBOR: wrong text") from None
            case 4:
                return [self.value(depth + 1) for _ in range(self._counted(number))]
            case 5:
                return self._map(self._counted(number), depth)
            case _:
                return Tagged(number, self.value(depth + 1))

    def _map(self, count: int, depth: int) -> dict[int | str, Any]:
        found: dict[int | str, Any] = {}
        for _ in range(count):
            key = self.value(depth + 1)
            if not isinstance(key, int | str) or isinstance(key, bool) or key in found:
                raise ImageError("CBOR: wrong key of a map")
            found[key] = self.value(depth + 1)
        return found

    def _simple(self, small: int) -> Any:
        if small in SIMPLES:
            return SIMPLES[small]
        if small in FLOATS:
            (number,) = struct.unpack(FLOATS[small], self._take(1 << small - 24))
            return number
        raise ImageError("CBOR: unknown value")

    def _number(self, small: int) -> int:
        if small < 24:
            return small
        if small > 27:
            raise ImageError("CBOR: lengths must be told")
        return int.from_bytes(self._take(1 << small - 24), "big")

    def _counted(self, number: int) -> int:
        if number > self._left:
            raise ImageError("CBOR: too many values")
        return number

    def _take(self, count: int) -> bytes:
        taken = self.data[self.at : self.at + count]
        if len(taken) != count:
            raise ImageError("CBOR: cut off")
        self.at += count
        return taken
