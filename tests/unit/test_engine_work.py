"""What the fast engine does when things are large, full, hostile or forgotten."""

import random
import struct
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igrun.engine import Cell, Csv, Json, Slot, Template, Text, loaded, machine
from igrun.engine.fast import Fast
from igrun.engine.reference import ENGINE
from igrun.record import (
    At,
    Batch,
    Compare,
    DataSource,
    Derived,
    Duration,
    Facts,
    Field,
    Framing,
    Kind,
    Lookup,
    Region,
    Rest,
    Size,
    Time,
)
from tests.unit.test_engine import hostile, perf, ring
from tests.unit.test_engine_fast import LAYOUTS, fields, forms, table, tries

FAST = Fast()
NO_FACTS = Facts({})
JSON = Json()
NUMBER = Field("n", "<u8", At(0))
SIGNED = Field("n", "<i8", At(0))


def batch(engine, region, facts=NO_FACTS, size=8, **more):
    return Batch(DataSource("s", Kind.EVENTS, (), size=size), region, engine.columns(facts), **more)


def text(engine, region, template, facts=NO_FACTS, keep=None, size=8):
    printed = engine.printer(template, keep, facts)(batch(engine, region, facts, size))
    return bytes(printed.text), printed.rows, printed.filtered


def same(region, template, facts=NO_FACTS, keep=None, size=8):
    """What both print."""
    slow = text(ENGINE, region, template, facts, keep, size)
    quick = text(FAST, region, template, facts, keep, size)
    assert quick == slow
    return quick[0]


def numbers(*values, code="Q"):
    return Region(b"".join(struct.pack(f"<{code}", value) for value in values), Framing.FIXED, 8)


def line(field, form=JSON):
    return Template((Slot(field, form), b"\n"))


# ---------------------------------------------------------------------------------------------- large


def test_a_text_larger_than_any_buffer_is_whole():
    field = Field("t", "T", Rest())
    records = [bytes([65 + at]) * 700_000 + b'"' for at in range(20)]

    printed = same(Region(ring(*records), Framing.RING), line(field), size=0)

    assert len(printed) == 20 * 700_005


def test_a_record_larger_than_all_others_is_printed():
    field, rest = Field("t", "|S60000", At(4)), Field("r", "O", Rest())
    records = [b"\1" * 10, b"\2" * 65_536, b"\xff" * 3_000_000, b"ab"]

    for form in (Json(), Text(), Csv(), Cell(9000, ellipsis="middle")):
        same(Region(ring(*records), Framing.RING), Template((Slot(field, form), Slot(rest, form))), size=64)


@pytest.mark.parametrize("offset", [65_528, 65_529, 70_000, 1 << 22])
def test_a_field_far_behind_is_printed(offset):
    fields = [Field("n", "<u8", At(offset)), Field("t", "|S8", At(offset)), Field("f", "<f8", At(offset))]
    template = Template(tuple(Slot(field, Json()) for field in fields))

    same(Region(ring(b"short", bytes(offset % 80_000) + b"abcdefgh"), Framing.RING), template)


def test_very_many_small_records_are_found():
    region = Region(ring(*[b"%d" % (at % 10) for at in range(30_000)]), Framing.RING)

    assert same(region, line(Field("t", "|S1", At(0)), Text())).startswith(b"0\n1\n2\n")
    assert len(batch(FAST, region).where(Compare(NUMBER, "==", ord("3")))) == 3_000


def test_what_does_not_fit_into_its_memory_is_printed_all_the_same(monkeypatch):
    quick = Fast()
    region = Region(ring(*[struct.pack("<Q", at) + bytes(900) for at in range(500)]), Framing.RING)
    monkeypatch.setattr(machine, "LARGEST", 1 << 18)

    assert quick.printer(line(NUMBER), Compare(NUMBER, ">", 7), NO_FACTS)(batch(quick, region)) == ENGINE.printer(
        line(NUMBER), Compare(NUMBER, ">", 7), NO_FACTS
    )(batch(ENGINE, region))
    assert quick.columns(NO_FACTS).walk(region) == ENGINE.columns(NO_FACTS).walk(region)
    assert len(batch(quick, region).where(Compare(NUMBER, ">", 7))) == 492
    assert quick.room(1 << 20) is None


