"""Where the headers of a packet are, and the tests of single fields in them: the first half of what a filter means.

The order in which fields are read is that of libpcap, as the verdict on a packet that ends too early depends on it.
`vlan`, `mpls`, `pppoes` and `geneve` move the headers for all that is written behind them.
"""

from __future__ import annotations

from enum import Enum

from igrun.dataclass import dataclass
from igrun.packetfilter.values import (
    WORD,
    And,
    Condition,
    Const,
    Fixed,
    Load,
    Not,
    Or,
    Test,
    Value,
    Variable,
    all_of,
    any_of,
    binary,
)
from igrun.packetfilter.words import Text

# Ethernet types; numbers up to LENGTHS are LLC service access points
IP, ARP, RARP, IPV6, DECNET = 0x0800, 0x0806, 0x8035, 0x86DD, 0x6003
ATALK, AARP, IPX_TYPE, BRIDGED = 0x809B, 0x80F3, 0x8137, 0x6558
MPLS, PPPOE_DISCOVERY, PPPOE_SESSION = 0x8847, 0x8863, 0x8864
VLAN_TAGS = (0x8100, 0x88A8, 0x9100)
LENGTHS = 1500
LLC_ISO, LLC_IP, LLC_IPX, LLC_NETBEUI, LLC_STP, LLC_SNAP = 0xFE, 0x06, 0xE0, 0xF0, 0x42, 0xAA
PPP_TYPES = {IP: 0x21, IPV6: 0x57, DECNET: 0x27, ATALK: 0x29, 0x0600: 0x25, LLC_ISO: 0x23, LLC_STP: 0x31, LLC_IPX: 0x2B}
PPP_MPLS = 0x0281
TCP, UDP, SCTP, FRAGMENT = 6, 17, 132, 44
SRC, DST, OR, AND = "src", "dst", "or", "and"


class Link(Enum):
    """What a packet begins with. PPP: inside of PPPoE only."""

    ETHERNET = "Ethernet"
    IP = "IP"
    PPP = "PPP"


@dataclass(frozen=True, slots=True)
class Place:
    """A place in the packet: a number of bytes, and the value of a variable if there is one."""

    bytes: int
    variable: Variable | None = None


@dataclass(frozen=True, slots=True)
class Transport:
    """A header behind that of IPv4 (whose length varies) or IPv6 (whose options are not skipped)."""

    version: int


