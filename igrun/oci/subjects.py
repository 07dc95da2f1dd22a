"""Which untagged manifest of a layout is about which image, kept beside a large index.json.

Only the manifests themselves say what they are about. A run that looks for the signature of one image must not read
thousands of them, so what they say is kept in `referrers.cache` for one state of index.json: a line for each manifest,
`<subject> <digest> <size> <media type>`. It only says where to look: whatever it leads to is read and verified.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from zlib import crc32

from igrun.errors import ImageError, NotFoundError
from igrun.oci.entries import LARGEST_INDEX, Entries, ref_name
from igrun.oci.folder import Folder
from igrun.oci.graph import read_link
from igrun.oci.model import DIGEST, Descriptor

NAME = "referrers.cache"
State = tuple[int, ...]  # inode, size and times of index.json
Children = Callable[[str], bytes | None]  # digest -> bytes of a manifest, None if it is gone or damaged


def subjects(entries: Entries, children: Children) -> bytes:
    """The lines for these entries of index.json."""
    lines = set()
    for entry in entries:
        digest, size, kind = entry.get("digest"), entry.get("size"), entry.get("mediaType")
        if ref_name(entry) or not isinstance(digest, str) or not DIGEST.fullmatch(digest):
            continue
        if not isinstance(size, int) or not isinstance(kind, str) or not re.fullmatch(r"[!-~]{1,255}", kind):
            continue
        if subject := read_link(children(digest)).subject:
            lines.add(f"{subject[7:]} {digest[7:]} {size} {kind}\n".encode())
    return b"".join(sorted(lines))


def changed(lines: bytes, before: Entries, after: Entries, children: Children) -> bytes:
    """The lines after a change, reading only the manifests that are new."""
    old, new = untagged(before), untagged(after)
    added = new - old
    more = subjects([entry for entry in after if str(entry.get("digest")) in added], children)
    gone = {digest[7:].encode() for digest in old - new}
    kept = [line for line in lines.splitlines(keepends=True) if line[65:129] not in gone]
    return b"".join(sorted({*kept, *more.splitlines(keepends=True)}))


def untagged(entries: Entries) -> set[str]:
    """The digests of the entries without a name."""
    digests = (entry.get("digest") for entry in entries if not ref_name(entry))
    return {digest for digest in digests if isinstance(digest, str)}


def naming(lines: bytes, subject: str) -> list[Descriptor]:
    """The manifests that are about the image of a digest."""
    found = []
    needle = f"{subject[7:]} ".encode()
    at = 0 if lines.startswith(needle) else lines.find(b"\n" + needle) + 1
    while lines.startswith(needle, at):
        end = lines.index(b"\n", at)
        _, digest, size, kind = lines[at:end].decode().split(" ")
        found.append(Descriptor(kind, f"sha256:{digest}", int(size)))
        at = end + 1
    return found


def kept(folder: Folder, state: State) -> bytes | None:
    """The lines kept for a state of index.json; None: there are none."""
    with contextlib.suppress(NotFoundError, ImageError):
        head, _, lines = folder.read(NAME, LARGEST_INDEX).partition(b"\n")
        if head == title(state, lines):
            return lines
    return None


def keep(folder: Folder, state: State, lines: bytes) -> None:
    """Keep them, if this user may: it only saves time."""
    temporary = folder.root / f".{NAME}.{os.getpid()}.{os.urandom(6).hex()}"
    with contextlib.suppress(OSError):
        if folder.root.stat().st_uid != os.geteuid():
            return
        try:
            temporary.write_bytes(title(state, lines) + b"\n" + lines)
            temporary.rename(folder.root / NAME)
        except OSError:
            temporary.unlink(missing_ok=True)


def title(state: State, lines: bytes) -> bytes:
    """The first line: what the others are valid for."""
    return " ".join(str(one) for one in (1, *state, crc32(lines))).encode()
