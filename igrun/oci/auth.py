"""What a registry asks for before it answers: HTTP's Basic scheme, and bearer tokens.

oras has a back end for each, chosen before the registry is asked, without identity tokens, scopes and expiry, and takes
the realm of a Basic challenge for the address of a token service; so this stands in their place.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from urllib.parse import urlencode

from igrun.dataclass import dataclass, field
from igrun.errors import RegistryError
from igrun.oci.access import Endpoint
from igrun.oci.answers import Said, joined, place
from igrun.oci.credentials import Credential

LARGEST_TOKEN = 1 << 20
CLIENT = "igrun"
LIFE_S = 60.0  # of a token that does not say how long it lives (docs.docker.com, token authentication)
CHALLENGE = re.compile(
    r'([A-Za-z][\w-]*)\s+((?:[\w-]+\s*=\s*(?:"(?:[^"\\]|\\.)*"|[^\s,"]+)\s*,?\s*)+)|([A-Za-z][\w-]*)'
)
PARAMETER = re.compile(r'([\w-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')


Ask = Callable[[str, str, Mapping[str, str], bytes | None], Said]
"""method, URL, headers, body -> answer"""


def challenges(header: str) -> list[tuple[str, dict[str, str]]]:
    """The schemes of a WWW-Authenticate header, in lower case, each with its parameters."""
    found = []
    for match in CHALLENGE.finditer(header[:8192]):
        scheme = (match[1] or match[3]).lower()
        parameters = {
            one[1].lower(): re.sub(r"\\(.)", r"\1", one[2]) if one[2] is not None else one[3]
            for one in PARAMETER.finditer(match[2] or "")
        }
        found.append((scheme, parameters))
    return found


@dataclass
class Authenticator:
    """Answers the challenges of one registry. Used by several threads.

    insecure: the registry may be reached in a way that keeps no secret, so its token service may be, too
    """

    endpoint: Endpoint
    credential: Credential | None = field(repr=False)
    ask: Ask
    insecure: bool = False
    _tokens: dict[str, tuple[str, float]] = field(default_factory=dict, repr=False)
    _basic: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _fetching: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def header(self, scopes: Iterable[str]) -> str:
        """What to send at once, "" if nothing is known to be wanted."""
        if self.credential and self.credential.token:
            return f"Bearer {self.credential.token}"
        if token := self._held(scopes):
            return f"Bearer {token}"
        return f"Basic {self.credential.basic}" if self._basic and self.credential else ""

    def _held(self, scopes: Iterable[str]) -> str:
        """The token for these scopes that was got before, "" if there is none or it has expired."""
        with self._lock:
            token, until = self._tokens.get(" ".join(scopes), ("", 0.0))
        return token if time.monotonic() < until else ""

    def hidden(self, text: str, instead: str) -> str:
        """A text of the registry without our secrets, should it repeat them."""
        known = self.credential or Credential()
        with self._lock:
            tokens = [token for token, _ in self._tokens.values()]
        for secret in (known.password, known.basic, known.identity, known.token, *tokens):
            text = text.replace(secret, instead) if secret else text
        return text

    def answer(self, header: str, scopes: Iterable[str], sent: str) -> str:
        """What to send after a 401; "" if nothing else can be.

        header: its WWW-Authenticate
        sent:   the Authorization that was refused
        """
        wanted = list(scopes)
        for scheme, parameters in challenges(header):
            if scheme == "bearer" and parameters.get("realm"):
                with self._fetching:
                    fresh = self._held(wanted)  # another thread may have got one in between
                    if fresh and f"Bearer {fresh}" != sent:
                        return f"Bearer {fresh}"
                    return f"Bearer {self._token(parameters, wanted)}"
            if scheme == "basic" and self.credential and self.credential.basic:
                self._basic = True
                answer = f"Basic {self.credential.basic}"
                return "" if answer == sent else answer
        return ""

    def _token(self, parameters: Mapping[str, str], scopes: list[str]) -> str:
        realm = joined("", parameters["realm"].partition("#")[0])
        where = place(realm)
        if where is None:
            raise RegistryError(f"{self.endpoint.host}: its token service has no proper address")
        if where.scheme == "http" and not self.insecure:
            raise RegistryError(
                f"{self.endpoint.host}: its token service {where.host} has no TLS",
                hint=f"--insecure-registries {self.endpoint.host} asks it all the same",
            )
        asked = list(dict.fromkeys([*scopes, *filter(None, [parameters.get("scope")])]))
        query = [("service", parameters["service"])] if parameters.get("service") else []
        headers = {"Accept": "application/json"}
        known = self.credential or Credential()
        if known.identity:
            form = [("grant_type", "refresh_token"), ("refresh_token", known.identity), ("client_id", CLIENT)]
            headers["Content-Type"] = "application/x-www-form-urlencoded"
            body = encoded([*form, *query, ("scope", " ".join(asked))]).encode()
            answer = self.ask("POST", realm, headers, body)
        else:
            if known.basic:
                headers["Authorization"] = f"Basic {known.basic}"
                query.append(("account", known.username))
            query += [("scope", one) for one in asked]
            url = f"{realm}{'&' if '?' in realm else '?'}{encoded(query)}" if query else realm
            answer = self.ask("GET", url, headers, None)
        if answer.status != 200:
            hint = f"`ig login {self.endpoint.host}`" if answer.status in (400, 401, 403) else ""
            raise RegistryError(
                f"{self.endpoint.host}: its token service {where.host} answered {answer.status}",
                status=401 if answer.status in (400, 401, 403) else answer.status,
                hint=hint,
            )
        token, life_s = parsed(answer.body)
        if not token:
            raise RegistryError(f"{self.endpoint.host}: its token service {where.host} gave no token")
        with self._lock:
            # a little less, so that it does not expire on its way
            self._tokens[" ".join(scopes)] = (token, time.monotonic() + life_s * 0.9)
        return token


def encoded(query: list[tuple[str, str]]) -> str:
    """A query; a name may have bytes that are no UTF-8."""
    return urlencode(query, errors="surrogateescape")


def parsed(body: bytes) -> tuple[str, float]:
    """The token and how many seconds it lives; ("", 0) if there is none."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return "", 0.0
    if not isinstance(value, dict):
        return "", 0.0
    token = value.get("token") or value.get("access_token")
    life_s = value.get("expires_in")
    if not isinstance(token, str) or not re.fullmatch(r"[\x21-\x7e]+", token):
        return "", 0.0
    if not isinstance(life_s, int | float) or isinstance(life_s, bool) or not 0 < life_s < 1e9:
        return token, LIFE_S
    return token, float(life_s)
