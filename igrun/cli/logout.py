"""`ig logout REGISTRY`."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

import click

from igrun.cli.face import Command, Face, say
from igrun.cli.options import taking
from igrun.config import AUTHFILE


@click.command("logout", cls=Command)
@click.argument("registry", required=False)
@click.option("-a", "--all", "everywhere", is_flag=True, help="Log out from every registry.")
@taking((AUTHFILE,))
@click.pass_obj
def command(face: Face, registry: str | None, everywhere: bool, given: Mapping[str, str]) -> None:
    """Log out from a registry: forget what `ig login` kept."""
    if bool(registry) == everywhere:
        raise click.UsageError("give a registry or --all" if not registry else "give a registry or --all, not both")
    settings = face.settings()
    from igrun.errors import RegistryError
    from igrun.oci.access import Access
    from igrun.oci.credentials import known, logout

    access = Access.of(settings, given)
    if registry:
        logout(registry, access)
    for one in known(access) if everywhere else ():
        with suppress(RegistryError):  # it is kept in Docker's own file, which is not ours to change
            logout(one, access)
    say("Logout Succeeded")
