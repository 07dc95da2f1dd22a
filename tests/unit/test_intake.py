"""How records get from buffers to whoever takes them."""

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igrun import intake
from igrun.intake import SHORTEST_TICK_S, TICK_S, Intake, Pace, Watch
from igrun.record import DataSource, Framing, Kind, Region

RECORD = 24  # bytes of a record: header, number, filler


class Fake:
    """A buffer whose records have the numbers 0, 1, 2, ... most: records in a region."""

    def __init__(self, most: int = 4) -> None:
        self.event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.size, self.position, self.produced, self.most = 1 << 20, 0, 0, most
        self.fails = False
        self.kept: list[int] = []

    def fileno(self) -> int:
        return self.event

    def put(self, number: int, wake: bool = True) -> None:
        self.produced += number * RECORD
        if wake:
            os.eventfd_write(self.event, 1)

    def waiting(self) -> int:
        return self.produced - self.position

    def region(self, room) -> Region | None:
        if self.fails:
            raise OSError("it is broken")
        first = self.position // RECORD
        last = first + min(self.waiting() // RECORD, self.most)
        head = (16).to_bytes(8, "little")
        data = b"".join(head + number.to_bytes(16, "little") for number in range(first, last))
        return Region(data, Framing.RING) if data else None

    def shown(self, room) -> Region | None:
        return self.region(room)

    def keep(self, bytes_: int) -> None:
        self.kept.append(bytes_)

    def commit(self, bytes_: int) -> None:
        self.position += bytes_
        if not self.waiting():
            with suppress(BlockingIOError):
                os.eventfd_read(self.event)


def reader(buffer: Fake, countable: bool = True):
    source, losses = DataSource("calls", Kind.EVENTS), SimpleNamespace(countable=countable)
    return SimpleNamespace(source=source, buffers=[buffer], losses=losses, by_timer=False)


def numbers(region: Region) -> list[int]:
    memory = region.memory
    return [int.from_bytes(memory[at + 8 : at + 16], "little") for at in range(0, len(memory), RECORD)]


def taken(source: Intake) -> list[int]:
    return [number for _, region in source.regions() for number in numbers(region)]


@pytest.fixture
def buffer() -> Iterator[Fake]:
    made = Fake()
    yield made
    os.close(made.event)


def within(seconds: float, true) -> bool:
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.002)
    return True


# ------------------------------------------------------------------------------------------------ the tick


def test_the_tick_doubles_up_to_its_longest():
    pace = Pace()

    ticks = [pace.pause(now / 100) for now in range(10)]

    assert ticks[0] == 2 * SHORTEST_TICK_S
    assert all(later == min(TICK_S, 2 * sooner) for sooner, later in pairwise(ticks))
    assert ticks[-1] == TICK_S


@given(part=st.floats(0.001, 1), passed=st.floats(0.0005, 0.02))
def test_no_more_than_a_quarter_of_a_buffer_fills_in_a_tick_at_the_rate_of_before(part, passed):
    pace = Pace()
    for turn in range(12):
        pace.took(part)
        pause = pace.pause(turn * passed)

    assert pause == SHORTEST_TICK_S or pause / passed * part < 0.2501


def test_after_a_pause_the_rate_of_before_says_nothing():
    pace = Pace()
    pace.took(1)
    pace.pause(0)
    pace.idle()
    pace.took(1)

    assert pace.pause(0.001) == 4 * SHORTEST_TICK_S


def test_while_records_come_the_reader_sleeps_and_then_waits_for_the_kernel(buffer):
    watch = Watch([reader(buffer)])
    assert watch.look(0) == (0, intake.IDLE_S)

    buffer.put(1)
    list(watch.regions())
    pause_s, wait_s = watch.look(0.1)
    assert pause_s > 0 == wait_s
    list(watch.regions())

    assert watch.look(0.2) == (0, intake.IDLE_S)
    watch.close()


def test_a_record_that_is_still_written_is_looked_for_soon_but_not_busily(buffer):
    watch = Watch([reader(buffer)])
    buffer.produced += RECORD - 1

    looks = []
    for now in range(12):
        list(watch.regions())
        looks.append(watch.look(now))

    assert looks[0] == (intake.SHORTEST_SPARE_S, 0)
    assert looks[-1] == (intake.LONGEST_SPARE_S, 0)
    watch.close()


def test_a_program_that_wakes_nobody_is_looked_at_by_timer(buffer):
    watch = Watch([reader(buffer)])
    for _ in range(intake.SILENT):
        buffer.put(1, wake=False)
        watch.woke(timed_out=True)
        list(watch.regions())
        list(watch.regions())

    assert watch.look(0) == (0, intake.IDLE_BY_TIMER_S)
    watch.close()


def test_a_program_that_wakes_its_reader_is_not(buffer):
    watch = Watch([reader(buffer)])
    for _ in range(10):
        buffer.put(1)
        watch.woke(timed_out=False)
        list(watch.regions())
        list(watch.regions())

    assert watch.look(0) == (0, intake.IDLE_S)
    watch.close()


