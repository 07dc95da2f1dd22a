"""Write images and what is about them into one tar archive of an OCI image layout: the same images, the same bytes."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType

from igrun.dataclass import replace
from igrun.errors import ImageError, NotFoundError
from igrun.oci import tar
from igrun.oci.copy import Progress, copy, resolved
from igrun.oci.entries import Stored
from igrun.oci.folder import LAYOUT, sync_directory
from igrun.oci.ingest import check, pour
from igrun.oci.model import CREATED, DIGEST, REF_NAME, Content, Descriptor, Reference, Referrer, Stream, dumped
from igrun.oci.walk import read_node

Write = Callable[[bytes], object]
NOTHING: Mapping[str, bytes] = MappingProxyType({})


def export(
    source: Content,
    references: Sequence[Reference | str],
    path: str | os.PathLike[str],
    *,
    referrers: bool = True,
    progress: Progress | None = None,
    more: Mapping[str, bytes] = NOTHING,
) -> tuple[Stored, ...]:
    """Write images with what is about them to a file, which is there completely or not at all.

    path: `-` is the standard output
    more: other files for the archive, by their paths in it

    Returns them as they are named in the archive. NotFoundError; ImageError: it cannot be written.
    """
    bundle = Bundle(source)
    for reference in references:
        root = resolved(source, reference)
        bundle.begin(created(source, root))
        copy(source, bundle, root, reference, referrers=referrers)
    try:
        with opened(path) as write:
            bundle.save(write, progress, more)
    except OSError as error:
        raise ImageError(f"cannot write {os.fspath(path)}: {error.strerror or error}") from None
    return tuple(sorted(bundle.names))


def created(source: Content, root: Descriptor) -> int:
    """When an image was built, in seconds; 0 if it does not say."""
    try:
        then = datetime.fromisoformat(read_node(source, root).annotations.get(CREATED, ""))
    except ValueError:
        return 0
    if then.tzinfo is None:
        then = then.replace(tzinfo=UTC)
    return max(0, int(then.timestamp()))


@contextlib.contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[Write]:
    """A file to write; what is there already is replaced at the end."""
    if os.fspath(path) == "-":
        yield sys.stdout.buffer.write
        sys.stdout.buffer.flush()
        return
    target = Path(path).absolute()
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(target.stat().st_mode):  # a pipe or a device
            with target.open("wb") as file:
                yield file.write
            return
    temporary = target.with_name(f".{target.name[:200]}.{os.getpid()}.{os.urandom(6).hex()}")
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), "wb") as file:
            yield file.write
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(target.parent)


class Bundle:
    """A place that only takes note of what is copied to it, to write all of it in a fixed order."""

    def __init__(self, source: Content) -> None:
        self.names: set[Stored] = set()
        self._source = source
        self._blobs: dict[str, Descriptor] = {}
        self._nodes: dict[str, bytes] = {}
        self._times: dict[str, int] = {}
        self._entries: dict[tuple[str, str], Descriptor] = {}
        self._now = 0

    def begin(self, created: int) -> None:
        """What comes now belongs to an image of that time."""
        self._now = created

    # ------------------------------------------------------------------------------------------ take note

    def has(self, descriptor: Descriptor) -> bool:
        """Whether it is noted."""
        # what belongs to several images is as old as the oldest
        digest = descriptor.digest
        self._times[digest] = min(self._now, self._times.get(digest, self._now))
        return digest in self._blobs or digest in self._nodes

    def mount(self, descriptor: Descriptor, source: Content) -> bool:
        """Note a blob, which is read when the archive is written."""
        self._blobs[descriptor.digest] = descriptor
        return True

    def receive(self, descriptor: Descriptor, stream: Stream) -> None:
        """Take a manifest."""
        data = b"".join(stream(0))
        if replace(Descriptor.of("", data), media_type=descriptor.media_type) != bare(descriptor):
            raise ImageError(f"{descriptor.digest} is not what it should be")
        self._nodes[descriptor.digest] = data

    def tag(self, descriptor: Descriptor, ref: Reference | str) -> None:
        """List an image."""
        name = str(ref)
        if DIGEST.fullmatch(name):
            self._list(descriptor, "")
            return
        self._list(descriptor, name)
        self.names.add(Stored(name, descriptor))

    def refer(self, subject: Descriptor, referrer: Referrer) -> None:
        """List what is about an image."""
        self._list(referrer.descriptor, referrer.tag)

    def _list(self, descriptor: Descriptor, name: str) -> None:
        # as the manifest says it: the places that list it may differ
        node = read_node(self, descriptor)
        annotations = {key: value for key, value in node.annotations.items() if key != REF_NAME}
        more = {REF_NAME: name} if name else {}
        kind = node.kind if not name else ""
        entry = replace(bare(descriptor), annotations={**annotations, **more}, artifact_type=kind)
        self._entries[descriptor.digest, name] = entry

    # ------------------------------------------------------------------------------------------ read

    def read(self, descriptor: Descriptor) -> bytes:
        """A manifest that was taken."""
        return self._nodes[descriptor.digest]

    def resolve(self, ref: Reference | str) -> Descriptor:
        """NotFoundError: nothing is looked up here."""
        raise NotFoundError(f"image {str(ref)!r} is not written yet")

    def stream(self, descriptor: Descriptor, start: int = 0) -> Iterator[bytes]:
        """From where it comes."""
        return self._source.stream(descriptor, start)

    def referrers(self, subject: Descriptor) -> tuple[Referrer, ...]:
        """Nothing is looked up here."""
        return ()

    def write(self, media_type: str, data: bytes, annotations: Mapping[str, str] | None = None) -> Descriptor:
        """Take a blob or manifest made here."""
        descriptor = Descriptor.of(media_type, data, annotations=dict(annotations or {}))
        self._nodes[descriptor.digest] = data
        return descriptor

    # ------------------------------------------------------------------------------------------ save

    def save(self, write: Write, progress: Progress | None, more: Mapping[str, bytes]) -> None:
        """Write the archive."""
        if progress:
            for one in self._blobs.values():
                progress.expect(one)
        for digest in sorted({*self._blobs, *self._nodes}):
            data = self._nodes.get(digest)
            size = self._blobs[digest].size if data is None else len(data)
            write(tar.header(f"blobs/sha256/{digest[7:]}", size, 0o644, self._times.get(digest, 0)))
            if data is None:
                self._pour(self._blobs[digest], write, progress)
            else:
                write(data)
            write(tar.padding(size))
        for path, data in sorted(more.items()):
            write(tar.header(path, len(data), 0o644, 0) + data + tar.padding(len(data)))
        # a name with a tag wins over none
        named = {digest for digest, name in self._entries if name}
        entries = [self._entries[key] for key in sorted(self._entries) if key[1] or key[0] not in named]
        index = dumped({"schemaVersion": 2, "manifests": [one.json() for one in entries]})
        newest = max(self._times.values(), default=0)
        for name, data, mode in (("index.json", index, 0o600), ("oci-layout", LAYOUT, 0o644)):
            write(tar.header(name, len(data), mode, newest) + data + tar.padding(len(data)))
        write(tar.END)

    def _pour(self, blob: Descriptor, write: Write, progress: Progress | None) -> None:
        digest = sha256()

        def put(chunk: bytes) -> None:
            write(chunk)
            if progress:
                progress.advance(blob, len(chunk))

        end = pour(blob, lambda start: self._source.stream(blob, start), 0, digest, put)
        check(blob, end, digest)
        if progress:
            progress.done(blob)


def bare(descriptor: Descriptor) -> Descriptor:
    """Media type, digest and size alone."""
    return Descriptor(descriptor.media_type, descriptor.digest, descriptor.size)
