"""Packet filters in the kernel: the verifier takes them, and they say of a packet what libpcap says."""

import ctypes as C
import fcntl
import platform
import socket
import struct
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from igrun.dataclass import replace
from igrun.errors import ParamError, UnsupportedError
from igrun.host import Host
from igrun.load import LoadedProgram, filtered, load
from igrun.metadata import GadgetMetadata
from igrun.packetfilter import REJECT_ALL
from igrun.program import Plan, Program
from tests import packetfilters
from tests.compiled import compiled
from tests.packetfilters import ETHERNET, EXPRESSIONS, RAW, packets, pcap

pytestmark = pytest.mark.kernel

HEAD = """
#include <vmlinux.h>
#include <bpf/bpf_helpers.h>
#include <gadget/packetfilter.h>
char LICENSE[] SEC("license") = "GPL";
"""
# The layout of the ecosystem's header, in words of our own
FOREIGN = """
#include <vmlinux.h>
#include <bpf/bpf_helpers.h>
static __attribute__((noinline)) bool gadget_pf_(void *_skb, void *__skb, void *___skb, void *data, void *data_end)
{
	return data != data_end && _skb == __skb && __skb == ___skb;
}
#define gadget_pf_matches(skb, data, end) gadget_pf_((void *)skb, (void *)skb, (void *)skb, (void *)data, (void *)end)
#define GADGET_PF()
char LICENSE[] SEC("license") = "GPL";
"""
BODY = """
GADGET_PF();
static __attribute__((noinline)) int before(struct %(context)s *ctx) { return ctx->%(field)s != 0x12345; }
SEC("%(section)s")
int filtered(struct %(context)s *ctx)
{
	if (!before(ctx))
		return %(no)d;
	return gadget_pf_matches(ctx, (void *)(long)ctx->data, (void *)(long)ctx->data_end) ? %(yes)d : %(no)d;
}
"""
CLASSIFIER = BODY % {
    "section": "classifier/ingress/filtered",
    "context": "__sk_buff",
    "field": "mark",
    "yes": 1,
    "no": 0,
}
XDP = BODY % {"section": "xdp", "context": "xdp_md", "field": "ingress_ifindex", "yes": 1, "no": 2}
CGROUP = BODY % {"section": "cgroup_skb/ingress", "context": "__sk_buff", "field": "mark", "yes": 1, "no": 0}
SOCKET = """
GADGET_PF();
SEC("socket1")
int filtered(struct __sk_buff *ctx) { return gadget_pf_matches(ctx, ctx, 0) ? 65536 : 0; }
"""
SMALLEST = 14  # bytes of a packet that the kernel takes for a test run
BPF_PROG_TEST_RUN = 10
NUMBER = {"x86_64": 321, "aarch64": 280}


class RunOptions(C.Structure):
    _fields_ = (
        *((name, C.c_uint32) for name in ("prog_fd", "retval", "data_size_in", "data_size_out")),
        *((name, C.c_uint64) for name in ("data_in", "data_out")),
        *((name, C.c_uint32) for name in ("repeat", "duration", "ctx_size_in", "ctx_size_out")),
        *((name, C.c_uint64) for name in ("ctx_in", "ctx_out")),
    )


def verdict(loaded: LoadedProgram, packet: bytes, program: str = "filtered") -> int:
    """What the program returns for a packet."""
    data = C.create_string_buffer(packet, len(packet))
    run = RunOptions(prog_fd=loaded.program(program).fd, data_size_in=len(packet), data_in=C.addressof(data), repeat=1)
    libc = C.CDLL(None, use_errno=True)
    if libc.syscall(NUMBER[platform.machine()], BPF_PROG_TEST_RUN, C.byref(run), C.c_uint(C.sizeof(run))) < 0:
        raise OSError(C.get_errno(), "BPF_PROG_TEST_RUN")
    return run.retval


def loaded(stack: ExitStack, source: str, head: str = HEAD, **values: str) -> LoadedProgram:
    program = Program.open(compiled(source, head=head), GadgetMetadata.parse(b"name: test\n", strict=False))
    given = {name.replace("_", "-"): text for name, text in values.items()}
    return load(Plan(program, Host.current(), program.sources, stack, given))


