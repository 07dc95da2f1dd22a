"""What all commands but `ig run` are made with: click's, with the flags that stand before or after any command."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from types import MappingProxyType
from typing import Any

import click

from igrun.cli.terminal import Face, Usage, say, show, write

__all__ = ["Command", "Face", "Group", "Lazy", "Usage", "plain_bools", "say", "show", "write"]


def keep_config(context: click.Context, param: click.Parameter, value: str | None) -> None:
    if value is not None and isinstance(context.obj, Face):
        context.obj.config_file = value


def keep_verbose(context: click.Context, param: click.Parameter, value: bool) -> None:
    if value and isinstance(context.obj, Face):
        context.obj.verbose = True


def print_help(context: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        show(context.get_help())
        context.exit()


def shared_options() -> list[click.Parameter]:
    """The flags that stand before or after any command."""
    return [
        click.Option(
            ["--config"],
            metavar="FILE",
            expose_value=False,
            callback=keep_config,
            help="Config file (default ~/.ig/config.yaml).",
        ),
        click.Option(
            ["-v", "--verbose"],
            is_flag=True,
            expose_value=False,
            callback=keep_verbose,
            help="Print debug output, and tracebacks of errors.",
        ),
        click.Option(
            ["-h", "--help"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=print_help,
            help="Show this message and exit.",
        ),
    ]


def plain_bools(params: Sequence[click.Parameter], args: Sequence[str]) -> Iterator[str]:
    """The arguments with bools as click reads them: one that is on by default has a value, any other one has none.

    UsageError: a bool's value is neither true nor false.
    """
    options = [param for param in params if isinstance(param, click.Option)]
    bare = {name for option in options if option.is_flag for name in option.opts}
    valued = {name for option in options if option.type is click.BOOL for name in option.opts} - bare
    rest = iter(args)
    for arg in rest:
        name, equals, text = arg.partition("=")
        if arg == "--":
            yield arg
            yield from rest
        elif equals and name in bare | valued:
            if text.lower() not in ("true", "false"):
                raise click.UsageError(f'invalid argument "{text}" for "{name}" flag: it is true or false')
            if name in valued:
                yield arg
            elif text.lower() == "true":
                yield name
        else:
            yield f"{arg}=true" if arg in valued else arg


class Command(click.Command):
    """A command that also has the shared flags."""

    def __init__(self, name: str | None, **more: Any) -> None:
        super().__init__(name, add_help_option=False, **more)
        self.params += shared_options()

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            plain = list(plain_bools(self.params, args))
        except click.UsageError as error:
            error.ctx = ctx
            raise
        return super().parse_args(ctx, plain)


class Group(click.Group):
    """A group that also has the shared flags, and prints its help when it is called without a command."""

    def __init__(self, name: str | None, **more: Any) -> None:
        more |= {"add_help_option": False, "invoke_without_command": True, "callback": help_alone}
        super().__init__(name, **more)
        self.params += shared_options()

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if not ctx.resilient_parsing and self.get_command(ctx, args[0]) is None:
            from difflib import get_close_matches

            near = get_close_matches(args[0], self.list_commands(ctx), 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise click.UsageError(f'unknown command "{args[0]}" for "{ctx.command_path}"{hint}', ctx)
        return super().resolve_command(ctx, args)


def help_alone() -> None:
    context = click.get_current_context()
    if context.invoked_subcommand is None:
        show(context.get_help())


class Lazy(Group):
    """A group whose commands are in modules beside this one, imported when they are called.

    lazy:  name -> what `--help` says about it; the module `igrun.cli.<name>` holds it as `command`
    homes: name -> `module:attribute`, for those that are elsewhere
    other: second name -> name
    """

    def __init__(
        self,
        name: str,
        lazy: Mapping[str, str],
        homes: Mapping[str, str] = MappingProxyType({}),
        other: Mapping[str, str] = MappingProxyType({}),
        **more: Any,
    ) -> None:
        super().__init__(name, **more)
        self.lazy, self.homes, self.other = lazy, homes, other

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(self.lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        name = self.other.get(cmd_name, cmd_name)
        if name not in self.lazy:
            return None
        module, _, attribute = self.homes.get(name, f"igrun.cli.{name}:command").partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(sorted(self.lazy.items()))
