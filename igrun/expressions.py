"""Boolean expressions over the fields of a row, in the language expr (https://expr-lang.org) as the ecosystem has it.

An expression is read once into closures; every name is a field, looked up before anything runs. Numbers are 64-bit
integers and floats, text compares bytewise. Maps, pipes, variables and dates of the language are refused.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from igrun.patterns import python_pattern
from igrun.record import Field, Value
from igrun.regex import regex

LONGEST = 16384
DEEPEST = 64
MOST_ITEMS = 100_000  # of a range
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
ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v", "0": "\0"}
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
Row = tuple[Any, ...]
Code = Callable[[Row], Any]
Find = Callable[[str], "Field | None"]


class ExpressionError(ValueError):
    """The expression is wrong; says why, and where."""


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


class Typed(NamedTuple):
    """A part of an expression. kind: int, float, string, bool, list, nil, or any where it is not known."""

    code: Code
    kind: str


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


# ---------------------------------------------------------------------------------------------- values


def literal(value: Any) -> Typed:
    kind = {bool: "bool", int: "int", float: "float", str: "string"}[type(value)]
    return Typed(lambda row: value, kind)


def kind_of(field: Field) -> str:
    from igrun.engine.shapes import shape

    form = shape(str(field.dtype))
    if form.items is not None:
        return "list"
    return {"i": "int", "u": "int", "f": "float", "b": "bool"}.get(form.kind, "string" if form.kind in "ST" else "any")


def a_number(text: str) -> int | float:
    digits = text.replace("_", "")
    if digits[:2].lower() in ("0x", "0b", "0o"):
        found: int | float = int(digits, 0)
    else:
        found = float(digits) if any(sign in digits for sign in ".eE") else int(digits)
    if isinstance(found, int) and found >= 1 << 64:
        raise ExpressionError(f"{text} has more than 64 bits")
    return found


def unquoted(text: str) -> str:
    if text[0] == "`":
        return text[1:-1]
    out, rest = "", iter(text[1:-1])
    for sign in rest:
        if sign != "\\":
            out += sign
            continue
        following = next(rest)
        if following in "xuU":
            digits = "".join(next(rest, "") for _ in range({"x": 2, "u": 4, "U": 8}[following]))
            try:
                out += chr(int(digits, 16))
            except (ValueError, OverflowError):
                raise ExpressionError(f"invalid escape \\{following}{digits}") from None
        elif following in ESCAPES or following in "\"'\\`/":
            out += ESCAPES.get(following, following)
        else:
            raise ExpressionError(f"invalid escape \\{following}")
    return out


def expect(part: Typed, kind: str, sign: str) -> None:
    """ExpressionError: a part cannot be of that kind."""
    fine = ("int", "float", "any") if kind == "number" else (kind, "any")
    if part.kind not in fine:
        raise ExpressionError(f"{sign} is not for {part.kind}")


def boolean(value: Any) -> bool:
    if value is True or value is False:
        return bool(value)
    raise TypeError("no boolean")


def number(value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    raise TypeError("no number")


def integer(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise TypeError("no integer")


def string(value: Any) -> str:
    if isinstance(value, str):
        return value
    raise TypeError("no text")


def wrapped(value: Any) -> Any:
    """An integer as 64 bits hold it."""
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
        return (value + (1 << 63)) % (1 << 64) - (1 << 63)
    return value


def negative(part: Typed) -> Typed:
    code = part.code
    return Typed(lambda row: wrapped(-number(code(row))), part.kind)


def negation(part: Typed) -> Typed:
    expect(part, "bool", "not")
    code = part.code
    return Typed(lambda row: not boolean(code(row)), "bool")


# ---------------------------------------------------------------------------------------------- operators

ORDERS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
NUMBERS: dict[str, Callable[[Any, Any], Any]] = {
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "**": math.pow,
    "^": math.pow,
}
TEXTS: dict[str, Callable[[str, str], bool]] = {
    "contains": lambda whole, part: part in whole,
    "startsWith": str.startswith,
    "endsWith": str.endswith,
}


def binary(sign: str, left: Typed, right: Typed) -> Typed:
    """Two parts with an operator between. ExpressionError: it is not for such parts."""
    one, other = left.code, right.code
    if sign in ("and", "&&", "or", "||"):
        for part in (left, right):
            expect(part, "bool", sign)
        if sign in ("and", "&&"):
            return Typed(lambda row: boolean(one(row)) and boolean(other(row)), "bool")
        return Typed(lambda row: boolean(one(row)) or boolean(other(row)), "bool")
    if sign in ("==", "!="):
        comparable(sign, left, right)
        turned = sign == "!="
        return Typed(lambda row: equal(one(row), other(row)) != turned, "bool")
    if sign in ORDERS:
        comparable(sign, left, right)
        order = ORDERS[sign]
        return Typed(lambda row: order(*ordered(one(row), other(row))), "bool")
    if sign == "in":
        return Typed(lambda row: contained(one(row), other(row)), "bool")
    if sign == "matches":
        return matching(left, right)
    if sign in TEXTS:
        expect(left, "string", sign)
        expect(right, "string", sign)
        test = TEXTS[sign]
        return Typed(lambda row: test(string(one(row)), string(other(row))), "bool")
    if sign == "..":
        expect(left, "int", sign)
        expect(right, "int", sign)
        return Typed(lambda row: span(one(row), other(row)), "list")
    if sign == "??":
        return Typed(lambda row: other(row) if (found := one(row)) is None else found, "any")
    return arithmetic(sign, left, right)


def comparable(sign: str, left: Typed, right: Typed) -> None:
    kinds = {"number" if part.kind in ("int", "float") else part.kind for part in (left, right)}
    if len(kinds) > 1 and not kinds & {"any", "nil"}:
        raise ExpressionError(f"{left.kind} {sign} {right.kind} compares different types")


def arithmetic(sign: str, left: Typed, right: Typed) -> Typed:
    one, other = left.code, right.code
    kind = "any" if "any" in (left.kind, right.kind) else "float" if "float" in (left.kind, right.kind) else "int"
    if sign == "+":
        if "string" in (left.kind, right.kind):
            expect(left, "string", sign)
            expect(right, "string", sign)
            return Typed(lambda row: string(one(row)) + string(other(row)), "string")
        return Typed(lambda row: added(one(row), other(row)), kind)
    for part in (left, right):
        expect(part, "int" if sign == "%" else "number", sign)
    if sign == "%":
        return Typed(lambda row: int(math.fmod(integer(one(row)), integer(other(row)))), "int")
    count = NUMBERS[sign]
    return Typed(lambda row: wrapped(count(number(one(row)), number(other(row)))), kind if sign in "-*" else "float")


def added(one: Any, other: Any) -> Any:
    if isinstance(one, str):
        return one + string(other)
    return wrapped(number(one) + number(other))


def matching(left: Typed, right: Typed) -> Typed:
    import re

    expect(left, "string", "matches")
    expect(right, "string", "matches")
    one = left.code
    try:
        constant: Any = right.code(())
    except IndexError:
        other = right.code
        return Typed(lambda row: re.search(python_pattern(other(row)), string(one(row))) is not None, "bool")
    try:
        search = re.compile(python_pattern(constant)).search
    except ValueError as error:
        raise ExpressionError(f"invalid regular expression: {error}") from None
    return Typed(lambda row: search(string(one(row))) is not None, "bool")


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, bool) != isinstance(other, bool):
        return False
    return bool(one == other)


def ordered(one: Any, other: Any) -> tuple[Any, Any]:
    if isinstance(one, str):
        return one.encode("utf-8", "surrogateescape"), string(other).encode("utf-8", "surrogateescape")
    return number(one), number(other)


def contained(item: Any, of: Any) -> bool:
    if isinstance(of, Networks):
        return of.has(string(item))
    if isinstance(of, str | bytes | type(None)):
        raise TypeError("no list")
    return any(equal(item, one) for one in of)


def span(first: Any, last: Any) -> range:
    if integer(last) - integer(first) >= MOST_ITEMS:
        raise ValueError("a range of too many numbers")
    return range(first, last + 1)


# ---------------------------------------------------------------------------------------------- functions


class Networks:
    """Networks of IP addresses."""

    def __init__(self, *texts: Any) -> None:
        from ipaddress import ip_network

        self._networks = [ip_network(string(text), strict=False) for text in texts]

    def has(self, address: str) -> bool:
        from ipaddress import ip_address

        found = ip_address(address)
        return any(found.version == network.version and found in network for network in self._networks)


def networks(*texts: Any) -> Networks:
    return Networks(*(texts[0] if len(texts) == 1 and isinstance(texts[0], list) else texts))


def constant_networks(codes: Sequence[Code]) -> Typed:
    """cidr(...), made once where its arguments are constants. ExpressionError: one is no network."""
    try:
        found = networks(*[code(()) for code in codes])
    except IndexError:  # a field, of which there is none yet
        return Typed(lambda row: networks(*[code(row) for code in codes]), "any")
    except (TypeError, ValueError) as error:
        raise ExpressionError(f"cidr: {error}") from None
    return Typed(lambda row: found, "any")


def in_networks(address: Any, of: Any) -> bool:
    return (of if isinstance(of, Networks) else networks(of)).has(string(address))


def to_int(value: Any) -> int:
    return int(string(value)) if isinstance(value, str) else int(number(value))


def to_float(value: Any) -> float:
    return float(string(value)) if isinstance(value, str) else float(number(value))


def to_string(value: Any) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)


def rounded(value: Any) -> float:
    return float(math.floor(abs(number(value)) + 0.5)) * (-1 if value < 0 else 1)


MANY = 100
# name -> function, fewest and most arguments, kind of the result
FUNCTIONS: dict[str, tuple[Callable[..., Any], int, int, str]] = {
    "len": (len, 1, 1, "int"),
    "lower": (lambda text: string(text).lower(), 1, 1, "string"),
    "upper": (lambda text: string(text).upper(), 1, 1, "string"),
    "trim": (lambda text, signs=" \t\n\v\f\r": string(text).strip(signs), 1, 2, "string"),
    "trimPrefix": (lambda text, prefix=" ": string(text).removeprefix(prefix), 1, 2, "string"),
    "trimSuffix": (lambda text, suffix=" ": string(text).removesuffix(suffix), 1, 2, "string"),
    "split": (lambda text, by: string(text).split(by) if by else list(text), 2, 2, "list"),
    "join": (lambda parts, by="": by.join(parts), 1, 2, "string"),
    "replace": (lambda text, old, new: string(text).replace(old, new), 3, 3, "string"),
    "repeat": (lambda text, count: string(text) * min(count, 1000), 2, 2, "string"),
    "indexOf": (lambda text, part: string(text).find(part), 2, 2, "int"),
    "lastIndexOf": (lambda text, part: string(text).rfind(part), 2, 2, "int"),
    "hasPrefix": (lambda text, part: string(text).startswith(part), 2, 2, "bool"),
    "hasSuffix": (lambda text, part: string(text).endswith(part), 2, 2, "bool"),
    "abs": (lambda value: abs(number(value)), 1, 1, "any"),
    "ceil": (lambda value: float(math.ceil(number(value))), 1, 1, "float"),
    "floor": (lambda value: float(math.floor(number(value))), 1, 1, "float"),
    "round": (rounded, 1, 1, "float"),
    "min": (lambda *values: min(values[0] if isinstance(values[0], list) else values), 1, MANY, "any"),
    "max": (lambda *values: max(values[0] if isinstance(values[0], list) else values), 1, MANY, "any"),
    "sum": (sum, 1, 1, "any"),
    "first": (lambda items: items[0] if items else None, 1, 1, "any"),
    "last": (lambda items: items[-1] if items else None, 1, 1, "any"),
    "int": (to_int, 1, 1, "int"),
    "float": (to_float, 1, 1, "float"),
    "string": (to_string, 1, 1, "string"),
    "cidr": (networks, 1, MANY, "any"),
    "CidrMatches": (in_networks, 2, 2, "bool"),
}
OVER_ITEMS: dict[str, tuple[Callable[[Iterable[tuple[Any, Any]]], Any], str]] = {
    "any": (lambda each: any(boolean(found) for _, found in each), "bool"),
    "all": (lambda each: all(boolean(found) for _, found in each), "bool"),
    "none": (lambda each: not any(boolean(found) for _, found in each), "bool"),
    "one": (lambda each: sum(boolean(found) for _, found in each) == 1, "bool"),
    "count": (lambda each: sum(boolean(found) for _, found in each), "int"),
    "filter": (lambda each: [item for item, found in each if boolean(found)], "list"),
    "map": (lambda each: [found for _, found in each], "list"),
}
