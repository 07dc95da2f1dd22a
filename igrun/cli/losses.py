"""What `ig run` says about records that were lost: at most once a second while it runs, and in all at the end."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from igrun.books import UNKNOWN, by_cpu, by_reason
from igrun.cli.terminal import say
from igrun.record import Lost, Reason

if TYPE_CHECKING:
    from igrun.runtime import Run

PERIOD_S = 1.0
WHY = {
    Reason.KERNEL: "the buffer in the kernel was full",
    Reason.BACKLOG: "more waited for the reader of the output than --backlog-size allows",
    Reason.INVALID: "they were damaged",
}


class Losses:
    """Says what was lost since it was said last. run: set it before the first call."""

    run: Run

    def __init__(self) -> None:
        self._told: dict[str, Counter[Reason | int]] = {}
        self._before = 0.0

    def tell(self) -> None:
        """To be called now and then."""
        now = time.monotonic()
        if now - self._before < PERIOD_S:
            return
        for source, so_far in self.run.lost_so_far().items():
            new = Counter(so_far) - self._told.get(source, Counter())
            self._told[source] = Counter(so_far)
            for line in lines(source, by_reason(new), by_cpu(new), "more "):
                self._before = now
                say(line)


def lines(source: str, lost: Lost, cpus: Mapping[int, int], more: str = "") -> list[str]:
    """One for each reason. cpus: what the kernel lost on each."""
    where = ", ".join(f"CPU {cpu}: {count}" for cpu, count in sorted(cpus.items()))
    said = []
    for reason, why in WHY.items():
        if lost.get(reason):
            on = f" ({where})" if reason is Reason.KERNEL and where else ""
            said.append(f"Warning: {source}: {lost[reason]} {more}records lost: {why}{on}")
    return said


def tell_uncountable(run: Run) -> None:
    """Warn of sources whose losses nobody counts."""
    for source in run.sources:
        if not run.countable(source):
            say(f"Warning: {source}: what the kernel loses is {UNKNOWN}, so --fail-on-loss does not see it")


def tell_books(run: Run, verbose: bool) -> None:
    """A line for each source that lost records; verbose: a line for each source, with what was left out on purpose."""
    for source, lost in run.lost.items():
        for line in lines(source, run.books.losses(source), run.books.lost_on[source]):
            say(line)
        if verbose:
            others = [f"{count} {reason.value}" for reason, count in lost.items() if count]
            if not run.countable(source):
                others.append(f"lost in the kernel: {UNKNOWN}")
            say(f"{source}: {run.delivered[source]} records shown; not shown: {', '.join(others) or 'none'}")
    if run.missed:
        say(f"Warning: {run.missed} runs of its programs were left out by the kernel; some may have been records")
