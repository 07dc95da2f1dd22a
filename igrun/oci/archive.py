"""Images in a tar archive of an OCI image layout, or in such a layout in a folder, as other tools write them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Self

from igrun.errors import ImageError, InvalidReferenceError, NotFoundError
from igrun.oci import subjects, tar
from igrun.oci.copy import Progress, copy
from igrun.oci.entries import LARGEST_INDEX, Entries, Entry, IndexFile, Names, Stored, parsed, ref_name
from igrun.oci.folder import Folder
from igrun.oci.graph import LEGACY, Links, digests
from igrun.oci.ingest import sent
from igrun.oci.model import (
    DIGEST,
    INDEXES,
    LARGEST_LAYER,
    LARGEST_MANIFEST,
    MANIFESTS,
    Content,
    Descriptor,
    Reference,
    Referrer,
    Stream,
)
from igrun.oci.store import Store

CONTAINERD_NAME = "io.containerd.image.name"  # the full name, where ref.name is only the tag


class Place(NamedTuple):
    """Where the bytes of a file are. own: whether to close it after use."""

    fd: int
    offset: int
    size: int
    own: bool


Find = Callable[[str], Place]  # path in the layout -> its place; NotFoundError


class Archive:
    """A layout to read. Use it in a `with`, or close it."""

    def __init__(self, where: str, find: Find, owned: ExitStack) -> None:
        self.where = where
        self._find = find
        self._owned = owned

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """The archive (gzip'ed or not) or folder at `path`. NotFoundError; ImageError: it holds no images."""
        where = os.fspath(path)
        with ExitStack() as stack:
            if Path(path).is_dir():
                archive = cls(where, in_folder(Folder(Path(path).absolute(), writable=False)), stack.pop_all())
            else:
                archive = cls(where, in_tar(where, stack), stack.pop_all())
        try:
            version = parsed(archive._bytes("oci-layout", 4096), where, "oci-layout").get("imageLayoutVersion")
            if version != "1.0.0":
                raise ImageError(f"{where}: unknown layout version {version!r}")
            archive._names  # noqa: B018 - what is wrong with the names is told now
        except NotFoundError as error:
            archive.close()
            raise ImageError(f"{where} is no OCI image layout: {error}") from None
        except BaseException:
            archive.close()
            raise
        return archive

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._owned.close()

    # ------------------------------------------------------------------------------------------ names

    def list(self) -> Names:
        """Every image and its full name, sorted by name."""
        return [Stored(name, Descriptor.read(entry)) for name, entry in sorted(self._names.items())]

    @cached_property
    def _index(self) -> IndexFile:
        return IndexFile(self._bytes("index.json", LARGEST_INDEX), self.where)

    @cached_property
    def _names(self) -> Mapping[str, Entry]:
        """Full name -> entry. Other tools write a tag alone, or no name at all."""
        named = [one for one in self._index.entries if ref_name(one) and not LEGACY.fullmatch(ref_name(one))]
        if not named:
            roots = self._roots()
            if len(roots) != 1:
                raise ImageError(f"{self.where} has {len(roots) or 'no'} images, and none of them has a name")
            named = roots
        found: dict[str, Entry] = {}
        for entry in named:
            Descriptor.read(entry, f"{self.where}: index.json")
            name = self._full_name(entry)
            if found.setdefault(name, entry).get("digest") != entry.get("digest"):
                raise ImageError(f"{self.where}: two images are called {name!r}")
        return found

    def _roots(self) -> Entries:
        """The entries that no other one is made of, and that are about nothing."""
        links = Links(self._children)
        entries = [one for one in self._index.entries if digests([one]) and not ref_name(one)]
        inner = {below for one in entries for below in links.reachable(one["digest"]) - {one["digest"]}}
        return [one for one in entries if one["digest"] not in inner and not links.subject(one["digest"])]

    def _full_name(self, entry: Entry) -> str:
        annotations = entry.get("annotations")
        name = ref_name(entry)
        full = annotations.get(CONTAINERD_NAME) if isinstance(annotations, dict) else None
        if isinstance(full, str) and "/" in full and "/" not in name:
            name = full
        if not re.search("[:/@]", name):
            # a tag alone: the archive is called after the image
            stem = re.sub(r"(\.oci)?(\.tar)?(\.t?gz)?$", "", Path(self.where).absolute().name.lower())
            stem = re.sub("[^a-z0-9]+", lambda run: run[0] if run[0] in (".", "_") else "-", stem).strip("-_.")
            name = f"{stem or 'image'}:{name or 'latest'}"
        try:
            return str(Reference.parse(name))
        except InvalidReferenceError as error:
            raise ImageError(f"{self.where}: {error}") from None

    # ------------------------------------------------------------------------------------------ read

    def resolve(self, ref: Reference | str) -> Descriptor:
        """What a full name, or `sha256:...`, stands for. NotFoundError: nothing."""
        wanted = str(ref)
        digest = wanted.rpartition("@")[2]
        entry = self._names.get(wanted)
        if entry is None and DIGEST.fullmatch(digest):
            entry = self._index.find(digest)
        if entry is None:
            raise NotFoundError(f"image {wanted!r} not found in {self.where}")
        return Descriptor.read(entry, f"image {wanted!r} in {self.where}")

    def read(self, descriptor: Descriptor) -> bytes:
        """The bytes of a blob, verified. NotFoundError: it is not there. ImageError: it is damaged."""
        small = descriptor.media_type in INDEXES or descriptor.media_type in MANIFESTS
        largest = LARGEST_MANIFEST if small else LARGEST_LAYER
        if descriptor.size > largest:
            raise ImageError(f"blob {descriptor.digest} is too large ({descriptor.size} bytes, at most {largest})")
        return b"".join(self.stream(descriptor))

    def has(self, descriptor: Descriptor) -> bool:
        """Whether a blob is there, undamaged."""
        try:
            for _ in self.stream(descriptor):
                pass
        except (NotFoundError, ImageError):
            return False
        return True

    def stream(self, descriptor: Descriptor, start: int = 0) -> Iterator[bytes]:
        """The bytes of a blob from an offset on. NotFoundError: it is not there. ImageError: it is damaged."""
        place = self._find(blob_path(descriptor.digest))
        try:
            if place.size != descriptor.size:
                raise ImageError(
                    f"blob {descriptor.digest} in {self.where} has {place.size} bytes, not {descriptor.size}"
                )
            yield from sent(place.fd, descriptor, start, place.offset)
        finally:
            if place.own:
                os.close(place.fd)

    def referrers(self, subject: Descriptor) -> tuple[Referrer, ...]:
        """What is about an image: signatures by name, then manifests that name it, by digest."""
        return self._index.referrers(subject, subjects.naming(self._subjects, subject.digest), self.read)

    @cached_property
    def _subjects(self) -> bytes:
        return subjects.subjects(self._index.entries, self._children)

    def _children(self, digest: str) -> bytes | None:
        """The bytes of a manifest or an index; None if it is gone or damaged."""
        try:
            data = self._bytes(blob_path(digest), LARGEST_MANIFEST)
        except (NotFoundError, ImageError):
            return None
        return data if Descriptor.of("", data).digest == digest else None

    def _bytes(self, path: str, largest: int) -> bytes:
        place = self._find(path)
        try:
            if place.size > largest:
                raise ImageError(f"{self.where}: {path} is larger than {largest} bytes")
            return os.pread(place.fd, place.size, place.offset)
        except OSError as error:
            raise ImageError(f"cannot read {self.where}: {error.strerror}") from None
        finally:
            if place.own:
                os.close(place.fd)

    # ------------------------------------------------------------------------------------------ write

    def write(self, media_type: str, data: bytes, annotations: Mapping[str, str] | None = None) -> Descriptor:
        """ImageError: an archive is only read."""
        raise self._read_only()

    def receive(self, descriptor: Descriptor, stream: Stream) -> None:
        """ImageError: an archive is only read."""
        raise self._read_only()

    def mount(self, descriptor: Descriptor, source: Content) -> bool:
        """False: nothing is written."""
        return False

    def tag(self, descriptor: Descriptor, ref: Reference | str) -> None:
        """ImageError: an archive is only read."""
        raise self._read_only()

    def refer(self, subject: Descriptor, referrer: Referrer) -> None:
        """ImageError: an archive is only read."""
        raise self._read_only()

    def _read_only(self) -> ImageError:
        return ImageError(f"{self.where} is only read", hint="`ig image export` writes a new one")


def restore(archive: Archive, store: Store, *, progress: Progress | None = None) -> tuple[Stored, ...]:
    """Copy all images of an archive, with what is about them, into a store. Returns them, sorted by name."""
    images = archive.list()
    for name, descriptor in images:
        copy(archive, store, descriptor, name, progress=progress)
    return tuple(images)


# ---------------------------------------------------------------------------------------------- places


def blob_path(digest: str) -> str:
    """Where a blob is in a layout."""
    if not DIGEST.fullmatch(digest):
        raise ImageError(f"{digest[:100]!r} is no sha256 digest")
    return f"blobs/sha256/{digest[7:]}"


def in_folder(folder: Folder) -> Find:
    """The files of a layout in a folder."""

    def find(path: str) -> Place:
        fd, status = folder.open(folder.root / path)
        return Place(fd, 0, status.st_size, own=True)

    return find


def in_tar(path: str, owned: ExitStack) -> Find:
    """The files of a layout in an archive, which `owned` closes. NotFoundError, ImageError."""
    fd, _ = Folder(Path(path).absolute().parent, writable=False).open(Path(path).absolute())
    owned.callback(os.close, fd)
    if unpacked := tar.unpacked(fd, path):
        owned.enter_context(unpacked)
        fd = unpacked.fileno()
    members = tar.members(fd, path)

    def find(inner: str) -> Place:
        member = members.get(inner)
        if member is None:
            raise NotFoundError(f"{inner} is not in {path}")
        return Place(fd, member.offset, member.size, own=False)

    return find
