"""Packet filters: their language, the code that is made of them, and where it is put in an object."""

import random
import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from igrun.elf import Elf
from igrun.errors import GadgetError, ImageError, ParamError, UnsupportedError
from igrun.packetfilter import REJECT_ALL, Access, Link, check, compiled, inject
from igrun.packetfilter.patch import Patch
from tests.compiled import compiled as object_of
from tests.packetfilters import ETHERNET, EXPRESSIONS, RAW, decoded, packet, packets, pcap, run

LINKS = {ETHERNET: Link.ETHERNET, RAW: Link.IP}
HEAD = """
#include <vmlinux.h>
#include <bpf/bpf_helpers.h>
#include <gadget/packetfilter.h>
char LICENSE[] SEC("license") = "GPL";
"""
GADGET = """
static __attribute__((noinline)) int before(struct __sk_buff *ctx) { return ctx->mark != 5; }
GADGET_PF();
GADGET_PF(dns);
static __attribute__((noinline)) int behind(struct __sk_buff *ctx) { return ctx->mark != 6; }
SEC("classifier/ingress/first")
int first(struct __sk_buff *ctx)
{
    void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
    return before(ctx) && gadget_pf_matches(ctx, data, end) && gadget_pf_matches(dns, ctx, data, end) && behind(ctx);
}
"""


