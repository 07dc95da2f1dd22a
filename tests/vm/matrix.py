"""The table at the end of a session: which test file did what on which kernel."""

from collections import Counter
from collections.abc import Mapping, Sequence

WORST = ("skipped", "passed", "failed")  # of a test's phases, the last of these is its outcome


def outcome(phases: Sequence[str]) -> str:
    """One word for the outcomes of set-up, call and tear-down."""
    if "failed" in phases:
        return "failed"
    return "skipped" if "skipped" in phases else "passed"


def table(
    counts: Mapping[tuple[str, str], Counter[str]], heads: Mapping[str, str], notes: Mapping[str, str]
) -> list[str]:
    """Lines of text. `counts`: (file, column) -> how many of each outcome; `heads`: column -> its second head line;
    `notes`: column -> what stands below it."""
    files = sorted({file for file, _ in counts})
    rows = [["", *heads], ["passed/failed/skipped", *heads.values()]]
    rows += [[file, *(_cell(counts.get((file, column))) for column in heads)] for file in files]
    sums = [sum((c for (_, where), c in counts.items() if where == column), Counter[str]()) for column in heads]
    rows += [["total", *map(_cell, sums)], ["seconds", *(notes.get(column, "") for column in heads)]]
    widths = [max(len(row[place]) for row in rows) for place in range(len(heads) + 1)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    rule = "-" * max(map(len, lines))
    return [*lines[:2], rule, *lines[2:-2], rule, *lines[-2:]]


def _cell(count: Counter[str] | None) -> str:
    return "/".join(str(count[word]) for word in ("passed", "failed", "skipped")) if count else "-"
