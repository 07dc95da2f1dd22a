"""Ring buffers and perf buffers: memory that the kernel writes, as regions of raw records.

`region()` copies out what is complete, `commit()` gives the room back to the kernel. Between the two the memory of the
kernel is not touched again.

Memory order. The kernel publishes with a store-release and we must see the data after the position (or header) that
announces it, and must not give room back before the data is copied. x86 keeps loads in order, and keeps them before
later stores (TSO), so there nothing is needed as long as the reads are separate instructions, which they are: each is
a call from the interpreter. Elsewhere `fence()` stands at each of these points.
"""

from __future__ import annotations

import ctypes as C
import fcntl
import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from errno import EINVAL
from functools import cache
from struct import Struct
from typing import TYPE_CHECKING

from igrun.clib import (
    PERF_ATTR_WATERMARK,
    PERF_COUNT_SW_BPF_OUTPUT,
    PERF_EVENT_IOC_ENABLE,
    PERF_FORMAT_LOST,
    PERF_SAMPLE_RAW,
    PERF_TYPE_SOFTWARE,
    PROT_READ,
    PROT_WRITE,
    Mapping,
    perf_event_open,
)
from igrun.errors import KernelError
from igrun.record import Framing, Region

if TYPE_CHECKING:
    from igrun.libbpf import BpfMap

PAGE = os.sysconf("SC_PAGE_SIZE")
LIMIT = 1 << 20
"""Bytes of one region: more falls out of the CPU's cache."""
# kernel/bpf/ringbuf.c: the first word of a record's header
BUSY, DISCARDED, LENGTH = 1 << 31, 1 << 30, (1 << 30) - 1
# include/uapi/linux/perf_event.h: u32 type, u16 misc, u16 size
HEADER = Struct("=IHH")
LOST_RECORD, LOST_COUNT = 2, Struct("=16xQ")


@cache
def fence() -> Callable[[], object]:
    """What keeps memory accesses before it before those after it."""
    if os.uname().machine in ("x86_64", "i686"):
        return lambda: None
    try:
        thread_fence = C.CDLL("libatomic.so.1").atomic_thread_fence
    except OSError:
        # No libatomic: __schedule() has a full barrier (smp_mb__after_spinlock()).
        return os.sched_yield
    seq_cst = 5  # memory_order_seq_cst
    return lambda: thread_fence(seq_cst)


