"""Sharing an interface with the XDP programs of others, by the protocol of libxdp (its document protocol.org).

What runs at the interface is a dispatcher, which calls one function for each program; freplace puts the programs in
their place. To add or remove one, a new dispatcher is made with all that are wanted, and takes the place of the old one
at once. In the directory `xdp` of bpffs everybody finds the programs of a dispatcher, and its lock.

libxdp pins the link of each program as well. Ours is not pinned, so that our program ends with this process, even if
that is killed: the place in the dispatcher is empty then. The program is pinned once more where its link would be, for
whoever removes the files; and by this the next igrun knows that it may take it away.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from ctypes import addressof, create_string_buffer
from errno import ENODEV, ENOENT, ENOSPC
from functools import cache
from pathlib import Path
from struct import calcsize, pack, unpack
from typing import TYPE_CHECKING

from igrun.attach.common import handle_of, number_of
from igrun.attach.dispatch import map_of, own
from igrun.attach.namespaces import inside
from igrun.bpfcall import (
    INFO_BY_FD,
    LINK_FD_BY_ID,
    LINK_NEXT_ID,
    call,
    id_of,
    ids_of,
    link_create,
    program_name,
    program_of_id,
    target_btf,
)
from igrun.btf import Btf, TypeKind
from igrun.dataclass import dataclass, replace
from igrun.elf import Elf
from igrun.errors import KernelError, MetadataError
from igrun.extensions import share_maps
from igrun.libbpf import PIN_ROOT, XDP_FRAGS, BpfObject
from igrun.netlink import XDP_MODES, Netlink

if TYPE_CHECKING:
    from igrun.attach.interfaces import Place
    from igrun.libbpf import BpfProgram
    from igrun.program import Hook

FOLDER = Path(PIN_ROOT) / "xdp"
DISPATCHER = "xdp_dispatcher"
CONFIG = "=BBBB10I10I10I"
MAGIC, VERSION, SLOTS = 236, 2, 10
PRIORITY, USUAL_PRIORITY = "xdp.priority", 50
EMPTY, XDP_PASS = 1 << 31, 1 << 2
OBJ_PIN, OBJ_GET = 6, 7
EXTENSION = 28


@dataclass(frozen=True, slots=True)
class Slot:
    """A program in a dispatcher.

    actions: bits of what it may return for the next one to be called; flags: XDP_FRAGS or 0
    ours:    an igrun's, whose link is not pinned; new: loaded for the dispatcher that is being made
    """

    fd: int
    priority: int
    actions: int
    flags: int
    ours: bool = False
    new: BpfProgram | None = None


class Member:
    """A program of ours in the dispatcher of an interface."""

    def __init__(self, place: Place, ours: BpfObject, slot: Slot, link: int) -> None:
        self._place: Place | None = place
        self._ours, self._slot, self._link = ours, slot, link

    def close(self) -> None:
        """Make a dispatcher without it, and take it away altogether if it was the last. Again: nothing."""
        place, self._place = self._place, None
        if place is None:
            return
        try:
            with suppress(FileNotFoundError):  # the namespace is gone
                inside(place.namespace, lambda: leave(place.index, id_of(self._slot.fd)))
        finally:
            os.close(self._link)
            self._ours.close()


def join(hook: Hook, place: Place) -> Member | None:
    """Put a program beside the others of an interface in this thread's namespace; None: they are no dispatcher's.

    KernelError; MetadataError: its priority is wrong
    """
    if not FOLDER.exists():
        return None
    priority = number_of(hook, PRIORITY, USUAL_PRIORITY)
    if priority >= 1 << 32:
        raise MetadataError(f"programs.{hook.program}.{PRIORITY}", "it is too large")
    with ExitStack() as stack:
        stack.enter_context(locked())
        netlink = stack.enter_context(Netlink())
        found = current(netlink, place.index, stack)
        if found is None:
            return None
        old, mode, slots = found
        slots = [one for one in slots if not one.ours or has_link(id_of(one.fd))]
        if len(slots) == SLOTS:
            raise KernelError(ENOSPC, f"the dispatcher of {place.name} has {SLOTS} programs already")
        handle = handle_of(hook)
        flags = XDP_FRAGS if hook.section.removeprefix("?").startswith("xdp.frags") else 0
        ours = again(handle)
        try:
            new = ours.programs[handle.name]
            slot = Slot(-1, priority, EMPTY | XDP_PASS, flags, ours=True, new=new)
            ordered = sorted([*slots, slot], key=lambda one: one.priority)  # ours behind its equals
            link = exchange(netlink, place.index, mode, old, ordered)
        except BaseException:
            ours.close()
            raise
        return Member(place, ours, replace(slot, fd=new.fd), link)


def leave(index: int, program: int) -> None:
    """Take a program out of the dispatcher of an interface in this thread's namespace."""
    with ExitStack() as stack:
        stack.enter_context(locked())
        netlink = stack.enter_context(Netlink())
        try:
            found = current(netlink, index, stack)
        except KernelError as error:
            if error.errno != ENODEV:
                raise
            # The interface is gone; its dispatcher is kept by the pins alone.
            for place in FOLDER.glob(f"dispatch-{index}-*"):
                if program in pinned_programs(place):
                    unpin(place)
            return
        if found is None:
            return
        old, mode, slots = found
        rest = [one for one in slots if id_of(one.fd) != program]
        if len(rest) == len(slots):
            return
        if rest:
            exchange(netlink, index, mode, old, rest)
        else:
            netlink.set_xdp(index, -1, XDP_MODES[mode], old)
            unpin(folder(index, old))


