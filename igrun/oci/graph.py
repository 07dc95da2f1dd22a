"""What hangs on what in a store: which blobs an image needs, and which nobody needs any more."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from igrun.oci.model import DIGEST, REF_NAME

Entry = dict[str, Any]
Read = Callable[[str], bytes | None]


class Removal(NamedTuple):
    """entries: what stays in index.json; gone: blobs that nothing needs any more; needed: all blobs that are needed,
    None if that is not known because a manifest cannot be read."""

    entries: list[Entry]
    gone: set[str]
    needed: set[str] | None


def without(entries: list[Entry], root: str, read: Read) -> Removal:
    """What goes when image `root` goes.

    entries: the others of index.json
    read:    digest -> bytes of a manifest or an index, None if it is gone or damaged
    """
    links = Links(read)
    going = links.reachable(root)
    signatures = (f"sha256-{root[7:]}", f"sha256-{root[7:]}.sig")
    untagged: list[Entry] = []
    staying: set[int] = set()  # places in entries
    for place, entry in enumerate(entries):
        digest = entry.get("digest")
        if name(entry) in signatures:
            going |= links.reachable(digest)
        elif name(entry) or not isinstance(digest, str):
            staying.add(place)
        else:
            untagged.append(entry)
    # what is about the image goes with it, and what is about that
    grown = True
    while grown:
        grown = False
        for entry in untagged:
            if entry["digest"] not in going and links.subject(entry["digest"]) in going:
                going |= links.reachable(entry["digest"])
                grown = True
    bare = {place for place, entry in enumerate(entries) if any(entry is one for one in untagged)}
    staying |= {place for place in bare if entries[place]["digest"] not in going}
    needed = {digest for place in staying for digest in links.reachable(entries[place].get("digest"))}
    # an untagged manifest that another image needs keeps its entry
    staying |= {place for place in bare if entries[place]["digest"] in needed}
    kept = [entry for place, entry in enumerate(entries) if place in staying]
    return Removal(kept, going - needed, needed if links.complete else None)


def name(entry: Entry) -> Any:
    """The name of an entry, None if it has none."""
    annotations = entry.get("annotations")
    return annotations.get(REF_NAME) if isinstance(annotations, dict) else None


class Link(NamedTuple):
    """What one manifest or index names. below: manifests of an index; blobs: config and layers; subject: "" if none."""

    below: tuple[str, ...] = ()
    blobs: tuple[str, ...] = ()
    subject: str = ""


class Links:
    """What each manifest and index names, read once. complete: False once one of them could not be read."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._known: dict[str, Link] = {}
        self.complete = True

    def reachable(self, digest: Any) -> set[str]:
        """An image and everything below it."""
        found: set[str] = set()
        waiting = [digest]
        while waiting:
            one = waiting.pop()
            if isinstance(one, str) and DIGEST.fullmatch(one) and one not in found:
                link = self._of(one)
                found |= {one, *link.blobs}
                waiting.extend(link.below)
        return found

    def subject(self, digest: str) -> str:
        """The image that a manifest is about, "" if none."""
        return self._of(digest).subject if DIGEST.fullmatch(digest) else ""

    def _of(self, digest: str) -> Link:
        if digest not in self._known:
            data = self._read(digest)
            self.complete &= data is not None
            self._known[digest] = read_link(data)
        return self._known[digest]


def read_link(data: bytes | None) -> Link:
    """What a manifest or an index names; a layer names nothing."""
    if not data or not data.lstrip().startswith(b"{"):
        return Link()
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return Link()
    if not isinstance(value, dict):
        return Link()
    config, layers = value.get("config"), value.get("layers")
    blobs = [config, *layers] if isinstance(layers, list) else [config]
    manifests = value.get("manifests")
    return Link(
        digests(manifests if isinstance(manifests, list) else []), digests(blobs), *digests([value.get("subject")])[:1]
    )


def digests(descriptors: list[Any]) -> tuple[str, ...]:
    """The digests in these descriptors."""
    return tuple(
        one["digest"]
        for one in descriptors
        if isinstance(one, dict) and isinstance(one.get("digest"), str) and DIGEST.fullmatch(one["digest"])
    )
