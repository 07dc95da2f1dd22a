"""Columns of values out of the records of a batch.

Every field that somebody asks for becomes a raw column and what finishes its items. The raw columns of all fields in
the C struct come from one `unpack_from` per record; nothing else here runs per record and field.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import repeat
from operator import itemgetter
from struct import Struct
from typing import Any, NamedTuple

from igrun.engine import rules, shapes
from igrun.record import (
    Address,
    At,
    Batch,
    Constant,
    Derived,
    Endpoint,
    Facts,
    Field,
    Lookup,
    Records,
    Rest,
    Side,
    Time,
    Value,
    WallClock,
)

REMEMBERED = 4096  # entries of a memo, before it starts anew
_ANSWERS = 1 << 16  # entries of a table's answers
_U64 = (1 << 64) - 1


class Memo(dict[Any, Any]):
    """The results of a function, by argument."""

    __slots__ = ("make",)

    def __init__(self, make: Callable[[Any], Any]) -> None:
        super().__init__()
        self.make = make

    def __missing__(self, key: Any) -> Any:
        if len(self) >= REMEMBERED:
            self.clear()
        found = self[key] = self.make(key)
        return found


class Column(NamedTuple):
    """raw: index of the raw column; finish: raw item -> value, None where it is the value
    memo: an item may be remembered by its raw item (hashable, not unbounded, and no float: 0.0 == -0.0)
    """

    raw: int
    finish: Callable[[Any], Any] | None
    memo: bool = True


class Rows(NamedTuple):
    """The rows of one evaluation. picked: their record indices, None: all."""

    batch: Batch
    records: Records
    picked: Sequence[int] | None
    number: int


Maker = Callable[[Rows, list[Sequence[Any]]], Sequence[Any]]


class Reading:
    """The columns of some fields, read together. Add all fields first, then read batches."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._known: dict[int, tuple[Field, Column]] = {}
        self._cells: dict[tuple[int, str], int] = {}
        self._makers: list[Maker | None] = []  # by raw column; None: read from the struct
        self._shared: dict[Any, int] = {}  # raw columns that several fields read
        self._lanes: list[tuple[Struct, list[int]]] | None = None

    def add(self, field: Field) -> Column:
        """The column of a field. ValueError: it has no value."""
        known = self._known.get(id(field))
        if known is None:
            known = self._known[id(field)] = field, self._column(field)
        return known[1]

    def add_rows(self) -> int:
        """The raw column that has one item per row, whatever the fields are."""
        return self._share("rows", lambda rows, columns: range(rows.number))

    def read(self, batch: Batch, picked: Sequence[int] | None) -> list[Sequence[Any]]:
        """The raw columns of the records `picked` (None: of all)."""
        records = batch.walked()
        rows = Rows(batch, records, picked, len(records.offsets) if picked is None else len(picked))
        columns: list[Sequence[Any]] = [()] * len(self._makers)
        if self._cells:
            self._read_structs(rows, columns)
        for index, make in enumerate(self._makers):
            if make is not None:
                columns[index] = make(rows, columns)
        return columns

    # ------------------------------------------------------------------------------------------ what to read

    def _column(self, field: Field) -> Column:
        if field.dtype is None or field.place is None:
            raise ValueError(f"field {field.name!r} has no value")
        form = shapes.shape(field.dtype)
        match field.place:
            case At(offset, bits):
                cell = offset, shapes.raw_code(form, bits)
                if cell not in self._cells:
                    self._cells[cell] = self._new(None)
                    self._lanes = None
                return Column(
                    self._cells[cell], shapes.finisher(form, bits), form.kind != "f" or form.items is not None
                )
            case Side(key):
                return Column(self._new(_side(key)), None, form.items is None and form.kind not in "fO")
            case Rest(length):
                index = self._new(_rest(None if length is None else self.add(length)))
                return Column(index, shapes.text if form.kind == "T" else None, False)
            case Derived(sources, rule):
                return self._derived(field, [self.add(source) for source in sources], rule, form)

    def _derived(self, field: Field, sources: list[Column], rule: Any, form: shapes.Shape) -> Column:
        match rule:
            case Constant(value):
                return Column(self._new(lambda rows, columns: [value] * rows.number), None)
            case WallClock():
                return Column(self._share(("wall", sources[0]), _wall(sources[0], self._facts)), None, False)
            case Address() | Endpoint():
                finish = rules.address if isinstance(rule, Address) else rules.endpoint
                return Column(self._share(("together", *sources), _together(sources)), finish)
            case Lookup(table, part):
                keys = sources[0] if len(sources) == 1 else None
                key_index = self._share(("key", *sources), _keys(sources) if keys is None else _keys_of_one(keys))
                answers = self._share(("answers", table, key_index), _answers(self._facts, table, key_index))
                make = itemgetter(part)
                index = self._new(lambda rows, columns: list(map(make, columns[answers])))
                return Column(index, None, form.items is None and form.kind not in "fO")
        one = rules.of_one(rule)
        if one is None:
            raise ValueError(f"field {field.name!r}: {rule!r} is no rule")
        source = sources[0]
        memo = source.memo and not isinstance(rule, Time)  # times seldom come twice, and remember their seconds
        return Column(source.raw, _after(source.finish, one), memo)

    def _new(self, make: Maker | None) -> int:
        self._makers.append(make)
        return len(self._makers) - 1

    def _share(self, key: Any, make: Maker) -> int:
        if key not in self._shared:
            self._shared[key] = self._new(make)
        return self._shared[key]

    # ------------------------------------------------------------------------------------------ reading

    def _read_structs(self, rows: Rows, columns: list[Sequence[Any]]) -> None:
        if self._lanes is None:
            self._lanes = _lanes(self._cells)
        offsets: Sequence[int] = rows.records.offsets
        lengths: Sequence[int] = rows.records.lengths
        if rows.picked is not None:
            offsets = [offsets[row] for row in rows.picked]
            lengths = [lengths[row] for row in rows.picked]
        memory = rows.batch.region.memory
        shortest = min(lengths, default=0)
        for struct, indices in self._lanes:
            unpack, size = struct.unpack_from, struct.size
            if shortest >= size:
                items = list(zip(*map(unpack, repeat(memory), offsets), strict=True))
            else:
                padded = (
                    bytes(memory[at : at + min(length, size)]).ljust(size, b"\0")
                    for at, length in zip(offsets, lengths, strict=True)
                )
                items = list(zip(*map(unpack, padded), strict=True))
            for index, column in zip(indices, items or repeat(()), strict=False):
                columns[index] = column


