"""Params that change gadget.yaml itself: custom params with their patches, and `--annotate`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from igrun.errors import MetadataError, ParamError
from igrun.metadata.document import Tree, as_text, folded, mapped, merged, within
from igrun.metadata.params import Param, key_of, quoted, split_commas
from igrun.regex import regex

ANNOTATE = "annotate"


def patch_for(entry: Mapping[str, Any], value: str) -> Any:
    """What the custom param `entry` of gadget.yaml changes when it has this value; None: nothing."""
    values = entry.get("values")
    own = values.get(value.lower()) if isinstance(values, dict) else None
    patch = own.get("patch") if isinstance(own, dict) else None
    return patch if patch is not None else entry.get("patch")


def patched(tree: Tree, params: tuple[Param[Any], ...], values: Mapping[str, str], defaults: Mapping[str, str]) -> Tree:
    """The document with the patches of the custom params that have a value.

    values:   param key or full name -> text
    defaults: param key -> text, gadget.yaml's `paramDefaults`
    """
    for param in params:
        value = next((values[key] for key in (param.key, param.full_name) if key in values), None)
        if value is None:
            value = defaults.get(param.key, param.default)
        if value or not param.choices:
            param.parse(value)
        patch = patch_for(within(tree, f"params.custom.{param.key}"), value)
        if not isinstance(patch, dict):
            continue
        given = {**defaults, **values, param.key: value}
        filled = mapped(patch, filler(param, given, tree))
        change = folded(filled)
        if isinstance(change.get("params"), dict):
            # a custom param must not change what custom params do
            change["params"] = {group: entry for group, entry in change["params"].items() if group != "custom"}
        tree = merged(tree, change)
    return tree


CALL = regex(
    r"""\{\{(?P<left>-\s)?\s*(?:call\s+)?\.(?P<function>getParamValue|getConfig)\s+(?P<name>"[^"\\]*"|`[^`]*`)\s*(?P<right>\s-)?\}\}"""
)


def filler(param: Param[Any], values: Mapping[str, str], tree: Tree) -> Callable[[str], str]:
    """A function that replaces the calls in a text of a patch by what they give."""

    def call(match: re.Match[str]) -> str:
        name = match["name"][1:-1]
        if match["function"] == "getConfig":
            return as_text(within(tree, name))
        return values.get(name, values.get(key_of(name), ""))

    def fill(text: str) -> str:
        if "{{" not in text:
            return text
        pieces: list[str] = []
        end, trim = 0, False
        for match in CALL.finditer(text):
            before = text[end : match.start()]
            before = before.lstrip() if trim else before
            pieces += [before.rstrip() if match["left"] else before, call(match)]
            end, trim = match.end(), bool(match["right"])
        rest = text[end:]
        pieces.append(rest.lstrip() if trim else rest)
        if any("{{" in piece for piece in pieces[::2]):
            raise MetadataError(
                f"params.custom.{param.key}.patch",
                f"unknown template {quoted(text)}",
                hint='templates are {{call .getParamValue "name"}} and {{call .getConfig "path"}}',
            )
        return "".join(pieces)

    return fill


class Annotated(NamedTuple):
    """One assignment of `--annotate`. field: "" for the source itself."""

    source: str
    field: str
    key: str
    value: str
    text: str


def read_annotate(text: str) -> tuple[Annotated, ...]:
    """`source:key=value` or `source.field:key=value`, separated by commas. ParamError: it is not of that form."""
    found = []
    for part in split_commas(text) if text else []:
        subject, colon, assignment = part.partition(":")
        key, equals, value = assignment.partition("=")
        source, dot, field = subject.partition(".")
        problem = ""
        if not colon:
            problem = "must be in subject:assignment format"
        elif not subject or not assignment:
            problem = "has empty subject or assignment"
        elif not equals:
            problem = "must contain a key=value pair"
        elif not key:
            problem = "has empty key"
        elif not source or (dot and not all(field.split("."))):
            problem = "has empty field or subfield name"
        if problem:
            raise ParamError(ANNOTATE, text, f"annotation {quoted(part)} {problem}")
        found.append(Annotated(source, field, key.lower(), value, part))
    return tuple(found)


def annotated(tree: Tree, assignments: tuple[Annotated, ...]) -> Tree:
    """The document with these annotations."""
    for one in assignments:
        entry: Tree = {"annotations": {one.key: one.value}}
        for part in reversed(one.field.lower().split(".") if one.field else []):
            entry = {part: entry}
        if one.field:
            entry = {"fields": entry}
        tree = merged(tree, {"datasources": {one.source.lower(): entry}})
    return tree
