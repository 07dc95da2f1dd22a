"""Programs that see packets: socket filters, tc, XDP, those of namespaces, netfilter, tunnels, ports."""

import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from struct import pack

import pytest

from igrun.attach import libxdp, tc
from igrun.errors import AttachError, KernelError, MetadataError, UnsupportedError
from igrun.host import HOST_TARGET, Target
from igrun.netlink import CREATE, EXCL, LINK, NESTED, Netlink, attribute
from tests import packaged
from tests.kernel.killing import killed
from tests.kernel.networks import HITS, Net, command, network, programs, send
from tests.typetable import SECTION

pytestmark = pytest.mark.kernel
OURS = ("count", "ig_tc", "ig_socket", "ig_lwt", "ig_reuseport")


@pytest.fixture(autouse=True, scope="module")
def own_programs() -> None:
    packaged.bpf()


@pytest.fixture(scope="module")
def net() -> Iterator[Net]:
    """One for all tests that leave it as it was."""
    with network() as one:
        yield one


@pytest.fixture
def own_net() -> Iterator[Net]:
    """One for a test that changes it."""
    with network() as one:
        yield one


def counting(section: str, context: str = "struct __sk_buff", result: str = "0", see: str = "0") -> str:
    """A program that counts its runs in hits[0] and leaves what it saw in hits[1]."""
    return f"""{HITS}
SEC("{section}")
int count({context} *ctx)
{{
	hit(0, 1);
	see(1, {see});
	return {result};
}}
"""


def of_port(section: str, port: int = 7777, result: str = "-1") -> str:
    """A program that counts IPv4 datagrams to a port in hits[0], and leaves cb[0] in hits[1]."""
    return f"""{HITS}
SEC("{section}")
int count(struct __sk_buff *skb)
{{
	__u16 to = 0;

	if (bpf_skb_load_bytes(skb, 36, &to, 2) || to != __builtin_bswap16({port}))
		return {result};
	hit(0, 1);
	see(1, skb->cb[0]);
	return {result};
}}
"""


def hits(started, at: int = 0) -> int:
    return int.from_bytes(started.loaded.map("hits").lookup(at.to_bytes(4, "little")) or b"", "little")


def waited(check, seconds: float = 5) -> bool:
    """True once it holds; the kernel frees programs after a grace period."""
    end = time.monotonic() + seconds
    while not check() and time.monotonic() < end:
        time.sleep(0.05)
    return bool(check())


def gone(started) -> bool:
    """Detach and unload; true if no program is left."""
    started.plan.stack.close()
    return waited(lambda: not programs(*OURS))


# ------------------------------------------------------------------------------------------------ socket filters


@pytest.mark.fires
def test_a_socket_filter_sees_the_packets_of_a_namespace_and_which_one_it_is(start, net):
    before = net.state()
    started = start(of_port("socket1", result="0"), target=net.target)

    net.packets_in(3)

    assert hits(started) == 3
    assert hits(started, 1) == net.inode
    assert gone(started)
    assert net.state() == before


def test_a_socket_filter_of_the_host_sees_the_packets_of_the_host(start, net):
    started = start(of_port("socket", port=7778, result="0"))

    net.packets_in(2, 7778)

    assert hits(started) == 2
    assert hits(started, 1) == Path("/proc/self/ns/net").stat().st_ino


def test_this_process_stays_in_its_namespace(start, net):
    before = Path("/proc/thread-self/ns/net").readlink()

    start(of_port("socket1"), target=net.target)

    assert Path("/proc/thread-self/ns/net").readlink() == before


def test_a_namespace_that_is_gone_is_told(start):
    with pytest.raises(
        AttachError, match=r"attach 'count' \(socket1\) to 'web': its network namespace /run/netns/none"
    ):
        start(of_port("socket1"), target=Target("web", netns=Path("/run/netns/none")))


# ------------------------------------------------------------------------------------------------ tc

WAYS = ["", "clsact", "tcx"]


def ways(way: str) -> str:
    return f"name: test\nprograms:\n  count:\n    tc.attach: {way}\n" if way else "name: test\n"


