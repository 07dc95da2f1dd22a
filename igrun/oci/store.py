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
from typing import Any, NamedTuple, Self

from igrun.errors import ImageError, NotFoundError, ParamError
from igrun.oci.folder import SYSTEM_ROOT, TEMPORARY, Folder
from igrun.oci.graph import Removal, read_link, without
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
    Index,
    Manifest,
    Reference,
    Referrer,
    Stream,
)

LARGEST_INDEX = 64 << 20
EMPTY = b'{"schemaVersion":2,"manifests":[]}'
FRESH_S = 3600.0  # a blob without an owner is left alone for so long: its image may not be complete yet
Entry = dict[str, Any]
Entries = list[Entry]


class Stored(NamedTuple):
    """A name in the store and what it stands for."""

    name: str
    descriptor: Descriptor


Names = list[Stored]


class Store:
    """An OCI image layout. Use it in a `with`, or close it; nothing is created before the first write."""

    def __init__(self, root: Path, *, writable: bool) -> None:
        self.root = root.absolute()
        self.writable = writable
        self._folder = Folder(self.root, writable=writable)

    @classmethod
    def open(cls, path: str | os.PathLike[str] | None = None, *, writable: bool = True) -> Self:
        """The store at `path`, else this user's. ImageError: what is there is of another layout."""
        store = cls(Path(path) if path is not None else default_root(), writable=writable)
        with contextlib.suppress(NotFoundError):
            layout = store._parsed(store._folder.read("oci-layout", 4096), "oci-layout")
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
        with self._folder.locked(fcntl.LOCK_SH):
            data = self._index_bytes()
        entry = quickly(data, wanted)
        if entry is None:
            entries = self._entries(data)
            entry = self._find(entries, wanted)
            if entry is None and DIGEST.fullmatch(digest):
                entry = self._find(entries, digest)
        if entry is None:
            raise NotFoundError(
                f"image {wanted!r} not found in {self.root}", hint="`ig image list` shows what is there"
            )
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
        if status.st_size != descriptor.size:
            os.close(fd)
            raise self._damaged(descriptor)
        yield from sent(fd, start, status.st_size, descriptor)

    def list(self) -> Names:
        """Every name and what it stands for, sorted by name. Signatures have names without a `/`."""
        with self._folder.locked(fcntl.LOCK_SH):
            data = self._index_bytes()
        found = []
        for entry in self._entries(data):
            name = ref_name(entry)
            if name:
                with contextlib.suppress(ImageError):
                    found.append(Stored(name, Descriptor.read(entry)))
        return sorted(found, key=lambda one: one.name)

    def referrers(self, subject: Descriptor) -> tuple[Referrer, ...]:
        """What is about an image: signatures by name, then manifests that name it, by digest."""
        with self._folder.locked(fcntl.LOCK_SH):
            entries = self._entries(self._index_bytes())
        bare = f"sha256-{subject.digest[7:]}"
        found: dict[str, Referrer] = {}
        for entry in entries:
            with contextlib.suppress(ImageError, NotFoundError):
                if (name := ref_name(entry)).startswith(f"{bare}."):
                    found[name] = Referrer(Descriptor.read(entry), name)
                elif name == bare:
                    for one in Index.parse(self.read(Descriptor.read(entry))).manifests:
                        found.setdefault(one.digest, Referrer(one))
                elif not name:
                    one = Descriptor.read(entry)
                    if read_link(self._children(one.digest)).subject == subject.digest:
                        found[one.digest] = Referrer(self._described(one))
        return tuple(found[key] for key in sorted(found, key=lambda key: (found[key].tag == "", key)))

    def _described(self, one: Descriptor) -> Descriptor:
        """A referrer with what its own manifest says, as a registry lists it."""
        if one.media_type in INDEXES:
            return one
        manifest = Manifest.parse(self.read(one))
        kind = manifest.artifact_type or manifest.config.media_type
        return Descriptor(one.media_type, one.digest, one.size, manifest.annotations, None, kind)

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

    # ------------------------------------------------------------------------------------------ index.json

    def _record(self, descriptor: Descriptor, name: str) -> None:
        self.read(descriptor)
        more = {REF_NAME: name} if name else {}
        new = descriptor.with_annotations(more).json()

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
            data = self._index_bytes()
            index: Entry = self._parsed(data, "index.json")
            index["manifests"] = change(self._entries(data))
            text = json.dumps(index, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")
            if len(text) > LARGEST_INDEX:
                raise ImageError(f"image store {self.root} is full: index.json is larger than 64 MiB")
            self._folder.put(self.root / "index.json", text)
            if after:
                after()

    def _index_bytes(self) -> bytes:
        try:
            return self._folder.read("index.json", LARGEST_INDEX)
        except NotFoundError:
            return EMPTY

    def _entries(self, data: bytes) -> Entries:
        found = self._parsed(data, "index.json").get("manifests") or []
        if not isinstance(found, list):
            raise ImageError(f"image store {self.root}: index.json has no list of manifests")
        return [entry for entry in found if isinstance(entry, dict)]

    def _parsed(self, data: bytes, name: str) -> Entry:
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise ImageError(
                f"image store {self.root}: {name} is damaged",
                hint=f"move {self.root} away, then pull or build the images again",
            )
        return value

    def _find(self, entries: Entries, wanted: str) -> Entry | None:
        key: Callable[[Entry], Any] = (lambda one: one.get("digest")) if DIGEST.fullmatch(wanted) else ref_name
        return next((one for one in entries if key(one) == wanted), None)

    def _named(self, entries: Entries, wanted: str) -> Entry:
        entry = self._find(entries, wanted)
        if entry is None:
            raise NotFoundError(
                f"image {wanted!r} not found in {self.root}", hint="`ig image list` shows what is there"
            )
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


def ref_name(entry: Entry) -> str:
    """The name of an entry of index.json, "" if it has none."""
    annotations = entry.get("annotations")
    name = annotations.get(REF_NAME, "") if isinstance(annotations, dict) else ""
    return name if isinstance(name, str) else ""


def quickly(data: bytes, wanted: str) -> Entry | None:
    """The entry of that name, found without reading the others; None: look at all of them.

    An index of thousands of images takes longer to parse than everything else that a run does before it loads.
    """
    needle = json.dumps({REF_NAME: wanted}, separators=(",", ":"))[1:-1].encode()
    at = data.find(needle)
    if at < 0 or data.find(needle, at + 1) >= 0:
        return None
    start = data.rfind(b'{"mediaType"', 0, at)
    if start < 0:
        return None
    try:
        entry, _ = json.JSONDecoder().raw_decode(data[start : at + 65536].decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) and ref_name(entry) == wanted else None


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
