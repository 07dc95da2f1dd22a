"""Real registries, each a process on a free port of 127.0.0.1 with its files in a folder, gone when its `with` ends."""

import contextlib
import json
import signal
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tests.registry import tools

PATIENCE_S = 10.0
ANY_MANIFEST = ", ".join(
    f"application/vnd.{kind}+json"
    for kind in (
        "oci.image.index.v1",
        "oci.image.manifest.v1",
        "docker.distribution.manifest.list.v2",
        "docker.distribution.manifest.v2",
    )
)


@dataclass(frozen=True)
class Certificates:
    """PEM files of a private CA. server: for localhost and 127.0.0.1; client: for whoever calls."""

    ca: Path
    server: Path
    server_key: Path
    client: Path
    client_key: Path


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Registry:
    """A registry that runs.

    kind:         what it is, as the table of pairs names it
    address:      127.0.0.1:port or localhost:port
    log:          what it prints, its requests among it
    certificates: of the CA that signed its own; None: it speaks plain HTTP
    referrers:    whether it has the referrers API
    wants_client: whether it asks for the client's certificate
    """

    kind: str
    address: str
    log: Path
    certificates: Certificates | None = None
    user: str = ""
    password: str = ""
    referrers: bool = False
    wants_client: bool = False

    def named(self, repository: str, tag: str = "latest") -> str:
        """The full name of an image there."""
        return f"{self.address}/{repository}:{tag}"

    @property
    def url(self) -> str:
        return f"http{'s' if self.certificates else ''}://{self.address}"

    def get(self, path: str, method: str = "GET") -> Answer:
        """Ask it directly, by nothing of igrun; path: behind /v2/."""
        request = urllib.request.Request(f"{self.url}/v2/{path}", method=method, headers={"Accept": ANY_MANIFEST})
        if self.user:
            request.add_header("Authorization", "Basic " + b64encode(f"{self.user}:{self.password}".encode()).decode())
        context = None
        if self.certificates:
            context = ssl.create_default_context(cafile=str(self.certificates.ca))
            context.load_cert_chain(self.certificates.client, self.certificates.client_key)
        try:
            with urllib.request.urlopen(request, context=context, timeout=PATIENCE_S) as answer:
                return Answer(answer.status, dict(answer.headers), answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, dict(error.headers), error.read())

    def digest(self, repository: str, tag: str = "latest") -> str:
        """What a tag stands for there, "" if nothing."""
        import hashlib

        answer = self.get(f"{repository}/manifests/{tag}")
        return f"sha256:{hashlib.sha256(answer.body).hexdigest()}" if answer.status == 200 else ""

    def tags(self, repository: str) -> list[str]:
        answer = self.get(f"{repository}/tags/list")
        return sorted(json.loads(answer.body)["tags"] or []) if answer.status == 200 else []

    def requests(self) -> str:
        """What it has logged so far."""
        return self.log.read_text(errors="replace")


# ---------------------------------------------------------------------------------------------- processes


@contextlib.contextmanager
def serving(
    command: Callable[[str], Sequence[str]], log: Path, host: str = "127.0.0.1", env: dict[str, str] | None = None
) -> Iterator[str]:
    """Run a server until the `with` ends; its address. command: address -> what to run"""
    for attempt in range(3):
        # Another process may take the port before the server does; then it is another port's turn.
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        with log.open("wb") as out:
            process = subprocess.Popen(
                command(f"127.0.0.1:{port}"), stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env
            )
        try:
            if listens(process, port):
                yield f"{host}:{port}"
                return
            if attempt == 2 or "address already in use" not in log.read_text(errors="replace"):
                raise RuntimeError(f"{process.args!r} did not start: {log.read_text(errors='replace')[-2000:]}")
        finally:
            stop(process)


def listens(process: "subprocess.Popen[bytes]", port: int) -> bool:
    """Wait until a process takes connections; False: it ended."""
    end = time.monotonic() + PATIENCE_S
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
            return process.poll() is None
        time.sleep(0.02)
    return False


