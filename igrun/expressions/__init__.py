"""Boolean expressions over the fields of a row, in the language expr (https://expr-lang.org) as the ecosystem has it.

An expression is read once into closures; every name is a field, looked up before anything runs. Numbers are 64-bit
integers and floats, text compares bytewise. Maps, pipes, variables and dates of the language are refused.

`values`, `operators` and `functions` have what a part of an expression does; here it is read.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from igrun.expressions.functions import FUNCTIONS, OVER_ITEMS, constant_networks
from igrun.expressions.operators import binary
from igrun.expressions.values import (
    ExpressionError,
    Row,
    Typed,
    a_number,
    boolean,
    expect,
    integer,
    kind_of,
    literal,
    negation,
    negative,
    unquoted,
)
from igrun.record import Field, Value
from igrun.regex import regex

__all__ = ["FAILURES", "Expression", "ExpressionError", "compiled"]

LONGEST = 16384
DEEPEST = 64
TOKEN = regex(
    r"""(?xs)
      \s+ | /\*.*?\*/ | //[^\n]*
    | (?P<number> 0[xX][0-9a-fA-F_]+ | 0[bB][01_]+ | 0[oO][0-7_]+
        | (?: [0-9][0-9_]* (?: \.(?!\.) [0-9_]* )? | \.[0-9][0-9_]* ) (?: [eE][+-]?[0-9]+ )? )
    | (?P<text> "(?: \\. | [^"\\] )*" | '(?: \\. | [^'\\] )*' | `[^`]*` )
    | (?P<name> [A-Za-z_$][A-Za-z0-9_$]* )
    | (?P<sign> \.\. | \*\* | \?\? | \?\. | == | != | <= | >= | && | \|\| | [-+*/%^<>!?:.,()\[\]{}#|] )
    """
)
# Binding powers of expr's parser/operator.go; `not in` and its like are read as `not (... in ...)`
BINARY = {
    **dict.fromkeys(("or", "||"), 10),
    **dict.fromkeys(("and", "&&"), 15),
    **dict.fromkeys(("==", "!=", "<", ">", "<=", ">=", "in", "matches", "contains", "startsWith", "endsWith"), 20),
    "..": 25,
    **dict.fromkeys(("+", "-"), 30),
    **dict.fromkeys(("*", "/", "%"), 60),
    **dict.fromkeys(("**", "^"), 100),
    "??": 500,
}
UNARY = {"not": 50, "!": 50, "-": 90, "+": 90}
NEGATED = ("in", "matches", "contains", "startsWith", "endsWith")
Find = Callable[[str], "Field | None"]


class Expression(NamedTuple):
    """judge: from the values of `fields`, in order, to whether the row passes; it raises what `FAILURES` says."""

    fields: tuple[Field, ...]
    judge: Callable[[tuple[Value, ...]], bool]


FAILURES = (ArithmeticError, TypeError, ValueError, LookupError, AttributeError, RecursionError)
"""What evaluating an expression may raise for a row: there is no answer for it."""


def compiled(text: str, find: Find) -> Expression:
    """Read an expression. find: a field by its dotted name. ExpressionError."""
    if len(text) > LONGEST:
        raise ExpressionError(f"longer than {LONGEST} characters")
    parser = Parser(text, find)
    code, kind = parser.whole()
    if kind not in ("bool", "any"):
        raise ExpressionError(f"expected a boolean expression, got {kind}")

    def judge(values: tuple[Value, ...]) -> bool:
        found = code(values)
        if found is not True and found is not False:
            raise TypeError("no boolean")
        return found

    return Expression(tuple(parser.fields), judge)


class Token(NamedTuple):
    """A word. kind: number, text, name, sign or end; at: where it begins."""

    kind: str
    text: str
    at: int


def tokens(text: str) -> list[Token]:
    """The words of an expression. ExpressionError: something in it is none."""
    found, at = [], 0
    while at < len(text):
        match = TOKEN.match(text, at)
        if match is None:
            raise ExpressionError(f"unexpected {text[at]!r} at character {at + 1}")
        if match.lastgroup:
            found.append(Token(match.lastgroup, match[match.lastgroup], at))
        at = match.end()
    return [*found, Token("end", "the end", len(text))]


class Parser:
    """Reads by precedence, and makes closures as it goes."""

    def __init__(self, text: str, find: Find) -> None:
        self.fields: list[Field] = []
        self._tokens, self._at, self._find, self._depth = tokens(text), 0, find, 0
        self._items: list[Any] = []  # what `#` is, innermost last, while a predicate of a list runs
        self._inside = 0

    def whole(self) -> Typed:
        found = self._expression(0)
        if self._now.kind != "end":
            raise self._wrong()
        return found

    @property
    def _now(self) -> Token:
        return self._tokens[self._at]

    def _next(self) -> Token:
        token = self._now
        self._at += token.kind != "end"
        return token

    def _wrong(self) -> ExpressionError:
        return ExpressionError(f"unexpected {self._now.text} at character {self._now.at + 1}")

    def _is(self, *texts: str) -> bool:
        return self._now.kind in ("sign", "name") and self._now.text in texts

    def _take(self, text: str) -> None:
        if not self._is(text):
            raise self._wrong()
        self._next()

    def _expression(self, power: int) -> Typed:
        self._depth += 1
        if self._depth > DEEPEST:
            raise ExpressionError("nested too deeply")
        left = self._unary()
        while True:
            negated = self._is("not") and self._tokens[self._at + 1].text in NEGATED
            sign = self._tokens[self._at + negated].text
            if not (negated or self._now.kind in ("sign", "name")) or BINARY.get(sign, -1) < max(power, 0):
                break
            self._at += negated + 1
            right = self._expression(BINARY[sign] + (sign not in ("**", "^")))
            left = binary(sign, left, right)
            if negated:
                left = negation(left)
        if power == 0 and self._is("?"):
            left = self._ternary(left)
        self._depth -= 1
        return left

    def _ternary(self, condition: Typed) -> Typed:
        self._take("?")
        yes = self._expression(0)
        self._take(":")
        no = self._expression(0)
        expect(condition, "bool", "?:")
        test, one, other = condition.code, yes.code, no.code
        kind = yes.kind if yes.kind == no.kind else "any"
        return Typed(lambda row: one(row) if boolean(test(row)) else other(row), kind)

    def _unary(self) -> Typed:
        for sign, power in UNARY.items():
            if self._is(sign):
                self._next()
                inner = self._expression(power)
                if sign in ("not", "!"):
                    return negation(inner)
                expect(inner, "number", sign)
                return inner if sign == "+" else negative(inner)
        return self._after(self._primary())

    def _after(self, left: Typed) -> Typed:
        while self._is("[", "."):
            if self._next().text == ".":
                raise self._wrong()  # members are names of fields, which `_primary` has read
            left = self._indexed(left)
        return left

    def _indexed(self, of: Typed) -> Typed:
        if of.kind not in ("list", "string", "any"):
            raise ExpressionError(f"{of.kind} has no items")
        code = of.code
        first = None if self._is(":") else self._expression(0).code
        if self._is(":"):
            self._next()
            last = None if self._is("]") else self._expression(0).code
            self._take("]")
            return Typed(lambda row: code(row)[first and first(row) : last and last(row)], of.kind)
        self._take("]")
        at = first
        if at is None:
            raise self._wrong()
        return Typed(lambda row: code(row)[integer(at(row))], "any")

    def _primary(self) -> Typed:
        token = self._next()
        match token.kind, token.text:
            case "number", text:
                return literal(a_number(text))
            case "text", text:
                return literal(unquoted(text))
            case "sign", "(":
                inner = self._expression(0)
                self._take(")")
                return inner
            case "sign", "[":
                items = self._list("]")
                codes = [item.code for item in items]
                return Typed(lambda row: [code(row) for code in codes], "list")
            case "sign", "#" if self._inside:
                return Typed(lambda row: self._items[-1], "any")
            case "name", "true" | "false":
                return literal(token.text == "true")
            case "name", "nil":
                return Typed(lambda row: None, "nil")
            case "name", name:
                return self._called(token) if self._is("(") else self._field(name, token)
        self._at -= token.kind != "end"
        raise self._wrong()

    def _list(self, end: str) -> list[Typed]:
        found = []
        while not self._is(end):
            found.append(self._expression(0))
            if not self._is(end):
                self._take(",")
        self._take(end)
        return found

    def _field(self, name: str, token: Token) -> Typed:
        while self._is(".", "?."):
            self._next()
            if self._now.kind != "name":
                raise self._wrong()
            name = f"{name}.{self._next().text}"
        field = self._find(name)
        if field is None or field.dtype is None or field.place is None:
            raise ExpressionError(f"unknown name {name} at character {token.at + 1}")
        if field not in self.fields:
            self.fields.append(field)
        return Typed(operator.itemgetter(self.fields.index(field)), kind_of(field))

    def _called(self, token: Token) -> Typed:
        self._take("(")
        name = token.text
        if name in OVER_ITEMS:
            return self._over_items(name)
        arguments = self._list(")")
        if name not in FUNCTIONS:
            raise ExpressionError(f"unknown name {name} at character {token.at + 1}")
        function, least, most, kind = FUNCTIONS[name]
        if not least <= len(arguments) <= most:
            raise ExpressionError(f"{name}() has {len(arguments)} arguments")
        codes = [argument.code for argument in arguments]
        if name == "cidr":
            return constant_networks(codes)
        return Typed(lambda row: function(*[code(row) for code in codes]), kind)

    def _over_items(self, name: str) -> Typed:
        """any(list, {# > 1}) and its like."""
        over = self._expression(0)
        self._take(",")
        braces = self._is("{")
        if braces:
            self._next()
        self._inside += 1
        test = self._expression(0)
        self._inside -= 1
        if braces:
            self._take("}")
        self._take(")")
        function, kind = OVER_ITEMS[name]
        items, code, stack = over.code, test.code, self._items

        def each(row: Row) -> Iterable[tuple[Any, Any]]:
            for item in items(row):
                stack.append(item)
                try:
                    yield item, code(row)
                finally:
                    stack.pop()

        return Typed(lambda row: function(each(row)), kind)
