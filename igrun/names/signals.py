"""Signal numbers of Linux (the same on amd64 and arm64)."""

from __future__ import annotations

from functools import cache

from igrun.names import numbered

RUNS = (
    (
        1,
        """
        SIGHUP SIGINT SIGQUIT SIGILL SIGTRAP SIGABRT SIGBUS SIGFPE SIGKILL SIGUSR1 SIGSEGV SIGUSR2 SIGPIPE SIGALRM
        SIGTERM SIGSTKFLT SIGCHLD SIGCONT SIGSTOP SIGTSTP SIGTTIN SIGTTOU SIGURG SIGXCPU SIGXFSZ SIGVTALRM SIGPROF
        SIGWINCH SIGIO SIGPWR SIGSYS
    """,
    ),
)


@cache
def names() -> dict[int, str]:
    """Number -> name, ascending."""
    return numbered(RUNS)


def signal_name(number: int) -> str:
    """`SIGTERM`; `signal#N` for 0 and for real-time signals."""
    return names().get(number) or f"signal#{number}"
