"""Batches as Arrow columns hold what their rows do, with types."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igrun.engine.columnar import columns, maker, record_batch, schema
from igrun.engine.reference import ENGINE
from igrun.errors import ParamError
from igrun.outputs.fields import picked
from igrun.record import (
    Address,
    At,
    Batch,
    Constant,
    DataSource,
    Derived,
    Duration,
    Facts,
    Field,
    Flags,
    Framing,
    Kind,
    Lookup,
    Region,
    Rest,
    Side,
    Size,
    Time,
    WallClock,
)
from tests.unit.test_engine import perf, ring

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install igrun[arrow]")

PLAIN = ["<u1", "|u1", "<i1", "<u2", "<i2", "<u4", "<i4", "<u8", "<i8", "<f4", "<f8", "?", ">u2", ">u4", "|S1", "|S16"]
PLAIN += ["|V5", "(3,)<u4", "(2,)|S4", "(4,)?", "(2,)|V3"]
SIZES = {"?": 1, "(3,)<u4": 12, "(2,)|S4": 8, "(4,)?": 4, "(2,)|V3": 6}
ERRNO = {2: "ENOENT", 13: "EACCES"}
FACTS = Facts({"errno": lambda key: (ERRNO.get(key, str(key)),)}, wall_minus_boot_ns=10**18)


def size_of(dtype: str) -> int:
    return SIZES.get(dtype) or int(dtype[2:])


def table_of(source: DataSource, region: Region, facts: Facts = FACTS, **more):
    batch = Batch(source, region, ENGINE.columns(facts), **more)
    fields = columns(source)
    made = record_batch(batch, fields, facts)
    made.validate(full=True)
    assert made.schema == schema(fields)
    return batch, made


def same(value, expected) -> bool:
    if isinstance(expected, list):
        return len(value) == len(expected) and all(map(same, value, expected))
    if isinstance(expected, float) and expected != expected:
        return value != value
    if isinstance(expected, str):
        expected = expected.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return value == expected


@st.composite
def layouts(draw):
    fields, at = [], 0
    for number, dtype in enumerate(draw(st.lists(st.sampled_from(PLAIN), min_size=1, max_size=8))):
        at += draw(st.integers(0, 3))
        fields.append(Field(f"f{number}", dtype, At(at)))
        at += size_of(dtype)
    return DataSource("s", Kind.EVENTS, tuple(fields), size=at + draw(st.integers(0, 9)))


def regions(size: int):
    """Regions of records as long as the struct, or shorter, or longer."""
    exact = st.binary(min_size=size, max_size=size)
    any_length = st.binary(min_size=0, max_size=size + 20)
    rings = st.lists(exact, max_size=6) | st.lists(any_length, max_size=6)
    return (
        rings.map(lambda records: Region(ring(*records), Framing.RING))
        | rings.map(lambda records: Region(b"".join(perf(9, one) for one in records), Framing.PERF))
        | st.lists(exact, max_size=6).map(lambda records: Region(b"".join(records), Framing.FIXED, size))
    )


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_columns_hold_what_rows_do(data):
    source = data.draw(layouts())
    region = data.draw(regions(source.size))
    whole = Batch(source, region, ENGINE.columns(FACTS))
    selected = data.draw(st.none() | st.lists(st.integers(0, max(len(whole) - 1, 0)), max_size=6))
    if selected is not None and not len(whole):
        selected = []

    batch, made = table_of(source, region, selected=selected)

    assert made.num_rows == len(batch)
    for field in source.fields:
        values = made.column(field.name).to_pylist()
        assert all(map(same, values, batch.values(field))), field


def events(*numbers: int, form: str = "<Q") -> Region:
    return Region(ring(*(struct.pack(form, number) for number in numbers)), Framing.RING)


def derived(rule, dtype="T", raw="<u8", *more: Field) -> DataSource:
    of = Field("raw", raw, At(0), hidden=True)
    return DataSource("s", Kind.EVENTS, (of, Field("made", dtype, Derived((of, *more), rule))), size=8)


def made_of(source: DataSource, region: Region):
    return table_of(source, region)[1].column("made")


def test_times_are_timestamps():
    boot = Field("boot", "<u8", At(0))
    wall = Field("wall", "<u8", Derived((boot,), WallClock()))
    text = Field("time", "T", Derived((wall,), Time()))
    source = DataSource("s", Kind.EVENTS, (boot, wall, text), size=8)
    _, made = table_of(source, events(1_000_000, 5))

    assert made.schema.field("time").type == pa.timestamp("ns", "UTC")
    assert made.column("time") == made.column("wall")
    assert made.column("time").cast(pa.int64()).to_pylist() == [10**18 + 1_000_000, 10**18 + 5]


def test_durations_and_sizes_are_numbers():
    assert made_of(derived(Duration()), events(1500, 7)).cast(pa.int64()).to_pylist() == [1500, 7]
    assert made_of(derived(Size()), events(4096)).to_pylist() == [4096]


def test_names_are_dictionaries_and_each_is_asked_for_once():
    asked = []

    def table(key):
        asked.append(key)
        return (ERRNO.get(key, ""),)

    source = derived(Lookup("errno"), raw="<u4")
    _, made = table_of(source, events(*[2, 13, 2, 2] * 50, form="<I"), Facts({"errno": table}))
    column = made.column("made")

    assert pa.types.is_dictionary(column.type)
    assert column.to_pylist() == ["ENOENT", "EACCES", "ENOENT", "ENOENT"] * 50
    assert sorted(asked) == [2, 13]


def test_many_distinct_names_are_right_too():
    source = derived(Flags(((1, "A"), (2, "B"))), raw="<u4")
    batch, made = table_of(source, events(*range(300), form="<I"))

    assert made.column("made").to_pylist() == list(batch.values("made"))


def test_a_constant_is_in_every_row():
    assert made_of(derived(Constant("node-1")), events(1, 2)).to_pylist() == ["node-1", "node-1"]


def test_addresses_are_text():
    address, version = Field("a", "(16,)|u1", At(0), hidden=True), Field("v", "|u1", At(16), hidden=True)
    text = Field("made", "T", Derived((address, version), Address()))
    source = DataSource("s", Kind.EVENTS, (address, version, text), size=17)

    assert made_of(source, Region(ring(bytes([127, 0, 0, 1]).ljust(16, b"\0") + b"\4"), Framing.RING)).to_pylist() == [
        "127.0.0.1"
    ]


def test_what_follows_the_struct_and_what_stands_beside_it_are_columns():
    fields = Field("n", "<u4", At(0)), Field("rest", "O", Rest()), Field("side", "T", Side("k"))
    source = DataSource("s", Kind.EVENTS, fields, size=4)
    region = Region(ring(b"\1\0\0\0abc", b"\2\0\0\0"), Framing.RING)
    _, made = table_of(source, region, sides={"k": ["x", "y"]})

    assert made.to_pydict() == {"n": [1, 2], "rest": [b"abc", b""], "side": ["x", "y"]}


def test_text_ends_at_the_first_nul_and_bytes_that_are_no_text_are_marked():
    source = DataSource("s", Kind.EVENTS, (Field("made", "|S6", At(0)),), size=6)
    region = Region(ring(b"ab\0cd\0", b"\xff\xfeabc", b"\xc3\xa9\0\xff\xff\xff"), Framing.RING)

    assert made_of(source, region).to_pylist() == ["ab", "\ufffd\ufffdabc", "é"]


def test_fields_stand_in_the_order_of_columns_without_structs_that_have_members():
    a, b = Field("a", "<u4", At(0), order=2), Field("b.c", "<u4", At(4), order=1, annotations={"columns.alias": "x"})
    source = DataSource("s", Kind.EVENTS, (a, Field("b", "|V4", At(4)), b, Field("none", None, None)), size=8)

    assert [field.name for field in columns(source)] == ["b.c", "a"]
    assert [field.name for field in picked(source, "a", columns(source))] == ["a"]
    assert [field.name for field in picked(source, "-a", columns(source))] == ["b.c"]
    with pytest.raises(ParamError):
        picked(source, "other", columns(source))
    assert schema(columns(source)).field("b.c").metadata == {b"columns.alias": b"x"}


def test_an_empty_batch_has_the_columns_all_the_same():
    for rule in (Lookup("errno"), Duration(), Time(), Constant("x")):
        assert len(made_of(derived(rule), events())) == 0


def test_texts_of_the_batch_before_are_not_those_of_other_values():
    source = derived(Lookup("errno"))
    make = maker(columns(source), FACTS)
    batches = [Batch(source, events(*some), ENGINE.columns(FACTS)) for some in ((2, 13, 2), (2, 13, 2), (13, 5), ())]

    assert [make(batch).column("made").to_pylist() for batch in batches] == [
        ["ENOENT", "EACCES", "ENOENT"],
        ["ENOENT", "EACCES", "ENOENT"],
        ["EACCES", "5"],
        [],
    ]


def test_a_table_that_forgets_is_asked_again():
    names = iter(["before", "after"])
    facts = Facts({"errno": lambda key: (next(names),)})
    source = derived(Lookup("errno"))
    make = maker(columns(source), facts)

    def made():
        return make(Batch(source, events(7, 7), ENGINE.columns(facts))).column("made").to_pylist()

    assert (made(), made()) == (["before"] * 2, ["before"] * 2)
    facts.forget("errno", 7)
    assert made() == ["after"] * 2
