"""Arrow IPC streams, which pyarrow, polars, duckdb read: `-o arrow` on standard output, `-o arrow=FILE` in a file."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from igrun.engine import Out
from igrun.engine.columnar import arrow, columns, maker, schema
from igrun.errors import GadgetError, ParamError
from igrun.outputs import Shown, Writer
from igrun.outputs.fields import picked
from igrun.record import Batch

if TYPE_CHECKING:
    from typing import Any

NAME = "arrow"
MODES = ("arrow",)
BUFFER = 1 << 20


class Stream:
    """A file for pyarrow, over the text output."""

    closed = False

    def __init__(self, out: Out) -> None:
        self._out = out
        self._parts: list[bytes] = []

    def write(self, data: Any) -> int:
        self._parts.append(bytes(data))
        return len(self._parts[-1])

    def flush(self) -> None:
        """Write what is there, at once: an Arrow batch comes in many parts."""
        parts, self._parts = self._parts, []
        if parts:
            self._out(b"".join(parts))

    def close(self) -> None:
        """It is closed by whoever opened it."""
        self.flush()


class ArrowWriter:
    """Writes batches of one source as record batches of a stream."""

    def __init__(self, shown: Shown, sink: Any, flush: Callable[[], object]) -> None:
        """flush: write what the sink holds."""
        fields = picked(shown.source, shown.fields, columns(shown.source))
        self._keep, self._make = shown.keep, maker(fields, shown.facts)
        self._file, self._flush = sink, flush
        self._writer = arrow().ipc.new_stream(sink, schema(fields), options=options())

    def write(self, batch: Batch) -> int:
        if self._keep is not None:
            batch = batch.where(self._keep)
        made = self._make(batch)
        if made.num_rows:
            self._writer.write_batch(made)
            self._flush()
        return int(made.num_rows)

    def close(self) -> None:
        """The end of the stream, which readers may do without."""
        self._writer.close()
        self._file.close()


def options() -> Any:
    """Dictionaries may change from batch to batch, as streams allow."""
    return arrow().ipc.IpcWriteOptions(unify_dictionaries=False, emit_dictionary_deltas=False)


def open(shown: Shown, out: Out) -> Writer:
    """ParamError: it would be bytes on a terminal. GadgetError: the file cannot be written."""
    if shown.file:
        try:
            file = arrow().BufferedOutputStream(arrow().OSFile(shown.file, "wb"), BUFFER)
        except OSError as error:
            raise GadgetError(f"cannot write {shown.file}: {error.strerror or error}") from None
        return ArrowWriter(shown, file, file.flush)
    if shown.terminal:
        raise ParamError(
            "output", "arrow", "an Arrow stream is nothing for a terminal", hint="-o arrow=FILE, or redirect it"
        )
    stream = Stream(out)
    return ArrowWriter(shown, arrow().PythonFile(stream, "w"), stream.flush)
