"""The fast engine prints what the reference prints, byte for byte, whatever the records hold.

IGRUN_EXAMPLES=100000 tries more than the suite has time for.
"""

import os
import struct
import time
from array import array

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from igrun.engine import Cell, Csv, Json, Slot, Template, Text, fast, framing
from igrun.engine.fast import Fast, Given
from igrun.engine.machine import NoRoomError
from igrun.engine.reference import ENGINE
from igrun.record import (
    Address,
    And,
    At,
    Batch,
    Compare,
    Constant,
    DataSource,
    Derived,
    Duration,
    Endpoint,
    Facts,
    Field,
    Flags,
    Framing,
    Holds,
    Kind,
    Lookup,
    Matches,
    Not,
    Or,
    Region,
    Rest,
    Side,
    Size,
    Time,
    WallClock,
)
from tests.unit.test_engine import perf, ring

EXAMPLES = int(os.environ.get("IGRUN_EXAMPLES", 0))
FAST, SMALL = Fast(), Fast()
NAME = Field("name", "T", Derived((Field("a", "<u4", At(0)),), Lookup("name")))


def tries(number):
    """The same ones each time, unless more are asked for."""
    return settings(
        max_examples=EXAMPLES or number,
        derandomize=not EXAMPLES,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
    )


def table(key):
    """Answers of every kind, by any key."""
    number = hash(key) if isinstance(key, int) else len(str(key))
    return (f'n{key}é\n"\udcff,', number & 0xFF, bool(number & 1), [f"frame {number}", 'x"'], b"\0\xff", number / 3)


ANSWERS = ("T", "<u4", "?", "(2,)|S9", "O", "<f8")


# ---------------------------------------------------------------------------------------------- what there can be

INTEGERS = ["<u1", "|i1", "<u2", "<i2", "<u4", "<i4", "<u8", "<i8", ">u2", ">i2", ">u4", ">i4", ">u8", ">i8"]
OTHERS = ["?", "|S5", "|S1", "|S16", "|S0", "|V3", "|V16", "<f4", "<f8", "<f2", ">f4", ">f8"]
ARRAYS = ["(3,)<u4", "(2,)<i8", "(4,)?", "(16,)|u1", "(2,)<f4", "(3,)|S2", "(2,)|V2", "(0,)<u4", "(1,)>i2", "(3,)>f8"]
LONG = "05." + 300 * "0"
LAYOUTS = ["2006-01-02T15:04:05.000000000Z07:00", "15:04:05.999", '"Jan" é.000 05,99', "2006", ".000000000000 .9", LONG]
offsets = st.integers(0, 40)


@st.composite
def places(draw, dtypes):
    """A field in the C struct."""
    dtype = draw(st.sampled_from(dtypes))
    bits = None
    if dtype in INTEGERS or dtype == "?":
        size = 8 * (1 if dtype == "?" else int(dtype[2:]))
        shift = draw(st.integers(0, size - 1))
        bits = draw(st.none() | st.tuples(st.just(shift), st.integers(1, size - shift)))
    return Field("f", dtype, At(draw(offsets), bits))


sides = st.sampled_from(
    [
        *(Field("side", "T", Side("text")), Field("side", "<i8", Side("int")), Field("side", "O", Side("bytes"))),
        *(Field("side", "?", Side("bool")), Field("side", "<f8", Side("float"))),
    ]
)
integers = places(INTEGERS)
rests = st.builds(lambda dtype, length: Field("rest", dtype, Rest(length)), st.sampled_from("TO"), st.none() | integers)
plain = places([*INTEGERS, *OTHERS, *ARRAYS]) | rests
wall = st.builds(
    lambda boot, dtype: Field("wall", dtype, Derived((boot,), WallClock())),
    places(["<u8", "<u8", "<i8"]),
    st.just("<u8"),
)
addresses = st.tuples(places(["|V16", "(16,)|u1"]), places(["<u1", "|i1", "<u4"]), places(INTEGERS))


