"""How records get from the buffers into the loop: by its own thread, or by one beside it once what takes them is slow.

The first record after a pause is read at once. While more come, the reader sleeps a tick between two readings: asleep,
it costs nothing, and the kernel wakes it once per tick instead of once per record. The tick is at most `TICK_S`, and
less where a quarter of a buffer would fill meanwhile.

A buffer belongs to one thread at a time. The loop gives all of them away when it starts the other one, between two
regions, and takes them back when it has ended; starting, joining and the lock of the backlog are full barriers, so each
sees what the other one did.
"""

from __future__ import annotations

import os
import select
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from igrun.engine.framing import walk
from igrun.ringbuf import LIMIT, no_room

if TYPE_CHECKING:
    from threading import Condition, Thread

    from igrun.readers import TracerReader
    from igrun.record import Region
    from igrun.ringbuf import Buffer, Room

TICK_S = 0.020
SLOW_S = 0.010
"""Who takes longer with one region gets another thread to read beside it."""
SHORTEST_TICK_S = 0.0003
IDLE_S = 0.1
"""How long to wait for the kernel to say that there is something: a program may write without waking anybody."""
IDLE_BY_TIMER_S = 0.02
LONGEST_WAIT_S = 1.0
SILENT = 2
"""So many times in a row something was there that the kernel had not said: such a program never wakes anybody."""
SHORTEST_SPARE_S, LONGEST_SPARE_S = 0.00002, 0.001


Taken = tuple["TracerReader", "Region"]


def always(tracer: TracerReader) -> bool:
    return True


class Pace:
    """How long to sleep between two readings."""

    def __init__(self) -> None:
        self._tick_s = SHORTEST_TICK_S
        self._before: float | None = None
        self._filled = 0.0

    def took(self, part: float) -> None:
        """So much of a buffer had filled: 1 is all of it."""
        self._filled = max(self._filled, part)

    def pause(self, now: float) -> float:
        """Seconds to sleep now: twice as long as the last time, unless a quarter of a buffer would fill meanwhile."""
        self._tick_s = min(TICK_S, 2 * self._tick_s)
        if self._before is not None and self._filled:
            passed = now - self._before
            self._tick_s = max(SHORTEST_TICK_S, min(self._tick_s, 0.25 * passed / self._filled))
        self._before, self._filled = now, 0.0
        return self._tick_s

    def idle(self) -> None:
        """Nothing came: the rate of before says nothing any more."""
        self._before = None


