"""The dispatchers of XDP programs at interfaces, and their pins in bpffs, as the protocol of libxdp has them."""

from __future__ import annotations

import fcntl
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from ctypes import addressof, create_string_buffer
from errno import ENOENT
from pathlib import Path
from struct import calcsize, pack, unpack
from typing import TYPE_CHECKING

from igrun.attach.dispatch import map_of
from igrun.bpfcall import INFO_BY_FD, LINK_FD_BY_ID, LINK_NEXT_ID, call, id_of, ids_of, program_name, program_of_id
from igrun.dataclass import dataclass
from igrun.errors import KernelError
from igrun.libbpf import PIN_ROOT
from igrun.netlink import XDP_MODES, Netlink

if TYPE_CHECKING:
    from igrun.libbpf import BpfProgram

FOLDER = Path(PIN_ROOT) / "xdp"
DISPATCHER = "xdp_dispatcher"
CONFIG = "=BBBB10I10I10I"
MAGIC, VERSION, SLOTS = 236, 2, 10
OBJ_PIN, OBJ_GET = 6, 7
OURS = 1 << 30  # among the actions, as whoever makes a new dispatcher takes these over; no program returns 30


@dataclass(frozen=True, slots=True)
class Slot:
    """A program in a dispatcher.

    actions: bits of what it may return for the next one to be called, and OURS; flags: XDP_FRAGS or 0
    linked:  its link is pinned; new: loaded for the dispatcher that is being made
    """

    fd: int
    priority: int
    actions: int
    flags: int
    linked: bool = False
    new: BpfProgram | None = None

    @property
    def ours(self) -> bool:
        """Whether it is an igrun's."""
        return bool(self.actions & OURS)


@dataclass(frozen=True, slots=True)
class Found:
    """What is at an interface. dispatcher: a descriptor, -1: nothing; flags: its mode, XDP_FLAGS_*_MODE"""

    dispatcher: int
    flags: int
    slots: tuple[Slot, ...]


@contextmanager
def locked() -> Iterator[None]:
    """Nobody else changes a dispatcher meanwhile. KernelError: bpffs is not there, or not for this process."""
    try:
        with suppress(FileExistsError):
            FOLDER.mkdir(0o700)
        fd = os.open(FOLDER, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise KernelError(error.errno or ENOENT, f"open {FOLDER}") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def current(netlink: Netlink, index: int, stack: ExitStack) -> Found | None:
    """The dispatcher of an interface, and its programs; descriptors are closed with the stack. KernelError.

    None: something else is there, or a dispatcher of another kind, version or file system
    """
    attached = [one for one in netlink.interface(index).xdp if one[0] != "offload"]
    if not attached:
        return Found(-1, 0, ())
    if len(attached) > 1:
        return None
    mode, number = attached[0]
    dispatcher = program_of_id(number)
    stack.callback(os.close, dispatcher)
    if program_name(dispatcher) != DISPATCHER:
        return None
    slots = slots_of(folder(index, id_of(dispatcher)), dispatcher, stack)
    return None if slots is None else Found(dispatcher, XDP_MODES[mode], slots)


def slots_of(place: Path, dispatcher: int, stack: ExitStack) -> tuple[Slot, ...] | None:
    """The programs of a dispatcher, as `current`. place: its pins"""
    with map_of(dispatcher, DISPATCHER) as config:
        value = config.lookup(bytes(4)) if config and config.value_size == calcsize(CONFIG) else None
    if value is None:
        return None
    magic, version, count, _, *numbers = unpack(CONFIG, value)
    if (magic, version) != (MAGIC, VERSION) or not 0 < count <= SLOTS:
        return None
    slots = []
    try:
        for at in range(count):
            fd = opened(place / f"prog{at}-prog")
            stack.callback(os.close, fd)
            actions, priority, flags = (numbers[at + SLOTS * part] for part in range(3))
            slots.append(Slot(fd, priority, actions, flags, is_link(place / f"prog{at}-link")))
    except KernelError as error:
        if error.errno != ENOENT:
            raise
        return None
    return tuple(slots)


def folder(index: int, number: int) -> Path:
    """Where the programs of a dispatcher are pinned. number: its program's"""
    return FOLDER / f"dispatch-{index}-{number}"


def is_link(path: Path) -> bool:
    """Whether a link is pinned there, and not a program."""
    with suppress(KernelError):
        fd = opened(path)
        try:
            return not Path(f"/proc/self/fd/{fd}").readlink().name.endswith("bpf-prog")
        finally:
            os.close(fd)
    return True


def living(slots: Iterable[Slot]) -> list[Slot]:
    """Without those of igruns that have ended: there is no link of theirs, or only that which others have pinned."""
    slots = list(slots)
    if not any(one.ours for one in slots):
        return slots
    links: Counter[int] = Counter()
    for number in ids_of(LINK_NEXT_ID):
        with suppress(KernelError):  # gone meanwhile
            fd = call(LINK_FD_BY_ID, pack("=I", number), f"open link {number}")
            try:
                info = create_string_buffer(16)  # struct bpf_link_info: type, id, prog_id
                call(INFO_BY_FD, pack("=IIQ", fd, len(info), addressof(info)), "ask about a link")
            finally:
                os.close(fd)
            links[unpack("=I", info.raw[8:12])[0]] += 1
    return [one for one in slots if not one.ours or links[id_of(one.fd)] > one.linked]


# ------------------------------------------------------------------------------------------------ pins


def opened(path: Path) -> int:
    """A descriptor of what is pinned. KernelError."""
    text = create_string_buffer(os.fsencode(path))
    return call(OBJ_GET, pack("=QI", addressof(text), 0), f"open {path}")


def pinned(fd: int, path: Path) -> None:
    text = create_string_buffer(os.fsencode(path))
    call(OBJ_PIN, pack("=QI", addressof(text), fd), f"pin {path}")


def places() -> list[tuple[Path, int, int]]:
    """Directories of pins, each with the index of an interface and the number of its dispatcher."""
    found = ((path, re.fullmatch(r"dispatch-(\d+)-(\d+)", path.name)) for path in FOLDER.iterdir())
    return [(path, int(name[1]), int(name[2])) for path, name in found if name]


def unlink(place: Path, at: int, program: int) -> None:
    """Pin a program in the place of its link."""
    ours = place / f"prog{at}-ours"
    ours.unlink(missing_ok=True)
    pinned(program, ours)
    ours.rename(place / f"prog{at}-link")


def unpin(place: Path) -> None:
    """Remove a directory of pins, whatever of it is there."""
    with suppress(FileNotFoundError):
        for one in place.iterdir():
            with suppress(FileNotFoundError):
                one.unlink()
        place.rmdir()
