"""Requests to one registry, and what a hostile or tired one makes necessary.

This takes the place of oras' provider, of which nothing would be left: its `do_request` follows redirects with the
credentials, retries a body that is used up, never asks for a token again when one expires, and takes certificates of
its own bundle alone; its transfers hold whole blobs in files and verify nothing; and to import it takes up to a second,
for the sake of JSON schemas. Of oras there are the addresses of the API (see `source`).

Each thread has a session: those of requests are not made for several.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import ssl
import threading
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self

import requests
import urllib3
from requests.utils import get_environ_proxies

from igrun.errors import GadgetError, RegistryError
from igrun.logs import Logger
from igrun.oci.access import Access, Endpoint
from igrun.oci.answers import (
    BROKEN,
    DOWN,
    LARGEST_ERROR,
    Failure,
    Said,
    bounded,
    broke,
    cut_off,
    down,
    joined,
    place,
    reason,
    retry_after,
    told,
)
from igrun.oci.auth import LARGEST_TOKEN, Authenticator
from igrun.oci.credentials import Credential, find
from igrun.oci.session import Session, context

CONNECT_S, READ_S = 15.0, 60.0
TRIES = 5
PATIENCE_S = 120.0  # after that nothing is asked again
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 60.0
TIRED = frozenset((429, 500, 502, 503, 504))
MOVED = frozenset((301, 302, 303, 307, 308))
MOST_MOVES = 5
HIDDEN = "***"

Body = bytes | Callable[[], Any] | None
"""A request's body; a function makes a new one for each attempt: an object with `read` and a length."""

logger = Logger(__name__)


