"""Where BTF may be got from, as the params say."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from igrun.config import BTFHUB, BTFHUB_INDEX, PULL
from igrun.dataclass import dataclass
from igrun.errors import ParamError

HUB = "https://github.com/aquasecurity/btfhub-archive/raw/main"
AUTO, NEVER = "auto", "never"


@dataclass(frozen=True)
class Policy:
    """hubs: addresses of archives in BTFHub's layout, asked in order; empty: none is asked, and why

    index: a file with SHA-256 digests of what they have; "": none is checked
    cache: folder of what was fetched or imported
    """

    hubs: tuple[str, ...] = (HUB,)
    why_none: str = ""
    index: str = ""
    cache: Path = Path("/var/cache/ig/btf")

    @classmethod
    def of(cls, values: Mapping[str, str]) -> Self:
        """As the values of params say. ParamError: one is wrong."""
        text = values.get(BTFHUB.key)
        if text is None and values.get(PULL.key) == NEVER:
            text, why = NEVER, "not asked, as --pull is never"
        else:
            why = "not asked, as --btfhub is never"
        hubs = addresses(BTFHUB.default if text is None else text)
        return cls(hubs, "" if hubs else why, values.get(BTFHUB_INDEX.key, BTFHUB_INDEX.default), cache())


def addresses(text: str) -> tuple[str, ...]:
    """The archives that a value of `btfhub` names. ParamError."""
    parts = [part.strip() for part in BTFHUB.parse(text) if part.strip()]
    if NEVER in parts:
        if len(parts) > 1:
            raise ParamError(BTFHUB.key, text, f'invalid value "{text}" as "{BTFHUB.key}": never stands alone')
        return ()
    for part in parts:
        if part != AUTO and not part.startswith(("https://", "http://")):
            problem = f'invalid value "{part}" as "{BTFHUB.key}": auto, never, or addresses that begin with https://'
            raise ParamError(BTFHUB.key, text, problem)
    return tuple(HUB if part == AUTO else part.rstrip("/") for part in parts or [AUTO])


def cache() -> Path:
    """Where this user keeps BTF."""
    return Path("/var/cache/ig/btf") if os.geteuid() == 0 else Path.home() / ".cache" / "ig" / "btf"