def whole(found: bytes) -> bool:
    """The kernel takes the packet for a test run: an Ethernet header, and what the header says of IP is there.

    Since Linux 6.19 (6d5f3f9d2f4d, "bpf: Reject bpf_prog_test_run_skb without IP header") it looks at the second.
    """
    needs = {b"\x08\0": 34, b"\x86\xdd": 54}.get(found[12:14], SMALLEST + 1)
    return len(found) >= needs


SAMPLE = [one for one in packets(260) if whole(one)]


def agree(source: str, expressions: list[str], yes: int = 1, head: str = HEAD) -> None:
    """The program's verdicts are those of libpcap."""
    for expression in expressions:
        with ExitStack() as stack:
            program = loaded(stack, source, head, pf=expression)
            expected = pcap(ETHERNET).compiled(expression)
            assert not isinstance(expected, str), (expression, expected)
            for packet in SAMPLE:
                found = verdict(program, packet)
                assert (found == yes) == pcap(ETHERNET).matches(expected, packet), (expression, packet.hex())


@pytest.mark.parametrize("part", range(6))
def test_a_classifier_says_what_libpcap_says(part: int):
    agree(CLASSIFIER, EXPRESSIONS[part::6])


def test_an_xdp_program_says_what_libpcap_says():
    agree(XDP, EXPRESSIONS[::7])


def test_a_socket_filter_reads_the_packet_by_a_helper():
    # The kernel takes the tag of a VLAN out of the packet before a socket sees it.
    sent = [one for one in SAMPLE if one[12:14] not in (b"\x81\0", b"\x88\xa8")][:60]
    for expression in EXPRESSIONS[::16]:
        with ExitStack() as stack:
            program = loaded(stack, SOCKET, pf=expression)
            with ThreadPoolExecutor(1) as alone:
                found = alone.submit(received, program.program("filtered").fd, sent).result(30)
        expected = pcap(ETHERNET).compiled(expression)
        assert not isinstance(expected, str)
        assert found == [pcap(ETHERNET).matches(expected, one) for one in sent], expression


def received(filter_fd: int, sent: list[bytes]) -> list[bool]:
    """Which of the packets a socket with the filter receives, in a network namespace for this thread alone."""
    new_network, everything, attach_bpf, ignore_outgoing, packet_level = 0x40000000, 3, 50, 23, 263
    assert C.CDLL(None, use_errno=True).unshare(new_network) == 0
    with ExitStack() as stack:
        # Who listens last hears first: when the other one has a packet, the one with the filter has seen it.
        other, filtered_ = (
            stack.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(everything)))
            for _ in range(2)
        )
        up = struct.pack("16sh14x", b"lo", 1)  # struct ifreq with IFF_UP
        fcntl.ioctl(other, 0x8914, up)  # SIOCSIFFLAGS
        for one in (other, filtered_):
            one.setsockopt(packet_level, ignore_outgoing, 1)
        other.settimeout(5)
        filtered_.setblocking(False)
        filtered_.setsockopt(socket.SOL_SOCKET, attach_bpf, filter_fd)
        found = []
        for packet in sent:
            other.sendto(packet, ("lo", everything))
            assert other.recv(65536) == packet
            try:
                found.append(len(filtered_.recv(65536)) > 0)
            except BlockingIOError:
                found.append(False)
        return found


def test_an_object_made_with_the_ecosystems_header_says_what_libpcap_says():
    agree(CLASSIFIER, EXPRESSIONS[2::9], head=FOREIGN)


def test_programs_of_cgroups_see_packets_without_a_link_header():
    """A test run gives them what follows the Ethernet header."""
    for expression in ("tcp", "ip host 10.0.0.1", "udp port 53", "ip6", "tcp[13] & 2 != 0"):
        with ExitStack() as stack:
            program = loaded(stack, CGROUP, pf=expression)
            expected = pcap(RAW).compiled(expression)
            assert not isinstance(expected, str)
            for packet in packets(200):
                if whole(packet) and packet[12:14] in (b"\x08\0", b"\x86\xdd"):
                    found = verdict(program, packet)
                    assert (found == 1) == pcap(RAW).matches(expected, packet[14:]), (expression, packet.hex())


