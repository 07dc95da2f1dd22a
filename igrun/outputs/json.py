"""One JSON object per record: compact on a line (json), or indented (jsonpretty). A table is one array per batch."""

from __future__ import annotations

from collections.abc import Iterator

from igrun.engine import Json, Out, Slot, Template
from igrun.engine.texts import json_text
from igrun.outputs import Shown, Writer
from igrun.outputs.tree import Tree, tree
from igrun.record import Batch, DataSource, Field, Kind

NAME = "json"
MODES = ("json", "jsonpretty")


class JsonWriter:
    """Writes batches of one source as JSON."""

    def __init__(self, shown: Shown, out: Out) -> None:
        self._out = out
        table, pretty = shown.source.kind is Kind.TABLE, shown.mode == "jsonpretty"
        between = (b",\n" if pretty else b",") if table else b""
        end = b"" if table else b"\n"
        # Around the rows of a batch, and in place of them where there are none
        self._around = (
            (b"[\n" if pretty else b"[", b"\n]\n" if pretty else b"]\n", b"[]\n") if table else (b"", b"", b"")
        )
        self._print = shown.engine.printer(
            template(shown.source, indent=(2 if table else 0) if pretty else None, end=end, between=between),
            shown.keep,
            shown.facts,
        )

    def write(self, batch: Batch) -> int:
        printed = self._print(batch, None if self._around[0] else self._out)
        before, after, empty = self._around
        text = printed.text
        if before:
            text = before + text + after if printed.rows else empty
        if text:
            self._out(text)
        return printed.rows

    def close(self) -> None:
        """Nothing stands at the end."""


def open(shown: Shown, out: Out) -> Writer:
    return JsonWriter(shown, out)


def template(source: DataSource, *, indent: int | None = None, end: bytes = b"\n", between: bytes = b"") -> Template:
    """A record as a JSON object with every field, nested by the dots in the names, keys sorted bytewise.

    indent: cells before the object where it is spread over lines; None: compact
    """
    margin = b"" if indent is None else b" " * indent
    pieces = [margin, *_object(tree(source, str.encode), indent), end]
    return Template(_joined(pieces), between)


def _object(at: Tree, indent: int | None) -> Iterator[bytes | Slot]:
    if not at:
        yield b"{}"
        return
    line = b"" if indent is None else b"\n" + b" " * indent
    inner = None if indent is None else indent + 2
    first = True
    for name, value in at.items():
        yield b"{" if first else b","
        yield line and line + b"  "
        yield json_text(name).encode() + (b":" if indent is None else b": ")
        if isinstance(value, Field):
            yield Slot(value, Json(inner))
        else:
            yield from _object(value, inner)
        first = False
    yield line + b"}"


def _joined(pieces: list[bytes | Slot]) -> tuple[bytes | Slot, ...]:
    """The same with literals side by side made one."""
    joined: list[bytes | Slot] = []
    for piece in pieces:
        if isinstance(piece, bytes) and joined and isinstance(joined[-1], bytes):
            joined[-1] += piece
        elif piece:
            joined.append(piece)
    return tuple(joined)