@pytest.mark.fires
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("section", ["classifier/ingress/main", "tc/ingress", "tcx/ingress"])
def test_ingress_of_a_container_is_what_comes_into_it(start, net, section, way):
    before = net.state()
    started = start(of_port(section), target=net.target, yaml=ways(way))

    net.packets_in(3)
    net.packets_out(5)

    assert hits(started) == 3
    assert hits(started, 1) == net.inode
    assert gone(started)
    assert net.state() == before


@pytest.mark.fires
@pytest.mark.parametrize("way", WAYS)
def test_egress_of_a_container_is_what_goes_out_of_it(start, net, way):
    before = net.state()
    started = start(of_port("classifier/egress/main"), target=net.target, yaml=ways(way))

    net.packets_in(3)
    net.packets_out(5)

    assert hits(started) == 5
    assert hits(started, 1) == net.inode
    assert gone(started)
    assert net.state() == before


@pytest.mark.parametrize("way", WAYS)
def test_an_interface_that_is_named_has_the_direction_that_is_named(start, net, way):
    target = Target("host", interface=net.outer)
    started = start(of_port("classifier/ingress/main"), target=target, yaml=ways(way))

    net.packets_in(3)
    net.packets_out(5)

    assert hits(started) == 5
    assert hits(started, 1) == Path("/proc/self/ns/net").stat().st_ino


def test_an_interface_that_is_named_is_the_hosts_whichever_the_target_is(net, start):
    with pytest.raises(AttachError, match="no such interface"):
        start(of_port("classifier/ingress/main"), target=Target(net.name, netns=net.path, interface=net.inner + "x"))


def test_an_unknown_interface_is_answered_with_its_neighbours(start, net):
    with pytest.raises(AttachError, match="this machine has no such interface") as error:
        start(of_port("classifier/ingress/main"), target=Target("host", interface=net.outer[:-1]))

    assert net.outer in error.value.hint


def test_the_hosts_own_interfaces_are_those_without_containers(start, net):
    started = start(of_port("classifier/egress/main", port=7779))
    names = {place.name for hook in started.loaded.hooks for place in tc.places(hook, HOST_TARGET)}

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.sendto(b"", ("127.0.0.1", 7779))
    net.packets_in(1, 7779)

    assert net.outer not in names and "lo" in names
    assert hits(started) == 1


def test_each_interface_of_a_container_is_attached_to(start, own_net):
    net, outer = own_net, f"{own_net.outer}b"
    command("ip", "link", "add", outer, "type", "veth", "peer", "name", "eth1", "netns", net.name)
    started = start(of_port("classifier/ingress/main"), target=net.target)
    hook = started.loaded.hooks[0]

    assert {place.name for place in tc.places(hook, net.target)} == {net.outer, outer}
    assert len(started.loaded.links) == 2
    assert gone(started)
    assert "clsact" not in command("tc", "qdisc", "show", "dev", outer)


def test_an_interface_without_an_end_outside_is_taken_where_it_is(start, own_net):
    net = own_net
    net.ip("link add v0 type veth peer name v1")
    started = start(of_port("classifier/ingress/main"), target=net.target)
    places = {place.name: place.direction for place in tc.places(started.loaded.hooks[0], net.target)}

    assert places == {net.outer: "egress", "v0": "ingress", "v1": "ingress"}


def test_two_targets_of_one_namespace_have_the_same_places(net, start):
    started = start(of_port("classifier/ingress/main"), target=net.target)
    hook = started.loaded.hooks[0]
    with subprocess.Popen(["ip", "netns", "exec", net.name, "sleep", "60"]) as process:
        there = Path(f"/proc/{process.pid}/ns/net")
        waited(lambda: there.stat().st_ino == net.inode)
        other = Target("other", netns=there)

        assert tc.places(hook, other) == tc.places(hook, net.target)
        assert len({*tc.places(hook, other), *tc.places(hook, net.target)}) == 1
        process.kill()


