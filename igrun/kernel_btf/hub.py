"""BTFHub: an archive of the BTF of kernels that were built without it, and its mirrors.

`<address>/<id>/<version>/<machine>/<release>.btf.tar.xz`. A download that breaks off goes on where it ended, with the
next run too.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import ssl
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import IO, Any, Self
from urllib.parse import quote, urlsplit, urlunsplit

import requests
from requests.adapters import HTTPAdapter

import igrun
from igrun.btf import Btf
from igrun.errors import GadgetError, ImageError
from igrun.kernel_btf import cache, unpack
from igrun.kernel_btf.names import Kernel
from igrun.kernel_btf.policy import Policy

LARGEST = 32 << 20  # bytes of an archive; those of today have less than 2 MiB
LARGEST_INDEX = 32 << 20
CONNECT_S, READ_S, WHOLE_S = 5.0, 15.0, 120.0
TRIES = 3  # of a download that breaks off
CHUNK = 4096  # what is lost at most where a connection breaks off
DIGEST = re.compile(r"([0-9a-fA-F]{64})[ \t]+\*?(\S.*)")


class HubError(GadgetError):
    """An archive has no BTF for this kernel, or does not give it."""


class BrokenOffError(HubError):
    """The connection broke in the middle."""


class NotThereError(HubError):
    """It has none for this kernel."""


class Adapter(HTTPAdapter):
    """Connections that trust the system's authorities too, beside those that come with requests."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **{**kwargs, "ssl_context": ssl.create_default_context()})


class NoAuth(requests.auth.AuthBase):
    """Keeps requests from looking into ~/.netrc."""

    def __call__(self, r: requests.PreparedRequest) -> requests.PreparedRequest:
        return r


class Client:
    """Downloads. Use it in a `with`."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._session = requests.Session()
        if any(one.startswith("https://") for one in policy.hubs):  # reading the authorities takes its time
            self._session.mount("https://", Adapter())
        self._session.max_redirects = 5
        self._session.headers.update({"User-Agent": f"igrun/{igrun.__version__}", "Accept-Encoding": "identity"})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._session.close()

    def fetch(self, hub: str, kernel: Kernel) -> bytes:
        """The BTF of a kernel, which is in the cache then. HubError: there is none, or it does not come."""
        versions = [kernel.version_id]
        if "." in kernel.version_id:  # the rebuilt distributions are there by the first number
            versions.append(kernel.version_id.partition(".")[0])
        for version in versions:
            there = kernel._replace(version_id=version)
            with contextlib.suppress(NotThereError):
                return self._fetch(hub, there, kernel)
        raise NotThereError(f"it has none for {kernel.name}")

    def _fetch(self, hub: str, there: Kernel, kernel: Kernel) -> bytes:
        path = f"{there.name}.btf.tar.xz"
        wanted = self._digest(path)
        folder = self._policy.cache
        try:
            with held(folder / ".partial", f"{hub}/{path}") as (file, notes):
                archive = self._archive(f"{hub}/{quote(path, safe='/')}", file, notes)
                # whatever is wrong with it, it is not worth being kept
                os.ftruncate(file.fileno(), 0)
                self._refuse(archive, wanted, path)
                btf = unpack.only_btf(archive, kernel.release)
                Btf.parse(btf)
            cache.save(folder, kernel, btf)
        except ImageError as error:
            raise HubError(str(error)) from None
        except OSError as error:
            raise HubError(f"cannot write {error.filename or folder}: {error.strerror}") from None
        return btf

    def _digest(self, path: str) -> str:
        """What the archive's digest must be, "" if no index is configured. HubError: the index does not have it."""
        if not self._policy.index:
            return ""
        try:
            with open(self._policy.index, "rb") as file:
                text = file.read(LARGEST_INDEX + 1)
        except OSError as error:
            raise HubError(f"index {self._policy.index}: {error.strerror}") from None
        if len(text) > LARGEST_INDEX:
            raise HubError(f"index {self._policy.index} is larger than {LARGEST_INDEX >> 20} MiB")
        for line in text.decode(errors="replace").splitlines():
            found = DIGEST.fullmatch(line.strip())
            if found and found[2].removeprefix("./") == path:
                return found[1].lower()
        raise HubError(f"index {self._policy.index} does not have {path}")

    def _refuse(self, archive: bytes, wanted: str, path: str) -> None:
        """HubError: the archive is not the one of the index."""
        found = sha256(archive).hexdigest()
        if wanted and found != wanted:
            raise HubError(f"{path} has SHA-256 {found}, and the index says {wanted}")

    # ------------------------------------------------------------------------------------------ the transfer

    def _archive(self, url: str, file: IO[bytes], notes: Path) -> bytes:
        """The whole file at an address. `file` has what came before, and keeps what comes."""
        end = time.monotonic() + WHOLE_S
        for attempt in range(TRIES):
            try:
                self._receive(url, file, notes, end)
                break
            except BrokenOffError:
                if attempt == TRIES - 1:
                    raise
        file.seek(0)
        return file.read()

    def _receive(self, url: str, file: IO[bytes], notes: Path, end: float) -> None:
        """Take what is missing."""
        have = file.seek(0, os.SEEK_END)
        state = noted(notes) if have else ""
        headers = {"Range": f"bytes={have}-", "If-Range": state} if state else {}
        try:
            with self._session.get(
                url, headers=headers, stream=True, timeout=(CONNECT_S, READ_S), auth=NoAuth()
            ) as answer:
                if url.startswith("https://") and not answer.url.startswith("https://"):
                    raise HubError("it leads to an address without TLS")
                if answer.status_code in (404, 410):
                    raise NotThereError("it has none for this kernel")
                if answer.status_code == 416:  # what we have is not the beginning of what is there
                    file.truncate(0)
                    raise BrokenOffError("it cannot go on where it ended")
                if answer.status_code not in (200, 206):
                    raise HubError(f"it answers {answer.status_code} {answer.reason or ''}".strip())
                begin = start_of(answer.headers.get("Content-Range", "")) if answer.status_code == 206 else 0
                if begin != (have if answer.status_code == 206 else 0):
                    file.truncate(0)
                    raise BrokenOffError("it goes on elsewhere than asked for")
                file.truncate(begin)
                file.seek(begin)
                note(notes, answer.headers)
                self._pour(answer, file, begin, end)
        except requests.RequestException as error:
            raise unreachable(error) from None

    def _pour(self, answer: requests.Response, file: IO[bytes], begin: int, end: float) -> None:
        length = answer.headers.get("Content-Length", "")
        whole = begin + int(length) if length.isascii() and length.isdigit() and len(length) < 20 else None
        if whole is not None and whole > LARGEST:
            raise HubError(f"the archive has {whole} bytes, more than {LARGEST >> 20} MiB")
        have = begin
        try:
            for chunk in answer.iter_content(CHUNK):
                have += len(chunk)
                if have > LARGEST:
                    raise HubError(f"the archive is larger than {LARGEST >> 20} MiB")
                file.write(chunk)
                if time.monotonic() > end:
                    raise HubError(f"it takes longer than {WHOLE_S:.0f} s; the next run goes on")
        except requests.RequestException:
            raise BrokenOffError(f"the connection broke off after {have} bytes") from None
        finally:
            file.flush()
        if whole is not None and have != whole:
            raise BrokenOffError(f"the connection broke off after {have} of {whole} bytes")


