"""Text to a descriptor: all of it, nothing twice, and a file that ends with a whole text."""

import errno
import fcntl
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
import time
import tty
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igrun import sink as module
from igrun.sink import Sink
from igrun.tail import PAGE, Tail

Ends = tuple[int, int]


def pipe() -> Ends:
    return os.pipe()


def non_blocking_pipe() -> Ends:
    out, into = os.pipe()
    os.set_blocking(into, False)
    return out, into


def sockets() -> Ends:
    out, into = socket.socketpair()
    return out.detach(), into.detach()


def terminal() -> Ends:
    out, into = pty.openpty()
    tty.setraw(into)
    return out, into


KINDS: list[Callable[[], Ends]] = [pipe, non_blocking_pipe, sockets, terminal]


class Reader(threading.Thread):
    """Reads to the end, `size` bytes at a time, with a pause before each of the first `slow` ones."""

    def __init__(self, fd: int, size: int = 1 << 16, pause_s: float = 0, slow: int = 1 << 30) -> None:
        super().__init__()
        self.fd, self.size, self.pause_s, self.slow = fd, size, pause_s, slow
        self.parts: list[bytes] = []
        self.start()

    def run(self) -> None:
        while True:
            if len(self.parts) < self.slow:
                time.sleep(self.pause_s)
            try:
                part = os.read(self.fd, self.size)
            except OSError:  # a terminal that is closed
                return
            if not part:
                return
            self.parts.append(part)

    def text(self) -> bytes:
        self.join(30)
        os.close(self.fd)
        return b"".join(self.parts)


