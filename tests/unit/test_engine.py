"""The record engine against slow and obvious versions of itself."""

import socket
import struct
import time
from array import array

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igrun.engine import Cell, Json, Slot, Template, Text, gotime, rules
from igrun.engine.framing import walk
from igrun.engine.reference import ENGINE
from igrun.engine.shapes import shape
from igrun.engine.texts import json_text, shortest
from igrun.errors import ParamError
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

NO_FACTS = Facts({})


def batch_of(source, *records, framing=Framing.RING, facts=NO_FACTS, **more):
    region = Region(ring(*records), framing) if framing is Framing.RING else records[0]
    return Batch(source, region, ENGINE.columns(facts), **more)


def source_of(*fields, size=16):
    return DataSource("s", Kind.EVENTS, fields, size=size)


def ring(*records, flags=()):
    """A ring buffer's memory. flags: what stands above the length of each record."""
    memory = b""
    for at, record in enumerate(records):
        word = len(record) | (flags[at] if at < len(flags) else 0)
        memory += struct.pack("<II", word, 0) + record + bytes(-len(record) % 8)
    return memory


def perf(kind, raw, size=None):
    body = struct.pack("<I", len(raw) if size is None else size) + raw
    body += bytes(-(len(body)) % 8)
    return struct.pack("<IHH", kind, 0, 8 + len(body)) + body


def found(region):
    offsets, lengths = walk(region)
    return [bytes(region.memory[at : at + length]) for at, length in zip(offsets, lengths, strict=True)]


# ---------------------------------------------------------------------------------------------- walking