def stop(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(2.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


# ---------------------------------------------------------------------------------------------- kinds


@contextlib.contextmanager
def docker_registry(
    folder: Path,
    *,
    certificates: Certificates | None = None,
    user: str = "",
    password: str = "",
    wants_client: bool = False,
    host: str = "127.0.0.1",
) -> Iterator[Registry]:
    """Debian's docker-registry. No referrers API."""
    program = tools.find("docker-registry").path
    (folder / "data").mkdir(parents=True)
    config = folder / "config.yml"
    if user:
        (folder / "htpasswd").write_text(tools.find("htpasswd")("-nbB", user, password))

    def command(address: str) -> Sequence[str]:
        http: dict[str, object] = {"addr": address}
        if certificates:
            tls = {"certificate": str(certificates.server), "key": str(certificates.server_key)}
            http["tls"] = {**tls, "clientcas": [str(certificates.ca)]} if wants_client else tls
        storage = {"filesystem": {"rootdirectory": str(folder / "data")}, "delete": {"enabled": True}}
        whole: dict[str, object] = {"version": "0.1", "storage": storage, "http": http, "log": {"level": "info"}}
        if user:
            whole["auth"] = {"htpasswd": {"realm": "a realm", "path": str(folder / "htpasswd")}}
        config.write_text(json.dumps(whole))  # JSON is YAML
        return [str(program), "serve", str(config)]

    parts = ("TLS" if certificates else "", "client certificate" if wants_client else "", "htpasswd" if user else "")
    kind = ", ".join(["docker-registry", *filter(None, parts)])
    with serving(command, folder / "log", host) as address:
        yield Registry(kind, address, folder / "log", certificates, user, password, wants_client=wants_client)


@contextlib.contextmanager
def referrers_registry(folder: Path, *, certificates: Certificates | None = None) -> Iterator[Registry]:
    """go-containerregistry's registry with the referrers API; all in memory."""
    program = str(tools.find("referrers").path)
    pair = [str(certificates.server), str(certificates.server_key)] if certificates else []
    kind = "go-containerregistry with referrers" + (", TLS" if certificates else "")
    folder.mkdir(parents=True)
    with serving(lambda address: [program, address, *pair], folder / "log") as address:
        yield Registry(kind, address, folder / "log", certificates, referrers=True)


@contextlib.contextmanager
def crane_registry(folder: Path) -> Iterator[Registry]:
    """`crane registry serve`. No referrers API; all in memory."""
    program = str(tools.find("crane").path)
    folder.mkdir(parents=True)
    with serving(lambda address: [program, "registry", "serve", "--address", address], folder / "log") as address:
        yield Registry("crane registry", address, folder / "log")


def certificates(folder: Path) -> Certificates:
    """A private CA and what it signed, made by openssl."""
    openssl = tools.find("openssl")
    folder.mkdir(parents=True, exist_ok=True)
    new = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
    ca, ca_key = folder / "ca.pem", folder / "ca.key"
    usage = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")
    openssl(*new, "-subj", "/CN=a CA of tests", "-keyout", ca_key, "-out", ca, *usage)
    made = []
    for name, use in (("server", "serverAuth"), ("client", "clientAuth")):
        pem, key = folder / f"{name}.pem", folder / f"{name}.key"
        more = ["subjectAltName=DNS:localhost,IP:127.0.0.1"] if name == "server" else []
        extensions = [
            part
            for text in ("basicConstraints=critical,CA:FALSE", f"extendedKeyUsage={use}", *more)
            for part in ("-addext", text)
        ]
        signed = ("-CA", ca, "-CAkey", ca_key, "-subj", f"/CN={name}", "-keyout", key, "-out", pem)
        openssl(*new, *signed, *extensions)
        made += [pem, key]
    return Certificates(ca, *made)
