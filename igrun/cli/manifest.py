"""`ig run -f FILE`: a gadget and its params from a manifest."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from igrun.dataclass import dataclass
from igrun.errors import GadgetError, MetadataError, ParamError
from igrun.metadata import Param
from igrun.metadata.document import LARGEST, Reader, as_text, one_line, text_list, texts
from igrun.metadata.params import quoted

KIND, VERSION = "instance-spec", 1
ID = re.compile(r"[0-9a-f]{32}")
NAME = re.compile(r"[a-z0-9-_]{1,32}")
URL_TIMEOUT_S = 30
MEMBERS = ("apiversion", "kind", "image", "id", "name", "tags", "nodes", "paramvalues")


@dataclass(frozen=True, slots=True)
class Instance:
    """A gadget to run. values: full param name -> text."""

    image: str
    id: str = ""
    name: str = ""
    tags: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    values: Mapping[str, str] | None = None


def only(where: str) -> Instance:
    """The one gadget of a manifest: of a file, a URL, or - for standard input. GadgetError: it has none, or several."""
    found = list(instances(read(where), where))
    if not found:
        raise GadgetError(f"no gadget instance spec found in manifest {where}", hint="it must have one document")
    if len(found) > 1:
        raise GadgetError(f"multiple gadget instance specs found in manifest {where}")
    return found[0]


def read(where: str) -> bytes:
    """The bytes of a manifest."""
    if where.startswith(("http://", "https://")):
        return fetch(where)
    try:
        with open(0 if where == "-" else where, "rb", closefd=where != "-") as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise GadgetError(f"opening gadget runtime manifest file {where}: {error.strerror}") from None
    return bounded(data, where)


def fetch(url: str) -> bytes:
    """The bytes behind a URL."""
    import requests

    try:
        with requests.get(url, timeout=URL_TIMEOUT_S, stream=True) as answer:
            answer.raise_for_status()
            data = b""
            for chunk in answer.iter_content(1 << 16):
                data += chunk
                if len(data) > LARGEST:
                    break
    except requests.RequestException as error:
        raise GadgetError(f"opening gadget runtime manifest file {url}: {' '.join(str(error).split())}") from None
    return bounded(data, url)


def bounded(data: bytes, where: str) -> bytes:
    """The data, unless it is too large."""
    if len(data) > LARGEST:
        raise GadgetError(f"reading gadget runtime manifest file {where}: larger than {LARGEST >> 20} MiB")
    return data


def instances(data: bytes, where: str) -> Iterator[Instance]:
    """Every gadget of a manifest, in order. GadgetError: one is wrong."""
    for number, document in enumerate(documents(data, where), 1):
        if document is not None:
            try:
                yield instance(document, number)
            except GadgetError as error:
                raise reading(where, str(error), error.hint) from None


def documents(data: bytes, where: str) -> Iterator[Any]:
    """The trees of a YAML stream; None for an empty document."""
    import yaml

    loader = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
    number = 1
    try:
        events = yaml.parse(data.decode(), Loader=loader)
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                yield Reader(True, "").read(until(yaml.DocumentEndEvent, events))
                number += 1
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise reading(where, f"parsing gadget spec (entry {number}): {one_line(error)}") from None
    except MetadataError as error:
        path = f"{error.path}: " if error.path else ""
        raise reading(where, f"parsing gadget spec (entry {number}): {path}{error.problem}") from None


def until(end: type, events: Iterator[Any]) -> Iterator[Any]:
    """The events up to the first of type `end`, it included."""
    for event in events:
        yield event
        if isinstance(event, end):
            return


def reading(where: str, problem: str, hint: str = "") -> GadgetError:
    return GadgetError(f"reading gadget runtime manifest file {where}: {problem}", hint=hint)


def instance(document: Any, number: int) -> Instance:
    """One document, checked. number: its place in the manifest, from 1 on."""
    if not isinstance(document, dict):
        raise GadgetError(f"parsing gadget spec (entry {number}): not a mapping")
    spec = {key.lower(): value for key, value in document.items()}
    kind, version = as_text(spec.get("kind")), spec.get("apiversion")
    if kind != KIND:
        raise GadgetError(f"expected kind {quoted(KIND)} for entry {number} in manifest, got kind {quoted(kind)}")
    if version != VERSION or isinstance(version, bool):
        told = as_text(version) or 0
        raise GadgetError(f"expected apiVersion {VERSION} for entry {number} in manifest, got apiVersion {told}")
    unknown = [key for key in document if key.lower() not in MEMBERS]
    if unknown:
        raise GadgetError(
            f"parsing gadget spec (entry {number}): unknown key {quoted(unknown[0])}",
            hint="known: apiVersion, kind, image, id, name, tags, nodes, paramValues",
        )
    wrong = [key for key in ("tags", "nodes") if not isinstance(spec.get(key) or [], list)]
    wrong += ["paramValues"] if not isinstance(spec.get("paramvalues") or {}, dict) else []
    if wrong:
        what = "mapping" if wrong[0] == "paramValues" else "list"
        raise GadgetError(f"parsing gadget spec (entry {number}): {wrong[0]} is no {what}")
    found = Instance(
        as_text(spec.get("image")),
        as_text(spec.get("id")),
        as_text(spec.get("name")),
        text_list(spec.get("tags") or []),
        text_list(spec.get("nodes") or []),
        texts(spec.get("paramvalues")),
    )
    if found.id and not ID.fullmatch(found.id):
        raise GadgetError(f"invalid instance id {quoted(found.id)} in entry {number}")
    if found.name and not NAME.fullmatch(found.name):
        raise GadgetError(f"invalid instance name {quoted(found.name)} in entry {number}")
    for tag in found.tags:
        if "," in tag:
            raise GadgetError(f'invalid character "," in tag {quoted(tag)} of entry {number}')
    if not found.image:
        raise GadgetError(f"no image specified in entry {number}")
    return found


def by_key(values: Mapping[str, str], known: Iterable[tuple[str, Param[Any]]]) -> dict[str, str]:
    """Full param names -> keys. ParamError: there is no param of that name.

    known: each key a param may be set by, with the param
    """
    names = {(f"{param.group}.{key}" if param.group else key).lower(): key for key, param in known}
    found = {}
    for name, text in values.items():
        if name.lower() not in names:
            from difflib import get_close_matches

            near = get_close_matches(name.lower(), names, 1)
            hint = f"did you mean {near[0]}?" if near else "`ig run IMAGE --help` lists the params"
            raise ParamError(name, text, f"unknown param {quoted(name)} in the manifest", hint=hint)
        found[names[name.lower()]] = text
    return found
