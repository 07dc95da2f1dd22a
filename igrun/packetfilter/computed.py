"""Protocols, the words that stand alone, and computations with bytes of the packet."""

from __future__ import annotations

from igrun.packetfilter.grammar import Bytes, Node, Number, Operation, Relation, Said
from igrun.packetfilter.layers import (
    AARP,
    ARP,
    ATALK,
    DECNET,
    DST,
    IP,
    IPV6,
    LLC_IPX,
    LLC_ISO,
    LLC_NETBEUI,
    LLC_STP,
    PPPOE_DISCOVERY,
    RARP,
    Layers,
    Link,
)
from igrun.packetfilter.tunnels import geneve, mpls, pppoe, vlan
from igrun.packetfilter.values import (
    And,
    Condition,
    Const,
    Length,
    Load,
    Negative,
    Not,
    Or,
    Test,
    Value,
    all_of,
    any_of,
    binary,
)
from igrun.packetfilter.words import Word

LINK_PROTOCOLS = {
    "ip": IP,
    "ip6": IPV6,
    "arp": ARP,
    "rarp": RARP,
    "atalk": ATALK,
    "aarp": AARP,
    "decnet": DECNET,
    "sca": 0x6007,
    "lat": 0x6004,
    "mopdl": 0x6001,
    "moprc": 0x6002,
    "iso": LLC_ISO,
    "stp": LLC_STP,
    "ipx": LLC_IPX,
    "netbeui": LLC_NETBEUI,
}
# Name -> number, and which versions of IP carry it
IP_PROTOCOLS = {
    "sctp": (132, ""),
    "tcp": (6, ""),
    "udp": (17, ""),
    "icmp": (1, "ip"),
    "igmp": (2, "ip"),
    "igrp": (9, "ip"),
    "pim": (103, ""),
    "vrrp": (112, "ip"),
    "carp": (112, "ip"),
    "icmp6": (58, "ip6"),
    "ah": (51, ""),
    "esp": (50, ""),
}
OSI_PROTOCOLS = {"clnp": 0x81, "esis": 0x82, "isis": 0x83}
# Name -> types of the PDU of IS-IS
ISIS_PDUS = {
    "l1": (26, 24, 18, 15, 17),
    "l2": (27, 25, 20, 16, 17),
    "iih": (17, 15, 16),
    "lsp": (18, 20),
    "snp": (27, 26, 24, 25),
    "csnp": (24, 25),
    "psnp": (26, 27),
}
LLC_COMMANDS = {"ui": 3, "ua": 0x63, "disc": 0x43, "dm": 0xF, "sabme": 0x6F, "test": 0xE3, "xid": 0xAF, "frmr": 0x87}
# Name -> control byte, and which bits of it count
LLC_TYPES = {"s": (1, 3), "u": (3, 3), "rr": (0x01, 0x0F), "rnr": (0x05, 0x0F), "rej": (0x09, 0x0F)} | {
    name: (number, 0xEF) for name, number in LLC_COMMANDS.items()
}
IN_TRANSPORT = ("sctp", "tcp", "udp", "icmp", "igmp", "igrp", "pim", "vrrp", "carp")
IN_NETWORK = ("ip", "arp", "rarp", "atalk", "decnet", "sca", "lat", "moprc", "mopdl", "ip6")
NOTHING_KNOWN = "a filter sees the packet and nothing else"


