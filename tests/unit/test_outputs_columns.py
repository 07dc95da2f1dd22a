"""Columns: byte for byte what the ecosystem's runtime prints (without the containers' column)."""
# ruff: noqa: E501 (whole lines)

import struct

import pytest

from igrun import plugins
from igrun.engine import Cell
from igrun.engine.texts import cut, escaped, fixed_point, hexadecimal
from igrun.errors import MetadataError, ParamError
from igrun.outputs.columns import chosen, column
from igrun.outputs.modes import by_source, default, fields_by_source, mode_of, supported
from igrun.outputs.screen import CLEAR, Span, scaled
from igrun.record import At, Compare, DataSource, Field, Kind, Side

TRACE_OPEN = (
    "COMM                          PID              TID TID                            FD FNAME                            FPATH                            ERROR        MODE            \n"
    "sh                            269              269 248                             3 /dev/null                                                                      -rw-rw-rw-      \n"
    "cat                          1553             1553 269                             3 /etc/hosts                                                                     ----------      \n"
    "cat                          1554             1554 269                             0 /nonexistent                                                      ENOENT       ----------      \n"
)
TRACE_SIGNAL = (
    "COMM                          PID              TID TID                          TPID SIG        ERROR       \n"
    "sh                          14712            14712 269                         14713 SIGTERM                \n"
    "wget                        14390            14390 14387                       14390 SIGPIPE                \n"
)
SNAPSHOT_PROCESS = (
    "COMM                          PID              TID TID             \n"
    "sh                            269              269 248             \n"
    "dnsd                          296              296 269             \n"
)
SNAPSHOT_SOCKET = (
    "SRC                                      DST                                      STATE     \n"
    "127.0.0.1:53                             0.0.0.0:0                                7         \n"
    ":::443                                   :::0                                     10        \n"
)
ANSWERS = DataSource("answers", Kind.EVENTS)
QUERIES = DataSource("queries", Kind.EVENTS)
SOURCES = {"answers": ANSWERS, "queries": QUERIES}


def test_trace_open_prints_the_lines_of_the_real_tool(trace_open):
    assert trace_open.text("columns") == TRACE_OPEN


def test_trace_signal_prints_the_lines_of_the_real_tool(trace_signal):
    assert trace_signal.text("columns") == TRACE_SIGNAL


def test_snapshot_process_prints_the_lines_of_the_real_tool(snapshot_process):
    assert snapshot_process.text("columns") == SNAPSHOT_PROCESS


def test_snapshot_socket_prints_the_lines_of_the_real_tool(snapshot_socket):
    assert snapshot_socket.text("columns") == SNAPSHOT_SOCKET


def test_arguments_are_cut_as_the_real_tool_cuts_them(sampled):
    args = Field("args", "|S64", At(0), annotations={"columns.ellipsis": "end"})
    sample = sampled(DataSource("exec", Kind.EVENTS, (args,), size=64), "cat\xa0/etc/hosts".encode().ljust(64, b"\0"))

    assert sample.text("columns") == "ARGS            \ncat\\u00a0/etc/h…\n"


def test_the_header_of_events_stands_above_the_first_line_only(trace_open):
    writer = trace_open.open("columns")
    assert trace_open.printed == [TRACE_OPEN.splitlines(keepends=True)[0].encode()]

    writer.write(trace_open.batch())
    writer.write(trace_open.batch())

    assert b"".join(trace_open.printed).count(b"COMM") == 1


def test_the_header_of_a_table_stands_above_each_batch(snapshot_process):
    writer = snapshot_process.open("columns")
    assert snapshot_process.printed == []

    writer.write(snapshot_process.batch())
    writer.write(snapshot_process.batch())

    assert b"".join(snapshot_process.printed).decode() == SNAPSHOT_PROCESS * 2


@pytest.mark.parametrize("terminal", [True, False])
def test_the_screen_is_cleared_only_if_it_is_one(sampled, terminal):
    source = DataSource(
        "top", Kind.TABLE, (Field("v", "<u4", At(0)),), annotations={"cli.clear-screen-before": "true"}, size=4
    )
    sample = sampled(source, bytes(4))
    writer = sample.open("columns", terminal=terminal)
    writer.write(sample.batch())

    assert b"".join(sample.printed).startswith(CLEAR) == terminal


