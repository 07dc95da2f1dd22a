"""The fields of a source as a tree of objects, the way JSON and YAML show a record."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from igrun.engine import Slot
from igrun.record import DataSource, Field

Tree = dict[str, "Field | Tree"]
Pieces = Iterator[bytes | Slot]


def tree(source: DataSource, order: Callable[[str], Any]) -> Tree:
    """The objects by short name, sorted. A field with fields below it is an object, and so is one without a value."""
    parents = {name for field in source.fields for name in _above(field.name)}
    skipped = {field.name for field in source.fields if field.annotations.get("json.skip") == "true"}
    root: Tree = {}
    for field in source.fields:
        path = [*_above(field.name), field.name]
        if skipped.intersection(path):
            continue
        at = root
        for name in path[:-1]:
            at = _object(at, name.rpartition(".")[2])
        if field.name in parents or field.dtype is None or field.place is None:
            _object(at, field.short)
        else:
            at[field.short] = field
    return _sorted(root, order)


def _above(name: str) -> list[str]:
    """The names of all its parents, outermost first."""
    return [name[:at] for at, char in enumerate(name) if char == "."]


def _object(at: Tree, short: str) -> Tree:
    inner = at.setdefault(short, {})
    if isinstance(inner, Field):
        inner = at[short] = {}
    return inner


def _sorted(at: Tree, order: Callable[[str], Any]) -> Tree:
    return {
        name: inner if isinstance(inner, Field) else _sorted(inner, order)
        for name, inner in sorted(at.items(), key=lambda item: order(item[0]))
    }
