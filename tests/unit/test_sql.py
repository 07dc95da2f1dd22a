"""`--sql` answers queries over windows of what a gadget prints."""

import struct
import sys
from types import SimpleNamespace

import pytest

from igrun.engine.reference import ENGINE
from igrun.errors import ParamError, UnsupportedError
from igrun.metadata import GadgetMetadata
from igrun.operators import Given, sql
from igrun.record import TICK, At, Batch, DataSource, Facts, Field, Framing, Kind, Region

pytest.importorskip("duckdb", reason="duckdb is not installed: pip install igrun[sql]")
pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install igrun[sql]")

FIELDS = Field("proc.pid", "<u4", At(0)), Field("proc.comm", "|S4", At(4))
OPEN = DataSource("open", Kind.EVENTS, FIELDS, size=8)
TOP = DataSource("top", Kind.TABLE, FIELDS, size=8)
LOADED = SimpleNamespace(host=SimpleNamespace(wall_minus_boot_ns=0))


def bound(query: str, window: str = "0", sources=None):
    sources = sources or {"open": OPEN}
    (step,) = sql.bind(Given(GadgetMetadata(), None, sources, {"sql": query, "sql-window": window}))
    return step


def batch(source, *rows) -> Batch:
    memory = b"".join(struct.pack("<I4s", pid, comm) for pid, comm in rows)
    return Batch(source, Region(memory, Framing.FIXED, 8), ENGINE.columns(Facts({})))


def answers(step, *batches):
    return [list(one.rows()) for one in step.run(iter(batches), LOADED) if one.source.name == "sql"]


ROWS = ((1, b"cat"), (1, b"cat"), (2, b"ls"))


def test_a_query_is_answered_at_the_end_where_there_is_no_window():
    step = bound("select proc_comm, count(*) n from open group by all order by n desc")

    assert answers(step, batch(OPEN, *ROWS), batch(OPEN, (3, b"ls")), batch(OPEN, (3, b"ls"))) == [
        [{"proc_comm": "ls", "n": 3}, {"proc_comm": "cat", "n": 2}]
    ]


def test_a_window_holds_what_came_in_it(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(sql.time, "monotonic", lambda: now[0])
    step = bound("select sum(proc_pid) s from open", "1s")
    tick = Batch(TICK, Region(b"", Framing.RING))

    def batches():
        yield batch(OPEN, *ROWS)
        yield tick
        now[0] = 1.5
        yield tick
        yield batch(OPEN, (40, b"x"))

    found = [list(one.rows()) for one in step.run(batches(), LOADED) if one.source.name == "sql"]
    assert found == [[{"s": 4}], [{"s": 40}]]


def test_of_a_table_the_newest_state_counts():
    step = bound("select proc_pid from top", sources={"top": TOP})

    assert answers(step, batch(TOP, *ROWS), batch(TOP, (9, b"x"))) == [[{"proc_pid": 9}]]


def test_only_selected_rows_are_asked_over():
    step = bound("select count(*) n from open")

    assert answers(step, batch(OPEN, *ROWS).select([0], None)) == [[{"n": 1}]]


def test_sources_can_be_joined():
    step = bound("select open.proc_comm c from open join top using (proc_pid)", sources={"open": OPEN, "top": TOP})

    assert answers(step, batch(OPEN, *ROWS), batch(TOP, (2, b"ls"))) == [[{"c": "ls"}]]


def test_the_answer_takes_the_place_of_the_sources():
    step = bound("select 1 a, 'x' b, true c, 1.5::double d, null e")

    assert not step.sources["open"].referenced
    fields = step.sources["sql"].fields
    assert step.sources["sql"].kind is Kind.TABLE
    assert [(field.name, field.dtype) for field in fields] == [
        *(("a", "<i4"), ("b", "T"), ("c", "?"), ("d", "<f8"), ("e", "T"))
    ]
    assert answers(step, batch(OPEN, *ROWS)) == [[{"a": 1, "b": "x", "c": True, "d": 1.5, "e": ""}]]


def test_an_empty_answer_has_no_rows():
    assert answers(bound("select proc_pid from open where proc_pid > 5"), batch(OPEN, *ROWS)) == [[]]


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("select nothing from open", "nothing"),
        ("selec 1", "syntax error"),
        ("select * from closed", "closed"),
        ("create table t (a int)", "no query"),
        ("select * from read_csv('/etc/passwd')", "disabled"),
        ("copy open to '/tmp/x.csv'", "no query"),
        ("install httpfs", "no query"),
        ("select 1; select 2", "no query"),
    ],
)
def test_a_wrong_query_is_refused_before_anything_runs(query, problem):
    with pytest.raises(ParamError, match=problem):
        bound(query)


def test_a_query_that_fails_later_is_one_clear_line():
    step = bound("select error('bad pid ' || proc_pid) e from open")

    with pytest.raises(ParamError, match="bad pid 1"):
        answers(step, batch(OPEN, *ROWS))


def test_without_a_query_there_is_no_step_and_nothing_is_imported():
    assert sql.bind(Given(GadgetMetadata(), None, {"open": OPEN}, {})) == ()


def test_without_duckdb_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(UnsupportedError) as caught:
        bound("select 1")

    assert "igrun[sql]" in caught.value.hint
