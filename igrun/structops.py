"""Structs of functions that a program gives to the kernel (struct_ops), as links where the kernel has them."""

from __future__ import annotations

from errno import EINVAL

from igrun.bpflib import library
from igrun.bpfmap import BpfMap
from igrun.errors import KernelError
from igrun.libbpf import BpfObject, ObjectMap

ARRAY, STRUCT_OPS_MAP = 2, 26  # BPF_MAP_TYPE_*
F_LINK = 1 << 13  # BPF_F_LINK
LINKED, PLAIN = b".struct_ops.link\0", b".struct_ops\0"
# What a section of a program that may sleep begins with -> as many bytes that every libbpf knows
SLEEPING = {b"struct_ops.s/": b"struct_ops/s_", b"struct_ops.s\0": b"struct_ops\0\0\0"}


def with_struct_ops(elf: bytes) -> bytes:
    """The object with its section `.struct_ops.link` called `.struct_ops`, if libbpf does not know the first.

    What is in it is a link all the same (see `link_struct_ops`). Nor does libbpf before 1.2 know `struct_ops.s`;
    whether a program sleeps is told to it by its flag.
    """
    sleeping = [name for name in SLEEPING if name in elf]
    if LINKED not in elf and not sleeping:
        return elf
    lib = library()
    known = (lib.libbpf_major_version(), lib.libbpf_minor_version()) >= (1, 2)
    for name in sleeping if not known else ():
        elf = elf.replace(name, SLEEPING[name])
    if known and has_links():
        return elf
    # Whole names in the string tables of ELF and BTF: `.rel.struct_ops.link` ends so too.
    return elf.replace(LINKED, PLAIN.ljust(len(LINKED), b"\0"))


def link_struct_ops(object_: BpfObject, *, used: bool) -> None:
    """Make them links, which end with the process, if this kernel has such. used: a program of theirs is loaded"""
    for map_ in object_.maps.values():
        if map_.type != STRUCT_OPS_MAP:
            continue
        if not used:
            leave_out(map_)
        elif has_links():
            map_.add_flags(F_LINK)


def leave_out(map_: ObjectMap) -> None:
    """Do not give this struct to the kernel, nor look for it there."""
    # Of a struct that is not created libbpf before 1.4 wants the kernel's BTF all the same, and reads a null pointer
    # where there is none.
    map_.set(type=ARRAY)
    map_.leave_out()


def has_links() -> bool:
    """Ask the kernel for BPF_F_LINK, which came with Linux 6.4 (68b04864ca42)."""
    try:
        BpfMap.create(STRUCT_OPS_MAP, "probe", 4, 64, 1, flags=F_LINK, kernel_type=1).close()
    except KernelError as error:
        # ENOTSUPP: it has no struct with that BTF id, but took the flag
        return error.errno != EINVAL
    return True
