"""Keep the rows that pass: `--filter field==value,other~pattern`."""

from __future__ import annotations

import math
import re
import struct

from igrun.errors import ParamError
from igrun.logs import Logger
from igrun.metadata import TEXT, Param
from igrun.operators import Given, Stage, Step, quoted
from igrun.record import And, Compare, DataSource, Field, Holds, Matches, Not, Predicate, Value

NAME = "filter"
STAGE = Stage.FILTER
FILTER = Param(
    "filter",
    TEXT,
    "",
    """Show only rows that pass all of these rules, separated by commas (\\, for a comma in a value):
  field==value   the field is exactly this value (also field=value)
  field!=value   it is not
  field>value    it is greater; >=, < and <= likewise
  field~value    its text matches the regular expression (RE2 syntax, https://github.com/google/re2/wiki/Syntax)
  field!~value   it does not""",
    per_source=True,
    group="operator.filter",
    alias="F",
    title="Filter",
)
EXPRESSION = Param(
    "filter-expr",
    TEXT,
    "",
    """Show only rows for which this expression is true (https://expr-lang.org):
  proc.comm == "cat" and fd > 3
  fname startsWith "/etc" or error in ["ENOENT", "EACCES"]
  dst.addr in cidr("10.0.0.0/8", "fd00::/8")""",
    per_source=True,
    group="operator.filter",
    alias="E",
    title="Filter Expression",
)
PARAMS = (FILTER, EXPRESSION)

RULE = r"(?s)([^!~><=]*)([!~><=]++)(.+)"
# operator -> (comparison, whether it is turned round)
OPERATORS = {
    "=": ("==", False),
    "==": ("==", False),
    "!=": ("==", True),
    "<": ("<", False),
    "<=": ("<=", False),
    ">": (">", False),
    ">=": (">=", False),
    "~": ("~", False),
    "!~": ("~", True),
}
BOOLS = {"true": True, "1": True, "false": False, "0": False}
FLOAT = r"(?ai)[+-]?(inf|infinity|nan|(\d+\.?\d*|\.\d+)(e[+-]?\d+)?)"


def bind(given: Given) -> tuple[Step, ...]:
    texts, expressions = texts_of(given, FILTER), texts_of(given, EXPRESSION)
    keep = {}
    for name, several in texts.items():
        source = given.sources[name]
        terms = [rule for text in several for rule in rules(text, source)]
        terms += [expression(text, source) for text in expressions[name] if text]
        if terms:
            keep[name] = terms[0] if len(terms) == 1 else And(tuple(terms))
    return (Step(sources=given.sources, keep=keep),) if keep else ()


def texts_of(given: Given, param: Param[str]) -> dict[str, list[str]]:
    """The filters of each source that is shown. ParamError: one is for none of them in particular."""
    shown = [name for name, source in given.sources.items() if source.referenced]
    texts = {name: [given.value(param, name)] for name in shown}
    everywhere = given.value(param)
    if everywhere and len(shown) != 1:
        hint = f"use {', '.join(f'--{param.key}.{name}' for name in shown)}"
        raise ParamError(param.key, everywhere, "there are several data sources: say which one to filter", hint=hint)
    if everywhere:
        texts[shown[0]].insert(0, everywhere)
    return texts


def expression(text: str, source: DataSource) -> Predicate:
    """What an expression says. ParamError: it is wrong. A row for which it has no answer does not pass."""
    from igrun.expressions import FAILURES, ExpressionError, compiled

    try:
        found = compiled(text, source.get)
    except (ExpressionError, *FAILURES) as problem:
        names = ", ".join(field.name for field in source.fields if field.place is not None and not field.hidden)
        raise ParamError(EXPRESSION.key, text, f"{EXPRESSION.key}: {problem}", hint=f"fields: {names}") from None
    told: list[str] = []

    def judge(values: tuple[Value, ...]) -> bool:
        try:
            return found.judge(values)
        except FAILURES as problem:
            if not told:  # once is enough for a run
                told.append(str(problem))
                Logger(__name__).warning("filter-expr has no answer for some rows, which are left out: %s", problem)
            return False

    return Holds(found.fields, judge)


def rules(text: str, source: DataSource) -> list[Predicate]:
    """The rules of a filter, in order. ParamError: one is wrong."""
    return [predicate(rule, source) for rule in split(text) if rule]


def split(text: str) -> list[str]:
    r"""The parts between commas. `\,` is a comma and `\\` a backslash; any other backslash stands for itself."""
    parts = [""]
    for token in re.findall(r"\\[\\,]|.", text, re.DOTALL):
        if token == ",":
            parts.append("")
        else:
            parts[-1] += token[-1]
    return parts


