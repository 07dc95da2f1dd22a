"""What hangs on what in a store: which blobs an image needs, and which nobody needs any more."""

from __future__ import annotations

import json
from collections.abc import Callable, Set
from typing import Any, NamedTuple

from igrun.oci.model import DIGEST, REF_NAME
from igrun.regex import regex

Entry = dict[str, Any]
Read = Callable[[str], bytes | None]
# cosign's signatures, and an index of referrers, are called after the image that they are about
LEGACY = regex(r"sha256-([0-9a-f]{64})(?:\.(?:sig|att|sbom))?")


class Removal(NamedTuple):
    """entries: what stays in index.json; gone: blobs that nothing needs any more; needed: all blobs that are needed,
    None if that is not known because a manifest cannot be read."""

    entries: list[Entry]
    gone: set[str]
    needed: set[str] | None


def without(entries: list[Entry], root: str, read: Read) -> Removal:
    """What goes when image `root` goes: what it is made of, what is about it, and what is about that.

    entries: the others of index.json
    read:    digest -> bytes of a manifest or an index, None if it is gone or damaged
    """
    links = Links(read)
    named, others = parted(entries)
    going = about(links, links.reachable(root), others)
    staying = about(links, reached(links, named), others)
    return removal(links, entries, lambda one: one not in staying and one in going, going)


def needless(entries: list[Entry], read: Read) -> Removal:
    """What goes when everything goes that no name needs. entries: all of index.json."""
    links = Links(read)
    named, others = parted(entries)
    staying = about(links, reached(links, named), others)
    return removal(links, entries, lambda one: one not in staying, reached(links, others))


def parted(entries: list[Entry]) -> tuple[list[Entry], list[Entry]]:
    """The images with names, and the rest: manifests without names, and signatures called after what they sign."""
    others = [entry for entry in entries if removable(entry)]
    return [entry for entry in entries if not removable(entry)], others


def removable(entry: Entry) -> bool:
    """Whether an entry does not stand for itself. What is damaged is left alone."""
    called = str(name(entry) or "")
    return bool(digests([entry])) and (not called or LEGACY.fullmatch(called) is not None)


def reached(links: Links, entries: list[Entry]) -> set[str]:
    """Everything that these images are made of."""
    found: set[str] = set()
    for entry in entries:
        found |= links.reachable(entry.get("digest"), found)
    return found


def about(links: Links, images: set[str], others: list[Entry]) -> set[str]:
    """These images and all that is about them, and about that."""
    found = set(images)
    by_subject: dict[str, list[str]] = {}
    for entry in others:
        called = LEGACY.fullmatch(str(name(entry) or ""))
        subject = f"sha256:{called[1]}" if called else links.subject(entry["digest"])
        by_subject.setdefault(subject, []).append(entry["digest"])
    waiting = list(found)
    while waiting:
        for one in by_subject.pop(waiting.pop(), ()):
            more = links.reachable(one, found)
            found |= more
            waiting.extend(more)
    return found


def removal(links: Links, entries: list[Entry], goes: Callable[[str], bool], going: set[str]) -> Removal:
    """What stays when the entries without names that `goes` tells go."""
    kept = [one for one in entries if not (removable(one) and goes(one["digest"]))]
    needed = reached(links, kept)
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

    def reachable(self, digest: Any, known: Set[str] = frozenset()) -> set[str]:
        """An image and everything below it, but for what is known already with all below it."""
        found: set[str] = set()
        waiting = [digest]
        while waiting:
            one = waiting.pop()
            if isinstance(one, str) and DIGEST.fullmatch(one) and one not in found and one not in known:
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
