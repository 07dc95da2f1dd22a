"""Filters of the clsact qdisc, which the kernel keeps until somebody removes them.

Nothing of a gadget runs once its process is gone, even if that was killed: what stands in a filter is a dispatcher of
igrun's, whose map the kernel empties then. The filter itself says whose it is by its name; the next igrun that adds one
in the same network namespace removes those whose map is empty. That somebody of igrun's added the qdisc is in the name
too, and whoever comes later takes it over: the last one removes the qdisc, if nothing else uses it.
"""

from __future__ import annotations

import os
from errno import EINVAL, ENODEV, ENOENT
from typing import TYPE_CHECKING

from igrun.attach.dispatch import FIRST, map_of
from igrun.bpfcall import id_of, program_of_id
from igrun.errors import KernelError
from igrun.netlink import Filter, Netlink, bpf_options

if TYPE_CHECKING:
    from igrun.attach.interfaces import Place

OURS, OUR_QDISC = "igrun", "igrun+qdisc"
PROG_ARRAY = 3
GONE = (ENODEV, ENOENT, EINVAL)  # the interface, the filter, the qdisc


class Filtered:
    """A filter of ours. It keeps a socket in the network namespace."""

    def __init__(self, netlink: Netlink, index: int, one: Filter, program: int) -> None:
        self._netlink: Netlink | None = netlink
        self._index, self._filter, self._program = index, one, program

    def close(self) -> None:
        """Remove it, and the qdisc if it is ours and not used any more. Again: nothing."""
        netlink, self._netlink = self._netlink, None
        if netlink is None:
            return
        with netlink:
            for one in netlink.filters(self._index):
                here = (one.parent, one.info, one.handle) == (
                    self._filter.parent,
                    self._filter.info,
                    self._filter.handle,
                )
                # Somebody may have removed it, and put another one there.
                if here and one.kind == "bpf" and one.program in (self._program, 0):
                    remove(netlink, self._index, one)
            if self._filter.name == OUR_QDISC:
                remove_unused(netlink, self._index)


def filtered(place: Place, program: int, action: bytes = b"") -> Filtered:
    """Put a dispatcher in a filter of an interface in this thread's namespace. KernelError.

    action: attributes of an action that packets get then; none: what the program returns is done
    """
    netlink = Netlink()
    try:
        clean(netlink)
        added = netlink.add_clsact(place.index)
        ours = added or any(one.name == OUR_QDISC for one in netlink.filters(place.index))
        name = OUR_QDISC if ours else OURS
        try:
            found = netlink.add_filter(place.index, place.direction, "bpf", bpf_options(program, name, action))
        except KernelError:
            if added:
                remove_unused(netlink, place.index)
            raise
    except BaseException:
        netlink.close()
        raise
    one = Filter(found.parent, found.info, found.handle, found.kind, name)
    return Filtered(netlink, place.index, one, id_of(program))


def clean(netlink: Netlink) -> None:
    """Remove filters of igruns that were killed."""
    for index in netlink.with_clsact():
        filters = netlink.filters(index)
        dead = [one for one in filters if one.name in (OURS, OUR_QDISC) and is_dead(one.program)]
        for one in dead:
            remove(netlink, index, one)
        if any(one.name == OUR_QDISC for one in dead):
            remove_unused(netlink, index)


def remove(netlink: Netlink, index: int, one: Filter) -> None:
    """Remove a filter, if it is still there."""
    try:
        netlink.remove_filter(index, one)
    except KernelError as error:
        if error.errno not in GONE:
            raise


def remove_unused(netlink: Netlink, index: int) -> None:
    """Remove the qdisc if it has no filters. Of the interface being gone already, nothing is said."""
    if netlink.filters(index):
        return
    try:
        netlink.remove_clsact(index)
    except KernelError as error:
        if error.errno not in GONE:
            raise


# ------------------------------------------------------------------------------------------------ who lives


def is_dead(program: int) -> bool:
    """True if a dispatcher has nothing to call any more; False where that cannot be found out."""
    try:
        fd = program_of_id(program)
    except KernelError as error:
        return error.errno == ENOENT
    try:
        with map_of(fd, "gadget_tail_call", PROG_ARRAY) as called:
            return called is not None and called.lookup(FIRST) is None
    except KernelError:
        return False
    finally:
        os.close(fd)
