"""Which interfaces a target has, and where its packets are seen."""

from __future__ import annotations

import os
from errno import ENODEV
from typing import TYPE_CHECKING

from igrun.attach.common import nearest
from igrun.attach.namespaces import Namespace, inside, of, of_machine, own
from igrun.dataclass import dataclass, field
from igrun.errors import AttachError
from igrun.netlink import Interface, Netlink

if TYPE_CHECKING:
    from igrun.host import Target
    from igrun.program import Hook

OTHER_WAY = {"ingress": "egress", "egress": "ingress"}
PAIRS = ("veth", "netkit")  # two ends, the host's and the container's


@dataclass(frozen=True, slots=True)
class Place:
    """An interface to attach to.

    namespace: where the interface is
    direction: as seen from that interface; "" where a program has none
    netns:     inode of the namespace whose packets are meant
    own:       index, in that namespace, of the interface whose packets they are
    """

    namespace: Namespace
    index: int
    name: str = field(compare=False)
    kind: str
    direction: str
    netns: int
    own: int


def place_of(one: Interface, namespace: Namespace, direction: str) -> Place:
    """An interface in the namespace whose packets are meant."""
    return Place(namespace, one.index, one.name, one.kind, direction, namespace.inode, one.index)


def namespace(hook: Hook, target: Target) -> Namespace:
    """Where a target's interfaces come and go. AttachError: it is gone."""
    return own() if target.interface else of(target, hook)


def listed() -> list[Interface]:
    """The interfaces of this thread's namespace."""
    with Netlink() as netlink:
        return netlink.interfaces()


def named(hook: Hook, target: Target, direction: str) -> tuple[Place]:
    """The host's interface that the target names. AttachError: there is none."""
    namespace = own()
    interfaces = listed()
    for one in interfaces:
        if one.name == target.interface:
            return (place_of(one, namespace, direction),)
    names = [one.name for one in interfaces]
    hint = nearest(target.interface, names) or f"there are: {', '.join(names)}"
    reason = "this machine has no such interface"
    raise AttachError(ENODEV, hook.program, hook.section, target.interface, reason=reason, hint=hint)


def of_host(namespace: Namespace, direction: str) -> tuple[Place, ...]:
    """The host's own interfaces that are up: not those that are part of another one, or the end of a container's."""
    return tuple(
        place_of(one, namespace, direction)
        for one in inside(namespace, listed)
        if one.up and not one.master and not (one.kind in PAIRS and one.peer_namespace is not None)
    )


def of_target(hook: Hook, target: Target, direction: str) -> tuple[Place, ...]:
    """Where the packets of a target are seen, in the direction that the target sees.

    Of a container it is the host's end of each pair, the other way round: what comes in there has gone out of the
    container. An interface without such an end (macvlan, one that was moved there, ...) is taken where it is.
    """
    if target.interface:
        return named(hook, target, direction)
    home = of(target, hook)
    machine = of_machine()
    if home in machine:
        return of_host(home, direction)
    interfaces, hosts = inside(home, lambda: seen_from(machine))
    found = []
    for one in interfaces:
        outside = hosts.get(one.peer_namespace) if one.peer_namespace is not None else None
        if one.loopback:
            continue
        if outside is None or one.kind not in PAIRS:
            found.append(place_of(one, home, direction))
            continue
        end = next((other for other in inside(outside, listed) if other.index == one.peer), None)
        if end:
            way = OTHER_WAY.get(direction, direction)
            found.append(Place(outside, end.index, end.name, end.kind, way, home.inode, one.index))
    return tuple(found)


def within(hook: Hook, target: Target) -> tuple[Place, ...]:
    """The interfaces that a container itself has; of the host only the one that is named. AttachError: none is."""
    if target.interface:
        return named(hook, target, "")
    home = of(target, hook)
    interfaces = inside(home, listed)
    if home in of_machine():
        names = ", ".join(one.name for one in interfaces if one.up)
        reason = "of the host's interfaces one must be named"
        hint = f"use --iface; there are: {names}"
        raise AttachError(ENODEV, hook.program, hook.section, target.name, reason=reason, hint=hint)
    return tuple(place_of(one, home, "") for one in interfaces if not one.loopback)


def seen_from(namespaces: tuple[Namespace, ...]) -> tuple[list[Interface], dict[int, Namespace]]:
    """The interfaces of this thread's namespace, and which id in it each of the namespaces has."""
    with Netlink() as netlink:
        # First the interfaces: listing them gives ids to the namespaces that their peers are in.
        interfaces = netlink.interfaces()
        ids = {}
        for namespace in namespaces:
            fd = os.open(namespace.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                ids[netlink.namespace_id(fd)] = namespace
            finally:
                os.close(fd)
    return interfaces, ids
