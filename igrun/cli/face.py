"""What all commands share: the flags before and after a command, how errors and data are printed, how signals end."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from errno import EPIPE
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import click

from igrun.dataclass import dataclass

if TYPE_CHECKING:
    from igrun.config import Settings
    from igrun.errors import GadgetError


PATIENCE_S = 1.0
"""How long a gadget that is to end waits for whoever reads its text."""


class Usage(click.UsageError):
    """A wrong command line, with a hint of its own."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


@dataclass
class Face:
    """One call of `ig`.

    stop:    ends the gadget that runs; None: none runs yet, or none any more
    signals: SIGINT and SIGTERM so far
    writing: a gadget's text is just being written
    """

    config_file: str = ""
    verbose: bool = False
    stop: Callable[[], None] | None = None
    signals: int = 0
    writing: bool = False

    def write(self, data: bytes) -> None:
        """Print what a gadget shows (see `write`); once it is to end, nobody is waited for."""
        self.writing = True
        try:
            write(data)
        finally:
            self.writing = False

    def settings(self) -> Settings:
        """What the config file and the environment say; also sets up the log as they say."""
        from igrun.config import VERBOSE, Settings

        settings = Settings.read(self.config_file, os.environ)
        self.verbose = self.verbose or settings.value(VERBOSE)
        log_to_stderr(self.verbose)
        return settings

    def failed(self, error: GadgetError) -> int:
        """Print the error, and what the user can do next."""
        if self.verbose:
            import traceback

            traceback.print_exception(error)
        for text in (getattr(error, "output", ""), getattr(error, "log", "") if self.verbose else ""):
            if text:
                say(text.rstrip("\n"))
        say(f"Error: {error}")
        if error.hint:
            say(f"Hint: {error.hint}")
        return 1

    def usage_error(self, error: click.ClickException) -> int:
        """Print what is wrong with the command line."""
        message = error.format_message()
        say(f"Error: {message[:1].lower()}{message[1:].rstrip('.')}")
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "ig"
        say(f"Hint: {error.hint}" if isinstance(error, Usage) else f"Hint: see `{command} --help`")
        return 2


def say(text: str) -> None:
    """Print a line for the user, on stderr."""
    try:
        sys.stderr.buffer.write(text.encode("utf-8", "surrogateescape") + b"\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        pass  # nobody is there to tell


def write(data: bytes) -> None:
    """Print data, all of it, on stdout. BrokenPipeError: whoever read it has gone. GadgetError: it went wrong."""
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(1, rest) :]
        except BrokenPipeError:
            raise
        except OSError as error:
            from igrun.errors import GadgetError

            raise GadgetError(f"writing to standard output: {error.strerror}") from None


def show(text: str) -> None:
    """Print lines of data on stdout."""
    write(text.encode("utf-8", "surrogateescape") + b"\n")


def signals(face: Face) -> None:
    """From now on the first SIGINT or SIGTERM ends what runs, or else the command; the second one ends at once."""
    import signal

    def ended(number: int, frame: object) -> None:
        face.signals += 1
        if face.signals > 1:
            os._exit(1)
        if face.stop is None:
            raise KeyboardInterrupt
        face.stop()
        signal.setitimer(signal.ITIMER_REAL, PATIENCE_S, PATIENCE_S)

    def impatient(number: int, frame: object) -> None:
        # The gadget is to end, and nobody takes its text: a pager that waits for a key, a full pipe.
        if face.writing:
            raise BrokenPipeError(EPIPE, os.strerror(EPIPE))

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, ended)
    signal.signal(signal.SIGALRM, impatient)
    sys.unraisablehook = tell_unraisable


def tell_unraisable(what: sys.UnraisableHookArgs) -> None:
    """Print an exception that code of C did not let through; not KeyboardInterrupt, as `Face.signals` keeps it."""
    if what.exc_type is not KeyboardInterrupt:
        sys.__unraisablehook__(what)


def log_to_stderr(verbose: bool) -> None:
    """Print log records on stderr: igrun's from INFO on, others' from WARNING on; with `verbose` everything."""
    import logging

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            say(f"{record.levelname.capitalize()}: {record.getMessage()}")

    root, own = logging.getLogger(), logging.getLogger("igrun")
    if not any(type(handler).__name__ == Lines.__name__ for handler in root.handlers):
        root.addHandler(Lines())
    root.setLevel(logging.DEBUG if verbose else logging.WARNING)
    own.setLevel(logging.DEBUG if verbose else logging.INFO)
    # A thousand lines for every load; what went wrong comes at a higher level, or with the error.
    logging.getLogger("igrun.libbpf").setLevel(logging.INFO if verbose else logging.WARNING)


# ---------------------------------------------------------------------------------------------- click


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
