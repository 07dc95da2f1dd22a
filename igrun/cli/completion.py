"""`ig completion bash|zsh|fish`."""

from __future__ import annotations

import click

from igrun.cli.face import Command, show


@click.command("completion", cls=Command)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print the script that completes commands, flags and image names in a shell.

    \b
    bash: ig completion bash > /etc/bash_completion.d/ig
    zsh:  ig completion zsh > "${fpath[1]}/_ig"
    fish: ig completion fish > ~/.config/fish/completions/ig.fish
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    show(kind(context.find_root().command, {}, "ig", "_IG_COMPLETE").source().rstrip("\n"))