class Asked(NamedTuple):
    """One request, but for where it goes and what it is sent with."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: Body
    scopes: tuple[str, ...]
    read_s: float


class Client:
    """Requests to one endpoint. Several threads may use it; close it, or use it in a `with`.

    repository: what is asked for, as credentials may be kept by folder
    tries:      how often the same is asked for at most
    """

    def __init__(
        self,
        endpoint: Endpoint,
        access: Access,
        credential: Credential | None = None,
        *,
        repository: str = "",
        tries: int = TRIES,
    ) -> None:
        self.endpoint = endpoint
        self.schemes = list(endpoint.schemes)
        self._tries = tries
        self._local = threading.local()
        self._sessions: list[Session] = []
        self._lock = threading.Lock()
        self._contexts: tuple[ssl.SSLContext, ssl.SSLContext] | None = None
        known = credential or find(endpoint.host, access, repository)
        self._authenticator = Authenticator(endpoint, known, self._ask, insecure="http" in endpoint.schemes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections."""
        with self._lock:
            for session in self._sessions:
                session.close()
            self._sessions.clear()
            self._local = threading.local()

    def _session(self) -> Session:
        """The session of this thread."""
        found: Session | None = getattr(self._local, "session", None)
        if found is None:
            with self._lock:
                self._contexts = self._contexts or self._certified()
                found = self._local.session = Session(self.endpoint.address, *self._contexts)
                self._sessions.append(found)
        return found

    def _certified(self) -> tuple[ssl.SSLContext, ssl.SSLContext]:
        """The certificates for the registry, and for others that it sends us to."""
        if not self.endpoint.verify:
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
        own = context(self.endpoint)
        return own, context(self.endpoint, known=False) if self.endpoint.certificate else own

    # ------------------------------------------------------------------------------------------ requests

    def ping(self) -> None:
        """Ask whether the registry takes what is known of the user."""
        self.call("GET", "/v2/", "")

    def call(
        self,
        method: str,
        path: str,
        what: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: Body = None,
        scopes: Sequence[str] = (),
        fine: Container[int] = (),
        largest: int = LARGEST_ERROR,
        again: bool = True,
        read_s: float = READ_S,
    ) -> Said:
        """Ask, and read the whole answer. RegistryError: it is no success, unless its status is `fine`.

        path:   of the API, or a whole address that the registry gave
        what:   is asked for, for messages
        again:  whether it may be asked again where the registry is tired or the connection breaks
        read_s: how long the answer may take
        """
        end = time.monotonic() + PATIENCE_S
        for attempt in itertools.count(1):
            try:
                with self.opened(
                    method, path, what, headers=headers, body=body, scopes=scopes, fine=fine, again=again, read_s=read_s
                ) as response:
                    failed = not 200 <= response.status_code < 300
                    most = LARGEST_ERROR if failed else largest
                    data = bounded(response, most, f"{self.endpoint.host}: {what}", cut=failed)
                    return Said(response.status_code, response.headers, data)
            except RegistryError as error:
                # the answer had begun when the connection broke: nobody below has asked again
                if not (again and broke(error)) or attempt >= self._tries or time.monotonic() > end:
                    raise
                time.sleep(pause(attempt))
        raise AssertionError("unreachable")

    @contextlib.contextmanager
    def opened(
        self,
        method: str,
        path: str,
        what: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: Body = None,
        scopes: Sequence[str] = (),
        fine: Container[int] = (),
        again: bool = True,
        read_s: float = READ_S,
    ) -> Iterator[requests.Response]:
        """The answer, its body not read yet (see `call`)."""
        asked = Asked(method, path, dict(headers or {}), body, tuple(scopes), read_s)
        response = self._patiently(asked, again)
        try:
            if not (200 <= response.status_code < 300 or response.status_code in fine):
                raise self.refusal(Said(response.status_code, response.headers, rest(response)), what)
            yield response
        finally:
            response.close()

    def _patiently(self, asked: Asked, again: bool) -> requests.Response:
        """Ask again while the registry is tired or the connection breaks."""
        end = time.monotonic() + PATIENCE_S
        for attempt in itertools.count(1):
            last = not again or attempt >= self._tries
            pause_s = pause(attempt)
            try:
                response = self._authorized(asked)
            except RegistryError as error:
                if not broke(error) or last or time.monotonic() + pause_s > end:
                    raise
            else:
                if response.status_code not in TIRED or last:
                    return response
                pause_s = retry_after(response.headers.get("Retry-After", ""), pause_s)
                if pause_s > LONGEST_PAUSE_S or time.monotonic() + pause_s > end:
                    return response
                logger.debug("%s answered %d, again in %.1f s", self.endpoint.host, response.status_code, pause_s)
                rest(response)
            time.sleep(pause_s)
        raise AssertionError("unreachable")

    def _authorized(self, asked: Asked) -> requests.Response:
        """Ask, and once more with what the registry wants to know."""
        sent = self._authenticator.header(asked.scopes)
        response = self._reached(asked, sent)
        for _ in range(2):  # the second time with a fresh token in the place of one that has expired
            # whoever else we were sent to may not ask who we are
            if response.status_code != 401 or not self._own(response.url):
                break
            try:
                answer = self._authenticator.answer(response.headers.get("WWW-Authenticate", ""), asked.scopes, sent)
            except GadgetError:
                response.close()
                raise
            if not answer or answer == sent:
                break
            rest(response)
            sent = answer
            response = self._reached(asked, sent)
        return response

    def _reached(self, asked: Asked, sent: str) -> requests.Response:
        """Ask by the schemes of the endpoint, the one that works first from then on."""
        if not asked.path.startswith("/"):
            return self._followed(asked, self._checked(asked.path, asked.path), sent)
        schemes = list(self.schemes)
        for scheme in schemes:
            try:
                response = self._followed(asked, f"{scheme}://{self.endpoint.address}{asked.path}", sent)
            except RegistryError as error:
                if scheme == schemes[-1] or not (broke(error) or down(error)):
                    raise
                continue
            self.schemes = [scheme]
            return response
        raise AssertionError("unreachable")

    def _followed(self, asked: Asked, url: str, sent: str) -> requests.Response:
        """Ask, and go where it is sent: without the credentials from the first other host on."""
        known = bool(sent)
        for _ in range(MOST_MOVES + 1):
            known = known and self._own(url)
            headers = {**asked.headers, "Authorization": sent} if known else asked.headers
            response = self._sent(asked.method, url, headers, asked.body, asked.read_s)
            if response.status_code not in MOVED or "Location" not in response.headers:
                return response
            rest(response)
            if asked.method not in ("GET", "HEAD") and response.status_code not in (307, 308):
                raise RegistryError(f"{self.endpoint.host} sends an upload elsewhere in a way that loses it")
            url = self._checked(response.headers["Location"], url)
        raise RegistryError(f"{self.endpoint.host} sends us from place to place ({MOST_MOVES} times)")

    def _checked(self, url: str, base: str) -> str:
        """An address that the registry gave, as a whole one. RegistryError: it is none, or has no TLS."""
        host = self.endpoint.host
        whole = joined(base, url)
        there = place(whole)
        if there is None:
            raise RegistryError(f"{host} sends us to a place that is no web address")
        if there.scheme == "http" and "http" not in self.endpoint.schemes:
            raise RegistryError(
                f"{host} sends us to {there.host}, which has no TLS",
                hint=f"--insecure-registries {host} goes there all the same",
            )
        return whole

    def _own(self, url: str) -> bool:
        """Whether an address is the registry's own."""
        home = (place(f"{scheme}://{self.endpoint.address}") for scheme in self.schemes)
        return place(url) in [one for one in home if one]

    def _sent(
        self, method: str, url: str, headers: Mapping[str, str], body: Body, read_s: float = READ_S
    ) -> requests.Response:
        """One request. RegistryError with code BROKEN: it did not get there, or no answer came."""
        try:
            return self._session().request(
                method,
                url,
                data=body() if callable(body) else body,
                headers=dict(headers),
                stream=True,
                verify=self.endpoint.verify,
                timeout=(CONNECT_S, read_s),
                allow_redirects=False,
                proxies=get_environ_proxies(url),
            )
        except GadgetError:
            raise
        except (*Failure, ValueError) as error:
            raise self._failure(error, url) from None

    def _ask(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None) -> Said:
        """Ask a token service: a redirect is no answer, as it would carry a secret away."""
        end = time.monotonic() + PATIENCE_S
        for attempt in itertools.count(1):
            pause_s, last = pause(attempt), attempt >= self._tries
            try:
                with contextlib.closing(self._sent(method, url, headers, body)) as response:
                    data = bounded(response, LARGEST_TOKEN, f"the token service of {self.endpoint.host}")
                answer = Said(response.status_code, response.headers, data)
            except RegistryError as error:
                if not broke(error) or last or time.monotonic() + pause_s > end:
                    raise
            else:
                pause_s = retry_after(answer.headers.get("Retry-After", ""), pause_s)
                if answer.status not in TIRED or last or pause_s > LONGEST_PAUSE_S or time.monotonic() + pause_s > end:
                    return answer
            time.sleep(pause_s)
        raise AssertionError("unreachable")

    # ------------------------------------------------------------------------------------------ errors

    def _failure(self, error: BaseException, url: str) -> RegistryError:
        """The error for a request that got no answer. Never what requests says: that may hold the whole address."""
        host, hint = self.endpoint.host, ""
        there, home = place(url), place(f"https://{self.endpoint.address}")
        where = f"registry {host}"
        if there and home and there.host != home.host:
            where = f"{there.host}, where registry {host} sends us" if not self._proxied(error) else where
        why = reason(error)
        code = BROKEN if cut_off(error) else DOWN
        if "certificate required" in why:
            code = DOWN
            hint = "--cert-file and --key-file, or a folder of /etc/docker/certs.d, show it who we are"
        elif "certificate" in why or (isinstance(error, requests.exceptions.SSLError) and not cut_off(error)):
            code = DOWN
            hint = f"--ca-file names the authority; --insecure-registries {host} does without"
        elif self._proxied(error):
            code = DOWN
            hint = "HTTPS_PROXY, HTTP_PROXY and NO_PROXY say which proxy is used"
            where = f"{where} through the proxy"
        elif isinstance(error, requests.exceptions.ConnectionError):
            hint = "is it running, and is that its address?"
        return RegistryError(f"cannot reach {where}: {why}", code=code, hint=hint)

    def _proxied(self, error: BaseException) -> bool:
        wrong = (requests.exceptions.ProxyError, requests.exceptions.InvalidProxyURL, requests.exceptions.InvalidSchema)
        return isinstance(error, wrong)

    def refusal(self, said: Said, what: str) -> RegistryError:
        """The error for an answer that is no success."""
        host, status = self.endpoint.host, said.status
        code, detail = (self._authenticator.hidden(text, HIDDEN)[:200] for text in told(said.body))
        about = f"{host}: {what}" if what else host
        words = {
            401: "unauthorized",
            403: "forbidden",
            404: "not found",
            413: "too large for the registry",
            429: "too many requests",
        }
        why = words.get(status, "the registry failed" if status >= 500 else "refused")
        hints = {401: f"`ig login {host}`", 403: f"this user may not; `ig login {host}` as another one"}
        later_s = retry_after(said.headers.get("Retry-After", ""), 0.0) if status in TIRED else 0.0
        if later_s:
            hints[status] = f"it wants to be asked again in {later_s:.0f} s"
        told_ = f" ({detail})" if detail else ""
        return RegistryError(
            f"{about}: {why}{told_} [{status}]", status=status, code=code, detail=detail, hint=hints.get(status, "")
        )


def rest(response: requests.Response) -> bytes:
    """What else comes, as far as it is worth reading: then the connection can be used again."""
    with contextlib.closing(response), contextlib.suppress(RegistryError):
        return bounded(response, LARGEST_ERROR, "", cut=True)
    return b""


def pause(attempt: int) -> float:
    """Seconds to wait after that many attempts, so that not all come back at once."""
    longest: float = min(FIRST_PAUSE_S * 4 ** (attempt - 1), LONGEST_PAUSE_S)
    return longest * random.uniform(0.5, 1.0)
