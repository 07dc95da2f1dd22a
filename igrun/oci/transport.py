"""Requests to one registry: oras' provider with what a hostile or tired registry makes necessary.

Of oras this keeps the session without cookies, the addresses of the API and how an upload's location is read. Its
`do_request` is replaced: it follows redirects with the credentials, retries a body that is used up, never asks for a
token again when one expires, and takes certificates of its own bundle alone. So are its transfers, which hold whole
blobs in files and verify nothing (see `registry`).

Each thread has a session: those of requests are not made for several.
"""

from __future__ import annotations

import contextlib
import email.utils
import logging
import random
import ssl
import threading
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import urljoin, urlsplit

import oras.auth.base
import oras.provider
import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.utils import get_environ_proxies

from igrun.errors import GadgetError, ParamError, RegistryError
from igrun.oci.access import Access, Endpoint
from igrun.oci.auth import LARGEST_TOKEN, Authenticator
from igrun.oci.credentials import Credential, find

CONNECT_S, READ_S = 15.0, 60.0
TRIES = 5
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 60.0
TIRED = frozenset((429, 500, 502, 503, 504))
MOVED = frozenset((301, 302, 303, 307, 308))
MOST_MOVES = 5
LARGEST_ERROR = 64 << 10
BLOCK = 1 << 20  # bytes that are sent at once

Body = bytes | Callable[[], Any] | None
"""A request's body; a function makes a new one for each attempt: an object with `read` and a length."""

logger = logging.getLogger(__name__)


class Said(NamedTuple):
    """An answer whose body was read."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Adapter(HTTPAdapter):
    """Connections with a context of ours: requests would put its own bundle of authorities in the system's place."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        super().__init__(pool_connections=4, pool_maxsize=4, max_retries=0)

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **more: Any) -> None:
        super().init_poolmanager(connections, maxsize, block, ssl_context=self._context, blocksize=BLOCK, **more)

    def proxy_manager_for(self, proxy: str, **more: Any) -> Any:
        return super().proxy_manager_for(proxy, ssl_context=self._context, blocksize=BLOCK, **more)

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        conn.cert_reqs = "CERT_REQUIRED" if verify else "CERT_NONE"


class NoAuth(requests.auth.AuthBase):
    """Keeps requests from looking into ~/.netrc."""

    def __call__(self, r: requests.PreparedRequest) -> requests.PreparedRequest:
        return r


