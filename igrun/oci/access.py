"""How registries are reached: their addresses, mirrors and certificates, and where credentials are kept.

A registry that is insecure is asked through TLS without verification first, then through plain HTTP, as container
engines do; credentials are sent all the same. Every other one, this machine's own among them, must have a certificate
that the system, `ca-file` or a folder of /etc/docker/certs.d or /etc/containers/certs.d trusts.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from igrun.config import AUTHFILE, CA_FILE, CERT_FILE, INSECURE, KEY_FILE, PLAIN_HTTP, Settings
from igrun.dataclass import dataclass, field
from igrun.errors import GadgetError, ParamError
from igrun.metadata.params import Param
from igrun.oci.model import HOST, REPOSITORY

TLS_VERIFY = "tls-verify"
CERTIFICATES = (Path("/etc/docker/certs.d"), Path("/etc/containers/certs.d"))
DOCKER = "docker.io"
# Where the API of a registry is, if not at the host of its images' names
ADDRESSES = {DOCKER: "registry-1.docker.io"}
KNOWN = ("mirrors", "insecure")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One place that answers for a registry.

    host:     of the names of images; credentials are kept by it
    address:  host[:port] of its API
    schemes:  to be tried in this order
    prefix:   folders before the repository's name, as mirrors have them; "" or ending in `/`
    verify:   whether its certificate must be good
    authorities, certificate, key: PEM files; "" if there is none
    """

    host: str
    address: str
    schemes: tuple[str, ...] = ("https",)
    prefix: str = ""
    verify: bool = True
    authorities: tuple[str, ...] = ()
    certificate: str = ""
    key: str = ""


@dataclass(frozen=True, slots=True)
class Access:
    """How to reach registries.

    authfile:   the file with credentials; given: whether somebody named it, so that it must be there
    insecure:   hosts without a certificate that can be verified, or without TLS
    plain_http: none of them has TLS
    registries: host -> {mirrors: [host[/folder], ...], insecure: bool}, as the config file says
    """

    authfile: str = AUTHFILE.default
    given: bool = False
    insecure: frozenset[str] = frozenset()
    plain_http: bool = False
    tls_verify: bool = True
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    registries: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, hash=False)
    env: Mapping[str, str] = field(default_factory=dict, hash=False, repr=False)

    @classmethod
    def of(cls, settings: Settings, values: Mapping[str, str] = MappingProxyType({})) -> Self:
        """From the settings, and the values of flags over them. ParamError, GadgetError: one is wrong."""

        def value(param: Param[Any]) -> Any:
            text = values.get(param.key)
            return settings.value(param) if text is None else param.parse(text)

        named = values.get(AUTHFILE.key) or settings.get(AUTHFILE.full_name) or settings.env.get("REGISTRY_AUTH_FILE")
        for option, param in ((CERT_FILE, KEY_FILE), (KEY_FILE, CERT_FILE)):
            if value(option) and not value(param):
                raise ParamError(option.key, value(option), f"{option.key} needs {param.key} too")
        return cls(
            authfile=named or AUTHFILE.default,
            given=bool(named) and named != AUTHFILE.default,
            insecure=frozenset(host for host in value(INSECURE) if host),
            plain_http=value(PLAIN_HTTP),
            tls_verify=values.get(TLS_VERIFY, "true") != "false",
            ca_file=value(CA_FILE),
            cert_file=value(CERT_FILE),
            key_file=value(KEY_FILE),
            registries={host: checked(host, entry) for host, entry in settings.registries.items()},
            env=settings.env,
        )

    def endpoint(self, host: str, prefix: str = "") -> Endpoint:
        """The registry itself. ParamError: a file of certificates is not there."""
        insecure = host in self.insecure or self.registries.get(host, {}).get("insecure", False)
        schemes = ("http",) if self.plain_http else ("https", "http") if insecure else ("https",)
        authorities, certificate, key = installed(host)
        for param, text in ((CA_FILE, self.ca_file), (CERT_FILE, self.cert_file), (KEY_FILE, self.key_file)):
            if text and not Path(text).is_file():
                raise ParamError(param.key, text, f"--{param.key}: {text} does not exist")
        return Endpoint(
            host,
            ADDRESSES.get(host, host),
            schemes,
            prefix,
            self.tls_verify and not insecure,
            (*authorities, *([self.ca_file] if self.ca_file else [])),
            self.cert_file or certificate,
            self.key_file or key,
        )

    def mirrors(self, host: str) -> tuple[Endpoint, ...]:
        """Who is asked before the registry itself, in order."""
        found = []
        for mirror in self.registries.get(host, {}).get("mirrors", ()):
            where, _, folder = mirror.partition("/")
            found.append(self.endpoint(where, f"{folder}/" if folder else ""))
        return tuple(found)


def checked(host: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """What the config file says about a registry. GadgetError: it is wrong."""
    where = f"config: registries.{host}"
    for key in entry:
        if key not in KNOWN:
            raise GadgetError(f"{where}: unknown key {key!r}", hint=f"known are {' and '.join(KNOWN)}")
    mirrors = entry.get("mirrors") or []
    if isinstance(mirrors, str):
        mirrors = [mirrors]
    if not isinstance(mirrors, list) or not all(isinstance(one, str) and one for one in mirrors):
        raise GadgetError(f"{where}.mirrors: not a list of names like mirror.example:5000/folder")
    insecure = entry.get("insecure", False)
    insecure = {"true": True, "false": False}.get(str(insecure).lower(), insecure)
    if not isinstance(insecure, bool):
        raise GadgetError(f"{where}.insecure: neither true nor false")
    mirrors = [one.removeprefix("https://").rstrip("/") for one in mirrors]
    for mirror in mirrors:
        host, slash, folder = mirror.partition("/")
        if mirror.startswith("http://"):
            bare = mirror.removeprefix("http://").partition("/")[0]
            raise GadgetError(f"{where}.mirrors: {mirror!r}: without http://", hint=f"{bare}: {{insecure: true}}")
        if not HOST.fullmatch(host) or (slash and not REPOSITORY.fullmatch(folder)):
            raise GadgetError(f"{where}.mirrors: {mirror!r} is no name like mirror.example:5000/folder")
    return {"mirrors": mirrors, "insecure": insecure}


def installed(host: str) -> tuple[tuple[str, ...], str, str]:
    """Authorities, client certificate and its key that are installed for a registry."""
    authorities: list[str] = []
    certificate = key = ""
    for folder in (one / host for one in CERTIFICATES):
        try:
            names = sorted(path.name for path in folder.iterdir())
        except OSError:
            continue
        authorities += [str(folder / name) for name in names if name.endswith(".crt")]
        for name in names:
            if name.endswith(".cert") and f"{name.removesuffix('.cert')}.key" in names and not certificate:
                certificate, key = str(folder / name), str(folder / f"{name.removesuffix('.cert')}.key")
    return tuple(authorities), certificate, key
