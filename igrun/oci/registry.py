"""A repository of a registry: where images are pulled from and pushed to.

    with Repository.open(Reference.parse("ghcr.io/org/trace_open:v1"), access) as repository:
        copy(repository, store, "ghcr.io/org/trace_open:v1")

What is read comes from the mirrors first, in order, then from the registry; what is written goes to the registry alone.
A mirror that is away, lacks something or gives something else is passed over. The transfers are ours, not oras': they
go in chunks from place to place, are bounded by what the descriptor says, and go on where a connection broke.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Self, TypeVar
from urllib.parse import urlencode

from igrun.errors import GadgetError, ImageError, NotFoundError, RegistryError
from igrun.logs import Logger
from igrun.oci import uploads
from igrun.oci.access import Access, Endpoint
from igrun.oci.answers import CHUNK, broke, down
from igrun.oci.model import (
    DIGEST,
    INDEX,
    INDEXES,
    LARGEST_LAYER,
    LARGEST_MANIFEST,
    MANIFEST,
    MANIFESTS,
    TAG,
    Content,
    Descriptor,
    Index,
    Manifest,
    Reference,
    Referrer,
    Stream,
)
from igrun.oci.source import ACCEPT, Source, tag_for
from igrun.oci.transport import TRIES

LEGACY = (".sig", ".att", ".sbom")
MIRROR_TRIES = 2  # there are others to ask

Result = TypeVar("Result")
logger = Logger(__name__)


class Repository:
    """One repository. Several threads may read and write blobs at once; close it, or use it in a `with`.

    name: registry and repository, as in the names of images
    """

    def __init__(self, reference: Reference, access: Access) -> None:
        self.registry, self.repository, self.name = reference.registry, reference.repository, reference.name
        self._access = access
        self._endpoint = access.endpoint(self.registry)
        self._mirrors = access.mirrors(self.registry)
        self._sources: dict[Endpoint, Source] = {}
        self._lock = threading.Lock()
        self._listing = threading.Lock()  # the list of referrers under the fallback tag is read and written as one
        self._down: set[Endpoint] = set()  # mirrors that are not asked again
        self._manifests: dict[str, bytes] = {}
        self._subjects: set[str] = set()  # digests of manifests whose subject the registry has taken note of
        self._referrers: set[str] = set()  # digests of what has been found to be about something

    @classmethod
    def open(cls, reference: Reference, access: Access) -> Self:
        """The repository of an image. Nothing is asked yet. ParamError: a certificate is not there."""
        return cls(reference, access)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        with self._lock:
            for source in self._sources.values():
                source.close()
            self._sources.clear()

    # ------------------------------------------------------------------------------------------ read

    def resolve(self, ref: Reference | str) -> Descriptor:
        """What a name, a tag or a digest stands for. NotFoundError: nothing."""
        wanted = str(ref)
        digest = wanted.rpartition("@")[2]
        tag = digest if DIGEST.fullmatch(digest) else self._tag_of(wanted)
        found, data = self._first(lambda source: source.manifest(tag))
        self._manifests[found.digest] = data
        return found

    def read(self, descriptor: Descriptor) -> bytes:
        """The bytes of a blob or manifest, verified. NotFoundError: it is not there. ImageError: it is damaged."""
        digest = descriptor.digest
        largest = LARGEST_MANIFEST if is_manifest(descriptor) else LARGEST_LAYER
        if descriptor.size > largest:
            raise ImageError(f"blob {digest} is too large ({descriptor.size} bytes, at most {largest})")
        if is_manifest(descriptor):
            if digest not in self._manifests:
                self._manifests[digest] = self._first(lambda source: source.manifest(digest)[1])
            data = self._manifests[digest]
        else:
            data = b"".join(self.stream(descriptor))
        if len(data) != descriptor.size or Descriptor.of("", data).digest != digest:
            raise ImageError(f"blob {digest} of {self.name} is not what it should be")
        return data

    def has(self, descriptor: Descriptor) -> bool:
        """Whether the registry itself has a blob or manifest."""
        home = self._home
        manifest = is_manifest(descriptor)
        said = home.client.call(
            "HEAD",
            home.paths.manifest(descriptor.digest) if manifest else home.paths.blob(descriptor.digest),
            f"blob {descriptor.digest}",
            headers={"Accept": descriptor.media_type or ACCEPT} if manifest else {},
            scopes=self._writing,
            # a registry that lets us write and not read says 403: then it gets what it may have
            fine=(403, 404, 405),
        )
        return said.status == 200

    def stream(self, descriptor: Descriptor, start: int = 0) -> Iterator[bytes]:
        """The bytes of a blob from an offset on, in chunks. NotFoundError: it is not there. ImageError: it is larger.

        A connection that breaks is made again, and gone on with where it broke.
        """
        if is_manifest(descriptor):
            yield self.read(descriptor)[start:]
            return
        failure: GadgetError | None = None
        for source in self._others():
            try:
                # nothing of a mirror is given on before it is known to be right
                spool = source.whole(descriptor)
            except GadgetError as error:
                failure = self._passed_over(source, error)
                continue
            with spool as file:
                file.seek(start)
                while chunk := file.read(CHUNK):
                    yield chunk
            return
        try:
            yield from self._home.blob(descriptor, start)
        except GadgetError as error:
            if failure and not error.hint:
                error.hint = f"its mirrors: {failure}"
            raise

    # ------------------------------------------------------------------------------------------ write

    def write(self, media_type: str, data: bytes, annotations: Mapping[str, str] | None = None) -> Descriptor:
        """Put a blob there."""
        descriptor = Descriptor.of(media_type, data, annotations=dict(annotations or {}))
        if not self.has(descriptor):
            self.receive(descriptor, lambda start: iter((data[start:],)))
        return descriptor

    def receive(self, descriptor: Descriptor, stream: Stream) -> None:
        """Put a blob or manifest there. ImageError: its bytes are not what it says."""
        if not is_manifest(descriptor):
            uploads.send(self._home, self._writing, descriptor, stream)
            return
        if descriptor.size > LARGEST_MANIFEST:
            raise ImageError(f"manifest {descriptor.digest} is larger than {LARGEST_MANIFEST >> 20} MiB")
        data = b"".join(stream(0))
        if Descriptor.of("", data).digest != descriptor.digest:
            raise ImageError(f"manifest {descriptor.digest} is not what it should be")
        self._put_manifest(descriptor.digest, data, descriptor.media_type)

    def mount(self, descriptor: Descriptor, source: Content) -> bool:
        """Take a blob over from another repository of the same registry. False: that cannot be done."""
        if not isinstance(source, Repository) or source._endpoint != self._endpoint or source.name == self.name:
            return False
        home = self._home
        query = urlencode({"mount": descriptor.digest, "from": source.repository})
        scopes = (*self._writing, f"repository:{source.repository}:pull")
        refused = range(400, 500)
        try:
            said = home.client.call("POST", f"{home.paths.uploads()}?{query}", "mount", scopes=scopes, fine=refused)
        except RegistryError as error:
            # a token service may refuse all that is asked for where it refuses the other repository
            if error.status not in (401, 403):
                raise
            return False
        if said.status == 202 and "Location" in said.headers:  # an upload was begun in its place, which nobody ends
            with contextlib.suppress(RegistryError):
                there = uploads.location(home, said.headers)
                home.client.call("DELETE", there, "upload", scopes=scopes, fine=range(400, 600), again=False)
        return said.status == 201

    def tag(self, descriptor: Descriptor, ref: Reference | str) -> None:
        """Let a name stand for an image whose blobs are all there. A digest alone names nothing."""
        name = str(ref)
        if "@" in name or DIGEST.fullmatch(name):
            digest = name.rpartition("@")[2]
            if digest != descriptor.digest:
                raise ImageError(f"{name} cannot be a name of {descriptor.digest}")
            name = name.rpartition("@")[0]
            if ":" not in name.rpartition("/")[2]:
                return
        self._put_manifest(self._tag_of(name), self._own(descriptor), descriptor.media_type)

    def _own(self, descriptor: Descriptor) -> bytes:
        """A manifest of the registry itself."""
        data = self._manifests.get(descriptor.digest)
        return data if data is not None else self._home.manifest(descriptor.digest)[1]

    def _put_manifest(self, tag: str, data: bytes, media_type: str) -> None:
        said = self._home.client.call(
            "PUT",
            self._home.paths.manifest(tag),
            f"manifest {tag}",
            headers={"Content-Type": media_type},
            body=data,
            scopes=self._writing,
        )
        digest = Descriptor.of("", data).digest
        self._manifests[digest] = data
        if said.headers.get("OCI-Subject"):
            self._subjects.add(digest)

    # ------------------------------------------------------------------------------------------ referrers

    def referrers(self, subject: Descriptor) -> tuple[Referrer, ...]:
        """What is about an image: manifests that name it, then cosign's tags.

        What is about a referrer has no tags of cosign, which are not looked for then: each is a request.
        """
        listed = {one.digest: Referrer(one) for one in self._listed(subject)}
        tagged = []
        for suffix in () if subject.digest in self._referrers else LEGACY:
            tag = tag_for(subject) + suffix
            with contextlib.suppress(NotFoundError):
                tagged.append(Referrer(self.resolve(f"{self.name}:{tag}"), tag))
        found = (*sorted(listed.values(), key=lambda one: one.descriptor.digest), *tagged)
        self._referrers |= {one.descriptor.digest for one in found}
        return found

    def _listed(self, subject: Descriptor) -> tuple[Descriptor, ...]:
        """What the first endpoint lists that knows of anything."""

        def ask(source: Source) -> tuple[Descriptor, ...]:
            # a mirror that has none may never have looked
            if not (found := source.referrers(subject)):
                raise NotFoundError(f"{source.endpoint.host} has nothing about {subject.digest}")
            return found

        try:
            return self._first(ask)
        except NotFoundError:
            return ()

    def refer(self, subject: Descriptor, referrer: Referrer) -> None:
        """Let a referrer be found from its subject."""
        if referrer.tag:
            if not TAG.fullmatch(referrer.tag):
                raise ImageError(f"{referrer.tag[:200]!r} is no tag")
            self.tag(referrer.descriptor, f"{self.name}:{referrer.tag}")
            return
        if referrer.descriptor.digest in self._subjects:
            return
        if any(one.digest == referrer.descriptor.digest for one in self._home.by_api(subject) or ()):
            return
        entry = self._described(referrer.descriptor)
        with self._listing:
            old = self._home.by_tag(subject)
            if any(one.digest == entry.digest for one in old.manifests):
                return
            new = Index((*old.manifests, entry), old.annotations, old.subject).to_bytes()
            self._put_manifest(tag_for(subject), new, INDEX)

    def _described(self, descriptor: Descriptor) -> Descriptor:
        """The entry of a referrer: with its type and annotations, as the API would list it."""
        data = self._own(descriptor)
        artifact_type, annotations = descriptor.artifact_type, descriptor.annotations
        if descriptor.media_type not in INDEXES:
            manifest = Manifest.parse(data)
            artifact_type = artifact_type or manifest.artifact_type or manifest.config.media_type
            annotations = manifest.annotations
        return Descriptor(
            descriptor.media_type or MANIFEST, descriptor.digest, len(data), annotations, None, artifact_type
        )

    # ------------------------------------------------------------------------------------------ endpoints

    @property
    def _home(self) -> Source:
        """The registry itself."""
        return self._source(self._endpoint, TRIES)

    @property
    def _writing(self) -> tuple[str, ...]:
        return (f"repository:{self.repository}:pull,push",)

    def _others(self) -> Iterator[Source]:
        """The mirrors that are not known to be down."""
        for endpoint in self._mirrors:
            if endpoint not in self._down:
                yield self._source(endpoint, MIRROR_TRIES)

    def _source(self, endpoint: Endpoint, tries: int) -> Source:
        with self._lock:
            if endpoint not in self._sources:
                self._sources[endpoint] = Source(endpoint, self.repository, self._access, tries)
            return self._sources[endpoint]

    def _first(self, ask: Callable[[Source], Result]) -> Result:
        """What the first endpoint that has it gives."""
        absent: NotFoundError | None = None
        for source in self._others():
            try:
                return ask(source)
            except GadgetError as error:
                self._passed_over(source, error)
                absent = error if isinstance(error, NotFoundError) else absent
        try:
            return ask(self._home)
        except RegistryError as error:
            if absent is None or not down(error):
                raise
            # Behind mirrors the registry itself may be out of reach for ever: what they lack is not there.
            absent.hint = str(error)
            raise absent from None

    def _passed_over(self, source: Source, error: GadgetError) -> GadgetError:
        """Tell that a mirror was of no use; one that is down is not asked again."""
        logger.info("mirror %s passed over: %s", source.endpoint.address, error)
        if broke(error) or down(error):
            self._down.add(source.endpoint)
        return error

    def _tag_of(self, name: str) -> str:
        """The tag in a name of this repository, or a tag alone. NotFoundError: it is of another one."""
        if "/" not in name and ":" not in name:
            return name
        reference = Reference.parse(name)
        if reference.name != self.name:
            raise NotFoundError(f"image {name!r} is not in {self.name}")
        return reference.digest or reference.tag


def is_manifest(descriptor: Descriptor) -> bool:
    """Whether it is kept among the manifests, not the blobs."""
    return descriptor.media_type in INDEXES or descriptor.media_type in MANIFESTS
