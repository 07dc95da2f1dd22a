"""Events one at a time say what columns do."""

import asyncio
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igrun.books import Books
from igrun.engine.reference import ENGINE
from igrun.errors import UnsupportedError
from igrun.record import At, Batch, DataSource, Derived, Facts, Field, Framing, Kind, Lookup, Region, frame
from igrun.runtime import Run
from igrun.views import Event
from tests.unit.test_engine_columnar import layouts, regions

FACTS = Facts({"name": lambda key: (f"<{key}>",)})


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_an_event_says_what_columns_do(data):
    source = data.draw(layouts())
    raw = next((one for one in source.fields if one.dtype in ("<u4", "<u2", "|u1")), None)
    if raw:
        source = source.having(Field("name", "T", Derived((raw,), Lookup("name"))))
    batch = Batch(source, data.draw(regions(source.size)), ENGINE.columns(FACTS))
    if len(batch):
        batch = batch.select(data.draw(st.lists(st.integers(0, len(batch) - 1))), None)

    view = Event()
    seen = [event.as_dict() for event in view.of(batch)]

    assert repr(seen) == repr(list(batch.rows()))


def batch_of(*numbers: int) -> Batch:
    memory = b"".join(number.to_bytes(4, "little") for number in numbers)
    return Batch(SOURCE, Region(memory, Framing.FIXED, 4), ENGINE.columns(FACTS))


SOURCE = DataSource("s", Kind.EVENTS, (Field("proc.pid", "<u4", At(0), annotations={"columns.alias": "pid"}),), size=4)


def test_an_event_is_one_object_and_goes_from_batch_to_batch():
    view, objects, values = Event(), set(), []
    for batch in (batch_of(1, 2), batch_of(3)):
        for event in view.of(batch):
            objects.add(id(event))
            values.append((event["proc.pid"], event["PID"], event.source, "pid" in event, "tid" in event))

    assert len(objects) == 1
    assert values == [(number, number, "s", True, False) for number in (1, 2, 3)]


def test_a_field_that_is_not_there_is_a_key_error():
    for event in Event().of(batch_of(1)):
        with pytest.raises(KeyError, match="tid"):
            event["tid"]


class Ended(Run):
    """A run whose batches are there already."""

    def __init__(self, *batches: Batch) -> None:
        self.gadget = SimpleNamespace(values={})
        self.sources = {"s": SOURCE}
        self.books = Books(self.sources)
        self._batches = iter(batches)
        self._pending = {}
        self._balanced = True
        self._events = SimpleNamespace(stop=lambda: None)


def test_a_run_calls_back_and_counts():
    run, batches, events = Ended(batch_of(1, 2), batch_of(3)), [], []
    run.on_batch(lambda batch: batches.append(len(batch)))
    assert batches == [2, 1]
    assert run.delivered["s"] == 3

    Ended(batch_of(1, 2), batch_of(3)).on_event(lambda event: events.append(event["pid"]))
    assert events == [1, 2, 3]


def test_a_run_is_iterated_in_asyncio():
    async def all_of(run):
        return [value async for batch in run for value in batch.values("pid")]

    assert asyncio.run(all_of(Ended(batch_of(1, 2), batch_of(3)))) == [1, 2, 3]


@pytest.mark.parametrize("library", ["arrow", "pandas", "polars"])
def test_a_run_is_a_table(library):
    pytest.importorskip(f"py{library}" if library == "arrow" else library, reason=f"{library} is not installed")
    for made in (
        getattr(Ended(batch_of(1, 2), batch_of(3)), f"to_{library}")(),
        getattr(batch_of(1, 2, 3), f"to_{library}")("pid"),
    ):
        column = made["proc.pid"]
        assert (column.to_pylist() if library == "arrow" else list(column)) == [1, 2, 3]


def test_a_library_that_is_not_installed_is_named():
    with pytest.raises(UnsupportedError, match="nopandas cannot be imported"):
        frame("nopandas", None)
