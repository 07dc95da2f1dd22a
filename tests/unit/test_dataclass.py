"""Data classes behave as those of the standard library do, and cost little."""

import copy
import dataclasses
import pickle
import subprocess
import sys
from typing import Any, Generic, TypeVar

import pytest

from igrun import dataclass as ours
from igrun.record import At, DataSource, Field, Kind

T = TypeVar("T")


def of_both(**options: Any) -> list[Any]:
    """The same class, made by the standard library and by ours."""
    found = []
    for module in (dataclasses, ours):

        @module.dataclass(**options)
        class Point:
            x: int
            y: int = 2
            tags: list[str] = module.field(default_factory=list, compare=False)
            note: str = module.field(default="", repr=False)

        Point.__qualname__ = "Point"
        found.append(Point)
    return found


FROZEN = {"frozen": True, "slots": True}
CALLS = [((1,), {}), ((1, 3), {}), ((1, 3, ["a"], "n"), {}), ((), {"x": 4, "note": "m"})]
WRONG = [((), {}), ((1, 2, [], "", 5), {}), ((1,), {"x": 2}), ((1,), {"z": 2})]


@pytest.mark.parametrize("options", [{}, {"slots": True}, {"frozen": True}, FROZEN, {**FROZEN, "eq": False}])
def test_objects_are_made_and_printed_as_those_of_the_standard_library(options):
    standard, own = of_both(**options)

    for args, given in CALLS:
        one, other = standard(*args, **given), own(*args, **given)
        assert repr(one).replace("of_both.<locals>.", "") == repr(other).replace("of_both.<locals>.", "")
        assert (one.x, one.y, one.tags, one.note) == (other.x, other.y, other.tags, other.note)


@pytest.mark.parametrize(("args", "given"), WRONG)
def test_wrong_arguments_are_refused(args, given):
    for kind in of_both():
        with pytest.raises(TypeError):
            kind(*args, **given)


def test_only_the_fields_that_compare_do():
    for kind in of_both(frozen=True):
        assert kind(1, tags=["a"]) == kind(1, tags=["b"]) != kind(2)
        assert hash(kind(1)) == hash(kind(1, tags=["b"]))
        assert kind(1) != "something else"


def test_those_that_change_have_no_hash_and_those_without_equality_are_themselves():
    for kind in of_both():
        with pytest.raises(TypeError):
            hash(kind(1))
    for kind in of_both(eq=False):
        assert kind(1) != kind(1)
        assert hash(kind(1))


def test_frozen_ones_do_not_change():
    for kind in of_both(**FROZEN):
        one = kind(1)
        with pytest.raises(AttributeError):
            one.x = 2
        with pytest.raises(AttributeError):
            del one.x


def test_slots_take_no_other_attribute():
    for kind in of_both(slots=True):
        one = kind(1)
        one.x = 5
        assert one.x == 5
        with pytest.raises(AttributeError):
            one.other = 1


def test_defaults_are_made_anew():
    for kind in of_both():
        assert kind(1).tags is not kind(1).tags


def test_ordered_ones_sort():
    for kind in of_both(order=True):
        assert [one.x for one in sorted([kind(3), kind(1), kind(2)])] == [1, 2, 3]
        with pytest.raises(TypeError):
            _ = kind(1) < 1


def test_a_subclass_has_the_fields_of_its_base_first():
    for module in (dataclasses, ours):

        @module.dataclass(frozen=True)
        class Base:
            a: int
            b: int = 1

        @module.dataclass(frozen=True)
        class More(Base):
            c: int = 2

        one = More(7, c=9)
        assert (one.a, one.b, one.c) == (7, 1, 9)
        assert one != Base(7)


def test_keywords_only_and_what_comes_after():
    @ours.dataclass(kw_only=True)
    class Checked:
        low: int
        high: int = 10

        def __post_init__(self) -> None:
            if self.low > self.high:
                raise ValueError("low above high")

    assert Checked(low=1).high == 10
    with pytest.raises(TypeError):
        Checked(1)
    with pytest.raises(ValueError, match="above"):
        Checked(low=11)


def test_generic_ones_are_generic():
    @ours.dataclass(frozen=True, slots=True)
    class Box(Generic[T]):
        content: T

    assert Box[int](3) == Box(3)


def test_patterns_match_by_place():
    match At(8, (1, 2)):
        case At(offset, bits):
            assert (offset, bits) == (8, (1, 2))
        case _:
            pytest.fail("it did not match")


def test_copies_are_equal_and_changed_where_asked():
    field = Field("a.b", "<u4", At(4), annotations={"k": "v"})
    source = DataSource("s", Kind.EVENTS, (field,))

    for made in (copy.copy(source), copy.deepcopy(source), pickle.loads(pickle.dumps(source))):
        assert made == source
    assert ours.replace(field, name="c").name == "c"
    assert ours.replace(field, name="c").place == At(4)
    with pytest.raises(TypeError):
        ours.replace(field, nothing=1)


def test_the_module_imports_nothing_heavy():
    script = "import sys; before = set(sys.modules); import igrun.record; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-S", "-c", script], capture_output=True, text=True, check=False)
    if done.returncode:  # where igrun is installed, site finds it
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert not set(done.stdout.split()) & {"dataclasses", "inspect", "ast", "dis", "tokenize"}
