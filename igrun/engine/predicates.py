"""Which rows a predicate keeps."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from typing import Any

from igrun.engine.shapes import shape
from igrun.engine.values import Column, Memo, Reading, values
from igrun.errors import ParamError
from igrun.record import And, Compare, Holds, Matches, Not, Or, Predicate

_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
Verdicts = Callable[[list[Sequence[Any]]], list[bool]]


def verdicts(reading: Reading, predicate: Predicate) -> Verdicts:
    """A function from the raw columns of `reading` to one bool per row."""
    match predicate:
        case Compare():
            return _comparison(reading, predicate)
        case Matches():
            return _search(reading, predicate)
        case Holds(fields, judge):
            return _judged(reading, [reading.add(field) for field in fields], judge)
        case Not(term):
            inner = verdicts(reading, term)
            return lambda columns: [not verdict for verdict in inner(columns)]
        case And(terms) | Or(terms):
            return _combined(reading, terms, all if isinstance(predicate, And) else any)


def _comparison(reading: Reading, predicate: Compare) -> Verdicts:
    column = reading.add(predicate.field)
    holds, wanted = _OPERATORS[predicate.operator], predicate.value
    if isinstance(wanted, str):
        as_bytes = wanted.encode("utf-8", "surrogateescape")
        return _each(column, lambda value: holds(_bytes(value), as_bytes))
    return _each(column, lambda value: holds(value, wanted))


def _search(reading: Reading, predicate: Matches) -> Verdicts:
    # An expression of RE2 arrives as the equal one of Python (igrun.patterns), but the time it takes is not bounded.
    try:
        search = re.compile(predicate.pattern).search
    except re.error as error:
        raise ParamError(
            "filter", predicate.pattern, f'invalid regular expression: "{predicate.pattern}"', hint=str(error)
        ) from None
    column = reading.add(predicate.field)
    if predicate.field.dtype is None or shape(predicate.field.dtype).kind not in "ST":
        raise ParamError("filter", predicate.pattern, "regex based filtering can only be used on strings")
    return _each(column, lambda value: search(value) is not None)


def _judged(reading: Reading, columns: list[Column], judge: Callable[[Any], bool]) -> Verdicts:
    rows = reading.add_rows()

    def judged(raw: list[Sequence[Any]]) -> list[bool]:
        if not columns:
            return [judge(())] * len(raw[rows])
        return list(map(judge, zip(*(values(raw, column) for column in columns), strict=True)))

    return judged


def _combined(reading: Reading, terms: tuple[Predicate, ...], join: Callable[[Any], bool]) -> Verdicts:
    inner = [verdicts(reading, term) for term in terms]
    # A constant column, so that the number of rows is known where there are no terms
    rows = reading.add_rows()

    def combined(columns: list[Sequence[Any]]) -> list[bool]:
        if not inner:
            return [join(())] * len(columns[rows])
        return [join(row) for row in zip(*(term(columns) for term in inner), strict=True)]

    return combined


def _each(column: Column, holds: Callable[[Any], bool]) -> Verdicts:
    finish = column.finish
    whole = holds if finish is None else lambda raw: holds(finish(raw))
    judge: Callable[[Any], bool] = Memo(whole).__getitem__ if column.memo else whole
    return lambda columns: list(map(judge, columns[column.raw]))


def _bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode("utf-8", "surrogateescape")
