"""`--max-entries` cuts tables."""

import pytest

from igrun.engine.reference import ENGINE
from igrun.errors import ParamError
from igrun.metadata import GadgetMetadata
from igrun.operators import Given, Stage, limiter
from igrun.record import TICK, Batch, DataSource, Facts, Field, Framing, Kind, Reason, Region, Side

FIELD = Field("pid", "<u4", Side("pid"))
SOURCES = {
    "top": DataSource("top", Kind.TABLE, (FIELD,)),
    "other": DataSource("other", Kind.TABLE, (FIELD,)),
    "open": DataSource("open", Kind.EVENTS, (FIELD,)),
}


def bound(text: str):
    return limiter.bind(Given(GadgetMetadata(), None, SOURCES, {"max-entries": text}))


def limited(text: str, source: str, rows: int = 4) -> Batch:
    (step,) = bound(text)
    region = Region(bytes(rows), Framing.FIXED, 1)
    batch = Batch(SOURCES[source], region, ENGINE.columns(Facts({})), sides={"pid": list(range(rows))})
    (out,) = step.run(iter([batch]), None)
    return out


def test_a_table_keeps_its_first_rows_and_the_others_are_counted():
    out = limited("3", "top")

    assert list(out.values("pid")) == [0, 1, 2]
    assert out.lost == {Reason.CUT: 1}


def test_a_table_below_the_limit_passes():
    assert limited("4", "top").lost == {}


def test_a_limit_of_0_keeps_nothing():
    assert len(limited("0", "top")) == 0


def test_events_are_never_cut():
    assert len(limited("1", "open")) == 4


def test_a_table_that_is_not_named_is_not_limited():
    assert len(limited("top:1", "top")) == 1
    assert len(limited("top:1", "other")) == 4


def test_a_named_table_may_be_unlimited():
    assert len(limited("top:1,other:-1", "other")) == 4


def test_without_a_limit_there_is_no_step():
    assert limiter.bind(Given(GadgetMetadata(), None, SOURCES, {})) == ()
    assert bound("-1") == ()
    assert bound("") == ()
    assert bound("top:-1") == ()


def test_a_tick_passes():
    (step,) = bound("0")
    tick = Batch(TICK, Region(b"", Framing.FIXED, 1))

    assert list(step.run(iter([tick]), None)) == [tick]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x", "converting x to int"),
        ("-2", "-2 is not a number of rows"),
        ("top:-2", "top:-2 is not a number of rows"),
        (":1", ":1 is not a number of rows"),
        ("1,top:2", "mixed values with and without specifying data source"),
        ("open:1", "max-entries can only be used on array data sources"),
        ("nope:1", "data source nope not found"),
    ],
)
def test_a_wrong_limit_is_refused(text, message):
    with pytest.raises(ParamError) as caught:
        bound(text)

    assert message in str(caught.value)
    assert caught.value.key == "max-entries"


def test_its_flag_belongs_to_tables():
    param = limiter.MAX_ENTRIES
    assert limiter.STAGE is Stage.LIMIT
    assert (param.key, param.default, param.group, param.tags) == ("max-entries", "-1", "operator.limiter", ("table",))
