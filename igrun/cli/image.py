"""`ig image ...`: build, list, inspect, tag and remove gadget images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from igrun.cli.face import Command, Face, Group, say, show, write

if TYPE_CHECKING:
    from igrun.config import Settings
    from igrun.oci.model import Reference
    from igrun.oci.store import Store

command = Group("image", help="Build, list, inspect, tag and remove gadget images.")
COLUMNS = (("Repository", 16), ("Tag", 16), ("Digest", 12), ("Created", 16))
OFFICIAL = "ghcr.io/inspektor-gadget/gadget/"


def stored(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from igrun.cli.complete import images

    return [CompletionItem(name) for name in images(incomplete, bundled=False)]


def anywhere(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from igrun.cli.complete import images

    return [CompletionItem(name) for name in images(incomplete)]


def full_name(text: str, settings: Settings) -> Reference:
    """The full name that a name stands for: a short one begins with the first prefix of the search list."""
    from igrun.lookup import prefixed
    from igrun.oci.model import Reference

    return Reference.parse(text if "/" in text else prefixed(text, settings.search)[0])


def present(store: Store, text: str, settings: Settings) -> str:
    """The full name under which the store has an image. NotFoundError: it has none of that name."""
    from igrun.errors import NotFoundError
    from igrun.lookup import prefixed

    for name in prefixed(text, settings.search) if "/" not in text else ():
        try:
            store.resolve(name)
            return name
        except NotFoundError:
            continue
    name = str(full_name(text, settings))
    store.resolve(name)
    return name


# ---------------------------------------------------------------------------------------------- build


@command.command("build", cls=Command)
@click.argument("path", type=click.Path())
@click.option("-f", "--file", "file", metavar="FILE", help="What to build from (default PATH/build.yaml).")
@click.option("-t", "--tag", "tag", metavar="NAME", default="", help="Name of the image.")
@click.option("-o", "--output", "output", metavar="DIR", help="Existing folder for the compiled objects.")
@click.option("-l", "--local", is_flag=True, help="Use the tools of this machine; so far this is always done.")
@click.option(
    "--update-metadata", is_flag=True, help="Write what the program has and gadget.yaml does not say into it."
)
@click.option("--validate-metadata", type=bool, default=True, metavar="", help="Check gadget.yaml (default true).")
@click.pass_obj
def build(
    face: Face,
    path: str,
    file: str | None,
    tag: str,
    output: str | None,
    local: bool,
    update_metadata: bool,
    validate_metadata: bool,
) -> None:
    """Build the gadget in folder PATH and put its image into the local store."""
    settings = face.settings()
    from igrun.build import build as build_image

    built = build_image(
        path,
        file=file,
        output=output,
        local=local,
        update_metadata=update_metadata,
        validate_metadata=validate_metadata,
        tag=tag,
        reference=lambda text: full_name(text, settings),
    )
    if built.output:
        say(built.output.rstrip("\n"))
    for warning in built.warnings:
        say(f"Warning: {warning}")
    say(f"Successfully built {built}")


# ---------------------------------------------------------------------------------------------- list


@command.command("list", cls=Command)
@click.option("--no-trunc", is_flag=True, help="Print whole digests.")
@click.option("-o", "--output", "output", type=click.Choice(["columns", "json", "jsonpretty"]), default="columns")
@click.pass_obj
def list_(face: Face, no_trunc: bool, output: str) -> None:
    """List the images in the local store."""
    face.settings()
    import json
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
    entries = [dict(zip((title for title, _ in COLUMNS), row, strict=True)) for row in rows]
    show(json.dumps(entries, ensure_ascii=False, **style(output)))


command.add_command(list_, "ls")


def style(output: str) -> dict[str, Any]:
    """How `json.dumps` writes as an output mode wants it."""
    return {"indent": 2} if output == "jsonpretty" else {"separators": (",", ":")}


def split(name: str) -> tuple[str, str]:
    """Repository and tag of a name in the store, ("", "") for what is no image's name."""
    from igrun.errors import InvalidReferenceError
    from igrun.oci.model import Reference

    try:
        reference = Reference.parse(name) if "/" in name else None
    except InvalidReferenceError:
        return "", ""
    return (reference.name, reference.tag) if reference else ("", "")


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


# ---------------------------------------------------------------------------------------------- tag, remove


@command.command("tag", cls=Command)
@click.argument("source", metavar="SRC", shell_complete=stored)
@click.argument("target", metavar="DST")
@click.pass_obj
def tag(face: Face, source: str, target: str) -> None:
    """Give the image SRC of the local store another name, DST."""
    settings = face.settings()
    from igrun.oci.store import Store

    reference = full_name(target, settings)
    with Store.open() as store:
        descriptor = store.resolve(present(store, source, settings))
        store.tag(descriptor, reference)
    say(f"Successfully tagged with {reference.name}:{reference.tag}@{descriptor.digest}")


@command.command("remove", cls=Command)
@click.argument("image", shell_complete=stored)
@click.pass_obj
def remove(face: Face, image: str) -> None:
    """Remove an image from the local store."""
    settings = face.settings()
    from igrun.oci.store import Store

    with Store.open() as store:
        store.remove(present(store, image, settings))
    say(f"Successfully removed {image}")


command.add_command(remove, "rm")


# ---------------------------------------------------------------------------------------------- inspect


@command.command("inspect", cls=Command)
@click.argument("image", shell_complete=anywhere)
@click.option(
    "-o", "--output", "output", type=click.Choice(["json", "jsonpretty", "yaml"]), help="Everything, for programs."
)
@click.option("--extra-info", "key", metavar="KEY", default="", help="Only this part of it, as `oci.manifest`.")
@click.option("--jsonpath", "path", metavar="EXPR", default="", help="Only what stands there: .a.b[0]['c'].")
@click.option("--show-datasources", "sources", is_flag=True, help="Only the data sources.")
@click.option("--pull", type=click.Choice(["always", "missing", "never"]), default="missing", hidden=True)
@click.pass_obj
def inspect(face: Face, image: str, output: str | None, key: str, path: str, sources: bool, pull: str) -> None:
    """Show what an image is for, what it holds and what it prints."""
    settings = face.settings()
    from igrun.cli import inspect as parts
    from igrun.errors import ParamError

    if path and not (key or sources):
        raise ParamError("jsonpath", path, f'jsonpath "{path}" can only be used with extra info or show-datasources')
    if key and sources:
        raise ParamError("extra-info", key, f'extra-info "{key}" and show-datasources cannot be used together')
    found = parts.find(image, settings)
    if not (output or key or sources):
        write(parts.overview(found).encode("utf-8", "surrogateescape"))
        return
    value = parts.selected(found, key, path, sources)
    write(parts.written(value, output or "jsonpretty").encode("utf-8", "surrogateescape"))
