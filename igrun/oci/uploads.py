"""Blobs on their way to a registry: in one piece if it takes them so, else in pieces as large as it wants."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from igrun.errors import GadgetError, ImageError, RegistryError
from igrun.logs import Logger
from igrun.oci.answers import Said, broke, joined, place, retry_after
from igrun.oci.model import Descriptor, Stream
from igrun.oci.source import Source
from igrun.oci.transport import LONGEST_PAUSE_S, READ_S, TIRED, TRIES, pause

OCTETS = {"Content-Type": "application/octet-stream"}
PIECE = 8 << 20
LARGEST_PIECE = 64 << 20  # a piece is held in memory
TAKEN_IN_S = 4 << 20  # bytes of a blob that a registry puts into its place in a second, at least
OTHER_WAY = frozenset((404, 405, 411, 413, 415, 416, 501))  # a registry that wants no upload in one piece
ANEW = frozenset(("BLOB_UPLOAD_UNKNOWN", "BLOB_UPLOAD_INVALID"))
OUT_OF_STEP = 416  # a piece does not begin where the registry is: some of it may have come twice

logger = Logger(__name__)


class SourceFailed(Exception):
    """What the bytes come from has failed, not the registry: no GadgetError, so that nothing here asks again."""


def send(home: Source, scopes: Sequence[str], descriptor: Descriptor, stream: Stream) -> None:
    """Put a blob there. RegistryError: the registry does not take it; else what the stream raises.

    What has been sent of a broken upload is lost, as registries do not agree on how to go on: each attempt is an upload
    of its own.
    """
    upload = Upload(home, scopes, descriptor, stream)
    whole = True
    for attempt in range(1, TRIES + 1):
        location, smallest = upload.begun()
        try:
            said = upload.whole(location) if whole else upload.pieces(location, smallest)
        except SourceFailed as failed:
            raise failed.args[0] from None
        except RegistryError as error:
            if not broke(error) or attempt == TRIES:
                raise
            # some break the connection instead of saying that it is too much at once
            whole = whole and descriptor.size <= PIECE
            logger.debug("%s, sending it again", error)
            time.sleep(pause(attempt))
            continue
        if said.status < 300:
            return
        refused = home.client.refusal(said, f"blob {descriptor.digest}")
        if whole and (said.status in OTHER_WAY or refused.code == "UNSUPPORTED"):
            logger.debug("%s takes no blob in one piece (%d)", home.endpoint.host, said.status)
            whole = False
            continue
        pause_s = retry_after(said.headers.get("Retry-After", ""), pause(attempt))
        anew = said.status in TIRED or refused.code in ANEW or (not whole and said.status == OUT_OF_STEP)
        if not anew or attempt == TRIES or pause_s > LONGEST_PAUSE_S:
            raise refused
        logger.debug("%s, sending it again", refused)
        time.sleep(pause_s)
    raise RegistryError(f"{home.endpoint.host}: it takes blob {descriptor.digest} neither whole nor in pieces")


class Upload:
    """One blob for one registry."""

    def __init__(self, home: Source, scopes: Sequence[str], descriptor: Descriptor, stream: Stream) -> None:
        self._home, self._client, self._scopes = home, home.client, scopes
        self._descriptor, self._stream = descriptor, stream
        self._what = f"blob {descriptor.digest}"

    def begun(self) -> tuple[str, int]:
        """Where an upload goes, and how large its pieces are at least."""
        said = self._client.call("POST", self._home.paths.uploads(), self._what, body=b"", scopes=self._scopes)
        smallest = said.headers.get("OCI-Chunk-Min-Length", "")
        least = int(smallest) if re.fullmatch(r"[0-9]{1,15}", smallest) else 0
        return location(self._home, said.headers), min(least, LARGEST_PIECE)

    def whole(self, there: str) -> Said:
        """Send all of it at once."""
        size = self._descriptor.size
        body = (lambda: Sending(self._stream, size)) if size else b""
        return self._put(there, body, {"Content-Length": str(size)})

    def pieces(self, there: str, smallest: int) -> Said:
        """Send one piece after the other."""
        size, piece, at = self._descriptor.size, max(PIECE, smallest), 0
        body = Sending(self._stream, size)
        while at < size:
            data = body.exactly(min(piece, size - at))
            headers = {**OCTETS, "Content-Range": f"{at}-{at + len(data) - 1}"}
            said = self._client.call(
                "PATCH",
                there,
                self._what,
                headers=headers,
                body=data,
                scopes=self._scopes,
                fine=range(400, 600),
                again=False,
            )
            if said.status >= 300:
                return said
            at += len(data)
            there = location(self._home, said.headers)
        return self._put(there, b"", {})

    def _put(self, there: str, body: bytes | Callable[[], Sending], headers: Mapping[str, str]) -> Said:
        """End the upload, perhaps with all that belongs to it."""
        return self._client.call(
            "PUT",
            f"{there}{'&' if '?' in there else '?'}digest={self._descriptor.digest.replace(':', '%3A')}",
            self._what,
            headers={**OCTETS, **headers},
            body=body,
            scopes=self._scopes,
            fine=range(400, 600),
            again=False,
            read_s=READ_S + self._descriptor.size / TAKEN_IN_S,
        )


def location(home: Source, headers: Mapping[str, str]) -> str:
    """Where the registry wants to have something, as a whole address or a path. RegistryError: it does not say."""
    scheme = home.client.schemes[0]
    own = f"{scheme}://{home.endpoint.address}/"
    whole = joined(own, headers.get("Location", "")) if headers.get("Location") else ""
    there = place(whole)
    if there is None:
        raise RegistryError(f"{home.endpoint.host}: it does not say where the blob is to be sent")
    # by the scheme that works: behind a proxy it may not know its own
    if there in (place(own), place(f"{there.scheme}://{home.endpoint.address}")):
        return "/" + whole.partition("://")[2].partition("/")[2]
    return whole


class Sending:
    """A blob on its way: a file, for requests, whose bytes come from a stream. A copy is as long as it says."""

    def __init__(self, stream: Stream, size: int) -> None:
        self._stream = stream
        self._chunks: Iterator[bytes] = iter(())
        self._size = self._left = size
        self._begun = False
        self._rest = memoryview(b"")

    def __len__(self) -> int:
        return self._size

    def read(self, size: int = -1) -> bytes:
        """Some of the bytes, b"" at the end. SourceFailed: the stream fails, or has fewer or more than it should."""
        if not self._rest:
            self._rest = memoryview(self._next())
        data = self._rest if size < 0 else self._rest[:size]
        self._rest = self._rest[len(data) :]
        return bytes(data)

    def exactly(self, size: int) -> bytes:
        """So many bytes."""
        parts = []
        while size:
            parts.append(self.read(size))
            size -= len(parts[-1])
        return b"".join(parts)

    def _next(self) -> bytes:
        """The next chunk that is not empty, b"" at the end."""
        try:
            if not self._begun:
                self._begun = True
                self._chunks = self._stream(0)
            chunk = self._filled()
            self._left -= len(chunk)
            # the last bytes are not let go before it is known that nothing follows them
            if self._left < 0 or (chunk and not self._left and self._filled()):
                raise ImageError("a blob has more bytes than it says")
            if self._left and not chunk:
                raise ImageError(f"a blob has {self._left} bytes less than it says")
        except (GadgetError, OSError) as error:
            raise SourceFailed(error) from error
        return chunk

    def _filled(self) -> bytes:
        return next((one for one in self._chunks if one), b"")