def test_rows_that_do_not_pass_are_not_printed(trace_open):
    keep = Compare(trace_open.source.field("proc.comm"), "==", "sh")
    writer = trace_open.open("columns", keep=keep)

    assert writer.write(trace_open.batch()) == 1
    assert b"".join(trace_open.printed).decode().splitlines() == TRACE_OPEN.splitlines()[:2]


# ---------------------------------------------------------------------------------------------- --fields


def headers(sample, fields):
    return [column.header for column in chosen(sample.source, fields)]


@pytest.mark.parametrize(
    ("fields", "shown"),
    [
        ("fname,proc.comm", "FNAME COMM"),
        ("FNAME, comm ,pid", "FNAME COMM PID"),
        ("+flags,-fpath,-TID", "COMM PID TID FD FNAME ERROR MODE FLAGS"),
        ("fname,+timestamp", "FNAME TIMESTAMP"),
        ("fname,fname,+fname", "FNAME"),
        ("-fpath,fname,fpath", "FNAME"),
        ("", "COMM PID TID TID FD FNAME FPATH ERROR MODE"),
    ],
)
def test_fields_are_chosen_by_name_or_alias(trace_open, fields, shown):
    assert headers(trace_open, fields) == shown.split()


@pytest.mark.parametrize("fields", ["fnam", "+fnam", "-fnam", "mode,Fnam"])
def test_an_unknown_field_is_an_error_with_the_nearest_name(trace_open, fields):
    with pytest.raises(ParamError, match=r'column "[Ff]nam" is invalid') as error:
        chosen(trace_open.source, fields)

    assert error.value.hint == "did you mean fname?"


@pytest.mark.parametrize("fields", ["proc", "proc.creds", "-fname,fname", "+"])
def test_what_is_no_column_cannot_be_chosen_and_is_not_proposed(trace_open, fields):
    with pytest.raises(ParamError) as error:
        chosen(trace_open.source, fields)

    assert not {"proc", "proc.creds"} & set(error.value.hint.removesuffix("?").replace(",", " ").split())


def test_columns_stand_by_order_and_then_as_declared():
    fields = (Field("b", "T", Side("b")), Field("z", "T", Side("z"), order=-27), Field("a", "T", Side("a")))

    assert [column.header for column in chosen(DataSource("s", Kind.EVENTS, fields))] == ["Z", "B", "A"]


def test_fields_per_source():
    assert fields_by_source("a,b", SOURCES) == {"answers": "a,b", "queries": "a,b"}
    assert fields_by_source("answers:a,b; queries:+c", SOURCES) == {"answers": "a,b", "queries": "+c"}
    assert fields_by_source("queries:c", SOURCES) == {"queries": "c"}
    assert fields_by_source(None, SOURCES) == {}


@pytest.mark.parametrize("text", ["a;answers:b", "answers:b;a"])
def test_with_and_without_a_source_do_not_mix(text):
    with pytest.raises(ParamError, match="mixed values with and without specifying data source"):
        fields_by_source(text, SOURCES)


def test_an_unknown_source_is_an_error_with_the_nearest_name():
    with pytest.raises(ParamError, match='data source "querys" not found') as error:
        by_source("output", "querys:json", ",", SOURCES)

    assert error.value.hint == "did you mean queries?"


# ---------------------------------------------------------------------------------------------- modes


def annotated(**annotations):
    return DataSource(
        "s", Kind.EVENTS, annotations={f"cli.{key.replace('_', '-')}": v for key, v in annotations.items()}
    )


def test_a_source_has_all_modes_unless_it_says_which():
    assert supported(annotated()) == ("arrow", "columns", "csv", "json", "jsonpretty", "none", "parquet", "yaml")
    assert supported(annotated(supported_output_modes="raw, advise")) == ("advise", "raw")


def test_the_default_mode_is_the_annotated_one_columns_or_the_first():
    assert default(annotated()) == "columns"
    assert default(annotated(default_output_mode="none")) == "none"
    assert default(annotated(default_output_mode="absent")) == "columns"
    assert default(annotated(supported_output_modes="raw,advise")) == "advise"


