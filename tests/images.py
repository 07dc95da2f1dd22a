"""Small images in real stores, for the tests of copies and archives."""

import threading

from igrun.oci.model import INDEX, MANIFEST, Descriptor, Index, Manifest, Referrer
from igrun.oci.store import Store

NAME = "ghcr.io/inspektor-gadget/gadget/trace_open:latest"
SIGNATURE = "application/vnd.dev.cosign.artifact.sig.v1+json"


def image(store: Store, *layers: bytes, config: bytes = b"name: x") -> Descriptor:
    """An index of one manifest of these layers, named NAME."""
    written = tuple(store.write("application/layer", layer) for layer in layers)
    manifest = Manifest(store.write("application/config", config), written)
    one = store.write(MANIFEST, manifest.to_bytes())
    root = store.write(INDEX, Index((one,)).to_bytes())
    store.tag(root, NAME)
    return root


def about(store: Store, subject: Descriptor, text: bytes = b"signature", kind: str = SIGNATURE) -> Descriptor:
    """A referrer: a manifest that names its subject."""
    layer = store.write("application/layer", text)
    manifest = Manifest(store.write("application/config", b"{}"), (layer,), {}, kind, subject)
    descriptor = store.write(MANIFEST, manifest.to_bytes())
    store.refer(subject, Referrer(descriptor))
    return descriptor


def legacy(store: Store, subject: Descriptor, text: bytes = b"signature", suffix: str = ".sig") -> Descriptor:
    """A signature found by its name."""
    manifest = Manifest(store.write("application/config", b"{}"), (store.write("application/layer", text),))
    descriptor = store.write(MANIFEST, manifest.to_bytes())
    store.refer(subject, Referrer(descriptor, f"sha256-{subject.digest[7:]}{suffix}"))
    return descriptor


def blobs(store: Store) -> set[str]:
    return {path.name for path in (store.root / "blobs/sha256").iterdir()}


class Slow:
    """A store whose methods can be replaced, and which remembers what was asked of it."""

    def __init__(self, store: Store, **instead) -> None:
        self.store, self.instead, self.calls = store, instead, []

    def __getattr__(self, name):
        def call(*given):
            self.calls.append((name, *given))
            return (self.instead.get(name) or getattr(self.store, name))(*given)

        return call


class Meter:
    """What a progress bar is told."""

    def __init__(self) -> None:
        self.expected, self.counts, self.finished, self.lock = [], {}, [], threading.Lock()

    def expect(self, descriptor):
        self.expected.append(descriptor)

    def advance(self, descriptor, count):
        with self.lock:
            self.counts[descriptor.digest] = self.counts.get(descriptor.digest, 0) + count

    def done(self, descriptor):
        with self.lock:
            self.finished.append(descriptor.digest)
