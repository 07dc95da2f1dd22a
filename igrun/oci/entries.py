"""index.json of an OCI image layout: which names and manifests it lists, found without reading all of it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any, NamedTuple

from igrun.errors import ImageError, NotFoundError
from igrun.oci.model import DIGEST, INDEXES, REF_NAME, Descriptor, Index, Manifest, Referrer
from igrun.regex import regex

LARGEST_INDEX = 64 << 20
SMALL = 64 << 10  # takes no time to parse
# What JSON may write in another way in a name. Go writes & < > so, which no name has.
ESCAPED = regex(rb"\\(?:/|u00(?!26|3[cCeE])[2-7])")
Entry = dict[str, Any]
Entries = list[Entry]
Read = Callable[[Descriptor], bytes]


class Stored(NamedTuple):
    """A name in the store and what it stands for."""

    name: str
    descriptor: Descriptor


Names = list[Stored]


class IndexFile:
    """The bytes of an index.json. where: for errors."""

    def __init__(self, data: bytes, where: str) -> None:
        self.data = data
        self.where = where

    @cached_property
    def members(self) -> Entry:
        """All of it, parsed. ImageError: it is damaged."""
        return parsed(self.data, self.where, "index.json")

    @property
    def entries(self) -> Entries:
        """Its manifests. ImageError: it is damaged."""
        found = self.members.get("manifests") or []
        if not isinstance(found, list):
            raise ImageError(f"{self.where}: index.json has no list of manifests")
        return [entry for entry in found if isinstance(entry, dict)]

    def find(self, wanted: str) -> Entry | None:
        """The entry of a name, or the first one of a digest."""
        entry = quickly(self.data, wanted)
        if entry is None and self.may_have(wanted):
            entry = find(self.entries, wanted)
        return entry

    def may_have(self, text: str) -> bool:
        """False if no text in it holds this one, which is of characters that names have."""
        if len(self.data) <= SMALL or not self.data.rstrip().endswith(b"}"):
            return True  # read it all: it may be damaged
        return text.encode("utf-8", "replace") in self.data or self._escaped

    @cached_property
    def _escaped(self) -> bool:
        return b"\\" in self.data and ESCAPED.search(self.data) is not None

    def names(self) -> Names:
        """Every name and what it stands for, sorted by name. Signatures have names without a `/`."""
        found = []
        for entry in self.entries:
            if name := ref_name(entry):
                with contextlib.suppress(ImageError):
                    found.append(Stored(name, Descriptor.read(entry)))
        return sorted(found, key=lambda one: one.name)

    def referrers(self, subject: Descriptor, naming: Iterable[Descriptor], read: Read) -> tuple[Referrer, ...]:
        """What is about an image: signatures by name, then manifests that name it, by digest.

        naming: the untagged manifests that name the image as their subject
        """
        bare = f"sha256-{subject.digest[7:]}"
        tagged: list[Referrer] = []
        others: dict[str, Referrer] = {}
        if self.may_have(bare):
            for name in (bare, *(f"{bare}{suffix}" for suffix in (".att", ".sbom", ".sig"))):
                with contextlib.suppress(ImageError, NotFoundError):
                    if entry := self.find(name):
                        found = Descriptor.read(entry)
                        if name != bare:
                            tagged.append(Referrer(found, name))
                        else:
                            # the index that stands for the referrers of a registry which cannot list them
                            others |= {one.digest: Referrer(one) for one in Index.parse(read(found)).manifests}
        for one in naming:
            with contextlib.suppress(ImageError, NotFoundError):
                others[one.digest] = Referrer(described(one, read))
        return (*tagged, *(others[digest] for digest in sorted(others)))


def described(one: Descriptor, read: Read) -> Descriptor:
    """A referrer with what its own manifest says, as a registry lists it."""
    if one.media_type in INDEXES:
        return one
    manifest = Manifest.parse(read(one))
    kind = manifest.artifact_type or manifest.config.media_type
    return Descriptor(one.media_type, one.digest, one.size, manifest.annotations, None, kind)


def parsed(data: bytes, where: str, name: str) -> Entry:
    """A JSON object. ImageError: it is none."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ImageError(f"{where}: {name} is damaged", hint="move it away, then pull or build the images again")
    return value


def ref_name(entry: Entry) -> str:
    """The name of an entry of index.json, "" if it has none."""
    annotations = entry.get("annotations")
    name = annotations.get(REF_NAME, "") if isinstance(annotations, dict) else ""
    return name if isinstance(name, str) else ""


def find(entries: Entries, wanted: str) -> Entry | None:
    """The entry of a name, or the first one of a digest."""
    key: Callable[[Entry], Any] = (lambda one: one.get("digest")) if DIGEST.fullmatch(wanted) else ref_name
    return next((one for one in entries if key(one) == wanted), None)


def quickly(data: bytes, wanted: str) -> Entry | None:
    """The entry of that name or digest, found without reading the others; None: look at all of them.

    An index of thousands of images takes longer to parse than everything else that a run does before it loads.
    """
    digest = DIGEST.fullmatch(wanted) is not None
    needle = json.dumps({"digest" if digest else REF_NAME: wanted}, separators=(",", ":"))[1:-1].encode()
    at = data.find(needle)
    # one digest may have many names, but one name stands for one image
    if at < 0 or (not digest and data.find(needle, at + 1) >= 0):
        return None
    start = data.rfind(b'{"mediaType"', 0, at)
    if start < 0:
        return None
    try:
        entry, _ = json.JSONDecoder().raw_decode(data[start : at + 65536].decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    same = isinstance(entry, dict) and (entry.get("digest") if digest else ref_name(entry)) == wanted
    return entry if same else None