# ---------------------------------------------------------------------------------------------- tables


class Asked:
    """A table that remembers what it was asked."""

    def __init__(self):
        self.keys = []

    def __call__(self, key):
        self.keys.append(key)
        return (f"<{key}:{len(self.keys)}>",)


def named(*keys, table="t"):
    return Field("name", "T", Derived(keys, Lookup(table)))


def test_a_table_is_asked_once_for_a_key_and_again_when_told():
    asked, others = Asked(), Asked()
    facts = Facts({"t": asked, "other": others})
    template = Template((Slot(named(NUMBER), Json()), Slot(named(NUMBER, table="other"), Text()), b" "))
    print_ = FAST.printer(template, Compare(named(NUMBER), "!=", ""), facts)

    def printed(*keys):
        return bytes(print_(batch(FAST, numbers(*keys), facts)).text)

    assert printed(1, 2, 1) == b'"<1:1>"<1:1> "<2:2>"<2:2> "<1:1>"<1:1> '
    assert printed(2) == b'"<2:2>"<2:2> '
    facts.forget("t", 2)
    assert printed(2, 1) == b'"<2:3>"<2:2> "<1:1>"<1:1> '
    assert (asked.keys, others.keys) == ([1, 2, 2], [1, 2])


def test_tables_are_asked_only_for_rows_that_are_kept():
    asked = Asked()
    facts = Facts({"t": asked})

    text(FAST, numbers(1, 2, 3), line(named(NUMBER)), facts, Compare(NUMBER, "==", 2))

    assert asked.keys == [2]


def test_a_table_that_fails_fails_the_batch_and_no_other():
    facts = Facts({"t": lambda key: ({1: "one"}[key],)})
    print_ = FAST.printer(line(named(NUMBER)), None, facts)

    for keys in ((1, 2), (2, 1)):
        with pytest.raises(KeyError):
            print_(batch(FAST, numbers(*keys), facts))
    assert bytes(print_(batch(FAST, numbers(1, 1), facts)).text) == b'"one"\n"one"\n'


@pytest.mark.parametrize("limits", [{}, {"_ENTRIES": (256, 256)}, {"_POOL": (4096, 4096)}, {"_POOL": (64, 1 << 20)}])
def test_a_memo_that_is_full_starts_anew(monkeypatch, limits):
    for name, value in limits.items():
        monkeypatch.setattr(loaded, name, value)
    text_key, wide = Field("t", "|S8", At(0)), Field("w", "|V16", At(0))
    facts = Facts({"t": lambda key: (f"{key}" * (1 + hash(key) % 9),)})
    keys = [random.Random(at).randrange(2000) for at in range(5_000)]
    template = Template(
        tuple(Slot(named(*key), Json()) for key in ((NUMBER,), (text_key,), (NUMBER, text_key), (wide,)))
    )

    same(numbers(*keys), template, facts, Compare(named(NUMBER), ">", "2"))


def test_a_text_longer_than_all_that_a_memo_has_room_for(monkeypatch):
    monkeypatch.setattr(loaded, "_POOL", (4096, 1 << 16))
    facts = Facts({"t": lambda key: ("é" * key,)})

    same(numbers(1, 40_000, 2, 300_000, 3), line(named(NUMBER)), facts)


def test_the_largest_array_of_floats_that_a_memo_prints():
    for items in (64, 65):
        field = Field("f", f"({items},)<f4", At(0))
        records = [struct.pack(f"<{items}f", *(at / 7 + row for at in range(items))) for row in range(60)]
        same(Region(ring(*records), Framing.RING), line(field))


