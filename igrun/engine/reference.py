"""The engine in plain Python, the measure for every faster one.

It works by columns, as the faster ones do: one `struct` call reads all fields of a record, whatever prints or decides
is remembered by the raw value, and a row becomes text by a single `%`. Only `numpy()` needs numpy.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING

from igrun.engine import Printer, Template
from igrun.engine.framing import walk
from igrun.engine.printing import Filter, Printing
from igrun.engine.values import Column, Reading, values
from igrun.record import Batch, Columns, Facts, Field, Predicate, Records, Region, Value

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa


class Reference:
    """Makes columns and text out of records (see engine.Engine)."""

    def columns(self, facts: Facts) -> Columns:
        """The evaluator that batches carry."""
        return ReferenceColumns(facts)

    def printer(self, template: Template, keep: Predicate | None, facts: Facts) -> Printer:
        """A printer by this template of the rows for which `keep` holds."""
        return Printing(template, keep, facts)

    def room(self, size: int) -> None:
        """It has none: it reads regions where they are."""

    def window(self, fd: int, offset: int, size: int) -> None:
        """It has none."""


class ReferenceColumns:
    """Evaluates fields and predicates over a batch (see record.Columns)."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        # Both hold their key, so that an id is not given to another object
        self._readings: dict[int, tuple[Field, Reading, Column]] = {}
        self._filters: dict[int, tuple[Predicate, Filter]] = {}

    def walk(self, region: Region) -> Records:
        """Find the records; busy, discarded and malformed ones are left out."""
        return walk(region)

    def values(self, batch: Batch, field: Field) -> Sequence[Value]:
        """One value per selected row."""
        known = self._readings.get(id(field))
        if known is None:
            reading = Reading(self._facts)
            known = self._readings[id(field)] = field, reading, reading.add(field)
        _, reading, column = known
        return values(reading.read(batch, batch.selected), column)

    def where(self, batch: Batch, predicate: Predicate) -> array[int]:
        """The selected records (indices, array "I") for which it holds."""
        known = self._filters.get(id(predicate))
        if known is None:
            known = self._filters[id(predicate)] = predicate, Filter(predicate, self._facts)
        return array("I", known[1](batch))

    def numpy(self, batch: Batch, fields: Sequence[Field]) -> np.ndarray:
        """A structured array, one item per selected row."""
        from igrun.engine.arrays import structured

        return structured(batch, fields, self.values)

    def arrow(self, batch: Batch, fields: Sequence[Field] | None) -> pa.RecordBatch:
        """Columns by name, with types."""
        from igrun.engine.columnar import columns, record_batch

        return record_batch(batch, columns(batch.source) if fields is None else fields, self._facts)


ENGINE = Reference()
"""It has no state of its own."""
