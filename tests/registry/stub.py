"""A registry in this process that does what it is told: for tests of faults, lies and rarely seen ways.

with Stub() as stub:
    stub.put("g", "v1", layers=(b"one",))
    stub.on("GET", "/blobs/", cut(100), times=1)
    ...
    assert stub.asked("GET", "/blobs/")[1].headers["Range"] == "bytes=100-"
"""

import contextlib
import hashlib
import json
import re
import socket
import ssl
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from igrun.oci.model import INDEX, MANIFEST, Descriptor, Index, Manifest, Platform

OCTETS = "application/octet-stream"


class Request(NamedTuple):
    """What came. body: as far as it was read"""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes = b""


Fault = Callable[["Handler"], bool | None]
"""Answers in the registry's place; False: it does not."""


def same(path: str) -> str:
    return path


class Server(ThreadingHTTPServer):
    """Its threads end with their connections, and broken ones are no news."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64
    stub: "Stub"

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


@dataclass
class Stub:
    """One registry on a port of its own.

    user, password: what it wants to know; "" nothing
    bearer:   whether by tokens, else by HTTP's Basic scheme
    realm:    of its token service; "" one of its own
    life_s:   of a token, as it says; dead: tokens that it does not take any more
    lists:    referrers a page of the referrers API, 0 for all in one; None: it has none
    subjects: whether it says OCI-Subject
    uploads:  how it takes blobs: "any", "whole", "pieces"
    mounts:   what it says to a mount: 201, 202 or another status
    where:    gives the Location of an upload, from its path
    """

    user: str = ""
    password: str = ""
    bearer: bool = False
    identity: str = ""
    realm: str = ""
    life_s: object = 300
    lists: int | None = None
    subjects: bool = False
    uploads: str = "any"
    smallest: str = ""
    mounts: int = 202
    where: Callable[[str], str] = same
    tls: ssl.SSLContext | None = None
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    tokens: dict[str, list[str]] = field(default_factory=dict)
    dead: set[str] = field(default_factory=set)
    connections: int = 0

    def __enter__(self) -> "Stub":
        self.lock = threading.Lock()
        self.parts: dict[str, bytes] = {}
        self.faults: list[list[Any]] = []
        self.server = Server(("127.0.0.1", 0), Handler)
        self.server.stub = self
        if self.tls:
            self.server.socket = self.tls.wrap_socket(
                self.server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server.server_address[1]}"

    @property
    def url(self) -> str:
        return f"http{'s' if self.tls else ''}://{self.address}"

    def on(self, method: str, path: str, fault: Fault, times: int = -1) -> None:
        """Let a fault answer requests whose path a pattern is found in, so many times."""
        self.faults.append([method, re.compile(path), fault, times])

    def asked(self, method: str = "", path: str = "") -> list[Request]:
        """The requests that came, of a kind."""
        return [one for one in self.requests if method in ("", one.method) and re.search(path, one.path)]

    # ------------------------------------------------------------------------------------------ images

    def blob(self, data: bytes, media_type: str = OCTETS) -> Descriptor:
        descriptor = Descriptor.of(media_type, data)
        self.blobs[descriptor.digest] = data
        return descriptor

    def manifest(self, data: bytes, media_type: str, *tags: str) -> Descriptor:
        descriptor = Descriptor.of(media_type, data)
        for name in (descriptor.digest, *tags):
            self.manifests[name] = media_type, data
        return descriptor

    def put(self, tag: str, *layers: bytes) -> Descriptor:
        """An index of one image."""
        parts = tuple(self.blob(layer, "application/layer") for layer in layers)
        image = Manifest(self.blob(b"{}", "application/config"), parts)
        one = self.manifest(image.to_bytes(), MANIFEST)
        entry = Descriptor(MANIFEST, one.digest, one.size, {}, Platform("amd64"))
        return self.manifest(Index((entry,)).to_bytes(), INDEX, tag)

    def about(self, subject: Descriptor, text: bytes, *tags: str) -> Descriptor:
        """A manifest whose subject that is."""
        image = Manifest(self.blob(b"{}", "application/config"), (self.blob(text),), {}, "application/note", subject)
        return self.manifest(image.to_bytes(), MANIFEST, *tags)

    def referrers(self, digest: str) -> list[Descriptor]:
        found = {}
        for kind, data in self.manifests.values():
            about = json.loads(data).get("subject") or {} if data.startswith(b"{") else {}
            if about.get("digest") == digest:
                one = Descriptor.of(kind, data, artifact_type="application/note")
                found[one.digest] = one
        return sorted(found.values(), key=lambda one: one.digest)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: Server

    def setup(self) -> None:
        super().setup()
        self.stub = self.server.stub
        with self.stub.lock:
            self.stub.connections += 1

    def log_message(self, *given: object) -> None:
        pass

    def handle_any(self) -> None:
        stub, self.data = self.stub, b""
        fault = None
        with stub.lock:
            for entry in stub.faults:
                method, pattern, found, times = entry
                if times and method in ("", self.command) and pattern.search(self.path):
                    entry[3] -= 1
                    fault = found
                    break
            index = len(stub.requests)
            stub.requests.append(Request(self.command, self.path, dict(self.headers)))
        if fault is not None and fault(self) is not False:
            return None
        self.body()
        with stub.lock:
            stub.requests[index] = stub.requests[index]._replace(body=self.data[:1000])
        path = urlsplit(self.path).path
        query = {key: values[0] for key, values in parse_qs(urlsplit(self.path).query).items()}
        if path == "/token":
            return self.token(query)
        if path.startswith("/v2/") and not self.allowed():
            return None
        for pattern, method in ROUTES:
            if match := re.fullmatch(pattern, path):
                return getattr(self, method)(query, *match.groups())
        return self.answer(404, b'{"errors":[{"code":"NOT_FOUND","message":"no such page"}]}')

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_CONNECT = handle_any

    def body(self) -> bytes:
        if not self.data:
            self.data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return self.data

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        """Headers are named with _ for -."""
        self.send_response(status)
        given = {key.replace("_", "-"): value for key, value in headers.items()}
        for key, value in {"Content-Length": str(len(body)), **given}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def cut(self) -> None:
        """Break the connection."""
        self.close_connection = True
        self.wfile.flush()
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    # ------------------------------------------------------------------------------------------ who

    def allowed(self) -> bool:
        stub = self.stub
        if not stub.user and not stub.identity and not stub.bearer:
            return True
        sent = self.headers.get("Authorization", "")
        scope = re.match(r"/v2/(.+?)/(?:manifests|blobs|referrers)/", self.path)
        if stub.bearer:
            token = sent.removeprefix("Bearer ")
            wanted = f"repository:{scope[1]}:" if scope else ""
            has = [one for one in stub.tokens.get(token, ()) if one.startswith(wanted)]
            if sent.startswith("Bearer ") and token in stub.tokens and token not in stub.dead and (has or not wanted):
                return True
            realm = stub.realm or f"{stub.url}/token"
            more = f',scope="repository:{scope[1]}:pull"' if scope else ""
            self.answer(401, b"{}", WWW_Authenticate=f'Bearer realm="{realm}",service="stub"{more}')
            return False
        if sent == basic(stub.user, stub.password):
            return True
        self.answer(401, b"{}", WWW_Authenticate='Basic realm="stub"')
        return False

    def token(self, query: dict[str, str]) -> None:
        stub = self.stub
        if self.command == "POST":
            form = parse_qs(self.data.decode())
            fine = form["grant_type"] == ["refresh_token"] and form["refresh_token"] == [stub.identity]
            scopes = form.get("scope", [""])[0].split()
        else:
            given = self.headers.get("Authorization", "")
            fine = not stub.identity and given == (basic(stub.user, stub.password) if stub.user else "")
            scopes = parse_qs(urlsplit(self.path).query).get("scope", [])
        if not fine:
            return self.answer(401, b"{}")
        with stub.lock:
            token = f"t0ken-{len(stub.tokens)}"
            stub.tokens[token] = scopes
        return self.answer(200, json.dumps({"token": token, "expires_in": stub.life_s}).encode())

    # ------------------------------------------------------------------------------------------ what

    def base(self, query: dict[str, str]) -> None:
        return self.answer(200, b"{}")

    def blob(self, query: dict[str, str], name: str, digest: str) -> None:
        data = self.stub.blobs.get(digest)
        if data is None:
            return self.answer(404, b'{"errors":[{"code":"BLOB_UNKNOWN","message":"blob unknown"}]}')
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start = int(asked[1])
            return self.answer(206, data[start:], Content_Range=f"bytes {start}-{len(data) - 1}/{len(data)}")
        return self.answer(200, data)

    def manifest(self, query: dict[str, str], name: str, tag: str) -> None:
        stub = self.stub
        if self.command == "PUT":
            digest = "sha256:" + hashlib.sha256(self.data).hexdigest()
            stub.manifests[tag] = stub.manifests[digest] = self.headers["Content-Type"], self.data
            about = json.loads(self.data).get("subject")
            more = {"OCI_Subject": about["digest"]} if about and stub.subjects else {}
            return self.answer(201, Docker_Content_Digest=digest, **more)
        if tag not in stub.manifests:
            return self.answer(404, b'{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}')
        kind, data = stub.manifests[tag]
        return self.answer(200, data, Content_Type=kind)

    def listed(self, query: dict[str, str], name: str, digest: str) -> None:
        stub = self.stub
        if stub.lists is None:
            return self.answer(404, b"404 page not found", Content_Type="text/plain")
        found, start = stub.referrers(digest), int(query.get("next", 0))
        end = start + (stub.lists or len(found) or 1)
        more = {"Link": f'<{urlsplit(self.path).path}?next={end}>; rel="next"'} if end < len(found) else {}
        return self.answer(200, Index(tuple(found[start:end])).to_bytes(), Content_Type=INDEX, **more)

    def upload(self, query: dict[str, str], name: str, number: str) -> None:
        stub = self.stub
        path = f"/v2/{name}/blobs/uploads/"
        if self.command == "POST":
            if "mount" in query and stub.mounts != 202:
                return self.answer(stub.mounts)
            with stub.lock:
                number = str(len(stub.parts))
                stub.parts[number] = b""
            more = {"OCI_Chunk_Min_Length": stub.smallest} if stub.smallest else {}
            return self.answer(202, Location=stub.where(path + number), **more)
        if number not in stub.parts:
            return self.answer(404, b'{"errors":[{"code":"BLOB_UPLOAD_UNKNOWN"}]}')
        if self.command == "DELETE":
            del stub.parts[number]
            return self.answer(204)
        if self.command == "PATCH":
            start = int(self.headers["Content-Range"].partition("-")[0])
            if stub.uploads == "whole" or start != len(stub.parts[number]):
                return self.answer(416)
            stub.parts[number] += self.data
            return self.answer(202, Location=stub.where(path + number), Range=f"0-{len(stub.parts[number]) - 1}")
        if self.data and stub.uploads == "pieces":
            return self.answer(405)
        data = stub.parts.pop(number) + self.data
        if query.get("digest") != "sha256:" + hashlib.sha256(data).hexdigest():
            return self.answer(400, b'{"errors":[{"code":"DIGEST_INVALID","message":"digest did not match"}]}')
        stub.blobs[query["digest"]] = data
        return self.answer(201)


ROUTES = (
    (r"/v2/", "base"),
    (r"/v2/(.+)/blobs/uploads/(\d*)", "upload"),
    (r"/v2/(.+)/blobs/(sha256:.+)", "blob"),
    (r"/v2/(.+)/manifests/(.+)", "manifest"),
    (r"/v2/(.+)/referrers/(.+)", "listed"),
)


def basic(user: str, password: str) -> str:
    return "Basic " + b64encode(f"{user}:{password}".encode()).decode()


# ---------------------------------------------------------------------------------------------- faults


def answer(status: int, body: bytes = b"", **headers: str) -> Fault:
    """Say that, whatever was asked."""

    def fault(handler: Handler) -> None:
        handler.body()
        handler.answer(status, body, **headers)

    return fault


def moved(url: str, status: int = 307) -> Fault:
    """Send to another place; `{path}` stands for the path asked for."""

    def fault(handler: Handler) -> None:
        handler.body()
        handler.answer(status, Location=url.replace("{path}", handler.path))

    return fault


def cut(at: int) -> Fault:
    """Break off a blob after so many bytes more."""

    def fault(handler: Handler) -> None:
        data = handler.stub.blobs[re.search(r"sha256:[0-9a-f]{64}", handler.path)[0]]
        asked = re.fullmatch(r"bytes=(\d+)-.*", handler.headers.get("Range", ""))
        start = int(asked[1]) if asked else 0
        handler.send_response(206 if asked else 200)
        if asked:
            handler.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        handler.send_header("Content-Length", str(len(data) - start))
        handler.end_headers()
        handler.wfile.write(data[start : start + at])
        handler.cut()

    return fault


def gone(handler: Handler) -> None:
    """Break the connection without an answer."""
    handler.cut()


def swallow(count: int) -> Fault:
    """Take so many bytes of what is sent, then break the connection."""

    def fault(handler: Handler) -> None:
        handler.rfile.read(count)
        handler.cut()

    return fault


def sends(chunks: Callable[[], Sequence[bytes]], pause_s: float = 0.0, **headers: str) -> Fault:
    """An answer without a length, chunk by chunk until the other side has had enough."""

    def fault(handler: Handler) -> None:
        handler.send_response(200)
        for key, value in headers.items():
            handler.send_header(key.replace("_", "-"), value)
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.close_connection = True
        with contextlib.suppress(OSError):
            for chunk in chunks():
                handler.wfile.write(chunk)
                time.sleep(pause_s)

    return fault
