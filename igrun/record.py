"""What flows through a run: batches of raw C records, and the description of their columns.

A `Batch` is a region of memory as the kernel wrote it plus side columns; nothing is decoded before somebody asks. What
an operator adds to a source is declared as a `Derived` field or a `Predicate`; the engine evaluates them.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from igrun.dataclass import dataclass, field, replace
from igrun.errors import ParamError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import polars as pl
    import pyarrow as pa

# bytes: raw data and arrays of structs; str: text, bytes that are not UTF-8 as surrogate escapes (PEP 383)
Value = str | int | float | bool | bytes | list[int] | list[float] | list[bool]


class Kind(Enum):
    """What a batch of a source means."""

    EVENTS = 1  # new rows
    TABLE = 2  # the whole state, each time


class Reason(Enum):
    """Why a record was not delivered (the keys of `Batch.lost`)."""

    KERNEL = "kernel"
    BACKLOG = "backlog"
    INVALID = "invalid"
    FILTERED = "filtered"
    CUT = "cut"
    GUEST = "guest"
    GROUPED = "grouped"
    CLOSED = "closed"


Lost = Mapping[Reason, int]

# ---------------------------------------------------------------------------------------------- where a value is


@dataclass(frozen=True, slots=True)
class At:
    """In the C struct. offset: bytes from the record's start; bits: (shift, width) of a bit-field in its dtype."""

    offset: int
    bits: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Rest:
    """The record's bytes after its C struct, cut to what `length` (an integer field) says; to the end where None."""

    length: Field | None = None


@dataclass(frozen=True, slots=True)
class Side:
    """A column beside the region, in `Batch.sides` under `key`."""

    key: str


@dataclass(frozen=True, slots=True)
class Derived:
    """Computed from `sources` by `rule`. Fields, not names, so that a field may replace one of its own name."""

    sources: tuple[Field, ...]
    rule: Rule


Place = At | Rest | Side | Derived

# ---------------------------------------------------------------------------------------------- rules


@dataclass(frozen=True, slots=True)
class Constant:
    """The same value in every row."""

    value: str | int | bool


@dataclass(frozen=True, slots=True)
class Flags:
    """Names of the set bits, joined. modes: name of each value of the low `len(modes) - 1` bits ("" prints nothing)."""

    names: tuple[tuple[int, str], ...]
    modes: tuple[str, ...] = ()
    separator: str = "|"


@dataclass(frozen=True, slots=True)
class WallClock:
    """Boot time in ns -> wall-clock time in ns since 1970 (u64). 0, where the kernel took no time, -> now."""


@dataclass(frozen=True, slots=True)
class Time:
    """Wall-clock ns -> text in local time. layout: a Go time layout ("2006-01-02T15:04:05.000000000Z07:00")."""

    layout: str = "2006-01-02T15:04:05.000000000Z07:00"


@dataclass(frozen=True, slots=True)
class Duration:
    """ns -> text: 999ns, 12.34µs, 1.50ms, 1m3.2s."""


@dataclass(frozen=True, slots=True)
class Size:
    """Bytes -> text in units of 1000: 999 B, 4.1 kB."""


@dataclass(frozen=True, slots=True)
class Address:
    """(16 address bytes, version 4 or 6) -> text; any other version -> ""."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """(16 address bytes, version, port) -> "addr:port", IPv6 without brackets."""


@dataclass(frozen=True, slots=True)
class Lookup:
    """A part of what table `table` answers for the sources' values (a tuple of them where there are several)."""

    table: str
    part: int = 0


Rule = Constant | Flags | WallClock | Time | Duration | Size | Address | Endpoint | Lookup

Key = int | bytes | str | tuple[int | bytes | str, ...]
Table = Callable[[Key], tuple[Value, ...]]
"""Answers one value per part; asked once per distinct key."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What evaluating needs beside the records: the tables, and wall clock minus boot clock in ns.

    answers:   what each table answered, by key; the engine keeps it
    forgotten: how often each table was to be asked again for a key; an engine that keeps more than answers looks at it
    """

    tables: Mapping[str, Table]
    wall_minus_boot_ns: int = 0
    answers: dict[str, dict[Key, tuple[Value, ...]]] = field(default_factory=dict, compare=False, repr=False)
    forgotten: dict[str, int] = field(default_factory=dict, compare=False, repr=False)

    def forget(self, table: str, key: Key) -> None:
        """Ask `table` again for this key."""
        self.answers.get(table, {}).pop(key, None)
        self.forgotten[table] = self.forgotten.get(table, 0) + 1


# ---------------------------------------------------------------------------------------------- fields and sources


