"""Loggers that import module logging when there is something to log: it takes 5 ms, a twentieth of a run's start.

Whoever wants records below warnings has imported and configured it, or has said so with `prepare`; so nothing is lost.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType

DEBUG, INFO, WARNING = 10, 20, 30  # as in module logging


class Awaited:
    """What is done when module logging is first needed."""

    level = WARNING
    configure: Callable[[], None] | None = None


class Logger:
    """The logger of a name, as module logging has it."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def log(self, level: int, text: str, *args: object, depth: int = 2) -> None:
        """Log a record. depth: how many calls lie between the line that it is about and module logging."""
        if level >= Awaited.level or "logging" in sys.modules:
            logging().getLogger(self.name).log(level, text, *args, stacklevel=depth)

    def debug(self, text: str, *args: object) -> None:
        self.log(DEBUG, text, *args, depth=3)

    def info(self, text: str, *args: object) -> None:
        self.log(INFO, text, *args, depth=3)

    def warning(self, text: str, *args: object) -> None:
        self.log(WARNING, text, *args, depth=3)


def logging() -> ModuleType:
    """Module logging, configured."""
    import logging

    configure, Awaited.configure = Awaited.configure, None
    if configure:
        configure()
    return logging


def prepare(level: int, configure: Callable[[], None]) -> None:
    """Have module logging configured before the first record of at least this level."""
    Awaited.level, Awaited.configure = level, configure
    if level <= DEBUG or "logging" in sys.modules:
        logging()
