"""JSON: byte for byte what the ecosystem's runtime prints (without containers and stacks)."""

import json
import math
import struct

import pytest

from igrun.engine import Json
from igrun.outputs.json import template
from igrun.record import Address, At, Compare, DataSource, Derived, Endpoint, Field, Kind, Lookup, Side

PROC = (
    '"proc":{"comm":"sh","creds":{"gid":0,"group":"root","uid":0,"user":"root"},"mntns_id":4026532169,'
    '"parent":{"comm":"sh","pid":269,"tid":269},"pid":14712,"tid":14712}'
)


@pytest.mark.usefixtures("utc")
def test_trace_signal_prints_the_lines_of_the_real_tool(trace_signal):
    first, second = trace_signal.text("json").splitlines()

    assert first == (
        '{"error":"","error_raw":0,' + PROC + ',"sig":"SIGTERM","sig_raw":15,'
        '"timestamp":"2026-11-20T23:36:49.286876320Z","timestamp_raw":1795217809286876320,"tpid":14713}'
    )
    assert json.loads(second)["sig"] == "SIGPIPE"


@pytest.mark.usefixtures("utc")
def test_trace_open_spreads_over_lines_as_the_real_tool_does(opened_on_the_host):
    assert opened_on_the_host.text("jsonpretty") == (
        "{\n"
        '  "error": "",\n'
        '  "error_raw": 0,\n'
        '  "fd": 3,\n'
        '  "flags": "O_RDONLY|O_CLOEXEC",\n'
        '  "flags_raw": 524288,\n'
        '  "fname": "/etc/ld.so.cache",\n'
        '  "fpath": "",\n'
        '  "mode": "----------",\n'
        '  "mode_raw": 0,\n'
        '  "proc": {\n'
        '    "comm": "catx",\n'
        '    "creds": {\n'
        '      "gid": 0,\n'
        '      "group": "root",\n'
        '      "uid": 0,\n'
        '      "user": "root"\n'
        "    },\n"
        '    "mntns_id": 4026531832,\n'
        '    "parent": {\n'
        '      "comm": "bash",\n'
        '      "pid": 30032,\n'
        '      "tid": 30032\n'
        "    },\n"
        '    "pid": 30079,\n'
        '    "tid": 30079\n'
        "  },\n"
        '  "timestamp": "2026-11-20T23:26:55.274914134Z",\n'
        '  "timestamp_raw": 1795217215274914134,\n'
        '  "ustack": {\n'
        '    "base_addr_hash": 0,\n'
        '    "boot_timestamp": 0,\n'
        '    "inode": 0,\n'
        '    "major": 0,\n'
        '    "minor": 0,\n'
        '    "mtime_nsec": 0,\n'
        '    "mtime_sec": 0,\n'
        '    "otel_correlation_id": 0,\n'
        '    "pid_level0": 0,\n'
        '    "pid_level1": 0,\n'
        '    "pidns_level0": 0,\n'
        '    "pidns_level1": 0,\n'
        '    "stack_id": 0,\n'
        '    "tgid_level0": 0\n'
        "  }\n"
        "}\n"
    )


def test_a_table_is_one_array_per_batch(snapshot_process):
    assert snapshot_process.text("json") == (
        '[{"comm":"sh","creds":{"gid":0,"group":"root","uid":0,"user":"root"},"mntns_id":4026532169,'
        '"parent":{"comm":"containerd-shim","pid":248,"tid":248},"pid":269,"tid":269},'
        '{"comm":"dnsd","creds":{"gid":0,"group":"root","uid":0,"user":"root"},"mntns_id":4026532169,'
        '"parent":{"comm":"sh","pid":269,"tid":269},"pid":296,"tid":296}]\n'
    )


def test_an_endpoint_is_an_object_without_its_raw_address(snapshot_socket):
    first, second = json.loads(snapshot_socket.text("json"))

    assert json.dumps(first, separators=(",", ":")) == (
        '{"dst":{"addr":"0.0.0.0","port":0,"proto":"UDP","proto_raw":17,"version":4},"ino":725,"netns_id":4026532173,'
        '"src":{"addr":"127.0.0.1","port":53,"proto":"UDP","proto_raw":17,"version":4},"state":7}'
    )
    assert second["src"] == {"addr": "::", "port": 443, "proto": "TCP", "proto_raw": 6, "version": 6}


def test_an_empty_table_is_an_empty_array(snapshot_process):
    none = snapshot_process.batch().select([], None)
    for mode in ("json", "jsonpretty"):
        assert snapshot_process.open(mode).write(none) == 0

    assert snapshot_process.printed == [b"[]\n", b"[]\n"]


def test_a_table_spread_over_lines_indents_its_elements(snapshot_process):
    text = snapshot_process.text("jsonpretty")

    assert text.startswith('[\n  {\n    "comm": "sh",\n    "creds": {\n      "gid": 0,\n')
    assert '\n    "tid": 269\n  },\n  {\n    "comm": "dnsd",\n' in text
    assert text.endswith('\n    "tid": 296\n  }\n]\n')


def test_rows_that_do_not_pass_are_not_printed_and_not_delivered(trace_signal):
    keep = Compare(trace_signal.source.field("sig"), "==", "SIGPIPE")

    assert trace_signal.open("json", keep=keep).write(trace_signal.batch()) == 1
    assert [json.loads(line)["proc"]["comm"] for line in trace_signal.printed] == ["wget"]