def slow_ring(memory):
    records = []
    while len(memory) >= 8:
        word = int.from_bytes(memory[:4], "little")
        length = word % 2**30
        if word >= 2**31 or len(memory) < 8 + length:
            break
        if word < 2**30:
            records.append(memory[8 : 8 + length])
        memory = memory[8 + (length + 7) // 8 * 8 :]
    return records


def slow_perf(memory):
    records = []
    while len(memory) >= 8:
        kind, _, size = struct.unpack("<IHH", memory[:8])
        if size < 8 or size > len(memory):
            break
        body = memory[8:size]
        if kind == 9 and len(body) >= 4 and int.from_bytes(body[:4], "little") <= len(body) - 4:
            records.append(body[4 : 4 + int.from_bytes(body[:4], "little")])
        memory = memory[size:]
    return records


pieces = st.one_of(
    st.binary(max_size=12),
    st.builds(lambda r, f: ring(r, flags=[f]), st.binary(max_size=20), st.sampled_from([0, 0, 0, 1 << 30, 1 << 31])),
    st.builds(lambda k, r: perf(k, r), st.sampled_from([9, 9, 2, 11]), st.binary(max_size=20)),
    st.builds(lambda k, r, s: perf(k, r, s), st.sampled_from([9, 2]), st.binary(max_size=20), st.integers(0, 30)),
)
memories = st.lists(pieces, max_size=8).map(b"".join)


@given(memories)
def test_any_memory_walks_as_a_ring_like_its_slow_version(memory):
    assert found(Region(memory, Framing.RING)) == slow_ring(memory)


@given(memories)
def test_any_memory_walks_as_a_perf_buffer_like_its_slow_version(memory):
    assert found(Region(memory, Framing.PERF)) == slow_perf(memory)


@given(memories, st.integers(-1, 20))
def test_any_memory_walks_in_strides(memory, stride):
    whole = len(memory) // stride if stride > 0 else 0

    assert found(Region(memory, Framing.FIXED, stride)) == [memory[at * stride :][:stride] for at in range(whole)]


def test_busy_ends_a_ring_and_discarded_records_are_skipped():
    memory = ring(b"one", b"two", b"three", b"four", flags=[0, 1 << 30, 0, 1 << 31])

    assert found(Region(memory, Framing.RING)) == [b"one", b"three"]


def test_lost_records_of_a_perf_buffer_are_skipped():
    memory = perf(9, b"one!") + perf(2, bytes(16)) + perf(9, b"two!")

    assert found(Region(memory, Framing.PERF)) == [b"one!", b"two!"]


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_memory_can_be_of_any_kind(kind):
    batch = batch_of(source_of(Field("a", "<u4", At(0)), Field("t", "|S4", At(4))), b"\1\0\0\0abc")
    batch.region = Region(kind(batch.region.memory), Framing.RING)

    assert list(batch.rows()) == [{"a": 1, "t": "abc"}]
    assert batch.numpy().tolist() == [(1, b"abc")]


# ---------------------------------------------------------------------------------------------- values

DTYPES = [
    *(
        "<u1",
        "|i1",
        "<u2",
        "<i2",
        "<u4",
        "<i4",
        "<u8",
        "<i8",
        ">u2",
        ">i4",
        ">u8",
        "<f4",
        "<f8",
        "?",
        "|S5",
        "|S1",
        "|V3",
    ),
    *("(3,)<u4", "(2,)<i8", "(4,)?", "(2,)|u1", "(2,)<f4", "(3,)|S2", "(0,)<u4"),
]
layouts = st.lists(st.tuples(st.sampled_from(DTYPES), st.integers(0, 24)), min_size=1, max_size=6)


def obvious(raw, dtype, offset):
    """The value as numpy reads it."""
    kind = np.dtype(dtype)
    item = raw[offset : offset + kind.itemsize].ljust(kind.itemsize, b"\0")
    if kind.base.kind == "b":
        item = bytes(byte != 0 for byte in item)
    if kind.itemsize == 0:
        return []
    value = np.frombuffer(item, kind.base).tolist()
    if kind.base.kind == "S":
        size = kind.base.itemsize
        value = [
            item[at : at + size].split(b"\0")[0].decode("utf-8", "surrogateescape") for at in range(0, len(item), size)
        ]
    return value if kind.shape else value[0]


def same(one, other):
    return repr(one) == repr(other)  # NaN is not itself


@given(layouts, st.lists(st.binary(max_size=60), max_size=5))
def test_fields_read_like_numpy_reads_them(layout, records):
    fields = [Field(f"f{at}", dtype, At(offset)) for at, (dtype, offset) in enumerate(layout)]
    batch = batch_of(source_of(*fields, size=60), *records)

    for field in fields:
        wanted = [obvious(record, field.dtype, field.place.offset) for record in records]
        assert same(list(batch.values(field)), wanted)
        array = batch.numpy(field.name)[field.name].tolist()
        if np.dtype(field.dtype).base.kind == "S":
            texts = np.vectorize(lambda text: text.encode("utf-8", "surrogateescape"), otypes=["O"])
            wanted = [texts(value).tolist() if value != [] else [] for value in wanted]
        assert same(array, wanted)


@given(st.binary(max_size=12), st.integers(0, 31), st.integers(1, 32), st.sampled_from(["<u4", "<i4", ">u4", "<u8"]))
def test_bits_are_shifted_out_and_keep_their_sign(record, shift, width, dtype):
    size = int(dtype[2:])
    width = min(width, 8 * size - shift)
    number = int.from_bytes(record[:size].ljust(size, b"\0"), "big" if dtype[0] == ">" else "little")
    wanted = number >> shift & (2**width - 1)
    if dtype[1] == "i" and wanted >= 2 ** (width - 1):
        wanted -= 2**width

    assert list(batch_of(source_of(), record).values(Field("b", dtype, At(0, (shift, width))))) == [wanted]


def test_a_bool_can_be_a_bit():
    batch = batch_of(source_of(), b"\4")

    assert [list(batch.values(Field("b", "?", At(0, (shift, 1))))) for shift in (1, 2)] == [[False], [True]]


def test_fields_upon_each_other_are_read_each():
    fields = (Field("u", "<u4", At(0)), Field("h", "<u2", At(2)), Field("raw", "|V4", At(0)), Field("s", "<i4", At(0)))

    rows = list(batch_of(source_of(*fields), b"\xff\xff\xff\xff").rows())

    assert rows == [{"u": 2**32 - 1, "h": 2**16 - 1, "raw": b"\xff" * 4, "s": -1}]


def test_a_short_record_is_read_as_if_followed_by_zeros():
    fields = (Field("a", "<u4", At(0)), Field("b", "<u4", At(4)), Field("t", "|S4", At(8)))

    rows = list(batch_of(source_of(*fields), b"\1\2", b"", b"\1\0\0\0\2\0\0\0abcdefgh").rows())

    assert rows == [{"a": 513, "b": 0, "t": ""}, {"a": 0, "b": 0, "t": ""}, {"a": 1, "b": 2, "t": "abcd"}]


def test_the_rest_is_what_follows_the_struct_cut_to_its_length():
    length = Field("n", "<u4", At(0))
    whole, cut = Field("whole", "O", Rest()), Field("cut", "O", Rest(length))
    text = Field("text", "T", Rest(length))
    batch = batch_of(
        source_of(length, whole, cut, text, size=4), b"\2\0\0\0abcd", b"\xff\xff\xff\xffab", b"\1", b"\0\0\0\0abc"
    )

    assert batch.values("whole") == [b"abcd", b"ab", b"", b"abc"]
    assert batch.values("cut") == [b"ab", b"ab", b"", b""]
    assert batch.values("text") == ["ab", "ab", "", ""]


def test_only_selected_rows_are_evaluated():
    batch = batch_of(
        source_of(Field("a", "<u4", At(0)), Field("s", "T", Side("s"))), *(bytes([n, 0, 0, 0]) for n in range(5))
    )
    batch.sides = {"s": list("abcde")}
    chosen = batch.select([3, 1], None)

    assert list(chosen.values("a")) == [3, 1]
    assert list(chosen.values("s")) == ["d", "b"]
    assert chosen.numpy().tolist() == [(3, "d"), (1, "b")]


# ---------------------------------------------------------------------------------------------- rules


def derived(rule, *values, dtypes=("<u8",), facts=NO_FACTS):
    fields = [Field(f"v{at}", dtype, Side(f"v{at}")) for at, dtype in enumerate(dtypes)]
    batch = batch_of(source_of(), *[b""] * len(values), facts=facts)
    columns = list(zip(*values, strict=True)) if len(fields) > 1 else [values]
    batch.sides = {f"v{at}": list(column) for at, column in enumerate(columns)}
    return list(batch.values(Field("d", "T", Derived(tuple(fields), rule))))


def test_flags_name_the_mode_and_the_bits():
    rule = Flags(
        ((0o100, "O_CREAT"), (0o1000, "O_TRUNC"), (0o1000 | 0o100, "BOTH")), ("O_RDONLY", "O_WRONLY", "O_RDWR", "")
    )

    assert derived(rule, 0, 1, 0o103, 0o1101) == ["O_RDONLY", "O_WRONLY", "O_CREAT", "O_WRONLY|O_CREAT|O_TRUNC|BOTH"]
    assert derived(Flags(((0, "ZERO"), (2, "TWO")), separator=", "), 0, 3) == ["ZERO", "ZERO, TWO"]


def test_durations_print_like_go():
    numbers = (0, 999, 12_340, 1_500_000, 1_500_000_000, 61 * 10**9, 3600 * 10**9, 63_200_000_000)

    assert derived(Duration(), *numbers) == ["0ns", "999ns", "12.34µs", "1.50ms", "1.5s", "1m1s", "1h0m0s", "1m3.2s"]


def test_sizes_have_units_of_1000():
    numbers = (0, 9, 10, 999, 1000, 4096, 8192, 15032385536, 2**64 - 1)

    assert derived(Size(), *numbers) == ["0 B", "9 B", "10 B", "999 B", "1.0 kB", "4.1 kB", "8.2 kB", "15 GB", "18 EB"]


def test_boot_time_becomes_wall_clock_and_zero_becomes_now():
    before = time.time_ns()
    past, now = derived(WallClock(), 5, 0, facts=Facts({}, wall_minus_boot_ns=100))

    assert past == 105
    assert before <= now <= time.time_ns()


def test_the_raw_time_and_its_text_are_the_same_now(utc):
    wall = Field("raw", "<u8", Derived((Field("boot", "<u8", At(0)),), WallClock()))
    twin = Field("raw2", "<u8", Derived((Field("boot2", "<u8", At(0)),), WallClock()))
    text = Field("text", "T", Derived((twin,), Time("2006-01-02T15:04:05.000000000")))
    source = source_of(wall, text)
    template = Template((Slot(wall, Text()), b" ", Slot(text, Text())))

    raw, shown = ENGINE.printer(template, None, NO_FACTS)(batch_of(source, bytes(8))).text.decode().split()

    assert shown == gotime.layout("2006-01-02T15:04:05.000000000")(int(raw))


ADDRESSES = ["::", "::1", "2001:db8:0:1::1", "1:0:2:3:4:5:6:7", "fe80::", "1:2:3:4:5:6:7:8", "1::2:0:0:5", "0:1::"]


@pytest.mark.parametrize("text", ADDRESSES)
def test_ipv6_addresses_print_like_go(text):
    assert rules.ipv6(socket.inet_pton(socket.AF_INET6, text)) == text


def test_ipv6_addresses_with_ipv4_in_them_print_like_go():
    assert rules.ipv6(bytes(10) + b"\xff\xff\1\2\3\4") == "1.2.3.4"
    assert rules.ipv6(bytes(12) + b"\1\2\3\4") == "::102:304"


@given(st.binary(min_size=16, max_size=16))
def test_an_ipv6_address_reads_back(raw):
    text = rules.ipv6(raw)

    assert socket.inet_pton(socket.AF_INET6, text if ":" in text else f"::ffff:{text}") == raw


def test_addresses_and_endpoints_of_an_unknown_version_are_empty():
    four, six = bytes([10, 1, 2, 3]) + bytes(12), bytes(16)
    kinds = ("|V16", "|u1", "<u2")

    assert derived(Address(), (four, 4), (six, 6), (four, 0), dtypes=kinds[:2]) == ["10.1.2.3", "::", ""]
    assert derived(Endpoint(), (four, 4, 80), (six, 6, 443), (six, 9, 1), dtypes=kinds) == ["10.1.2.3:80", ":::443", ""]


def test_a_table_is_asked_once_per_distinct_key_until_told_to_forget():
    asked = []

    def table(key):
        asked.append(key)
        return (f"name{key}", key + 1)

    facts = Facts({"t": table})
    key = Field("k", "<u4", At(0))
    name = Field("name", "T", Derived((key,), Lookup("t")))
    more = Field("more", "<u4", Derived((key,), Lookup("t", 1)))
    batch = batch_of(source_of(name, more), b"\1", b"\2", b"\1", facts=facts)
    printer = ENGINE.printer(Template((Slot(name, Json()), b" ", Slot(more, Json())), b";"), None, facts)

    assert printer(batch).text == b'"name1" 2;"name2" 3;"name1" 2'
    assert list(batch.rows()) == [{"name": f"name{n}", "more": n + 1} for n in (1, 2, 1)]
    assert batch.numpy().tolist() == [("name1", 2), ("name2", 3), ("name1", 2)]
    assert asked == [1, 2]

    facts.forget("t", 2)
    printer(batch)

    assert asked == [1, 2, 2]


def test_a_constant_is_the_same_in_every_row():
    batch = batch_of(source_of(Field("c", "T", Derived((), Constant("x")))), b"", b"")

    assert batch.values("c") == ["x", "x"]


# ---------------------------------------------------------------------------------------------- times

LAYOUTS = [
    ("2006-01-02T15:04:05.000000000Z07:00", "2026-08-21T14:48:38.123456789+02:00"),
    ("Mon Jan _2 15:04:05 MST 2006", "Fri Aug 21 14:48:38 CEST 2026"),
    ("3:04:05PM Monday, January 2 06", "2:48:38PM Friday, August 21 26"),
    ("15:04:05.000", "14:48:38.123"),
    ("15:04:05,999999999 -0700", "14:48:38,123456789 +0200"),
    ("002 __2 1 5 4 03 pm -07 Z0700 -07:00:00", "233 233 8 38 48 02 pm +02 +0200 +02:00:00"),
    ("15h04_2006 .0x", "14h48_2026 .1x"),
    ("Month Januaryish", "Month Augustish"),
]


@pytest.mark.parametrize(("layout", "text"), LAYOUTS)
def test_times_print_by_a_go_layout_in_local_time(monkeypatch, layout, text):
    with monkeypatch.context() as changed:
        changed.setenv("TZ", "Europe/Berlin")
        time.tzset()
        shown = gotime.layout(layout)(1787316518123456789)
    time.tzset()

    assert shown == text


@pytest.mark.usefixtures("utc")
def test_nines_leave_out_zeros_and_utc_is_z():
    assert gotime.layout("05.999Z07:00")(1787316518120000000) == "38.12Z"
    assert gotime.layout("05.999Z07:00")(1787316518000000000) == "38Z"
    assert gotime.layout("05.000-07:00")(1787316518000000000) == "38.000+00:00"


def test_a_layout_with_quotes_prints_as_json():
    field = Field("t", "T", Derived((Field("ns", "<u8", At(0)),), Time('"2006"')))

    assert (
        ENGINE.printer(Template((Slot(field, Json()),)), None, NO_FACTS)(
            batch_of(source_of(field), struct.pack("<Q", 1787316518 * 10**9))
        ).text
        == b'"\\"2026\\""'
    )


# ---------------------------------------------------------------------------------------------- predicates

NUMBER, TEXT, REAL, FLAG = (
    *(Field("n", "<i4", At(0)), Field("t", "|S4", At(4))),
    *(Field("r", "<f8", At(8)), Field("f", "?", At(16))),
)


def kept(predicate, *rows):
    records = [struct.pack("<i4sd?", *row) for row in rows]
    batch = batch_of(source_of(NUMBER, TEXT, REAL, FLAG, size=17), *records)
    where = ENGINE.columns(NO_FACTS).where(batch, predicate)
    assert isinstance(where, array)
    printed = ENGINE.printer(Template((Slot(NUMBER, Text()),), b","), predicate, NO_FACTS)(batch)
    assert (printed.rows, printed.filtered) == (len(where), len(rows) - len(where))
    assert printed.text == b",".join(b"%d" % rows[row][0] for row in where)
    return list(where)


ROWS = ((1, b"cat", 0.5, True), (-2, b"ca\xff", 1.5, False), (3, b"", float("nan"), True))


@pytest.mark.parametrize(
    ("predicate", "rows"),
    [
        (Compare(NUMBER, "==", 1), [0]),
        (Compare(NUMBER, "!=", 1), [1, 2]),
        (Compare(NUMBER, "<", 1), [1]),
        (Compare(NUMBER, "<=", 1), [0, 1]),
        (Compare(NUMBER, ">", 1), [2]),
        (Compare(NUMBER, ">=", 1), [0, 2]),
        (Compare(TEXT, "==", "cat"), [0]),
        (Compare(TEXT, ">", "cat"), [1]),
        (Compare(TEXT, ">", "ca\uffff"), [1]),  # bytewise: EF BF BF < FF
        (Compare(TEXT, "==", "ca\udcff"), [1]),
        (Compare(TEXT, "==", ""), [2]),
        (Compare(REAL, ">", 1.0), [1]),
        (Compare(REAL, "!=", 0.5), [1, 2]),
        (Compare(FLAG, "==", True), [0, 2]),
        (Matches(TEXT, "a"), [0, 1]),
        (Matches(TEXT, "^c.t$"), [0]),
        (Not(Matches(TEXT, "^c")), [2]),
        (And((Compare(NUMBER, ">", 0), Compare(FLAG, "==", True))), [0, 2]),
        (Or((Compare(NUMBER, "==", 3), Compare(NUMBER, "==", 1))), [0, 2]),
        (And(()), [0, 1, 2]),
        (Or(()), []),
        (Not(And((Compare(NUMBER, ">", 0), Or(())))), [0, 1, 2]),
    ],
)
def test_a_predicate_keeps_rows(predicate, rows):
    assert kept(predicate, *ROWS) == rows


def test_filtered_rows_are_counted():
    batch = batch_of(source_of(NUMBER), *(struct.pack("<i", n) for n in range(4)))
    left = batch.select([3, 2, 1], None).where(Compare(NUMBER, ">", 1))

    assert list(left.values("n")) == [3, 2]
    assert {reason.value: count for reason, count in left.lost.items()} == {"filtered": 1}


def test_a_wrong_expression_is_an_error():
    with pytest.raises(ParamError, match=r"invalid regular expression: \"\(\""):
        kept(Matches(TEXT, "("), *ROWS)


# ---------------------------------------------------------------------------------------------- printing


@given(st.text(max_size=20))
def test_json_text_reads_back(text):
    import json

    assert json.loads(json_text(text)) == text


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_the_shortest_float_reads_back(number):
    text = shortest(number)

    assert float(text) == number
    assert len(text.lstrip("-").replace(".", "").split("e")[0].strip("0")) <= 17


@given(st.floats(allow_nan=False, allow_infinity=False, width=32))
def test_the_shortest_float_of_four_bytes_reads_back(number):
    assert np.float32(shortest(number, 4)) == np.float32(number)


@given(
    st.integers(-(2**31), 2**31 - 1), st.integers(1, 30), st.booleans(), st.sampled_from(["", "start", "middle", "end"])
)
def test_a_cell_has_its_width(number, width, right, ellipsis):
    field = Field("n", "<i4", At(0))
    text = ENGINE.printer(Template((Slot(field, Cell(width, right, ellipsis)),)), None, NO_FACTS)(
        batch_of(source_of(field), struct.pack("<i", number))
    ).text.decode()

    assert len(text) == width
    if len(str(number)) <= width:
        assert text.strip() == str(number)
        assert text.startswith(" ") == (right and len(str(number)) < width)


def test_a_large_batch_prints_whole():
    field = Field("n", "<u4", At(0))
    batch = batch_of(source_of(field), *(struct.pack("<I", n) for n in range(10_000)))
    printed = ENGINE.printer(Template((Slot(field, Json()),), b","), Compare(field, "!=", 5), NO_FACTS)(batch)

    assert printed.text.split(b",") == [b"%d" % n for n in range(10_000) if n != 5]
    assert (printed.rows, printed.filtered) == (9_999, 1)


def test_a_template_without_values_prints_once_per_row():
    printer = ENGINE.printer(Template((b"100%",), b"|"), None, NO_FACTS)

    assert printer(batch_of(source_of(), b"", b"")).text == b"100%|100%"
    assert printer(batch_of(source_of())) == (b"", 0, 0)


hostile = st.lists(st.one_of(pieces, st.binary(max_size=40)), max_size=6).map(b"".join)


@settings(max_examples=200)
@given(hostile, st.sampled_from([Framing.RING, Framing.PERF, Framing.FIXED]), layouts)
def test_no_region_breaks_walking_reading_or_printing(memory, framing, layout):
    length = Field("length", "<i4", At(0))
    fields = [
        *(Field(f"f{at}", dtype, At(offset)) for at, (dtype, offset) in enumerate(layout)),
        *(Field("rest", "O", Rest(length)), Field("ip", "T", Derived((Field("a", "|V16", At(0)), length), Address()))),
        Field("time", "T", Derived((Field("ns", "<u8", At(0)),), Time())),
        Field("text", "|S8", At(3)),
    ]
    source = source_of(*fields, size=8)
    batch = Batch(source, Region(memory, framing, 5), ENGINE.columns(NO_FACTS))
    slots = tuple(Slot(field, form) for field in fields for form in (Json(), Cell(9), Text()))
    printed = ENGINE.printer(Template(slots, b"\n"), Matches(fields[-1], "a|^$"), NO_FACTS)(batch)

    assert printed.rows + printed.filtered == len(batch)
    assert len(list(batch.rows())) == len(batch.numpy()) == len(batch)


@pytest.mark.parametrize("dtype", ["<u3", "x", "", "(2,2)<u4", "<q9", "U4"])
def test_an_unknown_dtype_is_an_error(dtype):
    with pytest.raises(ValueError, match="is not known"):
        shape(dtype)


def test_the_text_path_does_not_import_numpy():
    import subprocess
    import sys

    code = """
import sys
from igrun.engine import *
from igrun.engine.reference import ENGINE
from igrun.outputs import Shown, columns, json, modes, yaml
from igrun.record import *

field, facts = Field("a", "<u4", At(0)), Facts({})
source = DataSource("s", Kind.EVENTS, (field,), size=4)
for output in columns, json, yaml:
    writer = output.open(Shown(source, "", Compare(field, "==", 0), facts, ENGINE), sys.stdout.buffer.write)
    assert writer.write(Batch(source, Region(bytes(16), Framing.RING), ENGINE.columns(facts))) == 2
heavy = {"numpy", "yaml", "difflib", "decimal", "subprocess", "datetime"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
