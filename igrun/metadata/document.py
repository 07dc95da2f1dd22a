"""YAML text -> plain tree, within bounds; the tree as the run time reads it: lower-case keys, dots as paths."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

from igrun.dataclass import dataclass, field
from igrun.errors import MetadataError
from igrun.regex import regex

if TYPE_CHECKING:
    from yaml import Event, ScalarEvent

LARGEST = 1 << 20  # bytes of gadget.yaml
MOST_VALUES = 20_000  # after aliases are followed
DEEPEST = 64
LONGEST_PATH = 1024  # characters of a dotted path

Tree = dict[str, Any]
"""Keys -> str, int, float, bool, None, list or Tree."""


def load(text: bytes, *, strict: bool, path: str = "") -> Tree:
    """Read a YAML document. MetadataError: it is none, is too large, or (strict) has a key twice."""
    import yaml

    if len(text) > LARGEST:
        raise MetadataError(path, f"larger than {LARGEST >> 20} MiB")
    loader = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
    try:
        # Events, not nodes: the C composer calls itself for each level, and deep input would overflow its stack.
        tree = Reader(strict, path).read(yaml.parse(text.decode(), Loader=loader))
    except yaml.YAMLError as error:
        raise MetadataError(path, one_line(error)) from None
    except UnicodeDecodeError as error:
        raise MetadataError(path, f"not UTF-8 text at byte {error.start}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise MetadataError(path, "not a mapping")
    check_paths(tree, path)
    return tree


def one_line(error: Exception) -> str:
    """A YAML error in one line."""
    problem = getattr(error, "problem", None) or str(error)
    mark = getattr(error, "problem_mark", None)
    where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    return f"{' '.join(str(problem).split())}{where}"


def check_paths(tree: Any, path: str) -> None:
    """MetadataError if a dotted path is longer than anybody writes."""
    if len(path) > LONGEST_PATH:
        raise MetadataError(path[:60] + "...", f"longer than {LONGEST_PATH} characters")
    if isinstance(tree, dict):
        for key, value in tree.items():
            check_paths(value, f"{path}.{key}")
    elif isinstance(tree, list):
        for value in tree:
            check_paths(value, path)


@dataclass(slots=True)
class Value:
    """Something read. size: values in it, itself among them; height: levels below it."""

    value: Any
    size: int = 1
    height: int = 0


@dataclass(slots=True)
class Open:
    """A mapping or list whose end has not come. key: of the next value; own: keys that are not from a merge."""

    value: Any
    anchor: str | None
    size: int = 1
    height: int = 0
    key: str | None = None
    own: set[str] = field(default_factory=set)


class Reader:
    """YAML events -> plain values, as Go's YAML reads them: only `true` and `false` are booleans.

    An alias counts as often as it is used.
    """

    def __init__(self, strict: bool, path: str) -> None:
        import yaml

        self._yaml = yaml
        self._strict = strict
        self._path = path
        self._open: list[Open] = []
        self._anchors: dict[str, Value] = {}

    def read(self, events: Iterable[Event]) -> Any:
        """The document, None if there is none."""
        yaml = self._yaml
        root: Any = None
        documents = 0
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise self._wrong("more than one document", event)
            elif isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
                if self._wants_key():
                    raise self._wrong("a key is no text", event)
                if len(self._open) >= DEEPEST:
                    raise self._wrong("nested too deeply", event)
                self._open.append(Open({} if isinstance(event, yaml.MappingStartEvent) else [], event.anchor))
            elif isinstance(event, yaml.ScalarEvent) and self._wants_key():
                self._key(event)
            elif (value := self._value(event)) is not None:
                if self._open:
                    self._put(value, event)
                else:
                    root = value.value
        return root

    def _wants_key(self) -> bool:
        return bool(self._open) and isinstance(self._open[-1].value, dict) and self._open[-1].key is None

    def _value(self, event: Event) -> Value | None:
        """The value that ends with this event, None if none does."""
        yaml = self._yaml
        if isinstance(event, yaml.AliasEvent):
            found = self._anchors.get(event.anchor)
            if found is None or self._wants_key():
                raise self._wrong(f"alias {event.anchor!r} stands for nothing here", event)
            return found
        if isinstance(event, yaml.ScalarEvent):
            plain = event.style in (None, "") and event.tag in (None, "tag:yaml.org,2002:str")
            value = Value(scalar(event.value) if plain else event.value)
            anchor = event.anchor
        elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            ended = self._open.pop()
            value = Value(ended.value, ended.size, ended.height)
            anchor = ended.anchor
        else:
            return None
        if anchor:
            self._anchors[anchor] = value
        return value

    def _key(self, event: ScalarEvent) -> None:
        top = self._open[-1]
        top.key = event.value
        merge = event.value == "<<" and not event.style
        if self._strict and event.value in top.own and not merge:
            raise self._wrong("a second time", event)
        if not merge:
            top.own.add(event.value)
        top.size += 1

    def _put(self, value: Value, event: Event) -> None:
        top = self._open[-1]
        top.size += value.size
        top.height = max(top.height, value.height + 1)
        if len(self._open) + value.height > DEEPEST:
            raise self._wrong("nested too deeply", event)
        if sum(one.size for one in self._open) > MOST_VALUES:
            raise self._wrong(f"more than {MOST_VALUES} values, aliases followed", event)
        if isinstance(top.value, list):
            top.value.append(value.value)
            return
        if top.key == "<<" and "<<" not in top.own:
            for one in value.value if isinstance(value.value, list) else [value.value]:
                if not isinstance(one, dict):
                    raise self._wrong("it needs a mapping", event)
                for key, inner in one.items():
                    top.value.setdefault(key, inner)
        else:
            top.value[cast("str", top.key)] = value.value
        top.key = None

    def _wrong(self, problem: str, event: Event) -> MetadataError:
        parts = [one.key for one in self._open if one.key is not None]
        path = ".".join([self._path, *parts] if self._path else parts)
        line = event.start_mark.line + 1 if event.start_mark else 0
        return MetadataError(path[:LONGEST_PATH], f"{problem}, in line {line}")


NUMBER = regex(r"[-+]?(?:0x[0-9a-fA-F_]+|0o[0-7_]+|0b[01_]+|[0-9][0-9_]*)")
FLOAT = regex(r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]+)(?:[eE][-+]?[0-9]+)?")


def scalar(text: str) -> str | int | float | bool | None:
    """The value of a plain scalar."""
    if text in ("", "~", "null", "Null", "NULL"):
        return None
    if text in ("true", "True", "TRUE"):
        return True
    if text in ("false", "False", "FALSE"):
        return False
    if text[0] in "+-.0123456789" and len(text) < 64:
        if NUMBER.fullmatch(text):
            digits = text.replace("_", "")
            with contextlib.suppress(ValueError):
                # like Go's YAML, a leading 0 makes octal
                old_octal = re.fullmatch(r"([-+]?)0([0-7]+)", digits)
                return int(f"{old_octal[1]}0o{old_octal[2]}", 0) if old_octal else int(digits, 0)
        elif FLOAT.fullmatch(text):
            with contextlib.suppress(ValueError):
                return float(text)
    return text


def as_text(value: Any) -> str:
    """A scalar as text, as Go's casts write it; "" for what is no scalar."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        import math

        if not math.isfinite(value):
            return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
        text = repr(value)
        if "e" in text:
            from decimal import Decimal

            text = format(Decimal(text), "f")
        return text.removesuffix(".0")
    return ""


