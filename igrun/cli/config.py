"""`ig config default|view`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from igrun.cli.face import Command, Face, Group, write

if TYPE_CHECKING:
    from igrun.config import Settings

command = Group("config", help="Show the default or the current configuration.")


@command.command("default", cls=Command)
def default() -> None:
    """Print every setting with its default, as a config file."""
    from igrun.config import Settings

    print_tree(Settings())


@command.command("view", cls=Command)
@click.pass_obj
def view(face: Face) -> None:
    """Print the settings in effect: environment over config file over defaults."""
    print_tree(face.settings())


def print_tree(settings: Settings) -> None:
    import yaml

    from igrun.cli.running import IMAGE, shared
    from igrun.config import tree

    write(yaml.safe_dump(tree(settings, (*IMAGE, *shared())), allow_unicode=True).encode())
