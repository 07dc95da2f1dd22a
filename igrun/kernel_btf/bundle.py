"""BTF beside images in the tar of `ig image export --btf`: `btfs/<id>/<version>/<machine>/<release>.btf`.

Other tools that read the tar, an OCI image layout, do not look there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path, PurePosixPath

from igrun.errors import GadgetError, ImageError
from igrun.kernel_btf import cache
from igrun.kernel_btf.memory import LARGEST, bounded
from igrun.kernel_btf.names import Kernel, named
from igrun.oci import tar

FOLDER = "btfs"


def members(folder: Path) -> dict[str, bytes]:
    """What an archive gets from the cache: path in it -> bytes. GadgetError: there is nothing, or it is unreadable."""
    found = {}
    for one in cache.kept(folder):
        try:
            found[f"{FOLDER}/{one.kernel.name}.btf"] = cache.read(one.path)
        except (ImageError, OSError) as error:
            raise GadgetError(f"{one.path}: {getattr(error, 'strerror', None) or error}") from None
    if not found:
        hint = "`ig btf fetch` gets it, for other machines too: --id, --version-id, --arch and --release say which"
        raise GadgetError(f"there is no BTF in {folder}", hint=hint)
    return found


def take(path: str | os.PathLike[str], folder: Path) -> list[Kernel]:
    """Put the BTF in an archive into the cache. ImageError: what is there is none; GadgetError: it cannot be kept."""
    taken = []
    for name, data in held(Path(path)):
        kernel = named(Path(name))
        if kernel is None or name != f"{FOLDER}/{kernel.name}.btf":
            raise ImageError(f"{os.fspath(path)}: {name[:200]!r} does not tell a kernel")
        try:
            cache.save(folder, kernel, cache.checked(data, Path(name)))
        except OSError as error:
            raise GadgetError(f"cannot write {error.filename or folder}: {error.strerror}") from None
        taken.append(kernel)
    return taken


def held(path: Path) -> Iterator[tuple[str, bytes]]:
    """Path and bytes of each BTF file in an archive or a folder."""
    if path.is_dir():
        for one in sorted((path / FOLDER).rglob("*.btf")):
            bounded(one.stat().st_size, str(one))
            yield str(one.relative_to(path)), one.read_bytes()
        return
    with ExitStack() as stack:
        fd = stack.enter_context(path.open("rb")).fileno()
        unpacked = tar.unpacked(fd, str(path))
        fd = stack.enter_context(unpacked).fileno() if unpacked else fd
        for name, member in sorted(tar.members(fd, str(path)).items()):
            if PurePosixPath(name).parts[0] == FOLDER:
                bounded(member.size, name)
                yield name, os.pread(fd, min(member.size, LARGEST), member.offset)