def text(*sources, rule):
    return Field("t", "T", Derived(sources, rule))


looked_up = st.integers(0, len(ANSWERS) - 1).flatmap(
    lambda part: st.lists(integers | places(["?", "|S5", "|V3", "(16,)|u1", "|S16"]), min_size=1, max_size=3).map(
        lambda keys: Field("l", ANSWERS[part], Derived(tuple(keys), Lookup("table", part)))
    )
)
derived = st.one_of(
    wall,
    looked_up,
    st.sampled_from(["x", 'a,"b"\n', "é\u2028", ""]).map(lambda value: text(rule=Constant(value))),
    st.builds(lambda one, layout: text(one, rule=Time(layout)), wall | integers, st.sampled_from(LAYOUTS)),
    st.builds(lambda one: text(one, rule=Duration()), integers),
    st.builds(lambda one: text(one, rule=Size()), integers),
    st.builds(lambda one: text(one, rule=Flags(((1, "A"), (6, "BC"), (1 << 63, "Z")), ("", "M"))), integers),
    addresses.map(lambda fields: text(*fields[:2], rule=Address())),
    addresses.map(lambda fields: text(*fields, rule=Endpoint())),
)
fields = st.one_of(plain, plain, derived, derived, sides)
forms = st.one_of(
    st.builds(Json, st.none() | st.integers(0, 4)),
    st.builds(
        Cell,
        st.integers(0, 20) | st.integers(0, 600),
        st.booleans(),
        st.sampled_from(["", "start", "middle", "end"]),
        st.integers(0, 3),
        st.booleans(),
    ),
    st.sampled_from([Json(), Text(), Csv()]),
)
literals = st.sampled_from([b"", b",", b"100%", b'{"a long name of a field": ', b"\n"])
templates = st.builds(
    lambda pieces, between: Template(tuple(one for pair in pieces for one in pair), between),
    st.lists(st.tuples(literals, st.builds(Slot, fields, forms)), max_size=6),
    literals,
)

TEXTS = [
    b"",
    b"a",
    b"cat",
    b"/etc/passwd",
    b'a"b\\c\n\x01\x7f',
    "é€😀".encode(),
    b"\xff\xe2\x82",
    b"\xe2\x80\xa8\xe2\x80\xa9",
]
NUMBERS = [0, 1, 2, 4, 6, 9, 10, 99, 100, 999, 1000, 1005, 2**31, 2**53, 2**63, 2**64 - 1, 10**18 + 5, 999999999]
NUMBERS += [1125, 1995, 999995, 1005000, 125000, 10**9, 3661 * 10**9, 15, 9950, 99500, 1795217215274914134]
contents = st.one_of(
    st.binary(max_size=70),
    st.lists(
        st.one_of(
            st.sampled_from(TEXTS),
            st.sampled_from(NUMBERS).map(lambda number: number.to_bytes(8, "little")),
            st.floats(allow_nan=True).map(lambda number: struct.pack("<d", number)),
            st.floats(width=32).map(lambda number: struct.pack("<f", number)),
            st.integers(0, 9).map(lambda count: bytes(count)),
            st.text(max_size=6).map(lambda text: text.encode("utf-8", "surrogatepass")),
        ),
        max_size=9,
    ).map(b"".join),
)


@st.composite
def regions(draw):
    kind = draw(st.sampled_from(Framing))
    records = draw(st.lists(contents, max_size=6))
    if kind is Framing.FIXED:
        stride = draw(st.integers(-1, 60))
        return Region(b"".join(records), kind, stride)
    if kind is Framing.PERF:
        kinds = st.sampled_from([9, 9, 9, 2, 11])
        return Region(b"".join(perf(draw(kinds), record) for record in records), kind)
    flags = draw(st.lists(st.sampled_from([0, 0, 0, 0, 1 << 30, 1 << 31]), max_size=6))
    return Region(ring(*records, flags=flags), kind)