def test_columns_from_a_table_that_stand_together_are_one_look_up():
    source = [Field(f"a{part}", "T", Derived((NUMBER,), Lookup("t", part))) for part in range(3)]
    facts = Facts({"t": lambda key: ("%", f'"{key}"', "é")})
    template = Template((b"{", Slot(source[0], Json()), b"%,", Slot(source[1], Json()), b",", Slot(source[2], Json())))

    assert same(numbers(7), template, facts) == '{"%"%,"\\"7\\"","é"'.encode()
    assert len(FAST.printer(template, None, facts)._program._texts) == 1


# ---------------------------------------------------------------------------------------------- rooms


def test_a_region_in_its_own_memory_is_not_copied(monkeypatch):
    data = ring(struct.pack("<Q", 77))
    room = FAST.room(len(data))
    room[:] = data
    monkeypatch.setattr(FAST._work.machine, "write", lambda address, data: pytest.fail("copied"))

    assert FAST._work.place(room) == FAST._work.place(room)


def test_rooms_are_apart_and_come_back():
    rooms = [FAST.room(1000) for _ in range(10)]
    for at, room in enumerate(rooms):
        room[:] = bytes([at]) * 1000
    used = FAST._work.machine.lent

    assert [bytes(room) for room in rooms] == [bytes([at]) * 1000 for at in range(10)]
    slice_, rooms = rooms[3][10:], []
    assert FAST._work.machine.lent < used
    assert bytes(slice_) == b"\3" * 990


def test_there_is_an_end_of_rooms():
    quick = Fast()
    rooms = []
    while (room := quick.room(16 << 20)) is not None:
        rooms.append(room)

    assert 1 <= len(rooms) <= 4
    rooms.clear()
    del room
    assert quick.room(16 << 20) is not None


def test_a_batch_outlives_its_engine():
    quick = Fast()
    room = quick.room(24)
    room[:] = ring(struct.pack("<QQ", 5, 6))
    kept = batch(quick, Region(room, Framing.RING))
    del quick, room

    assert list(kept.values(NUMBER)) == [5]


# ---------------------------------------------------------------------------------------------- hostile


@pytest.fixture(scope="module")
def canaries():
    """Blocks among those that the engine works with; nobody may write there."""
    machine = FAST._work.machine
    blocks = []

    def more():
        for size in (1 << 10, 1 << 12, 1 << 16):
            block = machine.take(size)
            machine.write(block.address, b"\xa5" * block.size)
            blocks.append(block)

    yield more
    for block in blocks:
        assert bytes(machine.memory[block.address : block.address + block.size]) == b"\xa5" * block.size


@tries(300)
@given(
    st.one_of(hostile, st.binary(max_size=300)),
    st.sampled_from(Framing),
    st.lists(st.tuples(fields, forms), min_size=1, max_size=4),
    st.binary(min_size=64, max_size=64),
    st.integers(0, 100),
)
def test_any_memory_prints_as_by_the_reference_whatever_stands_behind_it(
    canaries, memory, framing, slots, behind, size
):
    slots = [(field, form) for field, form in slots if field.name != "side"]
    template = Template(tuple(Slot(field, form) for field, form in slots), b"\n")
    facts = Facts({"table": table}, 3)
    canaries()
    room = FAST.room(len(memory) + 64)
    room[:] = memory + behind
    time_ns, time.time_ns = time.time_ns, lambda: 1
    try:
        slow = text(ENGINE, Region(memory, framing, 5), template, facts, None, size)
        quick = text(FAST, Region(room[: len(memory)], framing, 5), template, facts, None, size)
    finally:
        time.time_ns = time_ns

    assert quick == slow


def test_lost_records_of_a_perf_buffer_are_counted():
    lost = struct.pack("<IHHQQ", 2, 0, 24, 99, 5)
    FAST.columns(NO_FACTS).walk(Region(lost + perf(9, b"x") + lost, Framing.PERF))

    assert FAST._work._walking.lost == 10


# ---------------------------------------------------------------------------------------------- single values


