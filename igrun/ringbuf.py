"""Ring buffers and perf buffers: memory that the kernel writes, as regions of raw records.

`region()` copies out what is complete, or shows it where it is; `commit()` gives the room back to the kernel. A copy is
made in one go; what is shown is read until then.

Memory order. The kernel publishes with a store-release (the position of a ring, the head of a perf buffer) or a full
barrier (`xchg` of a record's header, when its program commits it). So we must read

1. the position, then
2. the headers before it, then
3. the records whose headers say that they are complete, and only then
4. write how far we are, which lets the kernel write there again.

Each step is a call of its own from the interpreter, so no compiler merges or swaps them, but a CPU may. x86 keeps loads
in order, and keeps them before later stores (TSO): there nothing is needed. Elsewhere `fence()` stands between any two
of these steps. The headers are read in the kernel's memory, not in the copy: in which order a copy reads its bytes is
nobody's promise, not on x86 either, so a header in it may be younger than the data behind it.

Positions are aligned words of 8 bytes, headers of 4, read and written by one instruction: ctypes and memoryview copy
them by a `memcpy` of that fixed size. Were a header read byte by byte, it would do no harm: committing changes nothing
but its last byte.

Nobody sleeps through a record: the kernel wakes whoever waits if we have read all before the record that it commits.
Between our last step 4 and the look that finds nothing there is a system call that sleeps, so the kernel sees that step
before we look.
"""

from __future__ import annotations

import ctypes as C
import fcntl
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from errno import EINVAL
from functools import cache
from itertools import repeat
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
    from igrun.bpfmap import BpfMap
    from igrun.engine import Window

PAGE = os.sysconf("SC_PAGE_SIZE")
LIMIT = 1 << 21
"""Bytes of one region of a ring: less costs more Python for each event, more falls out of every cache of the CPU."""
# kernel/bpf/ringbuf.c: the first word of a record's header
BUSY, DISCARDED, LENGTH = 1 << 31, 1 << 30, (1 << 30) - 1
# include/uapi/linux/perf_event.h: u32 type, u16 misc, u16 size
HEADER = Struct("=IHH")
LOST_RECORD, LOST_COUNT = 2, Struct("=16xQ")

Room = Callable[[int], "memoryview | None"]
"""Memory of so many bytes to copy into, or None; it stays as it is as long as the region is used."""


def no_room(size: int) -> None:
    """Regions have memory of their own."""


See = Callable[[int, int, int], "Window | None"]
"""A mapping of a descriptor's data, by its offset and size, that regions can be shown in; or None."""


def sees_nothing(fd: int, offset: int, size: int) -> None:
    """Regions are copies."""


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


class Memory:
    """`size` bytes of a buffer, a power of two, written round and round."""

    def __init__(self, address: int, size: int) -> None:
        self.size = size
        self.bytes = memoryview((C.c_uint8 * size).from_address(address)).cast("B")
        self.words = self.bytes.cast("I")

    def copy(self, position: int, length: int, room: Room) -> bytes | memoryview:
        """The `length` bytes from `position` on, in one piece."""
        start = position & (self.size - 1)
        first = min(length, self.size - start)
        target = room(length)
        if target is not None:
            target[:first] = self.bytes[start : start + first]
            target[first:] = self.bytes[: length - first]
            return target
        if first == length:
            return bytes(self.bytes[start : start + length])
        return b"".join((self.bytes[start:], self.bytes[: length - first]))

    def close(self) -> None:
        self.words.release()
        self.bytes.release()


