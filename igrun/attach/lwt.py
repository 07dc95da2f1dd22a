"""Lightweight tunnels: programs that packets of one route pass, which gadget.yaml gives as `programs.<name>.route`.

`route: 10.1.0.0/16 dev eth0`, with `via`, `table` and `metric` as for ip(8). The route is added when the program is
attached, and is removed with it.
"""

from __future__ import annotations

import ipaddress
import socket
from errno import EEXIST, EINVAL, ENETUNREACH, ENODEV, ENOENT, EOPNOTSUPP, EPERM, ESRCH
from struct import pack
from typing import TYPE_CHECKING

from igrun.attach.clsact import is_dead
from igrun.attach.common import Links, feature, handle_of, nearest
from igrun.attach.dispatch import Dispatcher
from igrun.attach.namespaces import Namespace, inside, of
from igrun.bpfcall import id_of
from igrun.dataclass import dataclass
from igrun.errors import AttachError, KernelError, MetadataError, UnsupportedError
from igrun.netlink import ROUTE, Netlink, attribute, attributes, text

if TYPE_CHECKING:
    from igrun.host import Target
    from igrun.load import Closable
    from igrun.program import Hook

OPTION = "route"
WORDS = ("dev", "via", "table", "metric")
# linux/rtnetlink.h
PROTOCOL = 197  # of nobody else; says in `ip route` that the route is ours
MAIN, LINK_SCOPE, UNICAST = 254, 253, 1
DST, OIF, GATEWAY, PRIORITY, TABLE, ENCAP_TYPE, ENCAP = 1, 4, 5, 6, 15, 21, 22
# linux/lwtunnel.h, linux/seg6_local.h
BY_BPF, SEG6_LOCAL, END_BPF = 6, 7, 15
MEMBERS = {10: 1, 11: 2, 12: 3}  # type of the program -> LWT_BPF_*
SEG6_LOCAL_TYPE = 19


@dataclass(frozen=True, slots=True)
class Place:
    """A route in a namespace."""

    namespace: Namespace
    network: ipaddress.IPv4Network | ipaddress.IPv6Network
    device: str
    gateway: str = ""
    table: int = MAIN
    metric: int = 0


class Route:
    """A route of ours. It keeps a socket in the network namespace."""

    def __init__(self, netlink: Netlink, message: bytes) -> None:
        self._netlink: Netlink | None = netlink
        self._message = message

    def close(self) -> None:
        """Remove it, if it is still there. Again: nothing."""
        netlink, self._netlink = self._netlink, None
        if netlink:
            with netlink:
                removed(netlink, self._message)


def places(hook: Hook, target: Target) -> tuple[Place, ...]:
    """The route. AttachError; MetadataError: gadget.yaml does not say which."""
    told = hook.options.get(OPTION, "")
    path = f"programs.{hook.program}.{OPTION}"
    hint = "such as: 10.1.0.0/16 dev eth0"
    if not told:
        raise MetadataError(path, "it must say which packets pass the program", hint=hint)
    first, *words = told.split()
    given = dict(zip(words[::2], words[1::2], strict=False))
    unknown = sorted(set(given) - set(WORDS)) or words[len(given) * 2 :]
    if unknown:
        raise MetadataError(path, f"{unknown[0]!r} is not known", hint=nearest(unknown[0], WORDS) or hint)
    if "dev" not in given:
        raise MetadataError(path, "it names no interface", hint=hint)
    try:
        network = ipaddress.ip_network(first)
        gateway = str(ipaddress.ip_address(given["via"])) if "via" in given else ""
        numbers = (int(given.get("table", MAIN)), int(given.get("metric", 0)))
    except ValueError as error:
        raise MetadataError(path, str(error), hint=hint) from None
    return (Place(of(target, hook), network, given["dev"], gateway, *numbers),)


