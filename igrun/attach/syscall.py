"""Programs that run once, when they are attached (`syscall`): what one returns is told in the log."""

from __future__ import annotations

from typing import TYPE_CHECKING

from igrun.attach.common import feature, handle_of
from igrun.bpfcall import run_once
from igrun.errors import AttachError, KernelError, UnsupportedError
from igrun.logs import Logger

if TYPE_CHECKING:
    from igrun.host import Target
    from igrun.program import Hook


class Ran:
    """A program that has run. result: what it returned"""

    def __init__(self, result: int) -> None:
        self.result = result

    def close(self) -> None:
        """Nothing is held."""


def places(hook: Hook, target: Target) -> tuple[str, ...]:
    """One."""
    return (hook.program,)


def attach(hook: Hook, place: str) -> Ran:
    """Run it. AttachError; UnsupportedError: the kernel cannot run it."""
    from errno import EINVAL, EOPNOTSUPP

    from igrun.bpfcall import ENOTSUPP

    try:
        result = run_once(handle_of(hook).fd, what=f"run {hook.program!r}")
    except KernelError as error:
        if error.errno in (EOPNOTSUPP, ENOTSUPP):
            raise UnsupportedError(feature(hook), "this kernel cannot run it", since="5.14") from None
        raise AttachError(error.errno or EINVAL, hook.program, hook.section, place) from None
    Logger(__name__).info("program %r ran once and returned %d", hook.program, result)
    return Ran(result)
