"""`ig help [COMMAND...]`: the same as `ig COMMAND --help`."""

from __future__ import annotations

import click

from igrun.cli.face import Command


@click.command("help", cls=Command)
@click.argument("commands", nargs=-1)
@click.pass_context
def command(context: click.Context, commands: tuple[str, ...]) -> None:
    """Help about any command."""
    root = context.find_root()
    with root.command.make_context("ig", [*commands, "--help"], obj=root.obj) as again:
        root.command.invoke(again)
