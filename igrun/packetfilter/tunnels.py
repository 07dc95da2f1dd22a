"""What moves the headers (`vlan`, `mpls`, `pppoes`, `geneve`), and `protochain`, which walks along them."""

from __future__ import annotations

from igrun.packetfilter.layers import (
    BRIDGED,
    DST,
    IP,
    IPV6,
    MPLS,
    PPP_MPLS,
    PPPOE_SESSION,
    UDP,
    VLAN_TAGS,
    Layers,
    Link,
    Place,
    Transport,
)
from igrun.packetfilter.values import (
    And,
    Assign,
    Condition,
    Const,
    Fixed,
    If,
    Load,
    Or,
    Test,
    Value,
    all_of,
    any_of,
    binary,
)

GENEVE_PORT = 6081
LONGEST_CHAIN = 8  # headers; libpcap walks on until it finds the protocol or the packet's end
AH, NOTHING_FOLLOWS = 51, 59
OPTIONS = (0, 60, 43, 44)  # headers of IPv6: hop-by-hop and destination options, routing, fragment


def vlan(layers: Layers, number: int | None, place: int) -> Condition:
    """A tag in the packet. One that the kernel or the card has taken out of it is not seen."""
    if layers.labels:
        raise layers.source.error("`vlan` cannot stand behind `mpls`", place)
    if layers.link is not Link.ETHERNET:
        raise layers.source.error(f"there is no VLAN tag in {layers.link.value}", place)
    found = any_of(*map(layers.carries, VLAN_TAGS))
    if number is not None:
        limited(layers, number, 0xFFF, "VLAN tag", place)
        found = And(found, layers.compare(layers.payload, layers.network, 2, number, mask=0xFFF))
    layers.payload = Place(layers.payload.bytes + 4, layers.payload.variable)
    layers.type = Place(layers.type.bytes + 4, layers.type.variable)
    return found


def mpls(layers: Layers, label: int | None, place: int) -> Condition:
    if layers.labels:
        found = layers.in_network(-2, 1, 0, mask=1)
    elif layers.link is Link.IP:
        raise layers.source.error("there is no MPLS on a link without a header", place)
    else:
        found = layers.carries(MPLS if layers.link is Link.ETHERNET else PPP_MPLS)
    if label is not None:
        limited(layers, label, 0xFFFFF, "MPLS label", place)
        found = And(found, layers.in_network(0, 4, label << 12, mask=0xFFFFF000))
    layers.network += 4
    layers.osi += 4
    layers.labels += 1
    return found


def pppoe(layers: Layers, session: int | None, place: int) -> Condition:
    found = layers.carries(PPPOE_SESSION)
    if session is not None:
        limited(layers, session, 0xFFFF, "PPPoE session", place)
        found = And(found, layers.in_network(0, 4, session, mask=0xFFFF))
    layers.link, layers.in_geneve = Link.PPP, False
    layers.header = Place(layers.payload.bytes + layers.network + 6, layers.payload.variable)
    layers.type = layers.header
    layers.payload = Place(layers.header.bytes + 2, layers.payload.variable)
    layers.network = layers.osi = 0
    return found


def geneve(layers: Layers, network: int | None, place: int) -> Condition:
    """A tunnel, with Ethernet or something else in it: where its headers are is known only when it is there."""
    start, header, type_, payload = (layers.variable() for _ in range(4))

    def over(version: int) -> Condition:
        udp = Transport(version)
        found = [
            layers.port(GENEVE_PORT, GENEVE_PORT, UDP, DST, version),
            layers.compare(udp, 8, 1, 0, mask=0xC0),
        ]
        if network is not None:
            limited(layers, network, 0xFFFFFF, "Geneve network", place)
            found.append(layers.compare(udp, 12, 4, network << 8, mask=0xFFFFFF00))
        length: Value = layers.ip_header()
        if version == 6:
            length = binary("+", Const(40), layers.payload.variable) if layers.payload.variable else Const(40)
        before = layers.payload.bytes + layers.network + 8
        return all_of(*found, Assign(((start, binary("+", length, Const(before))),)))

    options = binary("*", binary("&", Load(start, 0, 1), Const(0x3F)), Const(4))
    inner = (
        (type_, binary("+", start, Const(2))),
        (header, binary("+", binary("+", options, Const(8)), start)),
    )
    bridged = (
        (type_, binary("+", header, Const(12))),
        (payload, binary("+", header, Const(14))),
    )
    ends = Or(And(Test("==", Load(start, 2, 2), Const(BRIDGED)), Assign(bridged)), Assign(((payload, header),)))
    found = all_of(Or(over(4), over(6)), Assign(inner), ends)
    layers.link, layers.in_geneve = Link.ETHERNET, True
    layers.header, layers.type, layers.payload = Place(0, header), Place(0, type_), Place(0, payload)
    layers.network = 0
    return found


def limited(layers: Layers, number: int, largest: int, what: str, place: int) -> None:
    if number > largest:
        raise layers.source.error(f"{what} {number} is larger than {largest}", place)


def protochain(layers: Layers, number: int, version: int, place: int) -> Condition:
    """The packet is IP of that version and one of its headers is of this protocol, among the first LONGEST_CHAIN."""
    if layers.payload.variable:
        raise layers.source.error("`protochain` cannot stand behind `geneve`", place)
    base = layers.payload.bytes + layers.network
    kind, offset = layers.variable(), layers.variable()
    if version == 4:
        first = ((kind, Load(None, base + 9, 1)), (offset, layers.ip_header()))
    else:
        first = ((kind, Load(None, base + 6, 1)), (offset, Const(40)))
    length = Load(offset, base + 1, 1)
    options = binary("+", binary("*", binary("+", length, Const(1)), Const(8)), offset)
    # libpcap forgets to add where the header begins. Filters mean here what they mean there.
    authentication = binary("*", binary("+", length, Const(2)), Const(4))
    found: Condition = Fixed(False)
    for _ in range(LONGEST_CHAIN):
        behind = And(Assign(((kind, Load(offset, base, 1)), (offset, authentication))), found)
        on: Condition = If(Test("==", kind, Const(AH)), behind, Fixed(False))
        if version == 6:
            behind = And(Assign(((kind, Load(offset, base, 1)), (offset, options))), found)
            on = If(any_of(*(Test("==", kind, Const(one)) for one in OPTIONS)), behind, on)
        on = If(Test("==", kind, Const(NOTHING_FOLLOWS)), Fixed(False), on)
        found = If(Test("==", kind, Const(number)), Fixed(True), on)
    return all_of(layers.carries(IP if version == 4 else IPV6), Assign(first), found)
