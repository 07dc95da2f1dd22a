"""Batches as numpy structured arrays. numpy is imported at the first call, never with this module."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from igrun.record import At, Batch, Field, Value

if TYPE_CHECKING:
    import numpy as np


def structured(
    batch: Batch, fields: Sequence[Field], values: Callable[[Batch, Field], Sequence[Value]]
) -> np.ndarray[Any, np.dtype[np.void]]:
    """One item per selected row, one member per field, by full name; text and bytes of any length are objects."""
    import numpy as np

    array = np.zeros(len(batch), [(field.name, _dtype(field)) for field in fields])
    if not len(array):
        return array
    ends = {
        field.name: (field.place.offset, np.dtype(field.dtype).itemsize)
        for field in fields
        if isinstance(field.place, At) and field.place.bits is None
    }
    raw = _windows(batch, max((sum(end) for end in ends.values()), default=0))
    for field in fields:
        if field.name in ends:
            offset, size = ends[field.name]
            if size:
                array[field.name] = _member(raw[:, offset : offset + size], array.dtype[field.name])
        else:
            column = array[field.name]
            text = column.dtype.kind == "S"
            for row, value in enumerate(values(batch, field)):
                column[row] = value.encode("utf-8", "surrogateescape") if text and isinstance(value, str) else value
    return array


def _dtype(field: Field) -> str:
    if field.dtype is None or field.place is None:
        raise ValueError(f"field {field.name!r} has no value")
    return "O" if field.dtype.lstrip("|") in ("T", "O") else field.dtype


def _windows(batch: Batch, size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The first `size` bytes of each selected record, shape (rows, size), with zeros after a short one."""
    import numpy as np

    records = batch.walked()
    offsets = np.frombuffer(records.offsets, np.uint64).astype(np.intp)
    lengths = np.frombuffer(records.lengths, np.uint32).astype(np.intp)
    if batch.selected is not None:
        rows = np.asarray(batch.selected, np.intp)
        offsets, lengths = offsets[rows], lengths[rows]
    if size == 0:
        return np.zeros((len(offsets), 0), np.uint8)
    memory = np.concatenate([np.frombuffer(batch.region.memory, np.uint8), np.zeros(size, np.uint8)])
    windows: np.ndarray[Any, np.dtype[np.uint8]] = np.lib.stride_tricks.sliding_window_view(memory, size)[offsets]
    short = lengths < size
    if short.any():
        windows[short] *= np.arange(size) < lengths[short, None]
    return windows


def _member(raw: np.ndarray[Any, np.dtype[np.uint8]], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    import numpy as np

    raw = np.ascontiguousarray(raw)
    if dtype.kind == "S":  # what stands after the first NUL is garbage
        raw = raw * ~np.logical_or.accumulate(raw == 0, axis=1)
    if dtype.base.kind == "b":
        raw = (raw != 0).astype(np.uint8)
    found: np.ndarray[Any, Any] = raw.view(dtype.base).reshape((len(raw), *dtype.shape))
    return found
