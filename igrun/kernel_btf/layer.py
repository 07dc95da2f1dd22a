"""The BTFGen layer of an image: a gzip'ed tar of small BTF files, one for each kernel.

Written is the documented layout, `<ID>/<VERSION_ID>/<machine>/<release>.btf`; read is also the flat one of today's
`ig image build`, `./<release>.btf`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack

from igrun.errors import ImageError
from igrun.kernel_btf.memory import bounded, descriptor
from igrun.kernel_btf.names import Kernel
from igrun.oci import tar

LAYER = "the image's BTFGen layer"


def find(layer: bytes, kernel: Kernel) -> tuple[str, bytes]:
    """The path and the bytes of the file for a kernel. ImageError: the layer has none, or is broken."""
    with ExitStack() as stack:
        fd = descriptor(layer, stack)
        unpacked = tar.unpacked(fd, LAYER)
        if unpacked:
            fd = stack.enter_context(unpacked).fileno()
        members = tar.members(fd, LAYER)
        for name in (*kernel.names(), kernel.release):
            member = members.get(f"{name}.btf")
            if member:
                bounded(member.size, f"{name}.btf in {LAYER}")
                return f"{name}.btf", os.pread(fd, member.size, member.offset)
    count = sum(path.endswith(".btf") for path in members)
    raise ImageError(f"it has BTF of {count} kernels, and none of {kernel.names()[0]}")


def write(files: Mapping[str, bytes]) -> bytes:
    """A layer with these files: the same ones give the same bytes."""
    import gzip

    whole = b"".join(
        tar.header(path, len(data), 0o644, 0) + data + tar.padding(len(data)) for path, data in sorted(files.items())
    )
    return gzip.compress(whole + tar.END, 9, mtime=0)
