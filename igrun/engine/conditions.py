"""Predicates as tests of the record engine.

A predicate becomes a graph of tests. What the engine cannot test by itself the reference tests for it: once per
distinct value where it depends on a few bytes of the record, else row by row, on the rows that the engine keeps.
"""

from __future__ import annotations

from struct import Struct

from igrun.dataclass import replace
from igrun.engine import structs
from igrun.engine.printing import Filter
from igrun.engine.programs import Key, key_of, number, tables_of
from igrun.engine.shapes import shape
from igrun.engine.structs import Graph, Memo, Number, Op, Test
from igrun.record import And, At, Compare, Derived, Facts, Field, Holds, Matches, Not, Or, Predicate, Rest
from igrun.regex import regex

_ORDERS = {
    "==": structs.EQUAL,
    "!=": structs.LESS | structs.GREATER | structs.UNORDERED,
    "<": structs.LESS,
    "<=": structs.LESS | structs.EQUAL,
    ">": structs.GREATER,
    ">=": structs.GREATER | structs.EQUAL,
}
_MOST = (1 << 64) - 1
_TESTS = 1 << 15  # of one graph
_FEW = 16  # bytes of a text that has few values, such as a command's name
_LITERAL = regex(r"(\^?)((?:[^\\.^$*+?{}\[\]|()\0\ud800-\udfff]|\\[^0-9A-Za-z\0\ud800-\udfff])*)")
_ESCAPED = regex(r"(?s)\\(.)")


def graph(predicate: Predicate, facts: Facts) -> Graph:
    """The tests of a predicate. ParamError: an expression is wrong."""
    mine: list[Predicate] = []
    others: list[Predicate] = []
    for term in _terms(predicate):
        (mine if _can(term) else others).append(term)
    made = _Made(facts)
    first = made.test(And(tuple(mine)), structs.KEEP, structs.DROP)
    rest = None if not others else others[0] if len(others) == 1 else And(tuple(others))
    if len(made.tests) > _TESTS:
        return Graph((), structs.KEEP, predicate)
    return Graph(made.in_order(), made.place(first), rest)


def _terms(predicate: Predicate) -> list[Predicate]:
    """What all has to hold."""
    if not isinstance(predicate, And):
        return [predicate]
    return [one for term in predicate.terms for one in _terms(term)]


def _can(predicate: Predicate) -> bool:
    """Whether the engine can test it, with the reference's help once per distinct value."""
    match predicate:
        case Not(term):
            return _can(term)
        case And(terms) | Or(terms):
            return all(map(_can, terms))
        case Compare(field):
            return _plain(predicate) is not None or _key(field) is not None
        case Matches(field):
            return _literal(predicate) is not None or _key(field) is not None
        case Holds():
            return False


class _Made:
    """Tests, the last one first: a test stands behind those that follow it."""

    def __init__(self, facts: Facts) -> None:
        self.tests: list[Test] = []
        self._facts = facts

    def test(self, predicate: Predicate, then: int, otherwise: int) -> int:
        """Add the tests of a predicate; the first of them."""
        match predicate:
            case Not(term):
                return self.test(term, otherwise, then)
            case And(terms):
                for term in reversed(terms):
                    then = self.test(term, then, otherwise)
                return then
            case Or(terms):
                for term in reversed(terms):
                    otherwise = self.test(term, then, otherwise)
                return otherwise
            case Compare():
                found = _plain(predicate)
            case Matches():
                found = _literal(predicate)
            case Holds():
                raise TypeError("the reference tests it")
        if isinstance(found, bool):
            return then if found else otherwise
        if found is None:
            found = self._known(predicate)
        self.tests.append(replace(found, then=then, otherwise=otherwise))
        return len(self.tests) - 1

    def _known(self, predicate: Compare | Matches) -> Test:
        judge = Filter(predicate, self._facts)
        key = _key(predicate.field) or ()
        tables = tables_of(predicate.field)
        memo = Memo(key, lambda batch, record, key: b"1" if judge.holds(batch, record) else b"", tables)
        return Test(structs.TEST_KNOWN, 0, 0, memo=memo)

    def place(self, test: int) -> int:
        """Where a test stands in the end."""
        return test if test >= structs.DROP else len(self.tests) - 1 - test

    def in_order(self) -> tuple[Test, ...]:
        return tuple(
            replace(test, then=self.place(test.then), otherwise=self.place(test.otherwise))
            for test in reversed(self.tests)
        )


