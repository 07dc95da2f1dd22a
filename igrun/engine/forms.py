"""How a value of a dtype prints in each form: functions from a value to bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from igrun.engine import Cell, Csv, Form, Json, Text, Yaml, texts
from igrun.engine.shapes import Shape
from igrun.engine.texts import json_text

_DIGITS = {1: 3, 2: 5, 4: 10, 8: 20}  # of the largest integer by size; one cell more for a sign
Encoder = Callable[[Any], bytes]


def conversion(form: Form, shape: Shape) -> bytes | None:
    """What `%` prints integers by without a function, e.g. b"%16d"; None where that does not do."""
    if not shape.integer:
        return None
    if not isinstance(form, Cell):
        return b"%d"
    digits = _DIGITS[shape.size] + (shape.kind == "i")
    if form.hex or form.width < digits:
        return None
    return b"%%%s%dd" % (b"" if form.right else b"-", form.width)


def encoder(form: Form, shape: Shape) -> Encoder:
    """What prints a value of this shape."""
    if isinstance(form, Cell):
        plain = _cell_text(form, shape)
        return lambda value: texts.fitted(plain(value), form.width, form.ellipsis, form.right).encode()
    text = _scalar(form, shape) if shape.items is None else _array(form, shape)
    if isinstance(form, Csv):
        return lambda value: texts.csv_text(text(value)).encode()
    return lambda value: text(value).encode("utf-8", "surrogateescape")


def _scalar(form: Form, shape: Shape) -> Callable[[Any], str]:
    kind, size = shape.kind, shape.size
    if kind in "iu":
        return str
    if kind == "b":
        return _bool
    if kind == "f":
        number = _float(form)
        return lambda value: number(value, size)
    quote = _quoted(form)
    if kind in "VO":
        if isinstance(form, Text):
            return lambda value: bytes(value).decode("utf-8", "surrogateescape")
        return lambda value: quote(bytes(value).hex())
    return quote


def _float(form: Form) -> Callable[[float, int], str]:
    match form:
        case Yaml():
            from igrun.engine.yamls import yaml_float

            return yaml_float
        case Json():
            return texts.json_float
        case _:
            return texts.shortest


def _quoted(form: Form) -> Callable[[str], str]:
    match form:
        case Json():
            return json_text
        case Yaml(indent, column):
            from igrun.engine.yamls import yaml_text

            return lambda value: yaml_text(value, indent, column)
        case _:
            return str


def _array(form: Form, shape: Shape) -> Callable[[Any], str]:
    if isinstance(form, Yaml):
        # Items begin in the column of the key, after "- "
        form = Yaml(form.indent, form.indent + 2)
    one = _scalar(form, shape._replace(items=None))
    before, between, after, empty = "[", ",", "]", "[]"
    if isinstance(form, Yaml):
        before, between, after, empty = (f"\n{' ' * form.indent}- ", f"\n{' ' * form.indent}- ", "", " []")
    elif isinstance(form, Json) and form.indent is not None:
        margin = "\n" + " " * form.indent
        before, between, after = f"[{margin}  ", f",{margin}  ", f"{margin}]"

    return lambda value: before + between.join(map(one, value)) + after if len(value) else empty


def _cell_text(form: Cell, shape: Shape) -> Callable[[Any], str]:
    if shape.items is not None or shape.kind == "V":
        text = f"<{shape.bytes} bytes>"
        return lambda value: text
    if shape.kind == "O":
        return lambda value: f"<{len(value)} bytes>"
    if shape.kind == "b":
        return _bool
    if shape.kind == "f":
        return lambda value: texts.fixed_point(value, form.precision)
    if shape.kind in "iu":
        return texts.hexadecimal if form.hex else str
    return texts.escaped


def _bool(value: Any) -> str:
    return "true" if value else "false"
