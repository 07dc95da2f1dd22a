"""The part of the running kernel's BTF that one object needs, kept from its first run.

libbpf reads and indexes all of /sys/kernel/btf/vmlinux for every load: 28 of the 36 ms that loading trace_open took.
Against the part that `btfgen` cuts out it resolves the same relocations to the same offsets.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from igrun import caches
from igrun.digests import sha256
from igrun.errors import GadgetError
from igrun.host import Host

NOTES = "sys/kernel/notes"  # with the build id, a digest of the kernel's image and so of its BTF


def kept(host: Host, own: Path, elf: bytes) -> bytes | None:
    """What was kept for this object and this kernel; None if nothing was."""
    path = place(host, own, elf)
    return caches.read(path) if path else None


def keep(host: Host, own: Path, elf: bytes) -> None:
    """Cut out what this object needs and keep it. What goes wrong only costs time, at the next load."""
    path = place(host, own, elf)
    if path is None or not caches.writable(path):
        return
    from igrun.btfgen import minimal, relocations

    with suppress(GadgetError, OSError):
        caches.write(path, minimal(own.read_bytes(), [relocations(elf)]))


def place(host: Host, own: Path, elf: bytes) -> Path | None:
    """The file in the cache; None where the kernel does not say which one it is."""
    about = identity(host, own)
    return caches.home() / "btf-parts" / caches.key((*about, sha256(elf).hexdigest())) if about else None


def identity(host: Host, own: Path) -> tuple[bytes | str, ...]:
    """What tells the running kernel's BTF from any other, without reading it; () where the kernel does not say."""
    try:
        notes, size = (host.root / NOTES).read_bytes(), own.stat().st_size
    except OSError:
        return ()
    return (notes, str(size), host.release, host.machine) if notes else ()
