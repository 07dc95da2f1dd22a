"""The terminal: clearing it, and dividing its width among columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from igrun.outputs import Shown

CLEAR = b"\x1b[H\x1b[2J"


class Span(NamedTuple):
    """How wide a column may be. least, most: 0 where there is no limit; fixed: never scaled."""

    width: int
    least: int = 0
    most: int = 0
    fixed: bool = False


def clear_before(shown: Shown) -> bytes:
    """What clears the screen before each batch, if the source wants that and `out` is a terminal."""
    wanted = shown.source.annotations.get("cli.clear-screen-before") == "true"
    return CLEAR if wanted and shown.terminal else b""


def scaled(spans: Sequence[Span], screen: int) -> list[int]:
    """The widths of columns on a terminal of `screen` cells, with one cell between two columns.

    Columns share what the fixed ones leave in the proportion of their widths; one that would pass a limit of its own
    gets that, and the others share anew. It is wider than the screen where the least widths do not fit.
    """
    dividers = max(len(spans) - 1, 0)
    screen = max(screen, dividers + sum(span.width if span.fixed else span.least or 1 for span in spans))
    widths = [span.width for span in spans]
    flexible = [at for at, span in enumerate(spans) if not span.fixed]
    while flexible:
        taken = dividers + sum(width for at, width in enumerate(widths) if at not in flexible)
        total = sum(spans[at].width for at in flexible)
        for at in flexible:
            widths[at] = int(spans[at].width / total * (screen - taken)) if total else 0
        limited = {at: _limit(spans[at], widths[at]) for at in flexible if _limit(spans[at], widths[at]) != widths[at]}
        if not limited:
            break
        for at, width in limited.items():
            widths[at] = width
        flexible = [at for at in flexible if at not in limited]
    left = screen - dividers - sum(widths)
    for turn in range(left if flexible else 0):
        widths[flexible[turn % len(flexible)]] += 1
    return widths


def _limit(span: Span, width: int) -> int:
    if span.most and width > span.most:
        return span.most
    return max(width, span.least or 1)
