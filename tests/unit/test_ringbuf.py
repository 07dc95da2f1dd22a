"""The readers of buffers on memory laid out as the kernel does it: a page for each position , then data twice."""

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igrun import engine, ringbuf
from igrun.engine.framing import walk
from igrun.record import Framing
from igrun.ringbuf import BUSY, DISCARDED, LENGTH, PAGE, Memory, PerfCpu, Ring, See, sees_nothing, whole

SIZE = 4 * PAGE


class Kernel:
    """Writes records as the kernel does."""

    def __init__(self, start: int = 0, see: See = sees_nothing) -> None:
        self.fd = os.memfd_create("ring")
        os.ftruncate(self.fd, 2 * PAGE + 2 * SIZE)
        self.position = start
        self._set(0, start)
        self._set(PAGE, start)
        self.ring = Ring(SimpleNamespace(fd=self.fd, max_entries=SIZE), see)

    def _set(self, offset: int, position: int) -> None:
        os.pwrite(self.fd, position.to_bytes(8, "little"), offset)

    def put(self, data: bytes, flags: int = 0) -> int:
        """Where the record begins."""
        record = (len(data) | flags).to_bytes(4, "little") + bytes(4) + data + bytes(-len(data) % 8)
        at = self.position
        for index, byte in enumerate(record):
            self._write(at + index, bytes([byte]))
        self.position += len(record)
        self._set(PAGE, self.position)
        return at

    def commit(self, at: int, length: int) -> None:
        self._write(at, length.to_bytes(4, "little"))

    def _write(self, at: int, data: bytes) -> None:
        for again in (0, SIZE):
            os.pwrite(self.fd, data, 2 * PAGE + at % SIZE + again)

    def consumed(self) -> int:
        return int.from_bytes(os.pread(self.fd, 8, 0), "little")

    def close(self) -> None:
        self.ring.close()
        os.close(self.fd)


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    made = Kernel()
    yield made
    made.close()


def test_an_empty_ring_has_no_region(kernel):
    assert kernel.ring.region() is None


def test_a_region_ends_before_the_first_record_that_is_still_written(kernel):
    kernel.put(b"one")
    busy = kernel.put(b"two", BUSY)
    kernel.put(b"three")

    region = kernel.ring.region()

    assert region.framing is Framing.RING
    assert len(region.memory) == 16
    kernel.ring.commit(len(region.memory))
    assert kernel.ring.region() is None
    kernel.commit(busy, 3)
    assert b"two" in kernel.ring.region().memory
    assert b"three" in kernel.ring.region().memory


def test_a_discarded_record_is_part_of_the_region(kernel):
    kernel.put(b"gone", DISCARDED)
    kernel.put(b"here")

    assert len(kernel.ring.region().memory) == 32


def test_a_region_does_not_change_after_commit(kernel):
    kernel.put(b"first" * 10)
    region = kernel.ring.region()
    kernel.ring.commit(len(region.memory))
    for _ in range(200):
        kernel.put(b"later" * 10)

    assert b"first" in region.memory
    assert b"later" not in region.memory


def test_room_is_given_back_by_commit_only(kernel):
    kernel.put(b"x" * 100)
    region = kernel.ring.region()

    assert kernel.consumed() == 0
    kernel.ring.commit(len(region.memory))
    assert kernel.consumed() == len(region.memory) == 112


