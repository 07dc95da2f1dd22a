"""The local image store: an OCI image layout on disk, in the ecosystem's place and shape.

    oci-layout  index.json  index.json.lock  blobs/sha256/<hex>  ingest/  ingest.lock

Readers and writers of `index.json` hold a lock on `index.json.lock`, as the ecosystem's tools do. Whoever writes blobs
holds a shared lock on `ingest.lock` until it closes the store; blobs are only deleted under an exclusive one, so that
nobody loses blobs that no index names yet. All files are written beside their place and renamed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Self

from igrun.dataclass import replace
from igrun.errors import ImageError, NotFoundError, ParamError
from igrun.oci import subjects
from igrun.oci.entries import LARGEST_INDEX, SMALL, Entries, Entry, IndexFile, Names, find, parsed, ref_name
from igrun.oci.folder import SYSTEM_ROOT, TEMPORARY, Folder
from igrun.oci.graph import Removal, without
from igrun.oci.ingest import receive, sent
from igrun.oci.model import (
    DIGEST,
    INDEXES,
    LARGEST_LAYER,
    LARGEST_MANIFEST,
    MANIFESTS,
    REF_NAME,
    Content,
    Descriptor,
    Reference,
    Referrer,
    Stream,
)
from igrun.oci.prune import Freed, plan

EMPTY = b'{"schemaVersion":2,"manifests":[]}'
FRESH_S = 3600.0  # a blob without an owner is left alone for so long: its image may not be complete yet


class StoredIndex(IndexFile):
    """index.json of a store. state: changes whenever the file does."""

    def __init__(self, data: bytes, where: str, state: subjects.State) -> None:
        super().__init__(data, where)
        self.state = state


class Store:
    """An OCI image layout. Use it in a `with`, or close it; nothing is created before the first write."""

    def __init__(self, root: Path, *, writable: bool) -> None:
        self.root = root.absolute()
        self.writable = writable
        self._folder = Folder(self.root, writable=writable)
        self._seen: StoredIndex | None = None

    @classmethod
    def open(cls, path: str | os.PathLike[str] | None = None, *, writable: bool = True) -> Self:
        """The store at `path`, else this user's. ImageError: what is there is of another layout."""
        store = cls(Path(path) if path is not None else default_root(), writable=writable)
        with contextlib.suppress(NotFoundError):
            layout = parsed(store._folder.read("oci-layout", 4096), f"image store {store.root}", "oci-layout")
            version = layout.get("imageLayoutVersion")
            if version != "1.0.0":
                raise ImageError(f"image store {store.root}: unknown layout version {version!r}")
        return store

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the blobs written: those that no image holds may be deleted from now on."""
        self._folder.close()

    # ------------------------------------------------------------------------------------------ read

    def resolve(self, ref: Reference | str) -> Descriptor:
        """What a full name, or `sha256:...`, stands for. NotFoundError: nothing."""
        wanted = str(ref)
        digest = wanted.rpartition("@")[2]
        index = self._index()
        entry = index.find(wanted)
        if entry is None and DIGEST.fullmatch(digest):
            entry = index.find(digest)
        if entry is None:
            raise self._not_found(wanted)
        return Descriptor.read(entry, f"image {wanted!r} in {self.root}/index.json")

    def read(self, descriptor: Descriptor) -> bytes:
        """The bytes of a blob, verified. NotFoundError: it is not there. ImageError: it is damaged."""
        small = descriptor.media_type in INDEXES or descriptor.media_type in MANIFESTS
        largest = LARGEST_MANIFEST if small else LARGEST_LAYER
        if descriptor.size > largest:
            raise ImageError(f"blob {descriptor.digest} is too large ({descriptor.size} bytes, at most {largest})")
        data = self._folder.read(self._blob(descriptor.digest), largest)
        found = Descriptor.of(descriptor.media_type, data)
        if found.size != descriptor.size or found.digest != descriptor.digest:
            raise self._damaged(descriptor)
        return data

    def _damaged(self, descriptor: Descriptor) -> ImageError:
        hint = "remove the image and pull or build it again"
        return ImageError(f"blob {descriptor.digest} in {self.root} is damaged", hint=hint)

    def has(self, descriptor: Descriptor) -> bool:
        """Whether a blob or manifest is there, undamaged."""
        try:
            for _ in self.stream(descriptor):
                pass
        except (NotFoundError, ImageError):
            return False
        return True

    def stream(self, descriptor: Descriptor, start: int = 0) -> Iterator[bytes]:
        """The bytes of a blob from an offset on. NotFoundError: it is not there. ImageError: it is damaged, which is
        only seen at the end, and only if `start` is 0."""
        fd, status = self._folder.open(self._blob(descriptor.digest))
        try:
            if status.st_size != descriptor.size:
                raise self._damaged(descriptor)
            yield from sent(fd, descriptor, start)
        finally:
            os.close(fd)

    def list(self) -> Names:
        """Every name and what it stands for, sorted by name. Signatures have names without a `/`."""
        return self._index().names()

    def referrers(self, subject: Descriptor) -> tuple[Referrer, ...]:
        """What is about an image: signatures by name, then manifests that name it, by digest."""
        index = self._index()
        large = len(index.data) > SMALL
        lines = subjects.kept(self._folder, index.state) if large else None
        if lines is None:
            lines = subjects.subjects(index.entries, self._children)
            if large:
                subjects.keep(self._folder, index.state, lines)
        return index.referrers(subject, subjects.naming(lines, subject.digest), self.read)

    # ------------------------------------------------------------------------------------------ write

    def write(self, media_type: str, data: bytes, annotations: Mapping[str, str] | None = None) -> Descriptor:
        """Put a blob there. Tag an image that holds it before closing the store."""
        descriptor = Descriptor.of(media_type, data, annotations=dict(annotations or {}))
        with self._folder.writing():
            path = self._blob(descriptor.digest)
            try:
                present = self._folder.read(path, LARGEST_LAYER) == data
            except (NotFoundError, ImageError):
                present = False  # a damaged blob is written again
            if not present:
                self._folder.put(path, data)
        return descriptor

    def receive(self, descriptor: Descriptor, stream: Stream) -> None:
        """Put a blob or manifest of any size there, in flat memory; a large one goes on where the last attempt was cut.
        Tag an image that holds it before closing the store."""
        small = descriptor.media_type in INDEXES or descriptor.media_type in MANIFESTS
        if small and descriptor.size > LARGEST_MANIFEST:
            raise ImageError(f"manifest {descriptor.digest} is too large ({descriptor.size} bytes)")
        path = self._blob(descriptor.digest)
        with self._folder.writing():
            pass
        if not self.has(descriptor):
            receive(self._folder, path, descriptor, stream)

    def mount(self, descriptor: Descriptor, source: Content) -> bool:
        """False: blobs are copied."""
        return False

    def tag(self, descriptor: Descriptor, ref: Reference | str) -> None:
        """Let a name stand for an image whose blobs are all there. A digest alone holds it without a name."""
        name = str(ref)
        self._record(descriptor, "" if DIGEST.fullmatch(name) else name)

    def keep(self, descriptor: Descriptor) -> None:
        """Hold an image without a name."""
        self._record(descriptor, "")

    def refer(self, subject: Descriptor, referrer: Referrer) -> None:
        """Let a referrer whose blobs and manifest are all there be found from its subject."""
        self._record(referrer.descriptor, referrer.tag)

    def untag(self, ref: Reference | str) -> None:
        """Take a name away; the image stays. NotFoundError: there is no such name."""
        wanted = str(ref)

        def change(entries: Entries) -> Entries:
            entry = self._named(entries, wanted)
            entry = {**entry, "annotations": {k: v for k, v in entry["annotations"].items() if k != REF_NAME}}
            rest = [one for one in entries if ref_name(one) != wanted]
            return rest if any(one.get("digest") == entry["digest"] for one in rest) else [*rest, entry]

        self._change(change)

    def remove(self, ref: Reference | str) -> None:
        """Take a name away, and what no other name needs. NotFoundError: there is no such name."""
        wanted = str(ref)
        removed: list[Removal] = []

        def change(entries: Entries) -> Entries:
            entry = self._named(entries, wanted)
            digest = entry["digest"]
            rest = [one for one in entries if one is not entry]
            if any(ref_name(one) and one.get("digest") == digest for one in rest):
                return rest
            removed.append(without(rest, digest, self._children))
            return removed[0].entries

        self._change(change, after=lambda: self._delete(removed))

    def prune(self, *, dry_run: bool = False, fresh_s: float = FRESH_S) -> Freed:
        """Delete what no name needs: images without names, what is about them, blobs that nothing needs, what broken
        downloads left.

        fresh_s: what an unfinished download may still want is only deleted once it is so old
        """
        if not (self.root / "index.json").exists():
            return Freed()
        old = time.time() - fresh_s
        if dry_run:
            with self._folder.locked(fcntl.LOCK_SH):
                return plan(self._folder, self._read_index().entries, self._present, old).freed
        with self._folder.writing(), self._folder.locked(fcntl.LOCK_EX), self._folder.alone() as alone:
            if not alone:
                return Freed(busy=True)
            index = self._read_index()
            todo = plan(self._folder, index.entries, self._present, old)
            if todo.freed.images:
                self._save(index, todo.entries)
            for file in todo.files:
                file.unlink(missing_ok=True)
            return todo.freed

    def _present(self, digest: str) -> bytes | None:
        """The bytes of a manifest, none if it is not there; None if it is damaged."""
        return self._children(digest) if self._blob(digest).exists() else b""

    # ------------------------------------------------------------------------------------------ index.json

    def _record(self, descriptor: Descriptor, name: str) -> None:
        self.read(descriptor)
        annotations = {key: value for key, value in descriptor.annotations.items() if key != REF_NAME}
        more = {REF_NAME: name} if name else {}
        new = replace(descriptor, annotations={**annotations, **more}).json()

        def change(entries: Entries) -> Entries:
            kept = [one for one in entries if not (name and ref_name(one) == name)]
            # the image that had the name stays, without one, unless another entry holds it
            for old in entries:
                if name and ref_name(old) == name and old.get("digest") != descriptor.digest:
                    bare = {k: v for k, v in old.get("annotations", {}).items() if k != REF_NAME}
                    if not any(one.get("digest") == old.get("digest") for one in kept):
                        kept.append({**old, "annotations": bare})
            if not name and any(one.get("digest") == descriptor.digest for one in kept):
                return kept
            return [*(one for one in kept if ref_name(one) or one.get("digest") != descriptor.digest), new]

        self._change(change)

    def _change(self, change: Callable[[Entries], Entries], after: Callable[[], None] | None = None) -> None:
        """Read, change and write index.json with nobody else between."""
        with self._folder.writing(), self._folder.locked(fcntl.LOCK_EX):
            index = self._read_index()
            self._save(index, change(index.entries))
            if after:
                after()

    def _save(self, index: StoredIndex, now: Entries) -> None:
        """Write other entries into index.json. With the lock held."""
        text = json.dumps({**index.members, "manifests": now}, separators=(",", ":"), ensure_ascii=False)
        data = text.encode("utf-8", "replace")
        if len(data) > LARGEST_INDEX:
            raise ImageError(f"image store {self.root} is full: index.json is larger than 64 MiB")
        lines = None
        if len(data) > SMALL and len(index.data) <= SMALL:
            lines = subjects.subjects(now, self._children)
        elif len(data) > SMALL:
            lines = subjects.kept(self._folder, index.state)
            lines = None if lines is None else subjects.changed(lines, index.entries, now, self._children)
        self._folder.put(self.root / "index.json", data)
        if lines is not None:
            subjects.keep(self._folder, self._read_index().state, lines)

    def _index(self) -> StoredIndex:
        with self._folder.locked(fcntl.LOCK_SH):
            return self._read_index()

    def _read_index(self) -> StoredIndex:
        """index.json as it is, read again only if it was changed. With the lock held."""
        try:
            fd, status = self._folder.open(self.root / "index.json")
        except NotFoundError:
            return StoredIndex(EMPTY, f"image store {self.root}", ())
        state = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        with open(fd, "rb", buffering=0) as file:
            if self._seen is None or self._seen.state != state:
                if status.st_size > LARGEST_INDEX:
                    raise ImageError(f"image store {self.root}: index.json is larger than 64 MiB")
                data = file.read(status.st_size + 1)
                self._seen = StoredIndex(data, f"image store {self.root}", state)
        return self._seen

    def _not_found(self, wanted: str) -> NotFoundError:
        return NotFoundError(f"image {wanted!r} not found in {self.root}", hint="`ig image list` shows what is there")

    def _named(self, entries: Entries, wanted: str) -> Entry:
        entry = find(entries, wanted)
        if entry is None:
            raise self._not_found(wanted)
        Descriptor.read(entry)
        return entry

    # ------------------------------------------------------------------------------------------ deleting

    def _blob(self, digest: str) -> Path:
        if not DIGEST.fullmatch(digest):
            raise ImageError(f"{digest[:100]!r} is no sha256 digest")
        return self._folder.blobs / digest[7:]

    def _children(self, digest: str) -> bytes | None:
        """The bytes of a manifest or an index; None if it is gone or damaged."""
        with contextlib.suppress(NotFoundError, ImageError):
            data = self._folder.read(self._blob(digest), LARGEST_MANIFEST)
            if Descriptor.of("", data).digest == digest:
                return data
        return None

    def _delete(self, removals: Iterable[Removal]) -> None:
        """Delete blobs that nothing needs and left-over temporary files, unless somebody writes just now."""
        old = time.time() - FRESH_S
        with self._folder.alone() as alone:
            for removal in removals if alone else ():
                for blob in self._folder.blobs.iterdir():
                    digest = f"sha256:{blob.name}"
                    nobodys = removal.needed is not None and digest not in removal.needed
                    if digest in removal.gone or (nobodys and blob.lstat().st_mtime < old):
                        blob.unlink(missing_ok=True)
                for left in self._folder.ingest.iterdir():
                    if left.name.endswith(TEMPORARY) or left.lstat().st_mtime < old:
                        left.unlink(missing_ok=True)


def default_root() -> Path:
    """Where this user's images are."""
    return SYSTEM_ROOT if os.geteuid() == 0 else Path.home() / ".ig" / "oci-store"


def user_store(env: Mapping[str, str]) -> Store:
    """The store of the user who called sudo, read-only. ParamError: nobody did."""
    if os.geteuid() != 0:
        return Store.open(writable=False)
    user = env.get("SUDO_USER", "")
    if not user or user == "root":
        raise ParamError(
            "oci-store-user", "true", "--oci-store-user requires being run with sudo, not as root directly"
        )
    import pwd

    try:
        home = pwd.getpwnam(user).pw_dir
    except KeyError:
        raise ParamError("oci-store-user", "true", f"there is no user {user!r} (SUDO_USER)") from None
    root = Path(home) / ".ig" / "oci-store"
    for name in ("index.json", "index.json.lock"):
        if not (root / name).is_file():
            raise NotFoundError(
                f"{root / name} does not exist", hint=f"{user} has no images yet: build or pull one without sudo"
            )
    return Store.open(root, writable=False)
