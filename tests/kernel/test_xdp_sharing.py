"""XDP programs of one run and of several ones at one interface, without anything of libxdp's on the machine."""

import select
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from igrun.attach import libxdp
from igrun.attach.dispatchers import FOLDER, is_link
from igrun.errors import AttachError, UnsupportedError
from igrun.host import Target
from igrun.netlink import Netlink
from tests import packaged
from tests.counting import within
from tests.kernel.killing import elsewhere, killed
from tests.kernel.networks import HITS, Net, network

pytestmark = pytest.mark.guest
ONE = HITS + 'SEC("xdp") int one(struct xdp_md *ctx) { hit(0, 1); return 2; }\n'
TWO = ONE.replace("int one(", "int two(")
BOTH = ONE + 'SEC("xdp") int two(struct xdp_md *ctx) { hit(1, 1); return 2; }\n'
DROPS = ONE.replace("return 2", "return 1")


@pytest.fixture(autouse=True, scope="module")
def own_programs() -> None:
    packaged.bpf()


@pytest.fixture
def net() -> Iterator[Net]:
    with network() as net:
        yield net


def outer(net: Net) -> Target:
    return Target("host", interface=net.outer)


def attached(net: Net) -> list[str]:
    """Modes of what is at the outer interface."""
    with Netlink() as netlink:
        return [mode for mode, _ in netlink.interface(socket.if_nametoindex(net.outer)).xdp]


def pins() -> list[Path]:
    return list(FOLDER.glob("*/*"))


def hits(started, at: int = 0) -> int:
    """What it has counted, when no more comes: packets are looked at by a thread of the kernel's."""
    found, before = -1, -2
    while found != before:
        time.sleep(0.05)
        before, found = found, int.from_bytes(started.loaded.map("hits").lookup(at.to_bytes(4, "little")), "little")
    return found


def noticed(started) -> None:
    following = started.loaded.following
    while select.select([following], [], [], 0.3)[0]:
        list(following.read())


def needs_sharing(started) -> None:
    """A kernel that does not replace functions has one program at an interface."""
    (link,) = started.loaded.links
    if not isinstance(link, libxdp.Member):
        raise UnsupportedError("dispatchers", "this kernel cannot replace functions")


def test_two_programs_of_a_gadget_see_the_same_packets(start, net):
    started = start(BOTH, target=outer(net))
    net.packets_out(3)

    assert (hits(started), hits(started, 1)) == (3, 3)
    assert len(attached(net)) == 1

    started.plan.stack.close()
    assert not attached(net)


@pytest.mark.parametrize("first", [0, 1])
def test_two_runs_see_the_same_packets_and_end_in_any_order(start, net, first):
    runs = [start(ONE, target=outer(net)), start(TWO, target=outer(net))]
    net.packets_out(3)
    assert [hits(one) for one in runs] == [3, 3]

    runs[first].loaded.detach()
    net.packets_out(2)
    assert hits(runs[first]) == 3
    assert hits(runs[1 - first]) == 5

    runs[1 - first].loaded.detach()
    assert not attached(net)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_two_processes_see_the_same_packets_and_the_end_of_one_is_not_the_others(start, net, compiled, how):
    with elsewhere(compiled(TWO), outer(net)) as end:
        started = start(ONE, target=outer(net))
        net.packets_out(3)
        assert hits(started) == 3
        end(how)
    noticed(started)
    net.packets_out(2)

    assert hits(started) == 5
    started.plan.stack.close()
    assert not attached(net)


def test_a_process_that_is_killed_drops_nothing_any_more_though_others_came_after_it(start, net, compiled):
    with elsewhere(compiled(DROPS), outer(net)) as end:
        started = start(TWO, target=outer(net))
        net.packets_out(2)
        assert hits(started) == 0
        # The other one takes its new link to itself when it hears of it.
        assert within(10, lambda: not any(is_link(path) for path in pins()))
        end(signal.SIGKILL)
    net.packets_out(3)

    assert hits(started) == 3


def test_a_process_that_was_killed_before_it_heard_of_others_is_removed_by_the_next_run(start, net, compiled):
    with elsewhere(compiled(DROPS), outer(net), listens=False) as end:
        runs = [start(TWO, target=outer(net))]
        end(signal.SIGKILL)
    net.packets_out(2)
    assert hits(runs[0]) == 0

    runs.append(start(TWO, target=outer(net)))
    net.packets_out(3)

    assert [hits(one) for one in runs] == [3, 3]


