"""Prints whole batches by a template: one `%` per row over columns that are text already."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import compress
from typing import Any

from igrun.engine import Json, Out, Printed, Slot, Template, gotime
from igrun.engine.forms import conversion, encoder
from igrun.engine.predicates import verdicts
from igrun.engine.shapes import shape
from igrun.engine.values import Column, Memo, Reading, values
from igrun.record import Batch, Derived, Facts, Field, Predicate, Time

_ROWS_AT_ONCE = 256  # their columns stay in the processor's cache

Making = Callable[[list[Sequence[Any]]], Sequence[Any]]


class Printing:
    """A printer (see engine.Printer)."""

    def __init__(self, template: Template, keep: Predicate | None, facts: Facts) -> None:
        self._filter = None if keep is None else Filter(keep, facts)
        self._reading = Reading(facts)
        self._between = template.between
        self._columns: list[Making] = []
        form = []
        for piece in template.pieces:
            if isinstance(piece, Slot):
                conversion, column = _slot(piece, self._reading)
                form.append(conversion)
                self._columns.append(column)
            else:
                form.append(piece.replace(b"%", b"%%"))
        self._form = b"".join(form)

    def __call__(self, batch: Batch, out: Out | None = None) -> Printed:
        picked: Sequence[int] | None = batch.selected
        before = len(batch)
        if self._filter is not None:
            picked = self._filter(batch)
        count = before if picked is None else len(picked)
        if count <= _ROWS_AT_ONCE:
            return Printed(self._print(batch, picked, count), count, before - count)
        rows: Sequence[int] = range(count) if picked is None else picked
        parts = [rows[at : at + _ROWS_AT_ONCE] for at in range(0, count, _ROWS_AT_ONCE)]
        texts = (self._print(batch, part, len(part)) for part in parts)
        if out is None:
            return Printed(self._between.join(texts), count, before - count)
        text = next(texts)
        for following in texts:
            out(text)
            text = self._between + following
        return Printed(text, count, before - count)

    def rows(self, batch: Batch, picked: Sequence[int] | None, count: int) -> Iterable[bytes]:
        """The text of each of the `count` records `picked` (None: of all), whatever the predicate."""
        if not self._columns:
            return [self._form % ()] * count
        raw = self._reading.read(batch, picked)
        return map(self._form.__mod__, zip(*(column(raw) for column in self._columns), strict=True))

    def _print(self, batch: Batch, picked: Sequence[int] | None, count: int) -> bytes:
        return self._between.join(self.rows(batch, picked, count))


class Filter:
    """The record indices of the selected rows for which a predicate holds."""

    def __init__(self, keep: Predicate, facts: Facts) -> None:
        self._reading = Reading(facts)
        self._verdicts = verdicts(self._reading, keep)

    def __call__(self, batch: Batch) -> list[int]:
        rows: Sequence[int] = range(len(batch)) if batch.selected is None else batch.selected
        return list(compress(rows, self._verdicts(self._reading.read(batch, batch.selected))))

    def holds(self, batch: Batch, record: int) -> bool:
        """Whether it holds for one record."""
        return self._verdicts(self._reading.read(batch, [record]))[0]


def _slot(slot: Slot, reading: Reading) -> tuple[bytes, Making]:
    """How `%` prints it, and the column that it prints."""
    field, form = slot
    if field.dtype is None:
        raise ValueError(f"field {field.name!r} has no value")
    column, known = reading.add(field), shape(field.dtype)
    number = conversion(form, known)
    if number is not None:
        return number, lambda raw: values(raw, column)
    if isinstance(form, Json) and _is_plain_time(field):
        return b'"%s"', _made(column, str.encode)
    return b"%s", _made(column, encoder(form, known))


def _made(column: Column, make: Callable[[Any], bytes]) -> Making:
    index, finish = column.raw, column.finish
    whole = make if finish is None else lambda raw: make(finish(raw))
    function: Callable[[Any], bytes] = Memo(whole).__getitem__ if column.memo else whole
    return lambda raw: list(map(function, raw[index]))


def _is_plain_time(field: Field) -> bool:
    place = field.place
    return isinstance(place, Derived) and isinstance(place.rule, Time) and gotime.plain(place.rule.layout)