def verdicts(expression: str, found: bytes, link: int) -> set[bool]:
    """What the code for each kind of program says, with all of the packet readable, a part of it, or nothing."""
    said = set()
    for access in Access:
        code = decoded(compiled(expression, link=LINKS[link], access=access))
        readable = {Access.DIRECT: (None,), Access.BOTH: (len(found), len(found) // 2), Access.HELPER: (-1,)}[access]
        said |= {run(code, found, linear) for linear in readable}
    return said


# ------------------------------------------------------------------------------------------------ beside libpcap


@pytest.mark.parametrize("link", LINKS)
def test_every_expression_says_of_every_packet_what_libpcap_says(link: int):
    for expression in EXPRESSIONS:
        expected = pcap(link).compiled(expression)
        if isinstance(expected, str):
            with pytest.raises(ParamError):
                compiled(expression, link=LINKS[link])
            continue
        codes = {access: decoded(compiled(expression, link=LINKS[link], access=access)) for access in Access}
        for found in packets(50, link):
            said = {
                run(codes[Access.DIRECT], found),
                run(codes[Access.BOTH], found, len(found) // 2),
                run(codes[Access.HELPER], found, -1),
            }
            assert said == {pcap(link).matches(expected, found)}, (expression, found.hex())
        pcap(link).free(expected)


def words(*listed: str) -> st.SearchStrategy[str]:
    return st.sampled_from(listed)


HOSTS = words("10.0.0.1", "10.0.0.2", "8.8.8.8", "fe80::1", "2001:db8::2", "192.168.1.77")
NUMBERS = st.integers(0, 70).map(str) | words("0xffff", "0x0800", "017", "4294967295", "tcp-syn", "icmp-echo")
PROTOCOLS = words("ip", "ip6", "tcp", "udp", "icmp", "icmp6", "arp", "sctp", "ether")
DIRECTIONS = words("", "src ", "dst ", "src or dst ", "src and dst ", "dst and src ")
COMPUTED = st.recursive(
    NUMBERS | st.just("len") | st.builds("{}[{}]".format, PROTOCOLS, NUMBERS),
    lambda inner: st.one_of(
        st.builds("{} {} {}".format, inner, words(*"+-*/%&|^", "<<", ">>"), inner),
        st.builds("({} {} {})".format, inner, words(*"+-*/&|", "<<", ">>"), inner),
        st.builds("-{}".format, inner),
        st.builds("{}[{}:{}]".format, PROTOCOLS, inner, words("1", "2", "4")),
    ),
    max_leaves=5,
)
PRIMITIVES = st.one_of(
    words(
        "ip", "ip6", "tcp", "udp", "icmp", "arp", "vlan", "vlan 5", "mpls", "pppoes", "geneve", "geneve 5", "multicast"
    ),
    st.builds("{}host {}".format, DIRECTIONS, HOSTS),
    st.builds(
        "{}{}port {}".format, words("", "tcp ", "udp "), DIRECTIONS, words("22", "53", "80", "443", "http", "6081")
    ),
    st.builds("{}portrange {}-{}".format, DIRECTIONS, st.integers(0, 500), st.integers(0, 9000)),
    st.builds("{}net {}".format, DIRECTIONS, words("10.0.0.0/8", "10", "192.168", "fe80::/10", "224.0.0.0/3")),
    st.builds("ether {}host {}".format, DIRECTIONS, words("02:00:00:00:00:01", "02:00:00:00:00:02")),
    st.builds("{} {} {}".format, COMPUTED, words("=", "!=", "<", ">", "<=", ">="), COMPUTED),
)
FILTERS = st.recursive(
    PRIMITIVES,
    lambda inner: st.one_of(
        st.builds("{} {} {}".format, inner, words("and", "or", "&&", "||"), inner),
        st.builds("({})".format, inner),
        st.builds("not {}".format, inner),
        st.builds("{} or {}".format, inner, words("443", "10.0.0.2", "not 53", "(80 and 22)", "not (22 or 80)")),
    ),
    max_leaves=6,
)


@given(FILTERS, st.integers(0, 1 << 32), st.sampled_from(tuple(LINKS)))
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_filter_means_what_it_means_to_libpcap(expression: str, seed: int, link: int):
    expected = pcap(link).compiled(expression)
    rng = random.Random(seed)
    try:
        check(expression)
        compiled(expression, link=LINKS[link])
    except ParamError as error:
        assert str(error).isprintable() and "at character" in str(error)
        assert isinstance(expected, str), f"{expression}: {error}"
        return
    if isinstance(expected, str):
        # libpcap takes the first number of a computation for all of it, and has no more than 16 registers.
        assert "zero" in expected or "31 bits" in expected or "registers" in expected, (expression, expected)
        return
    if "geneve" in expression and any(one in expression for one in ("or", "||", "not")):
        return  # without a tunnel, libpcap reads memory that nobody wrote
    for _ in range(12):
        found = packet(rng, link)
        assert verdicts(expression, found, link) == {pcap(link).matches(expected, found)}, (expression, found.hex())
    pcap(link).free(expected)


def test_behind_geneve_everything_is_about_the_tunnel():
    for expression in ("geneve or ip", "geneve or not ip", "not geneve and tcp", "geneve or ether host 2:0:0:0:0:1"):
        for found in packets(200):
            assert verdicts(expression, found, ETHERNET) == {False} or verdicts("geneve", found, ETHERNET) == {True}


def test_a_chain_of_more_headers_than_eight_is_not_followed():
    def chained(count: int) -> bytes:
        heads = b"".join(bytes((60 if n + 1 < count else 6, 0)) + bytes(6) for n in range(count))
        return bytes(12) + b"\x86\xdd" + bytes((0x60, 0, 0, 0, 0, 0, 60, 1)) + bytes(32) + heads + bytes(20)

    assert verdicts("ip6 protochain 6", chained(7), ETHERNET) == {True}
    assert verdicts("ip6 protochain 6", chained(8), ETHERNET) == {False}


# ------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("expression", "problem", "hint"),
    [
        ("tcp prot 80", "'prot' cannot stand here, at character 5 of 'tcp prot 80'", "did you mean proto?"),
        ("tcp port", "the filter ends too early, at character 9 of 'tcp port'", ""),
        ("port 80 and (host 10.0.0.1", "the filter ends too early, at character 27", ""),
        (
            "host example.org",
            "unknown host 'example.org', at character 6",
            "names of hosts and networks are not looked",
        ),
        ("net loopback", "unknown network 'loopback'", "not looked up"),
        ("port htttp", "unknown port 'htttp', at character 6", "did you mean http?"),
        ("ip proto tcp", "'tcp' cannot stand here, at character 10", "\\tcp"),
        ("ip proto ggre", "unknown protocol 'ggre'", "did you mean gre?"),
        ("gateway snup", "'gateway' needs names of hosts", "ether host"),
        ("inbound", "'inbound' cannot be told", "direction by the program"),
        ("ip broadcast", "'ip broadcast' needs the netmask", "dst host"),
        ("byte 0 & 1", "`byte` has no '&', at character 8", "ether[0] & 1 != 0"),
        ("type mgt", "'type' is for wireless frames", ""),
        ("lane", "'lane' is for ATM", ""),
        ("tcp or 80", "'80' has no qualifier, at character 8", "port 80"),
        ("10.0.0.1", "'10.0.0.1' cannot stand alone", "host 10.0.0.1"),
        ("host 10.0.0.256", "'10.0.0.256' is no IPv4 address", ""),
        ("net 10.0.0.1/8", "has bits set that its mask leaves out", ""),
        ("net fe80::1/10", "has bits set behind its prefix", ""),
        ("host 10.0.0.0/8", "a mask is for networks", "net 10.0.0.0"),
        ("host 1:2:3:4:5:6", "an Ethernet address needs `ether`", "ether host"),
        ("ether host 1:2:3", "'1:2:3' is no Ethernet or IPv6 address", ""),
        ("port 65536", "port 65536 is larger than 65535", ""),
        ("icmp port 80", "'icmp' has no ports", "tcp, udp"),
        ("udp port ssh", "'ssh' is a port of tcp", ""),
        ("vlan 4096", "VLAN tag 4096 is larger than 4095", ""),
        ("mpls and arp", "behind `mpls` only IPv4 and IPv6", ""),
        ("ip[0:3] = 1", "1, 2 or 4 bytes can be read, not 3", ""),
        ("ip[0] / 0 = 1", "division by zero, at character 7", ""),
        ("len > 09", "'09' is no octal number", "octal"),
        ("len > 4294967296", "does not fit into 32 bits", ""),
        ("tcp $ udp", "'$' cannot stand here, at character 5", ""),
        ("ether", "'ether' says nothing alone", ""),
        ("(" * 50 + "ip" + ")" * 50, "more than 40 levels", ""),
        ("+".join(["1"] * 200) + " > 5", "more than 100 operators", ""),
        ("ip or " * 800 + "ip", "more than 4096 characters", ""),
    ],
)
def test_a_wrong_filter_is_refused_with_the_place(expression: str, problem: str, hint: str):
    with pytest.raises(ParamError) as found:
        check(expression, "pf-dns")

    assert str(found.value).startswith("--pf-dns: ")
    assert problem in str(found.value)
    assert hint in found.value.hint
    assert "\n" not in str(found.value) and found.value.key == "pf-dns"


@given(st.text(max_size=40) | st.lists(words(*" ".join(EXPRESSIONS).split()), max_size=12).map(" ".join))
@settings(max_examples=150, deadline=None)
def test_whatever_is_written_is_a_filter_or_refused_in_one_line(text: str):
    try:
        compiled(text)
    except ParamError as error:
        assert "\n" not in str(error)


def test_a_filter_that_needs_too_much_code_is_refused():
    expression = " or ".join(f"protochain {n}" for n in range(90))

    with pytest.raises(ParamError, match="too many instructions"):
        check(expression)


def test_no_filter_is_no_code():
    assert compiled("") == compiled(" \t") == b""


# ------------------------------------------------------------------------------------------------ the object


def test_an_object_without_a_filter_is_left_alone():
    elf = object_of(GADGET, head=HEAD)

    assert inject(elf, {}) == inject(elf, {"": "", "dns": " "}) == elf


def test_a_filter_stands_in_front_of_its_function_and_all_calls_find_it():
    elf = object_of(GADGET, head=HEAD)
    code = compiled("udp port 53", link=Link.ETHERNET)

    patched = inject(elf, {"dns": "udp port 53"})

    before, after = Patch(Elf(elf)), Patch(Elf(patched))
    old, new = ({one.name: one for one in patch.functions()} for patch in (before, after))
    moved = new["gadget_pf_dns"]
    content = after.code[moved.section]
    body = before.code[moved.section][old["gadget_pf_dns"].start : old["gadget_pf_dns"].end]
    assert content[moved.start : moved.end] == code + body
    assert {name: one.start for name, one in old.items() if name != "gadget_pf_dns"} == {
        name: one.start for name, one in new.items() if name != "gadget_pf_dns"
    }
    assert called(before) == called(after) == ["before", "gadget_pf_", "gadget_pf_dns", "behind"]


def called(patch: Patch) -> list[str]:
    """The functions that the program calls, in order."""
    starts = {(one.section, one.start): one.name for one in patch.functions()}
    return [starts[section, target] for _, _, section, target, _ in patch.calls()]


def test_what_an_object_tells_of_lines_and_functions_stays_in_order():
    for filters in ({"": "tcp"}, {"dns": REJECT_ALL}, {"": "tcp", "dns": "udp port 53"}):
        elf = Elf(inject(object_of(GADGET, head=HEAD), filters))
        patch = Patch(elf)
        section = elf.by_name[".BTF.ext"]
        starts = {one.start for one in patch.functions() if elf.sections[one.section].name == ".text"}
        tables = list(patch._tables(section))
        for table in tables[:2]:
            ((place, count, size),) = patch._records(section, table, ".text")
            offsets = [struct.unpack_from("<I", patch.data, place + n * size)[0] for n in range(count)]
            assert offsets == sorted(set(offsets))
            assert starts <= set(offsets)


def test_an_object_without_the_function_is_refused():
    with pytest.raises(ImageError, match="no function 'gadget_pf_other'"):
        inject(object_of(GADGET, head=HEAD), {"other": "tcp"})


def test_programs_that_read_packets_in_ways_too_different_do_not_share_a_filter():
    source = """
    GADGET_PF();
    SEC("xdp") int one(struct xdp_md *ctx)
    { return gadget_pf_matches(ctx, (void *)(long)ctx->data, (void *)(long)ctx->data_end); }
    SEC("socket1") int other(struct __sk_buff *ctx) { return gadget_pf_matches(ctx, ctx, 0); }
    """
    with pytest.raises(UnsupportedError, match="too different types"):
        inject(object_of(source, head=HEAD), {"": "tcp"})


@given(st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_broken_object_is_refused_or_patched(data: st.DataObject):
    elf = bytearray(object_of(GADGET, head=HEAD))
    # Section headers, symbols, relocations and .BTF.ext are in the last part of what the compiler writes.
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(elf) - 1))
        elf[at] = data.draw(st.sampled_from((0, 1, 0x7F, 0x80, 0xFF)))
    if data.draw(st.booleans()):
        del elf[data.draw(st.integers(0, len(elf))) :]
    try:
        inject(bytes(elf), {"": "tcp port 80", "dns": "udp"})
    except GadgetError as error:
        assert str(error).isprintable()