class Computations(Layers):
    """What needs no address."""

    def need_ethernet(self, what: str, place: int) -> None:
        if self.link is not Link.ETHERNET:
            raise self.source.error(f"{what} are on Ethernet only, not in {self.link.value}", place)

    # ---------------------------------------------------------------------------------------- protocols

    def protocol(self, name: str, place: int) -> Condition:
        """The packet is of this protocol."""
        if name in LINK_PROTOCOLS:
            return self.carries(LINK_PROTOCOLS[name])
        if name in IP_PROTOCOLS:
            number, version = IP_PROTOCOLS[name]
            return self.carried(number, version, place)
        if name in OSI_PROTOCOLS:
            return self.carried(OSI_PROTOCOLS[name], "iso", place)
        if name in ISIS_PDUS:
            return any_of(*(self.carried(number, "isis", place) for number in ISIS_PDUS[name]))
        hint = "write `ether host ...` or `ether proto ...`" if name == "ether" else ""
        raise self.source.error(f"{name!r} says nothing alone", place, hint)

    def carried(self, number: int, by: str, place: int) -> Condition:
        """The protocol `by`, or if that is "" IP, carries the one of that number."""
        match by:
            case "":
                return Or(self.ip_protocol(number, 4), self.ip_protocol(number, 6))
            case "ip" | "ip6":
                return self.ip_protocol(number, 4 if by == "ip" else 6)
            case "ether":
                return self.carries(number)
            case "iso":
                return And(self.carries(LLC_ISO), self.in_osi(0, number))
            case "isis":
                return And(self.carried(OSI_PROTOCOLS["isis"], "iso", place), self.in_osi(4, number))
        raise self.source.error(f"{by!r} carries no other protocol", place)

    # ---------------------------------------------------------------------------------------- words

    def said(self, node: Said) -> Condition:
        """Everything that begins with a word, or ends with `broadcast` or `multicast`."""
        word, place = node.word, node.word.place
        number = node.arguments[0].number if node.arguments else None
        match word.text:
            case "vlan":
                return vlan(self, number, place)
            case "mpls":
                return mpls(self, number, place)
            case "pppoes":
                return pppoe(self, number, place)
            case "geneve":
                return geneve(self, number, place)
            case "pppoed":
                return self.carries(PPPOE_DISCOVERY)
            case "less":
                return Not(Test(">", Length(), Const(number or 0)))
            case "greater":
                return Test(">=", Length(), Const(number or 0))
            case "broadcast":
                return self.broadcast(node)
            case "multicast":
                return self.multicast(node)
            case "byte":
                return self.byte(node)
            case "llc":
                return self.llc(node)
        hint = "choose the direction by the program that is attached"
        raise self.source.error(f"{word.text!r} cannot be told: {NOTHING_KNOWN}", place, hint)

    def broadcast(self, node: Said) -> Condition:
        place = node.word.place
        if node.protocol == "ip":
            hint = "write `dst host <the broadcast address>`"
            raise self.source.error("'ip broadcast' needs the netmask, which is not known", place, hint)
        if node.protocol not in ("", "ether"):
            raise self.source.error(f"{node.protocol!r} has no broadcast", place)
        self.need_ethernet("broadcasts", place)
        found = self.mac(b"\xff" * 6, DST)
        inside = self.has_ethernet()
        return And(inside, found) if inside else found

    def multicast(self, node: Said) -> Condition:
        place = node.word.place
        if node.protocol == "ip":
            return And(self.carries(IP), self.in_network(16, 1, 224, op=">="))
        if node.protocol == "ip6":
            return And(self.carries(IPV6), self.in_network(24, 1, 255))
        if node.protocol not in ("", "ether"):
            raise self.source.error(f"{node.protocol!r} has no multicast", place)
        self.need_ethernet("multicasts", place)
        found = Test("&", self.load(self.header, 0, 1), Const(1))
        inside = self.has_ethernet()
        return And(inside, found) if inside else found

    def byte(self, node: Said) -> Condition:
        index, sign, number = node.arguments
        field = self.load(self.header, index.number, 1)
        match sign.text:
            case "=":
                return Test("==", field, Const(number.number))
            case "<":
                return Not(Test(">=", field, Const(number.number)))
            case ">":
                return Test(">", field, Const(number.number))
        # libpcap reads no byte for these and tests what happens to be left from before.
        hint = f"write `ether[{index.number}] {sign.text} {number.number} != 0`"
        raise self.source.error(f"`byte` has no {sign.text!r}", sign.place, hint)

    def llc(self, node: Said) -> Condition:
        if self.link is not Link.ETHERNET:
            raise self.source.error(f"there is no LLC in {self.link.value}", node.word.place)
        is_llc = And(self.is_llc(), Not(self.compare(self.payload, 0, 2, 0xFFFF)))
        if not node.arguments:
            return is_llc
        name = node.arguments[0]
        kind = name.text.lower()
        if kind == "i":
            return And(is_llc, Not(Test("&", self.load(self.payload, 2, 1), Const(1))))
        if kind not in LLC_TYPES:
            raise self.source.error(f"unknown type of LLC {name.text!r}", name.place, f"one of {', '.join(LLC_TYPES)}")
        number, mask = LLC_TYPES[kind]
        return And(is_llc, self.compare(self.payload, 2, 1, number, mask=mask))

    # ---------------------------------------------------------------------------------------- computations

    def relation(self, node: Relation) -> Condition:
        """The comparison, behind the tests for the protocols whose bytes are in it."""
        (left, first), (right, second) = self.value(node.left), self.value(node.right)
        match node.op:
            case "=" | "!=":
                found: Condition = Test("==", left, right)
            case ">" | "<=":
                found = Test(">", left, right)
            case _:
                found = Test(">=", left, right)
        if node.op in ("!=", "<=", "<"):
            found = Not(found)
        return all_of(first, second, found)

    def value(self, node: Node) -> tuple[Value, Condition | None]:
        """The value, and the test for its protocols. As with libpcap, that of a right operand is not made."""
        match node:
            case Number(word=word):
                return Const(word.number), None
            case Said():
                return Length(), None
            case Operation(left=None, right=operand):
                value, test = self.value(operand)
                return Negative(value), test
            case Operation(op=op, left=left, right=operand) if left is not None:
                value, test = self.value(left)
                if isinstance(operand, Number):
                    self.refuse_number(op, operand.word.number)
                return binary(op.text, value, self.value(operand)[0]), test
            case Bytes(protocol=protocol, index=index, size=size):
                return self.bytes(protocol, index, size)
        raise AssertionError(node)

    def refuse_number(self, op: Word, right: int) -> None:
        """ParamError: an operation with this number is surely a mistake. With a computed one it never matches."""
        if op.text in ("/", "%") and right == 0:
            raise self.source.error("division by zero", op.place)
        if op.text in ("<<", ">>") and right > 31:
            raise self.source.error("shift by more than 31 bits", op.place)

    def bytes(self, protocol: Word, index: Node, size: int) -> tuple[Value, Condition | None]:
        """Bytes of a header, and the test that it is there."""
        name = protocol.text
        at, test = self.value(index)
        if size not in (1, 2, 4):
            raise self.source.error(f"1, 2 or 4 bytes can be read, not {size}", protocol.place)
        if name == "ether":
            return indexed(self.header.variable, at, self.header.bytes, size), test
        base = self.payload.bytes + self.network
        if name in IN_NETWORK:
            return indexed(self.payload.variable, at, base, size), all_of(test, self.protocol(name, protocol.place))
        if name in IN_TRANSPORT:
            header = indexed(self.ip_header(), at, base, size)
            whole = And(self.protocol(name, protocol.place), self.first_fragment())
            return header, all_of(self.carries(IP), all_of(test, whole))
        if name == "icmp6":
            test = all_of(test, self.carries(IPV6))
            test = all_of(test, self.in_network(6, 1, 58))
            return indexed(self.payload.variable, at, base + 40, size), test
        raise self.source.error(f"the bytes of {name!r} cannot be read", protocol.place, "read those of `ether`")


def indexed(base: Value | None, index: Value, offset: int, size: int) -> Load:
    """Bytes at `index` behind base and offset."""
    if isinstance(index, Const) and (base is None or index.number < 1 << 31):
        # A base is far below 2**31, so that the sum does not wrap around.
        return Load(base, offset + index.number, size)
    return Load(index if base is None else binary("+", base, index), offset, size)
