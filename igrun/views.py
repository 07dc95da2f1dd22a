"""One event at a time, for callbacks: a view that is moved from record to record, and decodes what it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from struct import Struct
from typing import Any, NamedTuple

from igrun.engine.shapes import finisher, raw_code, shape
from igrun.record import At, Batch, Value


class InRecord(NamedTuple):
    """A value in the C struct. finish: raw item -> value, None where it is the value."""

    struct: Struct
    offset: int
    finish: Any


class Event:
    """A record: `event["proc.pid"]` is a field by its name or alias, decoded when it is asked for.

    It is one object for all records: keep values, or `as_dict()`, not the event. KeyError: there is no such field.
    """

    __slots__ = ("_batch", "_columns", "_known", "_length", "_memory", "_offset", "_row")

    def __init__(self) -> None:
        self._known: dict[str, InRecord | None] = {}

    def of(self, batch: Batch) -> Iterator[Event]:
        """Itself, once for each selected row of the batch."""
        offsets, lengths = batch.walked()
        self._batch, self._memory = batch, memoryview(batch.region.memory)
        self._columns: dict[str, Sequence[Value]] = {}
        picked = range(len(offsets)) if batch.selected is None else batch.selected
        for row, record in enumerate(picked):
            self._row, self._offset, self._length = row, offsets[record], lengths[record]
            yield self

    def __getitem__(self, name: str) -> Value:
        known = self._known[name] if name in self._known else self._found(name)
        if known is not None and known.offset + known.struct.size <= self._length:
            (raw,) = known.struct.unpack_from(self._memory, self._offset + known.offset)
            value: Value = raw if known.finish is None else known.finish(raw)
            return value
        # What is no plain value, or not whole in a short record, the engine knows, for the whole batch at once.
        if name not in self._columns:
            self._columns[name] = self._batch.values(name)
        return self._columns[name][self._row]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._batch.source.get(name) is not None

    @property
    def source(self) -> str:
        """The name of its data source."""
        return self._batch.source.name

    def as_dict(self) -> dict[str, Value]:
        """All fields that have a value, by full name."""
        return {one.name: self[one.name] for one in self._batch.source.fields if one.place is not None}

    def _found(self, name: str) -> InRecord | None:
        """How a field is read from the record; None where the engine has to be asked."""
        field = self._batch.source.get(name)
        if field is None or field.place is None or field.dtype is None:
            raise KeyError(name)
        known = None
        if isinstance(field.place, At):
            form, bits = shape(field.dtype), field.place.bits
            known = InRecord(Struct("<" + raw_code(form, bits)), field.place.offset, finisher(form, bits))
        self._known[name] = known
        return known