@pytest.mark.parametrize("source", [CLASSIFIER, XDP])
@pytest.mark.parametrize("head", [HEAD, FOREIGN])
def test_without_a_filter_everything_passes_and_reject_all_lets_nothing_pass(source: str, head: str):
    with ExitStack() as stack:
        everything, nothing = loaded(stack, source, head), loaded(stack, source, head, pf=REJECT_ALL)

        assert {verdict(everything, packet) for packet in SAMPLE[:20]} == {1}
        assert 1 not in {verdict(nothing, packet) for packet in SAMPLE[:20]}


LONG = {
    "ports": " or ".join(f"port {port}" for port in range(1, 300)),
    "hosts": " or ".join(f"host 10.{n // 250}.{n % 250}.1" for n in range(180)),
    "addresses": " or ".join(f"host 2001:db8::{n:x}" for n in range(170)),
    "bytes": " or ".join(f"tcp[{n}:2] = {n}" for n in range(200)),
    "ranges": " or ".join(f"tcp portrange {n}0-{n}5" for n in range(1, 150)),
    "nested": "not (" * 39 + "tcp" + ")" * 39,
    "sums": " + ".join(f"ether[{n}]" for n in range(90)) + " > 300",
    "chain": "ip6 protochain 6 or ip protochain 17",
}


@pytest.mark.parametrize("which", LONG)
@pytest.mark.parametrize("source", [CLASSIFIER, XDP])
def test_the_verifier_takes_long_filters(which: str, source: str):
    agree(source, [LONG[which]])


def test_each_filter_is_put_into_its_own_function_and_all_that_call_it_have_it():
    source = """
    GADGET_PF(first);
    static __attribute__((noinline)) int between(struct __sk_buff *ctx);
    GADGET_PF(second);
    static __attribute__((noinline)) int between(struct __sk_buff *ctx)
    {
        return gadget_pf_matches(first, ctx, (void *)(long)ctx->data, (void *)(long)ctx->data_end);
    }
    SEC("classifier/ingress/filtered")
    int filtered(struct __sk_buff *ctx)
    {
        void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
        return between(ctx) * 2 + gadget_pf_matches(second, ctx, data, end);
    }
    SEC("classifier/egress/other")
    int other(struct __sk_buff *ctx)
    {
        return gadget_pf_matches(second, ctx, (void *)(long)ctx->data, (void *)(long)ctx->data_end) * 4;
    }
    """
    tcp = next(one for one in SAMPLE if matches("ip and tcp port 80", one))
    udp = next(one for one in SAMPLE if matches("ip and udp", one))
    with ExitStack() as stack:
        program = loaded(stack, source, pf_first="tcp", pf_second="tcp port 80 or udp")

        assert [verdict(program, tcp, name) for name in ("filtered", "other")] == [3, 4]
        assert [verdict(program, udp, name) for name in ("filtered", "other")] == [1, 4]


def matches(expression: str, packet: bytes) -> bool:
    compiled_ = packetfilters.pcap().compiled(expression)
    assert not isinstance(compiled_, str)
    return packetfilters.pcap().matches(compiled_, packet)


def test_a_tunnel_has_no_link_header(tmp_path):
    net = tmp_path / "sys/class/net/wg0"
    net.mkdir(parents=True)
    (net / "type").write_text("65534\n")
    program = Program.open(compiled(CLASSIFIER, head=HEAD), GadgetMetadata.parse(b"name: test\n", strict=False))
    with ExitStack() as stack:
        host = replace(Host.current(), root=tmp_path)
        plan = Plan(program, host, program.sources, stack, {"pf": "ether host 1:2:3:4:5:6", "iface": "wg0"})
        with pytest.raises(ParamError, match="ethernet addresses are on Ethernet only"):
            filtered(plan, program.elf)


def test_a_program_without_packets_has_no_filter():
    source = """
    GADGET_PF();
    SEC("tracepoint/syscalls/sys_enter_openat")
    int opened(void *ctx) { return gadget_pf_matches(ctx, ctx, 0); }
    """
    with ExitStack() as stack, pytest.raises(UnsupportedError, match="have no packet to filter"):
        loaded(stack, source, pf="tcp")
