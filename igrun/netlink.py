"""rtnetlink: interfaces, tc filters and routes of the network namespace that a socket was opened in."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from errno import EEXIST, EINVAL, ENOBUFS, ENODEV, ENOENT, EOPNOTSUPP
from struct import calcsize, pack, unpack_from

from igrun.dataclass import dataclass
from igrun.errors import KernelError

# linux/netlink.h
REQUEST, ACK, DUMP, EXCL, CREATE = 1, 4, 0x300, 0x200, 0x400
DUMP_INTERRUPTED, ACK_TLVS, CAPPED = 0x10, 0x200, 0x100
ERROR, DONE = 2, 3
SOL_NETLINK, ADD_MEMBERSHIP, LISTEN_ALL_NSID, CAP_ACK, EXT_ACK = 270, 1, 8, 10, 11
# linux/rtnetlink.h
NEWLINK, DELLINK, GETLINK, SETLINK, NEWROUTE, DELROUTE, GETROUTE = 16, 17, 18, 19, 24, 25, 26
GROUP_LINK, GROUP_NSID = 1, 28  # RTNLGRP_*
NEWQDISC, DELQDISC, GETQDISC, NEWTFILTER, DELTFILTER, GETTFILTER = 36, 37, 38, 44, 45, 46
NEWNSID, DELNSID, GETNSID = 88, 89, 90
OWN_NSID, ALL = -1, 0
HEADER, LINK, TRAFFIC, ROUTE = "=IHHII", "=BxHiII", "=BxxxiIII", "=BBBBBBBBI"
NESTED = 0x8000
# Of interfaces
IFNAME, IFLA_LINK, MASTER, LINKINFO, LINK_NSID, XDP = 3, 5, 10, 18, 37, 43
XDP_IDS = {4: "", 5: "native", 6: "generic", 7: "offload"}  # IFLA_XDP_*_PROG_ID
XDP_FD, XDP_FLAGS, XDP_EXPECTED_FD, XDP_REPLACE = 1, 3, 8, 1 << 4
XDP_MODES = {"": 0, "generic": 2, "native": 4, "offload": 8}  # XDP_FLAGS_*_MODE
# Of tc
CLSACT, CLSACT_HANDLE, INGRESS, EGRESS = 0xFFFFFFF1, 0xFFFF0000, 0xFFFFFFF2, 0xFFFFFFF3
KIND, OPTIONS = 1, 2
BPF_ACT, BPF_FD, BPF_NAME, BPF_FLAGS, BPF_ID, DIRECT_ACTION = 1, 6, 7, 8, 11, 1
ETH_P_ALL = 0x0003
PARENTS = {"ingress": INGRESS, "egress": EGRESS}
MOST_HANDLES = 127


@dataclass(frozen=True, slots=True)
class Interface:
    """An interface.

    kind:           of a virtual one: veth, bridge, ...; "" for hardware
    peer:           the index that IFLA_LINK tells: of a veth the other end, 0: none
    peer_namespace: id of the namespace that the peer is in; None: the same as this one's
    xdp:            ids of XDP programs by the mode they run in: native, generic, offload
    """

    index: int
    name: str
    kind: str = ""
    up: bool = False
    loopback: bool = False
    master: int = 0
    peer: int = 0
    peer_namespace: int | None = None
    xdp: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Filter:
    """A filter of tc. parent: INGRESS or EGRESS; program: a BPF program's id, 0: it is of another kind."""

    parent: int
    info: int
    handle: int
    kind: str
    name: str = ""
    program: int = 0


