"""Where batches end.

An output is a module of this folder: `NAME`, `MODES` and `open(shown, out) -> Writer`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from igrun.dataclass import dataclass, field
from igrun.engine import Engine
from igrun.metadata import DURATION, UINT, Param
from igrun.record import Batch, DataSource, Facts, Predicate

PARQUET_SIZE = Param(
    "parquet-size", UINT, "256", "MiB after which the next Parquet file begins, 0: never", group="runtime"
)
PARQUET_TIME = Param(
    "parquet-time", DURATION, "1h", "Time after which the next Parquet file begins, 0: never", group="runtime"
)


@dataclass(frozen=True, slots=True)
class Shown:
    """One source as an output has to show it.

    mode:     the output mode asked for (an output may have several)
    keep:     rows to show; None: all
    fields:   the text of --fields for this source; None where not given
    terminal: True if `out` is a terminal
    width:    its cells per line
    file:     where it goes instead of `out`, "" if nowhere else
    values:   of params, by key
    """

    source: DataSource
    mode: str
    keep: Predicate | None
    facts: Facts
    engine: Engine
    fields: str | None = None
    terminal: bool = False
    width: Callable[[], int] = lambda: 80
    file: str = ""
    values: Mapping[str, str] = field(default_factory=dict)


class Writer(Protocol):
    """Writes batches of one source."""

    def write(self, batch: Batch) -> int:
        """The rows it delivered; the others of the batch did not pass the predicate."""
        ...

    def close(self) -> None:
        """Write what must stand at the end."""
        ...