def comparisons(field):
    """A predicate on one field, with a value of its type."""
    kind = field.dtype.lstrip("<|>")[0]
    values = {
        "u": st.sampled_from(NUMBERS) | st.integers(-3, 300),
        "i": st.sampled_from(NUMBERS) | st.integers(-300, 300),
        "f": st.floats() | st.integers(-3, 3),
        "?": st.booleans(),
        "S": st.sampled_from(TEXTS).map(lambda raw: raw.decode("utf-8", "surrogateescape")) | st.text(max_size=3),
    }
    values["T"] = values["S"]
    if kind not in values:
        return st.just(And(()))
    order = st.sampled_from(["==", "!=", "<", "<=", ">", ">="])
    compare = st.builds(Compare, st.just(field), order, values[kind])
    if kind not in "ST":
        return compare
    pattern = st.sampled_from(["a", "^a", "^/etc/", "", "c.t", "[ab]$", r"\.", "é", "^n1", r"a\"b", "\u2028", "^"])
    return compare | st.builds(Matches, st.just(field), pattern)


def is_even(values):
    """Of any values."""
    return len(repr(values)) % 2 == 0


judged = st.lists(fields, max_size=2).map(lambda several: Holds(tuple(several), is_even))
predicates = st.recursive(
    fields.flatmap(comparisons) | judged,
    lambda inner: st.one_of(
        st.builds(Not, inner),
        st.lists(inner, max_size=3).map(lambda terms: And(tuple(terms))),
        st.lists(inner, max_size=3).map(lambda terms: Or(tuple(terms))),
    ),
    max_leaves=5,
)


@st.composite
def cases(draw):
    region = draw(regions())
    number = len(framing.walk(region).offsets)
    columns = {
        "text": [draw(st.sampled_from(TEXTS)).decode("utf-8", "surrogateescape") for _ in range(number)],
        "int": [draw(st.integers(-(2**63), 2**63 - 1)) for _ in range(number)],
        "bytes": [draw(st.binary(max_size=3)) for _ in range(number)],
        "bool": [draw(st.booleans()) for _ in range(number)],
        "float": [draw(st.floats()) for _ in range(number)],
    }
    rows = st.lists(st.integers(0, number - 1), max_size=8) if number else st.just([])
    selected = draw(st.none() | rows | rows.map(lambda rows: array("I", rows)))
    return region, columns, selected, draw(st.integers(0, 50))


# ---------------------------------------------------------------------------------------------- and that it is the same


@pytest.fixture(autouse=True, scope="module")
def fixed_time():
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(time, "time_ns", lambda: 1795217215274914134)
        yield


def both(case, facts, ask):
    """What the two engines answer about the same batch."""
    region, columns, selected, size = case
    answers = []
    for engine in (ENGINE, FAST):
        source = DataSource("s", Kind.EVENTS, (), size=size)
        batch = Batch(source, region, engine.columns(facts), None, columns, selected)
        answers.append(ask(engine, batch))
    return answers


def printed(template, keep, facts):
    def ask(engine, batch):
        text, rows, filtered = engine.printer(template, keep, facts)(batch)
        return bytes(text), rows, filtered, batch.walked()

    return ask


@tries(400)
@given(cases(), templates, st.none() | predicates, st.integers(-5, 1 << 60))
def test_it_prints_like_the_reference(case, template, keep, offset):
    facts = Facts({"table": table}, offset)
    slow, fast = both(case, facts, printed(template, keep, facts))

    assert fast == slow


@tries(300)
@given(cases(), predicates)
def test_it_keeps_the_rows_that_the_reference_keeps(case, keep):
    facts = Facts({"table": table})
    slow, fast = both(case, facts, lambda engine, batch: list(engine.columns(facts).where(batch, keep)))

    assert fast == slow