def attach(hook: Hook, place: Place) -> Closable:
    """Attach the program. AttachError; UnsupportedError: the kernel has no such tunnels."""
    name = f"{place.network} dev {place.device}"
    try:
        dispatcher = Dispatcher.load("guard", "ig_lwt", handle_of(hook))
        try:
            kind = handle_of(hook).type
            return Links((dispatcher, inside(place.namespace, lambda: routed(place, dispatcher.fd, kind))))
        except BaseException:
            dispatcher.close()
            raise
    except KernelError as error:
        code = error.errno or EINVAL
        if code == EOPNOTSUPP:
            lacks = "this kernel has no such tunnels (CONFIG_LWTUNNEL_BPF, CONFIG_IPV6_SEG6_BPF)"
            raise UnsupportedError(feature(hook), lacks) from None
        hint = {
            EPERM: "CAP_NET_ADMIN in that namespace is needed",
            EEXIST: "there is a route of this kind already: another metric or table is needed",
            ENETUNREACH: "the interface must be up, and the gateway be reached by it",
        }.get(code, "")
        if code == ENODEV:
            hint = nearest(place.device, inside(place.namespace, interface_names)) or "there is no such interface"
        raise AttachError(code, hook.program, hook.section, name, reason=str(error), hint=hint) from None


def routed(place: Place, program: int, kind: int) -> Route:
    """Add the route in this thread's namespace. KernelError."""
    netlink = Netlink()
    try:
        for family in (socket.AF_INET, socket.AF_INET6):
            clean(netlink, family)
        message = route(place)
        netlink.add_route(message + tunnel(program, kind))
    except BaseException:
        netlink.close()
        raise
    return Route(netlink, message)


def route(place: Place) -> bytes:
    """struct rtmsg with its attributes. KernelError: there is no such interface."""
    family = socket.AF_INET if place.network.version == 4 else socket.AF_INET6
    try:
        index = socket.if_nametoindex(place.device)
    except OSError:
        raise KernelError(ENODEV, f"add a route by {place.device}") from None
    scope = LINK_SCOPE if place.network.version == 4 and not place.gateway else 0
    table = place.table if place.table < 256 else 0
    message = pack(ROUTE, family, place.network.prefixlen, 0, 0, table, PROTOCOL, scope, UNICAST, 0)
    message += attribute(DST, place.network.network_address.packed) + attribute(OIF, pack("=I", index))
    if place.gateway:
        message += attribute(GATEWAY, ipaddress.ip_address(place.gateway).packed)
    if place.metric:
        message += attribute(PRIORITY, pack("=I", place.metric))
    return message + attribute(TABLE, pack("=I", place.table))


def tunnel(program: int, kind: int) -> bytes:
    """The attributes that put a program into a route. Its name holds the program's number, for `clean`."""
    ours = attribute(1, pack("=I", program)) + attribute(2, f"igrun:{id_of(program)}\0".encode())
    if kind == SEG6_LOCAL_TYPE:
        way, inner = SEG6_LOCAL, attribute(1, pack("=I", END_BPF)) + attribute(8 | 0x8000, ours)
    else:
        way, inner = BY_BPF, attribute(MEMBERS[kind] | 0x8000, ours)
    return attribute(ENCAP_TYPE, pack("=H", way)) + attribute(ENCAP | 0x8000, inner)


def clean(netlink: Netlink, family: int) -> None:
    """Remove routes of igruns that were killed."""
    for one in netlink.routes(family):
        if one[5] != PROTOCOL:
            continue
        found = attributes(one, 12)
        inner = attributes(found.get(ENCAP, b""))
        for value in inner.values():
            name = text(attributes(value).get(2, b""))
            if name.startswith("igrun:") and name[6:].isdigit() and is_dead(int(name[6:])):
                kept = b"".join(attribute(key, found[key]) for key in (DST, OIF, PRIORITY, TABLE) if key in found)
                removed(netlink, one[:8] + bytes(4) + kept)


def removed(netlink: Netlink, message: bytes) -> None:
    """Remove a route, if it is still there."""
    try:
        netlink.remove_route(message)
    except KernelError as error:
        if error.errno not in (ESRCH, ENODEV, ENOENT):
            raise


def interface_names() -> list[str]:
    return [name for _, name in socket.if_nameindex()]
