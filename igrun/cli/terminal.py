"""One call of `ig`: how errors and data are printed, how signals end it; without click, as `ig run` is."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from errno import EPIPE
from typing import TYPE_CHECKING

from igrun.dataclass import dataclass

if TYPE_CHECKING:
    from igrun.config import Settings
    from igrun.errors import GadgetError
    from igrun.sink import Sink


PATIENCE_S = 1.0
"""How long a gadget that is to end waits for whoever reads its text."""


class Usage(Exception):
    """A wrong command line. hint: what to do; "": read the help."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message, self.hint = message, hint


@dataclass
class Face:
    """One call of `ig`.

    stop:    ends the gadget that runs; None: none runs yet, or none any more
    signals: SIGINT and SIGTERM so far
    sink:    where a gadget's text goes; None: no gadget shows anything yet
    writing: a gadget's text is just being written
    """

    config_file: str = ""
    verbose: bool = False
    stop: Callable[[], None] | None = None
    signals: int = 0
    sink: Sink | None = None
    writing: bool = False

    def write(self, data: bytes | memoryview) -> None:
        """Print what a gadget shows (see `write`); once it is to end, nobody is waited for."""
        self.writing = True
        try:
            write(data, self.sink)
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

    def wrong(self, message: str, hint: str) -> int:
        """Print what is wrong with the command line, and what to do."""
        say(f"Error: {message[:1].lower()}{message[1:].rstrip('.')}")
        say(f"Hint: {hint}")
        return 2


def say(text: str) -> None:
    """Print a line for the user, on stderr."""
    try:
        sys.stderr.buffer.write(text.encode("utf-8", "surrogateescape") + b"\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        pass  # nobody is there to tell


def write(data: bytes | memoryview, sink: Sink | None = None) -> None:
    """Print data, all of it, on stdout. BrokenPipeError: whoever read it has gone. GadgetError: it went wrong."""
    if sink is None:
        from igrun.sink import Sink

        sink = Sink(1)
    try:
        sink(data)
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


def at_rest() -> None:
    """Nothing runs any more: stop the timer that a signal has set, which the interpreter's end would not survive."""
    import signal

    signal.setitimer(signal.ITIMER_REAL, 0)


def tell_unraisable(what: sys.UnraisableHookArgs) -> None:
    """Print an exception that code of C did not let through; not KeyboardInterrupt, as `Face.signals` keeps it."""
    if what.exc_type is not KeyboardInterrupt:
        sys.__unraisablehook__(what)


def log_to_stderr(verbose: bool) -> None:
    """Print log records on stderr: igrun's from INFO on, others' from WARNING on; with `verbose` everything."""
    from igrun import logs

    def configure() -> None:
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

    logs.prepare(logs.DEBUG if verbose else logs.INFO, configure)
