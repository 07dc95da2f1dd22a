"""The command `ig`.

Subcommands are imported when they are called, so that `ig --help` imports click alone, and `ig run` not even that.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from igrun.cli.terminal import Face, Usage, at_rest, signals

COMMANDS = {
    "btf": "Get, list and import BTF for kernels that were built without it",
    "check": "Tell whether an image will run on this machine, and if not, why",
    "config": "Show the default or the current configuration",
    "completion": "Print the script that completes commands in a shell",
    "help": "Help about any command",
    "image": "Build, move, sign, inspect and remove gadget images",
    "login": "Log in to a registry",
    "logout": "Log out from a registry",
    "replay": "Show what ig run --record wrote",
    "run": "Run a gadget",
    "version": "Print the version",
}
COMPLETE = "_IG_COMPLETE"
ABOUT = """See what this machine, its containers and their processes are really doing.

A gadget is an eBPF program in an OCI image. `ig run trace_open --host` shows the files that processes open;
`ig run trace_open --help` shows the flags of that gadget.
"""


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run `ig` with these arguments (None: those of the process) and exit.

    Exit codes: 0 done, a timeout and the first Ctrl-C among it; 1 an error; 2 a wrong command line; 130 ended before a
    gadget ran.
    """
    open_standard_files()
    face = Face()
    signals(face)
    try:
        code = call(face, list(sys.argv[1:] if args is None else args))
        sys.stdout.flush()
    except BrokenPipeError:
        # The interpreter flushes once more at its end, into nothing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = 0
    at_rest()
    sys.exit(code)


def open_standard_files() -> None:
    """Put /dev/null in the place of standard input, output and error where the caller closed them.

    Else what is opened next, a BPF map perhaps, takes the number, and with it the text for the user.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets the lowest free number: this one
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))


def call(face: Face, args: list[str]) -> int:
    """The exit code of one call of `ig`; errors are printed."""
    from igrun.errors import GadgetError

    try:
        if args[:1] != ["run"] or COMPLETE in os.environ:
            return through_click(face, args)
        from igrun.cli.running import run

        run(face, args[1:])
    except Usage as error:
        return face.wrong(error.message, error.hint or "see `ig run --help`")
    except GadgetError as error:
        return face.failed(error)
    except BrokenPipeError:
        raise
    except OSError as error:
        # From where nobody can do anything about it: no descriptor is left, a disk fails.
        failure = GadgetError(f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error))
        failure.__cause__ = error
        return face.failed(failure)
    except KeyboardInterrupt:
        return 130
    return 0


def through_click(face: Face, args: list[str]) -> int:
    """The exit code of a call that click reads."""
    import click

    from igrun.cli.face import Lazy

    group = Lazy("ig", COMMANDS, help=ABOUT)
    try:
        if COMPLETE in os.environ:
            from click.shell_completion import shell_complete

            return shell_complete(group, {}, "ig", COMPLETE, os.environ[COMPLETE])
        with group.make_context("ig", args, obj=face) as context:
            group.invoke(context)
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.ClickException as error:
        context_of = getattr(error, "ctx", None)
        return face.wrong(error.format_message(), f"see `{context_of.command_path if context_of else 'ig'} --help`")
    except click.Abort:
        return 130
    return 0
