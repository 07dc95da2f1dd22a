"""Archives of BTFHub: one BTF file in a tar in xz, unpacked within bounds."""

from __future__ import annotations

import lzma
import os
from contextlib import ExitStack

from igrun.errors import ImageError
from igrun.kernel_btf.memory import LARGEST, bounded, descriptor
from igrun.oci import tar

XZ = b"\xfd7zXZ\x00"
MEMORY = 192 << 20  # that unpacking may take; xz -9 needs 65 MiB
ROOM = 1 << 20  # what a tar has beside its file


def only_btf(archive: bytes, release: str = "") -> bytes:
    """The BTF file in an archive. ImageError: it is none, is damaged, or holds something else.

    release: of the kernel that it must be of; "": any
    """
    with ExitStack() as stack:
        if archive.startswith(XZ):
            fd = descriptor(decompressed(archive), stack)
        else:
            fd = descriptor(archive, stack)
            unpacked = tar.unpacked(fd, "the archive")
            fd = stack.enter_context(unpacked).fileno() if unpacked else fd
        members = tar.members(fd, "the archive")
        if len(members) != 1:
            raise ImageError(f"the archive has {len(members)} files, not one")
        [(path, member)] = members.items()
        name = path.rpartition("/")[2]
        if not name.endswith(".btf") or (release and name != f"{release}.btf"):
            raise ImageError(f"the archive holds {name[:200]!r}" + (f", not {release}.btf" if release else ""))
        bounded(member.size, "the BTF")
        return os.pread(fd, member.size, member.offset)


def decompressed(data: bytes) -> bytes:
    """What is in an xz file. ImageError: it is damaged, is cut off, or grows beyond all measure."""
    decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MEMORY)
    try:
        result = decompressor.decompress(data, LARGEST + ROOM)
    except lzma.LZMAError as error:
        raise ImageError(f"the archive is damaged ({error})") from None
    if not decompressor.eof:
        if not decompressor.needs_input:
            raise ImageError(f"the archive unpacks to more than {LARGEST >> 20} MiB")
        raise ImageError("the archive is cut off")
    if decompressor.unused_data.strip(b"\0"):
        raise ImageError("something follows the archive")
    return result
