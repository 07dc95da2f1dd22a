"""`--sort` orders the rows of tables."""

import pytest
from hypothesis import given as always
from hypothesis import strategies as st

from igrun.engine.reference import ENGINE
from igrun.errors import ParamError
from igrun.metadata import GadgetMetadata
from igrun.operators import Given, Stage, sort
from igrun.record import TICK, Batch, DataSource, Facts, Field, Framing, Kind, Region, Side

FIELDS = {"pid": "<u4", "reads": "<i8", "share": "<f8", "kernel": "?", "comm": "T", "buf": "O", "stack": "(4,)<u8"}
TABLE = DataSource("top", Kind.TABLE, tuple(Field(name, dtype, Side(name)) for name, dtype in FIELDS.items()))
OTHER = DataSource("other", Kind.TABLE, TABLE.fields)
EVENTS = DataSource("open", Kind.EVENTS, TABLE.fields)


def bound(text: str, *sources: DataSource):
    return sort.bind(Given(GadgetMetadata(), None, {one.name: one for one in sources or (TABLE,)}, {"sort": text}))


def batch(rows: list[dict], source: DataSource = TABLE) -> Batch:
    sides = {name: [row.get(name, 0) for row in rows] for name in FIELDS}
    return Batch(source, Region(bytes(len(rows)), Framing.FIXED, 1), ENGINE.columns(Facts({})), sides=sides)


def ordered(text: str, rows: list[dict], *names: str) -> list:
    (step,) = bound(text)
    (out,) = step.run(iter([batch(rows)]), None)
    assert not out.lost
    return list(zip(*(out.values(name) for name in names), strict=True))


def test_rows_are_sorted_by_the_first_key_then_by_the_next():
    rows = [{"pid": 2, "comm": "a"}, {"pid": 1, "comm": "b"}, {"pid": 2, "comm": "c"}, {"pid": 1, "comm": "a"}]

    assert ordered("pid,-comm", rows, "pid", "comm") == [(1, "b"), (1, "a"), (2, "c"), (2, "a")]


def test_equal_rows_stay_as_they_are_also_in_descending_order():
    rows = [{"pid": 1, "comm": "x"}, {"pid": 2, "comm": "y"}, {"pid": 1, "comm": "z"}]

    assert ordered("-pid", rows, "pid", "comm") == [(2, "y"), (1, "x"), (1, "z")]


def test_text_is_ordered_by_its_bytes():
    rows = [{"comm": text} for text in ("é", "z", "Z", "\udcff", "\uffff")]

    assert ordered("comm", rows, "comm") == [("Z",), ("z",), ("é",), ("\uffff",), ("\udcff",)]


def test_booleans_can_be_sorted_by():
    assert ordered("-kernel", [{"kernel": False}, {"kernel": True}], "kernel") == [(True,), (False,)]


def test_what_is_no_number_comes_first():
    rows = [{"share": value} for value in (1.0, float("nan"), -1.0)]

    assert [str(value) for (value,) in ordered("share", rows, "share")] == ["nan", "-1.0", "1.0"]


def test_a_field_is_found_without_case():
    assert ordered("PID", [{"pid": 2}, {"pid": 1}], "pid") == [(1,), (2,)]


def test_each_source_has_its_own_keys():
    (step,) = bound("top:pid;other:-pid", TABLE, OTHER)
    rows = [{"pid": 1}, {"pid": 2}]

    out = step.run(iter([batch(rows), batch(rows, OTHER)]), None)

    assert [list(one.values("pid")) for one in out] == [[1, 2], [2, 1]]


def test_keys_without_a_source_sort_every_table_and_no_events():
    (step,) = bound("-pid", TABLE, EVENTS, OTHER)
    rows = [{"pid": 1}, {"pid": 2}]

    out = step.run(iter([batch(rows), batch(rows, EVENTS), batch(rows, OTHER)]), None)

    assert [list(one.values("pid")) for one in out] == [[2, 1], [1, 2], [2, 1]]


def test_a_tick_and_an_empty_table_pass():
    (step,) = bound("pid")
    tick = Batch(TICK, Region(b"", Framing.FIXED, 1))

    out = list(step.run(iter([tick, batch([])]), None))

    assert out[0] is tick
    assert len(out[1]) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nope", "field nope not found"),
        ("pid,,comm", "field  not found"),
        ("buf", "field buf cannot be used for sorting"),
        ("-stack", "field stack cannot be used for sorting"),
        ("open:pid", "sort can only be used on array data sources"),
        ("nope:pid", "data source nope not found"),
        ("top:pid;-pid", "mixing sorting rules with and without specifying data source"),
    ],
)
def test_a_wrong_rule_is_refused(text, message):
    with pytest.raises(ParamError) as caught:
        bound(text, TABLE, EVENTS)

    assert str(caught.value) == message
    assert caught.value.key == "sort"


def test_events_alone_cannot_be_sorted():
    with pytest.raises(ParamError, match="sort can only be used on array data sources"):
        bound("pid", EVENTS)


def test_nothing_to_sort_by_is_no_step():
    assert bound("") == ()
    assert bound(";") == ()


def test_its_flag_belongs_to_tables():
    assert sort.STAGE is Stage.ORDER
    assert (sort.SORT.key, sort.SORT.group, sort.SORT.tags) == ("sort", "operator.sort", ("table",))


ROWS = st.lists(
    st.fixed_dictionaries({"pid": st.integers(0, 3), "reads": st.integers(-2, 2), "comm": st.text("aZé", max_size=2)})
)
KEYS = st.lists(st.sampled_from(["pid", "reads", "comm"]).flatmap(lambda name: st.sampled_from([name, f"-{name}"])))


@always(ROWS, KEYS.filter(bool))
def test_it_sorts_as_sorted_does(rows, keys):
    expected = list(enumerate(rows))
    for key in reversed(keys):
        name = key.removeprefix("-")
        expected = sorted(
            expected,
            key=lambda row: row[1][name].encode() if name == "comm" else row[1][name],
            reverse=key.startswith("-"),
        )

    (step,) = bound(",".join(keys))
    (out,) = step.run(iter([batch(rows)]), None)

    assert list(out.selected) == [number for number, _ in expected]
