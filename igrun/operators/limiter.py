"""Keep the first rows of every table: `--max-entries N` or `source:N,...`; -1 keeps all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from igrun.errors import ParamError
from igrun.metadata import Param, Type
from igrun.operators import Given, Stage, Step
from igrun.record import Batches, Kind, Reason, Sources

if TYPE_CHECKING:
    from igrun.program import Loaded

NAME = "limiter"
STAGE = Stage.LIMIT
ALL = -1


def read_limits(text: str) -> dict[str, int]:
    """Source name -> rows to keep, "" for every table. ValueError: it is not of that form."""
    limits = {}
    for part in filter(None, text.split(",")):
        name, found, number = part.rpartition(":")
        try:
            limits[name] = int(number)
        except ValueError:
            raise ValueError(f"converting {number} to int: invalid syntax") from None
        if limits[name] < ALL or (found and not name):
            raise ValueError(f"{part} is not a number of rows, or -1 for all")
    if "" in limits and len(limits) > 1:
        raise ValueError("mixed values with and without specifying data source")
    return limits


MAX_ENTRIES = Param(
    "max-entries",
    Type("string", read_limits),
    "-1",
    "How many rows of each table to show: N, or source:N,... for some tables; -1 shows all",
    group="operator.limiter",
    title="Max Entries",
    tags=("table",),
)
PARAMS = (MAX_ENTRIES,)


def bind(given: Given) -> tuple[Step, ...]:
    limits = by_table(given.value(MAX_ENTRIES), given.sources)
    if not limits:
        return ()

    def run(batches: Batches, loaded: Loaded) -> Batches:
        for batch in batches:
            limit = limits.get(batch.source.name, ALL)
            yield batch if limit == ALL or len(batch) <= limit else batch.select(slice(limit), Reason.CUT)

    return (Step(sources=given.sources, run=run),)


def by_table(limits: dict[str, int], sources: Sources) -> dict[str, int]:
    """Source name -> limit, for the tables that have one; a table that is not named is not limited."""
    if "" in limits:
        limits = {name: limits[""] for name, source in sources.items() if source.kind is Kind.TABLE}
    for name, limit in limits.items():
        source = sources.get(name)
        text = f"{name}:{limit}"
        if source is None:
            known = ", ".join(one for one in sources if sources[one].kind is Kind.TABLE)
            raise ParamError(MAX_ENTRIES.key, text, f"data source {name} not found", hint=f"tables: {known}")
        if source.kind is not Kind.TABLE:
            raise ParamError(MAX_ENTRIES.key, text, "max-entries can only be used on array data sources")
    return {name: limit for name, limit in limits.items() if limit != ALL}
