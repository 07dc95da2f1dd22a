"""Prints nothing; the rows count as delivered."""

from __future__ import annotations

from igrun.engine import Out
from igrun.outputs import Shown, Writer
from igrun.record import Batch, Predicate

NAME = "none"
MODES = ("none",)


class Silent:
    """Takes batches of one source and counts their rows."""

    def __init__(self, keep: Predicate | None) -> None:
        self._keep = keep

    def write(self, batch: Batch) -> int:
        return len(batch) if self._keep is None else len(batch.where(self._keep))

    def close(self) -> None:
        """Nothing stands at the end."""


def open(shown: Shown, out: Out) -> Writer:
    return Silent(shown.keep)
