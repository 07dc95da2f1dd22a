"""`ig run` as a command of click: for `ig help run`, for completion, and behind flags that stand before it."""

from __future__ import annotations

from collections.abc import Sequence

import click
from click.shell_completion import CompletionItem

from igrun.cli.terminal import Face


class RunCommand(click.Command):
    """A command that reads its arguments itself: its flags depend on the image."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.params["args"] = tuple(args)
        return []

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        from igrun.cli import complete
        from igrun.cli.running import everywhere

        return [CompletionItem(word) for word in complete.run(ctx.params.get("args", ()), incomplete, everywhere())]


@click.command("run", cls=RunCommand)
@click.pass_obj
def command(face: Face, args: Sequence[str]) -> None:
    """Run a gadget."""
    from igrun.cli.running import run

    run(face, args)
