"""The files of an image store: whole writes, bounded reads, locks between processes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from igrun.errors import ImageError, NotFoundError

SYSTEM_ROOT = Path("/var/lib/ig/oci-store")
LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
PATIENCE_S = 30.0  # how long to wait for another process's lock
TEMPORARY = ".igrun"  # how the names of our temporary files end
HINTS = {
    errno.ENOSPC: "free some space on that file system",
    errno.EDQUOT: "free some of your quota",
    errno.EROFS: "mount that file system writable",
    errno.EACCES: "that store is another user's",
    errno.EPERM: "that store is another user's",
}


class Folder:
    """A store's folder. Nothing is created before the first write."""

    def __init__(self, root: Path, *, writable: bool) -> None:
        self.root = root
        self.writable = writable
        self.blobs = root / "blobs" / "sha256"
        self.ingest = root / "ingest"
        self._lease: int | None = None
        self._starting = threading.Lock()
        self._unsynced = True  # whether a blob's name may not last yet

    def close(self) -> None:
        """Let go of the blobs written."""
        if self._lease is not None:
            os.close(self._lease)
            self._lease = None

    def read(self, name: str | Path, largest: int) -> bytes:
        """The content of a regular file of at most so many bytes. NotFoundError, ImageError."""
        path = self.root / name
        fd, status = self.open(path)
        with open(fd, "rb", buffering=0) as file:
            if status.st_size > largest:
                raise ImageError(f"{path} is larger than {largest} bytes")
            try:
                return file.read(status.st_size + 1)
            except OSError as error:
                raise ImageError(f"cannot read {path}: {error.strerror}") from None

    def open(self, path: Path) -> tuple[int, os.stat_result]:
        """A regular file to read. NotFoundError, ImageError."""
        try:
            # not blocking: in another user's store the file may be a pipe
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            raise NotFoundError(f"{path} does not exist") from None
        except OSError as error:
            raise ImageError(f"cannot read {path}: {error.strerror}") from None
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(fd)
            raise ImageError(f"{path} is no regular file")
        return fd, status

    def put(self, path: Path, data: bytes) -> None:
        """Write a whole file so that it is there completely or not at all, even after a crash."""
        temporary = self.ingest / f"{path.name}.{os.getpid()}.{os.urandom(6).hex()}{TEMPORARY}"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            with open(fd, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(fd)
            self.place(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise

    def place(self, temporary: Path, path: Path) -> None:
        """Give a file that is on the disk its name. That of a blob is only made to last before an index names it."""
        if path.parent == self.blobs:
            temporary.rename(path)
            self._unsynced = True
            return
        if self._unsynced:
            self._unsynced = False
            sync_directory(self.blobs)
        temporary.rename(path)
        sync_directory(path.parent)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """For a change: the folders are there, blobs are kept, and what the disk says becomes one clear error."""
        if not self.writable:
            raise ImageError(f"image store {self.root} is read-only")
        try:
            with self._starting:
                if self._lease is None:
                    self._make()
                    self._hold()
            yield
        except OSError as error:
            why = error.strerror or str(error)
            hint = HINTS.get(error.errno or 0, "")
            raise ImageError(f"cannot write to image store {self.root}: {why}", hint=hint) from None

    @contextlib.contextmanager
    def locked(self, how: int) -> Iterator[None]:
        """With index.json.lock held; a reader does without where there is none."""
        create = os.O_RDWR | os.O_CREAT if how == fcntl.LOCK_EX else os.O_RDONLY | os.O_NONBLOCK
        try:
            fd = os.open(self.root / "index.json.lock", create | os.O_CLOEXEC, 0o644)
        except OSError:
            if how == fcntl.LOCK_EX:
                raise
            yield
            return
        try:
            self._lock(fd, how)
            yield
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def alone(self) -> Iterator[bool]:
        """True while nobody else writes blobs. Only with index.json.lock held, and in `writing`."""
        lease = self._lease
        if lease is None:
            yield False
            return
        try:
            fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
        finally:
            # a failed change of a lock loses it
            fcntl.flock(lease, fcntl.LOCK_SH)

    def _make(self) -> None:
        mode = 0o755 if self.root == SYSTEM_ROOT else 0o700
        self.root.parent.mkdir(mode=mode, parents=True, exist_ok=True)
        self.root.mkdir(mode=mode, exist_ok=True)
        self.blobs.mkdir(parents=True, exist_ok=True)
        self.ingest.mkdir(exist_ok=True)
        if not (self.root / "oci-layout").exists():
            self.put(self.root / "oci-layout", LAYOUT)
        if not (self.root / "index.json.lock").exists():
            os.close(os.open(self.root / "index.json.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644))

    def _hold(self) -> None:
        """Keep others from deleting blobs until this store is closed."""
        fd = os.open(self.root / "ingest.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            self._lock(fd, fcntl.LOCK_SH)
        except BaseException:
            os.close(fd)
            raise
        self._lease = fd

    def _lock(self, fd: int, how: int) -> None:
        deadline = time.monotonic() + PATIENCE_S
        pause_s = 0.001
        while True:
            try:
                fcntl.flock(fd, how | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ImageError(
                        f"image store {self.root} is locked by another process", hint="wait until it has ended"
                    ) from None
                time.sleep(pause_s)
                pause_s = min(pause_s * 2, 0.05)


def sync_directory(path: Path) -> None:
    """Make renames in a directory last."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
