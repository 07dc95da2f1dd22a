"""`ig replay FILE [flags of the gadget]`: a recording, shown as its run was."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from igrun.cli.flags import Flags, glance, parse
from igrun.cli.losses import tell_books
from igrun.cli.running import OWN, checked, everywhere, keyed, take_own, terminal_width
from igrun.cli.terminal import Face, Usage, say, write
from igrun.metadata import Param


class ReplayCommand(click.Command):
    """A command that reads its arguments itself: its flags depend on the recording."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.params["args"] = tuple(args)
        return []


@click.command("replay", cls=ReplayCommand)
@click.pass_obj
def command(face: Face, args: Sequence[str]) -> None:
    """Show what ig run --record wrote."""
    from igrun.display import Display
    from igrun.recording import Recording, set_zone
    from igrun.runtime import Gadget, Replay

    first = glance(args, everywhere())
    take_own(face, first.values)
    settings = face.settings()
    wants_help = first.values.get("help", "false") != "false"
    if not first.image:
        if wants_help:
            write(ABOUT.encode())
            return
        raise Usage("which recording?", "see `ig replay --help`")
    with ExitStack() as stack:
        recording = stack.enter_context(Recording(Path(first.image)))
        set_zone(recording, stack)
        gadget = Gadget.of(recording.image, first.values, settings.plugins)
        if wants_help:
            from igrun.cli.describe import about

            write(about(first.image, gadget, OWN, ()).encode("utf-8", "surrogateescape"))
            return
        flags = Flags.of([*((param.key, param) for param in OWN), *keyed(gadget)])
        try:
            line = parse(args, flags)
            if line.words != [first.image]:
                raise Usage(f"unexpected argument: {[*line.words, *line.doubtful][-1]}")
            values = checked(line, flags)
        except Usage as error:
            error.hint = f"`ig replay {first.image} --help` lists the flags of this gadget"
            raise
        own: set[str] = {param.key for param in OWN}
        params: Sequence[Param[Any]] = gadget.params
        every = {**settings.values(params), **{key: text for key, text in values.items() if key not in own}}
        display = Display(face.write, 1, os.isatty(1), terminal_width)
        replay = stack.enter_context(Replay(gadget.with_values(every), recording, display=display))
        face.stop = replay.stop
        stack.callback(setattr, face, "stop", lambda: None)
        replay.show()
        if recording.truncated:
            say(f"Warning: {first.image} has no end: its run was killed, or is not over")
        tell_books(replay, face.verbose)
        replay.fail_if_lost()


ABOUT = """Usage: ig replay FILE [flags of the gadget]

Show what `ig run IMAGE --record FILE` wrote, on any machine and without root: with the same flags the same text, with
others another view of the same records.

  ig run trace_open --host --record opens.rec -t 10
  ig replay opens.rec -o json
  ig replay opens.rec --filter proc.comm==cat --fields fname
  ig replay opens.rec --sql "select proc_comm, count(*) from open group by 1" --sql-window 0
"""
