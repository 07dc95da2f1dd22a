"""The kernel's functions by name or pattern: those that ftrace knows, and all that kallsyms lists."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from igrun import mounts
from igrun.errors import UnsupportedError

KALLSYMS = Path("/proc/kallsyms")
WILD = frozenset("*?[{")


def is_pattern(text: str) -> bool:
    """True if it may name several functions."""
    return not WILD.isdisjoint(text)


def expression(pattern: str) -> re.Pattern[str]:
    """Of a pattern as in a shell: `*`, `?`, `[a-z]`, and `{one,two}` for a list. ValueError: it is none."""
    out, depth, at = [], 0, 0
    while at < len(pattern):
        sign = pattern[at]
        end = pattern.find("]", at + 2) if sign == "[" else -1
        if end > 0:
            inside = pattern[at + 1 : end].replace("\\", r"\\")
            out.append(f"[^{inside[1:]}]" if inside[0] == "!" else f"[{inside}]")
            at = end
        elif sign == "," and depth:
            out.append("|")
        else:
            depth += {"{": 1, "}": -1}.get(sign, 0)
            if depth < 0:
                raise ValueError("a } without its {")
            out.append({"*": ".*", "?": ".", "{": "(?:", "}": ")"}.get(sign, re.escape(sign)))
        at += 1
    if depth:
        raise ValueError("a { without its }")
    try:
        return re.compile("".join(out))
    except re.error as error:
        raise ValueError(str(error)) from None


def words(pattern: str) -> list[str]:
    """The names that a pattern lists without a wildcard: of `{vfs_read,vfs_write}` both."""
    parts = pattern.removeprefix("{").removesuffix("}").split(",") if pattern.startswith("{") else [pattern]
    return [] if any(is_pattern(part) or "}" in part for part in parts) else parts


def matching(pattern: str) -> tuple[dict[str, list[int]], bool]:
    """Name -> addresses (none where unknown) of the functions that a pattern names, and whether ftrace knows them.

    ValueError: it is no pattern
    """
    wanted = expression(pattern).fullmatch
    found: dict[str, list[int]] = {}
    for file in ("available_filter_functions_addrs", "available_filter_functions"):
        lines = traceable(file)
        if lines is None:
            continue
        for name, address in lines:
            # What stands in the place of a function that was dropped at link time
            if wanted(name) and not name.startswith("__ftrace_invalid_address__"):
                found.setdefault(name, []).extend([address] if address else [])
        break
    else:
        return {name: [address] for name, address in symbols() if wanted(name)}, False
    if found and not all(found.values()):
        for name, address in symbols():
            if name in found and address:
                found[name].append(address)
    return found, True


def traceable(file: str) -> list[tuple[str, int]] | None:
    """Name and address (0: not told) of each function in a file of tracefs; None: there is none."""
    try:
        with mounts.tracefs() as directory:
            text = mounts.read(directory, file)
    except (OSError, UnsupportedError):
        return None
    found = []
    for line in text.splitlines():
        parts = line.split(None, 2)
        if file.endswith("_addrs") and len(parts) > 1:
            found.append((parts[1], int(parts[0], 16)))
        elif parts:
            found.append((parts[0], 0))
    return found


def symbols() -> Iterator[tuple[str, int]]:
    """Name and address of each function in kallsyms; addresses are 0 where the kernel hides them."""
    with KALLSYMS.open() as file:
        for line in file:
            address, kind, name = line.split(None, 3)[:3]
            if kind in "tTwW":
                yield name, int(address, 16)


def functions(like: str) -> list[str]:
    """The functions that begin as `like` does: comparing with all 100,000 takes seconds."""
    return [name for name, _ in symbols() if name.startswith(like[:4])]


@cache
def has_function(name: str) -> bool:
    """True if kallsyms lists it."""
    return any(one == name for one, _ in symbols())
