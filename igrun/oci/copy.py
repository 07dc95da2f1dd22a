"""Copy an image from one place to another: push, pull, export and import are this with the ends swapped.

The name is resolved once; from then on only digests are used. Blobs go before the manifests that name them, manifests
before their indexes, what is about the image (signatures, SBOMs) after it, and the name last: whoever is killed in
between leaves a target that has what it had before, and the next attempt goes on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import Protocol, Self, TypeVar

from igrun.dataclass import replace
from igrun.errors import GadgetError, ImageError, NotFoundError
from igrun.oci.model import DIGEST, Content, Descriptor, Reference, Referrer, Stream
from igrun.oci.walk import Graph, Node, read_node

MOST_REFERRERS = 1_000
DEEPEST_REFERRERS = 4  # signatures of signatures of ...

Given = TypeVar("Given")
Result = TypeVar("Result")
About = tuple[Descriptor, Referrer]  # subject, referrer


class Progress(Protocol):
    """Whoever shows how far a copy is. The methods are called from several threads."""

    def expect(self, descriptor: Descriptor) -> None:
        """It belongs to what is copied."""
        ...

    def advance(self, descriptor: Descriptor, count: int) -> None:
        """So many more bytes of it are there; less than 0 if some must be sent again."""
        ...

    def done(self, descriptor: Descriptor) -> None:
        """All of it is there, or was there before."""
        ...


def copy(
    source: Content,
    target: Content,
    ref: Reference | Descriptor | str,
    to: Reference | str | None = None,
    *,
    referrers: bool = True,
    workers: int = 4,
    progress: Progress | None = None,
) -> Descriptor:
    """Copy an image and what is about it.

    ref:       its name or digest, or its descriptor if the name was resolved before
    to:        its name in the target; None: the same (none for a descriptor or a digest alone)
    referrers: signatures, SBOMs and whatever else is about it too, and what is about those

    NotFoundError: it is not there, or not all of it. ImageError: it is not what it says, or too large.
    """
    root = ref if isinstance(ref, Descriptor) else resolved(source, ref)
    name = to if to is not None else root.digest if isinstance(ref, Descriptor) else ref
    with Copying(source, target, workers, progress) as copying:
        root = copying.image(root)
        if referrers:
            copying.referrers()
    target.tag(root, name)
    return root


def resolved(source: Content, ref: Reference | str) -> Descriptor:
    """What a name stands for. ImageError: not for the digest in it."""
    root = source.resolve(ref)
    digest = str(ref).rpartition("@")[2]
    if DIGEST.fullmatch(digest) and root.digest != digest:
        raise ImageError(f"image {str(ref)!r} is {root.digest}")
    return root


class Stopped(GadgetError):
    """Another part of the same copy has failed."""


class Copying:
    """One copy on its way. Leaving it ends its threads."""

    def __init__(self, source: Content, target: Content, workers: int, progress: Progress | None) -> None:
        self._source = source
        self._target = target
        self._progress = progress
        self._graph = Graph(source)
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(workers, "copy")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)

    def image(self, root: Descriptor) -> Descriptor:
        """Copy what an image consists of. Returns its descriptor with what the image says about itself."""
        self._graph.add(root)
        self._expect(self._graph)
        self._each(self._send_blob, self._graph.blobs.values())
        self._send_nodes(self._graph.nodes.values())
        return replace(root, annotations={**self._graph.nodes[root.digest].annotations, **root.annotations})

    def referrers(self) -> None:
        """Copy what is about all that was copied."""
        image = (set(self._graph.nodes), set(self._graph.blobs))
        gone: set[str] = set()
        found = [about for about in self._find() if self._is_about(about, gone)]
        part = self._graph.below(referrer.descriptor for _, referrer in found)
        part.nodes = {digest: node for digest, node in part.nodes.items() if digest not in image[0]}
        part.blobs = {digest: blob for digest, blob in part.blobs.items() if digest not in image[1]}
        self._expect(part)
        gone |= {one.digest for one in self._each(self._try_blob, part.blobs.values()) if one}
        for digest, node in part.nodes.items():
            if gone.isdisjoint(one.digest for one in node.below):
                self._send_node(node)
            else:
                gone.add(digest)
        for subject, referrer in found:
            digest = referrer.descriptor.digest
            if digest in gone:
                self._vanished(referrer.descriptor, NotFoundError(f"a part of referrer {digest} is not there"))
            elif subject.digest not in gone:
                self._target.refer(subject, referrer)

    # ------------------------------------------------------------------------------------------ find

    def _find(self) -> list[About]:
        """Everything that is about what was copied, and about that, subjects first."""
        subjects = [node.descriptor for node in self._graph.nodes.values()][::-1]
        seen = {one.digest for one in subjects}
        found: dict[tuple[str, str, str], About] = {}
        for _ in range(DEEPEST_REFERRERS):
            following = []
            for subject, referrers in zip(subjects, self._each(self._source.referrers, subjects), strict=True):
                for one in referrers:
                    found.setdefault((subject.digest, one.descriptor.digest, one.tag), (subject, one))
                    if one.descriptor.digest not in seen:
                        seen.add(one.descriptor.digest)
                        following.append(one.descriptor)
                if len(found) > MOST_REFERRERS:
                    raise ImageError(f"there are more than {MOST_REFERRERS} signatures and the like of one image")
            if not following:
                return list(found.values())
            subjects = following
        raise ImageError(f"there are signatures of signatures, more than {DEEPEST_REFERRERS} deep")

    def _is_about(self, about: About, gone: set[str]) -> bool:
        """Read a referrer. False: it is about something else, or has vanished since it was listed."""
        subject, referrer = about
        digest = referrer.descriptor.digest
        try:
            self._graph.add(referrer.descriptor)
        except NotFoundError as error:
            self._vanished(referrer.descriptor, error)
            gone.add(digest)
            return False
        return bool(referrer.tag) or self._graph.nodes[digest].subject == subject.digest

    def _vanished(self, descriptor: Descriptor, error: NotFoundError) -> None:
        """Raise the error unless the referrer itself is gone."""
        try:
            read_node(self._source, descriptor)
        except NotFoundError:
            return
        raise error

    # ------------------------------------------------------------------------------------------ send

    def _expect(self, graph: Graph) -> None:
        if self._progress:
            for one in (*graph.blobs.values(), *(node.descriptor for node in graph.nodes.values())):
                self._progress.expect(one)

    def _send_nodes(self, nodes: Iterable[Node]) -> None:
        """Those that are made of blobs at once, then the indexes, one after the other."""
        waiting = list(nodes)
        digests = {node.descriptor.digest for node in waiting}
        first = [node for node in waiting if digests.isdisjoint(one.digest for one in node.below)]
        self._each(self._send_node, first)
        leaves = {node.descriptor.digest for node in first}
        for node in waiting:
            if node.descriptor.digest not in leaves:
                self._send_node(node)

    def _send_node(self, node: Node) -> None:
        self._send(node.descriptor, lambda start: iter((node.data[start:],)))

    def _try_blob(self, descriptor: Descriptor) -> Descriptor | None:
        """Send a blob; returns it if it is not there."""
        try:
            self._send_blob(descriptor)
        except NotFoundError:
            return descriptor
        return None

    def _send_blob(self, descriptor: Descriptor) -> None:
        self._send(descriptor, lambda start: self._source.stream(descriptor, start), mountable=True)

    def _send(self, descriptor: Descriptor, stream: Stream, *, mountable: bool = False) -> None:
        self._check()
        if not self._target.has(descriptor) and not (mountable and self._target.mount(descriptor, self._source)):
            self._target.receive(descriptor, self._counted(descriptor, stream))
        if self._progress:
            self._progress.done(descriptor)

    def _counted(self, descriptor: Descriptor, stream: Stream) -> Stream:
        """A stream that tells how far it is and ends when the copy has failed."""
        at = 0

        def counted(start: int) -> Iterator[bytes]:
            nonlocal at
            if self._progress and start != at:
                self._progress.advance(descriptor, start - at)
            at = start
            for chunk in stream(start):
                self._check()
                at += len(chunk)
                if self._progress:
                    self._progress.advance(descriptor, len(chunk))
                yield chunk

        return counted

    def _check(self) -> None:
        if self._stop.is_set():
            raise Stopped("stopped")

    def _each(self, work: Callable[[Given], Result], given: Iterable[Given]) -> list[Result]:
        """Do it for each, several at once. The first error ends all."""
        running: list[Future[Result]] = [self._pool.submit(work, one) for one in given]
        try:
            finished, _ = wait(running, return_when=FIRST_EXCEPTION)
            for one in finished:
                if error := one.exception():
                    raise error
            return [one.result() for one in running]
        except BaseException:
            self._stop.set()
            for one in running:
                one.cancel()
            raise