class Buffer(ABC):
    """What the kernel writes and we read: two positions and memory.

    position: what we have given back
    """

    def __init__(self, memory: Memory, produced: int, consumed: int) -> None:
        """produced, consumed: the addresses of the two positions."""
        self.size = memory.size
        self._memory = memory
        self._produced = C.c_uint64.from_address(produced)
        self._consumed = C.c_uint64.from_address(consumed)
        self._fence = fence()
        self.position: int = self._consumed.value

    def waiting(self) -> int:
        """Bytes between the positions, records that are not complete among them."""
        produced: int = self._produced.value
        return produced - self.position

    @abstractmethod
    def fileno(self) -> int: ...

    @abstractmethod
    def region(self, room: Room = no_room) -> Region | None:
        """A copy of complete records that are there now; None if there is none."""

    def shown(self, room: Room = no_room) -> Region | None:
        """The same in its own memory, if that can be; else a copy. It is lent until `commit`."""
        return self.region(room)

    @abstractmethod
    def keep(self, bytes_: int) -> None:
        """Let so many bytes that are shown stay as they are. From now on there are only copies. KernelError."""

    def commit(self, bytes_: int) -> None:
        """Give the memory of the last region back."""
        self._fence()
        self.position += bytes_
        self._consumed.value = self.position

    def regions(self, room: Room = no_room) -> Iterator[Region]:
        """What is there now, but not what comes while it is being read. The memory is given back at once."""
        end = self.position + self.waiting()
        while self.position < end:
            region = self.region(room)
            if region is None:
                return
            self.commit(len(region.memory))
            yield region


class Ring(Buffer):
    """A BPF_MAP_TYPE_RINGBUF."""

    def __init__(self, map: BpfMap, see: See = sees_nothing) -> None:
        """see: what maps the data where its records are to be shown."""
        self._fd = map.fd
        self._window: Window | None = None
        self._data: Mapping | None = None
        with ExitStack() as stack:
            # consumer position: one page that we write; producer position: one page, then the data
            consumer = Mapping(map.fd, PAGE, PROT_READ | PROT_WRITE)
            stack.callback(consumer.close)
            producer = Mapping(map.fd, PAGE, PROT_READ, PAGE)
            stack.callback(producer.close)
            stack.callback(self._unmap)
            # The kernel has the data twice in a row, so that what goes round the end is in one piece. As a process's
            # memory is counted each page that is mapped is one, so no more of the second time than is needed.
            self._extra = min(map.max_entries, LIMIT)
            self._window = see(map.fd, 2 * PAGE, map.max_entries + self._extra)
            size = map.max_entries
            memory = Memory(self._window.address, size) if self._window else self._mapped(size)
            self._stack = stack.pop_all()
        super().__init__(memory, producer.address, consumer.address)

    def _mapped(self, size: int) -> Memory:
        """The data, mapped here."""
        self._data = Mapping(self._fd, size, PROT_READ, 2 * PAGE)
        return Memory(self._data.address, size)

    def fileno(self) -> int:
        return self._fd

    def region(self, room: Room = no_room) -> Region | None:
        """A copy of the complete records that are there now, `LIMIT` bytes or so; None if there is none."""
        available = self.waiting()
        if not available:
            return None
        self._fence()
        complete = whole(self._memory.words, self.position >> 2, min(available, LIMIT) >> 2) << 2
        if not complete:
            return None
        self._fence()
        return Region(self._memory.copy(self.position, complete, room), Framing.RING)

    def shown(self, room: Room = no_room) -> Region | None:
        """The complete records that are there now, `LIMIT` bytes or so; None if there is none."""
        available = self.waiting()
        if not available or not self._window:
            return self.region(room) if available else None
        self._fence()
        found = self._window.region(self.position & (self.size - 1), min(available, self._extra))
        self._fence()
        # One that is larger than that may go round the end where the data is mapped only once.
        return found or self.region(room)

    def keep(self, bytes_: int) -> None:
        """Let so many bytes that are shown stay as they are. From now on there are only copies. KernelError."""
        if self._window:
            # Others may read from now on, beside whoever has these bytes.
            window, memory = self._window, self._memory
            self._memory, self._window = self._mapped(self.size), None
            memory.close()
            window.close(self.position & (self.size - 1), bytes_)

    def close(self) -> None:
        self._stack.close()

    def _unmap(self) -> None:
        memory: Memory | None = getattr(self, "_memory", None)
        if memory:
            memory.close()
        if self._window:
            self._window.close()
        elif self._data:
            self._data.close()


FEW, MANY = 4, 64
"""So many records are looked at one by one before it is tried whether more of the last one's size follow."""