class Ring:
    """A BPF_MAP_TYPE_RINGBUF."""

    def __init__(self, map: BpfMap) -> None:
        self.size = map.max_entries
        self._fd = map.fd
        with ExitStack() as stack:
            # consumer position: one page that we write; producer position: one page, then the data, mapped twice in
            # a row, so that what is between the positions is always in one piece
            consumer = Mapping(map.fd, PAGE, PROT_READ | PROT_WRITE)
            stack.callback(consumer.close)
            producer = Mapping(map.fd, PAGE + 2 * self.size, PROT_READ, PAGE)
            stack.callback(producer.close)
            self._stack = stack.pop_all()
        # aligned 8 bytes: read and written by one instruction
        self._consumed = C.c_uint64.from_address(consumer.address)
        self._produced = C.c_uint64.from_address(producer.address)
        self._data = producer.address + PAGE
        words = (C.c_uint32 * (self.size // 2)).from_address(self._data)
        self._words = memoryview(words).cast("B").cast("I")
        self._fence = fence()
        self.position = self._consumed.value

    def fileno(self) -> int:
        return self._fd

    def waiting(self) -> int:
        """Bytes between the positions, records that are not complete among them."""
        return self._produced.value - self.position

    def region(self) -> Region | None:
        """A copy of the complete records that are there now, `LIMIT` bytes or so; None if there is none."""
        available = self._produced.value - self.position
        if not available:
            return None
        self._fence()
        offset = self.position & (self.size - 1)
        complete = self._complete(offset, min(available, LIMIT), available)
        if not complete:
            return None
        # A header is read before the copy: if it says complete, so is the data that is copied after.
        self._fence()
        return Region(C.string_at(self._data + offset, complete), Framing.RING)

    def commit(self, bytes_: int) -> None:
        """Give the memory of the last region back."""
        self._fence()
        self.position += bytes_
        self._consumed.value = self.position

    def _complete(self, offset: int, wanted: int, available: int) -> int:
        """Bytes of whole records from `offset`, up to the first one that its program still writes."""
        words, start = self._words, offset >> 2
        place, end = start, start + (wanted >> 2)
        while place < end:
            head = words[place]
            if head & BUSY:
                break
            place += ((head & LENGTH) + 15 >> 3) << 1
        return min((place - start) << 2, available)

    def lost(self) -> int:
        """The kernel does not count what finds no room; the program does, in `<map>_lost_samples`."""
        return 0

    def close(self) -> None:
        self._words.release()
        self._stack.close()


class PerfCpu:
    """The perf buffer of one CPU."""

    def __init__(self, cpu: int, pages: int) -> None:
        self.size = pages * PAGE
        with ExitStack() as stack:
            self.fd, self._counts = opened(cpu, self.size // 2)
            stack.callback(os.close, self.fd)
            memory = Mapping(self.fd, PAGE + self.size, PROT_READ | PROT_WRITE)
            stack.callback(memory.close)
            self._stack = stack.pop_all()
        # struct perf_event_mmap_page
        self._head = C.c_uint64.from_address(memory.address + 1024)
        self._tail = C.c_uint64.from_address(memory.address + 1032)
        self._data = memory.address + PAGE
        self._fence = fence()
        self._lost_records = 0
        self.position = self._tail.value

    def fileno(self) -> int:
        return self.fd

    def waiting(self) -> int:
        """Bytes of records."""
        return self._head.value - self.position

    def region(self) -> Region | None:
        """A copy of the records that are there now, `LIMIT` bytes or so; None if there is none."""
        # All before the head is complete: the kernel moves it when the outermost writer on this CPU is done.
        available = self._head.value - self.position
        if not available:
            return None
        self._fence()
        offset = self.position & (self.size - 1)
        wanted = min(available, LIMIT)
        first = min(wanted, self.size - offset)
        memory = C.string_at(self._data + offset, first)
        if wanted > first:
            memory += C.string_at(self._data, wanted - first)
        whole = self._whole(memory)
        return Region(memory[:whole] if whole < len(memory) else memory, Framing.PERF) if whole else None

    def _whole(self, memory: bytes) -> int:
        """Bytes of whole records; counts what the kernel says it lost."""
        place, end = 0, len(memory)
        while place + 8 <= end:
            kind, _, size = HEADER.unpack_from(memory, place)
            if size < 8 or place + size > end:
                break
            if kind == LOST_RECORD:
                self._lost_records += LOST_COUNT.unpack_from(memory, place)[0]
            place += size
        return place

    def commit(self, bytes_: int) -> None:
        """Give the memory of the last region back."""
        self._fence()
        self.position += bytes_
        self._tail.value = self.position

    def lost(self) -> int:
        """Records that found no room, since the start."""
        if self._counts:
            # u64 value, u64 lost: exact, where a PERF_RECORD_LOST waits for the next record that finds room
            return int.from_bytes(os.read(self.fd, 16)[8:], "little")
        return self._lost_records

    def close(self) -> None:
        self._stack.close()


def opened(cpu: int, watermark: int) -> tuple[int, bool]:
    """A BPF output event on `cpu` that wakes its reader each `watermark` bytes; and if the kernel counts its losses."""
    fields = {
        "type": PERF_TYPE_SOFTWARE,
        "config": PERF_COUNT_SW_BPF_OUTPUT,
        "sample": 1,
        "sample_type": PERF_SAMPLE_RAW,
        "flags": PERF_ATTR_WATERMARK,
        "wakeup": watermark,
    }
    try:
        return perf_event_open(cpu, **fields, read_format=PERF_FORMAT_LOST), True
    except KernelError as error:
        # Before Linux 6.0 (119a784c8127, "perf/core: Add a new read format to get a number of lost samples").
        if error.errno != EINVAL:
            raise
    return perf_event_open(cpu, **fields), False


class Perf:
    """A BPF_MAP_TYPE_PERF_EVENT_ARRAY: one buffer for each CPU."""

    def __init__(self, map: BpfMap, cpus: Iterable[int], pages: int) -> None:
        """pages: of each CPU's buffer, a power of two."""
        with ExitStack() as stack:
            self.buffers: list[PerfCpu] = []
            for cpu in cpus:
                buffer = PerfCpu(cpu, pages)
                stack.callback(buffer.close)
                map.update(cpu.to_bytes(4, "little"), buffer.fd.to_bytes(4, "little"))
                fcntl.ioctl(buffer.fd, PERF_EVENT_IOC_ENABLE, 0)
                self.buffers.append(buffer)
            self._stack = stack.pop_all()

    def lost(self) -> int:
        """Records that found no room, since the start."""
        return sum(buffer.lost() for buffer in self.buffers)

    def close(self) -> None:
        self._stack.close()


def counted(map: BpfMap) -> int:
    """The sum over all CPUs of the only entry of a per-CPU array of u64. It only grows: nobody sets it to 0."""
    values = map.lookup(bytes(map.key_size)) or b""
    return sum(memoryview(values).cast("Q"))