@dataclass(frozen=True, slots=True)
class Field:
    """One column of a data source.

    name:   dotted (`proc.comm`)
    dtype:  text that `numpy.dtype` reads: `<u4`, `|S16` (text up to the first NUL), `?`, `(27,)<u4`, `|V24` (a struct's
            bytes), `T` (text of any length), `O` (bytes of any length); None: a parent that has no value of its own
    place:  None only where dtype is None, or while the type of a guest's field is unknown
    tags:   C typedefs (`type:gadget_errno`), `name:<member>`, and what operators and guests add
    hidden: not among the default columns
    order:  columns stand in this order; equal ones in the order of `DataSource.fields`
    """

    name: str
    dtype: str | None
    place: Place | None
    tags: tuple[str, ...] = ()
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    hidden: bool = False
    order: int = 0

    @property
    def short(self) -> str:
        """The last part of the name."""
        return self.name.rpartition(".")[2]

    @property
    def parent(self) -> str:
        """The name without its last part, "" at the top."""
        return self.name.rpartition(".")[0]

    def typedef(self) -> str:
        """The outermost C type name, "" if none is known."""
        return next((tag[5:] for tag in self.tags if tag.startswith("type:")), "")

    def has_type(self, name: str) -> bool:
        """True if one of the C type names met on the way to the base type is `name`."""
        return f"type:{name}" in self.tags


@dataclass(frozen=True, slots=True)
class DataSource:
    """A named stream of records. size: bytes of its C struct; a shorter record is read as if followed by zeros."""

    name: str
    kind: Kind
    fields: tuple[Field, ...] = ()
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    size: int = 0
    referenced: bool = True

    def get(self, name: str) -> Field | None:
        """The field of that full name or alias: exact first, else case-insensitive; None if there is none."""
        for known in self.fields:
            if known.name == name:
                return known
        wanted = name.lower()
        for known in self.fields:
            if wanted and wanted in (known.name.lower(), known.annotations.get("columns.alias", "").lower()):
                return known
        return None

    def field(self, name: str) -> Field:
        """As `get`; ParamError with the nearest name as hint if there is none."""
        found = self.get(name)
        if found is None:
            import difflib

            near = difflib.get_close_matches(name, [known.name for known in self.fields], 1)
            raise ParamError(
                "field",
                name,
                f'field "{name}" not found in datasource {self.name}',
                hint=f"did you mean {near[0]}?" if near else f"fields: {', '.join(f.name for f in self.fields)}",
            )
        return found

    def having(self, *added: Field) -> DataSource:
        """The same source with these fields: each replaces the one of its name, or comes last."""
        new = {one.name: one for one in added}
        kept = tuple(new.pop(one.name, one) for one in self.fields)
        return replace(self, fields=kept + tuple(new.values()))

    def without(self, *names: str) -> DataSource:
        """The same source without these fields (a `Derived` that reads them keeps working)."""
        return replace(self, fields=tuple(one for one in self.fields if one.name not in names))


Sources = Mapping[str, DataSource]
TICK = DataSource("", Kind.EVENTS, referenced=False)
"""The source of the empty batch that the event loop yields on each timer tick."""

# ---------------------------------------------------------------------------------------------- predicates


@dataclass(frozen=True, slots=True)
class Compare:
    """field operator value; text compares bytewise. operator: == != < <= > >=; value has the field's type."""

    field: Field
    operator: str
    value: str | int | float | bool


@dataclass(frozen=True, slots=True)
class Matches:
    """The text of field contains a match of the regular expression (in Python's syntax)."""

    field: Field
    pattern: str


@dataclass(frozen=True, slots=True, eq=False)
class Holds:
    """What a function of the values of these fields says of a row. It answers for every value."""

    fields: tuple[Field, ...]
    judge: Callable[[tuple[Value, ...]], bool]


@dataclass(frozen=True, slots=True)
class Not:
    """The opposite."""

    term: Predicate


