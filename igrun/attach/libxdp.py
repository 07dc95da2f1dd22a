"""Sharing an interface with the XDP programs of others, by the protocol of libxdp (its document protocol.org).

What runs at the interface is a dispatcher, which calls one function for each program; freplace puts the programs in
their place. To add or remove one, a new dispatcher is made with all that are wanted, and takes the place of the old one
at once. In the directory `xdp` of bpffs everybody finds the programs of a dispatcher, and its lock. The first program
has a dispatcher already, so that others can come: those of igruns, and those of libxdp's tools.

libxdp pins the link of each program as well. Ours is not pinned, so that our program ends with this process, even if
that is killed: the place in the dispatcher is empty then, and the next igrun takes it away, with the dispatcher if it
was the last. The program is pinned once more where its link would be, for whoever removes the files.

Whoever makes a new dispatcher pins new links of all the others. An igrun that sees it takes its own to itself; until
then it has the link that it had before. By this the next igrun knows whether it has been killed meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from errno import ENODEV, ENOENT, ENOSPC
from functools import cache
from pathlib import Path
from struct import pack
from typing import TYPE_CHECKING

from igrun.attach.common import handle_of, number_of
from igrun.attach.dispatch import own
from igrun.attach.dispatchers import (
    CONFIG,
    DISPATCHER,
    MAGIC,
    OURS,
    SLOTS,
    VERSION,
    Found,
    Slot,
    current,
    folder,
    living,
    locked,
    opened,
    pinned,
    places,
    slots_of,
    unlink,
    unpin,
)
from igrun.attach.namespaces import inside
from igrun.bpfcall import id_of, link_create, program_ids, program_of_id, target_btf
from igrun.btf import Btf, TypeKind
from igrun.dataclass import replace
from igrun.elf import Elf
from igrun.errors import KernelError, MetadataError
from igrun.extensions import share_maps
from igrun.libbpf import PIN_ROOT, XDP_FRAGS, BpfObject
from igrun.logs import Logger
from igrun.mounts import KINDS, magic
from igrun.netlink import Netlink

if TYPE_CHECKING:
    from igrun.attach.interfaces import Place
    from igrun.libbpf import BpfProgram
    from igrun.program import Hook

LOG = Logger(__name__)
PRIORITY, USUAL_PRIORITY = "xdp.priority", 50
EMPTY, XDP_PASS = 1 << 31, 1 << 2
EXTENSION = 28  # BPF_PROG_TYPE_EXT
BPFFS = KINDS["bpf"][0]


class Member:
    """A program of ours in the dispatcher of an interface."""

    def __init__(self, place: Place, ours: BpfObject, slot: Slot, link: int) -> None:
        self._place: Place | None = place
        self._ours, self._slot, self._link = ours, slot, link

    def refresh(self) -> None:
        """Take to itself the link that somebody has made for it in a new dispatcher."""
        place = self._place
        try:
            if place:
                inside(place.namespace, lambda: self._adopt(place.index))
        except OSError as error:  # the interface is gone, or the way to it, as this process is going to hear
            LOG.debug("%s: %s", place.name if place else "", error)

    def _adopt(self, index: int) -> None:
        with locked(), Netlink() as netlink, ExitStack() as stack:
            found = current(netlink, index, stack)
            if found is None:
                return
            for at, slot in enumerate(found.slots):
                if not slot.linked or id_of(slot.fd) != id_of(self._slot.fd):
                    continue
                place = folder(index, id_of(found.dispatcher))
                link = opened(place / f"prog{at}-link")
                try:
                    unlink(place, at, slot.fd)
                except BaseException:
                    os.close(link)
                    raise
                before, self._link = self._link, link
                os.close(before)

    def close(self) -> None:
        """Make a dispatcher without it, and take it away altogether if it was the last. Again: nothing."""
        place, self._place = self._place, None
        if place is None:
            return
        program = id_of(self._slot.fd)
        try:
            if not inside(place.namespace, lambda: leave(place.index, program)):
                forget(program, whole=False)
        except KernelError as error:
            if error.errno not in (ENODEV, ENOENT):
                raise
            # The interface is gone, or the namespace, or the way to it; the dispatcher is kept by the pins alone.
            forget(program, whole=error.errno == ENODEV)
        finally:
            os.close(self._link)
            self._ours.close()


def join(hook: Hook, place: Place, flags: int) -> Member | None:
    """Put a program into the dispatcher of an interface in this thread's namespace, which is made if there is none.

    flags: the mode that is wanted, 0: any

    None: something else is at the interface, or no dispatcher can be there; KernelError; MetadataError: the priority
    """
    priority = number_of(hook, PRIORITY, USUAL_PRIORITY)
    if priority >= 1 << 32:
        raise MetadataError(f"programs.{hook.program}.{PRIORITY}", "it is too large")
    if magic(Path(PIN_ROOT)) != BPFFS:
        return None
    shared = False
    try:
        with locked(), Netlink() as netlink, ExitStack() as stack:
            sweep(netlink)
            found = current(netlink, place.index, stack)
            if found is None or (found.slots and flags not in (0, found.flags)):
                return None
            slots = living(found.slots)
            shared = bool(slots)
            if len(slots) == SLOTS:
                raise KernelError(ENOSPC, f"the dispatcher of {place.name} has {SLOTS} programs already")
            return joined(netlink, hook, place, priority, replace(found, slots=tuple(slots)), flags)
    except OSError as error:
        if shared:
            raise
        # It may do as the only program: no kernel for arm64 before 6.0 replaces functions, nor do some others; and
        # who is not the machine's root may attach, but not look at what others have.
        LOG.debug("%s: no dispatcher for XDP: %s", place.name, error)
        return None


def joined(netlink: Netlink, hook: Hook, place: Place, priority: int, found: Found, flags: int) -> Member:
    """Put a program beside those that were found. KernelError."""
    handle = handle_of(hook)
    frags = XDP_FRAGS if hook.section.removeprefix("?").startswith("xdp.frags") else 0
    ours = again(handle)
    try:
        new = ours.programs[handle.name]
        slot = Slot(-1, priority, EMPTY | XDP_PASS | OURS, frags, new=new)
        ordered = sorted([*found.slots, slot], key=lambda one: one.priority)  # ours behind its equals
        link = exchange(netlink, place.index, found if found.dispatcher >= 0 else replace(found, flags=flags), ordered)
    except BaseException:
        ours.close()
        raise
    return Member(place, ours, replace(slot, fd=new.fd), link)


def leave(index: int, program: int) -> bool:
    """Take a program out of the dispatcher of an interface in this thread's namespace. KernelError; False: not there"""
    with locked(), Netlink() as netlink, ExitStack() as stack:
        found = current(netlink, index, stack)
        if found is None or program not in [id_of(one.fd) for one in found.slots]:
            return False
        rest = [one for one in living(found.slots) if id_of(one.fd) != program]
        if rest:
            exchange(netlink, index, found, rest)
        else:
            remove(netlink, index, found)
    return True


