"""YAML: byte for byte what the ecosystem's runtime prints (without containers and stacks)."""

import math
import struct

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from igrun.engine.texts import shortest_g
from igrun.engine.yamls import yaml_float, yaml_text
from igrun.record import At, DataSource, Field, Kind, Side


@pytest.mark.usefixtures("utc")
def test_trace_open_prints_the_document_of_the_real_tool(opened_on_the_host):
    assert opened_on_the_host.text("yaml") == (
        "---\n"
        'error: ""\n'
        "error_raw: 0\n"
        "fd: 3\n"
        "flags: O_RDONLY|O_CLOEXEC\n"
        "flags_raw: 524288\n"
        "fname: /etc/ld.so.cache\n"
        'fpath: ""\n'
        "mode: '----------'\n"
        "mode_raw: 0\n"
        "proc:\n"
        "  comm: catx\n"
        "  creds:\n"
        "    gid: 0\n"
        "    group: root\n"
        "    uid: 0\n"
        "    user: root\n"
        "  mntns_id: 4026531832\n"
        "  parent:\n"
        "    comm: bash\n"
        "    pid: 30032\n"
        "    tid: 30032\n"
        "  pid: 30079\n"
        "  tid: 30079\n"
        'timestamp: "2026-11-20T23:26:55.274914134Z"\n'
        "timestamp_raw: 1795217215274914134\n"
        "ustack:\n"
        "  base_addr_hash: 0\n"
        "  boot_timestamp: 0\n"
        "  inode: 0\n"
        "  major: 0\n"
        "  minor: 0\n"
        "  mtime_nsec: 0\n"
        "  mtime_sec: 0\n"
        "  otel_correlation_id: 0\n"
        "  pid_level0: 0\n"
        "  pid_level1: 0\n"
        "  pidns_level0: 0\n"
        "  pidns_level1: 0\n"
        "  stack_id: 0\n"
        "  tgid_level0: 0\n"
    )


def test_each_row_of_a_table_is_a_document(snapshot_socket):
    documents = list(yaml.safe_load_all(snapshot_socket.text("yaml")))

    assert [document["ino"] for document in documents] == [725, 726]
    assert documents[1]["dst"] == {"addr": "::", "port": 0, "proto": "TCP", "proto_raw": 6, "version": 6}


def test_an_empty_table_prints_nothing(snapshot_socket):
    assert snapshot_socket.open("yaml").write(snapshot_socket.batch().select([], None)) == 0
    assert snapshot_socket.printed == []


@pytest.mark.parametrize(
    "text",
    [
        *("catx", "/etc/hosts", "O_RDONLY|O_CLOEXEC", "-rw-rw-rw-", "127.0.0.1:53", ":::80", "a:b", "a#b", "é", "it's"),
        *("uid:4294967295", "2026-13-01", "1.2.3", "0x", "08x", "-", "+", ".", "a b", "a, b", "x{}", "-x", "?x", "_1"),
        *("99999999999999999999x", "1:75", "e5", "0xffffffffffffffffff", "Y2", "NaN", "a\xa0b", "2026-11-20x"),
    ],
)
def test_a_text_that_reads_as_itself_is_plain(text):
    if text in "-":
        assert yaml_text(text) == f"'{text}'"  # a lone dash is an item of a list
    else:
        assert yaml_text(text) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", "12", "-1", "+1", "0x1F", "0b1", "017", "08", "1_000", "1.5", ".5", "1.", "1e5", "1E-5", "-.inf", ".NaN"),
        *("true", "True", "TRUE", "yes", "Y", "n", "off", "On", "null", "~", "NULL", "10:20", "-190:20:30.15", "0o17"),
        *("2026-11-20", "2026-1-2", "2026-11-20T23:26:57.777622920Z", "2026-11-20 23:26:57", "99999999999999999999"),
        *("2001-12-14t21:59:43.10-05:00", "18446744073709551615"),
    ],
)
def test_a_text_that_would_read_as_something_else_stands_in_double_quotes(text):
    assert yaml_text(text) == f'"{text}"'


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("----------", "'----------'"),
        ("a: b", "'a: b'"),
        ("a #b", "'a #b'"),
        ("a:", "'a:'"),
        ("#a", "'#a'"),
        ("- a", "'- a'"),
        ("*a", "'*a'"),
        ("'a", "'''a'"),
        (" a", "' a'"),
        ("a ", "'a '"),
        ("[a]", "'[a]'"),
        ("::", "'::'"),
        ("...", "'...'"),
        ("a\tb", '"a\\tb"'),
        ("a\x00\x1b\x7f\x85", '"a\\0\\e\\x7F\\N"'),
        ('"\\\x01', '"\\"\\\\\\x01"'),
        ("😀", '"\\U0001F600"'),
        ("\ufeff", '"\\uFEFF"'),
        ("a\u2028b", '"a\\Lb"'),
        ("a\udcff", "a\ufffd"),
    ],
)
def test_a_text_with_special_characters_is_quoted(text, printed):
    assert yaml_text(text) == printed


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("a\nb", "|-\n  a\n  b"),
        ("a\nb\n", "|\n  a\n  b"),
        ("a\n\n", "|+\n  a\n"),
        (" a\nb", "|2-\n   a\n  b"),
        ("a\n\nb", "|-\n  a\n\n  b"),
        ("a \nb", '"a \\nb"'),
        ("a\nb ", '"a\\nb "'),
    ],
)
def test_several_lines_are_a_block_where_one_can_hold_them(text, printed):
    assert yaml_text(text) == printed


