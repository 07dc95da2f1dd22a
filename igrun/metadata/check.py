"""What is unknown or wrong in a gadget.yaml: keys, annotations, values; at build types too, by JSON Schema."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from igrun.dataclass import dataclass
from igrun.errors import MetadataError
from igrun.metadata.document import Tree, as_text, flattened, folded
from igrun.metadata.known import unknown, value_problem
from igrun.metadata.params import TYPES, quoted

SCHEMA = "gadget.schema.json"


@dataclass(frozen=True, slots=True)
class Problem:
    """path: dotted, as in the file; fatal: an error at build."""

    path: str
    text: str
    hint: str = ""
    fatal: bool = True

    def __str__(self) -> str:
        return f"gadget.yaml: {self.path}: {self.text}" + (f" ({self.hint})" if self.hint else "")


@dataclass(frozen=True, slots=True)
class Keys:
    """A mapping with these keys. open: others are somebody else's."""

    keys: Mapping[str, Shape]
    open: bool = False


@dataclass(frozen=True, slots=True)
class Each:
    """A mapping from names to this."""

    shape: Shape


@dataclass(frozen=True, slots=True)
class Leaf:
    """One of: text | list | texts | annotations | fields | patch | any | ignored."""

    kind: str


Shape = Keys | Each | Leaf
TEXT, LIST, TEXTS, ANY = Leaf("text"), Leaf("list"), Leaf("texts"), Leaf("any")
ANNOTATIONS, FIELDS, PATCH, IGNORED = Leaf("annotations"), Leaf("fields"), Leaf("patch"), Leaf("ignored")


def all_of(shape: Shape, keys: str) -> Mapping[str, Shape]:
    """These keys, each of that shape."""
    return dict.fromkeys(keys.split(), shape)


PARAM = Keys(
    {
        **all_of(TEXT, "key alternativeKey alias title defaultValue description isMandatory type typeHint valueHint"),
        **all_of(LIST, "tags possibleValues"),
    }
)
CUSTOM = Keys({**PARAM.keys, "patch": PATCH, "values": Each(Keys({"patch": PATCH, "description": TEXT}))})
TOP = Keys(
    MappingProxyType(
        {
            **all_of(TEXT, "name description homepageURL documentationURL sourceURL"),
            "annotations": TEXTS,
            "datasources": Each(Keys({"annotations": ANNOTATIONS, "tags": LIST, "fields": FIELDS})),
            "params": Keys({"ebpf": Each(PARAM), "wasm": Each(PARAM), "custom": Each(CUSTOM)}),
            "ebpfParams": Each(PARAM),
            "paramDefaults": TEXTS,
            "programs": Each(
                Keys(
                    {
                        **all_of(TEXT, "attach_to optional any_of cookie target direction route"),
                        "iter": Keys(all_of(TEXT, "pid tid cgroup order")),
                        "perf": Keys(all_of(TEXT, "type config sampleType pid")),
                        "sampler": Keys(all_of(TEXT, "frequency period")),
                        "tc": Keys(all_of(TEXT, "attach")),
                        "xdp": Keys(all_of(TEXT, "mode priority")),
                        "netfilter": Keys(all_of(TEXT, "pf hook priority defrag")),
                        "reuseport": Keys(all_of(TEXT, "port")),
                    }
                )
            ),
            "operator": Keys(
                {
                    "process": Keys(all_of(TEXT, "emitstats interval first-interval count fields")),
                    "cgroup": Keys(all_of(TEXT, "emitstats interval first-interval count")),
                    "ebpf": Keys(all_of(TEXT, "emitstats")),
                },
                open=True,
            ),
            **all_of(IGNORED, "structs tracers snapshotters toppers gadgetParams"),
        }
    )
)


def problems(tree: Tree, *, strict: bool) -> tuple[Problem, ...]:
    """Everything unknown or wrong. strict: keys have to be in the right case."""
    return tuple(walk(tree, TOP, "", strict))


def walk(value: Any, shape: Shape, path: str, strict: bool) -> Iterator[Problem]:
    """The problems of one value."""
    if value is None or shape in (ANY, LIST):
        return
    if shape == IGNORED:
        yield Problem(path, "ignored, it is a key of old gadgets", fatal=False)
    elif shape == TEXT:
        if isinstance(value, dict | list):
            yield Problem(path, f"expected text, found {named(value)}")
        elif is_type(path) and as_text(value).lower() not in ("", *TYPES):
            yield Problem(path, f"unknown type {quoted(as_text(value))}", near(as_text(value), TYPES), fatal=False)
    elif not isinstance(value, dict):
        yield Problem(path, f"expected a mapping, found {named(value)}")
    elif isinstance(shape, Keys):
        for key, inner in value.items():
            yield from walk_key(key, inner, shape, path, "", strict)
    elif isinstance(shape, Each):
        for key, inner in value.items():
            yield from walk(inner, shape.shape, joined(path, key), strict)
    elif shape == ANNOTATIONS:
        yield from walk_annotations(value, path)
    elif shape == FIELDS:
        for key, inner in value.items():
            yield from walk_field(inner, joined(path, key), strict)
    elif shape == PATCH:
        for key, inner in value.items():
            yield from walk_key(key, inner, TOP, path, "", strict)


