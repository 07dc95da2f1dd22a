"""The event loop: one thread, one epoll; what the kernel has is read and becomes batches."""

from __future__ import annotations

import os
import select
import time
from collections import Counter
from contextlib import ExitStack
from heapq import heappop, heappush
from itertools import count
from typing import TYPE_CHECKING, Self

from igrun.books import by_cpu, by_reason
from igrun.clib import wait_for_running_programs
from igrun.engine.framing import walk
from igrun.intake import TICK_S, Intake
from igrun.load import LoadedProgram
from igrun.readers import IteratorReader, MapReader, TracePipe, TracerReader, map_schedules
from igrun.record import TICK, Batch, Columns, DataSource, Framing, Reason, Region
from igrun.ringbuf import See, sees_nothing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from igrun.program import Plan, Reader
    from igrun.record import Batches

TIMER_S = 1.0
SHORTEST_PERIOD_S = 0.001
NOTHING = Region(b"", Framing.FIXED, 1)
Fetched = IteratorReader | MapReader


class Events:
    """Everything that a loaded program delivers. Open it before the programs are attached, `run` it after.

    UnsupportedError, KernelError, ParamError, ImageError: a source cannot be read
    """

    def __init__(self, loaded: LoadedProgram, plan: Plan, columns: Columns, see: See = sees_nothing) -> None:
        """see: what maps a ring's data where its records are to be shown (see `Intake.shows`)."""
        self._loaded, self._columns = loaded, columns
        program = plan.program
        sources = {**program.sources, **plan.sources}
        self._stopping = False
        self._untold: dict[str, Counter[Reason | int]] = {}
        self._so_far: dict[str, Counter[Reason | int]] = {}
        with ExitStack() as stack:
            self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            stack.callback(os.close, self._wake)
            self._tracers = [TracerReader(one, sources[one.source], loaded, see) for one in program.tracers]
            for tracer in self._tracers:
                stack.callback(tracer.close)
            self._tables: list[Fetched] = []
            for iterator in program.iterators:
                self._tables.append(IteratorReader(iterator, sources[iterator.source], loaded))
                stack.callback(self._tables[-1].close)
            drained = [sources[one.source] for one in program.map_iterators]
            schedules = map_schedules(plan.values, drained)
            for one in program.map_iterators:
                self._tables.append(MapReader(one, sources[one.source], loaded, schedules[one.source]))
            counting = [one for one in (*self._tracers, *self._tables) if not isinstance(one, IteratorReader)]
            self._losses = {one.source.name: one.losses for one in counting}
            self._readers: dict[int, Reader] = {reader.fileno(): reader for reader in plan.readers}
            if plan.values.get("trace-pipe") == "true":
                pipe = TracePipe(plan.host.root)
                stack.callback(pipe.close)
                self._readers[pipe.fileno()] = pipe
            # What may not wait for the end of a tick, and, around it, all that there is.
            self._urgent = select.epoll()
            stack.callback(self._urgent.close)
            self._all = select.epoll()
            stack.callback(self._all.close)
            for fd in (self._wake, *self._readers):
                self._urgent.register(fd, select.EPOLLIN)
            self._all.register(self._urgent.fileno(), select.EPOLLIN)
            self.intake = Intake(self._tracers, plan.backlog_bytes)
            stack.callback(self.intake.close)
            self._all.register(self.intake.fileno(), select.EPOLLIN)
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Unmap the buffers and let the iterators go."""
        self._stopping = True
        self._stack.close()

    def stop(self) -> None:
        """Make `run` come to its end. It only writes to a descriptor: safe in a signal handler and in any thread."""
        if not self._stopping:
            self._stopping = True
            os.eventfd_write(self._wake, 1)

    def lend(self) -> None:
        """From now on a batch may be memory of the kernel, lent until the next one is asked for."""
        self.intake.shows = not self.intake.beside

    def lost(self) -> dict[str, int]:
        """Records that found no room since the start, by source; only of the sources where each is counted."""
        return {source: losses.total() for source, losses in self._losses.items() if losses.countable}

    def so_far(self) -> Mapping[str, Mapping[Reason | int, int]]:
        """By source, what was lost from the start until it was counted last: by reason, and in the kernel by CPU."""
        return self._so_far

    def countable(self, source: str) -> bool:
        """True if every record of the source that finds no room is counted."""
        return source not in self._losses or self._losses[source].countable

    def run(self, timeout_s: float = 0) -> Batches:
        """Batches until `stop`, or for `timeout_s` seconds (0: no limit); on each timer tick one of TICK.

        Where there are only tables, and each was fetched as often as it is to be, nothing can follow: that is the end.
        At the end everything is detached, and what is in the buffers then is still delivered.
        """
        started = time.monotonic()
        end = started + timeout_s if timeout_s else float("inf")
        timers = Timers()
        timers.add(started, TIMER_S, 0, None)
        for table in self._tables:
            schedule = table.schedule
            if schedule.at_start:
                table.exhausted = True
                yield self._table(table)
            elif schedule.interval_s:
                timers.add(time.monotonic(), schedule.interval_s, schedule.count, table)
        while True:
            for tracer, region in self.intake.regions():
                yield self._batch(tracer.source, region)
            now = time.monotonic()
            if self._stopping or now >= end or self._complete():
                break
            due = timers.due(now)
            for one in due:
                if one is not None:
                    yield self._table(one)
            if due:
                self._count_lost()
                yield Batch(TICK, NOTHING)
                now = time.monotonic()
            left_s = max(0.0, min(timers.next() - now, end - now))
            pause_s, wait_s = self.intake.look(now)
            if not wait_s:
                yield from self._rest(min(pause_s, left_s))
                continue
            ready = {fd for fd, _ in self._all.poll(min(wait_s, left_s))}
            self.intake.woke(self.intake.fileno() not in ready)
            if self._urgent.fileno() in ready:
                yield from self._rest(0)
        yield from self._last()

    def _complete(self) -> bool:
        return not self._tracers and bool(self._tables) and all(table.exhausted for table in self._tables)

    def _rest(self, pause_s: float) -> Batches:
        """Sleep, but serve the readers that do not wait, and wake for `stop`."""
        milliseconds = int(pause_s * 1000)  # epoll knows no less; to sleep twice is to be woken twice
        if not milliseconds:
            time.sleep(pause_s)
        for fd, _ in self._urgent.poll(milliseconds / 1000):
            if fd in self._readers:
                yield from self._readers[fd].read()

    def leave(self) -> dict[str, Counter[Reason]]:
        """Detach, and count what is in the buffers instead of delivering it: by source and reason, with what was lost
        and no batch told of. For a run that ends while nobody reads its batches any more."""
        self._detach()
        left = self.untold()
        for tracer, region in self.intake.regions():
            left.setdefault(tracer.source.name, Counter())[Reason.CLOSED] += len(walk(region).offsets)
        self._untold = {}
        return left

    def _detach(self) -> None:
        """After it nothing comes any more."""
        self._loaded.detach()
        if self._tracers or any(table.schedule.at_stop for table in self._tables):
            wait_for_running_programs()
        self.intake.take_back()
        self._count_lost()

    def _last(self) -> Batches:
        """Detach, which takes the kernel 80 ms a program and more, and read what comes meanwhile; then what is left."""
        if self._tracers:
            yield from self._meanwhile(self._loaded.detach)
        self._detach()
        for tracer, region in self.intake.regions():
            yield self._batch(tracer.source, region)
        for table in self._tables:
            if table.schedule.at_stop and not table.exhausted:
                yield self._table(table)
        for tracer in self._tracers:
            if self._untold.get(tracer.source.name):
                yield self._batch(tracer.source, Region(b"", Framing.RING))

    def _meanwhile(self, action: Callable[[], None]) -> Batches:
        """What comes while something is done in another thread."""
        from threading import Thread

        failed: list[BaseException] = []

        def act() -> None:
            try:
                action()
            except BaseException as failure:
                failed.append(failure)

        beside = Thread(target=act, name="beside")
        beside.start()
        try:
            while beside.is_alive():
                for tracer, region in self.intake.regions():
                    yield self._batch(tracer.source, region)
                beside.join(TICK_S / 2)
        finally:
            beside.join()
        if failed:
            raise failed[0]

    def _batch(self, source: DataSource, region: Region) -> Batch:
        lost = self._untold.pop(source.name, None)
        if not lost:
            return Batch(source, region, self._columns, region.records)
        return Batch(source, region, self._columns, region.records, lost=by_reason(lost), lost_on=by_cpu(lost))

    def untold(self) -> dict[str, Counter[Reason]]:
        """Records that were lost and that no batch told of, by source, after the end: what a table lost since it was
        last fetched."""
        return {source: Counter(by_reason(lost)) for source, lost in self._untold.items() if lost}

    def _table(self, table: Fetched) -> Batch:
        self._count_lost()
        return self._batch(table.source, table.fetch())

    def _count_lost(self) -> None:
        """What was lost since the last time goes into the next batch of its source."""
        for source, losses in self._losses.items():
            for cpu, number in losses.new().items():
                self._lose(source, Reason.KERNEL, number)
                self._untold[source][cpu] += number
                self._so_far[source][cpu] += number
        for source, dropped in self.intake.dropped.copy().items():
            self._lose(source, Reason.BACKLOG, dropped - self._so_far.get(source, Counter())[Reason.BACKLOG])

    def _lose(self, source: str, reason: Reason, number: int) -> None:
        if number:
            for told in (self._untold, self._so_far):
                told.setdefault(source, Counter())[reason] += number


class Timers:
    """What is to be done when: a table to fetch, None for the plain tick."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, float, int, Fetched | None]] = []
        self._order = count()

    def add(self, now: float, period_s: float, times: int, what: Fetched | None) -> None:
        """From one period after `now` on. times: 0 for ever."""
        period_s = max(period_s, SHORTEST_PERIOD_S)
        heappush(self._heap, (now + period_s, next(self._order), period_s, times, what))

    def next(self) -> float:
        """When the first one is due."""
        return self._heap[0][0]

    def due(self, now: float) -> list[Fetched | None]:
        """What is due by now; periods that passed unused are skipped."""
        found = []
        while self._heap[0][0] <= now:
            when, order, period_s, times, what = heappop(self._heap)
            found.append(what)
            if times == 1 and what is not None:
                what.exhausted = True
            else:
                missed = (now - when) // period_s
                following = when + period_s * (1 + missed)
                heappush(self._heap, (following, order, period_s, max(0, times - 1), what))
        return found
