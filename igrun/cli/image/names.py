"""The names of images on command lines."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    from igrun.config import Settings
    from igrun.oci.model import Reference
    from igrun.oci.store import Store

OFFICIAL = "ghcr.io/inspektor-gadget/gadget/"


def stored(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Completes names of the local store."""
    from igrun.cli.complete import images

    return [CompletionItem(name) for name in images(incomplete, bundled=False)]


def anywhere(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Completes names of the local store and of what comes with igrun."""
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


def with_digest(reference: Reference, digest: str) -> str:
    """A name and what it stands for: repository:tag@digest."""
    tag = f":{reference.tag}" if reference.tag else ""
    return f"{reference.name}{tag}@{digest}"


def split(name: str) -> tuple[str, str]:
    """Repository and tag of a name in the store, ("", "") for what is no image's name."""
    from igrun.errors import InvalidReferenceError
    from igrun.oci.model import Reference

    try:
        reference = Reference.parse(name) if "/" in name else None
    except InvalidReferenceError:
        return "", ""
    return (reference.name, reference.tag) if reference else ("", "")
