"""Text of single values: JSON strings, Go's float and quoting forms, cutting to a width."""

from __future__ import annotations

from math import isfinite, isinf
from struct import Struct

from igrun.regex import regex

_F4 = Struct("<f")
# What encoding/json of Go escapes; an invalid byte arrives as a surrogate escape (PEP 383)
_JSON_UNSAFE = regex('[\x00-\x1f"\\\\\u2028\u2029\ud800-\udfff]')
_JSON = {
    **{code: f"\\u{code:04x}" for code in (*range(0x20), 0x2028, 0x2029)},
    **dict.fromkeys(range(0xD800, 0xE000), "\\ufffd"),
    **str.maketrans({"\n": "\\n", "\r": "\\r", "\t": "\\t", '"': '\\"', "\\": "\\\\"}),
}
_CSV_ODD = regex(r'[",\r\n]')
_SURROGATES = regex("[\ud800-\udfff]")
_PLAIN = regex(r"[ !#-\[\]-~]*")
_ESCAPES = dict(zip('\a\b\f\n\r\t\v\\"', ("\\a", "\\b", "\\f", "\\n", "\\r", "\\t", "\\v", "\\\\", '\\"'), strict=True))


def json_text(text: str) -> str:
    """A JSON string, quoted."""
    return f'"{text}"' if _JSON_UNSAFE.search(text) is None else f'"{text.translate(_JSON)}"'


def csv_text(text: str) -> str:
    """A CSV value, in quotes if it needs them (RFC 4180); what is not UTF-8 as U+FFFD."""
    if not text.isascii():
        text = valid(text)
    return '"' + text.replace('"', '""') + '"' if _CSV_ODD.search(text) else text


def valid(text: str) -> str:
    """With U+FFFD for what is not UTF-8."""
    return _SURROGATES.sub("\ufffd", text)


def escaped(text: str) -> str:
    """Like Go's strconv.Quote without the quotes."""
    return text if _PLAIN.fullmatch(text) else "".join(map(_escaped, text))


def _escaped(char: str) -> str:
    if char in _ESCAPES:
        return _ESCAPES[char]
    if char.isprintable():  # the same set as Go's unicode.IsPrint
        return char
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x20 or code == 0x7F:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def cut(text: str, width: int, ellipsis: str) -> str:
    """At most `width` characters; what is cut is marked with `…` (ellipsis: "" | start | middle | end)."""
    if len(text) <= width:
        return text
    if width <= 0:
        return ""
    if ellipsis == "":
        return text[:width]
    if width == 1:
        return "…"
    if ellipsis == "start":
        return "…" + text[-(width - 1) :]
    if ellipsis == "middle":
        half = width // 2
        tail = half - 1 if width % 2 == 0 else half
        return text[:half] + "…" + (text[-tail:] if tail else "")
    return text[: width - 1] + "…"


def fitted(text: str, width: int, ellipsis: str, right: bool) -> str:
    """Exactly `width` characters."""
    if len(text) > width:
        return cut(text, width, ellipsis)
    return text.rjust(width) if right else text.ljust(width)


def hexadecimal(number: int) -> str:
    """As 0x and upper-case digits."""
    return f"0x{number:X}" if number >= 0 else f"0x-{-number:X}"


def fixed_point(number: float, decimals: int) -> str:
    """With that many decimals, however large."""
    return f"{number:.{decimals}f}" if isfinite(number) else _unusual(number)


def shortest(number: float, size: int = 8) -> str:
    """The shortest text that reads back as the same float of `size` bytes, in the form of ES6; NaN, +Inf, -Inf."""
    if not isfinite(number):
        return _unusual(number)
    sign, digits, point = _decimal(number, size)
    if -6 < point <= 21 or digits == "0":
        if point <= 0:
            return f"{sign}0.{'0' * -point}{digits}"
        whole, rest = digits[:point].ljust(point, "0"), digits[point:]
        return f"{sign}{whole}.{rest}" if rest else sign + whole
    return f"{sign}{_mantissa(digits)}e{point - 1:+d}"


def shortest_g(number: float, size: int = 8) -> str:
    """The same digits as Go's strconv 'g' lays them out (and its YAML library prints them); number is finite."""
    sign, digits, point = _decimal(number, size)
    if -4 <= point - 1 < 6:
        return shortest(number, size)
    return f"{sign}{_mantissa(digits)}e{'-' if point < 1 else '+'}{abs(point - 1):02d}"


def json_float(number: float, size: int = 8) -> str:
    """A JSON number; null where JSON has none."""
    return shortest(number, size) if isfinite(number) else "null"


def _unusual(number: float) -> str:
    return "NaN" if not isinf(number) else "+Inf" if number > 0 else "-Inf"


def _mantissa(digits: str) -> str:
    return f"{digits[0]}.{digits[1:]}" if len(digits) > 1 else digits


def _decimal(number: float, size: int) -> tuple[str, str, int]:
    """Sign, digits without zeros at either end, and where the point stands: 0.digits x 10^point."""
    text = repr(number) if size == 8 else _short_repr(number, size)
    sign, text = ("-", text[1:]) if text[0] == "-" else ("", text)
    mantissa, _, exponent = text.partition("e")
    whole, _, rest = mantissa.partition(".")
    digits = (whole + rest).lstrip("0")
    point = len(whole) + int(exponent or 0) - (len(whole + rest) - len(digits))
    digits = digits.rstrip("0")
    return (sign, digits, point) if digits else (sign, "0", 1)


def _short_repr(number: float, size: int) -> str:
    form = _F4 if size == 4 else Struct("<e")
    for precision in range(1, 9):
        text = f"{number:.{precision}g}"
        try:
            if form.unpack(form.pack(float(text)))[0] == number:
                return text
        except OverflowError:  # rounded up past the largest float of this size
            continue
    return f"{number:.9g}"