# ------------------------------------------------------------------------------------------------ a thread beside


def test_a_slow_taker_gets_a_thread_beside_it_and_every_record_once_in_order(buffer):
    source = Intake([reader(buffer)], 4 << 20)
    buffer.put(20)
    seen = []
    for _, region in source.regions():
        seen += numbers(region)
        if len(seen) == 4:
            time.sleep(2 * TICK_S)
    assert source.beside
    for _ in range(5):
        buffer.put(7)
        time.sleep(0.01)
    assert within(2, lambda: not buffer.waiting())

    assert seen + taken(source) == list(range(55))
    source.close()


def test_a_quick_taker_gets_none(buffer):
    source = Intake([reader(buffer)], 4 << 20)
    buffer.put(20)

    assert taken(source) == list(range(20))
    assert not source.beside
    source.close()


def test_without_room_for_a_backlog_there_is_no_thread(buffer):
    source = Intake([reader(buffer)], 0)
    buffer.put(1)
    for _ in source.regions():
        source.give_away()

    assert not source.beside
    source.close()


def test_while_a_write_blocks_the_buffer_is_read(buffer):
    source = Intake([reader(buffer)], 4 << 20)
    buffer.put(20)
    seen = []
    for _, region in source.regions():
        seen += numbers(region)
        if len(seen) == 4:
            source.give_away()
            assert within(2, lambda: not buffer.waiting())

    assert seen == list(range(20))
    source.close()


def test_what_is_lent_is_given_back_when_the_next_is_asked_for(buffer):
    source = Intake([reader(buffer)], 4 << 20)
    source.shows = True
    buffer.put(10)
    left = [buffer.waiting() // RECORD for _ in source.regions()]

    assert left == [10, 6, 2]
    assert not buffer.waiting()
    source.close()


def test_what_is_lent_is_kept_and_not_read_again_when_another_thread_reads(buffer):
    source = Intake([reader(buffer)], 4 << 20)
    source.shows = True
    buffer.put(100)
    seen = []
    for _, region in source.regions():
        seen += numbers(region)
        if not source.beside:
            source.give_away()
            assert buffer.kept == [4 * RECORD]

    assert within(2, lambda: seen.extend(taken(source)) or len(seen) == 100)
    assert seen == list(range(100))
    source.close()


def test_what_is_lent_when_an_error_ends_the_loop_is_not_read_again(buffer):
    source = Intake([reader(buffer)], 4 << 20)
    source.shows = True
    buffer.put(10)
    regions = source.regions()
    next(regions)
    regions.close()

    assert taken(source) == list(range(4, 10))
    source.close()


def test_a_full_backlog_leaves_records_where_the_kernel_counts(buffer):
    source = Intake([reader(buffer)], intake.LIMIT + 10 * RECORD)
    buffer.put(100)
    seen: list[int] = []
    for _, region in source.regions():
        seen += numbers(region)
        if not source.beside:
            source.give_away()
            time.sleep(0.1)
            assert buffer.waiting() == (100 - 4 - 12) * RECORD
    assert within(2, lambda: seen.extend(taken(source)) or len(seen) == 100)

    assert seen == list(range(100))
    assert not source.dropped
    source.close()


def test_where_nobody_counts_a_full_backlog_drops_records_and_counts_them(buffer):
    source = Intake([reader(buffer, countable=False)], intake.LIMIT + 10 * RECORD)
    buffer.put(100)
    seen = []
    for _, region in source.regions():
        seen += numbers(region)
        if not source.beside:
            source.give_away()
            assert within(2, lambda: not buffer.waiting())

    assert seen == list(range(16))
    assert source.dropped == {"calls": 84}
    source.close()


def test_after_the_thread_its_backlog_comes_before_what_is_in_the_buffer(buffer):
    source = Intake([reader(buffer)], intake.LIMIT + 10 * RECORD)
    buffer.put(100)
    for _, region in source.regions():
        seen = numbers(region)
        source.give_away()
        time.sleep(0.05)
        break
    source.take_back()
    assert not source.beside

    assert seen + taken(source) == list(range(100))
    source.close()


def test_it_is_ready_when_the_backlog_has_something(buffer):
    source = Intake([reader(buffer)], 4 << 20)
    buffer.put(1)
    for _ in source.regions():
        source.give_away()
    with intake.select.epoll() as poll:
        poll.register(source.fileno(), intake.select.EPOLLIN)
        assert not poll.poll(0.05)
        buffer.put(3)
        assert poll.poll(2)
        source.woke(timed_out=False)
        assert taken(source) == [1, 2, 3]
        assert not poll.poll(0.05)
    source.close()


def test_what_goes_wrong_beside_is_raised_where_records_are_taken(buffer):
    source = Intake([reader(buffer)], 4 << 20)
    buffer.put(1)
    for _ in source.regions():
        source.give_away()
    buffer.fails = True
    buffer.put(1)

    with pytest.raises(OSError, match="it is broken"):
        within(2, lambda: taken(source))
    source.close()
