"""The uncompressed kernel of a file that boots: inside a bzImage, or as it is."""

import lzma
import struct
import subprocess
import zlib

# What the payload starts with -> the program that unpacks it, where Python's library does not.
XZ, GZIP, LZMA = b"\xfd7zXZ\x00", b"\x1f\x8b", b"\x5d\x00\x00"
PROGRAMS = {b"\x02\x21\x4c\x18": ("lz4", "-dc"), b"\x28\xb5\x2f\xfd": ("zstd", "-dc")}


def vmlinux(image: bytes) -> bytes:
    """Unpack the ELF kernel from a bzImage (Documentation/arch/x86/boot.rst). Raises ValueError if it is none.

    The image of an arm64 kernel (Documentation/arch/arm64/booting.rst) is not packed.
    """
    if image[:4] == b"\x7fELF" or image[0x38:0x3C] == b"ARM\x64":
        return image
    if len(image) < 0x264 or image[0x202:0x206] != b"HdrS":
        raise ValueError("not a bzImage")
    setup_sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    kernel = _unpack(image[start : start + length])
    if kernel[:4] != b"\x7fELF":
        raise ValueError("the payload of the bzImage is no ELF file")
    return kernel


def _unpack(payload: bytes) -> bytes:
    if payload.startswith(XZ):
        return lzma.LZMADecompressor().decompress(payload)
    if payload.startswith(LZMA):
        return lzma.LZMADecompressor(lzma.FORMAT_ALONE).decompress(payload)
    if payload.startswith(GZIP):
        return zlib.decompressobj(wbits=31).decompress(payload)
    for magic, command in PROGRAMS.items():
        if payload.startswith(magic):
            # The build puts the unpacked size behind the stream, in four bytes that are no part of it.
            done = subprocess.run(command, input=payload[:-4], capture_output=True, check=True)
            return done.stdout
    raise ValueError(f"the payload of the bzImage is compressed in an unknown way ({payload[:6].hex()})")
