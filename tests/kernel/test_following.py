"""Interfaces that come and go while a gadget runs, and links that several targets share."""

import logging
import select
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from igrun import attach
from igrun.host import Target
from igrun.netlink import Changes
from tests import packaged
from tests.counting import within
from tests.kernel.networks import HITS, Net, command, network, programs

pytestmark = pytest.mark.kernel
OURS = ("count", "ig_tc")
OUTGOING = 4  # PACKET_OUTGOING: an answer


@pytest.fixture(autouse=True, scope="module")
def own_programs() -> None:
    packaged.bpf()


@pytest.fixture
def net() -> Iterator[Net]:
    with network() as one:
        yield one


def counting(section: str, result: str = "-1") -> str:
    """Counts IPv4 datagrams to port 7777."""
    return f"""{HITS}
SEC("{section}")
int count(struct __sk_buff *ctx)
{{
	__u16 port = 0;

	if (!bpf_skb_load_bytes(ctx, 36, &port, 2) && port == 0x611e) /* 7777 */
		hit(0, 1);
	return {result};
}}
"""


XDP = HITS + 'SEC("xdp") int count(struct xdp_md *ctx) { hit(0, 1); return 2; }\n'


def hits(started) -> int:
    return int.from_bytes(started.loaded.map("hits").lookup(bytes(4)), "little")


def noticed(started) -> None:
    """What the event loop does when something happens."""
    following = started.loaded.following
    while select.select([following], [], [], 0.3)[0]:
        list(following.read())


def again(net: Net, index: int = 0) -> None:
    """The pair of interfaces that was deleted, anew. index: of the outer one"""
    here, there = "02:00:00:00:77:01", "02:00:00:00:77:02"
    which = f"index {index}" if index else ""
    pair = (
        f"link add {net.outer} {which} address {here} type veth peer name {net.inner} address {there} netns {net.name}"
    )
    command("ip", "-batch", "-", given=pair)
    ends = ((["ip"], net.outer, 1, 2, there), (["ip", "-n", net.name], net.inner, 2, 1, here))
    for ip, device, address, other, mac in ends:
        lines = [
            f"link set {device} addrgenmode none",
            f"link set {device} up",
            f"address add {net.subnet}.{address}/24 dev {device}",
            f"neigh replace {net.subnet}.{other} lladdr {mac} dev {device} nud permanent",
        ]
        command(*ip, "-batch", "-", given="\n".join(lines))
    assert within(5, lambda: Path(f"/sys/class/net/{net.outer}/operstate").read_text() == "up\n")


def outer(net: Net) -> Target:
    return Target("host", interface=net.outer)


PLACES = {"named": outer, "of a container": lambda net: net.target}
WAYS = ["clsact", "tcx"]


def way(name: str) -> str:
    return f"name: test\nprograms: {{count: {{tc.attach: {name}}}}}\n"


@pytest.mark.parametrize("tc", WAYS)
@pytest.mark.parametrize("same", [False, True], ids=["another index", "the same index"])
@pytest.mark.parametrize("place", PLACES)
def test_an_interface_that_comes_back_is_seen_again(start, net, place, same, tc):
    direction = "egress" if place == "named" else "ingress"
    started = start(counting(f"classifier/{direction}/main"), target=PLACES[place](net), yaml=way(tc))
    index = int(Path(f"/sys/class/net/{net.outer}/ifindex").read_text())
    net.packets_in(2)
    assert hits(started) == 2

    command("ip", "link", "del", net.outer)
    if not same:
        noticed(started)
        assert len(started.loaded.links) == 0
    again(net, index if same else 0)
    noticed(started)

    net.packets_in(3)
    assert hits(started) == 5
    assert len(started.loaded.links) == 1


def test_xdp_sees_an_interface_that_comes_back(start, net):
    started = start(XDP, target=net.target)
    command("ip", "link", "del", net.outer)
    again(net)
    noticed(started)

    net.packets_in(3)

    assert hits(started) == 3


def test_who_named_an_interface_is_told(start, net, caplog):
    caplog.set_level(logging.INFO)
    started = start(counting("classifier/egress/main"), target=outer(net))
    command("ip", "link", "del", net.outer)
    noticed(started)
    again(net)
    noticed(started)

    said = [one.message for one in caplog.records if one.name == "igrun.attach.following"]
    assert said == [f"interface {net.outer} is gone", f"interface {net.outer} is there: the gadget sees it"]


@pytest.mark.parametrize("section", ["classifier/ingress/main", "xdp"])
def test_an_interface_that_a_container_gets_later_is_seen(start, net, section):
    started = start(XDP if section == "xdp" else counting(section), target=net.target)
    command("ip", "link", "add", f"{net.outer}b", "type", "veth", "peer", "name", "eth1", "netns", net.name)
    noticed(started)
    assert len(started.loaded.links) == 2

    command("ip", "link", "del", f"{net.outer}b")
    noticed(started)

    assert len(started.loaded.links) == 1
    net.packets_in(1)
    assert hits(started) == 1


def test_an_interface_that_is_moved_into_a_container_is_seen(start, net):
    started = start(counting("classifier/ingress/main"), target=net.target)
    command("ip", "link", "add", f"{net.outer}b", "type", "veth", "peer", "name", f"{net.outer}c")
    noticed(started)
    assert len(started.loaded.links) == 1

    command("ip", "link", "set", f"{net.outer}c", "netns", net.name)
    noticed(started)
    assert len(started.loaded.links) == 2

    net.ip(f"link set {net.outer}c netns {net.name}", f"link del {net.outer}c")
    noticed(started)
    assert len(started.loaded.links) == 1


