"""When a gadget's sources are from, so that building them again gives the same image."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from igrun.errors import BuildError


def source_time(folder: Path, output: Path | None, env: Mapping[str, str]) -> int:
    """Seconds since 1970: SOURCE_DATE_EPOCH, else the last commit that touches the folder, else the newest file in it.

    output: a folder whose files do not count
    """
    wish = env.get("SOURCE_DATE_EPOCH", "")
    if wish:
        if not (wish.isascii() and wish.isdigit() and len(wish) <= 11):
            raise BuildError(f"SOURCE_DATE_EPOCH is {wish!r}, not a number of seconds")
        return int(wish)
    commit = last_commit(folder, env)
    return commit if commit is not None else newest(folder, output)


def last_commit(folder: Path, env: Mapping[str, str]) -> int | None:
    """The time of the last commit that touches the folder, None if there is none."""
    import subprocess

    # rev-list, because what people configure for `git log` runs programs of their own
    command = ["git", "-C", str(folder), "rev-list", "-1", "--timestamp", "HEAD", "--", "."]
    try:
        done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, env={**env, "LC_ALL": "C"})
    except OSError:
        return None
    words = done.stdout.split()
    return int(words[0]) if done.returncode == 0 and words and words[0].isdigit() else None


def newest(folder: Path, output: Path | None) -> int:
    """The time of the newest file below the folder, in whole seconds."""
    found = 0
    for place, folders, files in os.walk(folder):
        here = Path(place)
        folders[:] = [name for name in folders if name != ".git" and here / name != output]
        if here == output:
            continue
        for name in files:
            try:
                found = max(found, int((here / name).lstat().st_mtime))
            except OSError:
                continue  # gone meanwhile
    return found


def created(epoch_s: int) -> str:
    """RFC 3339, in UTC."""
    from datetime import UTC, datetime

    return datetime.fromtimestamp(epoch_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
