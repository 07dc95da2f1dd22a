"""How far a transfer is: one line on the terminal, drawn again and again; nothing where there is no terminal."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from igrun.oci.model import Descriptor

PERIOD_S = 0.1
BAR_CELLS = 24
UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


class Line:
    """The progress of one copy. Blobs may be told about from several threads.

    write: prints text on the terminal
    clock: seconds
    """

    def __init__(
        self, write: Callable[[str], None], width: Callable[[], int], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._write, self._width, self._clock = write, width, clock
        self._lock = threading.Lock()
        self._sizes: dict[str, int] = {}
        self._moved: dict[str, int] = {}
        self._sent = 0  # bytes that went over the wire, again after a break among them
        self._start: float | None = None  # of the first blob: what was asked before is no transfer
        self._drawn = clock()
        self._shown = False

    def expect(self, descriptor: Descriptor) -> None:
        """A blob or manifest is about to be copied."""
        with self._lock:
            self._start = self._clock() if self._start is None else self._start
            self._sizes[descriptor.digest] = descriptor.size
            self._moved.setdefault(descriptor.digest, 0)

    def advance(self, descriptor: Descriptor, count: int) -> None:
        """So many more bytes of it have been copied; fewer than 0 where it begins anew."""
        with self._lock:
            self._sent += max(count, 0)
            moved = self._moved.get(descriptor.digest, 0) + count
            self._moved[descriptor.digest] = max(0, min(moved, self._sizes.get(descriptor.digest, moved)))
            now = self._clock()
            if now - self._drawn >= PERIOD_S:
                self._drawn, self._shown = now, True
                self._write(f"\r{self._text(now)}\x1b[K")

    def done(self, descriptor: Descriptor) -> None:
        """It is there. What was not copied was there before."""
        with self._lock:
            self._sizes[descriptor.digest] = self._moved.get(descriptor.digest, 0)

    def clear(self) -> None:
        """Leave nothing on the terminal."""
        with self._lock:
            if self._shown:
                self._write("\r\x1b[K")

    def _text(self, now: float) -> str:
        total, moved = sum(self._sizes.values()), sum(self._moved.values())
        share = moved / total if total else 0.0
        rate = self._sent / max(now - (now if self._start is None else self._start), 1e-3)
        numbers = f"{share:4.0%} {size(moved)} of {size(total)}, {size(rate)}/s"
        full = round(share * BAR_CELLS)
        return f"[{'#' * full}{'.' * (BAR_CELLS - full)}] {numbers}"[: max(self._width() - 1, 0)]


def size(count: float) -> str:
    """A number of bytes for people."""
    unit = 0
    while count >= 1024 and unit < len(UNITS) - 1:
        count, unit = count / 1024, unit + 1
    return f"{count:.0f} B" if unit == 0 else f"{count:.1f} {UNITS[unit]}"


@contextmanager
def shown() -> Iterator[Line | None]:
    """The line for one copy, gone at the end; None where standard error is no terminal."""
    if not os.isatty(2):
        yield None
        return
    line = Line(write, width)
    try:
        yield line
    finally:
        line.clear()


def width() -> int:
    """Cells per line of the terminal."""
    try:
        return os.get_terminal_size(2).columns or 80
    except OSError:
        return 80


def write(text: str) -> None:
    """Print on the terminal, as far as there is still one."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except (OSError, ValueError):
        pass
