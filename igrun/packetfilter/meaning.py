"""What a filter means: its tree -> the condition on a packet. Differences to libpcap are refused, never guessed."""

from __future__ import annotations

from ipaddress import AddressValueError, IPv6Address

from igrun.packetfilter.computed import Computations
from igrun.packetfilter.grammar import Group, Id, Inverted, Joined, Node, Primitive, Qualifiers, Relation, Said
from igrun.packetfilter.layers import AND, ARP, IP, RARP, SCTP, TCP, UDP, Link
from igrun.packetfilter.names import ETHERNET, OSI, ip_protocols, near, ports
from igrun.packetfilter.tunnels import protochain
from igrun.packetfilter.values import WORD, And, Condition, Fixed, Not, Or, any_of
from igrun.packetfilter.words import Text, Word

TRANSPORTS = {"": 0, "tcp": TCP, "udp": UDP, "sctp": SCTP}
NETWORKS = {"ip": IP, "arp": ARP, "rarp": RARP}
NO_NAMES = "write its address: names of hosts and networks are not looked up"


def meaning(source: Text, tree: Node | None, link: Link) -> Condition:
    """The condition. ParamError: it has none on such a link, or needs what a filter cannot know."""
    return Fixed(True) if tree is None else Meaning(source, link).of(tree, None)[0]


