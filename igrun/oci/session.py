"""Connections to a registry: whose certificates it may have, which one we show it, and no more than was asked for."""

from __future__ import annotations

import ssl
from http.cookiejar import DefaultCookiePolicy
from logging import LogRecord
from typing import Any

import requests
from requests.adapters import HTTPAdapter

from igrun import logs
from igrun.errors import ParamError
from igrun.oci.access import Endpoint
from igrun.oci.answers import reason

BLOCK = 128 << 10  # bytes that are sent at once: each block has the time that a connection may take to be made


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


def context(endpoint: Endpoint, *, known: bool = True) -> ssl.SSLContext:
    """What certificates are taken and shown. ParamError: a file holds none.

    known: for the registry itself; others that it sends us to do not see who we are
    """
    if endpoint.verify:
        made = ssl.create_default_context()
        if not any(made.cert_store_stats().values()):
            import certifi

            made.load_verify_locations(certifi.where())
    else:
        # to read the system's authorities for nothing takes longer than to ask the registry
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE
    for path in endpoint.authorities:
        try:
            made.load_verify_locations(path)
        except OSError as error:  # ssl.SSLError is one
            raise ParamError("ca-file", path, f"{path} holds no certificate: {reason(error)}") from None
    if endpoint.certificate and known:
        try:
            # the password: without one OpenSSL would ask for it on the terminal
            made.load_cert_chain(endpoint.certificate, endpoint.key or None, password=lambda: "")
        except OSError as error:
            raise ParamError(
                "cert-file", endpoint.certificate, f"{endpoint.certificate} and its key cannot be used: {reason(error)}"
            ) from None
    return made


class NoAuth(requests.auth.AuthBase):
    """Keeps requests from looking into ~/.netrc."""

    def __call__(self, r: requests.PreparedRequest) -> requests.PreparedRequest:
        return r


class Session(requests.Session):
    """A session of one thread.

    own:    the context for the registry itself
    others: the one for whoever it sends us to
    """

    def __init__(self, address: str, own: ssl.SSLContext, others: ssl.SSLContext) -> None:
        super().__init__()
        self.trust_env = False  # proxies are asked for with each request; nothing else of it is wanted
        self.auth = NoAuth()
        # a cookie is taken for a sign of a browser, and is one more secret
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        self.headers = requests.structures.CaseInsensitiveDict({"User-Agent": "igrun", "Accept-Encoding": "identity"})
        self.mount("http://", Adapter(others))
        self.mount("https://", Adapter(others))
        self.mount(f"https://{address}/", Adapter(own))
        # does nothing if it is there already
        logs.logging().getLogger("urllib3.connectionpool").addFilter(without_queries)

    def get_redirect_target(self, resp: requests.Response) -> None:
        """None: to see where a redirect goes, requests would read all that comes with it."""
        return


def without_queries(record: LogRecord) -> bool:
    """Keep the queries of addresses, which may be signed and so let anybody in, out of urllib3's log."""
    if isinstance(record.args, tuple):
        record.args = tuple(one.partition("?")[0] if isinstance(one, str) else one for one in record.args)
    return True
