"""YAML scalars as Go's yaml.v2 emits them, which the ecosystem's YAML comes from.

Its rules, not a YAML library's: a text is plain if it would read back as a text, in single quotes if only its
characters forbid that, in double quotes if it would read as something else or holds unprintable characters, and a
literal block if it has several lines. Lines longer than 80 cells break at blanks.
"""

from __future__ import annotations

import re
from functools import cmp_to_key
from itertools import takewhile

from igrun.engine.texts import json_float, shortest_g

_WIDTH = 80
_SURROGATES = re.compile("[\ud800-\udfff]")
_BREAKS = "\n\r\x85\u2028\u2029"
_ESCAPES = dict(zip('\0\a\b\t\n\v\f\r\x1b"\\\x85\xa0\u2028\u2029', '0abtnvfre"\\N_LP', strict=True))

_WORDS = frozenset(
    form
    for word in ("y", "n", "yes", "no", "true", "false", "on", "off", "null", ".inf", "+.inf", "-.inf", "~", "")
    for form in (word, word.capitalize(), word.upper(), word.replace("i", "I") if "." in word else word)
) | {".nan", ".NaN", ".NAN"}
_INTEGER = re.compile(r"[-+]?(?:0[xX][0-9a-fA-F]+|0[bB][01]+|0[oO]?[0-7]+|0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_BASE60 = re.compile(r"[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?")
_DATE = re.compile(
    r"(?P<day>\d{4}-\d{1,2}-\d{1,2})"
    r"(?:[Tt](?P<zoned>\d{1,2}:\d{1,2}:\d{1,2})(?:[.,]\d+)?(?:Z|[-+]\d\d:\d\d)"
    r"| (?P<bare>\d{1,2}:\d{1,2}:\d{1,2})(?:[.,]\d+)?)?"
)
# Nothing in such a text can need quotes or a line break
_SIMPLE = re.compile(r"[A-Za-z/_](?:[A-Za-z0-9/_.+|=@%~*$()-]{0,40})")

# Nothing in such a text changes within double quotes
_WHOLE = re.compile(r"[!#-\[\]-~]*")


def yaml_text(text: str, indent: int = 0, column: int = 0) -> str:
    """A text as a scalar.

    indent: cells before the key it belongs to
    column: cells before the scalar itself (they count for line breaks)
    """
    if _SIMPLE.fullmatch(text) and text not in _WORDS:
        return text
    text = _SURROGATES.sub("\ufffd", text)
    margin = " " * (indent + 2)
    if "\n" not in text and not _is_text(text):
        return _double(text, margin, column)
    plain, quoted, block = _allowed(text)
    if "\n" in text:
        return _literal(text, margin) if block else _double(text, margin, column)
    if plain:
        return _folded(text, margin, column, start=0)
    return _single(text, margin, column) if quoted else _double(text, margin, column)


def yaml_float(number: float, size: int = 8) -> str:
    """A float, read from its JSON form as the ecosystem does: whole numbers look like integers."""
    text = json_float(number, size)
    if text == "null":
        return text
    if text.lstrip("-").isdigit() and -(1 << 63) <= int(text) < 1 << 64:
        return str(int(text))
    return shortest_g(number, size)


def natural(name: str) -> object:
    """Sort key of a mapping's keys: numbers in them by value, letters after everything else."""
    return _NATURAL(name)


def _is_text(text: str) -> bool:
    """True if a plain scalar like this would read back as a text."""
    if text in _WORDS or _BASE60.fullmatch(text):
        return False
    if text[0] not in "+-.0123456789":
        return True
    if _is_date(text):
        return False
    bare = text if text[0] == "." else text.replace("_", "")
    if _INTEGER.fullmatch(bare) and -(1 << 63) <= _integer(bare) < 1 << 64:
        return False
    return _FLOAT.fullmatch(bare) is None


def _integer(text: str) -> int:
    digits = text.lstrip("+-")
    if len(digits) > 1 and digits[0] == "0" and digits[1].isdigit():
        digits = "0o" + digits
    return -int(digits, 0) if text[0] == "-" else int(digits, 0)


def _is_date(text: str) -> bool:
    match = _DATE.fullmatch(text)
    if match is None:
        return False
    from datetime import datetime

    year, month, day = map(int, match["day"].split("-"))
    hour, minute, second = map(int, (match["zoned"] or match["bare"] or "0:0:0").split(":"))
    try:
        datetime(year, month, day, hour, minute, second)
    except ValueError:
        return False
    return True


def _printable(char: str) -> bool:
    return char == "\n" or " " <= char <= "~" or ("\xa0" <= char <= "\ufffd" and char != "\ufeff")


def _allowed(text: str) -> tuple[bool, bool, bool]:
    """Whether the characters of the text allow the plain, the single quoted and the literal form."""
    if not text:
        return True, True, False
    marks = text.startswith(("---", "..."))
    marks |= text[0] in "#,[]{}&*!|>'\"%@`"
    marks |= text[0] in "?:-" and text[1:2] in ("", " ", "\t", *_BREAKS)
    marks |= re.search(rf":(?:[ \t{_BREAKS}]|$)|[ \t{_BREAKS}]#", text[1:] if text[0] == ":" else text) is not None
    special = not all(map(_printable, text)) or re.search(rf" [{_BREAKS}]", text) is not None
    breaks = any(char in _BREAKS for char in text)
    break_space = re.search(rf"[{_BREAKS}] ", text) is not None
    edges = text[0] in " " + _BREAKS or text[-1] in " " + _BREAKS
    plain = not (marks or special or breaks or edges)
    # Separators like U+2028 would be line breaks within single quotes and blocks
    block = not special and text[-1] != " " and "\u2028" not in text and "\u2029" not in text
    return plain, not (special or breaks or break_space), block


def _literal(text: str, margin: str) -> str:
    # The indentation has to be told where the first line begins with a blank
    hint = "2" if text[0] in " " + _BREAKS else ""
    chomp = "-" if text[-1] != "\n" else "+" if len(text) == 1 or text[-2] in _BREAKS else ""
    lines = text.removesuffix("\n").split("\n")
    return f"|{hint}{chomp}\n" + "\n".join(margin + line if line else "" for line in lines)


def _single(text: str, margin: str, column: int) -> str:
    return "'" + _folded(text.replace("'", "''"), margin, column + 1, start=1) + "'"


def _folded(text: str, margin: str, column: int, start: int) -> str:
    """The text with line breaks for single blanks past the width; `start`: characters where none may stand."""
    if column + len(text) <= _WIDTH:
        return text
    out = []
    after_blank = False
    for at, char in enumerate(text):
        blank = char == " "
        if blank and not after_blank and column > _WIDTH and start <= at < len(text) - 1 and text[at + 1] != " ":
            out.append("\n" + margin)
            column = len(margin)
        else:
            out.append(char)
            column += 1
        after_blank = blank
    return "".join(out)


def _double(text: str, margin: str, column: int) -> str:
    if _WHOLE.fullmatch(text):
        return f'"{text}"'
    out = ['"']
    column += 1
    after_blank = False
    for at, char in enumerate(text):
        if char == " ":
            if not after_blank and column > _WIDTH and 0 < at < len(text) - 1:
                out.append("\n" + margin + ("\\" if text[at + 1] == " " else ""))
                column = len(margin) + (text[at + 1] == " ")
            else:
                out.append(char)
                column += 1
            after_blank = True
            continue
        after_blank = False
        shown = char if _printable(char) and char not in _BREAKS and char not in '"\\' else _escape(char)
        out.append(shown)
        column += len(shown)
    return "".join(out) + '"'


def _escape(char: str) -> str:
    if char in _ESCAPES:
        return "\\" + _ESCAPES[char]
    code = ord(char)
    return f"\\x{code:02X}" if code < 0x100 else f"\\u{code:04X}" if code < 0x10000 else f"\\U{code:08X}"


def _before(one: str, other: str) -> int:
    for at, (a, b) in enumerate(zip(one, other, strict=False)):
        if a == b:
            continue
        if a.isalpha() and b.isalpha():
            return -1 if a < b else 1
        if a.isalpha() or b.isalpha():
            return -1 if b.isalpha() else 1
        numbers = _digits(one, at), _digits(other, at)
        # Within a number that has begun, zeros count
        begun = "1" if "0" in (a, b) and re.search(r"[1-9][0-9]*$", one[:at]) else "0"
        values = int(begun + numbers[0]), int(begun + numbers[1])
        for x, y in (values, tuple(map(len, numbers)), (ord(a), ord(b))):
            if x != y:
                return x - y
    return len(one) - len(other)


def _digits(text: str, at: int) -> str:
    return "".join(takewhile(lambda char: char.isascii() and char.isdigit(), text[at:]))


_NATURAL = cmp_to_key(_before)
