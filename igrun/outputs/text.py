"""The texts of all fields as they are, one after the other: every mode that has no output of its own.

A source annotated `cli.supported-output-modes: advise` prints so; its texts hold the line breaks.
"""

from __future__ import annotations

from igrun.engine import Out, Slot, Template, Text
from igrun.outputs import Shown, Writer
from igrun.outputs.screen import clear_before
from igrun.record import Batch

NAME = "text"
MODES = ()


class TextWriter:
    """Writes batches of one source as text."""

    def __init__(self, shown: Shown, out: Out) -> None:
        self._out = out
        self._clear = clear_before(shown)
        names = {field.parent for field in shown.source.fields}
        slots = [Slot(field, Text()) for field in shown.source.fields if field.dtype and field.name not in names]
        self._print = shown.engine.printer(Template(tuple(slots)), shown.keep, shown.facts)

    def write(self, batch: Batch) -> int:
        printed = self._print(batch, None if self._clear else self._out)
        if printed.text:
            self._out(self._clear + printed.text if self._clear else printed.text)
        return printed.rows

    def close(self) -> None:
        """Nothing stands at the end."""


def open(shown: Shown, out: Out) -> Writer:
    return TextWriter(shown, out)