@contextlib.contextmanager
def held(folder: Path, url: str) -> Iterator[tuple[IO[bytes], Path]]:
    """The file with the beginning of a download, which nobody else writes meanwhile; and that with what is known of it.

    It is gone afterwards if nothing of it is worth being kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / sha256(url.encode()).hexdigest()[:32]
    notes = part.with_suffix(".json")
    fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(fd, "r+b") as file:
        fcntl.flock(fd, fcntl.LOCK_EX)
        try:
            yield file, notes
        finally:
            file.flush()
            if os.fstat(fd).st_size == 0:
                for path in (part, notes):
                    path.unlink(missing_ok=True)


def note(path: Path, headers: Any) -> None:
    """Keep what tells whether the file there is still the same."""
    state = headers.get("ETag") or headers.get("Last-Modified") or ""
    path.write_text(json.dumps({"state": "" if state.startswith("W/") else state}))


def noted(path: Path) -> str:
    """What was kept; "" if nothing was, or it is broken."""
    try:
        state = json.loads(path.read_bytes())["state"]
    except (OSError, ValueError, LookupError, TypeError):
        return ""
    return state if isinstance(state, str) and state.isprintable() and len(state) < 200 else ""


def start_of(text: str) -> int:
    """Where an answer with a part begins: `bytes 100-199/200`; -1: it does not say."""
    found = re.match(r"bytes (\d{1,18})-", text)
    return int(found[1]) if found else -1


def unreachable(error: requests.RequestException) -> HubError:
    """The error for a request without an answer. Never what requests says: that may hold the whole address."""
    if isinstance(error, requests.exceptions.SSLError):
        return HubError("its certificate cannot be verified, or it does not speak TLS")
    if isinstance(error, requests.Timeout):
        return HubError("it does not answer in time")
    if isinstance(error, requests.exceptions.ProxyError):
        return HubError("the proxy does not let it through")
    if isinstance(error, requests.TooManyRedirects):
        return HubError("it leads from address to address")
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return BrokenOffError("the connection broke off")
    if isinstance(error, requests.ConnectionError):
        why = system_error(error)
        return HubError(f"cannot be reached: {why}" if why else "cannot be reached")
    return HubError(f"cannot be asked ({type(error).__name__})")


def system_error(error: BaseException) -> str:
    """What the system said about a connection, "" if nothing."""
    left: list[object] = [error]
    for _ in range(20):
        one = left.pop(0) if left else None
        if isinstance(one, OSError) and one.strerror and one.errno:
            return one.strerror
        if isinstance(one, BaseException):
            left += [*one.args, getattr(one, "reason", None), one.__cause__]
    return ""


def shown(url: str) -> str:
    """An address for messages: without what only its owner may know."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
