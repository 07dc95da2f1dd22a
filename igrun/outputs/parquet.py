"""Parquet files: `-o parquet=FILE`, compressed with zstd.

A file gets its name when it is complete, so that whatever bears the name can be read; until then it is `.FILE.part`.
When it has grown to `--parquet-size`, or is `--parquet-time` old, it is completed and FILE-0001, FILE-0002, ... follow.
"""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import TYPE_CHECKING

from igrun.engine import Out
from igrun.engine.columnar import arrow, columns, maker, schema
from igrun.errors import GadgetError, ParamError
from igrun.outputs import PARQUET_SIZE, PARQUET_TIME, Shown, Writer
from igrun.outputs.fields import picked
from igrun.record import Batch

if TYPE_CHECKING:
    from typing import Any

    import pyarrow as pa

NAME = "parquet"
MODES = ("parquet",)
ROWS = 1 << 16  # of a row group


class ParquetWriter:
    """Writes batches of one source as row groups of a file, then of the next one."""

    def __init__(self, shown: Shown, path: Path, most_bytes: int, most_s: float) -> None:
        fields = picked(shown.source, shown.fields, columns(shown.source))
        self._keep, self._make, self._schema = shown.keep, maker(fields, shown.facts), schema(fields)
        self._path, self._most_bytes, self._most_s = path, most_bytes, most_s
        self._settings = settings(self._schema)
        self._held: list[Any] = []
        self._rows = self._files = 0
        self._begun = 0.0
        self._writer: Any = None
        self._open()

    def write(self, batch: Batch) -> int:
        if self._keep is not None:
            batch = batch.where(self._keep)
        made = self._make(batch)
        if made.num_rows:
            self._held.append(made)
            self._rows += made.num_rows
        if self._rows >= ROWS:
            self._flush()
        if self._is_full():
            self._complete()
            self._open()
        return int(made.num_rows)

    def close(self) -> None:
        """Complete the file, if anything is in it or it is the only one."""
        if self._writer is None:
            return
        self._complete()

    def _open(self) -> None:
        import pyarrow.parquet as pq

        try:
            self._sink = self._part.open("wb")
        except OSError as error:
            raise GadgetError(f"cannot write {self._part}: {error.strerror}") from None
        self._writer = pq.ParquetWriter(self._sink, self._schema, **self._settings)
        self._begun = time.monotonic()

    def _flush(self) -> None:
        if self._held:
            table = arrow().Table.from_batches(self._held, self._schema).unify_dictionaries()
            self._writer.write_table(table, row_group_size=ROWS)
        self._held, self._rows = [], 0

    def _is_full(self) -> bool:
        grown = self._most_bytes and self._sink.tell() >= self._most_bytes
        return bool(grown or (self._most_s and time.monotonic() - self._begun >= self._most_s))

    def _complete(self) -> None:
        """Write what is held and the file's end, and give it its name."""
        writer, self._writer = self._writer, None
        part = self._part
        try:
            if self._held:
                self._writer = writer
                self._flush()
                self._writer = None
            writer.close()
            self._sink.close()
            part.replace(self._name)
        except OSError as error:
            raise GadgetError(f"cannot write {self._name}: {error.strerror or error}") from None
        self._files += 1

    @property
    def _name(self) -> Path:
        if not self._files:
            return self._path
        return self._path.with_name(f"{self._path.stem}-{self._files:04}{self._path.suffix}")

    @property
    def _part(self) -> Path:
        return self._name.with_name(f".{self._name.name}.part")


def settings(schema: pa.Schema) -> dict[str, Any]:
    """How columns are written: what costs a quarter less, and a file with times is half as large."""
    import pyarrow.parquet as pq

    with io.BytesIO() as file:
        pq.write_table(schema.empty_table(), file)
        columns = list(map(pq.ParquetFile(file).schema.column, range(len(schema))))
    times = {one.path for one in columns if one.logical_type.type == "TIMESTAMP"}
    return {
        "compression": "zstd",
        "compression_level": 1,
        # A time is near the one before, and seldom the same.
        "column_encoding": dict.fromkeys(times, "DELTA_BINARY_PACKED"),
        "use_dictionary": [one.path for one in columns if one.path not in times],
        # The first and the last of all texts tell a reader nothing.
        "write_statistics": [one.path for one in columns if one.physical_type != "BYTE_ARRAY"],
    }


def open(shown: Shown, out: Out) -> Writer:
    """ParamError: no file is named, or a value is wrong. GadgetError: it cannot be written."""
    if not shown.file:
        raise ParamError("output", "parquet", "Parquet needs a file of its own", hint="-o parquet=FILE")
    arrow()
    size = PARQUET_SIZE.parse(shown.values.get(PARQUET_SIZE.key, PARQUET_SIZE.default)) << 20
    seconds = PARQUET_TIME.parse(shown.values.get(PARQUET_TIME.key, PARQUET_TIME.default)) / 1e9
    return ParquetWriter(shown, Path(shown.file), size, seconds)