def forget(program: int, *, whole: bool) -> None:
    """Remove the pins of dispatchers with this program. whole: also where others than igruns have programs in them"""
    with locked():
        for place, _, number in places():
            with ExitStack() as stack, suppress(KernelError):  # others' that is gone: for sweep
                slots = held(place, number, stack)
                ours = [at for at, one in enumerate(slots) if id_of(one.fd) == program]
                others = [one for one in living(slots) if id_of(one.fd) != program]
                for at in ours:
                    unlink(place, at, slots[at].fd)
                if ours and (whole or not others):
                    unpin(place)


def sweep(netlink: Netlink) -> None:
    """Remove what igruns that were killed have left at the interfaces of this thread's namespace, and in bpffs."""
    loaded = set(program_ids())
    for place, index, number in places():
        if number not in loaded:
            unpin(place)
            continue
        with ExitStack() as stack, suppress(KernelError):  # the interface may be of another namespace
            slots = held(place, number, stack)
            alive = living(slots)
            for at, slot in enumerate(slots):
                if slot.linked and slot not in alive:
                    unlink(place, at, slot.fd)
            found = current(netlink, index, stack)
            if found and found.slots and id_of(found.dispatcher) == number and not alive:
                remove(netlink, index, found)


def held(place: Path, number: int, stack: ExitStack) -> tuple[Slot, ...]:
    """The programs in a dispatcher, whose interface may be anywhere. KernelError: it is gone"""
    dispatcher = program_of_id(number)
    stack.callback(os.close, dispatcher)
    return slots_of(place, dispatcher, stack) or ()


def remove(netlink: Netlink, index: int, found: Found) -> None:
    """Take a dispatcher away from an interface."""
    netlink.set_xdp(index, -1, found.flags, found.dispatcher)
    unpin(folder(index, id_of(found.dispatcher)))


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


def exchange(netlink: Netlink, index: int, found: Found, slots: Sequence[Slot]) -> int:
    """Put a new dispatcher in the place of what was found. Returns the link of the new program, -1 if there is none."""
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
        place = folder(index, id_of(program.fd))
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
            netlink.set_xdp(index, program.fd, found.flags, found.dispatcher)
        except BaseException:
            unpin(place)
            if kept >= 0:
                os.close(kept)
            raise
        if found.dispatcher >= 0:
            unpin(folder(index, id_of(found.dispatcher)))
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
