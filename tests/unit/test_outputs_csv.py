"""Comma-separated values: what columns show, whole, and readable by everybody's reader."""

import csv
import io
import struct

import pytest

from igrun.errors import ParamError
from igrun.record import At, DataSource, Field, Kind


def read(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text, newline="")))


def test_the_first_line_names_the_fields_as_the_flag_does(trace_open):
    text = trace_open.text("csv")

    assert text.splitlines()[:3] == [
        "proc.comm,proc.pid,proc.tid,proc.parent.tid,fd,fname,fpath,error,mode",
        "sh,269,269,248,3,/dev/null,,,-rw-rw-rw-",
        "cat,1553,1553,269,3,/etc/hosts,,,----------",
    ]


def test_fields_are_chosen_as_those_of_columns_are(trace_open):
    assert trace_open.text("csv", fields="fname,fd").splitlines()[:2] == ["fname,fd", "/dev/null,3"]
    with pytest.raises(ParamError, match='column "nam" is invalid'):
        trace_open.text("csv", fields="nam")


def test_fields_are_added_and_taken_away(trace_open):
    assert trace_open.text("csv", fields="-fd,+mode_raw").splitlines()[1] == "sh,269,269,248,/dev/null,,,-rw-rw-rw-,438"


def test_values_with_commas_quotes_and_line_breaks_come_back(sampled):
    fields = (Field("a,b", "|S16", At(0)), Field("n", "<i4", At(16)), Field("x", "|V4", At(20)))
    source = DataSource("odd", Kind.EVENTS, fields, size=24)
    texts = ['say "no"', "one, two", "line\nbreak", "cr\rhere", "plain", "", " padded "]
    records = [struct.pack("<16si4s", text.encode(), -at, b"\x00\x01\xfe\xff") for at, text in enumerate(texts)]

    header, *rows = read(sampled(source, *records).text("csv"))

    assert header == ["a,b", "n", "x"]
    assert rows == [[text, str(-at), "0001feff"] for at, text in enumerate(texts)]


def test_bytes_that_are_no_text_do_not_break_the_reader(sampled):
    source = DataSource("odd", Kind.EVENTS, (Field("name", "|S4", At(0)),), size=4)

    assert read(sampled(source, b"\xff,\xc3\x00").text("csv")) == [["name"], ["\ufffd,\ufffd"]]


def test_a_table_has_one_first_line(snapshot_process):
    writer = snapshot_process.open("csv")
    writer.write(snapshot_process.batch())
    writer.write(snapshot_process.batch())
    writer.close()

    text = b"".join(snapshot_process.printed).decode()
    assert text.splitlines() == [
        "comm,pid,tid,parent.tid",
        *["sh,269,269,248", "dnsd,296,296,269"] * 2,
    ]
