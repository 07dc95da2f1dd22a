"""What one endpoint, a registry or a mirror of it, has of a repository."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator
from hashlib import sha256
from typing import IO, cast
from urllib.parse import urlsplit, urlunsplit

import oras.container

from igrun.errors import GadgetError, ImageError, NotFoundError, RegistryError
from igrun.logs import Logger
from igrun.oci.access import Access, Endpoint
from igrun.oci.answers import Said, broke, joined, raw
from igrun.oci.model import (
    INDEX,
    INDEXES,
    LARGEST_MANIFEST,
    MANIFEST,
    MANIFESTS,
    Descriptor,
    Index,
    parsed,
    text,
)
from igrun.oci.transport import TRIES, Client, pause

ACCEPT = ", ".join(sorted(INDEXES | MANIFESTS))
HELD = 8 << 20  # bytes of a mirror's blob that are kept in memory until they are known to be right
MOST_PAGES, MOST_LISTED = 50, 2_000
SLOW_AFTER_S, SLOWEST = 60.0, 64  # bytes a second that a download must have after that time

logger = Logger(__name__)


class Paths(oras.container.Container):
    """The addresses of a repository in the API."""

    def __init__(self, registry: str, repository: str) -> None:
        # oras would take a first folder with a dot for the registry
        namespace, _, name = repository.rpartition("/")
        super().__init__(name, registry)
        self.namespace = namespace

    def manifest(self, tag: str) -> str:
        return self._path(self.manifest_url(tag))

    def blob(self, digest: str) -> str:
        return self._path(self.get_blob_url(digest))

    def uploads(self) -> str:
        return self._path(self.upload_blob_url())

    def referrers(self, digest: str) -> str:
        return f"/v2/{self.api_prefix}/referrers/{digest}"

    def _path(self, url: str) -> str:
        return url.removeprefix(self.registry)


class Source:
    """One repository at one endpoint. Several threads may read at once; close it."""

    def __init__(self, endpoint: Endpoint, repository: str, access: Access, tries: int = TRIES) -> None:
        self.endpoint = endpoint
        self.repository = endpoint.prefix + repository
        self.paths = Paths(endpoint.address, self.repository)
        self.client = Client(endpoint, access, repository=self.repository, tries=tries)
        self.scopes = (f"repository:{self.repository}:pull",)
        self._tries = tries
        self._lists_referrers: bool | None = None

    def close(self) -> None:
        self.client.close()

    # ------------------------------------------------------------------------------------------ manifests

    def manifest(self, tag: str) -> tuple[Descriptor, bytes]:
        """A manifest or index by tag or digest."""
        what = f"image {self.repository}{'@' if ':' in tag else ':'}{tag}"
        with missing(what, self.endpoint.host):
            said = self.client.call(
                "GET",
                self.paths.manifest(tag),
                what,
                headers={"Accept": ACCEPT},
                scopes=self.scopes,
                largest=LARGEST_MANIFEST,
            )
        found = Descriptor.of("", said.body)
        if ":" in tag and found.digest != tag:
            raise ImageError(f"{self.endpoint.host}: {what} is not what it should be: its digest is {found.digest}")
        media_type = type_of(said.body, said.headers.get("Content-Type", ""), f"{self.endpoint.host}: {what}")
        return Descriptor(media_type, found.digest, found.size), said.body

    # ------------------------------------------------------------------------------------------ blobs

    def blob(self, descriptor: Descriptor, start: int = 0) -> Iterator[bytes]:
        """The bytes of a blob from an offset on. NotFoundError: it is not there. ImageError: it is larger or smaller.

        A connection that breaks is made again, and gone on with where it broke.
        """
        at, tries, size = start, 0, descriptor.size
        began, since = time.monotonic(), start
        what = f"blob {descriptor.digest}"
        while at < size or (size == 0 and not tries):
            tries += 1
            before = at
            try:
                for chunk in self._part(descriptor, at, what):
                    at += len(chunk)
                    if at > size:
                        raise ImageError(f"{what} of {self.endpoint.host} is larger than the {size} bytes it has")
                    yield chunk
                    spent_s = time.monotonic() - began
                    if spent_s > SLOW_AFTER_S:
                        if at - since < SLOWEST * spent_s:
                            raise RegistryError(
                                f"{self.endpoint.host}: {what} comes too slowly: {at - since} bytes in {spent_s:.0f} s"
                            )
                        began, since = time.monotonic(), at
            except RegistryError as error:
                tries = 1 if at > before else tries
                if not broke(error) or tries >= self._tries:
                    raise
                logger.debug("%s: %s, going on at byte %d", self.endpoint.host, error, at)
                time.sleep(pause(tries))
                continue
            if at < size and (at == before or tries >= self._tries):
                raise ImageError(f"{what} of {self.endpoint.host} ends after {at} of {size} bytes")

    def _part(self, descriptor: Descriptor, start: int, what: str) -> Iterator[bytes]:
        """What one request gives of a blob. RegistryError with code BROKEN: the connection broke."""
        host = self.endpoint.host
        headers = {"Range": f"bytes={start}-{descriptor.size - 1}"} if start else {}
        path = self.paths.blob(descriptor.digest)
        with (
            missing(what, f"{host}/{self.repository}"),
            self.client.opened("GET", path, what, headers=headers, scopes=self.scopes) as response,
        ):
            skip = start
            if response.status_code == 206:
                if not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                    raise RegistryError(f"{host}: {what}: it gives another part than was asked for")
                skip = 0
            for chunk in raw(response, f"{host}: {what}"):
                if skip:
                    chunk, skip = chunk[skip:], max(0, skip - len(chunk))
                if chunk:
                    yield chunk

    def whole(self, descriptor: Descriptor) -> contextlib.AbstractContextManager[IO[bytes]]:
        """All of a blob, verified."""
        spool = tempfile.SpooledTemporaryFile(HELD)  # noqa: SIM115  the caller closes it
        try:
            hash_ = sha256()
            for chunk in self.blob(descriptor):
                hash_.update(chunk)
                spool.write(chunk)
            if f"sha256:{hash_.hexdigest()}" != descriptor.digest:
                raise ImageError(f"blob {descriptor.digest} of {self.endpoint.host} is not what it should be")
            spool.seek(0)
        except OSError as error:
            spool.close()
            raise GadgetError(f"cannot keep a blob in {tempfile.gettempdir()}: {error.strerror}") from None
        except BaseException:
            spool.close()
            raise
        return cast("contextlib.AbstractContextManager[IO[bytes]]", spool)

    # ------------------------------------------------------------------------------------------ referrers

    def referrers(self, subject: Descriptor) -> tuple[Descriptor, ...]:
        """The manifests that name an image as their subject, as the registry lists them."""
        found = self.by_api(subject)
        return self.by_tag(subject).manifests if found is None else found

    def by_api(self, subject: Descriptor) -> tuple[Descriptor, ...] | None:
        """What the referrers API lists; None if this registry has none."""
        if self._lists_referrers is False:
            return None
        path = self.paths.referrers(subject.digest)
        what = f"referrers of {subject.digest}"
        found: list[Descriptor] = []
        seen: set[str] = set()
        while path:
            if len(seen) == MOST_PAGES or len(found) > MOST_LISTED:
                raise ImageError(f"{self.endpoint.host}: {what}: the list has no end")
            seen.add(path)
            said = self.client.call(
                "GET",
                path,
                what,
                headers={"Accept": INDEX},
                scopes=self.scopes,
                fine=() if found else (400, 404, 405, 406, 501),
                largest=LARGEST_MANIFEST,
            )
            if not lists(said):
                self._lists_referrers = False
                return None
            found += Index.parse(said.body).manifests
            path = following(said.headers.get("Link", ""), path)
            path = "" if path in seen else path
        self._lists_referrers = True
        return tuple(found)

    def by_tag(self, subject: Descriptor) -> Index:
        """The index under the fallback tag (distribution specification, referrers tag schema), empty if none."""
        try:
            found, data = self.manifest(tag_for(subject))
        except NotFoundError:
            return Index(())
        return Index.parse(data) if found.media_type in INDEXES else Index(())


def lists(said: Said) -> bool:
    """Whether an answer is one of the referrers API, and not a page of something else."""
    kind = said.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    return said.status == 200 and (kind == INDEX or kind == "application/json")


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


def following(link: str, path: str) -> str:
    """The next page that a Link header names, "" if none. It stays on the same registry."""
    for part in link[:8192].split(","):
        target, _, rest = part.strip().partition(">")
        if target.startswith("<") and 'rel="next"' in rest.replace(" ", "") and (whole := joined(path, target[1:])):
            there = urlsplit(whole)
            return urlunsplit(("", "", there.path, there.query, "")) if there.path.startswith("/") else ""
    return ""
