"""`ig version`."""

from __future__ import annotations

import click

from igrun import __version__
from igrun.cli.face import Command, show


@click.command("version", cls=Command)
def command() -> None:
    """Print the version."""
    show(f"v{__version__}")
