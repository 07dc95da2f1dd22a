"""The script that writes vmlinux.h finds the types inside a kernel image."""

import gzip
import importlib.util
import lzma
import random
import struct
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent.parent / "sdk" / "vmlinux.py"
spec = importlib.util.spec_from_file_location("sdk_vmlinux", SCRIPT)
assert spec and spec.loader
vmlinux = importlib.util.module_from_spec(spec)
spec.loader.exec_module(vmlinux)


def btf(size: int) -> bytes:
    types, strings = bytes(size // 2), bytes(size - size // 2)
    return struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(strings)) + types + strings


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


SMALL, KERNEL = btf(1000), btf(vmlinux.KERNEL_BTF_BYTES)


@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress], ids=["plain", "gzip", "xz"])
def test_the_kernels_types_are_found_whatever_the_image_is_packed_with(pack):
    image = noise(5000) + pack(noise(777) + SMALL + noise(333) + KERNEL + noise(555)) + noise(4000)

    assert vmlinux.largest_btf(image) == KERNEL


def test_an_image_without_types_is_refused():
    with pytest.raises(SystemExit, match="no BTF"):
        vmlinux.largest_btf(noise(5000) + SMALL + gzip.compress(noise(100)))


def test_types_that_reach_over_the_end_are_none():
    assert list(vmlinux.btf_sections(noise(100) + SMALL[:-1])) == []