def walk_key(key: str, value: Any, shape: Keys, path: str, before: str, strict: bool) -> Iterator[Problem]:
    """The problems of one entry of a mapping. before: the parts of the same key that were followed already."""
    whole = joined(path, before + key)
    for name, inner in shape.keys.items():
        if key == name or (not strict and key.lower() == name.lower()):
            yield from walk(value, inner, whole, strict)
            return
    first, dot, rest = key.partition(".")
    for name, inner in shape.keys.items():
        if dot and first.lower() == name.lower():
            if isinstance(inner, Keys):
                yield from walk_key(rest, value, inner, path, f"{before}{first}.", strict)
            else:
                yield from walk({rest: value}, inner, joined(path, before + first), strict)
            return
    if not shape.open:
        yield unknown_key(whole, before + key, [before + name for name in shape.keys])


def walk_field(value: Any, path: str, strict: bool) -> Iterator[Problem]:
    """The problems of a field's entry; a field of a struct may hold those of its members."""
    if value is None:
        return
    if not isinstance(value, dict):
        yield Problem(path, f"expected a mapping, found {named(value)}")
        return
    own = Keys({"annotations": ANNOTATIONS, "tags": LIST})
    for key, inner in value.items():
        if key.lower() in own.keys or key.lower().startswith("annotations."):
            yield from walk_key(key, inner, own, path, "", strict)
        elif not isinstance(inner, dict) or closest(key.lower(), own.keys, 0.75):
            yield unknown_key(joined(path, key), key, own.keys)
        else:
            yield from walk_field(inner, joined(path, key), strict)


def walk_annotations(value: Tree, path: str) -> Iterator[Problem]:
    """The problems of the annotations of a source or a field."""
    for key, inner in flattened(value):
        nearest = unknown(key)
        if nearest is not None:
            yield Problem(path, f"unknown key {key!r}", f"did you mean {nearest}?" if nearest else "")
        elif isinstance(inner, list):
            yield Problem(joined(path, key), "expected text, found a list")
        elif "{{" not in as_text(inner):
            wrong = value_problem(key.lower(), as_text(inner))
            if wrong:
                yield Problem(joined(path, key), wrong)


def unknown_key(path: str, key: str, keys: Iterable[str]) -> Problem:
    """The problem that there is no such key."""
    parent = path[: -len(key)].rstrip(".") if path != key else ""
    return Problem(parent or "top level", f"unknown key {key!r}", near(key, keys))


def near(word: str, words: Iterable[str]) -> str:
    """A hint at the nearest of the words, or at all of them where they are few."""
    words = tuple(words)
    found = closest(word, words, 0.5)
    if found:
        return f"did you mean {found}?"
    return f"there are: {', '.join(words)}" if len(words) <= 6 else ""


def closest(word: str, words: Iterable[str], cutoff: float) -> str:
    """The nearest of the words, whatever the case of the letters; "" if none is near."""
    from difflib import get_close_matches

    by_lower = {one.lower(): one for one in words}
    return next((by_lower[one] for one in get_close_matches(word.lower(), by_lower, 1, cutoff)), "")


def is_type(path: str) -> bool:
    """True for the path of a param's type."""
    return path.endswith((".type", ".typeHint")) and path.startswith(("params.", "ebpfParams."))


def joined(path: str, key: str) -> str:
    """The path of a key below a path."""
    return f"{path}.{key}" if path else key


def named(value: Any) -> str:
    """What a value is, in words."""
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    return quoted(as_text(value))


def refuse(tree: Tree, found: Iterable[Problem]) -> None:
    """MetadataError for the first fatal problem, or the first thing that the JSON Schema does not allow."""
    for problem in found:
        if problem.fatal:
            raise MetadataError(problem.path, problem.text, hint=problem.hint)
    import json
    from importlib.resources import files

    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    schema = json.loads(files(__package__).joinpath(SCHEMA).read_bytes())
    error = best_match(Draft202012Validator(schema).iter_errors(folded(tree, lower=False)))
    if error is not None:
        path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path)
        raise MetadataError(path.removeprefix(".") or "top level", " ".join(error.message.split()))
