"""Order the rows of tables: `--sort f1,-f2` or `source:f1,-f2;source2:f3`; `-` sorts in descending order."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from igrun.errors import ParamError
from igrun.metadata import TEXT, Param
from igrun.operators import Given, Stage, Step
from igrun.record import Batch, Batches, DataSource, Field, Kind, Sources, Value

if TYPE_CHECKING:
    from igrun.program import Loaded

NAME = "sort"
STAGE = Stage.ORDER
SORT = Param(
    "sort",
    TEXT,
    "",
    "Fields to sort by, joined by ','; '-' before a field sorts in descending order. With several data sources: "
    "'source:field,...', joined by ';'",
    group="operator.sort",
    title="Sort By",
    tags=("table",),
)
PARAMS = (SORT,)


class Key(NamedTuple):
    """One field to sort by. order: its value -> something that compares as the values should."""

    field: Field
    descending: bool
    order: Callable[[Value], Any]


def bind(given: Given) -> tuple[Step, ...]:
    keys = read_keys(given.value(SORT), given.sources)
    if not keys:
        return ()

    def run(batches: Batches, loaded: Loaded) -> Batches:
        for batch in batches:
            wanted = keys.get(batch.source.name)
            yield batch.select(rows_by(batch, wanted), None) if wanted else batch

    return (Step(sources=given.sources, run=run),)


def rows_by(batch: Batch, keys: tuple[Key, ...]) -> list[int]:
    """The positions of the batch's rows in the order of the keys; equal rows stay as they are."""
    rows = list(range(len(batch)))
    for key in reversed(keys):
        values = [key.order(value) for value in batch.values(key.field)]
        # `reverse` keeps equal rows in place.
        rows.sort(key=values.__getitem__, reverse=key.descending)
    return rows


def read_keys(text: str, sources: Sources) -> dict[str, tuple[Key, ...]]:
    """Source name -> its keys. ParamError: a source or field does not exist or cannot be sorted by."""
    rules: dict[str, str] = {}
    for rule in filter(None, text.split(";")):
        name, _, fields = rule.rpartition(":")
        rules[name] = fields
    if "" in rules:
        if len(rules) > 1:
            raise wrong(text, "mixing sorting rules with and without specifying data source")
        tables = [name for name, source in sources.items() if source.kind is Kind.TABLE and source.referenced]
        if not tables:
            raise wrong(text, "sort can only be used on array data sources")
        rules = dict.fromkeys(tables, rules[""])
    for name in rules:
        if name not in sources:
            raise wrong(text, f"data source {name} not found", hint=f"data sources: {', '.join(sources)}")
        if sources[name].kind is not Kind.TABLE:
            raise wrong(text, "sort can only be used on array data sources")
    return {name: tuple(key(text, one, sources[name]) for one in rule.split(",")) for name, rule in rules.items()}


def key(text: str, name: str, source: DataSource) -> Key:
    descending, name = name.startswith("-"), name.removeprefix("-")
    field = source.get(name)
    if field is None:
        raise wrong(text, f"field {name} not found", hint=f"fields: {', '.join(one.name for one in source.fields)}")
    order = order_of(field)
    if order is None:
        instead = field.annotations.get("columns.replace", "")
        raise wrong(text, f"field {name} cannot be used for sorting", hint=f"use {instead}" if instead else "")
    return Key(field, descending, order)


def order_of(field: Field) -> Callable[[Value], Any] | None:
    """How its values compare: numbers by value (NaN first), text by its bytes; None for raw data and arrays."""
    kind = (field.dtype or "V").lstrip("<|")[:1]
    if kind in ("i", "u", "?"):
        return lambda value: value
    if kind == "f":
        return lambda value: (value == value, value)
    if kind in ("S", "T"):
        return lambda value: str(value).encode("utf-8", "surrogateescape")
    return None


def wrong(text: str, problem: str, hint: str = "") -> ParamError:
    return ParamError(SORT.key, text, problem, hint=hint)