class Meaning(Computations):
    """Reads a tree from the left to the right."""

    def of(self, node: Node, before: Qualifiers | None) -> tuple[Condition, Qualifiers | None]:
        """The condition, and the qualifiers that a bare address behind it has."""
        # `a or b or c` leans to the left, for as long as the filter is.
        pending: list[tuple[str, Node]] = []
        while isinstance(node, Joined):
            pending.append((node.op, node.right))
            node = node.left
        found, qualifiers = self._of(node, before)
        for op, right in reversed(pending):
            other, qualifiers = self._of(right, qualifiers) if not isinstance(right, Joined) else self.of(right, None)
            found = And(found, other) if op == AND else Or(found, other)
        return found, qualifiers

    def _of(self, node: Node, before: Qualifiers | None) -> tuple[Condition, Qualifiers | None]:
        match node:
            case Primitive(qualifiers=given, id=addresses):
                qualifiers = given or before
                if qualifiers is None:
                    word = first_word(addresses)
                    hint = f"say what it is, as in `port {word.text}` or `host {word.text}`"
                    raise self.source.error(f"{word.text!r} has no qualifier", word.place, hint)
                return self.addresses(addresses, qualifiers), qualifiers
            case Inverted(inner=inner):
                found, qualifiers = self.of(inner, before)
                return Not(found), qualifiers
            case Group(inner=inner):
                return self.of(inner, before)[0], before
            case Said() if node.word.kind == "protocol":
                return self.protocol(node.word.text, node.word.place), None
            case Said():
                return self.said(node), None
            case Relation():
                return self.relation(node), None
        raise AssertionError(node)

    # ---------------------------------------------------------------------------------------- addresses

    def addresses(self, node: Node, qualifiers: Qualifiers) -> Condition:
        """Addresses joined by and, or, not: all with these qualifiers."""
        pending: list[tuple[str, Node]] = []
        while isinstance(node, Joined):
            pending.append((node.op, node.right))
            node = node.left
        if isinstance(node, Inverted):
            found: Condition = Not(self.addresses(node.inner, qualifiers))
        else:
            assert isinstance(node, Id)
            found = self.address(node, qualifiers)
        for op, right in reversed(pending):
            other = self.addresses(right, qualifiers)
            found = And(found, other) if op == AND else Or(found, other)
        return found

    def address(self, node: Id, asked: Qualifiers) -> Condition:
        if asked.address == "gateway":
            hint = "write `ether host <its MAC address> and not host <its IP address>`"
            raise self.source.error("'gateway' needs names of hosts, which are not looked up", asked.place, hint)
        if asked.address in ("port", "portrange"):
            return self.ports(node, asked)
        if asked.address in ("proto", "protochain"):
            return self.protocols(node, asked)
        match node.word.kind:
            case "mac":
                return self.mac_host(node.word, asked)
            case "ipv6":
                return self.ipv6_host(node, asked)
            case "name" if asked.protocol == "decnet":
                raise self.source.error(f"{node.word.text!r} is no DECnet address", node.word.place)
            case "name":
                what = "network" if asked.address == "net" else "host"
                raise self.source.error(f"unknown {what} {node.word.text!r}", node.word.place, NO_NAMES)
        return self.ipv4_host(node, asked)

    def mac_host(self, word: Word, asked: Qualifiers) -> Condition:
        if asked.protocol != "ether" or asked.address == "net":
            hint = f"write `ether host {word.text}`"
            raise self.source.error("an Ethernet address needs `ether`", word.place, hint)
        self.need_ethernet("ethernet addresses", word.place)
        digits = word.text
        for sign in ":-.":
            digits = " ".join(one.zfill(4 if len(one) > 2 else 2) for one in digits.split(sign))
        found = self.mac(bytes.fromhex(digits), asked.direction)
        inside = self.has_ethernet()
        return And(inside, found) if inside else found

    def ipv6_host(self, node: Id, asked: Qualifiers) -> Condition:
        word, prefix = node.word, node.mask
        try:
            address = IPv6Address(word.text).packed
        except AddressValueError:
            raise self.source.error(f"{word.text!r} is no IPv6 address", word.place) from None
        bits = prefix.number if prefix else 128
        if bits > 128:
            raise self.source.error("the prefix of a network has at most 128 bits", prefix.place if prefix else 0)
        if bits != 128 and asked.address != "net":
            raise self.source.error("a prefix is for networks", word.place, f"write `net {word.text}/{bits}`")
        mask = ((1 << 128) - 1 ^ (1 << 128 - bits) - 1).to_bytes(16, "big")
        if any(one & ~other & 0xFF for one, other in zip(address, mask, strict=True)):
            raise self.source.error(f"{word.text}/{bits} has bits set behind its prefix", word.place)
        if asked.protocol not in ("", "ip6"):
            raise self.source.error(f"{asked.protocol!r} has no IPv6 addresses", asked.place)
        return self.ipv6(address, mask, asked.direction)

    def ipv4_host(self, node: Id, asked: Qualifiers) -> Condition:
        word = node.word
        if asked.protocol == "decnet":
            return self.decnet(self.decnet_address(word), asked.direction)
        if asked.protocol not in ("", *NETWORKS):
            raise self.source.error(f"{asked.protocol!r} has no IPv4 addresses", asked.place)
        number, mask = self.masked(node) if node.mask else self.promoted(word, asked)
        if node.mask and asked.address != "net":
            raise self.source.error("a mask is for networks", word.place, f"write `net {word.text}...`")
        if asked.protocol:
            return self.ipv4(number, mask, asked.direction, NETWORKS[asked.protocol])
        kinds = (IP,) if self.labels else (IP, ARP, RARP)
        return any_of(*(self.ipv4(number, mask, asked.direction, kind) for kind in kinds))

    def promoted(self, word: Word, asked: Qualifiers) -> tuple[int, int]:
        """Address and mask of one that may have less than four parts: the first ones."""
        if word.kind == "number":
            number, mask = word.number, WORD
            while asked.address == "net" and number and not number & 0xFF000000:
                number, mask = number << 8, mask << 8 & WORD
            return number, mask
        number, bits = self.dotted(word)
        return number << 32 - bits, WORD << 32 - bits & WORD

    def masked(self, node: Id) -> tuple[int, int]:
        """Address and mask of `net 10.0.0.0/8` and `net 10.0.0.0 mask 255.0.0.0`."""
        assert node.mask is not None
        number, bits = self.dotted(node.word)
        number <<= 32 - bits
        if node.mask.kind == "ipv4":
            mask, bits = self.dotted(node.mask)
            mask <<= 32 - bits
        else:
            if node.mask.number > 32:
                raise self.source.error("the prefix of a network has at most 32 bits", node.mask.place)
            mask = WORD << 32 - node.mask.number & WORD
        if number & ~mask:
            raise self.source.error(f"{node.word.text} has bits set that its mask leaves out", node.word.place)
        return number, mask

    def dotted(self, word: Word) -> tuple[int, int]:
        """The number of an address of up to four parts, and its bits."""
        found = 0
        parts = word.text.split(".")
        for part in parts:
            if not part.isdecimal() or int(part) > 255:
                raise self.source.error(f"{word.text!r} is no IPv4 address", word.place)
            found = found << 8 | int(part)
        return found, 8 * len(parts)

    def decnet_address(self, word: Word) -> int:
        if word.kind == "number":
            return word.number & 0xFFFF
        parts = word.text.split(".")
        if not all(part.isdecimal() for part in parts[:2]):
            raise self.source.error(f"{word.text!r} is no DECnet address", word.place)
        return int(parts[0]) << 10 & 0xFC00 | int(parts[1]) & 0x3FF

    # ---------------------------------------------------------------------------------------- ports

    def ports(self, node: Id, asked: Qualifiers) -> Condition:
        word = node.word
        if asked.protocol not in TRANSPORTS:
            raise self.source.error(f"{asked.protocol!r} has no ports", asked.place, "write tcp, udp, sctp or nothing")
        if word.kind == "number":
            low = high = word.number
            protocol = ""
        elif word.kind == "name" and not node.mask:
            (low, high), protocol = self.named_ports(word, asked)
        else:
            raise self.source.error(f"{word.text!r} is no port", word.place)
        for port in (low, high):
            if port > 0xFFFF:
                raise self.source.error(f"port {port} is larger than 65535", word.place)
        if asked.protocol and protocol and protocol != asked.protocol:
            raise self.source.error(f"{word.text!r} is a port of {protocol}", word.place)
        return self.any_port(min(low, high), max(low, high), TRANSPORTS[asked.protocol or protocol], asked.direction)

    def named_ports(self, word: Word, asked: Qualifiers) -> tuple[tuple[int, int], str]:
        """The ports, and the transport if the name has only one."""
        if asked.address == "port":
            port, protocol = self.named_port(word.text, word)
            return (port, port), protocol
        first, sign, last = word.text.partition("-")
        if not sign:
            raise self.source.error(f"{word.text!r} is no range of ports", word.place, "write it as 1000-2000")
        if first.isdecimal() and last.isdecimal():
            return (int(first), int(last)), ""
        (low, one), (high, other) = (self.named_port(part, word) for part in (first, last))
        return (low, high), one if one == other else ""

    def named_port(self, name: str, word: Word) -> tuple[int, str]:
        if name.isdecimal():
            return int(name), ""
        known = ports()
        if name not in known:
            raise self.source.error(f"unknown port {name!r}", word.place, near(name, known))
        return known[name]

    # ---------------------------------------------------------------------------------------- protocols

    def protocols(self, node: Id, asked: Qualifiers) -> Condition:
        word = node.word
        if word.kind not in ("number", "name") or node.mask:
            raise self.source.error(f"{word.text!r} is no protocol", word.place)
        number = word.number if word.kind == "number" else self.named_protocol(word, asked)
        if asked.address == "protochain":
            if asked.protocol not in ("", "ip", "ip6"):
                raise self.source.error(f"{asked.protocol!r} has no chain of headers", asked.place)
            versions = [int(asked.protocol == "ip6") * 2 + 4] if asked.protocol else [4, 6]
            return any_of(*(protochain(self, number, version, asked.place) for version in versions))
        return self.carried(number, asked.protocol, asked.place)

    def named_protocol(self, word: Word, asked: Qualifiers) -> int:
        known = ip_protocols()
        if asked.protocol == "ether":
            known = ETHERNET
        elif asked.protocol == "iso":
            known = OSI
        if word.text not in known:
            raise self.source.error(f"unknown protocol {word.text!r}", word.place, near(word.text, known))
        return known[word.text]


def first_word(node: Node) -> Word:
    """The first word of addresses."""
    while not isinstance(node, Id):
        assert isinstance(node, Joined | Inverted)
        node = node.left if isinstance(node, Joined) else node.inner
    return node.word