class Layers:
    """Where the headers are, for what is read next.

    header, type, payload: places of the link layer; network: bytes from the payload to the network's header
    """

    def __init__(self, source: Text, link: Link) -> None:
        self.source, self.link = source, link
        ethernet = link is Link.ETHERNET
        self.header, self.type, self.payload = Place(0), Place(12), Place(14 if ethernet else 0)
        self.network, self.osi = 0, 3 if ethernet else 0
        self.labels = 0
        self.in_geneve = False
        self._variables = 0

    def variable(self) -> Variable:
        """A new one."""
        self._variables += 1
        return Variable(self._variables - 1)

    # ---------------------------------------------------------------------------------------- fields

    def load(self, where: Place | Transport, offset: int, size: int) -> Load:
        """A field of so many bytes."""
        if isinstance(where, Place):
            return Load(where.variable, (where.bytes + offset) & WORD, size)
        if where.version == 6:
            return self.load(self.payload, self.network + 40 + offset, size)
        return Load(self.ip_header(), self.payload.bytes + self.network + offset, size)

    def ip_header(self) -> Value:
        """Length of the header of IPv4, with the variable part of where it begins."""
        first = self.load(self.payload, self.network, 1)
        length = binary("<<", binary("&", first, Const(15)), Const(2))
        return binary("+", length, self.payload.variable) if self.payload.variable else length

    def compare(
        self, where: Place | Transport, offset: int, size: int, number: int, *, op: str = "==", mask: int = WORD
    ) -> Condition:
        """Test of a field."""
        field: Value = self.load(where, offset, size)
        if mask != WORD:
            field = binary("&", field, Const(mask))
        return Test(op, field, Const(number))

    def in_network(self, offset: int, size: int, number: int, *, op: str = "==", mask: int = WORD) -> Condition:
        """Test of a field of the network's header."""
        return self.compare(self.payload, self.network + offset, size, number, op=op, mask=mask)

    def in_osi(self, offset: int, number: int) -> Condition:
        """Test of a byte behind the LLC header."""
        return self.compare(self.payload, self.osi + offset, 1, number)

    def same(self, where: Place, offset: int, content: bytes) -> Condition:
        """The bytes are these; read from the end in words as large as possible."""
        tests: list[Condition] = []
        end = len(content)
        while end:
            size = 4 if end >= 4 else 2 if end >= 2 else 1
            end -= size
            number = int.from_bytes(content[end : end + size], "big")
            tests.append(self.compare(where, offset + end, size, number))
        return all_of(*tests)

    # ---------------------------------------------------------------------------------------- link layer

    def carries(self, protocol: int) -> Condition:
        """The payload is of this protocol: an Ethernet type or an LLC service access point."""
        if self.labels:
            return self._labelled(protocol)
        if self.link is Link.PPP:
            return self.compare(self.type, 0, 2, PPP_TYPES.get(protocol, protocol))
        if self.link is Link.IP:
            versions = {IP: 0x40, IPV6: 0x60}
            if protocol not in versions:
                return Fixed(False)
            return self.compare(self.header, 0, 1, versions[protocol], mask=0xF0)
        return self._ethernet(protocol)

    def _labelled(self, protocol: int) -> Condition:
        versions = {IP: 0x40, IPV6: 0x60}
        if protocol not in versions:
            raise self.source.error("behind `mpls` only IPv4 and IPv6 can be filtered", len(self.source.text))
        bottom = self.in_network(-2, 1, 1, mask=1)
        return And(bottom, self.in_network(0, 1, versions[protocol], mask=0xF0))

    def _ethernet(self, protocol: int) -> Condition:
        if protocol in (LLC_ISO, LLC_IP, LLC_NETBEUI):
            return And(self.is_llc(), self.compare(self.payload, 0, 2, protocol << 8 | protocol))
        if protocol == LLC_IPX:
            return any_of(
                self.compare(self.type, 0, 2, IPX_TYPE),
                And(
                    self.is_llc(),
                    any_of(
                        self.snap(0, IPX_TYPE),
                        self.compare(self.payload, 0, 1, LLC_IPX),
                        self.compare(self.payload, 0, 2, 0xFFFF),
                    ),
                ),
            )
        if protocol in (ATALK, AARP):
            inside = self.snap(0x080007 if protocol == ATALK else 0, protocol)
            return Or(self.compare(self.type, 0, 2, protocol), And(self.is_llc(), inside))
        if protocol <= LENGTHS:
            return And(self.is_llc(), self.compare(self.type, 2, 1, protocol))
        return self.compare(self.type, 0, 2, protocol)

    def is_llc(self) -> Condition:
        """The type of the Ethernet frame is a length."""
        return Not(self.compare(self.type, 0, 2, LENGTHS, op=">"))

    def snap(self, organization: int, protocol: int) -> Condition:
        head = bytes((LLC_SNAP, LLC_SNAP, 3))
        return self.same(self.payload, 0, head + organization.to_bytes(3, "big") + protocol.to_bytes(2, "big"))

    def has_ethernet(self) -> Condition | None:
        """In a tunnel: there is an Ethernet header in it. None: there always is."""
        if not self.in_geneve or self.header.variable is None or self.payload.variable is None:
            return None
        return Not(Test("==", self.header.variable, self.payload.variable))

    # ---------------------------------------------------------------------------------------- addresses

    def one_way(self, direction: str, source: Condition, target: Condition) -> Condition:
        """The condition for the direction. Nothing said: either."""
        if direction == SRC:
            return source
        if direction == DST:
            return target
        return And(source, target) if direction == AND else Or(source, target)

    def mac(self, address: bytes, direction: str) -> Condition:
        source, target = (self.same(self.header, offset, address) for offset in (6, 0))
        return self.one_way(direction, source, target)

    def ipv4(self, address: int, mask: int, direction: str, protocol: int) -> Condition:
        """In the header of IPv4, or in that of ARP or RARP."""
        places = (12, 16) if protocol == IP else (14, 24)
        source, target = (And(self.carries(protocol), self.in_network(at, 4, address, mask=mask)) for at in places)
        return self.one_way(direction, source, target)

    def ipv6(self, address: bytes, mask: bytes, direction: str) -> Condition:
        def found(offset: int) -> Condition:
            words = (
                self.in_network(
                    offset + n,
                    4,
                    int.from_bytes(address[n : n + 4], "big"),
                    mask=int.from_bytes(mask[n : n + 4], "big"),
                )
                for n in range(0, 16, 4)
            )
            return all_of(self.carries(IPV6), all_of(*words))

        return self.one_way(direction, found(8), found(24))

    def decnet(self, address: int, direction: str) -> Condition:
        """The forms of a DECnet address: with and without a byte of padding, in long and in short headers."""
        swapped = (address & 0xFF) << 8 | address >> 8

        def found(long: int, short: int) -> Condition:
            forms = (
                And(self.in_network(2, 1, 2, mask=7), self.in_network(2 + short, 2, swapped)),
                And(self.in_network(2, 2, 0x8102, mask=0xFF07), self.in_network(3 + short, 2, swapped)),
                And(self.in_network(2, 1, 6, mask=7), self.in_network(2 + long, 2, swapped)),
                And(self.in_network(2, 2, 0x8106, mask=0xFF07), self.in_network(3 + long, 2, swapped)),
            )
            return And(self.carries(DECNET), any_of(*forms))

        return self.one_way(direction, found(15, 3), found(7, 1))

    # ---------------------------------------------------------------------------------------- protocols and ports

    def ip_protocol(self, number: int, version: int) -> Condition:
        """The packet is IP of that version and carries this; behind IPv6 one fragment header is skipped."""
        if version == 4:
            return And(self.carries(IP), self.in_network(9, 1, number))
        behind = And(self.in_network(6, 1, FRAGMENT), self.in_network(40, 1, number))
        return And(self.carries(IPV6), Or(self.in_network(6, 1, number), behind))

    def first_fragment(self) -> Condition:
        """Of IPv4: it is no later fragment."""
        return Not(Test("&", self.load(self.payload, self.network + 6, 2), Const(0x1FFF)))

    def port(self, low: int, high: int, protocol: int, direction: str, version: int) -> Condition:
        """Ports in this range. protocol: of the transport, 0: TCP, UDP or SCTP."""

        def at(offset: int) -> Condition:
            where = Transport(version)
            if low == high:
                return self.compare(where, offset, 2, low)
            return And(self.compare(where, offset, 2, low, op=">="), Not(self.compare(where, offset, 2, high, op=">")))

        def over(number: int) -> Condition:
            carried = self.in_network(9 if version == 4 else 6, 1, number)
            whole = self.first_fragment() if version == 4 else None
            return all_of(carried, whole, self.one_way(direction, at(0), at(2)))

        found = any_of(*map(over, [protocol] if protocol else [SCTP, TCP, UDP]))
        return And(self.carries(IP if version == 4 else IPV6), found)

    def any_port(self, low: int, high: int, protocol: int, direction: str) -> Condition:
        """Of both versions of IP."""
        return Or(*(self.port(low, high, protocol, direction, version) for version in (6, 4)))