def test_an_interface_that_the_host_gets_later_is_seen_while_it_is_up(start, net):
    started = start(counting("classifier/egress/main"))
    before, name = len(started.loaded.links), f"{net.outer}d"
    command("ip", "link", "add", name, "type", "veth", "peer", "name", f"{net.outer}e")
    try:
        noticed(started)
        assert len(started.loaded.links) == before
        command("ip", "link", "set", name, "up")
        noticed(started)
        assert len(started.loaded.links) == before + 1
        command("ip", "link", "set", name, "down")
        noticed(started)
        assert len(started.loaded.links) == before
    finally:
        command("ip", "link", "del", name)


def test_a_name_that_changes_is_no_change(start, net):
    started = start(counting("classifier/ingress/main"), target=net.target)
    (link,) = started.loaded.links
    net.ip("link set eth0 down", "link set eth0 name eth7", "link set eth7 up")
    noticed(started)

    assert [*started.loaded.links] == [link]


def test_what_came_while_the_kernel_could_not_tell_is_found(start, net, monkeypatch):
    started = start(counting("classifier/ingress/main"), target=net.target)
    index = int(Path(f"/sys/class/net/{net.outer}/ifindex").read_text())
    command("ip", "link", "del", net.outer)
    again(net, index)
    monkeypatch.setattr("igrun.netlink.Changes.read", lambda self: None)
    following = started.loaded.following
    list(following.read())

    net.packets_in(2)

    assert hits(started) == 2


def test_a_burst_of_changes_is_told_as_one_that_is_not_known(net):
    """The kernel keeps 200 KiB of messages."""
    changes = net.do(Changes)
    lines = [f"link set lo {how}" for _ in range(1000) for how in ("down", "up")]
    net.ip(*lines)

    assert changes.read() is None
    assert changes.read() == {}
    changes.close()


def test_a_place_that_is_held_is_told_and_the_run_goes_on(start, net, compiled, tmp_path, caplog):
    started = start(XDP, target=outer(net))
    (tmp_path / "other.o").write_bytes(compiled('SEC("xdp") int other(struct xdp_md *ctx) { return 2; }\n'))
    command("ip", "link", "del", net.outer)
    again(net)
    command("ip", "link", "set", net.outer, "xdp", "obj", str(tmp_path / "other.o"), "sec", "xdp")
    noticed(started)

    assert "it is held by 'other'" in caplog.text
    command("ip", "link", "set", net.outer, "xdp", "off")
    noticed(started)
    net.packets_out(2)
    assert hits(started) == 2


def test_nothing_is_left_after_interfaces_came_and_went(start, net):
    before = net.state()
    started = start(counting("classifier/ingress/main"), target=net.target, yaml=way("clsact"))
    command("ip", "link", "add", f"{net.outer}b", "type", "veth", "peer", "name", "eth1", "netns", net.name)
    noticed(started)
    started.plan.stack.close()

    assert "clsact" not in command("tc", "qdisc", "show", "dev", f"{net.outer}b")
    command("ip", "link", "del", f"{net.outer}b")
    assert net.state() == before
    assert within(5, lambda: not programs(*OURS))


def test_a_namespace_that_is_gone_is_let_go(start):
    with network() as net:
        started = start(counting("classifier/ingress/main"), target=net.target)
        net.ip("link add v0 type veth peer name v1")
        noticed(started)
        assert len(started.loaded.links) == 3

    def gone() -> bool:
        noticed(started)
        return len(started.loaded.links) == 0

    assert within(5, gone)
    assert within(5, lambda: not programs("ig_tc"))


# ------------------------------------------------------------------------------------------------ sharing


def test_two_targets_of_one_namespace_share_its_links(start, net):
    started = start(counting("classifier/ingress/main"), target=net.target)
    other = Target("other", netns=net.path)
    attach.attach(started.loaded.hooks, other, started.loaded)
    assert len(started.loaded.links) == 1
    net.packets_in(2)
    assert hits(started) == 2

    attach.detach(net.target, started.loaded)
    net.packets_in(2)
    assert hits(started) == 4

    attach.detach(other, started.loaded)
    attach.detach(other, started.loaded)
    net.packets_in(2)
    assert hits(started) == 4
    assert len(started.loaded.links) == 0


def test_of_a_target_that_is_detached_nothing_new_is_seen(start, net):
    started = start(counting("classifier/ingress/main"), target=net.target)
    attach.detach(net.target, started.loaded)
    command("ip", "link", "add", f"{net.outer}b", "type", "veth", "peer", "name", "eth1", "netns", net.name)
    noticed(started)

    assert len(started.loaded.links) == 0


def test_roots_that_share_a_file_share_its_probe(start, tmp_path):
    program = shutil.which("true")
    assert program
    roots = [tmp_path / "one", tmp_path / "two"]
    for root in roots:
        (root / "bin").mkdir(parents=True)
    shutil.copy(program, roots[0] / "bin/true")
    (roots[1] / "bin/true").hardlink_to(roots[0] / "bin/true")
    source = HITS + 'SEC("uprobe//bin/true:0x0") int count(void *ctx) { hit(0, 1); return 0; }\n'
    entry = int(subprocess.run(["od", "-An", "-tu8", "-j24", "-N8", program], capture_output=True, check=True).stdout)
    source = source.replace("0x0", hex(entry))
    started = start(source, target=Target("one", root=roots[0]))
    attach.attach(started.loaded.hooks, Target("two", root=roots[1]), started.loaded)

    assert len(started.loaded.links) == 1
    subprocess.run([roots[1] / "bin/true"], check=True)
    assert hits(started) == 1
    attach.detach(Target("one", root=roots[0]), started.loaded)
    subprocess.run([roots[0] / "bin/true"], check=True)
    assert hits(started) == 2
