"""Comma-separated values (RFC 4180, lines end in a line feed), for spreadsheets and scripts: `-o csv`.

The fields are those that columns show, whole and unpadded; the first line names them as `--fields` does.
"""

from __future__ import annotations

from igrun.engine import Csv, Out, Slot, Template
from igrun.engine.texts import csv_text
from igrun.outputs import Shown, Writer
from igrun.outputs.fields import picked, stand_in, visible
from igrun.record import Batch

NAME = "csv"
MODES = ("csv",)


class CsvWriter:
    """Writes batches of one source as lines of values. A table's rows follow those of the batch before."""

    def __init__(self, shown: Shown, out: Out) -> None:
        self._out = out
        fields = picked(shown.source, shown.fields, visible(shown.source))
        pieces: list[bytes | Slot] = []
        for field in fields:
            pieces += [b",", Slot(stand_in(shown.source, field), Csv())]
        self._print = shown.engine.printer(Template((*pieces[1:], b"\n")), shown.keep, shown.facts)
        out(",".join(csv_text(field.name) for field in fields).encode() + b"\n")

    def write(self, batch: Batch) -> int:
        printed = self._print(batch, self._out)
        if printed.text:
            self._out(printed.text)
        return printed.rows

    def close(self) -> None:
        """Nothing stands at the end."""


def open(shown: Shown, out: Out) -> Writer:
    return CsvWriter(shown, out)
