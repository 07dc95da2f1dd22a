"""The ring reader on memory laid out as the kernel does it: a page each for the two positions, the data twice."""

import os
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igrun.record import Framing
from igrun.ringbuf import BUSY, DISCARDED, PAGE, Ring

SIZE = 4 * PAGE


class Kernel:
    """Writes records as the kernel does."""

    def __init__(self, start: int = 0) -> None:
        self.fd = os.memfd_create("ring")
        os.ftruncate(self.fd, 2 * PAGE + 2 * SIZE)
        self.position = start
        self._set(0, start)
        self._set(PAGE, start)
        self.ring = Ring(SimpleNamespace(fd=self.fd, max_entries=SIZE))

    def _set(self, offset: int, position: int) -> None:
        os.pwrite(self.fd, position.to_bytes(8, "little"), offset)

    def put(self, data: bytes, flags: int = 0) -> int:
        """Where the record begins."""
        record = (len(data) | flags).to_bytes(4, "little") + bytes(4) + data + bytes(-len(data) % 8)
        at = self.position
        for index, byte in enumerate(record):
            place = (at + index) % SIZE
            for copy in (place, place + SIZE):
                os.pwrite(self.fd, bytes([byte]), 2 * PAGE + copy)
        self.position += len(record)
        self._set(PAGE, self.position)
        return at

    def commit(self, at: int, length: int) -> None:
        for copy in (at % SIZE, at % SIZE + SIZE):
            os.pwrite(self.fd, length.to_bytes(4, "little"), 2 * PAGE + copy)

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
