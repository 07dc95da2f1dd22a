"""One line per record, in columns; on a terminal they share its width."""

from __future__ import annotations

from igrun.dataclass import dataclass
from igrun.engine import Cell, Out, Printer, Slot, Template
from igrun.engine.shapes import Shape, shape
from igrun.engine.texts import fitted
from igrun.errors import MetadataError
from igrun.outputs import Shown, Writer
from igrun.outputs.fields import picked, stand_in, visible
from igrun.outputs.screen import Span, clear_before, scaled
from igrun.record import Batch, DataSource, Field, Kind

NAME = "columns"
MODES = ("columns",)

WIDTH = 16
ELLIPSES = ("", "start", "middle", "end")
ALIGNMENTS = ("left", "right")
# Cells that every value of a type fits in
TYPE_WIDTHS = {"u1": 3, "i1": 4, "u2": 5, "i2": 6, "u4": 10, "i4": 11, "u8": 20, "i8": 20, "b1": 5}


@dataclass(frozen=True, slots=True)
class Column:
    """How a field looks as a column. shown: the field whose value it prints (`columns.replace`)."""

    field: Field
    shown: Field
    header: str
    span: Span
    right: bool = False
    ellipsis: str = "end"
    precision: int = 0
    hex: bool = False

    def cell(self, width: int) -> Slot:
        return Slot(self.shown, Cell(width, self.right, self.ellipsis, self.precision, self.hex))


class ColumnsWriter:
    """Writes batches of one source in columns."""

    def __init__(self, shown: Shown, out: Out) -> None:
        self._shown, self._out = shown, out
        self._columns = chosen(shown.source, shown.fields)
        self._clear = clear_before(shown)
        self._screen = 0
        self._widths = [column.span.width for column in self._columns]
        self._print: Printer = self._printer()
        self._rescale()
        self._titled = shown.source.kind is Kind.EVENTS  # the header stands above what comes
        if self._titled:
            out(self._header())

    def write(self, batch: Batch) -> int:
        self._rescale()
        printed = self._print(batch, self._out if self._titled else None)
        if self._shown.source.kind is Kind.TABLE:
            self._out(self._clear + self._header() + printed.text)
        elif printed.text:
            self._out(printed.text if self._titled else self._header() + printed.text)
            self._titled = True
        return printed.rows

    def close(self) -> None:
        """Nothing stands at the end."""

    def _rescale(self) -> None:
        """Fit the columns to the terminal; lines of another width want a header of their own."""
        screen = self._shown.width() if self._shown.terminal else 0
        if screen <= 0 or screen == self._screen:
            return
        self._screen = screen
        self._widths = scaled([column.span for column in self._columns], screen)
        self._print = self._printer()
        self._titled = False

    def _printer(self) -> Printer:
        pieces: list[bytes | Slot] = []
        for column, width in zip(self._columns, self._widths, strict=True):
            pieces += [b" ", column.cell(width)]
        template = Template((*pieces[1:], b"\n"))
        return self._shown.engine.printer(template, self._shown.keep, self._shown.facts)

    def _header(self) -> bytes:
        cells = (
            fitted(column.header, width, "end", column.right)
            for column, width in zip(self._columns, self._widths, strict=True)
        )
        return " ".join(cells).encode() + b"\n"


def open(shown: Shown, out: Out) -> Writer:
    return ColumnsWriter(shown, out)


def chosen(source: DataSource, fields: str | None = None) -> tuple[Column, ...]:
    """The columns to print, in order.

    fields: `f1,f2` instead of the visible ones, `+f` and `-f` beside them; names or aliases in any case

    ParamError: there is no such field, or it has no value to show.
    """
    return tuple(column(source, field) for field in picked(source, fields, visible(source)))


def column(source: DataSource, field: Field) -> Column:
    """How the field's annotations want it shown. MetadataError: one of them has a wrong value."""
    read = _Annotations(source, field)
    kind = None if field.dtype is None else shape(field.dtype)
    most = read.width("columns.maxwidth", kind) or _type_width(kind)
    return Column(
        field,
        shown=stand_in(source, field),
        header=(field.annotations.get("columns.alias") or field.name).upper(),
        span=Span(
            read.width("columns.width", kind) or WIDTH,
            read.width("columns.minwidth", kind),
            most,
            read.flag("columns.fixed"),
        ),
        right=read.one_of("columns.alignment", ALIGNMENTS, "left") == "right",
        ellipsis=read.one_of("columns.ellipsis", ELLIPSES, ""),
        precision=read.number("columns.precision"),
        hex=read.flag("columns.hex"),
    )


@dataclass(frozen=True, slots=True)
class _Annotations:
    source: DataSource
    field: Field

    def one_of(self, key: str, values: tuple[str, ...], default: str) -> str:
        value = self.field.annotations.get(key, default)
        if value not in values:
            raise self._error(key, value, "one of " + ", ".join(value or '""' for value in values))
        return value

    def flag(self, key: str) -> bool:
        return self.one_of(key, ("true", "false", ""), "false") == "true"

    def number(self, key: str) -> int:
        value = self.field.annotations.get(key, "0")
        if not (value.isascii() and value.isdigit()) or int(value) > 9999:
            raise self._error(key, value, "a number from 0 to 9999")
        return int(value)

    def width(self, key: str, kind: Shape | None) -> int:
        """Cells; 0 where nothing is said."""
        value = self.field.annotations.get(key, "0")
        if value == "type":
            width = _type_width(kind)
            if not width:
                raise self._error(key, value, "a number: only integers and bool have a type's width")
            return width
        return self.number(key)

    def _error(self, key: str, value: str, wanted: str) -> MetadataError:
        path = f"datasources.{self.source.name}.fields.{self.field.name}.annotations.{key}"
        return MetadataError(path, f'invalid value "{value}"', hint=f"use {wanted}")


def _type_width(kind: Shape | None) -> int:
    return 0 if kind is None or kind.items is not None else TYPE_WIDTHS.get(f"{kind.kind}{kind.size}", 0)
