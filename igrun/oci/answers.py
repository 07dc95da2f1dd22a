"""What comes back from a registry: bodies of bounded size and time, errors in few words, checked addresses."""

from __future__ import annotations

import contextlib
import email.utils
import json
import re
import ssl
import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple
from urllib.parse import urljoin

import requests
import urllib3

from igrun.errors import GadgetError, RegistryError

BROKEN, DOWN = "BROKEN", "DOWN"
"""The codes of a RegistryError without a status, for a request that got no answer: it may be asked again; nobody is
there to answer."""

CHUNK = 1 << 20
SMALL_CHUNK = 64 << 10
LONGEST_ANSWER_S = 120.0  # for a body that is held in memory
LARGEST_ERROR = 64 << 10
PORTS = {"https": 443, "http": 80}
NO_ADDRESS = re.compile(r"[^\x21-\x7e]|[\\@]")  # nothing of that is in the addresses that registries give

CUT = ("SSLV3_ALERT_UNEXPECTED_MESSAGE", "SSLV3_ALERT_BAD_RECORD_MAC", "DECRYPTION_FAILED_OR_BAD_RECORD_MAC")

Failure = (requests.RequestException, urllib3.exceptions.HTTPError, OSError)


class Said(NamedTuple):
    """An answer whose body was read."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Place(NamedTuple):
    """Where an address leads, as the library that makes the connections reads it."""

    scheme: str
    host: str
    port: int


def place(url: str) -> Place | None:
    """Where an address leads; None: it is none of the web."""
    if NO_ADDRESS.search(url):
        return None
    with contextlib.suppress(urllib3.exceptions.HTTPError, ValueError):
        found = urllib3.util.parse_url(url)
        if found.scheme in PORTS and found.host:
            return Place(found.scheme, found.host.lower(), found.port or PORTS[found.scheme])
    return None


def joined(base: str, url: str) -> str:
    """An address that may be relative to another one; "" if it is none."""
    try:
        return "" if NO_ADDRESS.search(url) else urljoin(base, url)
    except ValueError:
        return ""


# ---------------------------------------------------------------------------------------------- bodies


def bounded(response: requests.Response, largest: int, what: str, *, cut: bool = False) -> bytes:
    """The body, of at most so many bytes. RegistryError: it is larger (cut: what fits), or the connection broke."""
    parts: list[bytes] = []
    size = 0
    end = time.monotonic() + LONGEST_ANSWER_S
    while True:
        try:
            chunk = response.raw.read1(SMALL_CHUNK, decode_content=True)
        except Failure as error:
            raise RegistryError(f"{what}: {reason(error)}", code=BROKEN) from None
        if not chunk:
            return b"".join(parts)
        parts.append(chunk)
        size += len(chunk)
        if size > largest:
            if cut:
                return b"".join(parts)[:largest]
            raise RegistryError(f"{what}: the answer is larger than {largest} bytes")
        if time.monotonic() > end:
            raise RegistryError(f"{what}: the answer comes too slowly")


def raw(response: requests.Response, where: str) -> Iterator[bytes]:
    """The bytes of an answer as they come. RegistryError with code BROKEN: the connection broke."""
    while True:
        try:
            chunk = response.raw.read1(CHUNK, decode_content=False)
        except Failure as error:
            raise RegistryError(f"{where}: {reason(error)}", code=BROKEN) from None
        if not chunk:
            return
        yield chunk


# ---------------------------------------------------------------------------------------------- errors


def broke(error: GadgetError) -> bool:
    """Whether it tells of a connection that broke, so that the same may be asked again."""
    return isinstance(error, RegistryError) and not error.status and error.code == BROKEN


def down(error: GadgetError) -> bool:
    """Whether it tells that nobody is there to answer."""
    return isinstance(error, RegistryError) and not error.status and error.code == DOWN


def causes(error: BaseException) -> list[BaseException]:
    """An error and what is behind it, the innermost last."""
    found = [error]
    while len(found) < 10:
        inner = getattr(error, "reason", None)
        if not isinstance(inner, BaseException):
            inner = next((one for one in error.args if isinstance(one, BaseException)), None)
        if inner is None:
            inner = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if inner is None or inner in found:
            break
        found.append(inner)
        error = inner
    return found


def cut_off(error: BaseException) -> bool:
    """Whether a connection was made, and then broke."""
    never = (
        urllib3.exceptions.NewConnectionError,
        urllib3.exceptions.ConnectTimeoutError,
        urllib3.exceptions.ProxyError,
        ValueError,  # an address or a header that cannot be
    )
    found = causes(error)
    last = found[-1]
    if isinstance(last, ssl.SSLError):
        return isinstance(last, ssl.SSLEOFError | ssl.SSLZeroReturnError) or last.reason in CUT
    return not any(isinstance(one, never) for one in found)


WORDS = {
    "RemoteDisconnected": "it closed the connection",
    "IncompleteRead": "the connection broke",
    "ProtocolError": "the connection broke",
    "NameResolutionError": "its name is not known",
    "LocationParseError": "that is no address",
    "InvalidURL": "that is no address",
    "InvalidHeader": "a header cannot be sent",
    "InvalidSchema": "that proxy needs more packages",
    "InvalidProxyURL": "the address of the proxy is none",
    "BadStatusLine": "it does not speak HTTP",
    "LineTooLong": "it does not speak HTTP",
    "DecodeError": "the answer is packed in a wrong way",
}


def reason(error: BaseException) -> str:
    """The innermost reason of an error in few words, without addresses."""
    found = causes(error)
    inner = found[-1]
    if isinstance(inner, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {inner.verify_message}"
    if isinstance(inner, ssl.SSLError):
        return f"TLS: {(inner.reason or 'failed').replace('_', ' ').lower()}"
    if isinstance(inner, TimeoutError | urllib3.exceptions.TimeoutError | requests.Timeout):
        return "it does not answer in time"
    for one in reversed(found):
        if words := WORDS.get(type(one).__name__):
            return words
        if isinstance(one, OSError) and one.errno and one.strerror:
            return one.strerror
    return f"the connection failed ({type(inner).__name__})"


def told(body: bytes) -> tuple[str, str]:
    """Code and message of the first error in an answer, as the distribution specification has it."""
    try:
        first = json.loads(body)["errors"][0]
        return clean(first.get("code")), clean(first.get("message"))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return "", ""


def clean(value: object) -> str:
    """A text of somebody else, as one line without control characters."""
    text = value[:4000] if isinstance(value, str) else ""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def retry_after(text: str, otherwise_s: float) -> float:
    """The seconds that a Retry-After header asks for, as a number or a date."""
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text.strip()):
        return float(text)
    try:
        seconds = email.utils.parsedate_to_datetime(text[:100]).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return otherwise_s
    return seconds if seconds > 0 else otherwise_s
