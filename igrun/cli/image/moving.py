"""`ig image pull`, `push` and `copy`: between the local store and registries."""

from __future__ import annotations

from collections.abc import Mapping

import click

from igrun.cli.face import Command, Face, say
from igrun.cli.image.names import full_name, present, stored, with_digest
from igrun.cli.options import policy, taking
from igrun.cli.progress import shown
from igrun.config import ACCESS

REFERRERS = click.option(
    "--referrers",
    type=bool,
    default=True,
    metavar="",
    help="Take what is about it along: signatures, SBOMs, attestations (default true).",
)


@click.command("pull", cls=Command)
@click.argument("image")
@taking(ACCESS)
@click.pass_obj
def pull_(face: Face, image: str, given: Mapping[str, str]) -> None:
    """Take IMAGE, for all architectures and with its signatures, from its registry into the local store.

    Its signature is verified when it runs; `ig image verify` does it now.
    """
    from igrun.lookup import fetch
    from igrun.oci.store import Store

    say(f"Pulling {image}...")
    with shown() as progress, Store.open() as store:
        how = policy(face, given, progress=progress, looking=True)
        reference = full_name(image, how.settings)
        descriptor = fetch(reference, store, how)
    say(f"Successfully pulled {with_digest(reference, descriptor.digest)}")


@click.command("push", cls=Command)
@click.argument("image", shell_complete=stored)
@REFERRERS
@taking(ACCESS)
@click.pass_obj
def push_(face: Face, image: str, referrers: bool, given: Mapping[str, str]) -> None:
    """Send IMAGE of the local store to the registry in its name, with its signatures."""
    from igrun.lookup import repository
    from igrun.oci.copy import copy
    from igrun.oci.model import Reference
    from igrun.oci.store import Store

    say(f"Pushing {image}...")
    how = policy(face, given)
    with shown() as progress, Store.open(writable=False) as store:
        reference = Reference.parse(present(store, image, how.settings))
        with repository(reference, how) as remote:
            descriptor = copy(store, remote, reference, referrers=referrers, progress=progress)
    say(f"Successfully pushed {with_digest(reference, descriptor.digest)}")


@click.command("copy", cls=Command)
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="DST")
@REFERRERS
@taking(ACCESS)
@click.pass_obj
def copy_(face: Face, source: str, target: str, referrers: bool, given: Mapping[str, str]) -> None:
    """Copy the image SRC of one registry to DST of another one or the same, past the local store."""
    from igrun.lookup import repository
    from igrun.oci.copy import copy

    how = policy(face, given)
    old, new = full_name(source, how.settings), full_name(target, how.settings)
    say(f"Copying {source} to {target}...")
    with shown() as progress, repository(old, how) as there, repository(new, how) as here:
        descriptor = copy(there, here, old, new, referrers=referrers, progress=progress)
    say(f"Successfully copied to {with_digest(new, descriptor.digest)}")
