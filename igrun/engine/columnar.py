"""Batches as Arrow tables: the second way out, by columns and with types, beside the engine's text.

numpy cuts the columns out of the region as the kernel wrote it; nothing is done per row. What a text output shows as
text for people keeps its type here: times are timestamps in UTC, durations are durations, sizes are numbers. Names out
of tables come as dictionaries. numpy and pyarrow (`pip install igrun[arrow]`) are imported at the first use.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from igrun.engine.shapes import Shape, shape
from igrun.errors import UnsupportedError
from igrun.record import (
    At,
    Batch,
    Constant,
    DataSource,
    Derived,
    Duration,
    Facts,
    Field,
    Flags,
    Framing,
    Lookup,
    Size,
    Time,
    WallClock,
)

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

ZONE = "UTC"
MOST_WORDS = 1 << 16
_KEPT_AS_NUMBERS = (Time, Duration, Size)


def arrow() -> Any:
    """The module pyarrow. UnsupportedError: it is not installed."""
    try:
        import pyarrow
    except ImportError as error:
        raise UnsupportedError("Arrow and Parquet", f"pyarrow cannot be imported: {error}", hint=HINT) from None
    return pyarrow


HINT = "pip install 'igrun[arrow]'"


def columns(source: DataSource) -> tuple[Field, ...]:
    """The fields with a value, in the order of columns, without structs whose members are fields too."""
    by_order = sorted(source.fields, key=lambda field: field.order)
    parents = {field.parent for field in by_order}
    return tuple(field for field in by_order if field.place is not None and field.dtype and field.name not in parents)


def schema(fields: Sequence[Field]) -> pa.Schema:
    """The schema of `record_batch`: a column for each field, by full name, with its annotations as metadata."""
    pa = arrow()
    return pa.schema([pa.field(one.name, type_of(one), metadata=_metadata(one)) for one in fields])


def type_of(field: Field) -> pa.DataType:
    """The Arrow type of a field's column."""
    pa = arrow()
    place = field.place
    if isinstance(place, Derived):
        match place.rule:
            case Time() | WallClock():
                return pa.timestamp("ns", ZONE)
            case Duration():
                return pa.duration("ns")
            case Size():
                return type_of(place.sources[0])
            case Lookup() if _is_text(field):
                return pa.dictionary(pa.int32(), pa.string())
            case Constant() | Flags() if _is_text(field):
                return pa.dictionary(pa.int32(), pa.string())
    return _plain_type(shape(str(field.dtype)))


def _plain_type(form: Shape) -> pa.DataType:
    pa = arrow()
    if form.kind in "ST":
        one = pa.string()
    elif form.kind == "V":
        one = pa.binary(form.size)
    elif form.kind == "O":
        one = pa.binary()
    elif form.kind == "b":
        one = pa.bool_()
    else:
        one = pa.from_numpy_dtype(f"{form.kind}{form.size}")
    return one if form.items is None else pa.list_(one, form.items)


def _is_text(field: Field) -> bool:
    return field.dtype is not None and shape(field.dtype).kind in "ST" and shape(field.dtype).items is None


def _metadata(field: Field) -> dict[str, str] | None:
    return {**field.annotations} or None


def record_batch(
    batch: Batch, fields: Sequence[Field], facts: Facts, known: pa.Schema | None = None, words: Words | None = None
) -> pa.RecordBatch:
    """The selected rows as Arrow columns.

    facts: the tables and the clock; known: `schema(fields)`; words: what batches before asked of the tables
    """
    known = known or schema(fields)
    reading = Reading(batch, facts, words or Words(facts))
    columns = [reading.column(field, type_) for field, type_ in zip(fields, known.types, strict=True)]
    return arrow().RecordBatch.from_arrays(columns, schema=known)


class Distinct(NamedTuple):
    """The distinct values of a column of numbers, ascending.

    first: a row with each; codes: which of them each row has (int32)
    """

    numbers: list[int]
    first: list[int]
    codes: pa.Array


Ask = Callable[[list[int]], Sequence[Any]]