class Watch:
    """Buffers, and when to look at them.

    epoll: ready when the kernel says that there is something
    """

    def __init__(self, tracers: Sequence[TracerReader]) -> None:
        self._tracers = tracers
        self._pace = Pace()
        self._taken = False
        self._spare_s = 0.0
        self._lent: tuple[Buffer, int] | None = None
        self._announced: set[int] = set()
        self._timed_out = False
        self._silent: Counter[int] = Counter()
        self.epoll = select.epoll()
        for _, buffer in self.buffers():
            self.epoll.register(buffer.fileno(), select.EPOLLIN)

    def buffers(self) -> Iterator[tuple[TracerReader, Buffer]]:
        for tracer in self._tracers:
            for buffer in tracer.buffers:
                yield tracer, buffer

    def regions(
        self, room: Room = no_room, wanted: Callable[[TracerReader], bool] = always, *, shown: bool = False
    ) -> Iterator[Taken]:
        """What is there now, but not what comes while it is being read.

        wanted: asked before each region; if not, what else is in that buffer stays there
        shown:  a region is lent until the next one is asked for; else its buffer has the room again at once
        """
        self._taken = False
        for tracer, buffer in self.buffers():
            before = buffer.position
            end = before + buffer.waiting()
            while buffer.position < end and wanted(tracer):
                region = buffer.shown(room) if shown else buffer.region(room)
                if region is None:
                    break
                self._lent = buffer, len(region.memory)
                if not shown:
                    self._give_back()
                try:
                    yield tracer, region
                finally:
                    self._give_back()
            taken = buffer.position - before
            if taken:
                self._taken = True
                self._pace.took(taken / buffer.size)
                self._note(tracer, buffer)
        self._announced.clear()

    def keep(self) -> None:
        """Let what is lent stay as it is, and give its room back. From now on there are only copies. KernelError."""
        for _, buffer in self.buffers():
            lent, bytes_ = self._lent or (None, 0)
            buffer.keep(bytes_ if buffer is lent else 0)
        self._give_back()

    def _give_back(self) -> None:
        """The room of what was lent last."""
        if self._lent:
            (buffer, bytes_), self._lent = self._lent, None
            buffer.commit(bytes_)

    def _note(self, tracer: TracerReader, buffer: Buffer) -> None:
        """Find out if its program wakes nobody."""
        number = buffer.fileno()
        if self._timed_out and number not in self._announced:
            self._silent[number] += 1
            if self._silent[number] >= SILENT:
                tracer.by_timer = True
        elif number in self._announced:
            self._silent[number] = 0
        self._timed_out = False

    def look(self, now: float) -> tuple[float, float]:
        """After a reading: how many seconds to pause, and how many to wait for the kernel then."""
        if self._taken:
            self._spare_s = 0.0
            return self._pace.pause(now), 0.0
        self._pace.idle()
        if self._waiting:
            # All there is is a record that its program still writes: nothing says when it is complete.
            self._spare_s = min(LONGEST_SPARE_S, self._spare_s * 2 or SHORTEST_SPARE_S)
            return self._spare_s, 0.0
        self._spare_s = 0.0
        return 0.0, IDLE_BY_TIMER_S if any(tracer.by_timer for tracer in self._tracers) else IDLE_S

    @property
    def _waiting(self) -> bool:
        return any(buffer.waiting() for _, buffer in self.buffers())

    def woke(self, timed_out: bool) -> None:
        """The wait is over. timed_out: the kernel did not say that there is anything."""
        self._timed_out = timed_out
        self._announced = set() if timed_out else {fd for fd, _ in self.epoll.poll(0)}

    def close(self) -> None:
        self.epoll.close()


class Intake:
    """What comes out of the buffers. Read it in one thread.

    fileno: ready when there may be something
    dropped: records, by source, that found no room in the backlog, of those sources where nobody else counts
    room:    memory to copy into, where the loop's own thread reads
    shows:   a region may be memory of the kernel, lent until the next one is asked for
    """

    def __init__(self, tracers: Sequence[TracerReader], backlog_bytes: int) -> None:
        """backlog_bytes: so much may wait for a slow reader beside what is in the buffers; 0: nothing."""
        self.room: Room = no_room
        self.shows = False
        self.dropped: Counter[str] = Counter()
        self._limit = backlog_bytes if tracers else 0
        self._drain: Drain | None = None
        self._ended: Drain | None = None
        with ExitStack() as stack:
            self._watch = Watch(tracers)
            stack.callback(self._watch.close)
            self._ready = select.epoll()
            stack.callback(self._ready.close)
            self._ready.register(self._watch.epoll.fileno(), select.EPOLLIN)
            stack.callback(self.take_back)
            self._stack = stack.pop_all()

    def fileno(self) -> int:
        return self._ready.fileno()

    @property
    def beside(self) -> bool:
        """True while a thread of its own reads."""
        return self._drain is not None

    def regions(self) -> Iterator[Taken]:
        """What is there now."""
        if self._drain is None:
            if self._ended is not None:
                yield from self._ended.regions()
            for one in self._watch.regions(self.room, shown=self.shows):
                before = time.monotonic()
                yield one
                if time.monotonic() - before > SLOW_S:
                    self.give_away()
                if self._drain is not None:
                    break
        if self._drain is not None:
            yield from self._drain.regions()

    def look(self, now: float) -> tuple[float, float]:
        """After a reading: how many seconds to pause, and how many to wait for `fileno` then."""
        return self._watch.look(now) if self._drain is None else (0.0, LONGEST_WAIT_S)

    def woke(self, timed_out: bool) -> None:
        """The wait is over. timed_out: `fileno` was not ready."""
        if self._drain is None:
            self._watch.woke(timed_out)
        elif not timed_out:
            with suppress(BlockingIOError):
                os.eventfd_read(self._drain.fileno())

    def give_away(self) -> None:
        """Let another thread read from now on, into the backlog: what takes the regions is slow.

        Call it in the thread that takes them, while it has one in hand or none. Again: nothing.
        """
        if self._drain is None and self._limit:
            self._watch.keep()
            self.shows = False
            self._ready.unregister(self._watch.epoll.fileno())
            self._drain = Drain(self._watch, self._limit, self.dropped)
            self._ready.register(self._drain.fileno(), select.EPOLLIN)

    def take_back(self) -> None:
        """Let the other thread end, for good. What it has read comes first from then on."""
        drain, self._drain, self._limit = self._drain, None, 0
        if drain is not None:
            self._ready.unregister(drain.fileno())
            self._ready.register(self._watch.epoll.fileno(), select.EPOLLIN)
            drain.close()
            self._ended = drain

    def close(self) -> None:
        self._stack.close()


