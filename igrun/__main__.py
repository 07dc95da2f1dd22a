"""`python -m igrun` is `ig`."""

from __future__ import annotations


def main() -> None:
    """Run `ig` with the arguments of the process, and exit."""
    import signal

    # Until the command line has a way of its own, Ctrl-C just ends the process: no traceback of an import.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from igrun.cli import main as ig

    ig()


if __name__ == "__main__":
    main()