class Words:
    """What rules made of numbers in batches before, by field: most batches have the same distinct ones."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._forgotten = dict(facts.forgotten)
        self._known: dict[int, Known] = {}

    def of(self, field: Field, type_: pa.DataType, found: Distinct, ask: Ask) -> pa.Array:
        """What the rule makes of each of the distinct values. ask: for rows, what it makes of them"""
        if self._forgotten != self._facts.forgotten:
            self._known.clear()
            self._forgotten = dict(self._facts.forgotten)
        known = self._known.get(id(field))
        if known is None or len(known.words) > MOST_WORDS:
            known = self._known[id(field)] = Known(field)
        if known.numbers != found.numbers:
            new = [at for at, number in enumerate(found.numbers) if number not in known.words]
            if new:
                words = ask([found.first[at] for at in new])
                known.words.update(zip((found.numbers[at] for at in new), words, strict=True))
            known.numbers = found.numbers
            known.array = arrow().array([known.words[number] for number in found.numbers], type_)
        return known.array


class Known:
    """What is known for a field. array: for the distinct numbers of the last batch"""

    def __init__(self, field: Field) -> None:
        self.field = field  # it keeps its id
        self.words: dict[int, Any] = {}
        self.numbers: list[int] = []
        self.array: Any = None


class Reading:
    """The columns of one batch."""

    def __init__(self, batch: Batch, facts: Facts, words: Words) -> None:
        import numpy as np

        self._batch, self._facts, self._words = batch, facts, words
        records = batch.walked()
        offsets = np.frombuffer(records.offsets, np.uint64).astype(np.int64)
        lengths = np.frombuffer(records.lengths, np.uint32).astype(np.int64)
        if batch.selected is not None:
            picked = np.asarray(batch.selected, np.int64)
            offsets, lengths = offsets[picked], lengths[picked]
        self._offsets, self._lengths = offsets, lengths
        self._structs: np.ndarray[Any, Any] | None = None
        self._raw: dict[int, tuple[Field, np.ndarray[Any, Any]]] = {}
        self._distinct: dict[int, Distinct | None] = {}

    def __len__(self) -> int:
        return len(self._offsets)

    def column(self, field: Field, type_: pa.DataType) -> pa.Array:
        """One column."""
        place = field.place
        if isinstance(place, At) and place.bits is None:
            return self._cut(field, type_)
        if isinstance(place, Derived):
            match place.rule:
                case Time() | Duration():
                    return self._numbers(place.sources[0]).cast(arrow().int64(), safe=False).cast(type_)
                case Size():
                    return self.column(place.sources[0], type_)
                case WallClock():
                    return self._wall(place.sources[0]).cast(type_)
                case Constant(value):
                    return arrow().repeat(value, len(self)).cast(type_)
                case Lookup() | Flags() if len(place.sources) == 1 and shape(str(field.dtype)).items is None:
                    found = self._by_distinct(field, place.sources[0], type_)
                    if found is not None:
                        return found
        return self._one_by_one(field, type_)

    # ------------------------------------------------------------------------------------------ out of the structs

    def _cut(self, field: Field, type_: pa.DataType) -> pa.Array:
        pa, form = arrow(), shape(str(field.dtype))
        if form.kind == "S" and form.items is None and isinstance(field.place, At):
            start = field.place.offset
            return _texts(self._windows(start + form.size)[:, start : start + form.size])  # it copies what is text
        raw = self._member(field)
        if form.kind == "S":
            return pa.FixedSizeListArray.from_arrays(_texts(raw.reshape(-1, form.size)), form.items)
        if form.kind == "V":
            flat = pa.FixedSizeBinaryArray.from_buffers(
                pa.binary(form.size), len(raw) * (form.items or 1), [None, pa.py_buffer(raw)]
            )
            return flat if form.items is None else pa.FixedSizeListArray.from_arrays(flat, form.items)
        flat = pa.array(raw.reshape(-1) != 0 if form.kind == "b" else raw.reshape(-1))
        return flat if form.items is None else pa.FixedSizeListArray.from_arrays(flat, form.items)

    def _member(self, field: Field) -> np.ndarray[Any, Any]:
        """The raw values: numbers, in native order; of text and bytes a row of bytes each. Contiguous."""
        import numpy as np

        known = self._raw.get(id(field))
        if known is not None:
            return known[1]
        if not isinstance(field.place, At):
            raise TypeError(f"field {field.name!r} is in no struct")
        form, start = shape(str(field.dtype)), field.place.offset
        window = self._windows(start + form.bytes)[:, start : start + form.bytes]
        if form.kind in "iufb" and form.bytes:
            kind = "u1" if form.kind == "b" else f"{'>' if form.big_endian else '<'}{form.kind}{form.size}"
            window = window.view(kind)
        # a copy: the region may be written to when the batch is gone
        raw = np.array(window, window.dtype.newbyteorder("="), order="C")
        if form.kind in "iufb" and form.items is None:
            raw = raw.reshape(-1)
        self._raw[id(field)] = field, raw
        return raw

    def _windows(self, size: int) -> np.ndarray[Any, Any]:
        """The structs, shape (rows, bytes); what a short record lacks is zero."""
        size = max(size, self._batch.source.size)
        if self._structs is None or self._structs.shape[1] < size:
            self._structs = structs(self._batch.region.memory, self._offsets, self._lengths, size, _step(self._batch))
        return self._structs

    # ------------------------------------------------------------------------------------------ by rules

    def _numbers(self, field: Field) -> pa.Array:
        return self.column(field, type_of(field))

    def _wall(self, source: Field) -> pa.Array:
        import time

        import numpy as np

        boot = np.asarray(self._numbers(source)).astype(np.int64)
        return arrow().array(np.where(boot == 0, time.time_ns(), boot + self._facts.wall_minus_boot_ns))

    def _by_distinct(self, field: Field, source: Field, type_: pa.DataType) -> pa.Array | None:
        """The rule is asked once for each distinct value of a number. Texts are a dictionary."""
        pa, key = arrow(), id(source)
        if key not in self._distinct:
            self._distinct[key] = self._find_distinct(source)
        found = self._distinct[key]
        if found is None:
            return None
        text = pa.types.is_dictionary(type_)

        def ask(rows: list[int]) -> Sequence[Any]:
            now: Sequence[int] = range(len(self)) if self._batch.selected is None else self._batch.selected
            values: Sequence[Any] = self._batch.narrowed([now[row] for row in rows], None).values(field)
            return [_clean(value) for value in values] if text else values

        words = self._words.of(field, type_.value_type if text else type_, found, ask)
        return pa.DictionaryArray.from_arrays(found.codes, words) if text else words.take(found.codes)

    def _find_distinct(self, source: Field) -> Distinct | None:
        import numpy as np

        form = shape(str(source.dtype))
        if not (isinstance(source.place, At) and source.place.bits is None and form.integer):
            return None
        raw = self._member(source)
        if not len(raw):
            return None
        encoded = arrow().array(raw).dictionary_encode()
        values, codes = np.asarray(encoded.dictionary), np.asarray(encoded.indices)
        if len(values) > max(64, len(raw) // 2):
            return None
        first = np.empty(len(values), np.int64)
        first[codes[::-1]] = np.arange(len(raw) - 1, -1, -1)  # of several the last one written stays: the first row
        order = np.argsort(values)
        rank = np.empty(len(values), np.int32)
        rank[order] = np.arange(len(values), dtype=np.int32)
        return Distinct(values[order].tolist(), first[order].tolist(), arrow().array(rank[codes]))

    def _one_by_one(self, field: Field, type_: pa.DataType) -> pa.Array:
        pa = arrow()
        values: Sequence[Any] = self._batch.values(field)
        if shape(str(field.dtype)).kind in "ST":
            values = [_clean(value) if isinstance(value, str) else [*map(_clean, value)] for value in values]
        if pa.types.is_dictionary(type_):
            found = pa.array(values, type_.value_type).dictionary_encode()
            return found.cast(type_)
        return pa.array(values, type_)


def _clean(text: Any) -> str:
    """Text that UTF-8 can say: bytes that are none of it become U+FFFD."""
    return str(text).encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _step(batch: Batch) -> int:
    """Every record begins at a multiple of this behind the first one."""
    match batch.region.framing:
        case Framing.RING:
            return 8  # kernel/bpf/ringbuf.c rounds up
        case Framing.PERF:
            return 4  # records by 8, each sample behind a u32
        case Framing.FIXED:
            return max(batch.region.stride, 1)


def structs(
    memory: bytes | bytearray | memoryview,
    offsets: np.ndarray[Any, Any],
    lengths: np.ndarray[Any, Any],
    size: int,
    step: int,
) -> np.ndarray[Any, Any]:
    """`size` bytes of each record, shape (rows, size).

    A view where they lie at equal distances; else a copy, with zeros behind those that are shorter.
    """
    import numpy as np

    whole = np.frombuffer(memory, np.uint8)
    if not len(offsets) or not size:
        return np.zeros((len(offsets), size), np.uint8)
    if int(lengths.min()) >= size:
        distances = np.diff(offsets)
        if not len(distances) or (distances[0] > 0 and (distances == distances[0]).all()):
            distance = int(distances[0]) if len(distances) else size
            return np.lib.stride_tricks.as_strided(
                whole[int(offsets[0]) :], (len(offsets), size), (distance, 1), writeable=False
            )
    first = int(offsets[0]) % step
    room = -(-(len(whole) - first) // step) * step + first + size
    padded = np.zeros(room, np.uint8)
    padded[: len(whole)] = whole
    windows = np.ndarray(((room - first - size) // step + 1,), f"V{size}", padded, first, (step,))
    found: np.ndarray[Any, Any] = windows[(offsets - first) // step].view(np.uint8).reshape(len(offsets), size)
    short = np.flatnonzero(lengths < size)
    if len(short):
        found[short] *= np.arange(size) < lengths[short, None]
    return found


def _texts(raw: np.ndarray[Any, Any]) -> pa.Array:
    """Rows of bytes as text up to the first NUL: what stands behind it is what was there before."""
    import numpy as np

    pa = arrow()
    count, size = raw.shape
    if not size or not count:
        return pa.array([""] * count, pa.string())
    ends = raw == 0
    lengths = ends.argmax(axis=1)
    lengths[(lengths == 0) & ~ends[:, 0]] = size
    longest = int(lengths.max())
    inside = np.arange(longest) < lengths[:, None]
    found = raw[:, :longest][inside]
    data, lengths = _decoded(found, lengths) if len(found) and found.max() >= 128 else (found, lengths)
    offsets = np.zeros(count + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return pa.Array.from_buffers(pa.string(), count, [None, pa.py_buffer(offsets), pa.py_buffer(data)])


def _decoded(data: np.ndarray[Any, Any], lengths: np.ndarray[Any, Any]) -> tuple[bytes, np.ndarray[Any, Any]]:
    """Texts side by side and their lengths, with U+FFFD for what is not UTF-8."""
    import numpy as np

    starts, lengths, whole = np.cumsum(lengths) - lengths, lengths.copy(), data.tobytes()
    parts, done = [], 0
    odd = np.unique(np.searchsorted(starts, np.flatnonzero(data >= 128), "right") - 1)
    for row in odd.tolist():
        start, end = int(starts[row]), int(starts[row] + lengths[row])
        text = whole[start:end].decode("utf-8", "replace").encode()
        parts += [whole[done:start], text]
        done, lengths[row] = end, len(text)
    return b"".join([*parts, whole[done:]]), lengths


Maker = Callable[[Batch], "pa.RecordBatch"]


def maker(fields: Sequence[Field], facts: Facts) -> Maker:
    """A function that makes Arrow batches of these columns."""
    import numpy as np

    arrow().array(np.zeros(0))  # at its first array pyarrow imports pandas, if that is there: not when events come
    known, words = schema(fields), Words(facts)
    return lambda batch: record_batch(batch, fields, facts, known, words)
