"""A repository of a registry: where images are pulled from and pushed to.

    with Repository.open(Reference.parse("ghcr.io/org/trace_open:v1"), access) as repository:
        copy(repository, store, "ghcr.io/org/trace_open:v1")

What is read comes from the mirrors first, in order, then from the registry; what is written goes to the registry alone.
A mirror that is away, lacks something or gives something else is passed over. The transfers are ours, not oras': they
go in chunks from place to place, are bounded by what the descriptor says, and go on where a connection broke.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from typing import IO, Any, Self, TypeVar, cast
from urllib.parse import parse_qsl, quote, urlencode, urljoin, urlsplit, urlunsplit

import requests
import urllib3

from igrun.errors import GadgetError, ImageError, NotFoundError, RegistryError
from igrun.oci.access import Access, Endpoint
from igrun.oci.model import (
    DIGEST,
    INDEX,
    INDEXES,
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
    parsed,
    text,
)
from igrun.oci.transport import BROKEN, DOWN, TRIES, Client, pause, reason

ACCEPT = ", ".join(sorted(INDEXES | MANIFESTS))
OCTETS = {"Content-Type": "application/octet-stream"}
CHUNK = 1 << 20
PIECE = 8 << 20  # of a chunked upload
LARGEST_PIECE = 256 << 20
HELD = 8 << 20  # bytes of a mirror's blob that are kept in memory until they are known to be right
LEGACY = (".sig", ".att", ".sbom")
MOST_PAGES = 50
SLOW_AFTER_S, SLOWEST = 60.0, 64  # bytes a second that a download must have after that time
OTHER_WAY = frozenset((404, 405, 411, 413, 415, 416, 501))  # a registry that wants no upload in one piece

Result = TypeVar("Result")
logger = logging.getLogger(__name__)


class Repository:
    """One repository. Several threads may read and write blobs at once; close it, or use it in a `with`.

    name: registry and repository, as in the names of images
    """

    def __init__(self, reference: Reference, access: Access) -> None:
        self.registry, self.repository, self.name = reference.registry, reference.repository, reference.name
        self._access = access
        self._clients: dict[Endpoint, Client] = {}
        self._home = access.endpoint(self.registry)
        self._mirrors = list(access.mirrors(self.registry))
        self._manifests: dict[str, bytes] = {}
        self._types: dict[str, str] = {}
        self._lists_referrers: bool | None = None
        self._subjects: set[str] = set()  # digests of manifests whose subject the registry has taken note of

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
        for client in self._clients.values():
            client.close()
        self._clients.clear()

    # ------------------------------------------------------------------------------------------ read

    def resolve(self, ref: Reference | str) -> Descriptor:
        """What a name, a tag or a digest stands for. NotFoundError: nothing."""
        wanted = str(ref)
        digest = wanted.rpartition("@")[2]
        tag = digest if DIGEST.fullmatch(digest) else self._tag_of(wanted)
        found = self._first(lambda source: self._manifest(source, tag))
        self._manifests[found[0].digest] = found[1]
        self._types[found[0].digest] = found[0].media_type
        return found[0]

    def read(self, descriptor: Descriptor) -> bytes:
        """The bytes of a blob or manifest, verified. NotFoundError: it is not there. ImageError: it is damaged."""
        digest = descriptor.digest
        if is_manifest(descriptor):
            if digest not in self._manifests:
                found, data = self._first(lambda source: self._manifest(source, digest))
                self._manifests[digest], self._types[digest] = data, found.media_type
            data = self._manifests[digest]
        else:
            data = b"".join(self.stream(descriptor))
        if len(data) != descriptor.size or Descriptor.of("", data).digest != digest:
            raise ImageError(f"blob {digest} of {self.name} is not what it should be")
        return data

    def has(self, descriptor: Descriptor) -> bool:
        """Whether the registry itself has a blob or manifest."""
        place = "manifests" if is_manifest(descriptor) else "blobs"
        headers = {"Accept": descriptor.media_type or ACCEPT} if is_manifest(descriptor) else {}
        path = f"{self._path(self._home)}/{place}/{descriptor.digest}"
        # a registry that lets us write and not read says 403: then it gets what it may have
        fine = (404, 403)
        said = self._client(self._home).call(
            "HEAD", path, f"blob {descriptor.digest}", headers=headers, scopes=self._scopes(write=True), fine=fine
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
        for source in tuple(self._mirrors):
            # nothing of a mirror is given on before it is known to be right
            with contextlib.ExitStack() as stack:
                try:
                    spool = stack.enter_context(self._fetched(source, descriptor))
                except GadgetError as error:
                    failure = self._passed_over(source, error)
                    continue
                spool.seek(start)
                while chunk := spool.read(CHUNK):
                    yield chunk
                return
        try:
            yield from self._downloaded(self._home, descriptor, start)
        except GadgetError as error:
            if failure and not error.hint:
                error.hint = f"its mirrors: {failure}"
            raise

    def _fetched(self, source: Endpoint, descriptor: Descriptor) -> contextlib.AbstractContextManager[IO[bytes]]:
        """A blob of a mirror, whole and verified."""
        spool = tempfile.SpooledTemporaryFile(HELD)  # noqa: SIM115  the caller closes it
        try:
            hash_ = sha256()
            for chunk in self._downloaded(source, descriptor, 0):
                hash_.update(chunk)
                spool.write(chunk)
            if f"sha256:{hash_.hexdigest()}" != descriptor.digest:
                raise ImageError(f"blob {descriptor.digest} of {source.host} is not what it should be")
        except BaseException:
            spool.close()
            raise
        return cast("contextlib.AbstractContextManager[IO[bytes]]", spool)

    def _downloaded(self, source: Endpoint, descriptor: Descriptor, start: int) -> Iterator[bytes]:
        """The bytes of a blob from an offset on, of one endpoint."""
        at, tries = start, 0
        began, since = time.monotonic(), start
        what = f"blob {descriptor.digest}"
        while at < descriptor.size or (descriptor.size == 0 and not tries):
            tries += 1
            before = at
            try:
                for chunk in self._got(source, descriptor, at, what):
                    at += len(chunk)
                    if at > descriptor.size:
                        raise ImageError(f"{what} of {source.host} is larger than the {descriptor.size} bytes it has")
                    yield chunk
                    spent_s = time.monotonic() - began
                    if spent_s > SLOW_AFTER_S:
                        if at - since < SLOWEST * spent_s:
                            raise RegistryError(f"{source.host}: {what} comes too slowly: {at - since} bytes a minute")
                        began, since = time.monotonic(), at
            except RegistryError as error:
                tries = 0 if at > before else tries
                if error.code != BROKEN or tries >= TRIES:
                    raise
                logger.debug("%s: %s, going on at byte %d", source.host, error, at)
                time.sleep(pause(max(tries, 1)))
                continue
            if at == before and at < descriptor.size:
                raise ImageError(f"{what} of {source.host} ends after {at} of {descriptor.size} bytes")
            if at < descriptor.size and tries >= TRIES:
                raise ImageError(f"{what} of {source.host} ends again and again, at last after {at} bytes")

    def _got(self, source: Endpoint, descriptor: Descriptor, start: int, what: str) -> Iterator[bytes]:
        """What one request gives of a blob. RegistryError with code BROKEN: the connection broke."""
        path = f"{self._path(source)}/blobs/{descriptor.digest}"
        headers = {"Range": f"bytes={start}-{descriptor.size - 1}"} if start else {}
        client = self._client(source)
        scopes = self._scopes(source)
        with missing(what, self.name), client.opened("GET", path, what, headers=headers, scopes=scopes) as response:
            skip = start
            if response.status_code == 206:
                if not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                    raise RegistryError(f"{source.host}: {what}: it gives another part than was asked for")
                skip = 0
            for chunk in raw(response, source.host):
                if skip:
                    chunk, skip = chunk[skip:], max(0, skip - len(chunk))
                if chunk:
                    yield chunk

    def _manifest(self, source: Endpoint, tag: str) -> tuple[Descriptor, bytes]:
        """A manifest or index by tag or digest, of one endpoint."""
        what = f"image {source.prefix}{self.repository}{'@' if ':' in tag else ':'}{tag}"
        with missing(what, source.host):
            said = self._client(source).call(
                "GET",
                f"{self._path(source)}/manifests/{tag}",
                what,
                headers={"Accept": ACCEPT},
                scopes=self._scopes(source),
                largest=LARGEST_MANIFEST,
            )
        media_type = type_of(said.body, said.headers.get("Content-Type", ""), f"{source.host}: {what}")
        found = Descriptor.of(media_type, said.body)
        if ":" in tag and found.digest != tag:
            raise ImageError(f"{source.host}: {what} is not what it should be: its digest is {found.digest}")
        return found, said.body

    # ------------------------------------------------------------------------------------------ write

    def write(self, media_type: str, data: bytes, annotations: Mapping[str, str] | None = None) -> Descriptor:
        """Put a blob there."""
        descriptor = Descriptor.of(media_type, data, annotations=dict(annotations or {}))
        if not self.has(descriptor):
            self.receive(descriptor, lambda start: iter((data[start:],)))
        return descriptor

    def receive(self, descriptor: Descriptor, stream: Stream) -> None:
        """Put a blob or manifest there. ImageError: its bytes are not what it says."""
        if is_manifest(descriptor):
            if descriptor.size > LARGEST_MANIFEST:
                raise ImageError(f"manifest {descriptor.digest} is larger than {LARGEST_MANIFEST >> 20} MiB")
            data = b"".join(stream(0))
            if Descriptor.of("", data).digest != descriptor.digest:
                raise ImageError(f"manifest {descriptor.digest} is not what it should be")
            self._put_manifest(descriptor.digest, data, descriptor.media_type)
            return
        for attempt in range(1, TRIES + 1):
            try:
                self._upload(descriptor, stream)
                return
            except RegistryError as error:
                again = error.code in (BROKEN, "BLOB_UPLOAD_UNKNOWN", "BLOB_UPLOAD_INVALID") or error.status >= 500
                if attempt == TRIES or not again:
                    raise
                logger.debug("%s: %s, sending it again", self._home.host, error)
                time.sleep(pause(attempt))

    def mount(self, descriptor: Descriptor, source: Content) -> bool:
        """Take a blob over from another repository of the same registry. False: that cannot be done."""
        if not isinstance(source, Repository) or source._home != self._home or source.name == self.name:
            return False
        query = urlencode({"mount": descriptor.digest, "from": source.repository})
        client = self._client(self._home)
        scopes = (*self._scopes(write=True), f"repository:{source.repository}:pull")
        said = client.call(
            "POST", f"{self._path(self._home)}/blobs/uploads/?{query}", "mount", scopes=scopes, fine=range(400, 500)
        )
        if said.status == 202 and "Location" in said.headers:  # an upload was begun in its place, which nobody ends
            with contextlib.suppress(RegistryError):
                client.call("DELETE", self._location(said.headers), "upload", scopes=scopes, fine=range(400, 600))
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
        return data if data is not None else self._manifest(self._home, descriptor.digest)[1]

    def _put_manifest(self, tag: str, data: bytes, media_type: str) -> None:
        said = self._client(self._home).call(
            "PUT",
            f"{self._path(self._home)}/manifests/{tag}",
            f"manifest {tag}",
            headers={"Content-Type": media_type},
            body=data,
            scopes=self._scopes(write=True),
        )
        digest = Descriptor.of("", data).digest
        self._manifests[digest] = data
        if said.headers.get("OCI-Subject"):
            self._subjects.add(digest)

    def _upload(self, descriptor: Descriptor, stream: Stream) -> None:
        """Send a blob, in one piece if the registry takes it so."""
        location, smallest = self._begun(descriptor)
        what = f"blob {descriptor.digest}"
        client, scopes = self._client(self._home), self._scopes(write=True)
        said = client.call(
            "PUT",
            with_query(location, digest=descriptor.digest),
            what,
            headers={**OCTETS, "Content-Length": str(descriptor.size)},
            body=(lambda: Sending(stream, descriptor.size)) if descriptor.size else b"",
            scopes=scopes,
            fine=OTHER_WAY,
        )
        if said.status < 300:
            return
        logger.debug("%s takes no blob in one piece (%d)", self._home.host, said.status)
        location, smallest = self._begun(descriptor)
        piece = max(PIECE, smallest)
        body = Sending(stream, descriptor.size)
        at = 0
        while at < descriptor.size:
            data = body.exactly(min(piece, descriptor.size - at))
            headers = {**OCTETS, "Content-Range": f"{at}-{at + len(data) - 1}"}
            said = client.call("PATCH", location, what, headers=headers, body=data, scopes=scopes)
            at += len(data)
            location = self._location(said.headers)
        client.call(
            "PUT", with_query(location, digest=descriptor.digest), what, body=b"", headers=OCTETS, scopes=scopes
        )

    def _begun(self, descriptor: Descriptor) -> tuple[str, int]:
        """Where an upload goes, and how large its pieces are at least."""
        said = self._client(self._home).call(
            "POST",
            f"{self._path(self._home)}/blobs/uploads/",
            f"blob {descriptor.digest}",
            body=b"",
            scopes=self._scopes(write=True),
        )
        smallest = said.headers.get("OCI-Chunk-Min-Length", "")
        return self._location(said.headers), min(int(smallest), LARGEST_PIECE) if smallest.isdecimal() else 0

    def _location(self, headers: Mapping[str, str]) -> str:
        """Where the registry wants to have something, as a whole URL or a path."""
        location = headers.get("Location", "")
        if not location:
            raise RegistryError(f"{self._home.host}: it does not say where the blob is to be sent")
        scheme = self._client(self._home).schemes[0]
        whole = urljoin(f"{scheme}://{self._home.address}/", location)
        there = urlsplit(whole)
        if there.netloc == self._home.address:
            # by the scheme that works: behind a proxy it may not know its own
            return urlunsplit(("", "", there.path, there.query, ""))
        return whole

    # ------------------------------------------------------------------------------------------ referrers

    def referrers(self, subject: Descriptor) -> tuple[Referrer, ...]:
        """What is about an image: manifests that name it, then cosign's tags."""
        listed = {one.digest: Referrer(one) for one in self._first(lambda source: self._listed_by(source, subject))}
        tagged = []
        for suffix in LEGACY:
            tag = tag_for(subject) + suffix
            with contextlib.suppress(NotFoundError):
                tagged.append(Referrer(self.resolve(f"{self.name}:{tag}"), tag))
        return (*sorted(listed.values(), key=lambda one: one.descriptor.digest), *tagged)

    def _listed_by(self, source: Endpoint, subject: Descriptor) -> tuple[Descriptor, ...]:
        found = self._by_api(source, subject)
        return self._by_tag(source, subject) if found is None else found

    def _by_api(self, source: Endpoint, subject: Descriptor) -> tuple[Descriptor, ...] | None:
        """What the referrers API lists; None if this registry has none."""
        if source is self._home and self._lists_referrers is False:
            return None
        path: str | None = f"{self._path(source)}/referrers/{subject.digest}"
        found: list[Descriptor] = []
        what = f"referrers of {subject.digest}"
        for _ in range(MOST_PAGES):
            said = self._client(source).call(
                "GET",
                str(path),
                what,
                headers={"Accept": INDEX},
                scopes=self._scopes(source),
                fine=(400, 404, 405, 406, 501),
                largest=LARGEST_MANIFEST,
            )
            kind = said.headers.get("Content-Type", "").partition(";")[0].strip()
            if said.status != 200 or (kind not in (INDEX, "") and not kind.endswith("json")):
                if source is self._home:
                    self._lists_referrers = False
                return None
            found += Index.parse(said.body).manifests
            path = following(said.headers.get("Link", ""), str(path))
            if path is None:
                break
        if source is self._home:
            self._lists_referrers = True
        return tuple(found)

    def _by_tag(self, source: Endpoint, subject: Descriptor) -> tuple[Descriptor, ...]:
        """What the index under the fallback tag lists (distribution specification, referrers tag schema)."""
        try:
            found, data = self._manifest(source, tag_for(subject))
        except NotFoundError:
            return ()
        return Index.parse(data).manifests if found.media_type in INDEXES else ()

    def refer(self, subject: Descriptor, referrer: Referrer) -> None:
        """Let a referrer be found from its subject."""
        if referrer.tag:
            if not TAG.fullmatch(referrer.tag):
                raise ImageError(f"{referrer.tag[:200]!r} is no tag")
            self.tag(referrer.descriptor, f"{self.name}:{referrer.tag}")
            return
        if referrer.descriptor.digest in self._subjects:
            return
        if any(one.digest == referrer.descriptor.digest for one in self._by_api(self._home, subject) or ()):
            return
        entry = self._described(referrer.descriptor)
        try:
            found, data = self._manifest(self._home, tag_for(subject))
            old = Index.parse(data) if found.media_type in INDEXES else Index(())
        except NotFoundError:
            old = Index(())
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

    # ------------------------------------------------------------------------------------------ words

    def _first(self, ask: Callable[[Endpoint], Result]) -> Result:
        """What the first endpoint that has it gives."""
        absent: NotFoundError | None = None
        for source in tuple(self._mirrors):
            try:
                return ask(source)
            except GadgetError as error:
                self._passed_over(source, error)
                absent = error if isinstance(error, NotFoundError) else absent
        try:
            return ask(self._home)
        except RegistryError as error:
            if absent is None or error.code != DOWN:
                raise
            # Behind mirrors the registry itself may be out of reach for ever: what they lack is not there.
            absent.hint = str(error)
            raise absent from None

    def _passed_over(self, source: Endpoint, error: GadgetError) -> GadgetError:
        """Tell that a mirror was of no use; one that is down is not asked again."""
        logger.info("mirror %s passed over: %s", source.address, error)
        if isinstance(error, RegistryError) and error.code in (BROKEN, DOWN) and source in self._mirrors:
            self._mirrors.remove(source)
        return error

    def _client(self, endpoint: Endpoint) -> Client:
        if endpoint not in self._clients:
            self._clients.setdefault(endpoint, Client(endpoint, self._access))
        return self._clients[endpoint]

    def _path(self, endpoint: Endpoint) -> str:
        return f"/v2/{quote(endpoint.prefix + self.repository)}"

    def _scopes(self, source: Endpoint | None = None, *, write: bool = False) -> tuple[str, ...]:
        prefix = source.prefix if source else ""
        return (f"repository:{prefix}{self.repository}:{'pull,push' if write else 'pull'}",)

    def _tag_of(self, name: str) -> str:
        """The tag in a name of this repository, or a tag alone. NotFoundError: it is of another one."""
        if "/" not in name and ":" not in name:
            return name
        reference = Reference.parse(name)
        if reference.name != self.name:
            raise NotFoundError(f"image {name!r} is not in {self.name}")
        return reference.digest or reference.tag


