"""Tar archives: what is in one, found without unpacking it; and members that are always written in the same way."""

from __future__ import annotations

import os
from typing import IO, NamedTuple

from igrun.errors import ImageError

BLOCK = 512
MOST_MEMBERS = 100_000
LONGEST_HEADER = 64 << 10  # of a long name or the like
LARGEST_ARCHIVE = 32 << 30  # when unpacked
DENSEST = 200  # how much larger a gzip'ed archive may get; gadgets get 3 to 20 times as large
UNSUSPICIOUS = 64 << 20  # a smaller one may be as dense as it likes


class Member(NamedTuple):
    """Where the bytes of a regular file are in an archive."""

    offset: int
    size: int


def members(fd: int, where: str) -> dict[str, Member]:
    """The regular files of an archive: path (without a leading `./`) -> place.

    ImageError: it is no archive, or one that a layout of images never is: it has links, devices, one path twice, paths
    that lead out of it, files larger than itself, too many files.
    """
    from tarfile import HeaderError, TarInfo

    end = os.fstat(fd).st_size
    found: dict[str, Member] = {}
    long_name = ""
    more: dict[str, str] = {}
    at = 0
    for _ in range(MOST_MEMBERS):
        header = os.pread(fd, BLOCK, at)
        if (at == end and at) or (len(header) == BLOCK and not any(header)):
            return found
        try:
            # surrogateescape: a name may be of any bytes
            info = TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except HeaderError:
            raise ImageError(f"{where} is no tar archive" if not at else f"{where}: a header is damaged") from None
        extended = info.type in (b"x", b"X", b"g", b"L", b"K")
        size = info.size if extended else number(more.get("size"), info.size, where)
        at += BLOCK
        if size < 0 or at + size > end:
            raise ImageError(f"{where} ends inside of a file")
        if extended:
            if size > LONGEST_HEADER:
                raise ImageError(f"{where}: a name or header is longer than {LONGEST_HEADER >> 10} KiB")
            data = os.pread(fd, size, at)
            if info.type == b"L":
                long_name = data.rstrip(b"\0").decode("utf-8", "surrogateescape")
            elif info.type in (b"x", b"X"):
                more = records(data, where)
        else:
            path = safe(long_name or more.get("path") or info.name, where)
            regular = info.type in (b"0", b"\0", b"7") and not any(key.startswith("GNU.sparse") for key in more)
            if not regular and not info.isdir():
                raise ImageError(f"{where}: {path[:200]!r} is no regular file")
            if regular:
                if path in found:
                    raise ImageError(f"{where}: {path[:200]!r} is there twice")
                found[path] = Member(at, size)
            long_name, more = "", {}
        at += (size + BLOCK - 1) // BLOCK * BLOCK
    raise ImageError(f"{where} has more than {MOST_MEMBERS} members")


def safe(path: str, where: str) -> str:
    """A path inside of the archive."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if path.startswith("/") or ".." in parts or "\0" in path:
        raise ImageError(f"{where}: path {path[:200]!r} leads out of it")
    return "/".join(parts)


def records(data: bytes, where: str) -> dict[str, str]:
    """A pax header: lines of `length key=value`."""
    found = {}
    at = 0
    while at < len(data):
        digits, blank, _ = data[at : at + 20].partition(b" ")
        length = int(digits) if blank and digits.isdigit() else 0
        record = data[at : at + length]
        key, equals, value = record[len(digits) + 1 : -1].partition(b"=")
        if len(record) != length or length < len(digits) + 3 or not equals or record[-1:] != b"\n":
            raise ImageError(f"{where}: a pax header is damaged")
        found[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        at += length
    return found


def number(text: str | None, default: int, where: str) -> int:
    """A size in a pax header."""
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ImageError(f"{where}: a pax header is damaged")
    return int(text)


def header(path: str, size: int, mode: int, mtime: int) -> bytes:
    """What stands before the bytes of a file that nobody owns."""
    from tarfile import PAX_FORMAT, TarInfo

    info = TarInfo(path)
    info.size, info.mode, info.mtime = size, mode, mtime
    return info.tobuf(PAX_FORMAT, "utf-8", "surrogateescape")


def padding(size: int) -> bytes:
    """What stands behind the bytes of a file."""
    return bytes(-size % BLOCK)


END = bytes(2 * BLOCK)


def unpacked(fd: int, where: str) -> IO[bytes] | None:
    """The archive in a gzip'ed file, in a file that goes away when it is closed; None if it is not gzip'ed.

    ImageError: it is damaged, or grows beyond all measure.
    """
    if os.pread(fd, 2, 0) != b"\x1f\x8b":
        return None
    import zlib
    from gzip import GzipFile
    from tempfile import TemporaryFile

    largest = min(LARGEST_ARCHIVE, max(UNSUSPICIOUS, DENSEST * os.fstat(fd).st_size))
    place = "/var/tmp" if os.access("/var/tmp", os.W_OK) else None  # /tmp may be memory
    result = TemporaryFile(dir=place)  # noqa: SIM115 - the caller's
    try:
        with open(fd, "rb", closefd=False) as file, GzipFile(fileobj=file) as packed:
            file.seek(0)
            while chunk := packed.read(1 << 20):
                if result.tell() + len(chunk) > largest:
                    raise ImageError(f"{where} unpacks to more than {largest >> 20} MiB", hint="unpack it yourself")
                result.write(chunk)
        result.flush()
    except (EOFError, zlib.error):
        result.close()
        raise ImageError(f"{where} is damaged: it does not unpack") from None
    except OSError as error:
        result.close()
        raise ImageError(f"cannot unpack {where}: {error.strerror or error}") from None
    except BaseException:
        result.close()
        raise
    return result
