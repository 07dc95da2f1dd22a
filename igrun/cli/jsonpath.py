"""JSONPath (RFC 9535): names, indexes, slices, wildcards, descent and simple filters, on parsed JSON."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator
from typing import Any

from igrun.errors import ParamError

NAME = re.compile(r"[^\W\d][\w-]*")
NUMBER = re.compile(r"-?\d+")
SLICE = re.compile(r"(-?\d+)?\s*:\s*(-?\d+)?\s*(?::\s*(-?\d+)?)?")
TEXT = re.compile(r"'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\"")
FIELD = r"@((?:\.[^\W\d][\w-]*|\[(?:-?\d+|'[^']*'|\"[^\"]*\")\])*)"
TEST = re.compile(
    rf"\s*(!?)\s*{FIELD}\s*(?:(==|!=|<=|>=|<|>)\s*('[^']*'|\"[^\"]*\"|-?\d+(?:\.\d+)?|true|false|null))?\s*"
)
COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
UNDERSTOOD = "understood are .name ['name'] [0] [-1] [1:3] [0,2] * [*] ..name [?(@.a == 'b' && @.c > 1)]"
MOST_RESULTS = 1_000_000
DEEPEST = 200
Step = Callable[[Any], Iterator[Any]]


def find(value: Any, path: str) -> tuple[list[Any], bool]:
    """The values at a path (a leading $ may be left out), and whether it can lead to one at most.

    ParamError: the path is not understood
    """
    steps, single = compiled(path)
    found = [value]
    for step in steps:
        following: list[Any] = []
        for one in found:
            for result in step(one):
                following.append(result)
                if len(following) > MOST_RESULTS:
                    raise refused(path)
        found = following
    return found, single


def refused(path: str) -> ParamError:
    return ParamError("jsonpath", path, f'resolving path "{path}": {UNDERSTOOD}')


def compiled(path: str) -> tuple[list[Step], bool]:
    """The steps of a path, and whether each leads to one value at most."""
    text = path.strip().removeprefix("$")
    steps: list[Step] = []
    single, at = True, 0
    if text and text[0] not in ".[":
        text = f".{text}"
    while at < len(text):
        if text.startswith("..", at):
            steps.append(everything)
            single, at = False, at + 2
            if text[at : at + 1] == "[":
                continue
        elif text[at] == ".":
            at += 1
        elif text[at] == "[":
            end = closing(text, at, path)
            inside = text[at + 1 : end].strip()
            one = bool(NUMBER.fullmatch(inside) or TEXT.fullmatch(inside))
            steps.append(bracket(inside, path))
            single, at = single and one, end + 1
            continue
        else:
            raise refused(path)
        if text[at : at + 1] == "*":
            steps.append(children)
            single, at = False, at + 1
        elif match := NAME.match(text, at):
            steps.append(named(match[0]))
            at = match.end()
        else:
            raise refused(path)
    return steps, single


def closing(text: str, at: int, path: str) -> int:
    """Where the bracket at `at` is closed; quoted ones do not count."""
    depth, quote = 0, ""
    for place in range(at, len(text)):
        letter = text[place]
        if quote:
            quote = "" if letter == quote and text[place - 1] != "\\" else quote
        elif letter in "'\"":
            quote = letter
        elif letter == "[":
            depth += 1
        elif letter == "]":
            depth -= 1
            if depth == 0:
                return place
    raise refused(path)


def bracket(inside: str, path: str) -> Step:
    """What stands between [ and ]."""
    if inside.startswith("?"):
        return filtered(inside[1:].strip(), path)
    parts = [part.strip() for part in re.findall(r"(?:'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|[^,'\"])+", inside)]
    steps: list[Step] = []
    for part in parts:
        match = TEXT.fullmatch(part)
        if match:
            steps.append(named(re.sub(r"\\(.)", r"\1", match[1] if match[1] is not None else match[2])))
        elif part == "*":
            steps.append(children)
        elif NUMBER.fullmatch(part):
            steps.append(indexed(int(part)))
        elif found := SLICE.fullmatch(part):
            bounds = [int(one) if one else None for one in found.groups()]
            if bounds[2] == 0:
                raise refused(path)
            steps.append(sliced(slice(*bounds)))
        else:
            raise refused(path)
    if not steps:
        raise refused(path)
    return steps[0] if len(steps) == 1 else lambda value: (one for step in steps for one in step(value))


def named(name: str) -> Step:
    return lambda value: iter((value[name],) if isinstance(value, dict) and name in value else ())


def indexed(number: int) -> Step:
    return lambda value: iter(
        (value[number],) if isinstance(value, list) and -len(value) <= number < len(value) else ()
    )


def sliced(part: slice) -> Step:
    return lambda value: iter(value[part] if isinstance(value, list) else ())


def children(value: Any) -> Iterator[Any]:
    """The members of an object, the elements of a list."""
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list):
        yield from value


def everything(value: Any, depth: int = 0) -> Iterator[Any]:
    """The value itself and all below it."""
    yield value
    if depth < DEEPEST:
        for one in children(value):
            yield from everything(one, depth + 1)


def filtered(text: str, path: str) -> Step:
    """?(tests joined by && and ||, && first)."""
    if text.startswith("(") and text.endswith(")"):
        text = text[1:-1]
    any_of = [[test(part, path) for part in one.split("&&")] for one in text.split("||")]
    return lambda value: (one for one in children(value) if any(all(test(one) for test in tests) for tests in any_of))


def test(text: str, path: str) -> Callable[[Any], bool]:
    """One test of a filter."""
    match = TEST.fullmatch(text)
    if match is None:
        raise refused(path)
    negated, field, sign, literal = match.groups()
    steps, _ = compiled(f"${field}")

    def holds(value: Any) -> bool:
        found = [value]
        for step in steps:
            found = [result for one in found for result in step(one)]
        if not sign:
            return bool(found) != bool(negated)
        try:
            return bool(found) and COMPARE[sign](found[0], literal_of(literal)) != bool(negated)
        except TypeError:  # a number is neither less nor more than a text
            return False

    return holds


def literal_of(text: str) -> Any:
    if text[0] in "'\"":
        return text[1:-1]
    known = {"true": True, "false": False, "null": None}
    return known[text] if text in known else float(text) if "." in text else int(text)
