"""Functions of an expression."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from igrun.expressions.values import Code, ExpressionError, Typed, boolean, number, string


class Networks:
    """Networks of IP addresses."""

    def __init__(self, *texts: Any) -> None:
        from ipaddress import ip_network

        self._networks = [ip_network(string(text), strict=False) for text in texts]

    def has(self, address: str) -> bool:
        from ipaddress import ip_address

        found = ip_address(address)
        return any(found.version == network.version and found in network for network in self._networks)


def networks(*texts: Any) -> Networks:
    return Networks(*(texts[0] if len(texts) == 1 and isinstance(texts[0], list) else texts))


def constant_networks(codes: Sequence[Code]) -> Typed:
    """cidr(...), made once where its arguments are constants. ExpressionError: one is no network."""
    try:
        found = networks(*[code(()) for code in codes])
    except IndexError:  # a field, of which there is none yet
        return Typed(lambda row: networks(*[code(row) for code in codes]), "any")
    except (TypeError, ValueError) as error:
        raise ExpressionError(f"cidr: {error}") from None
    return Typed(lambda row: found, "any")


def in_networks(address: Any, of: Any) -> bool:
    return (of if isinstance(of, Networks) else networks(of)).has(string(address))


def to_int(value: Any) -> int:
    return int(string(value)) if isinstance(value, str) else int(number(value))


def to_float(value: Any) -> float:
    return float(string(value)) if isinstance(value, str) else float(number(value))


def to_string(value: Any) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)


def rounded(value: Any) -> float:
    return float(math.floor(abs(number(value)) + 0.5)) * (-1 if value < 0 else 1)


MANY = 100
# name -> function, fewest and most arguments, kind of the result
FUNCTIONS: dict[str, tuple[Callable[..., Any], int, int, str]] = {
    "len": (len, 1, 1, "int"),
    "lower": (lambda text: string(text).lower(), 1, 1, "string"),
    "upper": (lambda text: string(text).upper(), 1, 1, "string"),
    "trim": (lambda text, signs=" \t\n\v\f\r": string(text).strip(signs), 1, 2, "string"),
    "trimPrefix": (lambda text, prefix=" ": string(text).removeprefix(prefix), 1, 2, "string"),
    "trimSuffix": (lambda text, suffix=" ": string(text).removesuffix(suffix), 1, 2, "string"),
    "split": (lambda text, by: string(text).split(by) if by else list(text), 2, 2, "list"),
    "join": (lambda parts, by="": by.join(parts), 1, 2, "string"),
    "replace": (lambda text, old, new: string(text).replace(old, new), 3, 3, "string"),
    "repeat": (lambda text, count: string(text) * min(count, 1000), 2, 2, "string"),
    "indexOf": (lambda text, part: string(text).find(part), 2, 2, "int"),
    "lastIndexOf": (lambda text, part: string(text).rfind(part), 2, 2, "int"),
    "hasPrefix": (lambda text, part: string(text).startswith(part), 2, 2, "bool"),
    "hasSuffix": (lambda text, part: string(text).endswith(part), 2, 2, "bool"),
    "abs": (lambda value: abs(number(value)), 1, 1, "any"),
    "ceil": (lambda value: float(math.ceil(number(value))), 1, 1, "float"),
    "floor": (lambda value: float(math.floor(number(value))), 1, 1, "float"),
    "round": (rounded, 1, 1, "float"),
    "min": (lambda *values: min(values[0] if isinstance(values[0], list) else values), 1, MANY, "any"),
    "max": (lambda *values: max(values[0] if isinstance(values[0], list) else values), 1, MANY, "any"),
    "sum": (sum, 1, 1, "any"),
    "first": (lambda items: items[0] if items else None, 1, 1, "any"),
    "last": (lambda items: items[-1] if items else None, 1, 1, "any"),
    "int": (to_int, 1, 1, "int"),
    "float": (to_float, 1, 1, "float"),
    "string": (to_string, 1, 1, "string"),
    "cidr": (networks, 1, MANY, "any"),
    "CidrMatches": (in_networks, 2, 2, "bool"),
}
OVER_ITEMS: dict[str, tuple[Callable[[Iterable[tuple[Any, Any]]], Any], str]] = {
    "any": (lambda each: any(boolean(found) for _, found in each), "bool"),
    "all": (lambda each: all(boolean(found) for _, found in each), "bool"),
    "none": (lambda each: not any(boolean(found) for _, found in each), "bool"),
    "one": (lambda each: sum(boolean(found) for _, found in each) == 1, "bool"),
    "count": (lambda each: sum(boolean(found) for _, found in each), "int"),
    "filter": (lambda each: [item for item, found in each if boolean(found)], "list"),
    "map": (lambda each: [found for _, found in each], "list"),
}
