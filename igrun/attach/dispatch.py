"""Programs of igrun's own that stand before a gadget's: they say where a packet was seen, and end what has no owner."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import addressof, create_string_buffer
from struct import pack, unpack_from
from typing import Protocol

from igrun import data
from igrun.bpfcall import INFO_BY_FD, call
from igrun.bpfmap import BpfMap
from igrun.errors import GadgetError
from igrun.host import GOARCH
from igrun.libbpf import BpfObject, BpfProgram

NETNS = "netns"
FIRST = pack("=I", 0)
MAP_FD_BY_ID = 14
MOST_MAPS = 64


class Called(Protocol):
    """A program in the kernel."""

    @property
    def fd(self) -> int: ...

    @property
    def type(self) -> int: ...

    @property
    def attach_type(self) -> int: ...


class Dispatcher:
    """A program that calls another one through the only entry of a map. fd: of the program.

    The kernel empties the map when its last descriptor is closed, even if this process is killed.
    """

    def __init__(self, object_: BpfObject, program: BpfProgram) -> None:
        self._object = object_
        self.fd = program.fd

    @classmethod
    def load(cls, file: str, program: str, called: Called, *, netns: int = 0) -> Dispatcher:
        """Load it for a program, whose type it gets. KernelError.

        file, program: of igrun's own; netns: inode number of a network namespace, that the program gets in cb[0]
        """
        object_ = BpfObject.open(own(file), file)
        try:
            for name, handle in object_.programs.items():
                handle.leave_out(name != program)
            ours = object_.programs[program]
            ours.set_type(called.type, called.attach_type)
            constants = object_.section(".rodata")
            if constants:
                constants.write(0, pack("=I", netns & 0xFFFFFFFF))
            object_.load()
            (array,) = (one for one in object_.maps.values() if one.name.endswith("tail_call"))
            array.loaded().update(FIRST, pack("=i", called.fd))
        except BaseException:
            object_.close()
            raise
        return cls(object_, ours)

    def close(self) -> None:
        """Unload. Again: nothing."""
        self._object.close()


@contextmanager
def map_of(program: int, name: str, kind: int = 0) -> Iterator[BpfMap | None]:
    """The first map (of that type, BPF_MAP_TYPE_*) that a program uses; None: it has none. KernelError.

    program: a descriptor; name: what the map is called in messages
    """
    for number in map_ids(program):
        fd = call(MAP_FD_BY_ID, pack("=I", number), f"open map {number}")
        try:
            one = BpfMap.of_fd(fd, name)
            if kind in (0, one.type):
                yield one
                return
        finally:
            os.close(fd)
    yield None


def map_ids(program: int) -> list[int]:
    """Numbers of the maps of a program, by its descriptor. KernelError."""
    ids = create_string_buffer(4 * MOST_MAPS)
    # the head of struct bpf_prog_info, up to nr_map_ids and where they go
    info = create_string_buffer(bytes(52) + pack("=IQ", MOST_MAPS, addressof(ids)), 64)
    call(INFO_BY_FD, pack("=IIQ", program, len(info), addressof(info)), "ask about a program")
    (count,) = unpack_from("=I", info, 52)
    return list(unpack_from(f"={min(count, MOST_MAPS)}I", ids))


def own(name: str) -> bytes:
    """The object `bpf/<name>.bpf.c` for this machine. GadgetError: it was not packaged."""
    machine = os.uname().machine
    found = data.find(f"bpf/{GOARCH.get(machine, machine)}/{name}.bpf.o")
    if found is None:
        hint = "install igrun with pip; a checkout gets them by `pip install -e .`"
        raise GadgetError(f"igrun's own BPF program {name!r} is not here", hint=hint)
    return found.read_bytes()
