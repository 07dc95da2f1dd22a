"""Numbers of the kernel's ABI -> their names: errno, signals, system calls, IP protocols, file flags and modes.

Pure data and arithmetic; a name that does not exist gets the text that the ecosystem prints for it.
"""

from __future__ import annotations

from collections.abc import Iterable


def numbered(runs: Iterable[tuple[int, str]]) -> dict[int, str]:
    """Number -> name, out of runs of names: (number of the first, names between blanks)."""
    return {number: name for first, names in runs for number, name in enumerate(names.split(), first)}
