"""How a run puts its steps together."""

from array import array
from collections.abc import Iterator

from igrun.operators import Step
from igrun.record import TICK, And, Batch, Compare, DataSource, Field, Framing, Kind, Reason, Region
from igrun.runtime import as_values, chained

FIELD = Field("n", "<u4", None)
SOURCE = DataSource("s", Kind.EVENTS, (FIELD,), size=4)


class Numbers:
    """Columns of a batch whose records are little-endian u32."""

    def walk(self, region: Region):
        from igrun.record import Records

        count = len(region.memory) // 4
        return Records(array("Q", range(0, count * 4, 4)), array("I", [4] * count))

    def values(self, batch: Batch, field: Field):
        words = memoryview(bytes(batch.region.memory)).cast("I")
        return [words[row] for row in (range(len(words)) if batch.selected is None else batch.selected)]

    def where(self, batch: Batch, predicate):
        terms = predicate.terms if isinstance(predicate, And) else (predicate,)
        rows = range(len(batch.walked().offsets)) if batch.selected is None else batch.selected
        values = dict(zip(rows, self.values(batch, FIELD), strict=True))
        return array("I", [row for row in rows if all(values[row] > term.value for term in terms)])

    def numpy(self, batch, fields):
        raise AssertionError


def batches(*numbers: int) -> Iterator[Batch]:
    yield Batch(SOURCE, Region(array("I", numbers).tobytes(), Framing.FIXED, 4), Numbers())


def above(number: int) -> Step:
    return Step(sources={"s": SOURCE}, keep={"s": Compare(FIELD, ">", number)})


def seeing(seen: list[int]) -> Step:
    def run(incoming, loaded):
        for batch in incoming:
            seen.extend(batch.values(FIELD) if batch.source is not TICK else [])
            yield batch

    return Step(sources={"s": SOURCE}, run=run)


def test_a_filter_declared_before_a_procedural_step_is_applied_in_front_of_it():
    seen: list[int] = []

    pending, out = chained((above(2), seeing(seen), above(3)), batches(1, 2, 3, 4), None)
    kept = [batch.where(pending["s"]) for batch in out]

    assert seen == [3, 4]
    assert [list(batch.values(FIELD)) for batch in kept] == [[4]]
    assert kept[0].lost == {Reason.FILTERED: 3}


def test_filters_of_two_steps_both_hold():
    pending, out = chained((above(1), above(2)), batches(1, 2, 3), None)

    assert list(next(out).where(pending["s"]).values(FIELD)) == [3]


def test_ticks_pass_every_step():
    tick = Batch(TICK, Region(b"", Framing.FIXED, 1))

    _, out = chained((above(1), seeing([])), iter([tick]), None)

    assert next(out).source is TICK


def test_python_values_become_param_texts_under_the_keys_of_the_gadget():
    known = ["failed", "max-entries", "filter.open", "ig_build_id_max_entries"]

    values = as_values({"failed": True, "max_entries": 3, "filter_open": "a==b", "ig_build_id_max_entries": 5}, known)

    assert values == {"failed": "true", "max-entries": "3", "filter.open": "a==b", "ig_build_id_max_entries": "5"}


def test_an_argument_that_is_no_param_keeps_its_name_for_the_error():
    assert as_values({"fialed": 1}, ["failed"]) == {"fialed": "1"}
