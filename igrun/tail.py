"""A file that ends with a whole record, though the process that writes it may be killed at any moment.

A write of more than a page is not atomic: the kernel copies page by page (or folio by folio), and looks before each one
if the process is to be killed. Then a record that crosses that border stays behind as a half. No system call puts off
SIGKILL, and none makes a file longer by many pages at once, so nobody but another process can do something about it:
one that sleeps until this one ends, and then cuts off what a write left that did not come to its end.

It costs nothing while all goes well. Where both are killed at once (a whole cgroup, `kill -9` of a process group) the
half record stays.
"""

from __future__ import annotations

import fcntl
import os
import signal
from mmap import mmap

from igrun.logs import Logger

PAGE = os.sysconf("SC_PAGE_SIZE")
HIGH = 1000
END, AIM = 0, 1
"""Words that both processes see: where whole records end, and where they will once the write under way is done."""


class Tail:
    """Keeps the end of a file whole. Tell it of every write."""

    def __init__(self, fd: int) -> None:
        """fd: of a regular file. Open it before there are other threads."""
        self._fd = fd
        self._append = bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND)
        self._words = memoryview(mmap(-1, 16)).cast("Q")
        self._guard = 0
        theirs, self._ours = os.pipe()
        try:
            # A killed process's descriptors are closed from the highest one downwards: the other process can work while
            # programs are taken out of the kernel, before anybody is told that this one has ended.
            high = fcntl.fcntl(self._ours, fcntl.F_DUPFD_CLOEXEC, HIGH)
            os.close(self._ours)
            self._ours = high
        except OSError:
            pass  # there may not be so many
        try:
            self._guard = os.fork()
        except OSError as error:
            Logger("igrun").warning("if killed, it may leave half a record in the file: %s", error.strerror)
        else:
            if not self._guard:
                try:
                    guard(fd, theirs, self._words)
                finally:
                    os._exit(0)
        os.close(theirs)

    def before(self, length: int) -> None:
        """So many bytes are written next."""
        at = os.fstat(self._fd).st_size if self._append else os.lseek(self._fd, 0, os.SEEK_CUR)
        self._words[END] = at
        self._words[AIM] = at + length

    def after(self) -> None:
        """They are."""
        self._words[END] = self._words[AIM]

    def failed(self, left: int) -> None:
        """`left` of them are not, and will not be: cut off the others."""
        end, aim = self._words
        if os.fstat(self._fd).st_size == aim - left:  # else somebody else wrote behind us
            os.ftruncate(self._fd, end)
            if not self._append:
                os.lseek(self._fd, end, os.SEEK_SET)

    def close(self) -> None:
        """The last write is done."""
        os.close(self._ours)
        if self._guard:
            os.waitpid(self._guard, 0)


def guard(fd: int, theirs: int, words: memoryview[int]) -> None:
    """Wait until nobody has the other end of `theirs`, then cut off what a write left that was cut short.

    Such a write ends between two pages, and with it the file. Where it does not, somebody else has written behind it.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    low, high = sorted((fd, theirs))
    os.closerange(0, low)
    os.closerange(low + 1, high)
    os.closerange(high + 1, os.sysconf("SC_OPEN_MAX"))
    os.read(theirs, 1)
    size = os.fstat(fd).st_size
    if words[END] < size < words[AIM] and size % PAGE == 0:
        os.ftruncate(fd, words[END])
