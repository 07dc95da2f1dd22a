"""BTFHub and its mirrors: what a server gives, and everything that can be wrong with it."""

import hashlib
import io
import lzma
import os
import socket
import struct
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from igrun.errors import ImageError, ParamError
from igrun.kernel_btf import hub, unpack
from igrun.kernel_btf.hub import Client, HubError
from igrun.kernel_btf.names import Kernel
from igrun.kernel_btf.policy import HUB, Policy, addresses

KERNEL = Kernel("debian", "10", "x86_64", "4.19.0-20-amd64+x")
PATH = f"/{KERNEL.name}.btf.tar.xz"


def btf(size: int = 200_000) -> bytes:
    """BTF without a type, and strings that do not compress well."""
    names = b"\0" + os.urandom(size).replace(b"\0", b"\1") + b"\0"
    return struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, 0, 0, len(names)) + names


def tar_xz(files: dict[str, bytes], preset: int = 0) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:xz", preset=preset) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


BTF = btf()
ARCHIVE = tar_xz({f"{KERNEL.release}.btf": BTF})


class Server:
    """A hub on this machine. files: what it has; asked: (path, Range); cut: bytes after which it hangs up, once each"""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {PATH: ARCHIVE}
        self.asked: list[tuple[str, str | None]] = []
        self.cut: list[int] = []
        self.status = 200
        self.etag = '"one"'
        self.headers: dict[str, str] = {}
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                wanted = self.headers.get("Range")
                path = self.path.replace("%2B", "+")
                server.asked.append((path, wanted))
                data = server.files.get(path)
                if server.status != 200 or data is None:
                    self.send_response(server.status if server.status != 200 else 404)
                    for name, text in server.headers.items():
                        self.send_header(name, text)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                start = int(wanted[6:-1]) if wanted and self.headers.get("If-Range") == server.etag else 0
                self.send_response(206 if start else 200)
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
                if server.etag:
                    self.send_header("ETag", server.etag)
                for name, text in {"Content-Length": str(len(data) - start), **server.headers}.items():
                    self.send_header(name, text)
                self.end_headers()
                end = start + server.cut.pop(0) if server.cut else len(data)
                self.wfile.write(data[start:end])
                self.wfile.flush()
                if end < len(data):
                    self.connection.shutdown(socket.SHUT_RDWR)
                    self.close_connection = True

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    started = Server()
    yield started
    started.close()


@pytest.fixture
def fetch(server, tmp_path):
    def fetch_(kernel: Kernel = KERNEL, url: str = "", index: str = "") -> bytes:
        policy = Policy((url or server.url,), "", index, tmp_path / "cache")
        with Client(policy) as client:
            return client.fetch(policy.hubs[0], kernel)

    return fetch_


def left_over(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache/.partial").glob("*"))


def test_what_it_has_is_kept(server, fetch, tmp_path):
    assert fetch() == BTF
    assert (tmp_path / "cache" / f"{KERNEL.name}.btf").read_bytes() == BTF
    assert left_over(tmp_path) == []


def test_a_rebuilt_distribution_is_there_by_the_first_number(server, fetch):
    centos = Kernel("centos", "8.4", "aarch64", "4.18.0-305.el8.aarch64")
    server.files = {f"/centos/8/arm64/{centos.release}.btf.tar.xz": tar_xz({f"./{centos.release}.btf": BTF})}

    assert fetch(centos) == BTF
    assert server.asked[0][0] == f"/centos/8.4/arm64/{centos.release}.btf.tar.xz"


def test_a_kernel_that_it_does_not_have(server, fetch):
    server.files = {}
    with pytest.raises(HubError, match=f"it has none for {KERNEL.id}/10"):
        fetch()


@pytest.mark.parametrize(("status", "why"), [(500, "it answers 500"), (403, "it answers 403"), (206, "elsewhere")])
def test_an_answer_that_is_none(server, fetch, status, why):
    server.status = status
    with pytest.raises(HubError, match=why):
        fetch()


def test_a_server_that_is_down(fetch):
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]

    with pytest.raises(HubError, match=r"^cannot be reached: Connection refused$"):
        fetch(url=f"http://user:secret@127.0.0.1:{port}")


def test_a_download_that_breaks_off_goes_on(server, fetch):
    server.cut = [61_440, 69_632]

    assert fetch() == BTF
    assert [wanted for _, wanted in server.asked] == [None, "bytes=61440-", "bytes=131072-"]


def test_the_next_run_goes_on_too(server, fetch, tmp_path):
    server.cut = [53_248, 0, 0]
    with pytest.raises(HubError, match="broke off after 53248 "):
        fetch()
    assert len(left_over(tmp_path)) == 2

    assert fetch() == BTF
    assert server.asked[-1][1] == "bytes=53248-"
    assert left_over(tmp_path) == []


def test_what_changed_meanwhile_is_taken_from_its_beginning(server, fetch):
    server.cut = [53_248, 0, 0]
    with pytest.raises(HubError):
        fetch()
    other = btf()
    server.etag, server.files = '"two"', {PATH: tar_xz({f"{KERNEL.release}.btf": other})}

    assert fetch() == other


