"""A machine for tests: `ig` with a store of its own, and images to put there."""

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from igrun.image import CONFIG, Objects, pack
from igrun.oci.model import EMPTY, INDEX, MANIFEST, Descriptor, Index, Manifest, Platform, Reference, Referrer
from igrun.oci.store import Store

IG = (sys.executable, "-m", "igrun")
# A mount namespace of its own, where the system's folder is this test's.
APART = 'mount -t tmpfs none /var/lib && mkdir /var/lib/ig && mount --bind "$0" /var/lib/ig && exec "$@"'
UNSHARE = ("unshare", "--mount", "--propagation", "private")
# Runs a command and writes down the most memory that it had. A process's own maximum begins with that of the one which
# started it, so this one in between is small.
USAGE = """
import resource, subprocess, sys
status = subprocess.run(sys.argv[2:]).returncode
open(sys.argv[1], "w").write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
sys.exit(status)
"""


@dataclass
class Said:
    """What a command said."""

    code: int
    out: str
    err: str


@dataclass
class Ig:
    """The command `ig` as root, with /var/lib/ig and HOME of its own.

    folder: what it sees as /var/lib/ig
    """

    folder: Path
    home: Path
    env: dict[str, str] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        """Its image store."""
        return self.folder / "oci-store"

    def store(self, *, writable: bool = True) -> Store:
        return Store.open(self.root, writable=writable)

    def __call__(self, *arguments: str | Path, **how) -> Said:
        """Call it; anything but success is an AssertionError."""
        said = self.run(*arguments, **how)
        assert said.code == 0, f"ig {' '.join(map(str, arguments))}: exit {said.code}\n{said.err}{said.out}"
        return said

    def run(self, *arguments: str | Path, text: str = "", network: bool = True, within: tuple[str, ...] = ()) -> Said:
        """Call it. within: a command that runs it"""
        process = self.start(*arguments, network=network, within=within)
        out, err = process.communicate(text, timeout=120)
        return Said(process.returncode, out, err)

    def start(
        self, *arguments: str | Path, network: bool = True, within: tuple[str, ...] = ()
    ) -> "subprocess.Popen[str]":
        """Start it: the process becomes `ig` itself, so that a signal or a kill meets that."""
        self.folder.mkdir(parents=True, exist_ok=True)
        unshare = UNSHARE if network else (*UNSHARE, "--net")
        command = [*unshare, "sh", "-c", APART, str(self.folder), *within, *IG, *map(str, arguments)]
        env = {**os.environ, "HOME": str(self.home), **self.env}
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=env)

    def most_kib(self, *arguments: str | Path) -> int:
        """Call it; the most memory it had at once, in KiB."""
        place = self.home / "usage"
        self(*arguments, within=(sys.executable, "-I", "-c", USAGE, str(place)))
        return int(place.read_text())


def put(store: Store, name: str, *layers: bytes, text: bytes = b"name: g\n") -> Descriptor:
    """A gadget image for two architectures, whose programs are these bytes."""
    programs = layers or (b"program for amd64", b"program for arm64")
    objects = {
        architecture: Objects(ebpf=program) for architecture, program in zip(("amd64", "arm64"), programs, strict=False)
    }
    root = pack(store, text, objects, created="2026-01-01T00:00:00Z", builder_version="v1")
    store.tag(root, Reference.parse(name))
    return root


def attach(store: Store, subject: Descriptor, artifact_type: str, tag: str = "") -> Descriptor:
    """Put something about an image into a store. tag: where it is found instead of by its subject"""
    layer = store.write("application/json", b'{"about":"it"}')
    config = store.write(EMPTY, b"{}")
    manifest = Manifest(config, (layer,), {}, artifact_type, None if tag else subject)
    written = store.write(MANIFEST, manifest.to_bytes())
    about = Descriptor(MANIFEST, written.digest, written.size, {}, None, artifact_type)
    store.refer(subject, Referrer(about, tag))
    return about


def large(store: Store, name: str, size: int, layers: int = 1) -> Descriptor:
    """An image for amd64 with so many random bytes in so many layers, which no gadget has."""
    written = tuple(store.write("application/octet-stream", os.urandom(size // layers)) for _ in range(layers))
    config = store.write(CONFIG, b"name: large\n")
    one = store.write(MANIFEST, Manifest(config, written).to_bytes())
    entries = (Descriptor(MANIFEST, one.digest, one.size, {}, Platform(arch)) for arch in ("amd64", "arm64"))
    root = store.write(INDEX, Index(tuple(entries)).to_bytes())
    store.tag(root, Reference.parse(name))
    return root
