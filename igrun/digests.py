"""SHA-256, for something small without OpenSSL, which module hashlib loads first: that takes 3 ms."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib import import_module
from typing import Protocol

LARGE = 1 << 20
"""Bytes from which on OpenSSL, some times faster, makes up for its loading."""


class Hash(Protocol):
    """A digest being calculated."""

    def update(self, data: bytes, /) -> None: ...

    def hexdigest(self) -> str: ...


def sha256(data: bytes = b"", *, size: int = 0) -> Hash:
    """As `hashlib.sha256`. size: how many bytes will come, about."""
    return maker(len(data) + size < LARGE)(data)


@cache
def maker(small: bool) -> Callable[[bytes], Hash]:
    """What makes a digest. small: without OpenSSL, if this Python has a module for that, as CPython has."""
    for name in ("_sha2", "_sha256") if small else ():  # from 3.12 on; before
        with suppress(ImportError):
            found: Callable[[bytes], Hash] = import_module(name).sha256
            return found
    from hashlib import sha256

    return sha256