def folded(tree: Mapping[str, Any], path: tuple[str, ...] = (), *, lower: bool = True) -> Tree:
    """The tree with lower-case keys, and `a.b: x` written as `a: {b: x}`; where keys are names, the other way round.

    path:  where the tree stands in the document, in lower case
    lower: False keeps the case
    """
    if len(path) > DEEPEST:
        raise MetadataError(".".join(path[:8]) + "...", "nested too deeply")
    result: Tree = {}
    for key, value in tree.items():
        first, _, rest = (key.lower() if lower else key).partition(".")
        inner = (*path, first.lower())
        if is_patch(inner):
            result[first] = {rest: value} if rest else value
            continue
        if has_names(inner):
            new: Any = {rest: value} if rest else value
            if isinstance(new, dict):
                new = {(name.lower() if lower else name): leaf for name, leaf in flattened(new)}
        elif rest:
            new = folded({rest: value}, inner, lower=lower)
        else:
            new = folded(value, inner, lower=lower) if isinstance(value, dict) else value
        old = result.get(first)
        result[first] = over(old, new)
    return result


def has_names(path: tuple[str, ...]) -> bool:
    """True where the keys of a mapping are names with dots, not paths."""
    if path[-1] == "annotations":
        in_field = path[0] == "datasources" and len(path) > 4 and path[2] == "fields"
        return len(path) == 1 or in_field or (path[0] == "datasources" and len(path) == 3)
    return path == ("paramdefaults",)


def is_patch(path: tuple[str, ...]) -> bool:
    """True where another gadget.yaml begins: the patch of a custom param."""
    return path[-1] == "patch" and path[:2] == ("params", "custom") and len(path) in (4, 6)


def merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> Tree:
    """`old` with `new` over it."""
    return {**old, **{key: over(old.get(key), value) for key, value in new.items()}}


def over(old: Any, new: Any) -> Any:
    """Two mappings merged; else the new one of two values."""
    return merged(old, new) if isinstance(old, dict) and isinstance(new, dict) else new


def flattened(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key, value for everything that is no mapping."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def texts(tree: Any) -> dict[str, str]:
    """A mapping's scalars as text, dotted keys; {} for what is no mapping."""
    return {key: as_text(value) for key, value in flattened(tree)} if isinstance(tree, dict) else {}


def text_list(value: Any) -> tuple[str, ...]:
    """A list of texts; one text counts as a list split at blanks, as Go's casts read it."""
    if isinstance(value, list):
        return tuple(as_text(item) for item in value)
    return tuple(as_text(value).split())


def within(tree: Mapping[str, Any], path: str) -> Any:
    """What stands at a dotted path, None if nothing. The keys may have dots themselves."""
    lower = path.lower()
    found = tree.get(lower)
    if found is not None:
        return found
    at = lower.find(".")
    while at >= 0:
        inner = tree.get(lower[:at])
        if isinstance(inner, dict):
            found = within(inner, lower[at + 1 :])
            if found is not None:
                return found
        at = lower.find(".", at + 1)
    return None


def mapped(value: Any, change: Callable[[str], str]) -> Any:
    """The tree with every text leaf changed."""
    if isinstance(value, dict):
        return {key: mapped(inner, change) for key, inner in value.items()}
    if isinstance(value, list):
        return [mapped(inner, change) for inner in value]
    return change(value) if isinstance(value, str) else value