def _key(field: Field) -> Key | None:
    """What the verdict depends on, where that has few values."""
    key = key_of(field)
    derived = isinstance(field.place, Derived)
    return key if key and (derived or sum(part.size for part in key) <= _FEW) else None


# ---------------------------------------------------------------------------------------------- single tests


def _plain(predicate: Compare) -> Test | bool | None:
    """The engine's own test, or the verdict if it is always the same; None: it has none."""
    field, order, value = predicate.field, predicate.operator, predicate.value
    place = number(field)
    if isinstance(value, str):
        text = _text(field)
        literal = value.encode("utf-8", "surrogateescape")
        return None if text is None else Test(structs.TEST_TEXT, 0, 0, _ORDERS[order], literal, value=text)
    if place is not None:
        return _within(place, field, order, value) if isinstance(value, int) else None
    return _float(field, order, value)


def _float(field: Field, order: str, value: int | float) -> Test | None:
    known = shape(field.dtype or "V")
    kind = {4: structs.TEST_F4, 8: structs.TEST_F8}.get(known.size)
    if known.kind != "f" or known.items is not None or known.big_endian or kind is None:
        return None
    try:
        wanted = float(value)
    except OverflowError:
        return None
    if isinstance(value, int) and int(wanted) != value:
        return None
    match field.place:
        case At(offset, None) if 0 <= offset <= structs.SPAN - known.size:
            operand = Struct("<d").pack(wanted)
            return Test(kind, 0, 0, _ORDERS[order], operand, value=Op(structs.NOTHING, offset=offset))
    return None


def _within(place: Number, field: Field, order: str, value: int) -> Test | bool:
    """A comparison of integers is one with an interval."""
    if shape(field.dtype or "V").kind == "b":
        holds = [bool(_ORDERS[order] & _order(one, value)) for one in (0, 1)]
        if holds[0] == holds[1]:
            return holds[0]
        low, high = (1, _MOST) if holds[1] else (0, 0)
        return _interval(place, low, high)
    least, most = (-1 << 63, (1 << 63) - 1) if place.signed else (0, _MOST)
    match order:
        case "==":
            low, high = value, value
        case "!=":
            # all the others, counted around
            return _interval(place, value + 1, value - 1 + (1 << 64)) if least <= value <= most else True
        case "<":
            low, high = least, value - 1
        case "<=":
            low, high = least, value
        case ">":
            low, high = value + 1, most
        case _:
            low, high = value, most
    low, high = max(low, least), min(high, most)
    if low > high:
        return False
    return True if (low, high) == (least, most) else _interval(place, low, high)


def _interval(place: Number, low: int, high: int) -> Test:
    operand = (low & _MOST).to_bytes(8, "little")
    return Test(structs.TEST_INTEGER, 0, 0, operand=operand, span=high - low, value=Op(structs.INTEGER, place))


def _order(one: int, other: int) -> int:
    return structs.LESS if one < other else structs.GREATER if one > other else structs.EQUAL


def _text(field: Field) -> Op | None:
    """Where a text up to a NUL is."""
    known = shape(field.dtype or "V")
    if known.items is not None:
        return None
    match field.place:
        case At(offset, None) if known.kind == "S" and 0 <= offset <= structs.SPAN - known.size:
            return Op(structs.RAW, offset=offset, size=known.size)
        case Rest(length) if known.kind == "T":
            upto = None if length is None else number(length)
            if length is None or upto is not None:
                return Op(structs.RAW, size=structs.REST, other=upto or Number(), has_length=upto is not None)
    return None


def _literal(predicate: Matches) -> Test | None:
    """A test for an expression that is only a text, or one at the start."""
    found = _LITERAL.fullmatch(predicate.pattern)
    text = _text(predicate.field)
    if found is None or text is None:
        return None
    literal = _ESCAPED.sub(r"\1", found[2]).encode()
    return Test(structs.TEST_PREFIX if found[1] else structs.TEST_PART, 0, 0, operand=literal, value=text)