class Drain:
    """A thread that reads buffers into a backlog.

    Once the backlog is full it reads no more: the buffers fill, and what finds no room there is counted by the kernel
    or by the program. Where neither counts it reads on, and counts what it drops.

    fileno: ready when there may be something in the backlog
    """

    def __init__(self, watch: Watch, limit: int, dropped: Counter[str]) -> None:
        from threading import Condition, Thread

        self._watch, self._limit, self._dropped = watch, limit, dropped
        self._regions: deque[Taken] = deque()
        self._bytes = 0
        self._closing = False
        self._failure: BaseException | None = None
        self._changed: Condition = Condition()
        with ExitStack() as stack:
            self._filled = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            stack.callback(os.close, self._filled)
            self._end = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            stack.callback(os.close, self._end)
            self._epoll = select.epoll()
            stack.callback(self._epoll.close)
            self._epoll.register(self._end, select.EPOLLIN)
            self._epoll.register(watch.epoll.fileno(), select.EPOLLIN)
            self._thread: Thread = Thread(target=self._run, name="drain", daemon=True)
            self._thread.start()
            self._stack = stack.pop_all()

    def fileno(self) -> int:
        return self._filled

    def regions(self) -> Iterator[Taken]:
        """What is in the backlog now."""
        for _ in range(len(self._regions)):
            with self._changed:
                one = self._regions.popleft()
                self._bytes -= len(one[1].memory)
                self._changed.notify()
            yield one
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Let the thread end, and wait for that. `regions` still gives what is there."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        os.eventfd_write(self._end, 1)
        self._thread.join()
        self._stack.close()

    def _run(self) -> None:
        try:
            while not self._closing:
                self._read()
        except (OSError, MemoryError) as failure:
            self._failure = failure
            os.eventfd_write(self._filled, 1)

    def _read(self) -> None:
        """Read what is there, and wait until it is time for the next look."""
        for tracer, region in self._watch.regions(wanted=self._wanted):
            if self._full():
                self._dropped[tracer.source.name] += len(walk(region).offsets)
                continue
            with self._changed:
                self._regions.append((tracer, region))
                self._bytes += len(region.memory)
            os.eventfd_write(self._filled, 1)
        pause_s, wait_s = self._watch.look(time.monotonic())
        if self._full():
            with self._changed:
                self._changed.wait_for(lambda: self._closing or not self._full(), pause_s or TICK_S)
        elif wait_s:
            self._watch.woke(not self._epoll.poll(wait_s))
        else:
            time.sleep(pause_s)

    def _wanted(self, tracer: TracerReader) -> bool:
        return not self._closing and not (tracer.losses.countable and self._full())

    def _full(self) -> bool:
        return bool(self._bytes) and self._bytes + LIMIT > self._limit
