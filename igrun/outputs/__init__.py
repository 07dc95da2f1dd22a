"""Where batches end.

An output is a module of this folder: `NAME`, `MODES` and `open(shown, out) -> Writer`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from igrun.dataclass import dataclass
from igrun.engine import Engine
from igrun.record import Batch, DataSource, Facts, Predicate


@dataclass(frozen=True, slots=True)
class Shown:
    """One source as an output has to show it.

    mode:     the output mode asked for (an output may have several)
    keep:     rows to show; None: all
    fields:   the text of --fields for this source; None where not given
    terminal: True if `out` is a terminal
    width:    its cells per line
    """

    source: DataSource
    mode: str
    keep: Predicate | None
    facts: Facts
    engine: Engine
    fields: str | None = None
    terminal: bool = False
    width: Callable[[], int] = lambda: 80


class Out(Protocol):
    """Where text goes: all of it is written, or OSError raised."""

    def __call__(self, text: bytes, /) -> None: ...


class Writer(Protocol):
    """Writes batches of one source."""

    def write(self, batch: Batch) -> int:
        """The rows it delivered; the others of the batch did not pass the predicate."""
        ...

    def close(self) -> None:
        """Write what must stand at the end."""
        ...
