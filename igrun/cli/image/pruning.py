"""`ig image prune`."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import click

from igrun.cli.face import Command, Face, say, show
from igrun.cli.image.listing import OUTPUT, as_json
from igrun.cli.progress import size


@click.command("prune", cls=Command)
@click.option("--cache", "caches", is_flag=True, help="Delete what igrun keeps to be quicker, and no images.")
@click.option("--dry-run", is_flag=True, help="Only tell what would be deleted.")
@OUTPUT
@click.pass_obj
def prune_(face: Face, caches: bool, dry_run: bool, output: str) -> None:
    """Delete what no name leads to in the local store: images without a name, what is about them, broken downloads.

    Named images stay; `ig image remove` takes their names away.
    """
    face.settings()
    from igrun.errors import GadgetError
    from igrun.oci.prune import Freed
    from igrun.oci.store import Store

    if caches:
        freed = Freed(size=emptied(cache(), dry_run=dry_run))
    else:
        with Store.open(writable=not dry_run) as store:
            freed = store.prune(dry_run=dry_run)
    if freed.busy:
        raise GadgetError("another process writes to the image store", hint="try again when it has ended")
    if output != "columns":
        about = {"Images": list(freed.images), "Blobs": freed.blobs, "Size": freed.size, "DryRun": dry_run}
        show(as_json(about, output))
        return
    for digest in freed.images:
        say(f"{'Would delete' if dry_run else 'Deleted'} {digest}")
    if freed.images or freed.blobs or freed.size:
        say(f"{'Would free' if dry_run else 'Freed'} {size(freed.size)}")
    else:
        say("Nothing to delete")


def cache() -> Path:
    """Where this user's caches are."""
    return Path("/var/cache/ig") if os.geteuid() == 0 else Path.home() / ".cache" / "ig"


def emptied(folder: Path, *, dry_run: bool) -> int:
    """Delete everything in a folder; the bytes of its files. GadgetError: that cannot be done."""
    from shutil import rmtree

    from igrun.errors import GadgetError

    found = (Path(path, name).lstat() for path, _, names in os.walk(folder) for name in names)
    count = sum(status.st_size for status in found if stat.S_ISREG(status.st_mode))
    try:
        for entry in list(folder.iterdir()) if folder.is_dir() and not dry_run else ():
            if entry.is_dir() and not entry.is_symlink():
                rmtree(entry)
            else:
                entry.unlink()
    except OSError as error:
        raise GadgetError(f"cannot delete {error.filename or folder}: {error.strerror}") from None
    return count