@dataclass(frozen=True, slots=True)
class And:
    """All of the terms; true where there are none."""

    terms: tuple[Predicate, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """Any of the terms; false where there are none."""

    terms: tuple[Predicate, ...]


Predicate = Compare | Matches | Holds | Not | And | Or

# ---------------------------------------------------------------------------------------------- batches


class Framing(Enum):
    """How records lie in a region."""

    RING = "ring"  # BPF ring buffer: u32 length and flags, u32 page, data, padded to 8 (kernel/bpf/ringbuf.c)
    PERF = "perf"  # perf buffer: struct perf_event_header and its records
    FIXED = "fixed"  # one after the other, each `stride` bytes


class Region(NamedTuple):
    """Memory as the kernel wrote it. It is owned, so nobody writes to it any more; or lent, until the next one is asked
    for.

    records: where they are, if that is known
    """

    memory: bytes | bytearray | memoryview
    framing: Framing
    stride: int = 0
    records: Records | None = None


class Records(NamedTuple):
    """Where each record's data is in the region: byte offsets (array "Q") and lengths (array "I")."""

    offsets: array[int]
    lengths: array[int]


class Columns(Protocol):
    """Evaluates fields and predicates over a batch (the engine has it)."""

    def walk(self, region: Region) -> Records:
        """Find the records; busy, discarded and malformed ones are left out."""
        ...

    def values(self, batch: Batch, field: Field) -> Sequence[Value]:
        """One value per selected row."""
        ...

    def where(self, batch: Batch, predicate: Predicate) -> array[int]:
        """The selected records (indices, array "I") for which it holds."""
        ...

    def numpy(self, batch: Batch, fields: Sequence[Field]) -> np.ndarray:
        """A structured array, one item per selected row."""
        ...

    def arrow(self, batch: Batch, fields: Sequence[Field] | None) -> pa.RecordBatch:
        """A column for each field (None: all that have a value), one item per selected row."""
        ...


@dataclass(slots=True)
class Batch:
    """Records of one source, in the order the kernel gave them.

    records:  None until walked
    sides:    columns by key, one item per record
    selected: record indices in output order; None: all
    lost:     what was left out since the batch before, by reason
    lost_on:  of what the kernel lost, how many on which CPU
    columns:  evaluates fields; None only on TICK
    """

    source: DataSource
    region: Region
    columns: Columns | None = None
    records: Records | None = None
    sides: Mapping[str, Sequence[Value]] = field(default_factory=dict)
    selected: Sequence[int] | None = None
    lost: dict[Reason, int] = field(default_factory=dict)
    lost_on: Mapping[int, int] = field(default_factory=dict)

    def walked(self) -> Records:
        """Its records, walking the region at the first call."""
        if self.records is None:
            self.records = self._columns().walk(self.region)
        return self.records

    def __len__(self) -> int:
        return len(self.walked().offsets) if self.selected is None else len(self.selected)

    def values(self, field: Field | str) -> Sequence[Value]:
        """The column `field` (a Field, or its name), one value per selected row."""
        return self._columns().values(self, self.source.field(field) if isinstance(field, str) else field)

    def select(self, rows: slice | Sequence[int], reason: Reason | None) -> Batch:
        """The rows at these positions, in this order; what is left out is added to `lost` under `reason`.

        reason: None where nothing is left out (a permutation)
        """
        now: Sequence[int] = range(len(self)) if self.selected is None else self.selected
        chosen = now[rows] if isinstance(rows, slice) else [now[row] for row in rows]
        return self.narrowed(chosen, reason)

    def where(self, predicate: Predicate) -> Batch:
        """The rows for which it holds; the others are added to `lost` as filtered."""
        return self.narrowed(self._columns().where(self, predicate), Reason.FILTERED)

    def narrowed(self, selected: Sequence[int], reason: Reason | None) -> Batch:
        """The same batch with another selection (record indices)."""
        lost = dict(self.lost)
        left_out = len(self) - len(selected)
        if left_out and reason is not None:
            lost[reason] = lost.get(reason, 0) + left_out
        return replace(self, selected=selected, lost=lost)

    def shown_as(self, source: DataSource) -> Batch:
        """The same records, described by `source` (its fields after later steps)."""
        return replace(self, source=source)

    def rows(self) -> Iterator[dict[str, Value]]:
        """One dict per row, by full field name."""
        named = [one for one in self.source.fields if one.place is not None]
        columns = [self.values(one) for one in named]
        names = [one.name for one in named]
        for row in zip(*columns, strict=True):
            yield dict(zip(names, row, strict=True))

    def numpy(self, *names: str) -> np.ndarray:
        """A structured array of the named fields (all that have a value where none is named), one item per row."""
        fields = [self.source.field(name) for name in names] or [f for f in self.source.fields if f.place is not None]
        return self._columns().numpy(self, fields)

    def to_arrow(self, *names: str) -> pa.RecordBatch:
        """Arrow columns of the named fields (all where none is named), with types (see `engine.columnar`).

        UnsupportedError: pyarrow is not installed
        """
        return self._columns().arrow(self, [self.source.field(name) for name in names] or None)

    def to_pandas(self, *names: str) -> pd.DataFrame:
        """As `to_arrow`, as a DataFrame of pandas. UnsupportedError: it is not installed."""
        return frame("pandas", self.to_arrow(*names))

    def to_polars(self, *names: str) -> pl.DataFrame:
        """As `to_arrow`, as a DataFrame of polars. UnsupportedError: it is not installed."""
        made: pl.DataFrame = frame("polars", self.to_arrow(*names))
        return made

    def _columns(self) -> Columns:
        if self.columns is None:
            raise TypeError("a tick has no columns")
        return self.columns


def frame(library: str, made: pa.RecordBatch | pa.Table) -> Any:
    """Arrow columns as a DataFrame of pandas or polars. UnsupportedError: it is not installed."""
    from importlib import import_module

    try:
        module = import_module(library)
    except ImportError as error:
        from igrun.errors import UnsupportedError

        problem = f"{library} cannot be imported: {error}"
        raise UnsupportedError(f"to_{library}", problem, hint=f"pip install {library}") from None
    return made.to_pandas() if library == "pandas" else module.from_arrow(made)


Batches = Iterator[Batch]
