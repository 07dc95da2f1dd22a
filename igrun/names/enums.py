"""Values of C enumerations as text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Members = Sequence[tuple[str, int]]


def enum_text(members: Members, size: int) -> Callable[[int], str]:
    """The first name of a value, `UNKNOWN` if it has none. size: bytes of the field."""
    mask = (1 << 8 * size) - 1
    names: dict[int, str] = {}
    for name, value in members:
        names.setdefault(value & mask, name)
    return lambda value: names.get(value & mask, "UNKNOWN")


def set_text(members: Members, size: int, separator: str = "|") -> Callable[[int], str]:
    """Every name whose bits are all set, joined; names of 0 and of several bits count too."""
    mask = (1 << 8 * size) - 1
    bits = [(name, value & mask) for name, value in members]
    return lambda value: separator.join(name for name, bit in bits if value & bit == bit)
