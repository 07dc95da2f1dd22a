"""What to delete of a store that has grown."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import NamedTuple

from igrun.oci.folder import TEMPORARY, Folder
from igrun.oci.graph import Entry, Read, needless


class Freed(NamedTuple):
    """What was deleted, or would be.

    images: digests of the images and signatures without names
    blobs:  how many
    size:   bytes on the disk
    busy:   nothing was done because somebody else writes just now
    """

    images: tuple[str, ...] = ()
    blobs: int = 0
    size: int = 0
    busy: bool = False


class Plan(NamedTuple):
    """entries: what stays in index.json; files: what goes."""

    freed: Freed
    entries: list[Entry]
    files: list[Path]


def plan(folder: Folder, entries: list[Entry], read: Read, old: float) -> Plan:
    """What no name needs: images without names, what is about them, blobs that nothing needs, left-over files.

    entries: of index.json
    read:    digest -> bytes of a manifest, none if it is not there, None if it is damaged: then blobs that nothing
             seems to need may be its own, and stay
    old:     a time; what an unfinished download may still want goes only if it is older
    """
    removal = needless(entries, read)
    files, size, blobs = [], 0, 0
    for place in (folder.blobs, folder.ingest):
        for file in sorted(place.iterdir()) if place.is_dir() else ():
            status = file.lstat()
            if place == folder.ingest:
                goes = file.name.endswith(TEMPORARY) or status.st_mtime < old
            else:
                digest = f"sha256:{file.name}"
                nobodys = removal.needed is not None and digest not in removal.needed
                goes = digest in removal.gone or (nobodys and status.st_mtime < old)
            if goes and not stat.S_ISDIR(status.st_mode):
                files.append(file)
                size += status.st_size
                blobs += place == folder.blobs
    stay = {id(entry) for entry in removal.entries}
    images = tuple(str(entry["digest"]) for entry in entries if id(entry) not in stay)
    return Plan(Freed(images, blobs, size), removal.entries, files)