def values(columns: list[Sequence[Any]], column: Column) -> Sequence[Any]:
    """The finished column."""
    raw = columns[column.raw]
    return raw if column.finish is None else list(map(column.finish, raw))


def _after(first: Callable[[Any], Any] | None, then: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return then if first is None else lambda raw: then(first(raw))


def _lanes(cells: dict[tuple[int, str], int]) -> list[tuple[Struct, list[int]]]:
    """Structs that read all cells: as few as there are cells one upon the other (unions, bit-fields)."""
    lanes: list[tuple[str, int, list[int]]] = []
    for (offset, code), index in sorted(cells.items(), key=itemgetter(0)):
        at = next((at for at, lane in enumerate(lanes) if lane[1] <= offset), None)
        if at is None:
            lanes.append(("<", 0, []))
            at = len(lanes) - 1
        form, end, indices = lanes[at]
        gap = f"{offset - end}x" if offset > end else ""
        lanes[at] = (form + gap + code, offset + Struct("<" + code).size, [*indices, index])
    return [(Struct(form), indices) for form, _, indices in lanes]


def _side(key: str) -> Maker:
    def make(rows: Rows, columns: list[Sequence[Any]]) -> Sequence[Any]:
        column = rows.batch.sides[key]
        return column if rows.picked is None else [column[row] for row in rows.picked]

    return make


def _rest(length: Column | None) -> Maker:
    def make(rows: Rows, columns: list[Sequence[Any]]) -> Sequence[Any]:
        memory, size = rows.batch.region.memory, rows.batch.source.size
        offsets, lengths = rows.records
        picked = range(rows.number) if rows.picked is None else rows.picked
        ends = [max(lengths[row], size) for row in picked]
        if length is not None:
            ends = [min(end, size + max(wanted, 0)) for end, wanted in zip(ends, values(columns, length), strict=True)]
        return [bytes(memory[offsets[row] + size : offsets[row] + end]) for row, end in zip(picked, ends, strict=True)]

    return make


def _wall(source: Column, facts: Facts) -> Maker:
    def make(rows: Rows, columns: list[Sequence[Any]]) -> Sequence[Any]:
        offset, now = facts.wall_minus_boot_ns, time.time_ns()
        return [boot + offset & _U64 if boot else now for boot in values(columns, source)]

    return make


def _together(sources: list[Column]) -> Maker:
    def make(rows: Rows, columns: list[Sequence[Any]]) -> Sequence[Any]:
        read = [_hashable(values(columns, source)) for source in sources]
        return list(zip(*read, strict=True))

    return make


_keys = _together


def _keys_of_one(source: Column) -> Maker:
    return lambda rows, columns: _hashable(values(columns, source))


def _hashable(column: Sequence[Any]) -> Sequence[Any]:
    """Arrays of bytes (16 x u8 of an address) as bytes."""
    return [bytes(item) for item in column] if column and isinstance(column[0], list) else column


def _answers(facts: Facts, table: str, keys: int) -> Maker:
    def make(rows: Rows, columns: list[Sequence[Any]]) -> Sequence[Any]:
        known = facts.answers.setdefault(table, {})
        found: list[tuple[Value, ...]] = []
        for key in columns[keys]:
            answer = known.get(key)
            if answer is None:
                if len(known) >= _ANSWERS:
                    known.clear()
                answer = known[key] = facts.tables[table](key)
            found.append(answer)
        return found

    return make
