"""Text of a time by a Go layout ("2006-01-02T15:04:05.000000000Z07:00"), in local time (TZ)."""

from __future__ import annotations

import time
from collections.abc import Callable

from igrun.regex import regex

_SECOND = 10**9
_KEEP = 4096  # seconds remembered
_MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

# The words that stand for a part of the time; at each place Go tries them in this order.
_WORDS = regex(
    r"January|Jan(?![a-z])|Monday|Mon(?![a-z])|MST|01|02|03|04|05|06|002|15|1|2006|2|_(?=2006)|__2|_2|3|4|5|PM|pm"
    r"|-070000|-07:00:00|-0700|-07:00|-07|Z070000|Z07:00:00|Z0700|Z07:00|Z07|[.,](?:0+|9+)(?!\d)"
)


def layout(text: str) -> Callable[[int], str]:
    """A function from ns since 1970 to text by this layout."""
    fractions, around = pieces(text)
    known: dict[int, tuple[str, ...]] = {}

    def remembered(second: int) -> tuple[str, ...]:
        if len(known) >= _KEEP:
            known.clear()
        found = known[second] = around(second)
        return found

    if fractions == (".000000000",):

        def to_nanoseconds(ns: int) -> str:
            second, rest = divmod(ns, _SECOND)
            before, after = known.get(second) or remembered(second)
            return f"{before}.{rest:09d}{after}"

        return to_nanoseconds

    def to_text(ns: int) -> str:
        second, rest = divmod(ns, _SECOND)
        parts = known.get(second) or remembered(second)
        text = parts[0]
        for fraction, part in zip(fractions, parts[1:], strict=True):
            text += _fraction(fraction, rest) + part
        return text

    return to_text


def pieces(text: str) -> tuple[tuple[str, ...], Callable[[int], tuple[str, ...]]]:
    """The fractions of a second in a layout, and a function from a second since 1970 to the texts around them."""
    fractions: list[str] = []
    fixed: list[list[str]] = [[]]
    for piece in _split(text):
        if piece[0] in ".," and len(piece) > 1:
            fractions.append(piece)
            fixed.append([])
        else:
            fixed[-1].append(piece)

    def around(second: int) -> tuple[str, ...]:
        local = time.localtime(second)
        return tuple("".join(_part(piece, local) for piece in run) for run in fixed)

    return tuple(fractions), around


def plain(text: str) -> bool:
    """True if no text by this layout needs a JSON escape."""
    literal = _WORDS.sub("", text)
    return literal.isascii() and literal.isprintable() and not set('"\\') & set(literal)


def _split(text: str) -> list[str]:
    """Words of the layout (fractions as they stand) and `=literal`."""
    pieces: list[str] = []
    at = 0
    for word in _WORDS.finditer(text):
        if word.start() > at:
            pieces.append("=" + text[at : word.start()])
        pieces.append("=_" if word[0] == "_" else word[0])
        at = word.end()
    if at < len(text):
        pieces.append("=" + text[at:])
    return pieces


def _fraction(word: str, ns: int) -> str:
    digits = f"{ns:09d}"[: len(word) - 1].ljust(len(word) - 1, "0")
    if word[1] == "9":
        digits = digits.rstrip("0")
    return word[0] + digits if digits else ""


def _part(piece: str, local: time.struct_time) -> str:
    if piece[0] == "=":
        return piece[1:]
    if piece[0] in "-Z":
        return _zone(piece, local.tm_gmtoff)
    hour = local.tm_hour % 12 or 12
    parts: dict[str, str | int] = {
        "January": _MONTHS[local.tm_mon - 1],
        "Jan": _MONTHS[local.tm_mon - 1][:3],
        "Monday": _DAYS[local.tm_wday],
        "Mon": _DAYS[local.tm_wday][:3],
        "MST": local.tm_zone,
        "01": f"{local.tm_mon:02d}",
        "02": f"{local.tm_mday:02d}",
        "03": f"{hour:02d}",
        "04": f"{local.tm_min:02d}",
        "05": f"{local.tm_sec:02d}",
        "06": f"{local.tm_year % 100:02d}",
        "002": f"{local.tm_yday:03d}",
        "15": f"{local.tm_hour:02d}",
        "1": local.tm_mon,
        "2006": f"{local.tm_year:04d}",
        "2": local.tm_mday,
        "_2": f"{local.tm_mday:2d}",
        "__2": f"{local.tm_yday:3d}",
        "3": hour,
        "4": local.tm_min,
        "5": local.tm_sec,
        "PM": "PM" if local.tm_hour >= 12 else "AM",
        "pm": "pm" if local.tm_hour >= 12 else "am",
    }
    return str(parts[piece])


def _zone(piece: str, east: int) -> str:
    if piece[0] == "Z" and east == 0:
        return "Z"
    hours, rest = divmod(abs(east), 3600)
    minutes, seconds = divmod(rest, 60)
    colon = ":" if ":" in piece else ""
    shown = [hours, minutes, seconds][: len(piece.replace(":", "")) // 2]
    return ("-" if east < 0 else "+") + colon.join(f"{number:02d}" for number in shown)
