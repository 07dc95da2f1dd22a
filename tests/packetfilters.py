"""What tests of packet filters share: libpcap, an interpreter of eBPF, packets and expressions."""

import ctypes as C
import ctypes.util
import random
import struct
from functools import cache

import pytest

ETHERNET, RAW = 1, 12  # DLT_EN10MB, DLT_RAW

# ------------------------------------------------------------------------------------------------ libpcap


class Program(C.Structure):
    _fields_ = (("length", C.c_uint), ("instructions", C.c_void_p))


class Header(C.Structure):
    _fields_ = (("seconds", C.c_long), ("microseconds", C.c_long), ("captured", C.c_uint32), ("length", C.c_uint32))


class Pcap:
    """libpcap's compiler and interpreter for one link type."""

    def __init__(self, link: int) -> None:
        name = ctypes.util.find_library("pcap") or "libpcap.so.0.8"
        try:
            self.lib = C.CDLL(name)
        except OSError:
            pytest.skip("no libpcap: apt-get install libpcap0.8")
        self.lib.pcap_open_dead.restype = C.c_void_p
        self.lib.pcap_open_dead.argtypes = (C.c_int, C.c_int)
        self.lib.pcap_compile.argtypes = (C.c_void_p, C.POINTER(Program), C.c_char_p, C.c_int, C.c_uint32)
        self.lib.pcap_geterr.argtypes = (C.c_void_p,)
        self.lib.pcap_geterr.restype = C.c_char_p
        self.lib.pcap_offline_filter.argtypes = (C.POINTER(Program), C.POINTER(Header), C.c_char_p)
        self.handle = self.lib.pcap_open_dead(link, 65535)

    def compiled(self, expression: str) -> Program | str:
        """The program, or why there is none."""
        program = Program()
        if self.lib.pcap_compile(self.handle, C.byref(program), expression.encode(), 0, 0xFFFFFFFF):
            return self.lib.pcap_geterr(self.handle).decode()
        return program

    def matches(self, program: Program, packet: bytes) -> bool:
        header = Header(0, 0, len(packet), len(packet))
        return self.lib.pcap_offline_filter(C.byref(program), C.byref(header), packet) != 0

    def free(self, program: Program) -> None:
        self.lib.pcap_freecode(C.byref(program))


@cache
def pcap(link: int = ETHERNET) -> Pcap:
    return Pcap(link)


# ------------------------------------------------------------------------------------------------ eBPF

PACKET, STACK, CONTEXT = 1 << 40, 2 << 40, 3 << 40
ALL, LOW = (1 << 64) - 1, (1 << 32) - 1
SIZES = {0x00: 4, 0x08: 2, 0x10: 1, 0x18: 8}
COMPARE = {
    0x10: lambda a, b: a == b,
    0x20: lambda a, b: a > b,
    0x30: lambda a, b: a >= b,
    0x40: lambda a, b: a & b != 0,
    0x50: lambda a, b: a != b,
    0xA0: lambda a, b: a < b,
    0xB0: lambda a, b: a <= b,
}
COMPUTE = {
    0x00: lambda a, b: a + b,
    0x10: lambda a, b: a - b,
    0x20: lambda a, b: a * b,
    0x30: lambda a, b: a // b,
    0x40: lambda a, b: a | b,
    0x50: lambda a, b: a & b,
    0x60: lambda a, b: a << b,
    0x70: lambda a, b: a >> b,
    0x80: lambda a, b: -a,
    0x90: lambda a, b: a % b,
    0xA0: lambda a, b: a ^ b,
    0xB0: lambda a, b: b,
}


def decoded(code: bytes) -> list[tuple[int, int, int, int, int]]:
    """(op, target, source, offset, number) of each instruction."""
    return [(op, regs & 15, regs >> 4, off, number) for op, regs, off, number in struct.iter_unpack("<BBhi", code)]


