"""The record engine: it walks regions of raw records, filters them and prints them.

An output says once how a record of a source looks (a `Template`); the engine prints whole batches by it. `reference` is
the engine in plain Python; a faster one has the same interface and is held equal to it by a differential test.
"""

from __future__ import annotations

import os
from typing import NamedTuple, Protocol

from igrun.dataclass import dataclass
from igrun.logs import Logger
from igrun.record import Batch, Columns, Facts, Field, Predicate, Region

LOG = Logger(__name__)


@dataclass(frozen=True, slots=True)
class Json:
    """As a JSON value: text quoted, numbers as they are, bytes as lower-case hex, arrays as arrays.

    indent: None: compact arrays; else one item per line, `indent` cells before the bracket that closes them
    """

    indent: int | None = None


@dataclass(frozen=True, slots=True)
class Yaml:
    """As a YAML value, text quoted only where it must be.

    indent: cells before the key it belongs to
    column: cells before the value itself (long text breaks where its line is full)

    An array stands on lines of its own: its text begins with a line break, or is " []".
    """

    indent: int = 0
    column: int = 0


@dataclass(frozen=True, slots=True)
class Text:
    """As plain text, not quoted or padded."""


@dataclass(frozen=True, slots=True)
class Cell:
    """As text of exactly `width` terminal cells.

    width:     cells; longer text is cut and marked with `…` as `ellipsis` says ("" | start | middle | end)
    right:     padded on the left
    precision: decimals of floats
    hex:       integers as 0x and upper-case digits
    """

    width: int
    right: bool = False
    ellipsis: str = "end"
    precision: int = 0
    hex: bool = False


@dataclass(frozen=True, slots=True)
class Csv:
    """As a CSV value: plain text, in quotes where a comma, quote or line break is in it; bytes as lower-case hex.

    Bytes of a text that are not UTF-8 become U+FFFD.
    """


Form = Json | Yaml | Text | Cell | Csv


class Slot(NamedTuple):
    """A field's value in a template."""

    field: Field
    form: Form


@dataclass(frozen=True, slots=True)
class Template:
    """How one record prints: literal bytes and values in turn; `between`: what stands between two records."""

    pieces: tuple[bytes | Slot, ...]
    between: bytes = b""


class Printed(NamedTuple):
    """text: the records that passed, valid until the engine prints again
    rows: how many; filtered: how many did not pass
    """

    text: bytes | memoryview
    rows: int
    filtered: int


class Out(Protocol):
    """Where text goes: all of it is written, or OSError raised. A memoryview is valid as long as the call takes."""

    def __call__(self, text: bytes | memoryview, /) -> None: ...


class Printer(Protocol):
    """Prints the selected rows of a batch for which its predicate holds."""

    def __call__(self, batch: Batch, out: Out | None = None) -> Printed:
        """Their text, or the last part of it. out: takes what comes before that, whole rows each time.

        A text that is written while the CPU's cache still has it costs less.
        """
        ...


class Window(Protocol):
    """A ring's data, mapped into the memory of an engine. address: in this process

    It is for one thread.
    """

    address: int

    def region(self, start: int, size: int) -> Region | None:
        """The complete records among these bytes, from the first one on, in the ring's own memory; None: there is none.

        It does not look behind a record that its program still writes.
        """
        ...

    def close(self, start: int = 0, size: int = 0) -> None:
        """Unmap it. Regions among these bytes stay as they are."""
        ...


class Engine(Protocol):
    """What makes columns and text out of records."""

    def columns(self, facts: Facts) -> Columns:
        """The evaluator that batches carry."""
        ...

    def printer(self, template: Template, keep: Predicate | None, facts: Facts) -> Printer:
        """A printer by this template of the rows for which `keep` holds (None: all)."""
        ...

    def room(self, size: int) -> memoryview | None:
        """Memory for a region, which is then not copied again; None: it has none to give."""
        ...

    def window(self, fd: int, offset: int, size: int) -> Window | None:
        """A mapping of a ring's data that it reads where it is; None: it reads only what is its own."""
        ...


def open() -> Engine:
    """The fast engine; the reference with a warning where that cannot be, or if $IGRUN_ENGINE is `reference`."""
    from igrun.engine.reference import ENGINE

    if os.environ.get("IGRUN_ENGINE") == "reference":
        return ENGINE
    from igrun.engine.machine import NoEngineError

    try:
        from igrun.engine.fast import Fast

        return Fast()
    except NoEngineError as problem:
        LOG.warning("events are printed by the slow engine: %s", problem)
        return ENGINE
