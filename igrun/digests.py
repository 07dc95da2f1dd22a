"""SHA-256, for something small without OpenSSL, which module hashlib loads first: that takes 3 ms."""

from __future__ import annotations

from typing import Protocol

LARGE = 1 << 20
"""Bytes from which on OpenSSL, some times faster, makes up for its loading."""


class Hash(Protocol):
    """A digest being calculated."""

    def update(self, data: bytes, /) -> None: ...

    def hexdigest(self) -> str: ...


def sha256(data: bytes = b"", *, size: int = 0) -> Hash:
    """As `hashlib.sha256`. size: bytes that will come, about."""
    if len(data) + size < LARGE:
        try:
            from _sha2 import sha256 as small  # type: ignore[import-not-found,unused-ignore]  # CPython 3.12
        except ImportError:
            try:
                from _sha256 import sha256 as small  # type: ignore[import-not-found,unused-ignore]
            except ImportError:
                from hashlib import sha256 as small
        found: Hash = small(data)
        return found
    from hashlib import sha256 as large

    return large(data)