@pytest.mark.parametrize("way", WAYS)
def test_what_the_program_returns_is_done(start, net, way):
    started = start(of_port("classifier/ingress/main", result="2"), target=net.target, yaml=ways(way))
    with net.do(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as waiting:
        waiting.bind(("0.0.0.0", 7777))
        waiting.settimeout(0.2)

        net.packets_in(1)

        with pytest.raises(TimeoutError):
            waiting.recv(10)
        started.loaded.detach()
        net.packets_in(1)
        assert waiting.recv(10) == b"hello"


@pytest.mark.parametrize("way", WAYS)
def test_an_interface_that_goes_away_is_no_error(start, way):
    with network() as net:
        started = start(of_port("classifier/ingress/main"), target=net.target, yaml=ways(way))
    assert gone(started)


@pytest.fixture
def netkit(record_property) -> Iterator[str]:
    """The name of the primary end of a pair, whose other end is up in this namespace."""
    name = f"nk{os.getpid()}"
    with Netlink() as netlink:
        info = attribute(18 | NESTED, attribute(1, b"netkit\0"))
        body = pack(LINK, 0, 0, 0, 1, 1) + attribute(3, name.encode() + b"\0") + info
        try:
            netlink.ask(16, CREATE | EXCL, body, "add a netkit pair")  # RTM_NEWLINK
        except KernelError as error:
            record_property(SECTION, "netkit/primary")
            raise UnsupportedError("netkit", "this kernel has no such interfaces", since="6.7") from error
        one = next(found for found in netlink.interfaces() if found.name == name)
        peer = netlink.interface(one.peer).name
    command("ip", "link", "set", peer, "up")
    command("ip", "address", "add", "10.78.0.1/24", "dev", name)
    yield name
    command("ip", "link", "del", name)


@pytest.mark.fires
@pytest.mark.parametrize("section", ["netkit/primary", "classifier/egress/main"])
def test_packets_into_a_netkit_pair_are_seen(start, netkit, section):
    source = of_port(section) if section.startswith("classifier") else counting(section, result="-1")
    started = start(source, target=Target("host", interface=netkit))

    send("10.78.0.2", 3)

    assert hits(started) == 3
    assert gone(started)


@pytest.mark.fires
def test_packets_out_of_a_netkit_pair_are_seen(start, netkit):
    started = start(counting("netkit/peer", result="-1"), target=Target("host", interface=netkit))
    with Netlink() as netlink:
        one = next(found for found in netlink.interfaces() if found.name == netkit)
        peer = netlink.interface(one.peer).name
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind((peer, 0x0800))
        raw.send(bytes(60))

    assert hits(started) == 1


def test_netkit_programs_want_a_netkit_interface(start, net):
    with pytest.raises(AttachError, match="no netkit interface: it is of the kind 'veth'"):
        start(counting("netkit/primary", result="-1"), target=Target("host", interface=net.outer))


@pytest.mark.parametrize("section", ["classifier/forward/main", "classifier/x", "tc"])
def test_a_section_without_a_direction_is_refused(start, section):
    with pytest.raises(AttachError, match="does not say ingress or egress"):
        start(of_port(section))


@pytest.mark.fires
def test_the_direction_may_stand_in_the_metadata(start, net):
    yaml = "name: test\nprograms:\n  count:\n    direction: egress\n"
    started = start(of_port("tc"), target=net.target, yaml=yaml)

    net.packets_out(2)

    assert hits(started) == 2


@pytest.mark.fires
def test_an_action_gets_every_packet(start, net):
    before = net.state()
    yaml = "name: test\nprograms:\n  count:\n    direction: ingress\n"
    started = start(of_port("action"), target=net.target, yaml=yaml)

    net.packets_in(3)

    assert hits(started) == 3
    assert hits(started, 1) == net.inode
    assert gone(started)
    assert net.state() == before


# ------------------------------------------------------------------------------------------------ tc beside others

CLSACT = ways("clsact")


def others_filter(net: Net, compiled, tmp_path: Path) -> None:
    path = tmp_path / "other.bpf.o"
    path.write_bytes(compiled('SEC("tc") int other(struct __sk_buff *skb) { return -1; }'))
    # in mounts of its own, as tc mounts a file system for its maps and leaves it
    command(*f"unshare --mount tc filter add dev {net.outer} ingress bpf da obj {path} sec tc".split())


def test_a_qdisc_that_was_there_stays(start, own_net):
    net = own_net
    command("tc", "qdisc", "add", "dev", net.outer, "clsact")
    before = net.state()
    started = start(of_port("classifier/ingress/main"), target=net.target, yaml=CLSACT)

    assert gone(started)
    assert net.state() == before


def test_a_qdisc_of_ours_that_others_use_stays(start, own_net, compiled, tmp_path):
    net = own_net
    started = start(of_port("classifier/ingress/main"), target=net.target, yaml=CLSACT)
    others_filter(net, compiled, tmp_path)
    net.packets_in(1)

    assert hits(started) == 1
    assert gone(started)
    assert "clsact" in command("tc", "qdisc", "show", "dev", net.outer)
    assert "other" in command("tc", "filter", "show", "dev", net.outer, "ingress")
    assert "igrun" not in command("tc", "filter", "show", "dev", net.outer, "egress")


def test_the_last_user_removes_the_qdisc(start, net):
    before = net.state()
    one = start(of_port("classifier/ingress/main"), target=net.target, yaml=CLSACT)
    two = start(of_port("classifier/egress/main"), target=net.target, yaml=CLSACT)

    one.loaded.detach()
    net.packets_out(1)
    assert hits(two) == 1
    two.loaded.detach()

    assert net.state() == before


def test_a_filter_in_the_place_of_ours_is_left_alone(start, own_net, compiled, tmp_path):
    net = own_net
    started = start(of_port("classifier/egress/main"), target=net.target, yaml=CLSACT)
    command(*f"tc filter del dev {net.outer} ingress".split())
    path = tmp_path / "other.bpf.o"
    path.write_bytes(compiled('SEC("tc") int other(struct __sk_buff *skb) { return -1; }'))
    add = f"tc filter add dev {net.outer} ingress prio 1 handle 1 protocol all bpf da obj {path} sec tc"
    command(*add.split())

    assert gone(started)
    assert "other" in command("tc", "filter", "show", "dev", net.outer, "ingress")


@pytest.mark.parametrize("way", ["clsact", "tcx"])
def test_programs_of_several_runs_see_the_same_packets(start, net, way):
    one = start(of_port("classifier/ingress/main"), target=net.target, yaml=ways(way))
    two = start(of_port("classifier/ingress/main", result="0"), target=net.target, yaml=ways(way))
    three = start(of_port("classifier/ingress/main"), target=net.target, yaml=ways(way))

    net.packets_in(3)

    # Who comes later stands before the others; the second lets a packet pass without asking anybody else.
    assert [hits(each) for each in (one, two, three)] == [0, 3, 3]


BY_LINK = [
    ("tcx/ingress", "-1", "tcx"),
    ("xdp", "2", ""),
    ("sk_lookup", "1", ""),
    ("flow_dissector", "0", ""),
    ("socket1", "0", ""),
]


@pytest.mark.parametrize(("section", "result", "way"), BY_LINK)
def test_nothing_is_left_by_a_process_that_is_killed(net, compiled, section, result, way, monkeypatch):
    context = {"xdp": "struct xdp_md", "sk_lookup": "struct bpf_sk_lookup"}.get(section, "struct __sk_buff")
    if section == "xdp":
        monkeypatch.setattr(libxdp, "join", lambda *of: None)  # as where the kernel cannot replace functions
    if way == "tcx" and not tc.has_tcx():
        raise UnsupportedError("tcx", "this kernel has none")
    before = net.state()

    killed(compiled(counting(section, context, result)), ways(way), net.target)

    assert waited(lambda: not programs(*OURS))
    assert net.state() == before


def test_a_filter_of_a_killed_process_does_nothing_and_the_next_run_removes_it(start, net, compiled):
    before = net.state()
    killed(compiled(of_port("classifier/ingress/main", result="2")), CLSACT, net.target)
    left = net.state()

    assert waited(lambda: not programs("count"))
    with net.do(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as waiting:
        waiting.bind(("0.0.0.0", 7777))
        waiting.settimeout(5)
        net.packets_in(1)
        assert waiting.recv(10) == b"hello"  # which the program would have dropped
    assert left != before

    started = start(of_port("classifier/egress/main"), target=net.target, yaml=CLSACT)

    assert "igrun" not in command("tc", "filter", "show", "dev", net.outer, "egress")
    assert gone(started)
    assert net.state() == before


# ------------------------------------------------------------------------------------------------ XDP


@pytest.mark.fires
@pytest.mark.parametrize("section", ["xdp", "xdp/main", "xdp.frags"])
@pytest.mark.parametrize("mode", ["", "native", "generic"])
def test_xdp_sees_what_comes_into_a_container(start, net, section, mode):
    before = net.state()
    yaml = f"name: test\nprograms:\n  count:\n    xdp.mode: {mode}\n" if mode else "name: test\n"
    started = start(counting(section, "struct xdp_md", "2"), target=net.target, yaml=yaml)

    net.packets_in(3)
    net.packets_out(1)

    assert 3 <= hits(started) <= 5  # and what the other side answers: nobody waits at the port
    shown = net.do(lambda: command("ip", "link", "show", net.inner))
    assert ("xdpgeneric" in shown) == (mode == "generic")
    assert gone(started)
    assert net.state() == before


def test_xdp_of_the_host_wants_an_interface(start):
    with pytest.raises(AttachError, match="one must be named") as error:
        start(counting("xdp", "struct xdp_md", "2"))

    assert "--iface" in error.value.hint and "lo" in error.value.hint


def test_xdp_runs_at_a_named_interface_that_has_no_driver_of_it(start, net):
    started = start(counting("xdp", "struct xdp_md", "2"), target=Target("host", interface="lo"))

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.sendto(b"", ("127.0.0.1", 7779))

    assert hits(started) >= 1
    assert gone(started)


def test_an_interface_that_is_held_is_told_with_its_holder(start, net, monkeypatch):
    monkeypatch.setattr(libxdp, "join", lambda *of: None)  # as where the kernel cannot replace functions
    other = Target("host", interface=net.outer)
    start(counting("xdp", "struct xdp_md", "2").replace("count", "first_one"), target=other)

    with pytest.raises(AttachError, match=r"it is held by 'first_one' \(id \d+, native\) of .*\(\d+\)") as error:
        start(counting("xdp", "struct xdp_md", "2"), target=other)

    assert str(os.getpid()) in str(error.value)
    assert error.value.target == net.outer


def test_an_unknown_mode_is_refused(start, net):
    with pytest.raises(MetadataError, match=r"programs\.count\.xdp\.mode"):
        yaml = "name: test\nprograms:\n  count:\n    xdp.mode: fast\n"
        start(counting("xdp", "struct xdp_md", "2"), target=net.target, yaml=yaml)


# ------------------------------------------------------------------------------------------------ of a namespace


@pytest.mark.fires
def test_sk_lookup_sees_connections_to_a_namespace(start, net):
    source = counting("sk_lookup", "struct bpf_sk_lookup", "1", see="ctx->local_port")
    started = start(source, target=net.target)
    net.packets_in(1, 4321)

    assert hits(started) == 1
    assert hits(started, 1) == 4321
    assert gone(started)


@pytest.mark.fires
def test_a_flow_dissector_is_asked(start, net):
    started = start(counting("flow_dissector", result="0"), target=net.target)  # BPF_OK
    net.do(lambda: asked_for_flows(net))

    assert hits(started) > 0
    assert gone(started)


def asked_for_flows(net: Net) -> None:
    """A packet socket with a fan-out by hash dissects what it sees."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as one:
        one.bind((net.inner, 3))
        one.setsockopt(263, 18, 1)  # SOL_PACKET, PACKET_FANOUT: of group 1, by hash
        send(f"{net.subnet}.1", 3)


def netfilter(**options: object) -> str:
    lines = "".join(f"    netfilter.{key}: {value}\n" for key, value in options.items())
    return f"name: test\nprograms:\n  count:\n{lines}"


FILTER = counting("netfilter", "struct bpf_nf_ctx", "1")


@pytest.mark.fires
@pytest.mark.parametrize(
    "options",
    [{"hook": "local_in"}, {"hook": "LOCAL_IN", "pf": "ipv4", "priority": -100}, {"hook": "input", "pf": "ipv4"}],
)
def test_a_netfilter_program_sees_packets_at_its_hook(start, net, options):
    started = start(FILTER, target=net.target, yaml=netfilter(**options))

    net.packets_in(3)

    assert hits(started) == 3
    assert len(started.loaded.links) == (1 if "pf" in options else 2)
    assert gone(started)


def test_a_netfilter_program_that_drops_packets_does(start, net):
    source = counting("netfilter", "struct bpf_nf_ctx", "0")
    start(source, target=net.target, yaml=netfilter(hook="local_in"))
    with net.do(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as waiting:
        waiting.bind(("0.0.0.0", 7777))
        waiting.settimeout(0.2)
        net.packets_in(1)
        with pytest.raises(TimeoutError):
            waiting.recv(10)


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"pf": "ipv4"}, "netfilter.hook: it must say where", "local_in"),
        ({"hook": "local_inn"}, "'local_inn' is not known", "local_in"),
        ({"hook": "local_in", "pf": "ipv5"}, "'ipv5' is not known", "ipv4"),
        ({"hook": "local_in", "priority": "high"}, "'high' is no number", ""),
    ],
)
def test_wrong_options_of_a_netfilter_program_are_told(start, net, options, message, hint):
    with pytest.raises(MetadataError, match=re.escape(message)) as error:
        start(FILTER, target=net.target, yaml=netfilter(**options))

    assert hint in error.value.hint


# ------------------------------------------------------------------------------------------------ tunnels


def route(text: str) -> str:
    return f"name: test\nprograms:\n  count:\n    route: {text}\n"


@pytest.mark.fires
@pytest.mark.parametrize("section", ["lwt_out", "lwt_xmit"])
def test_packets_of_a_route_pass_its_program(start, net, section):
    before = net.state()
    started = start(counting(section), target=net.target, yaml=route(f"10.88.0.0/24 via {net.subnet}.1 dev eth0"))

    net.do(lambda: send("10.88.0.5", 3))

    assert hits(started) == 3
    assert gone(started)
    assert net.state() == before


@pytest.mark.fires
def test_packets_that_come_in_by_a_route_pass_its_program(start, own_net):
    net = own_net
    # What is forwarded comes in by the route of where it goes to.
    net.do(lambda: Path("/proc/sys/net/ipv4/ip_forward").write_text("1"))
    command("ip", "route", "add", "10.88.0.0/24", "via", f"{net.subnet}.2", "dev", net.outer)
    net.ip("link add v0 type veth peer name v1", "link set v0 up", "link set v1 up")
    started = start(counting("lwt_in"), target=net.target, yaml=route("10.88.0.0/24 dev v0"))

    send("10.88.0.5", 3)

    assert hits(started) == 3
    assert gone(started)


@pytest.mark.fires
def test_a_local_segment_of_ipv6_has_its_program(start, own_net):
    net = own_net
    ipv6(net)
    started = start(counting("lwt_seg6local", result="2"), target=net.target, yaml=route("fd88::1/128 dev eth0"))
    # IPv6 header, then a segment routing header with two segments, of which ours is the first
    segments = [socket.inet_pton(socket.AF_INET6, one) for one in ("fd88::2", "fd88::1")]
    srh = bytes([59, 4, 4, 1, 1, 0, 0, 0]) + b"".join(segments)
    head = bytes([0x60, 0, 0, 0, 0, len(srh), 43, 64])
    addresses = socket.inet_pton(socket.AF_INET6, "fd77::1") + socket.inet_pton(socket.AF_INET6, "fd88::1")
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        raw.sendto(head + addresses + srh, ("fd88::1", 0))

    assert waited(lambda: hits(started) == 1)
    assert gone(started)


SEGMENTS = ("all/seg6_enabled", "eth0/seg6_enabled", "all/forwarding", "eth0/forwarding")


def ipv6(net: Net) -> None:
    """Give the pair IPv6 addresses, and a way to fd88::1."""
    if not Path("/proc/sys/net/ipv6").exists():
        raise UnsupportedError("IPv6", "this kernel has none")
    net.do(lambda: [Path(f"/proc/sys/net/ipv6/conf/{at}").write_text("1") for at in SEGMENTS])
    command("ip", "address", "add", "fd77::1/64", "dev", net.outer, "nodad")
    net.ip("address add fd77::2/64 dev eth0 nodad")
    command("ip", "-6", "route", "add", "fd88::1/128", "via", "fd77::2", "dev", net.outer)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("10.88.0.0/24", "it names no interface"),
        ("10.88.0.0/24 dew eth0", "'dew' is not known"),
        ("10.88.0.1/24 dev eth0", "has host bits set"),
    ],
)
def test_a_route_that_cannot_be_read_is_told(start, net, text, message):
    with pytest.raises(MetadataError, match=message):
        start(counting("lwt_out"), target=net.target, yaml=route(text))


def test_a_tunnel_without_a_route_is_told(start, net):
    with pytest.raises(MetadataError, match="which packets"):
        start(counting("lwt_out"), target=net.target)


def test_the_interface_of_a_route_must_be_there(start, net):
    with pytest.raises(AttachError, match="by eth7") as error:
        start(counting("lwt_out"), target=net.target, yaml=route("10.88.0.0/24 dev eth7"))

    assert "eth0" in error.value.hint


def test_a_route_of_a_killed_process_does_nothing_and_the_next_run_removes_it(start, net, compiled):
    before = net.state()
    killed(compiled(counting("lwt_out")), route("10.88.0.0/24 dev eth0"), net.target)
    assert "10.88.0.0/24" in command("ip", "-n", net.name, "route")
    assert waited(lambda: not programs("count"))

    started = start(counting("lwt_out"), target=net.target, yaml=route("10.99.0.0/24 dev eth0"))

    assert "10.88.0.0/24" not in command("ip", "-n", net.name, "route")
    assert gone(started)
    assert net.state() == before


# ------------------------------------------------------------------------------------------------ ports

PORT = "name: test\nprograms:\n  count:\n    reuseport.port: udp/7070\n"
CHOOSE = counting("sk_reuseport", "struct sk_reuseport_md", "1")


def reusing(net: Net) -> socket.socket:
    one = net.do(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    one.bind(("0.0.0.0", 7070))
    one.settimeout(2)
    return one


@pytest.mark.fires
@pytest.mark.parametrize("section", ["sk_reuseport", "sk_reuseport/migrate"])
def test_a_program_chooses_among_the_sockets_of_a_port(start, net, section):
    with reusing(net) as one, reusing(net):
        started = start(CHOOSE.replace("sk_reuseport", section, 1), target=net.target, yaml=PORT)
        net.packets_in(3, 7070)
        assert hits(started) == 3

        started.loaded.detach()
        net.packets_in(1, 7070)
        assert hits(started) == 3
        assert one
        assert gone(started)


def test_a_program_of_a_port_may_refuse(start, net):
    with reusing(net) as one:
        started = start(CHOOSE.replace("return 1", "return 0"), target=net.target, yaml=PORT)
        net.packets_in(1, 7070)
        one.settimeout(0.2)
        with pytest.raises(TimeoutError):
            one.recv(10)
        started.loaded.detach()
        net.packets_in(1, 7070)
        assert one.recv(10) == b"hello"


def test_a_port_that_nobody_has_is_told(start, net):
    with pytest.raises(AttachError, match="no process has a socket there") as error:
        start(CHOOSE, target=net.target, yaml=PORT)

    assert "udp/7070" in error.value.target


def test_a_program_of_a_port_must_say_which(start, net):
    with pytest.raises(MetadataError, match=r"programs\.count\.reuseport\.port"):
        start(CHOOSE, target=net.target)


def test_a_program_of_a_killed_process_chooses_nothing(net, compiled):
    with reusing(net) as one:
        killed(compiled(CHOOSE.replace("return 1", "return 0")), PORT, net.target)
        assert waited(lambda: not programs("count"))

        net.packets_in(1, 7070)

        assert one.recv(10) == b"hello"
    assert waited(lambda: not programs(*OURS))
