"""Whose certificates a registry may have, and which one we show it."""

from __future__ import annotations

import ssl
from typing import Any

from requests.adapters import HTTPAdapter

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
        # (a proxy that is reached by TLS has a context of its own)
        return super().proxy_manager_for(proxy, ssl_context=self._context, blocksize=BLOCK, **more)

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        conn.cert_reqs = "CERT_REQUIRED" if verify else "CERT_NONE"


def context(endpoint: Endpoint, *, known: bool = True) -> ssl.SSLContext:
    """What certificates are taken and shown. ParamError: a file holds none.

    known: for the registry itself; others that it sends us to do not see who we are
    """
    made = ssl.create_default_context()
    if not any(made.cert_store_stats().values()):
        import certifi

        made.load_verify_locations(certifi.where())
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
    if not endpoint.verify:
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE
    return made
