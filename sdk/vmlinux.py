#!/usr/bin/env python3
"""Write include/vmlinux/<arch>/vmlinux.h from the type information (BTF) inside Debian's kernels.

The kernels come from the Debian mirror that this machine's apt knows, through an apt directory of their own, so neither
the machine's package lists nor its architectures change. Needs apt, dpkg-deb and bpftool; zstd or lz4 where the kernel
image is compressed so.
"""

from __future__ import annotations

import argparse
import lzma
import re
import struct
import subprocess
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

ARCHITECTURES = ("amd64", "arm64")
OUTPUT = Path(__file__).resolve().parent / "include" / "vmlinux"

# struct btf_header: magic 0xeB9F, version 1, no flags, 24 bytes long, types right after it
BTF_START = struct.pack("<HBBII", 0xEB9F, 1, 0, 24, 0)
# The least that the BTF of a whole kernel has; an image also holds small ones, of the vDSO or of embedded programs.
KERNEL_BTF_BYTES = 500_000


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--series", default="6.12", help="kernel series (default %(default)s)")
    parser.add_argument("--flavour", default="", help="what stands before the architecture, such as cloud-")
    parser.add_argument("--arch", action="append", choices=ARCHITECTURES, help="default: all")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="default %(default)s")
    given = parser.parse_args()
    for arch in given.arch or ARCHITECTURES:
        with tempfile.TemporaryDirectory(prefix="vmlinux-") as work:
            package, image = kernel_image(Path(work), arch, given.series, given.flavour)
            btf = Path(work) / "vmlinux.btf"
            btf.write_bytes(largest_btf(image))
            target = given.output / arch / "vmlinux.h"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(header(package, btf))
            print(f"{target}: {target.stat().st_size} bytes, from {package}")
    return 0


def header(package: str, btf: Path) -> str:
    types = run("bpftool", "btf", "dump", "file", str(btf), "format", "c")
    return f"/* SPDX-License-Identifier: GPL-2.0 */\n/* Written by sdk/vmlinux.py from {package}. */\n{types}"


def kernel_image(work: Path, arch: str, series: str, flavour: str) -> tuple[str, bytes]:
    """The newest kernel of the series: (package and version, its image)."""
    options = apt_options(work / "apt", arch)
    run("apt-get", *options, "update", "-q")
    wanted = re.compile(rf"linux-image-{re.escape(series)}\.\d[\w.+~]*-{re.escape(flavour)}{arch}")
    listed = run("apt-cache", *options, "pkgnames", f"linux-image-{series}.").split()
    names = sorted(filter(wanted.fullmatch, listed), key=lambda name: [int(n) for n in re.findall(r"\d+", name)])
    if not names:
        raise SystemExit(f"no package linux-image-{series}.*-{flavour}{arch} on the mirror")
    run("apt-get", *options, "download", "-q", names[-1], cwd=work)
    (package,) = work.glob("*.deb")
    _, version, _ = package.name.split("_")
    archive = work / "files.tar"
    with archive.open("wb") as files:
        subprocess.run(["dpkg-deb", "--fsys-tarfile", package], stdout=files, check=True)
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.isfile() and re.search(r"/vmlinu[xz](-[^/]*)?$", member.name):
                content = tar.extractfile(member)
                if content:
                    return f"{names[-1]} {version.replace('%3a', ':')}", content.read()
    raise SystemExit(f"{package.name} holds no kernel image")


def apt_options(root: Path, arch: str) -> list[str]:
    for part in ("state/lists/partial", "cache/archives/partial"):
        (root / part).mkdir(parents=True)
    settings = {
        "APT::Architecture": arch,
        "APT::Architectures": arch,
        "Dir::State": root / "state",
        "Dir::State::status": "/dev/null",
        "Dir::Cache": root / "cache",
        # The sandbox user of apt cannot write into our directory.
        "APT::Sandbox::User": "root",
    }
    return [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]


def largest_btf(image: bytes) -> bytes:
    """The kernel's BTF, in the image itself or in what is compressed in it."""
    found = max(btf_sections(image), key=len, default=b"")
    if len(found) >= KERNEL_BTF_BYTES:
        return found
    for payload in payloads(image):
        found = max(btf_sections(payload), key=len, default=b"")
        if len(found) >= KERNEL_BTF_BYTES:
            return found
    raise SystemExit("the kernel image holds no BTF")


def btf_sections(data: bytes) -> Iterator[bytes]:
    start = data.find(BTF_START)
    while start >= 0:
        head = data[start : start + 24]
        if len(head) == 24:
            types, strings, string_bytes = struct.unpack_from("<III", head, 12)
            end = start + 24 + strings + string_bytes
            if types == strings and end <= len(data):
                yield data[start:end]
        start = data.find(BTF_START, start + 1)


def payloads(image: bytes) -> Iterator[bytes]:
    """What unpacks from each place that looks like the start of compressed data."""
    for magic, unpack in (
        (b"\xfd7zXZ\x00", lambda data: lzma.LZMADecompressor().decompress(data)),
        (b"\x1f\x8b\x08", lambda data: zlib.decompressobj(wbits=31).decompress(data)),
        (b"\x28\xb5\x2f\xfd", through("zstd", "-dcq")),
        (b"\x02\x21\x4c\x18", through("lz4", "-dcq")),
    ):
        start = image.find(magic)
        while start >= 0:
            try:
                data = unpack(image[start:])
            except (lzma.LZMAError, zlib.error):
                data = b""
            if data:
                yield data
            start = image.find(magic, start + 1)


def through(*command: str) -> Callable[[bytes], bytes]:
    def unpack(data: bytes) -> bytes:
        # It fails at what follows the compressed data; what it wrote until then is good.
        return subprocess.run(command, input=data, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout

    return unpack


def run(*command: str, cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{command[0]} failed: {done.stderr.strip()}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
