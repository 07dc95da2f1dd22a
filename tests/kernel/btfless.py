"""A kernel without BTF: what it should have had, its own hidden where there is one, and a BTFHub on this machine."""

import json
import os
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from urllib.parse import unquote

from igrun.host import Host
from igrun.kernel_btf.names import Kernel
from tests import packaged
from tests.vm import kernels

OWN = Path("/sys/kernel/btf")
CACHE = Path("/var/cache/ig/btf")


@cache
def right_btf() -> bytes:
    """The whole BTF of this kernel: its own, or what pahole made of it."""
    if (OWN / "vmlinux").exists():
        return (OWN / "vmlinux").read_bytes()
    for record in (kernels.cache_root() / "kernels").glob("*.json"):
        known = json.loads(record.read_text())
        if known["release"] == os.uname().release:
            return (record.parent / known["folder"] / "kernel.btf").read_bytes()
    raise FileNotFoundError(f"BTF of {os.uname().release}")


@contextmanager
def hidden() -> Iterator[None]:
    """Nothing in /sys/kernel/btf, no cache; and nothing left in the kernel afterwards."""
    packaged.bpf()
    right_btf()
    before = programs()
    has_own = OWN.exists()
    if has_own:
        subprocess.run(["mount", "-t", "tmpfs", "hidden", str(OWN)], check=True)
    shutil.rmtree(CACHE, ignore_errors=True)
    yield
    shutil.rmtree(CACHE, ignore_errors=True)
    if has_own:
        subprocess.run(["umount", str(OWN)], check=True)
    assert programs() == before


def programs() -> list[str]:
    done = subprocess.run(["bpftool", "prog", "list", "-j"], capture_output=True, check=True)
    return [one.get("name", "") for one in json.loads(done.stdout or b"[]")]


class Hub:
    """BTFHub on this machine. asked: the paths"""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.asked: list[str] = []
        hub = self

        class Handler(SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.asked.append(self.path)
                data = files.get(unquote(self.path))
                self.send_response(404 if data is None else 200)
                self.send_header("Content-Length", str(len(data or b"")))
                self.end_headers()
                self.wfile.write(data or b"")

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __enter__(self) -> "Hub":
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def hub_with(btf: bytes) -> Hub:
    """A hub that has this, as the running kernel's."""
    return Hub({f"/{name()}.btf.tar.xz": archive(btf)})


def name() -> str:
    """What the running kernel's is called there."""
    return Kernel.of(Host.current()).name


def archive(btf: bytes) -> bytes:
    out = BytesIO()
    with tarfile.open(fileobj=out, mode="w:xz", preset=0) as tar:
        info = tarfile.TarInfo(f"{os.uname().release}.btf")
        info.size = len(btf)
        tar.addfile(info, BytesIO(btf))
    return out.getvalue()
