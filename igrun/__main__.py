"""`python -m igrun` is `ig`."""

from __future__ import annotations


def main() -> None:
    """Run `ig` with the arguments of the process, and exit."""
    import gc
    import signal

    # What a start makes stays: looking through it again and again took 5 ms.
    gc.set_threshold(100_000)
    # Until the command line has a way of its own, Ctrl-C just ends the process: no traceback of an import.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from igrun.cli import main as ig

    ig()


if __name__ == "__main__":
    main()
