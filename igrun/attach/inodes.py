"""Which file is this really? Files of many containers are one file of an image's layer, below their overlays."""

from __future__ import annotations

import os
from ctypes import get_errno
from errno import E2BIG, EINVAL, ESRCH
from pathlib import Path
from struct import Struct, pack
from typing import NamedTuple

from igrun.attach.dispatch import own
from igrun.bpfcall import iter_info, link_create
from igrun.bpflib import check, library
from igrun.clib import PROT_READ, libc
from igrun.errors import GadgetError, KernelError, UnsupportedError
from igrun.libbpf import BpfObject
from igrun.logs import Logger
from igrun.symbols.rooted import filesystem_of

OVERLAYFS = 0x794C7630  # OVERLAYFS_SUPER_MAGIC
TRACE_ITER = 28  # BPF_TRACE_ITER
TRACING = 26  # BPF_PROG_TYPE_TRACING
MAP_PRIVATE = 2
PAGE = 4096
MINOR_BITS = 20  # of a dev_t in the kernel
ANSWER = Struct("=QII")


class Inode(NamedTuple):
    """A file: two are the same if device (as os.makedev makes it) and number are."""

    device: int
    number: int


def inode_of(fd: int) -> Inode:
    """The inode that uprobes in an open file sit on: on overlayfs that of the layer which has the file.

    Where this kernel does not tell that (one since 6.8 or so that lacks BTF), it is the overlay's own, and two
    containers that share a file are taken for two files.
    """
    found = os.fstat(fd)
    seen = Inode(found.st_dev, found.st_ino)
    if filesystem_of(fd) != OVERLAYFS or not found.st_size:
        return seen
    try:
        # What is mapped is the layer's file.
        address = libc().mmap(None, PAGE, PROT_READ, MAP_PRIVATE, fd, 0)
        if address is None or address == (1 << 64) - 1:
            raise KernelError(get_errno(), "map a file")
        try:
            real = in_maps(address)
            return of_vma(address) if real is None or real.device == device_of_mount(fd) else real
        finally:
            libc().munmap(address, PAGE)
    except GadgetError as error:
        Logger(__name__).debug("which layer a file of an overlay is of cannot be told: %s", error)
        return seen


def in_maps(address: int) -> Inode | None:
    """The file that is mapped there, as /proc tells it: up to Linux 6.7 the layer's, since then the overlay's."""
    start = f"{address:x}-"
    with Path("/proc/self/maps").open() as file:
        for line in file:
            if line.startswith(start):
                device, number = line.split(None, 5)[3:5]
                major, _, minor = device.partition(":")
                return Inode(os.makedev(int(major, 16), int(minor, 16)), int(number))
    return None


def device_of_mount(fd: int) -> int:
    """The device of the file system that a file is on: what stat(2) says of files on an overlay may be another one."""
    told = Path(f"/proc/self/fdinfo/{fd}").read_text()
    mount = next((line.split()[1] for line in told.splitlines() if line.startswith("mnt_id:")), "")
    with Path("/proc/self/mountinfo").open() as file:
        for line in file:
            parts = line.split(None, 3)
            if parts[0] == mount:
                major, _, minor = parts[2].partition(":")
                return os.makedev(int(major), int(minor))
    return -1


def of_vma(address: int) -> Inode:
    """The file that is mapped there, told by a program of ours that looks into the kernel. GadgetError."""
    if not Path("/sys/kernel/btf/vmlinux").exists():
        raise UnsupportedError("real inodes", "this kernel has no BTF of its own")
    object_ = BpfObject.open(own("real_inode"), "real_inode")
    try:
        constants = object_.section(".rodata")
        if constants:
            constants.write(0, pack("=Q", address))
        (program,) = object_.programs.values()
        program.set_type(TRACING, TRACE_ITER)
        try:
            program.set_target("task_vma")
        except KernelError as error:
            if error.errno != ESRCH:
                raise
            # Before Linux 5.12 (3a7b35b899de, "bpf: Introduce task_vma bpf_iter") its BTF has no function for it.
            raise UnsupportedError("real inodes", "this kernel has no iterator of mappings", since="5.12") from None
        object_.load()
        # struct bpf_iter_link_info: tid, pid, pidfd
        try:
            link = link_create(program.fd, 0, TRACE_ITER, iter_info(pack("=III", 0, os.getpid(), 0)))
        except KernelError as error:
            if error.errno not in (E2BIG, EINVAL):
                raise
            # Before Linux 6.1 (f0d74c4da1f0, "bpf: Parameterize task iterators.") it cannot be for one process only.
            raise UnsupportedError("real inodes", "this kernel iterates all processes only", since="6.1") from None
        try:
            run = check(library().bpf_iter_create(link), "run an iterator")
            with os.fdopen(run, "rb") as file:
                answer = file.read(ANSWER.size)
        finally:
            os.close(link)
    finally:
        object_.close()
    if len(answer) != ANSWER.size:
        raise GadgetError("it was not among what this process has mapped")
    number, device, _ = ANSWER.unpack(answer)
    return Inode(os.makedev(device >> MINOR_BITS, device & (1 << MINOR_BITS) - 1), number)
