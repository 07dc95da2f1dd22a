"""YAML text -> plain tree, within bounds; the tree as the run time reads it: lower-case keys, dots as paths."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

from igrun.errors import MetadataError

if TYPE_CHECKING:
    from yaml import BaseLoader, Node

LARGEST = 1 << 20  # bytes of gadget.yaml
MOST_NODES = 20_000  # after aliases are followed
DEEPEST = 64
LONGEST_PATH = 1024  # characters of a dotted path

Tree = dict[str, Any]
"""Keys -> str, int, float, bool, None, list or Tree."""


def load(text: bytes, *, strict: bool, path: str = "") -> Tree:
    """Read a YAML document. MetadataError: it is none, is too large, or (strict) has a key twice."""
    import yaml

    if len(text) > LARGEST:
        raise MetadataError(path, f"larger than {LARGEST >> 20} MiB")
    loader = cast("type[BaseLoader]", getattr(yaml, "CBaseLoader", yaml.BaseLoader))
    try:
        reader = loader(text.decode())
        try:
            root = reader.get_single_node()
        finally:
            reader.dispose()
    except yaml.YAMLError as error:
        raise MetadataError(path, one_line(error)) from None
    except RecursionError:
        raise MetadataError(path, "nested too deeply") from None
    except UnicodeDecodeError as error:
        raise MetadataError(path, f"not UTF-8 text at byte {error.start}") from None
    if root is None:
        return {}
    tree = Reader(strict).read(root, path, 0)
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise MetadataError(path, "not a mapping")
    return tree


def one_line(error: Exception) -> str:
    """A YAML error in one line."""
    problem = getattr(error, "problem", None) or str(error)
    mark = getattr(error, "problem_mark", None)
    where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    return f"{' '.join(str(problem).split())}{where}"


class Reader:
    """YAML nodes -> plain values, as Go's YAML reads them: only `true` and `false` are booleans."""

    def __init__(self, strict: bool) -> None:
        import yaml

        self.yaml = yaml
        self.strict = strict
        self.count = 0

    def read(self, node: Node, path: str, depth: int) -> Any:
        """The value of a node; an alias counts as often as it is used."""
        self.count += 1
        if self.count > MOST_NODES:
            raise MetadataError(path, f"more than {MOST_NODES} values, aliases followed")
        if depth > DEEPEST:
            raise MetadataError(path, "nested too deeply")
        if isinstance(node, self.yaml.ScalarNode):
            plain = node.style in (None, "") and node.tag in (None, "tag:yaml.org,2002:str")
            return scalar(node.value) if plain else node.value
        if isinstance(node, self.yaml.SequenceNode):
            return [self.read(item, f"{path}[{i}]", depth + 1) for i, item in enumerate(node.value)]
        tree: Tree = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, self.yaml.ScalarNode):
                raise MetadataError(path, f"a key is no text, in line {key_node.start_mark.line + 1}")
            key = key_node.value
            inner = f"{path}.{key}" if path else key
            if len(inner) > LONGEST_PATH:
                raise MetadataError(inner[:60] + "...", f"longer than {LONGEST_PATH} characters")
            if key == "<<" and not key_node.style:
                self.merge(tree, self.read(value_node, path, depth + 1), path)
                continue
            if key in tree and self.strict:
                raise MetadataError(inner, f"a second time, in line {key_node.start_mark.line + 1}")
            tree[key] = self.read(value_node, inner, depth + 1)
        return tree

    def merge(self, tree: Tree, other: Any, path: str) -> None:
        """YAML's merge key: what `other` has and the mapping has not."""
        for one in other if isinstance(other, list) else [other]:
            if not isinstance(one, dict):
                raise MetadataError(path, "<< needs a mapping")
            for key, value in one.items():
                tree.setdefault(key, value)


NUMBER = re.compile(r"[-+]?(?:0x[0-9a-fA-F_]+|0o[0-7_]+|0b[01_]+|[0-9][0-9_]*)")
FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]+)(?:[eE][-+]?[0-9]+)?")


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