def whole(words: memoryview[int], start: int, wanted: int) -> int:
    """How many words hold complete records: from `start` up to a record that its program still writes, or until there
    are `wanted`.

    Most programs send records of one size, so that the headers are as far from each other: then many are read and
    compared at once. A header counts only where all before it are as expected, so nothing else is taken for one.
    """
    mask = len(words) - 1
    place, end = start, start + wanted
    few, run = FEW, FEW
    while True:
        for _ in repeat(None, few):
            if place >= end:
                return place - start
            head = words[place & mask]
            if head > LENGTH and head & BUSY:
                return place - start
            place += ((head & LENGTH) + 15 >> 3) << 1
        step, at = ((head & LENGTH) + 15 >> 3) << 1, place & mask
        number = max(0, min(run, (end - place) // step, (mask + 1 - at) // step))
        same = equal(words[at : at + number * step : step].tobytes(), head.to_bytes(4, "little"))
        place += same * step
        few, run = (1, 4 * run) if same == number else (min(MANY, 2 * few), FEW)


def equal(words: bytes, word: bytes) -> int:
    """How many of `words`, from the first one on, are `word`."""
    number = len(words) >> 2
    expected = word * number
    if words == expected:
        return number
    low, high = 0, number  # the first that differs is in this range
    while high - low > 1:
        middle = low + high >> 1
        if words[low << 2 : middle << 2] == expected[low << 2 : middle << 2]:
            low = middle
        else:
            high = middle
    return low


class PerfCpu(Buffer):
    """The perf buffer of one CPU. counts: the kernel counts each record that finds no room."""

    def __init__(self, cpu: int, pages: int) -> None:
        self.cpu = cpu
        with ExitStack() as stack:
            self.fd, self.counts = opened(cpu, pages * PAGE // 2)
            stack.callback(os.close, self.fd)
            mapped = Mapping(self.fd, (1 + pages) * PAGE, PROT_READ | PROT_WRITE)
            stack.callback(mapped.close)
            memory = Memory(mapped.address + PAGE, pages * PAGE)
            stack.callback(memory.close)
            self._stack = stack.pop_all()
        # struct perf_event_mmap_page: data_head, data_tail
        super().__init__(memory, mapped.address + 1024, mapped.address + 1032)
        self._told = 0

    def fileno(self) -> int:
        return self.fd

    def region(self, room: Room = no_room) -> Region | None:
        """A copy of the records that are there now; None if there is none."""
        # All before the head is complete: the kernel moves it when the outermost writer on this CPU is done.
        available = self.waiting()
        if not available:
            return None
        self._fence()
        memory = self._memory.copy(self.position, available, room)
        if not self.counts:
            self._told += told_lost(memory)
        return Region(memory, Framing.PERF)

    def keep(self, bytes_: int) -> None:
        """There are only copies."""

    def lost(self) -> int:
        """Records that found no room, since the start; where `counts` is not true, at least so many."""
        if self.counts:
            # u64 value, u64 lost: exact, where a PERF_RECORD_LOST waits for the next record that finds room
            return int.from_bytes(os.read(self.fd, 16)[8:], "little")
        return self._told

    def close(self) -> None:
        self._stack.close()


def told_lost(memory: bytes | memoryview) -> int:
    """How many lost records the records of a perf buffer tell of."""
    place, lost = 0, 0
    while place + HEADER.size <= len(memory):
        kind, _, size = HEADER.unpack_from(memory, place)
        if kind == LOST_RECORD:
            lost += LOST_COUNT.unpack_from(memory, place)[0]
        place += max(size, HEADER.size)
    return lost


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

    @property
    def counts(self) -> bool:
        """The kernel counts each record that finds no room."""
        return all(buffer.counts for buffer in self.buffers)

    def lost(self) -> dict[int, int]:
        """Records that found no room, since the start, by CPU."""
        return {buffer.cpu: buffer.lost() for buffer in self.buffers}

    def close(self) -> None:
        self._stack.close()


def counted(map: BpfMap) -> dict[int, int]:
    """The only entry of a per-CPU array of u64, by CPU. It only grows: nobody sets it to 0."""
    values = map.lookup(bytes(map.key_size)) or b""
    return dict(enumerate(memoryview(values).cast("Q")))
