"""Images that need no signature here because this machine's root made them.

A file that only root can write, outside the image stores, so that nobody who can write to a store can write there too.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
import time
from pathlib import Path
from typing import Any, Self

from igrun.errors import ImageError
from igrun.oci.model import DIGEST

PLACE = Path("/var/lib/ig/trusted.json")
LARGEST = 4 << 20
MOST = 10_000  # images; the oldest go
PATIENCE_S = 10.0
HINT = "make it root's alone: chown root:root and chmod go-w the file and its folder"


class Provenance:
    """The images made here, by digest. problem: why the file tells nothing, "" if it does or is not there."""

    def __init__(self, path: Path, data: bytes, problem: str) -> None:
        self.path = path
        self.problem = problem
        self._data = data

    @classmethod
    def open(cls, path: Path = PLACE) -> Self:
        """Read the file. It tells nothing if anybody but root could have written it."""
        data, problem = b"", ""
        try:
            refuse_others(path.parent.stat(), path.parent)
            # not blocking: it may be a pipe
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(fd, "rb") as file:
                status = os.fstat(fd)
                refuse_others(status, path)
                if not stat.S_ISREG(status.st_mode) or status.st_size > LARGEST:
                    raise ImageError(f"{path} is no regular file of at most {LARGEST >> 20} MiB")
                data = file.read(LARGEST + 1)
        except FileNotFoundError:
            pass
        except OSError as error:
            problem = f"cannot read {path}: {error.strerror}"
        except ImageError as error:
            problem = str(error)
        return cls(path, data, problem)

    def trusts(self, digest: str, store: Path) -> bool:
        """Whether root made that image here. Of a store that is not root's alone, nothing is trusted.

        store: the folder that the image comes from
        """
        # Only `record` writes the file, and quotes inside of texts have a backslash, so these bytes are a key.
        return bool(DIGEST.fullmatch(digest)) and f'"{digest}":'.encode() in self._data and roots_own(store)

    def record(self, digest: str, why: str, store: Path) -> bool:
        """Remember an image that was just made here. False, and nothing is done: not by root, or not in root's store.

        ImageError: the file cannot be written.
        """
        if os.geteuid() != 0 or not DIGEST.fullmatch(digest) or not roots_own(store):
            return False
        self._change({digest: {"why": why, "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}})
        return True

    def _change(self, more: dict[str, Any]) -> None:
        try:
            self.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            lock = os.open(
                self.path.with_name(self.path.name + ".lock"),
                os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC,
                0o600,
            )
            try:
                held(lock, self.path)
                current = type(self).open(self.path)
                if current.problem:
                    raise ImageError(f"{current.problem}; the image is not remembered as made here", hint=HINT)
                kept = {key: value for key, value in known(current._data).items() if key not in more}
                images = dict(list({**kept, **more}.items())[-MOST:])
                self._data = json.dumps({"version": 1, "images": images}, indent=0).encode()
                replace(self.path, self._data)
            finally:
                os.close(lock)
        except OSError as error:
            raise ImageError(
                f"cannot write {self.path}: {error.strerror}",
                hint="the image is in the store; to run it, sign it or use --verify-image=false",
            ) from None


def roots_own(folder: Path) -> bool:
    """Whether only root can write there."""
    try:
        refuse_others(folder.stat(), folder)
    except (OSError, ImageError):
        return False
    return True


def refuse_others(status: os.stat_result, path: Path) -> None:
    """ImageError: somebody but root can write there."""
    if status.st_uid != 0 or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ImageError(f"{path} can be written by others than root, so it tells nothing", hint=HINT)


def known(data: bytes) -> dict[str, Any]:
    """The images of the file; {} if it is damaged, as then nothing of it can be kept."""
    try:
        images = json.loads(data or b"{}").get("images", {})
    except (ValueError, RecursionError, AttributeError):
        return {}
    return {key: value for key, value in images.items() if DIGEST.fullmatch(key)} if isinstance(images, dict) else {}


def held(lock: int, path: Path) -> None:
    """Take the lock. ImageError: somebody keeps it."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise ImageError(f"{path} is locked by another process", hint="wait until it has ended") from None
            time.sleep(0.005)


def replace(path: Path, data: bytes) -> None:
    """Write the file so that it is there completely or not at all, even after a crash."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(fd)
        temporary.rename(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