def run(program: list[tuple[int, int, int, int, int]], packet: bytes, linear: int | None = None) -> bool:
    """The verdict of a filter's instructions, which fall out of their end with R4, or return 0.

    linear: how much of the packet the program can read by itself; None: all of it, -1: nothing
    """
    readable = len(packet) if linear is None else max(linear, 0)
    r: list[int | None] = [None] * 11
    r[1] = r[2] = r[3] = CONTEXT
    r[4], r[5], r[10] = (PACKET, PACKET + readable, STACK) if linear != -1 else (7, 7, STACK)
    stack: dict[int, int] = {}

    def read(address: int, size: int) -> int:
        if address >= CONTEXT:
            assert (address, size) == (CONTEXT, 4) and linear is not None
            return len(packet)
        if address >= PACKET + (1 << 39):
            at = address - STACK
            assert -512 <= at <= -size and all(at + n in stack for n in range(size)), "stack"
            return int.from_bytes(bytes(stack[at + n] for n in range(size)), "little")
        at = address - PACKET
        assert at >= 0 and at + size <= readable, "read outside of the packet"
        return int.from_bytes(packet[at : at + size], "little")

    def write(address: int, size: int, value: int) -> None:
        at = address - STACK
        assert -512 <= at <= -size
        stack.update({at + n: one for n, one in enumerate((value & (1 << 8 * size) - 1).to_bytes(size, "little"))})

    def value(register: int) -> int:
        found = r[register]
        assert found is not None, f"R{register} was never written"
        return found

    at = 0
    while at < len(program):
        op, target, source, offset, number = program[at]
        at += 1
        kind = op & 7
        if kind == 1:
            r[target] = read(value(source) + offset, SIZES[op & 0x18])
        elif kind in (2, 3):
            write(value(target) + offset, SIZES[op & 0x18], number if kind == 2 else value(source))
        elif op == 0xDC:
            r[target] = int.from_bytes((value(target) & (1 << number) - 1).to_bytes(number // 8, "little"), "big")
        elif kind in (4, 7):
            mask = LOW if kind == 4 else ALL
            right = value(source) & mask if op & 8 else number & mask
            if op & 0xF0 == 0xB0:
                r[target] = right
            else:
                assert op & 0xF0 not in (0x60, 0x70) or right < 32
                r[target] = COMPUTE[op & 0xF0](value(target) & mask, right) & mask
        elif op == 0x85:
            assert number == 26 and value(1) == CONTEXT and linear is not None
            begin, size = value(2) & LOW, value(4)
            found = packet[begin : begin + size]
            if len(found) == size and begin <= 0x7FFFFFFF:
                write(value(3), size, int.from_bytes(found, "little"))
                r[0] = 0
            else:
                r[0] = ALL - 13
            r[1] = r[2] = r[3] = r[4] = r[5] = None
        elif op == 0x95:
            assert value(0) == 0
            return False
        elif op == 0x05:
            at += offset
        else:
            assert kind in (5, 6) and offset >= 0
            mask = LOW if kind == 6 else ALL
            if COMPARE[op & 0xF0](value(target) & mask, value(source) & mask if op & 8 else number & mask):
                at += offset
    assert at == len(program) and r[1] == r[2] == r[3] == r[5] == 0
    return value(4) == 1


# ------------------------------------------------------------------------------------------------ packets

MACS = [bytes.fromhex(one) for one in ("020000000001", "020000000002", "ffffffffffff", "01005e000001", "333300000001")]
IP4 = [bytes(map(int, one.split("."))) for one in ("10.0.0.1", "10.0.0.2", "192.168.1.77", "224.0.0.251", "8.8.8.8")]
IP6 = [
    bytes.fromhex(one * 8 if len(one) == 4 else one.replace("_", "0"))
    for one in (
        "fe80____________________________01"[:4] + "_" * 26 + "01",
        "20010db8" + "_" * 23 + "2",
        "ff02" + "_" * 27 + "1",
    )
]
PORTS = [22, 53, 80, 443, 1000, 6081, 8080]


def transport(rng: random.Random, number: int, depth: int) -> bytes:
    ports = struct.pack(">HH", rng.choice(PORTS), rng.choice(PORTS))
    data = rng.randbytes(rng.randrange(30))
    if number == 6:
        return ports + rng.randbytes(8) + bytes((0x50, rng.randrange(256))) + rng.randbytes(6) + data
    if number == 17:
        if depth < 2 and rng.random() < 0.7:
            ports = ports[:2] + struct.pack(">H", 6081)
            options = rng.randrange(3)
            kind = rng.choice((0x6558, 0x0800, 0x86DD, 0x1234))
            version = rng.choice((0, 0, 0, 0x40))
            inner = frame(rng, depth + 1) if kind == 0x6558 else network(rng, kind, depth + 1)
            head = struct.pack(">BBHI", version | options, 0, kind, rng.choice((5, 100)) << 8)
            data = head + rng.randbytes(4 * options) + inner
        return ports + struct.pack(">HH", 8 + len(data), 0) + data
    if number == 132:
        return ports + rng.randbytes(8) + data
    if number in (1, 58):
        return bytes((rng.choice((0, 3, 8, 11, 128, 129, 135, 136)), rng.randrange(3))) + rng.randbytes(6) + data
    return data


def ipv4(rng: random.Random, depth: int) -> bytes:
    words = rng.choice((5, 5, 5, 6, 15, rng.randrange(16)))
    number = rng.choice((6, 6, 17, 17, 17, 1, 2, 132, 51, 50, 103, 112, 9, 47))
    body = transport(rng, number, depth)
    if number == 51:
        body = bytes((6, rng.randrange(4))) + rng.randbytes(14) + transport(rng, 6, depth)
    fragment = rng.choice((0, 0, 0, 0x4000, 0x2000, 0x2005, 0x0010))
    head = struct.pack(
        ">BBHHHBBH", 0x40 | words, rng.randrange(256), 20 + len(body), 1, fragment, rng.randrange(256), number, 0
    )
    return head + rng.choice(IP4) + rng.choice(IP4) + rng.randbytes(max(0, 4 * words - 20)) + body


def ipv6(rng: random.Random, depth: int) -> bytes:
    number = rng.choice((6, 17, 58, 132, 59, 50, 103))
    body = transport(rng, number, depth)
    for _ in range(rng.choice((0, 0, 0, 1, 1, 2, 3))):
        kind = rng.choice((0, 43, 44, 60, 51))
        size = rng.choice((0, 0, 1, 2))
        if kind == 44:
            head = bytes((number, 0)) + rng.randbytes(6)
        elif kind == 51:
            head = bytes((number, size + 1)) + rng.randbytes(4 * (size + 3) - 2)
        else:
            head = bytes((number, size)) + rng.randbytes(8 * size + 6)
        number, body = kind, head + body
    addresses = rng.choice(IP6) + rng.choice(IP6)
    return struct.pack(">IHBB", 0x60000000 | rng.randrange(1 << 20), len(body), number, 64) + addresses + body


def network(rng: random.Random, kind: int, depth: int) -> bytes:
    """What follows an Ethernet type."""
    if kind == 0x0800:
        return ipv4(rng, depth)
    if kind == 0x86DD:
        return ipv6(rng, depth)
    if kind in (0x0806, 0x8035):
        addresses = rng.choice(MACS) + rng.choice(IP4) + rng.choice(MACS) + rng.choice(IP4)
        return struct.pack(">HHBBH", 1, 0x0800, 6, 4, rng.choice((1, 2))) + addresses
    if kind in (0x8100, 0x88A8, 0x9100) and depth < 3:
        inner = kinds(rng)
        return struct.pack(">HH", rng.choice((5, 100, 0x2005)), inner) + network(rng, inner, depth + 1)
    if kind == 0x8847:
        labels = [
            rng.choice((16, 100, 1024)) << 12 | rng.randrange(2, 256) & 0xEFF for _ in range(rng.choice((1, 1, 2)))
        ]
        labels[-1] |= 0x100
        return b"".join(struct.pack(">I", one) for one in labels) + (ipv4, ipv6)[rng.randrange(2)](rng, depth + 1)
    if kind == 0x8864:
        protocol = rng.choice((0x21, 0x57, 0xC021, 0x0281))
        inner = ipv4(rng, depth) if protocol == 0x21 else ipv6(rng, depth) if protocol == 0x57 else rng.randbytes(20)
        if protocol == 0x0281:
            inner = network(rng, 0x8847, depth)
        return struct.pack(">BBHHH", 0x11, 0, rng.choice((5, 7)), len(inner) + 2, protocol) + inner
    if kind == 0x6003:
        flags = rng.choice((b"\x02", b"\x06", b"\x81\x02", b"\x81\x06"))
        return b"\0\0" + flags + b"".join(rng.choice((b"\x05\x04", b"\x0a\x08", b"\0\0")) for _ in range(15))
    return rng.randbytes(rng.randrange(60))


def kinds(rng: random.Random) -> int:
    common = (0x0800, 0x0800, 0x0800, 0x86DD, 0x86DD, 0x0806, 0x8100, 0x88A8, 0x8847, 0x8864)
    rare = (0x8035, 0x9100, 0x6003, 0x8863, 0x809B, 0x80F3, 0x8137, 0x6004, 0x6007, 0x6001, 0x6002, 0x9000, 0x1234)
    return rng.choice(common) if rng.random() < 0.8 else rng.choice(rare)


def llc(rng: random.Random) -> bytes:
    what = rng.randrange(4)
    if what == 0:
        kind = rng.choice((0x809B, 0x80F3, 0x8137, 0x0800))
        return b"\xaa\xaa\x03" + rng.choice((b"\x08\0\x07", b"\0\0\0")) + struct.pack(">H", kind) + rng.randbytes(20)
    if what == 1:
        pdu = rng.choice((15, 16, 17, 18, 20, 24, 25, 26, 27))
        return b"\xfe\xfe\x03" + bytes((rng.choice((0x81, 0x82, 0x83)), 0, 0, 0, pdu)) + rng.randbytes(20)
    sap = rng.choice((0xF0, 0x42, 0xE0, 0x06, 0xFF, 0xFE))
    return bytes(
        (sap, rng.choice((sap, 1)), rng.choice((0x03, 0x63, 0x43, 0x0F, 0x6F, 0x01, 0x05, 0x09, 0x10)))
    ) + bytes(9)


def frame(rng: random.Random, depth: int = 0) -> bytes:
    """An Ethernet frame."""
    head = rng.choice(MACS) + rng.choice(MACS)
    if rng.random() < 0.12:
        body = llc(rng)
        return head + struct.pack(">H", len(body)) + body
    kind = kinds(rng)
    return head + struct.pack(">H", kind) + network(rng, kind, depth)


def packet(rng: random.Random, link: int = ETHERNET) -> bytes:
    """A packet, in one case of three cut off."""
    found = frame(rng) if link == ETHERNET else (ipv4, ipv6)[rng.randrange(2)](rng, 0)
    if link == RAW and rng.random() < 0.1:
        found = rng.randbytes(40)
    return found[: rng.randrange(len(found) + 1)] if rng.random() < 0.33 else found


@cache
def packets(count: int, link: int = ETHERNET, seed: int = 1) -> tuple[bytes, ...]:
    rng = random.Random(seed)
    return (b"", *(packet(rng, link) for _ in range(count - 1)))


# ------------------------------------------------------------------------------------------------ expressions

EXPRESSIONS = r"""
ip
ip6
arp
rarp
tcp
udp
icmp
icmp6
sctp
igmp
igrp
pim
vrrp
carp
ah
esp
atalk
aarp
decnet
lat
sca
moprc
mopdl
iso
esis
es-is
isis
is-is
l1
l2
iih
lsp
snp
csnp
psnp
clnp
stp
ipx
netbeui
not ip
! tcp
not not udp
host 10.0.0.1
src host 10.0.0.1
dst host 10.0.0.2
src 10.0.0.1
dst 8.8.8.8
src or dst host 10.0.0.1
src and dst host 10.0.0.1
dst and src 10.0.0.1
ip host 10.0.0.1
arp host 10.0.0.2
rarp src host 10.0.0.2
ip src 10.0.0.1
not host 10.0.0.1
host 10.0.0.1 or 10.0.0.2
host 10.0.0.1 and 10.0.0.2
host (10.0.0.1 or 8.8.8.8)
src host (10.0.0.1 or (10.0.0.2 or 8.8.8.8))
host 10.0.0.1 and not 10.0.0.2
host not 10.0.0.1
host (not 10.0.0.1 and 10.0.0.2)
host 10.0.0
host 167772161
src host 0xa000001
net 10
net 10.0
net 192.168
net 192.168.1
src net 10.0.0.0/8
net 10.0.0.0/30
dst net 10.0/16
net 0.0.0.0/0
net 10.0.0.0 mask 255.0.0.0
net 192.168 mask 255.255
ip6 host fe80::1
host fe80::1
src host 2001:db8::2
dst fe80::1
src and dst host fe80::1
net 2001:db8::/32
net ff00::/8
ip6 net fe80::/10
net fe80::/65
net ::/0
host ::ffff:1.2.3.4
ip6 src host fe80::1 or dst host ff02::1
port 80
src port 80
dst port 80
src and dst port 80
src or dst port 53
tcp port 80
udp port 53
sctp port 1000
tcp src port 443
tcp dst port 22
port 80 or 443
port 80 or 443 or 22
tcp port 80 and not 443
port (80 or 443)
tcp port (80 or 443) and host 10.0.0.1
not port 22
port http
port ssh
port domain
tcp port https
udp port domain
port www or ssh
port telnet or snmp
portrange 20-100
tcp portrange 1000-9000
udp src portrange 53-53
dst portrange 100-20
portrange 22
portrange ssh-http
src portrange 22-80 or 443-443
ether host 02:00:00:00:00:01
ether src 02-00-00-00-00-02
ether dst 0200.0000.0001
ether dst host 020000000001
ether host 2.0.0.0.0.1
ether src and dst 2:0:0:0:0:1
link host ff:ff:ff:ff:ff:ff
ether proto 0x800
ether proto \ip
ether proto \arp or \rarp
ether proto 6
ether proto 0xfe
ether proto \stp
ether proto \ipx
ether proto loopback
ether proto 0x809b
ether proto 1500
ip proto 6
ip proto \tcp
ip proto \icmp or \udp
ip6 proto 17
ip6 proto \tcp
ip6 proto 44
proto 6
proto \udp
ip proto gre
ip6 proto ipv6-icmp
iso proto \esis
iso proto 0x83
isis proto 15
ether broadcast
broadcast
ether multicast
multicast
ip multicast
ip6 multicast
less 60
greater 100
len > 90
len <= 60
length = 42
len - 14 > 50
byte 0 = 2
byte 12 > 8
byte 13 < 10
vlan
vlan 5
vlan 100
vlan and ip
vlan 5 and tcp port 80
vlan and vlan
vlan 5 and vlan 100 and ip
vlan or ip
not vlan and ip
vlan and not tcp
mpls
mpls 16
mpls 100 and tcp
mpls and ip
mpls and ip6
mpls 16 and mpls 100
mpls and mpls and host 10.0.0.1
mpls and port 80
mpls and icmp6[0] = 128
pppoed
pppoes
pppoes 5
pppoes and ip
pppoes 7 and tcp port 80
pppoes and ip6
pppoes and ip6 and host fe80::1
pppoes and mpls
vlan and pppoes and ip
geneve
geneve 5
geneve 100 and ip
geneve and tcp
geneve and host 10.0.0.1
geneve and port 80
geneve and ip6
geneve and ether host 02:00:00:00:00:01
geneve and broadcast
geneve and multicast
geneve and arp
geneve and vlan
geneve and vlan and ip and port 80
geneve and tcp[13] & 2 != 0
geneve and ether[0] & 1 = 0
geneve and ip[9] = 6
geneve and icmp6
geneve and mpls
geneve and pppoes
geneve and geneve
geneve and udp[2:2] > 100
ip and geneve 5 and net 10.0.0.0/8
llc
llc i
llc s
llc u
llc rr
llc rnr
llc rej
llc ui
llc ua
llc disc
llc dm
llc sabme
llc test
llc xid
llc frmr
decnet src 1.5
decnet host 2.10
decnet dst 1.5 or 2.10
ip protochain 6
ip6 protochain 6
protochain 17
ip6 protochain \tcp
protochain 51
ip6 protochain 59
ip protochain 51
ip[0] = 0x45
ip[0] & 0xf != 5
ip[0] & 0xf > 5
ip[8] < 64
ip[2:2] > 60
ip[12:4] = 0x0a000001
ip[6:2] & 0x1fff = 0
(ip[2:2] - ((ip[0]&0xf)<<2)) != 0
tcp port 80 and (((ip[2:2] - ((ip[0]&0xf)<<2)) - ((tcp[12]&0xf0)>>2)) != 0)
tcp[tcpflags] & (tcp-syn|tcp-fin) != 0
tcp[tcpflags] == tcp-syn
tcp[tcpflags] & (tcp-syn|tcp-ack) == tcp-syn
tcp[13] = 18
tcp[0:2] = 80
tcp[2:2] = 443 or udp[2:2] = 53
tcp[((tcp[12:1] & 0xf0) >> 2):4] = 0x47455420
tcp[tcp[12] >> 2] > 5
udp[4:2] > 20
icmp[icmptype] = icmp-echo
icmp[icmptype] != icmp-echo and icmp[icmptype] != icmp-echoreply
icmp[icmpcode] = 1
icmp6[icmp6type] = icmp6-echo
icmp6[icmp6type] = icmp6-neighborsolicit or icmp6[0] = 136
sctp[0:2] = 1000
igmp[0] > 16
ip6[6] = 17
ip6[40] = 6
ip6[6:1] == 6 and ip6[53] & 2 != 0
ether[0] & 1 = 0
ether[12:2] = 0x800
ether[6:4] = 0x02000000
ether[0:2] + ether[2:2] = 0x200
ether[1000] = 0
not ether[1000] = 0
ether[0xffffffff] = 0
not ether[0xffffffff:4] = 1
ether[len - 1] > 100
ether[len] = 0
arp[6:2] = 1
rarp[6:2] = 2
ether[13] * 2 = 16
ether[12] / 2 = 4
ether[13] % 3 = 0
5 / ether[13] = 0
5 % ether[13] = 5
ether[0] ^ 2 = 0
ether[0] | 1 = 3
ether[0] << 4 = 32
ether[0] >> 1 = 1
1 << ether[0] = 4
1 << ether[12] = 256
0xffffffff >> ether[5] = 0
-1 = 0xffffffff
- ether[0] = 0xfffffffe
-ether[0] > 5
ether[0] - 3 > 0
1 = 1
1 = 2
2 > 1 and ip
1 != 1 or ip6
0 < 1
ether[0] + 1 * 2 = 4
(ether[0] + 1) * 2 = 6
ether[0] & 3 << 1 = 2
ether[0] + ether[13] % 4 + 1 = 3
ether[13] ^ 1 + 1 = 2
ether[0] = ether[6]
ether[0:4] != ether[6:4]
ether[0:4] > ether[6:4]
ether[0] >= ether[12]
ip[8] > udp[5]
ip[0] + tcp[0] > 5
1 + tcp[0] > 5
tcp[0] + 1 > 5
ip[ip[0] & 0xf] > 10
ip[udp[0]] = 1
tcp[-1] = 0
tcp[-20] = 0x45
ip[-14] = 2
icmp[0] = 8 and ip[9] = 1 or udp
ip and (tcp or udp) and not (port 80 or 443)
(ip or ip6) and tcp
(tcp port 80) or (udp port 53)
tcp or udp and port 53
tcp and port 80 or udp and port 53
port 80 && (host 10.0.0.1 || 8.8.8.8)
tcp port 80 and (tcp[tcpflags] & tcp-syn != 0 or host 8.8.8.8) or 443
host 10.0.0.1 and (port 80) or 8.8.8.8
arp or (ip and icmp) or not (ip6 and tcp)
ip and not net 10.0.0.0/8 and not net 192.168.0.0/16
not (tcp[13] & 1 = 1) and not ether[40] = 0
ether host 02:00:00:00:00:01 and ip host 10.0.0.1
(vlan and ip) or (vlan and ip6)
ip[0] & 0xf0 = 0x40 and len >= 60
""".strip().splitlines()