def test_long_text_breaks_at_a_blank_past_the_width():
    words = "word " * 20 + "end"

    assert yaml_text(words, 0, 5) == "word " * 15 + "word\n  " + "word " * 4 + "end"
    assert yaml_text("'" + words, 2, 5).splitlines()[1].startswith("    word")
    assert yaml.safe_load("k: " + yaml_text(words, 0, 3)) == {"k": words}


@given(st.text(alphabet=st.sampled_from("ab01-+.:#'\" \n\t,[]{}&*!|>%@`?~_\x00\x85\xa0\u2028é😀yn=<"), max_size=12))
def test_any_text_reads_back(text):
    if text in ("=", "<<"):  # PyYAML does not read them plain
        return
    printed = yaml_text(text, 0, 3)

    assert yaml.safe_load(f"k: {printed}\nz: 1\n") == {"k": text, "z": 1}


@given(st.text("ab 'z\"\\é: #", min_size=70, max_size=140), st.integers(0, 4))
def test_long_text_reads_back(text, depth):
    head = "".join(f"{'  ' * level}k:\n" for level in range(depth))
    key = f"{'  ' * depth}key: "
    found = yaml.safe_load(head + key + yaml_text(text, 2 * depth, len(key)) + "\n")
    for _ in range(depth):
        found = found["k"]

    assert found["key"] == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        *((0.0, "0"), (-0.0, "0"), (3.0, "3"), (1.5, "1.5"), (1e19, "10000000000000000000"), (1e20, "1e+20")),
        *((1234567.5, "1.2345675e+06"), (123456.5, "123456.5"), (0.0001, "0.0001"), (0.00001, "1e-05")),
        *((math.nan, "null"), (-math.inf, "null"), (1e-300, "1e-300"), (-2.5, "-2.5")),
    ],
)
def test_floats_print_as_go_prints_what_json_says(number, text):
    assert yaml_float(number) == text


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_float_reads_back(number):
    assert float(yaml_float(number)) == number
    assert float(shortest_g(number)) == number


def test_keys_stand_in_natural_order_and_are_quoted_where_needed(sampled):
    fields = [Field(name, "|u1", At(0)) for name in ("b10", "b9", "b_c", "bc", "y", "B", "a.c", "a.b", "b01", "b1")]
    text = sampled(DataSource("s", Kind.EVENTS, tuple(fields), size=1), b"\7").text("yaml")

    assert text == '---\nB: 7\na:\n  b: 7\n  c: 7\nb_c: 7\nb1: 7\nb01: 7\nb9: 7\nb10: 7\nbc: 7\n"y": 7\n'


def test_arrays_bytes_and_empty_objects(sampled):
    fields = (
        *(Field("array", "(2,)<u4", At(0)), Field("o.texts", "(2,)|S4", At(0)), Field("o.none", "(0,)<u4", At(0))),
        *(
            Field("hex", "|V4", At(4)),
            Field("empty", None, None),
            Field("flag", "?", At(0)),
            Field("lines", "T", Side("t")),
        ),
    )
    sample = sampled(DataSource("s", Kind.EVENTS, fields, size=8), struct.pack("<I4s", 7, b"1\0\0\0"))
    batch = sample.batch()
    batch.sides = {"t": ["a\nb"]}
    sample.open("yaml").write(batch)

    assert b"".join(sample.printed).decode() == (
        '---\narray:\n- 7\n- 49\nempty: {}\nflag: true\nhex: "31000000"\nlines: |-\n  a\n  b\n'
        'o:\n  none: []\n  texts:\n  - "\\a"\n  - "1"\n'
    )


def test_a_source_without_fields_prints_empty_documents(sampled):
    assert sampled(DataSource("s", Kind.EVENTS, (), size=1), b"\0").text("yaml") == "---\n{}\n"
