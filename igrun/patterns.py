"""Regular expressions in RE2 syntax, as the ecosystem writes them, for Python's `re`."""

from __future__ import annotations

import re

from igrun.regex import regex

# What stands for a class between brackets. RE2's are ASCII.
CLASSES = {
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "ascii": r"\x00-\x7f",
    "blank": r"\t ",
    "cntrl": r"\x00-\x1f\x7f",
    "digit": "0-9",
    "graph": "!-~",
    "lower": "a-z",
    "print": " -~",
    "punct": r"!-/:-@\[-`{-~",
    "space": r"\t\n\v\f\r ",
    "upper": "A-Z",
    "word": "0-9A-Za-z_",
    "xdigit": "0-9A-Fa-f",
}
ESCAPED = {"d": CLASSES["digit"], "w": CLASSES["word"], "s": r"\t\n\f\r "}
PLAIN = regex(r"\\[\x00-/:-@\[-`{-\x7fafnrtv0]|\\x[0-9A-Fa-f]{2}")
TOKEN = regex(
    r"""
      \\Q (?P<literal> .*? ) (?: \\E | \Z )
    | \\x\{ (?P<code> [0-9A-Fa-f]{1,6} ) \}
    | (?P<escape> \\x[0-9A-Fa-f]{2} | \\. | \\ )
    | \(\? (?P<flags> [imsU]* (?: - [imsU]+ )? ) (?P<scope> [:)] )
    | \(\?P?< (?P<name> \w+ ) >
    | (?P<foreign> \(\? )
    | (?P<set> \[\^? ) (?P<first> \]? )
    | (?P<repeat> [*+?] | \{ (?P<least> \d+ ) (?: , (?P<most> \d* ) )? \} ) (?P<lazy> \?? )
    | (?P<other> . )
    """,
    re.VERBOSE | re.DOTALL,
)
IN_SET = regex(
    r"""
      \[: (?P<not> \^? ) (?P<class> [a-z]+ ) :\]
    | \\x\{ (?P<code> [0-9A-Fa-f]{1,6} ) \}
    | (?P<escape> \\x[0-9A-Fa-f]{2} | \\. | \\ )
    | (?P<other> . )
    """,
    re.VERBOSE | re.DOTALL,
)
MOST_REPEATS = 1000


def python_pattern(text: str) -> str:
    """The same expression for `re.search`. ValueError: RE2 has no such expression."""
    try:
        pattern = _Translation(text).pattern()
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(str(error)) from None
    return pattern


class _Translation:
    """One walk through an expression."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.out: list[str] = []
        # For each open group: what `(?i)` and its like have opened up to here, which must be closed with it and at `|`,
        # and whether `$` is the end of a line.
        self.groups: list[tuple[list[str], bool]] = [([], False)]

    def pattern(self) -> str:
        repeated = False
        while self.at < len(self.text):
            found = TOKEN.match(self.text, self.at)
            if found is None:
                raise ValueError("it ends too early")
            self.at = found.end()
            if repeated and found["repeat"]:
                raise ValueError(f"invalid nested repetition operator: {found[0]}")
            repeated = bool(found["repeat"])
            self.out.append(self.one(found))
        self.out.append(")" * len(self.groups[-1][0]))
        if len(self.groups) > 1:
            raise ValueError("missing )")
        return "".join(self.out)

    def one(self, found: re.Match[str]) -> str:
        scopes, lines = self.groups[-1]
        match found.lastgroup, found[0]:
            case "literal", _:
                return re.escape(found["literal"])
            case "code", _:
                return _character(found["code"])
            case "escape", token:
                return _escape(token)
            case "scope", token:
                return self.flags(found["flags"], found["scope"] == ":")
            case "name", _:
                self.groups.append(([], lines))
                return f"(?P<{found['name']}>"
            case "foreign", _:
                raise ValueError("only (?:...), (?P<name>...) and (?flags) may follow an opening bracket")
            case "first", token:
                return found["set"] + (r"\]" if found["first"] else "") + self.rest_of_set()
            case "lazy", token:
                if max(int(found["least"] or 0), int(found["most"] or 0)) > MOST_REPEATS:
                    raise ValueError(f"invalid repeat count: {token}")
                return token
            case _, "(":
                self.groups.append(([], lines))
                return "("
            case _, ")":
                if len(self.groups) == 1:
                    raise ValueError("unexpected )")
                self.groups.pop()
                return ")" * (1 + len(scopes))
            case _, "|":
                return ")" * len(scopes) + "|" + "".join(scopes)
            case _, "$":
                return "$" if lines else r"\Z"
            case _, "{":
                return r"\{"
        return found[0]

    def flags(self, flags: str, group: bool) -> str:
        if "U" in flags:
            raise ValueError("the flag U is not supported")
        on, _, off = flags.partition("-")
        scopes, lines = self.groups[-1]
        lines = ("m" in on or lines) and "m" not in off
        opening = f"(?{flags}:"
        if group:
            self.groups.append(([], lines))
        elif flags:
            self.groups[-1] = ([*scopes, opening], lines)
        else:
            return ""
        return opening

    def rest_of_set(self) -> str:
        out: list[str] = []
        while self.at < len(self.text):
            found = IN_SET.match(self.text, self.at)
            if found is None:
                break
            self.at = found.end()
            if found[0] == "]":
                return "".join(out) + "]"
            out.append(_member(found))
        raise ValueError("missing closing ]")


def _member(found: re.Match[str]) -> str:
    if found["class"]:
        if found["class"] not in CLASSES:
            raise ValueError(f"invalid character class range: {found[0]}")
        members = CLASSES[found["class"]]
        return _others(members) if found["not"] else members
    if found["code"]:
        return _character(found["code"])
    token = found[0]
    if token[0] != "\\":
        # Python keeps doubled ones for later; alone they are the same escaped.
        return f"\\{token}" if token in "[&~|" else token
    letter = token[1:2]
    if letter.lower() in ESCAPED:
        members = ESCAPED[letter.lower()]
        return members if letter.islower() else _others(members)
    return _plain(token)


def _escape(token: str) -> str:
    letter = token[1:2]
    if letter.lower() in ESCAPED:
        return f"[{'^' if letter.isupper() else ''}{ESCAPED[letter.lower()]}]"
    if letter in ("b", "B"):
        return f"(?a:{token})"
    if letter in ("A", "z"):
        return r"\A" if letter == "A" else r"\Z"
    return _plain(token)


def _plain(token: str) -> str:
    if not PLAIN.fullmatch(token):
        raise ValueError(f"invalid escape sequence: {token}")
    return token


def _character(code: str) -> str:
    if int(code, 16) > 0x10FFFF:
        raise ValueError(rf"invalid escape sequence: \x{{{code}}}")
    return re.escape(chr(int(code, 16)))


def _others(members: str) -> str:
    """What is not of a class, for use between brackets."""
    inside = re.compile(f"[{members}]")
    outside = "".join(rf"\x{code:02x}" for code in range(128) if not inside.match(chr(code)))
    return outside + "\\x80-\U0010ffff"