class Netlink:
    """A socket for requests in the network namespace of the thread that opens it. Methods may raise KernelError."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._number = 0
        for option in (CAP_ACK, EXT_ACK):
            self._socket.setsockopt(SOL_NETLINK, option, 1)

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def ask(self, kind: int, flags: int, body: bytes, what: str) -> list[bytes]:
        """Make a request; the bodies of what the kernel answers."""
        self._number += 1
        size = calcsize(HEADER) + len(body)
        self._socket.sendto(pack(HEADER, size, kind, flags | REQUEST | ACK, self._number, 0) + body, (0, 0))
        found: list[bytes] = []
        while True:
            data = self._socket.recv(1 << 18)
            at = 0
            while at + 16 <= len(data):
                length, answer, said, number, _ = unpack_from(HEADER, data, at)
                payload, at = data[at + 16 : at + length], at + (length + 3 & ~3)
                if number != self._number:
                    continue
                if answer in (ERROR, DONE):
                    raise_refused(payload, answer, said, what)
                    return found
                found.append(payload)

    # -------------------------------------------------------------------------------------------- interfaces

    def interfaces(self) -> list[Interface]:
        """All interfaces, in order of their index."""
        body = pack(LINK, 0, 0, 0, 0, 0)
        found = (interface(one) for one in self.ask(GETLINK, DUMP, body, "list the interfaces"))
        return sorted(found, key=lambda one: one.index)

    def interface(self, index: int) -> Interface:
        """One interface. ENODEV: it is gone."""
        (found,) = self.ask(GETLINK, 0, pack(LINK, 0, 0, index, 0, 0), f"ask about interface {index}")
        return interface(found)

    def set_xdp(self, index: int, program: int, flags: int, expected: int) -> None:
        """Put a program in the place of the expected one (descriptors both; -1: none in its place). flags: the mode."""
        values = ((XDP_FD, program), (XDP_FLAGS, flags | XDP_REPLACE), (XDP_EXPECTED_FD, expected))
        inner = b"".join(attribute(kind, pack("=I", value & 0xFFFFFFFF)) for kind, value in values)
        body = pack(LINK, 0, 0, index, 0, 0) + attribute(XDP | NESTED, inner)
        self.ask(SETLINK, 0, body, "exchange the XDP program")

    def namespace_id(self, fd: int) -> int:
        """The id that this namespace has for the one behind a descriptor, -1: none yet."""
        (found,) = self.ask(GETNSID, 0, pack("=Bxxx", 0) + attribute(3, pack("=I", fd)), "ask for a namespace's id")
        nsid: int = unpack_from("=i", attributes(found, 4)[1])[0]
        return nsid

    def give_namespace_id(self, fd: int) -> int:
        """The id that this namespace has for the one behind a descriptor from now on, as long as both live."""
        body = pack("=Bxxx", 0) + attribute(1, pack("=i", -1)) + attribute(3, pack("=I", fd))
        try:
            self.ask(NEWNSID, CREATE | EXCL, body, "give a namespace an id")
        except KernelError as error:
            if error.errno != EEXIST:
                raise
        return self.namespace_id(fd)

    # -------------------------------------------------------------------------------------------- tc

    def add_clsact(self, index: int) -> bool:
        """Give an interface the place for filters; False if it has it already."""
        body = pack(TRAFFIC, 0, index, CLSACT_HANDLE, CLSACT, 0) + attribute(KIND, b"clsact\0")
        try:
            self.ask(NEWQDISC, CREATE | EXCL, body, "add qdisc clsact")
        except KernelError as error:
            if error.errno != EEXIST:
                raise
            return False
        return True

    def remove_clsact(self, index: int) -> None:
        self.ask(DELQDISC, 0, pack(TRAFFIC, 0, index, CLSACT_HANDLE, CLSACT, 0), "remove qdisc clsact")

    def with_clsact(self) -> list[int]:
        """Indexes of the interfaces that have the place for filters."""
        try:
            answers = self.ask(GETQDISC, DUMP, pack(TRAFFIC, 0, 0, 0, 0, 0), "list the qdiscs")
        except KernelError as error:
            # Without CONFIG_NET_SCHED there are none
            if error.errno != EOPNOTSUPP:
                raise
            return []
        found = []
        for one in answers:
            _, index, *_ = unpack_from(TRAFFIC, one)
            if attributes(one, 20).get(KIND) == b"clsact\0":
                found.append(index)
        return found

    def filters(self, index: int) -> list[Filter]:
        """The filters of an interface, in both directions."""
        found = []
        for parent in PARENTS.values():
            body = pack(TRAFFIC, 0, index, 0, parent, 0)
            try:
                answers = self.ask(GETTFILTER, DUMP, body, "list the filters")
            except KernelError as error:
                # Without the qdisc, or the interface, there are none
                if error.errno not in (EINVAL, ENOENT, ENODEV):
                    raise
                continue
            found += [one for one in map(filter_of, answers) if one.handle]
        return found

    def add_filter(self, index: int, direction: str, kind: str, options: bytes, priority: int = 1) -> Filter:
        """Add a filter for every protocol under the first free handle. EEXIST: there is none.

        direction: ingress or egress; options: the attributes of a filter of this kind
        """
        parent = PARENTS[direction]
        info = priority << 16 | socket.htons(ETH_P_ALL)
        for handle in range(1, MOST_HANDLES + 1):
            body = pack(TRAFFIC, 0, index, handle, parent, info)
            body += attribute(KIND, kind.encode() + b"\0") + attribute(OPTIONS, options)
            try:
                self.ask(NEWTFILTER, CREATE | EXCL, body, "add a filter")
            except KernelError as error:
                if error.errno != EEXIST:
                    raise
                continue
            return Filter(parent, info, handle, kind)
        raise KernelError(EEXIST, f"add a filter: all {MOST_HANDLES} of priority {priority} are taken")

    def remove_filter(self, index: int, one: Filter) -> None:
        body = pack(TRAFFIC, 0, index, one.handle, one.parent, one.info) + attribute(KIND, one.kind.encode() + b"\0")
        self.ask(DELTFILTER, 0, body, "remove a filter")

    # -------------------------------------------------------------------------------------------- routes

    def add_route(self, route: bytes) -> None:
        """Add a route. route: struct rtmsg with its attributes. EEXIST: there is one like it."""
        self.ask(NEWROUTE, CREATE | EXCL, route, "add a route")

    def remove_route(self, route: bytes) -> None:
        self.ask(DELROUTE, 0, route, "remove a route")

    def routes(self, family: int) -> list[bytes]:
        """All routes of a family, as `add_route` takes them."""
        body = pack(ROUTE, family, 0, 0, 0, 0, 0, 0, 0, 0)
        return self.ask(GETROUTE, DUMP, body, "list the routes")


class Changes:
    """What happens to interfaces, in the network namespace of the thread that opens it and in all that it has ids for.

    Unlike a socket in each of them, it keeps no namespace alive. Of others than the own it wants CAP_NET_BROADCAST.
    """

    def __init__(self) -> None:
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        self._socket = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
        self._socket.bind((0, 0))  # without a number of its own it would count as the kernel, and get nothing
        self._socket.setsockopt(SOL_NETLINK, LISTEN_ALL_NSID, 1)
        for group in (GROUP_LINK, GROUP_NSID):
            self._socket.setsockopt(SOL_NETLINK, ADD_MEMBERSHIP, group)

    def fileno(self) -> int:
        """Readable when something has."""
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def read(self) -> dict[int, set[int]] | None:
        """Id of each namespace (OWN_NSID: the own) in which something has -> indexes of interfaces that went away.

        ALL among them: the namespace went away. None: the kernel could not tell all.
        """
        found: dict[int, set[int]] = {}
        complete = True
        while True:
            try:
                data, extra, _, _ = self._socket.recvmsg(1 << 16, socket.CMSG_SPACE(4))
            except BlockingIOError:
                return found if complete else None
            except OSError as error:
                if error.errno != ENOBUFS:
                    raise
                complete = False
                continue
            nsid = unpack_from("=i", extra[0][2])[0] if extra else OWN_NSID
            for kind, body in messages(data):
                if kind == DELNSID:
                    found.setdefault(unpack_from("=i", attributes(body, 4)[1])[0], set()).add(ALL)
                elif kind in (NEWLINK, DELLINK):
                    family, _, index, *_ = unpack_from(LINK, body)
                    gone = found.setdefault(nsid, set())
                    # A bridge tells of a port that leaves it in the same way.
                    if kind == DELLINK and family == socket.AF_UNSPEC:
                        gone.add(index)


# ------------------------------------------------------------------------------------------------ its bytes


def messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Kind and body of each message; what is cut off is left out."""
    at = 0
    while at + 16 <= len(data):
        length, kind, *_ = unpack_from(HEADER, data, at)
        if length < 16 or at + length > len(data):
            return
        yield kind, data[at + 16 : at + length]
        at += length + 3 & ~3


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded."""
    return pack("=HH", len(value) + 4, kind) + value + bytes(-len(value) % 4)


def each_attribute(data: bytes, start: int = 0) -> Iterator[tuple[int, bytes]]:
    """Kind (without flags) and value of the attributes from `start` on; what is cut off is left out."""
    at = start
    while at + 4 <= len(data):
        length, kind = unpack_from("=HH", data, at)
        if length < 4 or at + length > len(data):
            return
        yield kind & 0x3FFF, data[at + 4 : at + length]
        at += length + 3 & ~3


def attributes(data: bytes, start: int = 0) -> dict[int, bytes]:
    """As `each_attribute`, the last of each kind."""
    return dict(each_attribute(data, start))


def text(value: bytes) -> str:
    """A name, without the zero at its end."""
    return value.rstrip(b"\0").decode(errors="surrogateescape")


def number(value: bytes | None) -> int:
    """A u32, 0 for None."""
    return int.from_bytes(value[:4], "little" if pack("=H", 1) == b"\1\0" else "big") if value else 0


def interface(data: bytes) -> Interface:
    """From struct ifinfomsg and its attributes."""
    _, _, index, flags, _ = unpack_from(LINK, data)
    found = attributes(data, 16)
    xdp = attributes(found.get(XDP, b""))
    modes = {mode: number(xdp.get(kind)) for kind, mode in XDP_IDS.items() if kind in xdp}
    # Attached in one mode, the id stands under the mode too from Linux 4.19 on
    programs = tuple((mode, id_) for mode, id_ in modes.items() if id_ and (mode or len(modes) == 1))
    return Interface(
        index,
        text(found.get(IFNAME, b"")),
        text(attributes(found.get(LINKINFO, b"")).get(1, b"")),
        up=bool(flags & 1),
        loopback=bool(flags & 8),
        master=number(found.get(MASTER)),
        peer=number(found.get(IFLA_LINK)),
        peer_namespace=number(found[LINK_NSID]) if LINK_NSID in found else None,
        xdp=programs,
    )


def filter_of(data: bytes) -> Filter:
    """From struct tcmsg and its attributes."""
    _, _, handle, parent, info = unpack_from(TRAFFIC, data)
    found = attributes(data, 20)
    kind = text(found.get(KIND, b""))
    options = attributes(found.get(OPTIONS, b"")) if kind == "bpf" else {}
    return Filter(parent, info, handle, kind, text(options.get(BPF_NAME, b"")), number(options.get(BPF_ID)))


def bpf_options(fd: int, name: str, action: bytes = b"") -> bytes:
    """The options of a filter that is a BPF program, whose result says what becomes of the packet.

    action: that says it, of the packets for which the result is -1
    """
    how = attribute(BPF_ACT, attribute(1, action)) if action else attribute(BPF_FLAGS, pack("=I", DIRECT_ACTION))
    return attribute(BPF_FD, pack("=I", fd)) + attribute(BPF_NAME, name.encode() + b"\0") + how


def bpf_action(fd: int, name: str) -> bytes:
    """An action that is a BPF program; -1 where it says nothing else."""
    parameters = attribute(2, pack("=IIiii", 0, 0, -1, 0, 0))  # struct tc_act_bpf
    options = parameters + attribute(5, pack("=I", fd)) + attribute(6, name.encode() + b"\0")
    return attribute(KIND, b"bpf\0") + attribute(OPTIONS, options)


def raise_refused(payload: bytes, answer: int, said: int, what: str) -> None:
    """KernelError if the answer that ends a request is one, with the kernel's words where it has some."""
    code = -unpack_from("=i", payload)[0] if len(payload) >= 4 else 0
    if not code:
        if said & DUMP_INTERRUPTED and answer == DONE:
            return  # something changed meanwhile: what was listed is good enough
        return
    # struct nlmsgerr holds the head of our request, or all of it
    start = 4 if answer == DONE else 20
    if answer == ERROR and not said & CAPPED and len(payload) >= 8:
        start = 4 + (number(payload[4:8]) + 3 & ~3)
    words = text(attributes(payload, start).get(1, b"")) if said & ACK_TLVS else ""
    raise KernelError(code, f"{what} ({words})" if words else what)