def test_a_mode_for_all_or_for_some_sources():
    assert [mode_of(source, "", SOURCES) for source in SOURCES.values()] == ["columns", "columns"]
    assert [mode_of(source, "json", SOURCES) for source in SOURCES.values()] == ["json", "json"]
    assert [mode_of(source, "queries:yaml", SOURCES) for source in SOURCES.values()] == ["columns", "yaml"]


def test_a_source_that_cannot_print_so_is_skipped_with_a_warning(caplog):
    special = annotated(supported_output_modes="advise")

    assert mode_of(special, "json", {**SOURCES, "s": special}) == "none"
    assert 'output mode "json" for data source "s" is not supported; skipping data source' in caplog.text


@pytest.mark.parametrize("text", ["jsn", "queries:jsn"])
def test_a_mode_that_no_source_has_is_an_error(text):
    with pytest.raises(ParamError, match='output mode "jsn" for data source "queries"') as error:
        mode_of(QUERIES, text, SOURCES)

    assert error.value.hint == "supported: arrow, columns, csv, json, jsonpretty, none, parquet, yaml"


def test_mixing_modes_with_and_without_a_source_is_an_error():
    with pytest.raises(ParamError, match="mixed values"):
        mode_of(QUERIES, "json,answers:yaml", SOURCES)


def test_none_prints_nothing_and_delivers(trace_open):
    assert trace_open.text("none") == ""
    keep = Compare(trace_open.source.field("fd"), "==", 3)
    assert trace_open.open("none", keep=keep).write(trace_open.batch()) == 2


def test_any_other_mode_prints_the_texts_back_to_back(sampled):
    fields = (Field("text", "|S8", At(0)), Field("n", "<u4", At(8)))
    source = DataSource("s", Kind.EVENTS, fields, annotations={"cli.clear-screen-before": "true"}, size=12)
    sample = sampled(source, b"a\n\xffb\0\0\0\0" + struct.pack("<I", 7))
    sample.open("advise").write(sample.batch(*sample.records * 2))
    sample.open("advise", terminal=True).write(sample.batch())

    assert sample.printed == [b"a\n\xffb7a\n\xffb7", CLEAR + b"a\n\xffb7"]


# ---------------------------------------------------------------------------------------------- terminals


def test_columns_share_the_terminal_as_in_the_worked_example():
    assert scaled([Span(16), Span(7, 7, 20)], 100) == [79, 20]


@pytest.mark.parametrize(
    ("spans", "screen", "widths"),
    [
        ([Span(16), Span(16), Span(16)], 100, [33, 33, 32]),
        ([Span(10, fixed=True), Span(16)], 50, [10, 39]),
        ([Span(16, least=7), Span(100)], 40, [7, 32]),
        ([Span(16, least=30), Span(16, least=30)], 20, [30, 30]),
        ([Span(10, fixed=True)], 80, [10]),
        ([Span(16, most=20)], 80, [20]),
        ([Span(1), Span(1000)], 30, [1, 28]),
        ([], 80, []),
    ],
)
def test_columns_share_the_terminal(spans, screen, widths):
    assert scaled(spans, screen) == widths


def test_lines_follow_the_width_of_the_terminal(trace_open):
    widths = iter([60, 60, 100])
    writer = trace_open.open("columns", "comm,pid,fname", terminal=True, width=lambda: next(widths))
    writer.write(trace_open.batch())
    writer.write(trace_open.batch())
    lines = b"".join(trace_open.printed).decode().splitlines()

    assert {len(line) for line in lines[:4]} == {60}
    assert {len(line) for line in lines[4:]} == {100}
    assert [line.split()[0] for line in lines] == ["COMM", "sh", "cat", "cat"] * 2


# ---------------------------------------------------------------------------------------------- annotations


def made(dtype="<u4", **annotations):
    field = Field("f", dtype, At(0), annotations={f"columns.{key}": value for key, value in annotations.items()})
    return column(DataSource("s", Kind.EVENTS, (field,)), field)