# ------------------------------------------------------------------------------------------------ what there is


@contextmanager
def locked() -> Iterator[None]:
    """Nobody else changes a dispatcher meanwhile."""
    fd = os.open(FOLDER, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def current(netlink: Netlink, index: int, stack: ExitStack) -> tuple[int, str, list[Slot]] | None:
    """The dispatcher of an interface, its mode, and its programs; descriptors are closed with the stack.

    None: there is none, or it is of another kind, version or file system
    """
    attached = [one for one in netlink.interface(index).xdp if one[0] != "offload"]
    if len(attached) != 1:
        return None
    mode, number = attached[0]
    dispatcher = program_of_id(number)
    stack.callback(os.close, dispatcher)
    if program_name(dispatcher) != DISPATCHER:
        return None
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
            fd = opened(folder(index, dispatcher) / f"prog{at}-prog")
            stack.callback(os.close, fd)
            actions, priority, flags = (numbers[at + SLOTS * part] for part in range(3))
            slots.append(Slot(fd, priority, actions, flags, is_ours(folder(index, dispatcher) / f"prog{at}-link")))
    except KernelError as error:
        if error.errno != ENOENT:
            raise
        return None
    return dispatcher, mode, slots


def folder(index: int, dispatcher: int) -> Path:
    """Where the programs of a dispatcher are pinned."""
    return FOLDER / f"dispatch-{index}-{id_of(dispatcher)}"


def is_ours(path: Path) -> bool:
    """True if there is no link where one is expected."""
    with suppress(KernelError):
        fd = opened(path)
        try:
            return Path(f"/proc/self/fd/{fd}").readlink().name.endswith("bpf-prog")
        finally:
            os.close(fd)
    return False


def has_link(program: int) -> bool:
    """True if somebody keeps a program attached by a link."""
    for number in ids_of(LINK_NEXT_ID):
        with suppress(KernelError):  # gone meanwhile
            fd = call(LINK_FD_BY_ID, pack("=I", number), f"open link {number}")
            try:
                info = create_string_buffer(16)  # struct bpf_link_info: type, id, prog_id
                call(INFO_BY_FD, pack("=IIQ", fd, len(info), addressof(info)), "ask about a link")
            finally:
                os.close(fd)
            if unpack("=I", info.raw[8:12])[0] == program:
                return True
    return False


# ------------------------------------------------------------------------------------------------ a new dispatcher


def again(handle: BpfProgram) -> BpfObject:
    """A second look at the object of a program, that shares the maps of the first, with the program as an extension."""
    first = handle.object
    second = BpfObject.open(first.elf, "gadget", first.btf_custom_path)
    try:
        for name, one in second.programs.items():
            one.leave_out(name != handle.name)
        share_maps(second, first)
        second.programs[handle.name].set_type(EXTENSION)
    except BaseException:
        second.close()
        raise
    return second


def exchange(netlink: Netlink, index: int, mode: str, old: int, slots: Sequence[Slot]) -> int:
    """Put a new dispatcher in the place of the old one. Returns the link of the new program, -1 if there is none."""
    kept = -1
    dispatcher = BpfObject.open(own(DISPATCHER), "igrun")
    with ExitStack() as stack:
        stack.callback(dispatcher.close)
        frags = XDP_FRAGS if all(one.flags & XDP_FRAGS for one in slots) else 0
        constants = dispatcher.section(".rodata")
        assert constants
        constants.write(0, config_of(slots, frags))
        program = dispatcher.programs[DISPATCHER]
        program.set_flags(frags)
        dispatcher.load()
        place = folder(index, program.fd)
        place.mkdir()
        try:
            for at, slot in enumerate(slots):
                if slot.new:
                    slot.new.set_target(f"prog{at}", program.fd)
                    slot.new.object.load()
                fd = slot.new.fd if slot.new else slot.fd
                link = link_create(fd, program.fd, 0, target_btf(functions()[f"prog{at}"]), what=f"fill slot {at}")
                if slot.new:
                    kept = link
                else:
                    stack.callback(os.close, link)
                pinned(fd, place / f"prog{at}-prog")
                pinned(fd if slot.new else link, place / f"prog{at}-link")
            netlink.set_xdp(index, program.fd, XDP_MODES[mode], old)
        except BaseException:
            unpin(place)
            if kept >= 0:
                os.close(kept)
            raise
        unpin(folder(index, old))
    return kept


def config_of(slots: Sequence[Slot], frags: int) -> bytes:
    """struct xdp_dispatcher_config."""
    rest = [0] * (SLOTS - len(slots))
    numbers = [
        *(one.actions for one in slots),
        *rest,
        *(one.priority for one in slots),
        *rest,
        *(one.flags for one in slots),
        *rest,
    ]
    return pack(CONFIG, MAGIC, VERSION, len(slots), int(bool(frags)), *numbers)


@cache
def functions() -> dict[str, int]:
    """The functions of our dispatcher, with their numbers in its BTF."""
    elf = Elf(own(DISPATCHER))
    btf = Btf.parse(elf.content(elf.by_name[".BTF"]))
    return {one.name: one.id for one in btf.of_kind(TypeKind.FUNC)}


# ------------------------------------------------------------------------------------------------ pins


def opened(path: Path) -> int:
    """A descriptor of what is pinned. KernelError."""
    text = create_string_buffer(os.fsencode(path))
    return call(OBJ_GET, pack("=QI", addressof(text), 0), f"open {path}")


def pinned(fd: int, path: Path) -> None:
    text = create_string_buffer(os.fsencode(path))
    call(OBJ_PIN, pack("=QI", addressof(text), fd), f"pin {path}")


def pinned_programs(place: Path) -> list[int]:
    """Numbers of the programs that are pinned in a directory."""
    found = []
    for path in place.glob("prog*-prog"):
        fd = opened(path)
        found.append(id_of(fd))
        os.close(fd)
    return found


def unpin(place: Path) -> None:
    """Remove a directory of pins, whatever of it is there."""
    with suppress(FileNotFoundError):
        for one in place.iterdir():
            with suppress(FileNotFoundError):
                one.unlink()
        place.rmdir()