def test_without_an_etag_it_begins_again(server, fetch):
    server.etag = ""
    server.cut = [53_248]

    assert fetch() == BTF
    assert [wanted for _, wanted in server.asked] == [None, None]


WRONG = {
    "truncated": (ARCHIVE[:-100], "the archive is cut off"),
    "a web page": (b"<html>log in</html>", "no tar archive"),
    "damaged": (ARCHIVE[:1000] + b"\xff" * 50 + ARCHIVE[1050:], "the archive is damaged"),
    "two files": (tar_xz({f"{KERNEL.release}.btf": BTF, "b.btf": b""}), "has 2 files, not one"),
    "of another release": (tar_xz({"4.19.0-21-amd64.btf": BTF}), r"holds '4\.19\.0-21-amd64\.btf', not 4\.19"),
    "no BTF": (tar_xz({f"{KERNEL.release}.btf": b"not btf" * 100}), "wrong magic number"),
    "leads out": (tar_xz({f"../{KERNEL.release}.btf": BTF}), "leads out of it"),
    "nothing": (b"", "no tar archive"),
    "followed by more": (ARCHIVE + b"more", "something follows"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_archive_is_refused_and_not_kept(what, server, fetch, tmp_path):
    data, why = WRONG[what]
    server.files = {PATH: data}

    with pytest.raises(HubError, match=why):
        fetch()
    assert left_over(tmp_path) == []
    assert not list((tmp_path / "cache").rglob("*.btf"))


def test_a_bomb_does_not_go_off():
    huge = lzma.compress(bytes(80 << 20), preset=0)
    assert len(huge) < 100_000

    with pytest.raises(ImageError, match="unpacks to more than 64 MiB"):
        unpack.only_btf(huge)


def test_an_archive_that_is_too_large_is_not_taken(server, fetch, monkeypatch):
    monkeypatch.setattr(hub, "LARGEST", 100_000)
    with pytest.raises(HubError, match=f"the archive has {len(ARCHIVE)} bytes, more than"):
        fetch()
    server.headers = {"Transfer-Encoding": "identity", "Content-Length": "5"}


def test_a_full_disk_is_told(fetch, tmp_path):
    """A file that may not be that large fails as a full disk does."""
    import resource
    import signal

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(HubError, match=r"^cannot write .*: File too large$"):
            fetch()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def test_a_cache_that_cannot_be_written_is_told(fetch, tmp_path):
    (tmp_path / "cache").write_text("no folder")

    with pytest.raises(HubError, match=r"cannot write .*cache"):
        fetch()


def test_an_index_pins_what_is_taken(server, fetch, tmp_path):
    index = tmp_path / "index"
    index.write_text(f"{hashlib.sha256(ARCHIVE).hexdigest()}  .{PATH}\n")
    assert fetch(index=str(index)) == BTF

    server.files = {PATH: tar_xz({f"{KERNEL.release}.btf": btf()})}
    with pytest.raises(HubError, match=r"has SHA-256 .*, and the index says"):
        fetch(index=str(index))
    index.write_text("")
    with pytest.raises(HubError, match="does not have debian/10"):
        fetch(index=str(index))
    with pytest.raises(HubError, match="No such file"):
        fetch(index="/nonexistent")


def test_it_does_not_follow_for_ever(server, fetch):
    server.status, server.headers = 302, {"Location": PATH}
    with pytest.raises(HubError, match="from address to address"):
        fetch()


def test_two_processes_take_turns(fetch, server):
    results: list[bytes] = []
    threads = [threading.Thread(target=lambda: results.append(fetch())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert results == [BTF] * 4


# ---------------------------------------------------------------------------------------------- the params


@pytest.mark.parametrize(
    ("text", "hubs"),
    [
        ("auto", (HUB,)),
        ("", (HUB,)),
        ("never", ()),
        ("https://a/b/,auto", ("https://a/b", HUB)),
        ("http://127.0.0.1:1", ("http://127.0.0.1:1",)),
    ],
)
def test_the_param_names_archives(text, hubs):
    assert addresses(text) == hubs


@pytest.mark.parametrize("text", ["never,auto", "ftp://x", "always", "example.org/x"])
def test_a_wrong_param_is_refused(text):
    with pytest.raises(ParamError, match='as "btfhub"'):
        addresses(text)


def test_pull_never_asks_no_hub_unless_one_is_named():
    assert Policy.of({}).hubs == (HUB,)
    assert Policy.of({"pull": "missing"}).hubs == (HUB,)
    assert Policy.of({"pull": "never"}).hubs == ()
    assert "--pull is never" in Policy.of({"pull": "never"}).why_none
    assert Policy.of({"pull": "never", "btfhub": "auto"}).hubs == (HUB,)
    assert "--btfhub is never" in Policy.of({"btfhub": "never"}).why_none


def test_an_address_is_shown_without_what_is_secret():
    assert hub.shown("https://user:secret@example.org/x?token=1") == "https://example.org/x"