@pytest.mark.parametrize(
    ("dtype", "width"),
    [("|u1", 3), ("|i1", 4), ("<u2", 5), ("<i2", 6), ("<u4", 10), ("<i4", 11), ("<u8", 20), ("<i8", 20), ("?", 5)],
)
def test_a_width_can_be_that_of_the_type(dtype, width):
    assert made(dtype, width="type").span == Span(width, 0, width)
    assert made(dtype, minwidth="type", maxwidth="30").span == Span(16, width, 30)


def test_annotations_shape_a_column():
    shown = made("<f8", alias="Load", alignment="right", ellipsis="middle", precision="2", hex="true", fixed="true")

    assert (shown.header, shown.span) == ("LOAD", Span(16, 0, 0, True))
    assert shown.cell(9) == (shown.field, Cell(9, True, "middle", 2, True))


@pytest.mark.parametrize(
    "wrong",
    [
        *({"width": "wide"}, {"width": "-1"}, {"minwidth": "1.5"}, {"maxwidth": "²"}, {"precision": "x"}),
        *({"alignment": "center"}, {"ellipsis": "begin"}, {"hex": "yes"}, {"fixed": "1"}, {"width": "99999"}),
    ],
)
def test_a_wrong_annotation_is_an_error_that_names_it(wrong):
    key, value = next(iter(wrong.items()))
    with pytest.raises(MetadataError, match=rf'datasources\.s\.fields\.f\.annotations\.columns\.{key}.*"{value}"'):
        made(**wrong)


def test_only_integers_have_the_width_of_a_type():
    with pytest.raises(MetadataError, match="invalid value"):
        made("<f4", width="type")


def test_a_column_can_print_another_field_but_only_one_that_is_there():
    with pytest.raises(MetadataError, match='field "absent" not found'):
        made(replace="absent")


@pytest.mark.parametrize(
    ("width", "ellipsis", "text"),
    [
        *((8, "end", "abcdefgh"), (7, "end", "abcdef…"), (7, "start", "…cdefgh"), (7, "", "abcdefg")),
        *((7, "middle", "abc…fgh"), (6, "middle", "abc…gh"), (2, "middle", "a…"), (3, "middle", "a…h")),
        *((1, "end", "…"), (1, "", "a"), (0, "end", ""), (1, "middle", "…"), (2, "start", "…h")),
    ],
)
def test_long_text_is_cut(width, ellipsis, text):
    assert cut("abcdefgh", width, ellipsis) == text


def test_text_is_escaped_as_go_quotes_it():
    assert escaped('a"b\\c\n\t\a\x00\x7f') == 'a\\"b\\\\c\\n\\t\\a\\x00\\x7f'
    assert escaped("é 😀 \xa0\x85\u200b\udcff\U000e0001") == "é 😀 \\u00a0\\u0085\\u200b\\xff\\U000e0001"


def test_numbers_print_in_cells(sampled):
    look = {"columns.alignment": "right"}
    fields = (
        Field("hex", "<i4", At(0), annotations={"columns.hex": "true"}),
        Field("wide", "<u8", At(4), annotations={"columns.width": "8", "columns.ellipsis": "end"}),
        Field("f", "<f8", At(12), annotations={**look, "columns.width": "8"}),
        Field("f2", "<f8", At(12), annotations={"columns.precision": "2", "columns.width": "8"}),
        Field("flag", "?", At(20), annotations={"columns.width": "type"}),
        Field("raw", "(3,)<u2", At(20)),
        Field("bytes", "|V5", At(20), annotations=look),
    )
    record = struct.pack("<IQd8s", 48879, 2**63, 2.5, b"\1")

    lines = sampled(DataSource("s", Kind.EVENTS, fields, size=28), record).text("columns").splitlines()

    assert lines[1] == "0xBEEF           9223372…        2 2.50     true  <6 bytes>               <5 bytes>"


def test_hex_and_fixed_point():
    assert [hexadecimal(number) for number in (0, 255, -255)] == ["0x0", "0xFF", "0x-FF"]
    assert [fixed_point(number, 1) for number in (1e22, float("nan"), float("-inf"))] == [
        *("10000000000000000000000.0", "NaN", "-Inf"),
    ]


def test_the_table_of_outputs_is_what_the_modules_say():
    for name, modes in plugins.OUTPUTS.items():
        module = plugins.output(modes[0] if modes else "advise")
        assert (name, modes) == (module.NAME, module.MODES)