class Client(oras.provider.Registry):
    """Requests to one endpoint. Several threads may use it; close it, or use it in a `with`."""

    def __init__(self, endpoint: Endpoint, access: Access, credential: Credential | None = None) -> None:
        self.endpoint = endpoint
        self._local = threading.local()
        self._sessions: list[requests.Session] = []
        self._lock = threading.Lock()
        self._context: ssl.SSLContext | None = None
        super().__init__(endpoint.address, insecure=False, tls_verify=endpoint.verify)
        self.schemes = list(endpoint.schemes)
        self.auth = oras.auth.base.AuthBackend()  # knows nothing and asks for nothing
        known = credential or find(endpoint.host, access)
        insecure = "http" in endpoint.schemes or not endpoint.verify
        self._authenticator = Authenticator(endpoint, known, self._ask, insecure)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections."""
        with self._lock:
            for session in self._sessions:
                session.close()
            self._sessions.clear()

    @property
    def session(self) -> requests.Session:
        """The session of this thread."""
        found = getattr(self._local, "session", None)
        if found is None:
            found = requests.Session()
            found.trust_env = False  # proxies are asked for below; nothing else of it is wanted
            found.auth = NoAuth()
            found.headers = requests.structures.CaseInsensitiveDict(
                {"User-Agent": "igrun", "Accept-Encoding": "identity"}
            )
            with self._lock:
                if self._context is None:
                    self._context = context(self.endpoint)
                self._sessions.append(found)
            found.mount("https://", Adapter(self._context))
            found.mount("http://", Adapter(self._context))
            self._local.session = found
        return found

    @session.setter
    def session(self, session: requests.Session) -> None:
        self._local.first = session  # what oras makes is not used

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
    ) -> Said:
        """Ask, and read the whole answer. RegistryError: it is no success, unless its status is `fine`.

        what: is asked for, for messages
        """
        with self.opened(method, path, what, headers=headers, body=body, scopes=scopes, fine=fine) as response:
            data = b"" if method == "HEAD" else bounded(response, largest, f"{self.endpoint.host}: {what}")
            return Said(response.status_code, response.headers, data)

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
    ) -> Iterator[requests.Response]:
        """The answer, its body not read yet (see `call`). path: of the API, or a whole URL that the registry gave."""
        response = self._patiently(method, path, dict(headers or {}), body, scopes)
        try:
            if not (200 <= response.status_code < 300 or response.status_code in fine):
                raise self.refusal(response, what)
            yield response
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            if isinstance(error, GadgetError):
                raise
            raise self.broken(error) from None
        finally:
            response.close()

    def do_request(
        self,
        url: str,
        method: str = "GET",
        data: Any = None,
        headers: Mapping[str, str] | None = None,
        json: Any = None,
        stream: bool = False,
    ) -> requests.Response:
        """What the methods of oras call."""
        return self._patiently(method, url, dict(headers or {}), data, ())

    def _patiently(
        self, method: str, path: str, headers: dict[str, str], body: Body, scopes: Sequence[str]
    ) -> requests.Response:
        """Ask again while the registry is tired or away."""
        for attempt in range(1, TRIES + 1):
            try:
                response = self._authorized(method, path, headers, body, scopes)
            except RegistryError as error:
                if error.status or error.code != BROKEN or attempt == TRIES:
                    raise
                pause_s = pause(attempt)
            else:
                if response.status_code not in TIRED or attempt == TRIES:
                    return response
                pause_s = retry_after(response.headers.get("Retry-After", ""), pause(attempt))
                logger.debug("%s answered %d, again in %.1f s", self.endpoint.host, response.status_code, pause_s)
                response.close()
            time.sleep(pause_s)
        raise AssertionError("unreachable")

    def _authorized(
        self, method: str, path: str, headers: dict[str, str], body: Body, scopes: Sequence[str]
    ) -> requests.Response:
        """Ask, and once more with what the registry wants to know."""
        sent = self._authenticator.header(scopes)
        response = self._reached(method, path, headers, body, sent)
        for _ in range(2):  # the second time with a fresh token in the place of one that has expired
            if response.status_code != 401:
                break
            answer = self._authenticator.answer(response.headers.get("WWW-Authenticate", ""), scopes, sent)
            if not answer or answer == sent:
                break
            response.close()
            sent = answer
            response = self._reached(method, path, headers, body, sent)
        return response

    def _reached(self, method: str, path: str, headers: dict[str, str], body: Body, sent: str) -> requests.Response:
        """Ask by the schemes of the endpoint, the one that works first from then on."""
        if not path.startswith("/"):
            return self._followed(method, path, headers, body, sent)
        schemes = self.schemes
        for scheme in schemes:
            try:
                url = f"{scheme}://{self.endpoint.address}{path}"
                response = self._followed(method, url, headers, body, sent)
            except RegistryError as error:
                if scheme == schemes[-1] or error.code not in (DOWN, BROKEN):
                    raise
                continue
            self.schemes = [scheme]
            return response
        raise AssertionError("unreachable")

    def _followed(self, method: str, url: str, headers: dict[str, str], body: Body, sent: str) -> requests.Response:
        """Ask, and go where it is sent, without the credentials if that is another host."""
        home = urlsplit(url)
        for _ in range(MOST_MOVES + 1):
            here = urlsplit(url)
            own = (here.scheme, here.netloc) == (home.scheme, home.netloc) or here.netloc == self.endpoint.address
            with_auth = {**headers, "Authorization": sent} if sent and own and self._safe(here.scheme) else headers
            response = self._sent(method, url, with_auth, body)
            if response.status_code not in MOVED or "Location" not in response.headers:
                return response
            response.close()
            url = urljoin(url, response.headers["Location"])
            there = urlsplit(url)
            if there.scheme not in ("http", "https") or not there.hostname:
                raise RegistryError(f"{self.endpoint.host} sends us to a place that is no web address")
            if there.scheme == "http" and not self._safe("http"):
                raise RegistryError(
                    f"{self.endpoint.host} sends us to {there.hostname}, which has no TLS",
                    hint=f"--insecure-registries {self.endpoint.host} goes there all the same",
                )
            if method not in ("GET", "HEAD") and response.status_code not in (307, 308):
                raise RegistryError(f"{self.endpoint.host} sends an upload elsewhere in a way that loses it")
        raise RegistryError(f"{self.endpoint.host} sends us from place to place ({MOST_MOVES} times)")

    def _safe(self, scheme: str) -> bool:
        """Whether something may be sent by that scheme."""
        return scheme == "https" or "http" in self.endpoint.schemes

    def _sent(self, method: str, url: str, headers: Mapping[str, str], body: Body) -> requests.Response:
        """One request. RegistryError with code BROKEN: it did not get there, or no answer came."""
        try:
            return self.session.request(
                method,
                url,
                data=body() if callable(body) else body,
                headers=dict(headers),
                stream=True,
                verify=self.endpoint.verify,
                timeout=(CONNECT_S, READ_S),
                allow_redirects=False,
                proxies=get_environ_proxies(url),
            )
        except GadgetError:
            raise
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise self.broken(error) from None

    def _ask(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None) -> Any:
        """Ask a token service: a redirect is no answer, as it would carry a secret away."""
        answer = Said(0, {}, b"")
        for attempt in range(1, TRIES + 1):
            with contextlib.closing(self._sent(method, url, headers, body)) as response:
                data = bounded(response, LARGEST_TOKEN, f"the token service of {self.endpoint.host}")
                answer = Said(response.status_code, response.headers, data)
            if answer.status not in TIRED or attempt == TRIES:
                break
            time.sleep(retry_after(answer.headers.get("Retry-After", ""), pause(attempt)))
        return answer

    # ------------------------------------------------------------------------------------------ errors

    def broken(self, error: BaseException) -> RegistryError:
        """The error for a request that got no answer. Never what requests says: that may hold the whole address."""
        host = self.endpoint.host
        why, hint = reason(error), ""
        code = DOWN if isinstance(error, requests.exceptions.ConnectionError) and not cut_off(error) else BROKEN
        if isinstance(error, requests.exceptions.SSLError) or "certificate" in why.lower():
            code = DOWN
            hint = f"--ca-file names the authority; --insecure-registries {host} does without"
        elif isinstance(error, requests.exceptions.ProxyError):
            hint = "HTTPS_PROXY, HTTP_PROXY and NO_PROXY say which proxy is used"
        elif isinstance(error, requests.exceptions.ConnectionError):
            hint = "is it running, and is that its address?"
        return RegistryError(f"cannot reach registry {host}: {why}", code=code, hint=hint)

    def refusal(self, response: requests.Response, what: str) -> RegistryError:
        """The error for an answer that is no success."""
        host, status = self.endpoint.host, response.status_code
        code = detail = ""
        with contextlib.suppress(RegistryError):
            code, detail = told(bounded(response, LARGEST_ERROR, host, cut=True))
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
        said = f" ({detail})" if detail else ""
        return RegistryError(
            f"{about}: {why}{said} [{status}]", status=status, code=code, detail=detail, hint=hints.get(status, "")
        )


BROKEN, DOWN = "BROKEN", "DOWN"
"""The codes of a RegistryError for a request that got no answer: it may be asked again; nobody is there to answer."""


def context(endpoint: Endpoint) -> ssl.SSLContext:
    """What certificates are taken and shown. ParamError: a file holds none."""
    made = ssl.create_default_context()
    if not any(made.cert_store_stats().values()):
        import certifi

        made.load_verify_locations(certifi.where())
    for path in endpoint.authorities:
        try:
            made.load_verify_locations(path)
        except OSError as error:  # ssl.SSLError is one
            raise ParamError("ca-file", path, f"{path} holds no certificate: {reason(error)}") from None
    if endpoint.certificate:
        try:
            made.load_cert_chain(endpoint.certificate, endpoint.key or None)
        except OSError as error:
            raise ParamError(
                "cert-file", endpoint.certificate, f"{endpoint.certificate} and its key cannot be used: {reason(error)}"
            ) from None
    if not endpoint.verify:
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE
    return made


def cut_off(error: BaseException) -> bool:
    """Whether a connection was made, and then broke."""
    text = f"{error!r}"
    return not any(name in text for name in ("NewConnectionError", "NameResolutionError", "SSLError", "ConnectTimeout"))


def reason(error: BaseException) -> str:
    """The innermost reason of an error in few words, without addresses."""
    seen = 0
    while seen < 10:
        inner = getattr(error, "reason", None)
        if not isinstance(inner, BaseException):
            inner = next((one for one in error.args if isinstance(one, BaseException)), None)
        if inner is None:
            inner = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if inner is None:
            break
        error, seen = inner, seen + 1
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {(error.reason or 'failed').replace('_', ' ').lower()}"
    if isinstance(error, TimeoutError | urllib3.exceptions.TimeoutError | requests.Timeout):
        return "it does not answer in time"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    name = type(error).__name__
    words = {
        "RemoteDisconnected": "it closed the connection",
        "IncompleteRead": "the connection broke",
        "ProtocolError": "the connection broke",
        "NameResolutionError": "its name is not known",
        "LocationParseError": "that is no address",
        "BadStatusLine": "it does not speak HTTP",
    }
    return words.get(name, f"the connection failed ({name})")


def told(body: bytes) -> tuple[str, str]:
    """Code and message of the first error in an answer, as the distribution specification has it."""
    import json

    try:
        first = json.loads(body)["errors"][0]
        code, message = first.get("code"), first.get("message")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return "", ""

    def clean(value: object) -> str:
        return " ".join("".join(c if c.isprintable() else " " for c in str(value or "")).split())[:200]

    return clean(code), clean(message)


def bounded(response: requests.Response, largest: int, what: str, *, cut: bool = False) -> bytes:
    """The body, of at most so many bytes. RegistryError: it is larger (cut: what fits), or the connection broke."""
    parts, size = [], 0
    try:
        for chunk in response.iter_content(64 << 10):
            parts.append(chunk)
            size += len(chunk)
            if size > largest:
                if cut:
                    break
                raise RegistryError(f"{what}: the answer is larger than {largest} bytes")
    except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
        raise RegistryError(f"{what}: {reason(error)}", code=BROKEN) from None
    return b"".join(parts)[:largest]


def pause(attempt: int) -> float:
    """Seconds to wait after that many attempts, so that not all come back at once."""
    longest: float = min(FIRST_PAUSE_S * 4 ** (attempt - 1), LONGEST_PAUSE_S)
    return longest * random.uniform(0.5, 1.0)


def retry_after(text: str, otherwise_s: float) -> float:
    """The seconds that a Retry-After header asks for, as a number or a date; bounded."""
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return otherwise_s
    if not seconds >= 0:  # NaN too
        return otherwise_s
    return min(seconds, LONGEST_PAUSE_S)