@tries(300)
@given(regions())
def test_it_walks_like_the_reference(region):
    assert FAST.columns(Facts({})).walk(region) == framing.walk(region)


@tries(200)
@given(cases(), plain | derived, forms)
def test_it_prints_each_kind_of_value_like_the_reference(case, field, form):
    facts = Facts({"table": table}, 7)
    slow, fast = both(case, facts, printed(Template((Slot(field, form),), b"\n"), None, facts))

    assert fast == slow


@pytest.fixture
def scarce(monkeypatch):
    """An engine that has room for one record's text, and whose memory runs out after so many blocks."""
    work = SMALL._work
    take, left = work.machine.take, [1 << 30]

    def taken(size, zeros=False):
        left[0] -= 1
        if left[0] < 0:
            raise NoRoomError
        return take(size, zeros=zeros)

    def after(number):
        work.out = take(1)
        left[0] = number

    monkeypatch.setattr(work.machine, "take", taken)
    return after


def in_parts(engine, batch, template, keep, facts, before=lambda: None):
    parts, printer = [], engine.printer(template, keep, facts)
    before()
    last, rows, filtered = printer(batch, lambda text: parts.append(bytes(text)))
    return b"".join([*parts, last]), rows, filtered


@tries(300)
@given(cases(), templates, st.none() | predicates, st.integers(-5, 1 << 60))
def test_text_that_is_given_away_in_parts_is_the_same(scarce, case, template, keep, offset):
    facts = Facts({"table": table}, offset)
    region, columns, selected, size = case
    source = DataSource("s", Kind.EVENTS, (), size=size)
    ours, theirs = (
        in_parts(engine, batch, template, keep, facts, lambda: scarce(1 << 30))
        for engine in (SMALL, ENGINE)
        for batch in [Batch(source, region, engine.columns(facts), None, columns, selected)]
    )
    assert ours == theirs


@pytest.mark.parametrize("keep", [None, Compare(Field("a", "<u4", At(0)), "!=", 7), Matches(NAME, "[02468]!")])
@pytest.mark.parametrize("blocks", [0, 1, 2, 50, 700, 1500, 1 << 30])
def test_where_memory_runs_out_the_reference_goes_on_with_the_next_record(scarce, monkeypatch, blocks, keep):
    begun = []
    monkeypatch.setattr(fast, "Given", lambda: begun.append(Given()) or begun[-1])
    source = DataSource("s", Kind.EVENTS, (Field("a", "<u4", At(0)), NAME), size=4)
    region = Region(ring(*(struct.pack("<I", number) for number in range(2000))), Framing.RING)
    facts = Facts({"name": lambda number: (f"{number}!",)})
    template = Template((b"<", Slot(NAME, Json()), b">"), b", ")
    ours, theirs = (
        in_parts(engine, Batch(source, region, engine.columns(facts)), template, keep, facts, lambda: scarce(blocks))
        for engine in (SMALL, ENGINE)
    )
    assert ours == theirs
    assert 0 < begun[0].at < 2000 or blocks < 700


def test_each_part_of_a_text_ends_with_a_record():
    source = DataSource("s", Kind.EVENTS, (field := Field("a", "<u4", At(0)),), size=4)
    region = Region(ring(*(struct.pack("<I", number) for number in range(5000))), Framing.RING)
    facts, parts = Facts({}), []
    for engine in (ENGINE, SMALL):
        parts.clear()
        SMALL._work.out = SMALL._work.machine.take(1 << 10)
        printer = engine.printer(Template((b"<", Slot(field, Text()), b">\n")), None, facts)
        last, rows, _ = printer(Batch(source, region, engine.columns(facts)), lambda text: parts.append(bytes(text)))
        assert b"".join([*parts, last]).split(b"\n") == [*(b"<%d>" % number for number in range(5000)), b""]
        assert rows == 5000 and len(parts) > 10
        assert all(part.endswith(b">\n") for part in parts)