def predicate(rule: str, source: DataSource) -> Predicate:
    """What one rule says."""
    found = re.fullmatch(RULE, rule)
    if found is None:
        raise wrong(rule, f"incomplete filter rule: {quoted(rule)}", hint="a rule is a field, an operator and a value")
    name, operator, text = found.groups()
    if operator not in OPERATORS:
        raise wrong(rule, f"invalid operation: {quoted(operator)}", hint=f"operators: {' '.join(OPERATORS)}")
    field = field_of(rule, name, source)
    comparison, negated = OPERATORS[operator]
    term = matching(rule, field, text) if comparison == "~" else comparing(rule, field, comparison, text)
    return Not(term) if negated else term


def field_of(rule: str, name: str, source: DataSource) -> Field:
    try:
        return source.field(name)
    except ParamError as error:
        message = f"field {quoted(name)} not found in datasource {source.name}"
        raise wrong(rule, message, hint=error.hint) from None


def matching(rule: str, field: Field, text: str) -> Predicate:
    if kind_of(field) != "text":
        raise wrong(rule, "regex based filtering can only be used on strings")
    from igrun.patterns import python_pattern

    try:
        return Matches(field, python_pattern(text))
    except ValueError as problem:
        raise wrong(rule, f"invalid regular expression: {quoted(text)}", hint=str(problem)) from None


def comparing(rule: str, field: Field, operator: str, text: str) -> Predicate:
    kind = kind_of(field)
    if kind == "bool" and operator != "==":
        raise wrong(rule, "boolean values can only be filtered by exact match")
    try:
        match kind:
            case "text":
                return Compare(field, operator, text)
            case "bool":
                return Compare(field, operator, bool_value(text))
            case "int" | "uint":
                return Compare(field, operator, int_value(text, kind == "int", size_of(field)))
            case "float":
                return Compare(field, operator, float_value(text, size_of(field)))
    except ValueError as problem:
        raise wrong(rule, str(problem)) from None
    instead = field.annotations.get("columns.replace", "")
    hint = f"use {instead}" if instead else ""
    raise wrong(rule, f"unsupported field type for comparison: {kind}", hint=hint)


def kind_of(field: Field) -> str:
    dtype = field.dtype or "V"
    letter = dtype.lstrip("<|=")[:1]
    if dtype.startswith("("):
        return "array"
    return {"S": "text", "T": "text", "i": "int", "u": "uint", "f": "float", "?": "bool"}.get(letter, "bytes")


def size_of(field: Field) -> int:
    return int((field.dtype or "").lstrip("<|=")[1:])


def bool_value(text: str) -> bool:
    if text not in BOOLS:
        raise ValueError(f"parsing comparison value {quoted(text)} as bool")
    return BOOLS[text]


def int_value(text: str, signed: bool, size: int) -> int:
    """A decimal number that fits; ValueError otherwise."""
    name, parse = ("int", "ParseInt") if signed else ("uint", "ParseUint")
    problem = f"parsing comparison value as {name}: strconv.{parse}: parsing {quoted(text)}: "
    if not re.fullmatch(r"[+-]?[0-9]+" if signed else r"[0-9]+", text):
        raise ValueError(problem + "invalid syntax")
    lowest, highest = (-(1 << 8 * size - 1), (1 << 8 * size - 1) - 1) if signed else (0, (1 << 8 * size) - 1)
    # more digits than any of them has; int() refuses thousands
    if len(text.lstrip("+-0")) > 20 or not lowest <= int(text) <= highest:
        raise ValueError(problem + "value out of range")
    return int(text)


def float_value(text: str, size: int) -> float:
    """The number nearest to it that a field of this many bytes can hold; ValueError if there is none."""
    problem = f"parsing comparison value as float: strconv.ParseFloat: parsing {quoted(text)}: "
    if not re.fullmatch(FLOAT, text):
        raise ValueError(problem + "invalid syntax")
    value = float(text)
    named = text.lstrip("+-")[0] in "iInN"
    try:
        nearest: float = struct.unpack("<f", struct.pack("<f", value))[0] if size == 4 else value
    except OverflowError:
        nearest = float("inf")
    if not named and math.isinf(nearest):
        raise ValueError(problem + "value out of range")
    return nearest


def wrong(rule: str, problem: str, hint: str = "") -> ParamError:
    return ParamError(FILTER.key, rule, problem, hint=hint)