@given(
    start=st.integers(0, 3 * SIZE // 8).map(lambda word: word * 8),
    lengths=st.lists(st.lists(st.integers(0, 700), max_size=6), max_size=12),
)
def test_what_is_written_comes_out_in_one_piece_across_the_end_of_the_ring(start, lengths):
    kernel = Kernel(start)
    try:
        for number, some in enumerate(lengths):
            written = [bytes([number]) * length for length in some]
            for data in written:
                kernel.put(data)
            region = kernel.ring.region()
            memory = region.memory if region else b""
            kernel.ring.commit(len(memory))
            assert split(memory) == written
            assert kernel.ring.waiting() == 0
    finally:
        kernel.close()


def split(memory: bytes) -> list[bytes]:
    found = []
    while memory:
        length = int.from_bytes(memory[:4], "little")
        found.append(memory[8 : 8 + length])
        memory = memory[8 + (length + 7) // 8 * 8 :]
    return found


# ------------------------------------------------------------------------------------------------ shown where it is


@pytest.fixture
def seen() -> Iterator[Kernel]:
    """A ring that the engine sees."""
    made = Kernel(see=engine.open().window)
    yield made
    made.close()


@given(
    start=st.integers(0, 3 * SIZE // 8).map(lambda word: word * 8),
    lengths=st.lists(st.lists(st.integers(0, 700), max_size=6), max_size=12),
)
def test_what_is_written_is_shown_in_one_piece_across_the_end_of_the_ring(start, lengths):
    kernel = Kernel(start, engine.open().window)
    try:
        for number, some in enumerate(lengths):
            written = [bytes([number]) * length for length in some]
            for data in written:
                kernel.put(data)
            region = kernel.ring.shown()
            memory = bytes(region.memory) if region else b""
            assert split(memory) == written
            if region:
                assert region.records == walk(region)
            kernel.ring.commit(len(memory))
            assert kernel.ring.waiting() == 0
    finally:
        kernel.close()


def test_what_is_shown_ends_before_the_first_record_that_is_still_written(seen):
    seen.put(b"one")
    seen.put(b"gone", DISCARDED)
    busy = seen.put(b"two", BUSY)

    region = seen.ring.shown()
    assert len(region.memory) == 32
    assert len(region.records.offsets) == 1
    seen.ring.commit(len(region.memory))
    assert seen.ring.shown() is None
    seen.commit(busy, 3)
    assert b"two" in bytes(seen.ring.shown().memory)


def test_a_record_that_is_larger_than_what_is_mapped_twice_is_copied(monkeypatch):
    monkeypatch.setattr(ringbuf, "LIMIT", PAGE)
    kernel = Kernel(SIZE - 2 * PAGE, engine.open().window)
    kernel.put(b"x" * 3 * PAGE)

    region = kernel.ring.shown()

    assert split(bytes(region.memory)) == [b"x" * 3 * PAGE]
    kernel.close()


def test_what_is_kept_stays_as_it_is_and_the_rest_is_copied(seen):
    seen.put(b"first" * 10)
    region = seen.ring.shown()
    seen.ring.keep(len(region.memory))
    seen.ring.commit(len(region.memory))
    for _ in range(500):
        seen.put(b"later" * 10)
        copied = seen.ring.shown()
        seen.ring.commit(len(copied.memory))

    assert split(bytes(region.memory)) == [b"first" * 10]
    assert split(bytes(copied.memory)) == [b"later" * 10]


@pytest.mark.parametrize("kept", [False, True])
def test_a_closed_ring_is_mapped_nowhere(kept):
    there = engine.open()
    kernel = Kernel(see=there.window)
    assert "memfd:ring" in Path("/proc/self/maps").read_text()
    kernel.put(b"one")
    if kept:
        kernel.ring.keep(len(kernel.ring.shown().memory))
    kernel.close()

    assert "memfd:ring" not in Path("/proc/self/maps").read_text()
    # what was mapped there is memory like any other again
    again = there.room(SIZE + (1 << 16))
    again[:] = b"x" * len(again)


# ------------------------------------------------------------------------------------------------ copied


def test_a_region_is_copied_into_the_room_that_there_is(kernel):
    kernel.put(b"one")
    kernel.put(b"three")
    place = bytearray(100)

    region = kernel.ring.region(lambda size: memoryview(place)[:size])

    assert region.memory.obj is place
    assert split(bytes(region.memory)) == [b"one", b"three"]


def test_without_room_a_region_has_memory_of_its_own(kernel):
    kernel.put(b"one")

    assert split(kernel.ring.region(lambda size: None).memory) == [b"one"]


def test_a_region_across_the_end_of_the_ring_is_copied_into_the_room_in_one_piece():
    kernel = Kernel(SIZE - 16)
    kernel.put(b"across the end of the ring")
    place = bytearray(100)

    region = kernel.ring.region(lambda size: memoryview(place)[:size])

    assert split(bytes(region.memory)) == [b"across the end of the ring"]
    kernel.close()


# ------------------------------------------------------------------------------------------------ headers


def plain(words: memoryview, start: int, wanted: int) -> int:
    """As `whole`, one header after the other."""
    place = start
    while place < start + wanted:
        head = words[place % len(words)]
        if head & BUSY:
            break
        place += ((head & LENGTH) + 15) // 8 * 2
    return place - start


SIZES = st.one_of(
    st.lists(st.integers(0, 40), max_size=40),
    st.builds(lambda size, number: [size] * number, st.integers(0, 40), st.integers(0, 300)),
)


@given(
    parts=st.lists(SIZES, max_size=6),
    flags=st.lists(st.tuples(st.integers(0, 2000), st.sampled_from([BUSY, DISCARDED])), max_size=3),
    start=st.integers(0, 2047).map(lambda word: 2 * word),
    wanted=st.integers(0, 4096),
    filler=st.integers(0, 255),
)
def test_runs_of_records_of_one_size_are_found_as_single_ones_are(parts, flags, start, wanted, filler):
    words = memoryview(bytearray([filler]) * 16384).cast("I")
    flagged = dict(flags)
    place = 0
    for number, size in enumerate(size for part in parts for size in part):
        if place + (size + 15) // 8 * 2 > len(words):
            break
        words[(start + place) % len(words)] = size | flagged.get(number, 0)
        place += (size + 15) // 8 * 2
    wanted = min(wanted, place)

    assert whole(words, start, wanted) == plain(words, start, wanted)


# ------------------------------------------------------------------------------------------------ memory order


class Word:
    """A position that notes when it is read and written."""

    def __init__(self, name: str, word, steps: list[str]) -> None:
        self.name, self.word, self.steps = name, word, steps

    @property
    def value(self) -> int:
        self.steps.append(f"read {self.name}")
        return self.word.value

    @value.setter
    def value(self, value: int) -> None:
        self.steps.append(f"write {self.name}")
        self.word.value = value


class Noting(Memory):
    """Memory that notes when its headers are read and when it is copied."""

    steps: list[str]

    def __init__(self, address: int, size: int) -> None:
        super().__init__(address, size)
        self._words = self.words
        del self.words

    def __getattr__(self, name: str):
        if name == "words":
            self.steps.append("headers")
            return self._words
        raise AttributeError(name)

    def copy(self, *arguments):
        self.steps.append("copy")
        return super().copy(*arguments)


@pytest.fixture
def steps(monkeypatch) -> list[str]:
    """What happens to a buffer that is made now, in order."""
    noted: list[str] = []
    monkeypatch.setattr(Noting, "steps", noted, raising=False)
    monkeypatch.setattr(ringbuf, "fence", lambda: lambda: noted.append("fence"))
    monkeypatch.setattr(ringbuf, "Memory", Noting)
    return noted


def noting(buffer, steps: list[str]) -> None:
    buffer._produced = Word("produced", buffer._produced, steps)
    buffer._consumed = Word("consumed", buffer._consumed, steps)
    steps.clear()


def test_fences_stand_between_position_headers_data_and_the_positions_return(steps):
    kernel = Kernel()
    noting(kernel.ring, steps)
    kernel.put(b"one")

    region = kernel.ring.region()
    kernel.ring.commit(len(region.memory))

    assert steps == ["read produced", "fence", "headers", "fence", "copy", "fence", "write consumed"]
    kernel.close()


def test_fences_stand_around_the_copy_of_a_perf_buffer(steps, monkeypatch):
    fd = os.memfd_create("perf")
    os.ftruncate(fd, 2 * PAGE)
    os.pwrite(fd, (16).to_bytes(8, "little"), 1024)
    os.pwrite(fd, b"\x09\0\0\0\0\0\x10\0", PAGE)
    monkeypatch.setattr(ringbuf, "opened", lambda cpu, watermark: (fd, True))
    buffer = PerfCpu(0, 1)
    noting(buffer, steps)

    region = buffer.region()
    buffer.commit(len(region.memory))

    assert steps == ["read produced", "fence", "copy", "fence", "write consumed"]
    buffer.close()


@pytest.mark.parametrize("machine", ["aarch64", "riscv64"])
def test_where_a_cpu_may_swap_accesses_a_fence_is_issued(machine, monkeypatch):
    issued = []
    monkeypatch.setattr(ringbuf.os, "uname", lambda: SimpleNamespace(machine=machine))
    monkeypatch.setattr(ringbuf.C, "CDLL", lambda name: SimpleNamespace(atomic_thread_fence=issued.append))

    ringbuf.fence.__wrapped__()()

    assert issued == [5]  # memory_order_seq_cst


def test_without_libatomic_the_scheduler_is_the_fence(monkeypatch):
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ringbuf.os, "uname", lambda: SimpleNamespace(machine="aarch64"))
    monkeypatch.setattr(ringbuf.C, "CDLL", missing)

    assert ringbuf.fence.__wrapped__() is os.sched_yield


def test_x86_needs_no_fence(monkeypatch):
    monkeypatch.setattr(ringbuf.os, "uname", lambda: SimpleNamespace(machine="x86_64"))
    monkeypatch.setattr(ringbuf.C, "CDLL", lambda name: pytest.fail(f"{name} was loaded"))

    assert ringbuf.fence.__wrapped__()() is None


# ------------------------------------------------------------------------------------------------ perf buffers


def test_what_a_perf_buffer_tells_of_losses_is_summed_where_the_kernel_does_not_count():
    lost = b"\x02\0\0\0\0\0\x18\0" + (7).to_bytes(8, "little")
    sample = b"\x09\0\0\0\0\0\x10\0" + bytes(8)

    told = lost + (5).to_bytes(8, "little") + sample + lost + (2).to_bytes(8, "little")

    assert ringbuf.told_lost(told) == 7
    assert ringbuf.told_lost(bytes(17)) == 0
