"""The command line of `ig run`, whose flags are known only once the image is: parsed twice.

First `glance` finds the image and the flags that every gadget has, unknown flags tolerated; then, with the gadget's own
flags, `parse` reads the line for real.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from igrun.cli.terminal import Usage
from igrun.dataclass import dataclass, field
from igrun.metadata import BOOL, LIST, Param, from_file
from igrun.metadata.params import read_list


@dataclass(frozen=True)
class Line:
    """A command line, read.

    values:    flag -> text, the last one where it is repeated; a list's are joined
    words:     what is no flag, in order
    doubtful:  words right behind an unknown flag, which may be its value
    """

    values: dict[str, str] = field(default_factory=dict)
    words: list[str] = field(default_factory=list)
    doubtful: list[str] = field(default_factory=list)

    @property
    def image(self) -> str:
        """The word that names the image, "" if there is none."""
        return (self.words or self.doubtful or [""])[0]


@dataclass(frozen=True)
class Flags:
    """Every flag known: its param by name, and by its letter if it has one; both without dashes."""

    by_name: Mapping[str, Param[Any]]
    by_letter: Mapping[str, Param[Any]]

    @classmethod
    def of(cls, params: Iterable[tuple[str, Param[Any]]]) -> Flags:
        """From (name, param) pairs. The first of two equal names or letters wins."""
        by_name: dict[str, Param[Any]] = {}
        by_letter: dict[str, Param[Any]] = {}
        for name, param in params:
            by_name.setdefault(name, param)
            if len(param.alias) == 1 and name == param.key:
                by_letter.setdefault(param.alias, param)
        return cls(by_name, by_letter)


def glance(args: Sequence[str], flags: Flags) -> Line:
    """What is sure without the gadget's own flags. Nothing is refused."""
    return Reader(args, flags, strict=False).line


def parse(args: Sequence[str], flags: Flags) -> Line:
    """The whole line. Usage: an unknown flag, a flag without its value, or `--flag=value` of no bool."""
    return Reader(args, flags, strict=True).line


class Reader:
    """Reads arguments from left to right."""

    def __init__(self, args: Sequence[str], flags: Flags, *, strict: bool) -> None:
        self.flags, self.strict = flags, strict
        self.line = Line()
        self.rest = list(reversed(args))
        behind_unknown = False
        while self.rest:
            arg = self.rest.pop()
            if arg == "--":
                self.line.words.extend(reversed(self.rest))
                break
            if arg.startswith("--"):
                behind_unknown = self.long(arg)
            elif arg.startswith("-") and len(arg) > 1:
                behind_unknown = self.short(arg)
            else:
                (self.line.doubtful if behind_unknown else self.line.words).append(arg)
                behind_unknown = False

    def long(self, arg: str) -> bool:
        """Read `--name`, `--name=value` or `--name value`; True if the next word may be an unknown flag's value."""
        name, equals, value = arg[2:].partition("=")
        param = self.flags.by_name.get(name)
        if param is None:
            self.unknown(f"--{name}", name)
            return not equals
        if not equals:
            value = "true" if is_bool(param) else self.next(f"--{name}")
        self.keep(name, param, value)
        return False

    def short(self, arg: str) -> bool:
        """Read `-x`, `-xvalue`, `-x=value`, `-x value`, or bools and at last a flag with a value: `-vo json`."""
        letters = arg[1:]
        while letters:
            letter, letters = letters[0], letters[1:]
            param = self.flags.by_letter.get(letter)
            if param is None:
                self.unknown(f"-{letter}", arg[1:])
                return "=" not in letters
            if is_bool(param) and not letters.startswith("="):
                self.keep(param.key, param, "true")
                continue
            value = letters.removeprefix("=") if letters else self.next(f"-{letter}")
            self.keep(param.key, param, value)
            break
        return False

    def next(self, flag: str) -> str:
        """The value of a flag, which is the next argument, whatever it looks like."""
        if self.rest:
            return self.rest.pop()
        if self.strict:
            raise Usage(f"flag needs an argument: {flag}")
        return ""

    def keep(self, name: str, param: Param[Any], text: str) -> None:
        """Take a value. A value `@path` is what that file holds."""
        if self.strict:
            text = from_files(text, name) if param.type.name == LIST.name else from_file(text, name)
        if is_bool(param) and self.strict and text.lower() not in ("true", "false"):
            raise Usage(f'invalid argument "{text}" for "--{name}" flag: it is true or false')
        old = self.line.values.get(name)
        joined = old is not None and param.type.name == LIST.name
        self.line.values[name] = f"{old},{text}" if joined else text

    def unknown(self, flag: str, name: str) -> None:
        if self.strict:
            nearest = near(name, self.flags)
            raise Usage(f"unknown flag: {flag}" + (f"; did you mean {nearest}?" if nearest else ""))


def from_files(text: str, name: str) -> str:
    """A list's text, each of its parts `@path` replaced by what that file holds."""
    parts = read_list(text)
    if len(parts) < 2 or not any(part.startswith("@") for part in parts):
        return from_file(text, name)
    return ",".join(from_file(part, name) if part.startswith("@") else part.replace(",", "\\,") for part in parts)


def is_bool(param: Param[Any]) -> bool:
    """True for a flag that may stand without a value."""
    return param.type.name == BOOL.name


def near(name: str, flags: Flags) -> str:
    """The known flag that is most like this name, "" if none is."""
    from difflib import get_close_matches

    found = get_close_matches(name, list(flags.by_name), 1)
    return f"--{found[0]}" if found else ""