@pytest.mark.parametrize("form", [Json(), Cell(20), Cell(21, right=True), Cell(3), Cell(18, hex=True)])
def test_integers_of_every_length(form):
    edges = [10**at + more for at in range(20) for more in (-1, 0, 1)] + [2**at for at in range(64)] + [2**64 - 1]

    same(numbers(*edges), line(NUMBER, form))
    same(numbers(*edges), line(SIGNED, form))


@pytest.mark.parametrize("start", [5, 1_005_000])
def test_durations_round_as_doubles_do(start):
    step = 10 if start < 10**6 else 10_000

    same(numbers(*range(start, 1000 * step * 100, step * 7)), line(Field("d", "T", Derived((NUMBER,), Duration()))))


def test_sizes_round_as_doubles_do():
    edges = [
        min(unit * tenths // 20 + more, 2**64 - 1)
        for unit in (1000**p for p in range(1, 7))
        for tenths in range(199, 400)
        for more in (-1, 0, 1)
    ]
    edges += [random.Random(at).randrange(1 << at % 64 + 1) for at in range(2000)]

    same(numbers(*edges), line(Field("s", "T", Derived((NUMBER,), Size()))))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "America/St_Johns", "Africa/Monrovia"])
def test_times_in_every_zone(monkeypatch, layout, zone):
    spring = 1_774_746_000 * 10**9
    values = [
        0,
        1,
        10**18,
        spring - 1,
        spring,
        spring + 123_456_789,
        2**63,
        2**64 - 1,
        *range(spring, spring + 10**12, 10**10 + 1),
    ]
    with monkeypatch.context() as changed:
        changed.setenv("TZ", zone)
        time.tzset()
        for form in (Json(), Text(), Csv(), Cell(30), Cell(12, ellipsis="middle")):
            same(numbers(*values), line(Field("t", "T", Derived((NUMBER,), Time(layout))), form))
    time.tzset()


@pytest.mark.parametrize("form", [Json(), Csv(), Text(), Cell(20), Cell(3, ellipsis="start")])
def test_bytes_that_are_no_utf8(form):
    seconds = (0x41, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0)
    records = [bytes((first, second, 0x80, 0xBF)) for first in range(0x80, 0x100) for second in seconds]
    records += [record[:length] + end for record in records for length in (1, 2, 3) for end in (b"", b"a", b"\xc3\xa9")]

    same(Region(ring(*records), Framing.RING), line(Field("t", "|S8", At(0)), form))


@pytest.mark.parametrize("dtype", ["(8,)|S4", "(8,)|V4", "(8,)<u4", "(2,)<f8"])
def test_an_array_ends_where_its_record_does(dtype):
    records = [b"abcdefghijklmnopqrstuvwxyzABCDEF"[:length] for length in (32, 0, 3, 4, 6, 17, 31)]

    same(Region(b"".join(map(bytes, records)), Framing.FIXED, 5), line(Field("a", dtype, At(0))))
    same(Region(ring(*records), Framing.RING), line(Field("a", dtype, At(0))))


@pytest.mark.parametrize("dtype", ["|S8", "|S16", "|V16", "(16,)|u1", "|S9", "|V12"])
def test_keys_that_differ_only_in_one_byte(dtype):
    records = [b"k" * at + b"K" + b"k" * (15 - at) for at in range(16)] * 2
    facts = Facts({"t": lambda key: (repr(key),)})

    same(Region(b"".join(records), Framing.FIXED, 16), line(named(Field("k", dtype, At(0)))), facts)


def test_characters_of_every_page_in_a_cell():
    codes = [*range(0x80, 0x3100), *range(0xD700, 0x10100), *range(0x1F000, 0x20010), 0xE0001, 0x10FFFF]
    chars = [chr(code) for code in codes if not 0xD800 <= code < 0xE000]
    records = ["".join(chars[at : at + 15]).encode() for at in range(0, len(chars), 15)]
    template = Template((Slot(Field("t", "|S60", At(0)), Cell(400)), Slot(Field("t", "|S60", At(0)), Cell(7))))

    same(Region(ring(*records), Framing.RING), template)
