"""Text to a descriptor: all of it and nothing twice, whatever is at the other end."""

from __future__ import annotations

import os
import select
import stat
from collections.abc import Callable
from contextlib import suppress
from errno import EINVAL, EOPNOTSUPP
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from igrun.tail import Tail

SOON_S = 0.01
"""Whoever takes longer to read lets us wait."""
RWF_NOWAIT, HERE = 8, -1


def nothing() -> None:
    """Nobody wants to know."""


class Sink:
    """Writes to a descriptor, whether that is in non-blocking mode or not.

    blocked: called in the middle of a write that waits for its reader
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.blocked: Callable[[], None] = nothing
        mode = 0
        with suppress(OSError):  # nothing is open there: writing tells
            mode = os.fstat(fd).st_mode
        self._is_file = stat.S_ISREG(mode)
        self._asks = stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)
        self._tail: Tail | None = None

    def __call__(self, text: bytes | memoryview, /) -> None:
        """OSError: it went wrong, and a file is as long as before. BrokenPipeError: whoever read it has gone."""
        rest = memoryview(text)
        if self._tail:
            self._tail.before(len(rest))
        try:
            while rest:
                try:
                    rest = rest[self._write(rest) :]
                except BlockingIOError:
                    self._wait()
        except BaseException:
            if self._tail:
                self._tail.failed(len(rest))
            raise
        if self._tail:
            self._tail.after()

    def keep_whole(self) -> None:
        """If it is a file, it never ends with a part of a text. Before there are other threads; close it then."""
        if self._is_file and self._tail is None:
            from igrun.tail import Tail

            self._tail = Tail(self.fd)

    def close(self) -> None:
        """The last text is written. The descriptor stays open."""
        tail, self._tail = self._tail, None
        if tail:
            tail.close()

    def _write(self, text: memoryview) -> int:
        """How many bytes were written. BlockingIOError: none, for there is no room."""
        if self._asks:
            try:
                return os.pwritev(self.fd, (text,), HERE, RWF_NOWAIT)
            except OSError as error:
                if error.errno not in (EOPNOTSUPP, EINVAL):  # pipes cannot do it before Linux 6.4
                    raise
                self._asks = False
        return os.write(self.fd, text)

    def _wait(self) -> None:
        """Until there is room, or nobody reads any more."""
        poll = select.poll()
        poll.register(self.fd, select.POLLOUT)
        if not poll.poll(SOON_S * 1000):
            self.blocked()
            poll.poll()
