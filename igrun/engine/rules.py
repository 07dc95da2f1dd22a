"""What each rule makes of a value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from igrun.engine import gotime
from igrun.record import Duration, Flags, Rule, Size, Time, Value

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB")


def of_one(rule: Rule) -> Callable[[Any], Value] | None:
    """The function of a rule that makes text of one value; None for the other rules."""
    match rule:
        case Flags():
            return lambda value: flags(rule, value)
        case Time():
            return gotime.layout(rule.layout)
        case Duration():
            return duration
        case Size():
            return size
        case _:
            return None


def flags(rule: Flags, value: int) -> str:
    """Names of the set bits, after the name of the mode in the low bits."""
    mode = rule.modes[value & (len(rule.modes) - 1)] if rule.modes else ""
    names = [name for bits, name in rule.names if value & bits == bits]
    return rule.separator.join([mode, *names] if mode else names)


def duration(ns: int) -> str:
    """Like Go's, but with two decimals below a second."""
    if ns < 1000:
        return f"{ns}ns"
    if ns < 10**6:
        return f"{ns / 1e3:.2f}µs"
    if ns < 10**9:
        return f"{ns / 1e6:.2f}ms"
    seconds, rest = divmod(ns, 10**9)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    tail = f".{rest:09d}".rstrip("0") if rest else ""
    before = f"{hours}h{minutes}m" if hours else f"{minutes}m" if minutes else ""
    return f"{before}{seconds}{tail}s"


def size(count: int) -> str:
    """Units of 1000, one decimal below 10 of them."""
    if count < 10:
        return f"{count} B"
    power = min((len(str(count)) - 1) // 3, len(_UNITS) - 1)
    value = int(count / 1000**power * 10 + 0.5) / 10
    return f"{value:.{1 if value < 10 else 0}f} {_UNITS[power]}"


def address(value: tuple[Any, ...]) -> str:
    """(16 bytes, version) -> text, in Go's form; "" for an unknown version."""
    raw, version = bytes(value[0]), value[1]
    if version == 4:
        return ".".join(map(str, raw[:4]))
    return ipv6(raw) if version == 6 else ""


def endpoint(value: tuple[Any, ...]) -> str:
    """(16 bytes, version, port) -> addr:port; "" for an unknown version."""
    text = address(value)
    return f"{text}:{value[2]}" if text else ""


def ipv6(raw: bytes) -> str:
    """As Go prints it: RFC 5952, an IPv4-mapped one as IPv4. (inet_ntop has dotted forms that Go has not.)"""
    if raw[:12] == bytes(10) + b"\xff\xff":
        return ".".join(map(str, raw[12:16]))
    groups = [raw[at] << 8 | raw[at + 1] for at in range(0, 16, 2)]
    start, length = 0, 1  # a single zero group is not shortened
    at = 0
    while at < 8:
        end = at
        while end < 8 and groups[end] == 0:
            end += 1
        if end - at > length:
            start, length = at, end - at
        at = max(end, at + 1)
    if length < 2:
        return ":".join(f"{group:x}" for group in groups)
    before = ":".join(f"{group:x}" for group in groups[:start])
    after = ":".join(f"{group:x}" for group in groups[start + length :])
    return f"{before}::{after}"
