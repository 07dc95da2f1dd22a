"""Where a run prints: held back until it runs, and given up when nobody reads."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import TYPE_CHECKING

from igrun.dataclass import dataclass

if TYPE_CHECKING:
    from igrun.engine import Out
    from igrun.record import Batches
    from igrun.sink import Sink


@dataclass(frozen=True)
class Display:
    """Where text goes.

    out:      writes it; BrokenPipeError ends the run
    fd:       where it goes; the run ends when nobody reads that pipe any more, also while nothing happens
    terminal: it is one, with `width()` cells per line
    sink:     what `out` writes through; it tells when a reader lets the run wait
    tick:     called now and then while the run prints, about once a second
    """

    out: Out
    fd: int | None = None
    terminal: bool = False
    width: Callable[[], int] = lambda: 80
    sink: Sink | None = None
    tick: Callable[[], None] = lambda: None

    def is_pipe(self) -> bool:
        return self.fd is not None and stat.S_ISFIFO(os.fstat(self.fd).st_mode)


class Held:
    """Writes nothing before it is released: a run that cannot start prints nothing."""

    def __init__(self, out: Out) -> None:
        self._out = out
        self._held: list[bytes] | None = []

    def __call__(self, text: bytes | memoryview, /) -> None:
        if self._held is None:
            self._out(text)
        else:
            self._held.append(bytes(text))

    def release(self) -> None:
        held, self._held = self._held, None
        for text in held or ():
            self._out(text)


def dropped(text: bytes | memoryview, /) -> None:
    """Goes nowhere."""


class Hangup:
    """A reader (see program.Reader) of the writing end of a pipe: all it can ever have is that nobody reads."""

    def __init__(self, fd: int, then: Callable[[], None]) -> None:
        self._fd, self._then = fd, then

    def fileno(self) -> int:
        return self._fd

    def read(self) -> Batches:
        self._then()
        yield from ()