def test_a_batch_of_which_nothing_passes_prints_nothing(trace_signal):
    keep = Compare(trace_signal.source.field("sig"), "==", "SIGHUP")

    assert trace_signal.open("json", keep=keep).write(trace_signal.batch()) == 0
    assert trace_signal.printed == []


def value_of(printing, dtype, raw):
    source = DataSource("s", Kind.EVENTS, (Field("v", dtype, At(0)),), size=len(raw))
    text = printing(source, raw, template(source))
    assert text.startswith('{"v":'), text
    assert text.endswith("}\n"), text
    return text[5:-2]


@pytest.mark.parametrize(
    ("dtype", "raw", "text"),
    [
        ("|S24", b'a"\\\n\r\t\x01\x08\x7f<&>', '"a\\"\\\\\\n\\r\\t\\u0001\\u0008\x7f<&>"'),
        ("|S24", "é\u2028\u2029😀".encode(), '"é\\u2028\\u2029😀"'),
        ("|S8", b"a\xff\xe2\x82b", '"a\\ufffd\\ufffd\\ufffdb"'),
        ("|S8", b"ab\0cd", '"ab"'),
        ("|V4", b"\x00\xab\xff\x01", '"00abff01"'),
        ("?", b"\1", "true"),
        ("?", b"\0", "false"),
        ("(3,)?", b"\1\0\2", "[true,false,true]"),
        ("(2,)<u8", struct.pack("<QQ", 2**63, 2**64 - 1), "[9223372036854775808,18446744073709551615]"),
        ("(2,)<i2", struct.pack("<hh", -1, 1), "[-1,1]"),
        ("(0,)<i2", b"", "[]"),
        ("(2,)<f4", struct.pack("<ff", 0.1, math.nan), "[0.1,null]"),
        ("<i8", struct.pack("<q", -(2**63)), "-9223372036854775808"),
        (">u2", b"\x01\x02", "258"),
    ],
)
def test_a_value_prints_as_json(printing, dtype, raw, text):
    assert value_of(printing, dtype, raw) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        *((0.0, "0"), (-0.0, "-0"), (1.0, "1"), (1.5, "1.5"), (1e20, "100000000000000000000"), (1e21, "1e+21")),
        *((1e-6, "0.000001"), (1e-7, "1e-7"), (123456789.125, "123456789.125"), (5e-324, "5e-324")),
        *(
            (math.nan, "null"),
            (math.inf, "null"),
            (-math.inf, "null"),
            (1.7976931348623157e308, "1.7976931348623157e+308"),
        ),
    ],
)
def test_a_float_prints_in_the_shortest_form(printing, number, text):
    assert value_of(printing, "<f8", struct.pack("<d", number)) == text


def test_a_float_of_four_bytes_prints_with_its_own_digits(printing):
    assert value_of(printing, "<f4", struct.pack("<f", 0.1)) == "0.1"
    assert value_of(printing, "<f4", struct.pack("<f", 3.4028234663852886e38)) == "3.4028235e+38"


def test_keys_are_sorted_bytewise_and_empty_objects_stay():
    fields = (
        Field("b", "<u4", At(0)),
        Field("B", "<u4", At(4)),
        Field("a", None, None),
        Field("p.skipped", "<u4", At(0), annotations={"json.skip": "true"}),
        Field("p", "|V4", At(0)),
        Field("q", "|V4", At(0), annotations={"json.skip": "true"}),
        Field("q.below", "<u4", At(0)),
    )
    source = DataSource("s", Kind.EVENTS, fields, size=8)

    one, two = fields[1], fields[0]
    assert template(source).pieces == (*(b'{"B":', (one, Json()), b',"a":{},"b":', (two, Json()), b',"p":{}}\n'),)


def test_an_array_spread_over_lines_has_an_item_per_line(sampled):
    source = DataSource("s", Kind.EVENTS, (Field("v", "(2,)<u4", At(0)), Field("w", "(0,)<u4", At(0))), size=8)

    assert sampled(source, struct.pack("<II", 1, 2)).text("jsonpretty") == (
        '{\n  "v": [\n    1,\n    2\n  ],\n  "w": []\n}\n'
    )


def test_a_percent_sign_in_a_name_prints_as_itself(sampled):
    source = DataSource("s", Kind.EVENTS, (Field("%d%s", "<u4", At(0)),), size=4)

    assert sampled(source, struct.pack("<I", 1)).text("json") == '{"%d%s":1}\n'


def test_side_columns_and_addresses_print(sampled):
    raw, version = Field("raw", "(16,)|u1", At(0)), Field("version", "|u1", At(16))
    fields = (
        Field("names", "T", Side("names")),
        Field("ip", "T", Derived((raw, version), Address())),
        Field("to", "T", Derived((raw, version, version), Endpoint())),
        Field("who", "T", Derived((Field("n", "T", Side("names")), version), Lookup("both"))),
    )
    sample = sampled(DataSource("s", Kind.EVENTS, fields, size=17), bytes(15) + b"\1\6")
    asked = []

    def both(key):
        asked.append(key)
        return (f"{key}",)

    sample.facts.tables["both"] = both
    batch = sample.batch(*sample.records * 2)
    batch.sides = {"names": ['a"', "b"]}
    sample.open("json").write(batch)
    sample.open("json").write(batch)

    assert b"".join(sample.printed).decode().splitlines()[:2] == [
        '{"ip":"::1","names":"a\\"","to":"::1:6","who":"(\'a\\"\', 6)"}',
        '{"ip":"::1","names":"b","to":"::1:6","who":"(\'b\', 6)"}',
    ]
    assert asked == [('a"', 6), ("b", 6)]