class Sending:
    """A blob on its way: a file, for requests, whose bytes come from a stream. A copy is as long as it says."""

    def __init__(self, stream: Stream, size: int) -> None:
        self._chunks = stream(0)
        self._size = size
        self._left = size
        self._rest = b""

    def __len__(self) -> int:
        return self._size

    def read(self, size: int = -1) -> bytes:
        """Some of the bytes, b"" at the end. ImageError: there are fewer or more than there should be."""
        if not self._rest:
            self._rest = next(self._chunks, b"")
            if not self._rest and self._left:
                raise ImageError(f"a blob has {self._left} bytes less than it says")
        data = self._rest if size < 0 else self._rest[:size]
        self._rest = self._rest[len(data) :]
        self._left -= len(data)
        if self._left < 0:
            raise ImageError("a blob has more bytes than it says")
        return data

    def exactly(self, size: int) -> bytes:
        """So many bytes."""
        parts = []
        while size:
            parts.append(self.read(size))
            size -= len(parts[-1])
        return b"".join(parts)


@contextlib.contextmanager
def missing(what: str, where: str) -> Iterator[None]:
    """What is not there becomes NotFoundError."""
    try:
        yield
    except RegistryError as error:
        if error.status != 404:
            raise
        raise NotFoundError(
            f"{what} is not in registry {where}", hint="is its name right, and has it been pushed?"
        ) from None


