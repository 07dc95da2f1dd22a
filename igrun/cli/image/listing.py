"""`ig image list`, `tag`, `remove` and `prune`: the names in the local store."""

from __future__ import annotations

from typing import Any

import click

from igrun.cli.face import Command, Face, say, show
from igrun.cli.image.names import OFFICIAL, anywhere, full_name, present, split, stored, with_digest

COLUMNS = (("Repository", 16), ("Tag", 16), ("Digest", 12), ("Created", 16))
OUTPUT = click.option(
    "-o",
    "--output",
    "output",
    type=click.Choice(["columns", "json", "jsonpretty"]),
    default="columns",
    help="How to print it.",
)


@click.command("list", cls=Command)
@click.option("--no-trunc", is_flag=True, help="Print whole digests.")
@OUTPUT
@click.pass_obj
def list_(face: Face, no_trunc: bool, output: str) -> None:
    """List the images in the local store."""
    face.settings()
    import time

    from igrun.oci.model import CREATED
    from igrun.oci.store import Store

    rows = []
    with Store.open(writable=False) as store:
        for name, descriptor in store.list():
            repository, tag = split(name)
            if not repository:
                continue  # a signature
            digest = descriptor.digest if no_trunc else descriptor.digest.removeprefix("sha256:")[:12]
            created = descriptor.annotations.get(CREATED, "")
            rows.append((repository.removeprefix(OFFICIAL), tag, digest, created))
    if output == "columns":
        now = time.time()
        rows = [(*row[:3], ago(row[3], now)) for row in rows]
        titles = tuple(title.upper() for title, _ in COLUMNS)
        widths = [max(least, *(len(row[i]) for row in (titles, *rows))) for i, (_, least) in enumerate(COLUMNS)]
        for row in (titles, *rows):
            show(" ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)))
        return
    show(as_json([dict(zip((title for title, _ in COLUMNS), row, strict=True)) for row in rows], output))


def as_json(value: Any, output: str) -> str:
    """A value as an output mode of JSON has it."""
    import json

    how: dict[str, Any] = {"indent": 2} if output == "jsonpretty" else {"separators": (",", ":")}
    return json.dumps(value, ensure_ascii=False, **how)


def ago(created: str, now_s: float) -> str:
    """How long ago an RFC 3339 time was, in words; as it is, if it is none."""
    from datetime import datetime

    try:
        then = datetime.fromisoformat(created)
    except ValueError:
        return created
    seconds = max(0, int(now_s - then.timestamp()))
    minutes, hours = seconds // 60, (seconds + 1800) // 3600
    days = hours // 24
    if minutes < 1:
        words = "less than a second" if seconds < 1 else "1 second" if seconds == 1 else f"{seconds} seconds"
    elif minutes < 60:
        words = "about a minute" if minutes == 1 else f"{minutes} minutes"
    elif hours < 48:
        words = "about an hour" if hours <= 1 else f"{hours} hours"
    elif days < 14:
        words = f"{days} days"
    elif days < 60:
        words = f"{days // 7} weeks"
    elif days < 730:
        words = f"{days // 30} months"
    else:
        words = f"{days // 365} years"
    return f"{words} ago"


# ---------------------------------------------------------------------------------------------- tag, remove, prune


@click.command("tag", cls=Command)
@click.argument("source", metavar="SRC", shell_complete=anywhere)
@click.argument("target", metavar="DST")
@click.pass_obj
def tag_(face: Face, source: str, target: str) -> None:
    """Give the image SRC of the local store, or one that comes with igrun, another name, DST."""
    settings = face.settings()
    from igrun.errors import NotFoundError
    from igrun.lookup import adopted
    from igrun.oci.store import Store

    reference = full_name(target, settings)
    with Store.open() as store:
        try:
            descriptor = store.resolve(present(store, source, settings))
        except NotFoundError:
            found = None if "/" in source else adopted(source, store, reference)
            if found is None:
                raise
            descriptor = found
        else:
            store.tag(descriptor, reference)
    say(f"Successfully tagged with {with_digest(reference, descriptor.digest)}")


@click.command("remove", cls=Command)
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True, shell_complete=stored)
@click.pass_obj
def remove_(face: Face, images: tuple[str, ...]) -> None:
    """Remove images from the local store."""
    settings = face.settings()
    from igrun.oci.store import Store

    with Store.open() as store:
        for image in images:
            store.remove(present(store, image, settings))
            say(f"Successfully removed {image}")