def test_a_process_that_has_not_heard_of_others_yet_keeps_its_place(start, net, compiled):
    with elsewhere(compiled(DROPS), outer(net), listens=False):
        runs = [start(TWO, target=outer(net)), start(TWO, target=outer(net))]
        net.packets_out(2)
        assert [hits(one) for one in runs] == [0, 0]
        runs[0].loaded.detach()
        net.packets_out(2)
        assert hits(runs[1]) == 0
    net.packets_out(3)

    assert hits(runs[1]) == 3


def test_two_programs_of_a_gadget_that_is_killed_at_once_do_nothing_any_more(start, net, compiled):
    killed(compiled(BOTH.replace("return 2", "return 1")), target=outer(net))
    assert not any(is_link(path) for path in pins())

    started = start(TWO, target=outer(net))
    net.packets_out(3)

    assert hits(started) == 3


@pytest.mark.parametrize(("priority", "seen"), [(10, 3), (90, 0)])
def test_the_priority_says_who_comes_first(start, net, priority, seen):
    start(DROPS, target=outer(net))
    started = start(TWO, target=outer(net), yaml=f"name: test\nprograms: {{two: {{xdp.priority: {priority}}}}}\n")

    net.packets_out(3)

    assert hits(started) == seen


def test_what_a_killed_process_leaves_does_nothing_and_the_next_run_removes_it(start, net, compiled):
    elf = compiled(DROPS)
    killed(elf, target=outer(net))
    with network() as other:
        killed(elf, target=outer(other))
        gone = attached(other)
        started = start(TWO, target=outer(net))
        assert not attached(other)
    assert len(gone) == 1

    net.packets_out(3)

    assert hits(started) == 3
    started.plan.stack.close()
    assert not attached(net)


def test_what_a_killed_process_left_in_a_namespace_that_is_gone_is_removed(start, net, compiled):
    with network() as other:
        killed(compiled(DROPS), target=other.target)
        assert pins()

    # The kernel takes its time to end a namespace; every run looks again.
    assert within(10, lambda: swept(start, net))


def swept(start, net: Net) -> bool:
    start(TWO, target=outer(net)).plan.stack.close()
    return not pins()


@pytest.mark.parametrize("how", ["interface", "namespace"])
def test_pins_go_with_the_interface(start, how):
    with network() as net:
        target = outer(net) if how == "interface" else net.target
        started = start(ONE, target=target)
        needs_sharing(started)
        assert pins()
        if how == "interface":
            subprocess.run(["ip", "link", "del", net.outer], check=True)
    started.plan.stack.close()

    assert not pins()


def test_programs_that_change_packets_share_an_interface(start, net):
    changes = "bpf_xdp_adjust_head(ctx, 0); hit(0, 1); return 2;"
    one = start(ONE.replace("hit(0, 1); return 2;", changes), target=outer(net))
    two = start(TWO.replace("hit(0, 1); return 2;", changes), target=outer(net))
    net.packets_out(3)

    assert (hits(one), hits(two)) == (3, 3)


@pytest.mark.parametrize(("sections", "frags"), [(("xdp.frags", "xdp.frags"), True), (("xdp.frags", "xdp"), False)])
def test_programs_with_and_without_fragments_share_an_interface(start, net, sections, frags):
    runs = [
        start(source.replace('SEC("xdp")', f'SEC("{section}")'), target=outer(net))
        for source, section in zip((ONE, TWO), sections, strict=True)
    ]
    net.packets_out(3)

    assert [hits(one) for one in runs] == [3, 3]


def test_an_interface_has_room_for_ten(start, net):
    names = [f"one{number}" for number in range(10)]
    started = start(HITS + "".join(one_of(name) for name in names), target=outer(net))
    net.packets_out(2)
    assert hits(started) == 20

    with pytest.raises(AttachError, match="has 10 programs already"):
        start(TWO, target=outer(net))
    net.packets_out(1)
    assert hits(started) == 30


def one_of(name: str) -> str:
    return f'SEC("xdp") int {name}(struct xdp_md *ctx) {{ hit(0, 1); return 2; }}\n'


def test_another_mode_than_that_of_the_others_is_refused(start, net):
    start(ONE, target=outer(net), yaml="name: test\nprograms: {one: {xdp.mode: native}}\n")

    with pytest.raises(AttachError, match=r"it is held by 'xdp_dispatcher' \(id \d+, native\)"):
        start(TWO, target=outer(net), yaml="name: test\nprograms: {two: {xdp.mode: generic}}\n")
