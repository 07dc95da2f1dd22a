"""BTF kept on disk, in BTFHub's layout: `<folder>/<id>/<version>/<machine>/<release>.btf`."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from igrun.btf import Btf
from igrun.errors import GadgetError, ImageError
from igrun.kernel_btf.memory import LARGEST, bounded
from igrun.kernel_btf.names import Kernel, named

ARCHIVES = (".btf.tar.xz", ".btf.tar.gz", ".btf.tar")


class Kept(NamedTuple):
    """BTF in the cache."""

    kernel: Kernel
    path: Path
    size: int


def read(path: Path) -> bytes:
    """The bytes of a file there. OSError; ImageError: somebody else may have written it, or it is too large."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(fd, "rb", buffering=0) as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ImageError("no regular file")
        if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
            raise ImageError("others than its owner and root can write it")
        bounded(status.st_size, "it")
        return file.read(LARGEST)


def save(folder: Path, kernel: Kernel, data: bytes) -> Path:
    """Keep it. OSError: that cannot be done; GadgetError: the kernel's name is none."""
    kernel.check()
    path = folder / f"{kernel.name}.btf"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:200]}.{os.urandom(6).hex()}")
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        with open(fd, "wb") as file:
            os.fchmod(fd, 0o644)
            file.write(data)
            file.flush()
            os.fsync(fd)
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    return path


def kept(folder: Path) -> Iterator[Kept]:
    """What is there, by name."""
    for path in sorted(folder.glob("*/*/*/*.btf")):
        kernel = named(path)
        if kernel and not path.name.startswith(".") and path.is_file():
            yield Kept(kernel, path, path.stat().st_size)


# ---------------------------------------------------------------------------------------------- from elsewhere


def files(path: Path) -> Iterator[Path]:
    """The BTF files and archives below a folder, or the one that the path names. GadgetError: there are none."""
    if not path.is_dir():
        if not path.exists():
            raise GadgetError(f"{path}: no such file or folder")
        yield path
        return
    found = False
    for one in sorted(path.rglob("*.btf*")):
        if one.name.endswith((".btf", *ARCHIVES)) and one.is_file() and not one.name.startswith("."):
            found = True
            yield one
    if not found:
        raise GadgetError(f"no *.btf and no *.btf.tar.xz below {path}")


def load(path: Path, release: str = "") -> bytes:
    """The BTF in a file: itself, the only one in an archive, or in an ELF kernel. ImageError: there is none.

    release: of the kernel it is of, as the file in an archive is called; "": whichever it is
    """
    from igrun.kernel_btf import unpack, vmlinux

    try:
        with path.open("rb") as file:
            head = file.read(6)
            if head.startswith(b"\x7fELF"):
                return checked(vmlinux.btf_of(path), path)
            file.seek(0)
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror}") from None
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None
    bounded(len(data), str(path))
    if path.name.endswith(ARCHIVES) or head == unpack.XZ:
        try:
            data = unpack.only_btf(data, release)
        except ImageError as error:
            raise ImageError(f"{path}: {error}") from None
    return checked(data, path)


def checked(data: bytes, path: Path) -> bytes:
    """The bytes. ImageError: they are no BTF."""
    try:
        Btf.parse(data)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None
    return data