def numbered(length: int) -> bytes:
    """Text of which every part is different."""
    return b"".join(b"%07d\n" % number for number in range(length // 8 + 1))[:length]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 200_000), max_size=4),
    size=st.sampled_from([100, 4096, 1 << 16]),
    slow=st.integers(0, 5),
)
def test_all_text_arrives_once_and_in_order(kind, lengths, size, slow):
    out, into = kind()
    reader = Reader(out, size, 0.002, slow)
    sink = Sink(into)
    texts = [bytes([turn]) + numbered(length) for turn, length in enumerate(lengths)]

    for text in texts:
        sink(memoryview(text))
    os.close(into)

    assert reader.text() == b"".join(texts)


@pytest.mark.parametrize("kind", [pipe, non_blocking_pipe, sockets])
def test_a_reader_that_lets_it_wait_is_told_of_during_the_write(kind):
    out, into = kind()
    sink = Sink(into)
    read = threading.Event()
    sink.blocked = read.set
    text = numbered(1 << 20)
    late = threading.Thread(target=lambda: read.wait(10) and readers.append(Reader(out)))
    readers: list[Reader] = []
    late.start()

    sink(text)
    os.close(into)

    late.join()
    assert readers[0].text() == text


@pytest.mark.parametrize("kind", KINDS)
def test_a_quick_reader_is_not(kind):
    out, into = kind()
    reader = Reader(out)
    sink = Sink(into)
    calls: list[int] = []
    sink.blocked = lambda: calls.append(1)

    sink(numbered(300))
    os.close(into)

    assert reader.text() == numbered(300)
    assert not calls


@pytest.mark.parametrize("error", [errno.EOPNOTSUPP, errno.EINVAL])
def test_before_linux_6_4_a_pipe_is_written_to_as_ever(monkeypatch, error):
    def refuse(*_: object) -> int:
        raise OSError(error, "")

    monkeypatch.setattr(module.os, "pwritev", refuse)
    out, into = pipe()
    reader = Reader(out)

    Sink(into)(numbered(300_000))
    os.close(into)

    assert reader.text() == numbered(300_000)


@pytest.mark.parametrize("kind", KINDS)
def test_a_write_that_takes_only_a_part_goes_on_behind_it(monkeypatch, kind):
    writev, write = os.pwritev, os.write
    monkeypatch.setattr(module.os, "pwritev", lambda fd, parts, *more: writev(fd, [parts[0][:7]], *more))
    monkeypatch.setattr(module.os, "write", lambda fd, text: write(fd, text[:7]))
    out, into = kind()
    reader = Reader(out)

    Sink(into)(numbered(5000))
    os.close(into)

    assert reader.text() == numbered(5000)


@pytest.mark.parametrize("kind", KINDS)
def test_signals_in_the_middle_of_a_write_lose_and_double_nothing(kind):
    signals: list[int] = []
    old = signal.signal(signal.SIGALRM, lambda *_: signals.append(1))
    out, into = kind()
    reader = Reader(out, 4096, 0.001, 100)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        Sink(into)(numbered(1_000_000))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    os.close(into)

    assert reader.text() == numbered(1_000_000)
    assert signals


@pytest.mark.parametrize("kind", [pipe, non_blocking_pipe, sockets])
def test_who_writes_hears_that_the_reader_has_gone(kind):
    out, into = kind()
    os.close(out)
    with pytest.raises(BrokenPipeError):
        Sink(into)(b"text")
    os.close(into)


def test_who_waits_hears_that_the_reader_goes():
    out, into = pipe()
    sink = Sink(into)
    sink.blocked = lambda: os.close(out)

    with pytest.raises(BrokenPipeError):
        sink(bytes(1 << 20))
    os.close(into)


def test_what_is_closed_tells_when_it_is_written_to():
    out, into = pipe()
    os.close(into)
    sink = Sink(into)

    with pytest.raises(OSError, match="Bad file descriptor"):
        sink(b"text")
    os.close(out)


# ------------------------------------------------------------------------------------------------ files


@pytest.fixture(params=[0, os.O_APPEND], ids=["written", "appended"])
def file(request, tmp_path):
    """A descriptor of a file that ends with `before`."""
    (tmp_path / "file").write_bytes(b"before")
    fd = os.open(tmp_path / "file", os.O_WRONLY | request.param)
    os.lseek(fd, 0, os.SEEK_END)
    yield fd
    os.close(fd)


def content(fd: int) -> bytes:
    with open(f"/proc/self/fd/{fd}", "rb") as file:
        return file.read()


def test_a_file_has_all_text_in_order(file):
    sink = Sink(file)
    sink.keep_whole()
    for turn in range(20):
        sink(bytes([turn]) * 100_000)
    sink.close()

    assert content(file) == b"before" + b"".join(bytes([turn]) * 100_000 for turn in range(20))


def test_what_does_not_fit_on_the_disk_is_not_in_the_file_at_all(file, monkeypatch):
    sink = Sink(file)
    sink.keep_whole()
    sink(b"whole")
    write = os.write

    def full(fd: int, text: memoryview) -> int:
        if len(text) < 10_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, text[:-5000])

    monkeypatch.setattr(module.os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        sink(bytes(12_000))
    monkeypatch.undo()

    assert content(file) == b"beforewhole"
    sink(b"later")
    sink.close()
    assert content(file) == b"beforewholelater"


def test_what_a_write_left_that_was_cut_short_is_cut_off(file):
    tail = Tail(file)
    tail.before(3 * PAGE)
    os.write(file, bytes(2 * PAGE - 6))
    tail.close()

    assert content(file) == b"before"


def test_what_a_write_left_that_came_to_its_end_stays(file):
    tail = Tail(file)
    tail.before(2 * PAGE - 6)
    os.write(file, bytes(2 * PAGE - 6))
    tail.close()

    assert len(content(file)) == 2 * PAGE


def test_what_somebody_else_wrote_behind_is_left_alone(file):
    tail = Tail(file)
    tail.before(3 * PAGE)
    os.write(file, bytes(PAGE - 6) + b"other")
    tail.close()

    assert len(content(file)) == PAGE + 5


def test_what_was_in_the_file_behind_stays(tmp_path):
    (tmp_path / "file").write_bytes(bytes(8 * PAGE))
    fd = os.open(tmp_path / "file", os.O_WRONLY)
    tail = Tail(fd)
    tail.before(3 * PAGE)
    os.write(fd, bytes(PAGE))
    tail.close()
    os.close(fd)

    assert (tmp_path / "file").stat().st_size == 8 * PAGE


WRITER = """
from igrun.sink import Sink
sink = Sink(1)
sink.keep_whole()
text = (b"x" * 949 + b"\\n") * 1000
while True:
    sink(text)
"""


@pytest.mark.parametrize("mode", ["wb", "ab"])
@pytest.mark.parametrize("delay_ms", range(1, 16, 3))
def test_kill_9_at_any_moment_leaves_whole_records(tmp_path, delay_ms, mode):
    path = tmp_path / "file"
    with path.open(mode) as file, subprocess.Popen([sys.executable, "-c", WRITER], stdout=file) as writer:
        while not path.stat().st_size:
            time.sleep(0.001)
        time.sleep(delay_ms / 1000)
        writer.kill()
    end = time.monotonic() + 10
    while path.stat().st_size % 950 and time.monotonic() < end:
        time.sleep(0.001)

    assert path.stat().st_size % 950 == 0


def within(seconds: float, true: Callable[[], bool]) -> bool:
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


@pytest.fixture
def watched(tmp_path):
    """A process that has a file to keep whole, and the /proc folder of the one that watches it."""
    code = "import signal; from igrun.sink import Sink; sink = Sink(1); sink.keep_whole(); signal.pause()"
    with (tmp_path / "file").open("wb") as file:
        writer = subprocess.Popen([sys.executable, "-c", code], stdout=file)
    children = Path(f"/proc/{writer.pid}/task/{writer.pid}/children")
    assert within(10, lambda: bool(children.read_text()))
    watching = Path("/proc", children.read_text().strip())
    # it is ready when it has closed all but two descriptors
    assert within(10, lambda: len(list((watching / "fd").iterdir())) == 2)
    yield writer, watching
    writer.kill()
    writer.wait()


def test_the_process_that_watches_ends_with_the_one_that_writes(watched):
    writer, watching = watched
    writer.kill()
    writer.wait()

    assert within(10, lambda: not (watching / "fd/1").exists())


def test_ctrl_c_does_not_end_the_process_that_watches(watched):
    _, watching = watched
    ignored = int((watching / "status").read_text().partition("SigIgn:\t")[2].split()[0], 16)

    assert all(ignored >> (number - 1) & 1 for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))


def test_the_pipe_between_the_two_is_not_inherited(file):
    tail = Tail(file)

    assert fcntl.fcntl(tail._ours, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    tail.close()