def is_manifest(descriptor: Descriptor) -> bool:
    """Whether it is kept among the manifests, not the blobs."""
    return descriptor.media_type in INDEXES or descriptor.media_type in MANIFESTS


def type_of(data: bytes, header: str, where: str) -> str:
    """The media type of a manifest: what it says itself, else what the registry says."""
    value = parsed(data, where)
    kind = text(value, "mediaType", where, "") or header.partition(";")[0].strip().lower()
    if kind in INDEXES or kind in MANIFESTS:
        return kind
    return INDEX if "manifests" in value else MANIFEST if "config" in value else kind


def tag_for(subject: Descriptor) -> str:
    """The tag that stands for what is about an image, where the registry has no API for that."""
    return subject.digest.replace(":", "-")


def following(link: str, path: str) -> str | None:
    """The next page that a Link header names; None if there is none. It stays on the same registry."""
    for part in link.split(","):
        target, _, rest = part.strip().partition(">")
        if target.startswith("<") and 'rel="next"' in rest.replace(" ", ""):
            there = urlsplit(urljoin(path, target[1:]))
            return urlunsplit(("", "", there.path, there.query, ""))
    return None


def with_query(url: str, **more: str) -> str:
    """A URL with more in its query."""
    parts = urlsplit(url)
    query = urlencode([*parse_qsl(parts.query, keep_blank_values=True), *more.items()])
    return urlunsplit((parts.scheme, parts.netloc, parts.path, query, ""))


def raw(response: requests.Response, host: str) -> Iterator[bytes]:
    """The bytes of an answer as they come. RegistryError with code BROKEN: the connection broke."""
    body: Any = response.raw
    try:
        while True:
            chunk = body.read1(CHUNK, decode_content=False)
            if not chunk:
                break
            yield chunk
    except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
        if isinstance(error, GadgetError):
            raise
        raise RegistryError(f"{host}: {reason(error)}", code=BROKEN) from None
