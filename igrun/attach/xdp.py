"""XDP: programs that see packets before the network stack does, one at each interface, or several by a dispatcher."""

from __future__ import annotations

import os
from contextlib import suppress
from errno import EACCES, EBUSY, EEXIST, EINVAL, ENODEV, EPERM
from pathlib import Path
from typing import TYPE_CHECKING

from igrun.attach import libxdp
from igrun.attach.common import handle_of
from igrun.attach.interfaces import Place, namespace, within
from igrun.attach.namespaces import inside
from igrun.bpfcall import link_create, program_name, program_of_id
from igrun.errors import AttachError, KernelError, MetadataError
from igrun.libbpf import BpfLink
from igrun.netlink import XDP_MODES, Netlink

if TYPE_CHECKING:
    from igrun.host import Target
    from igrun.load import Closable
    from igrun.program import Hook

__all__ = ["attach", "namespace", "places"]
XDP = 37  # BPF_XDP
MODE = "xdp.mode"
MODES = tuple(filter(None, XDP_MODES))
HELD = (EBUSY, EEXIST)


def places(hook: Hook, target: Target) -> tuple[Place, ...]:
    """The interfaces of a container, or the one that is named. AttachError."""
    return within(hook, target)


def attach(hook: Hook, place: Place) -> Closable:
    """Attach the program. AttachError, which says who holds the interface; MetadataError: the mode is wrong."""
    mode = hook.options.get(MODE, "")
    if mode and mode not in MODES:
        raise MetadataError(f"programs.{hook.program}.{MODE}", f"{mode!r} is not one of {', '.join(MODES)}")
    try:
        return inside(place.namespace, lambda: linked(hook, place, XDP_MODES[mode]))
    except KernelError as error:
        number = error.errno or EINVAL
        reason, hint = str(error), ""
        if number in HELD:
            reason, hint = held(place)
        elif number in (EPERM, EACCES):
            hint = "CAP_NET_ADMIN (and CAP_SYS_ADMIN, in another network namespace) is needed"
        elif mode:
            hint = f"leave out {MODE}: it is the kernel's choice then"
        raise AttachError(number, hook.program, hook.section, place.name, reason=reason, hint=hint) from None


def linked(hook: Hook, place: Place, flags: int) -> Closable:
    """Attach in this thread's namespace, native where the driver can, beside others where they let us. KernelError."""
    if flags != XDP_MODES["offload"] and (member := libxdp.join(hook, place, flags)):
        return member
    try:
        return alone(hook, place, flags)
    except KernelError as error:
        if flags or error.errno in (*HELD, EPERM, EACCES, ENODEV):
            raise
        # A driver that has XDP may not be able to as things are: too large an MTU, no room in a packet, ...
        flags = XDP_MODES["generic"]
        return libxdp.join(hook, place, flags) or alone(hook, place, flags)


def alone(hook: Hook, place: Place, flags: int) -> Closable:
    """Attach as the only program. KernelError."""
    return BpfLink.of_fd(link_create(handle_of(hook).fd, place.index, XDP, flags=flags, what="refused"))


# ------------------------------------------------------------------------------------------------ who holds it


def held(place: Place) -> tuple[str, str]:
    """Which programs are on the interface, and who has them: a reason and a hint."""
    with suppress(KernelError):
        programs = inside(place.namespace, lambda: attached(place.index))
        if programs:
            names = [f"{name(number)} (id {number}, {mode or 'native'}){owners(number)}" for mode, number in programs]
            return f"it is held by {', '.join(names)}", "end that first; it shares the interface with no other program"
    return "another program holds it", ""


def attached(index: int) -> tuple[tuple[str, int], ...]:
    """Mode and id of the programs on an interface of this thread's namespace."""
    with Netlink() as netlink:
        return netlink.interface(index).xdp


def name(number: int) -> str:
    """What the program is called, in quotes; "a program" if that is not told."""
    with suppress(KernelError):
        fd = program_of_id(number)
        try:
            return repr(program_name(fd))
        finally:
            os.close(fd)
    return "a program"


def owners(number: int) -> str:
    """`of comm (pid)` of the processes that have the program, or a link with it, open; "" if none is found."""
    # A program in a dispatcher has a link that tells what it is in (since Linux 5.13: 441e8c66b23e, "bpf: Return
    # target info when a tracing bpf_link is queried").
    lines = f"prog_id:\t{number}\n", f"target_obj_id:\t{number}\n"
    found = []
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        with suppress(OSError):
            texts = (file.read_text() for file in (process / "fdinfo").iterdir())
            if any(line in text for text in texts for line in lines):
                found.append(f"{(process / 'comm').read_text().strip()} ({process.name})")
    return f" of {', '.join(found)}" if found else ""
