"""Sharing an interface with programs that libxdp's own tool has put there."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from igrun.attach.dispatch import map_of
from igrun.attach.dispatchers import is_link
from igrun.bpfcall import program_ids, program_name, program_of_id
from igrun.errors import KernelError
from igrun.host import Target
from tests import packaged
from tests.counting import within
from tests.kernel.killing import elsewhere, killed
from tests.kernel.networks import HITS, Net, network, programs

pytestmark = pytest.mark.guest
PINS = Path("/sys/fs/bpf/xdp")
OURS = HITS + 'SEC("xdp") int count(struct xdp_md *ctx) { hit(0, 1); return 2; }\n'
OTHER = HITS + 'SEC("xdp") int other(struct xdp_md *ctx) { hit(0, 1); return 2; }\n'
THIRD = HITS + 'SEC("xdp") int third(struct xdp_md *ctx) { hit(0, 1); return 2; }\n'


@pytest.fixture(autouse=True, scope="module")
def own_programs() -> None:
    packaged.bpf()
    if not shutil.which("xdp-loader"):
        pytest.skip("no xdp-loader: install xdp-tools")


@pytest.fixture
def net() -> Iterator[Net]:
    with network() as one:
        yield one
        loader("unload", one.outer, "--all", fails=True)


@pytest.fixture
def others(net, compiled, tmp_path):
    """Load a program by libxdp."""

    def load_other(source: str, *words: str) -> None:
        path = tmp_path / "other.bpf.o"
        path.write_bytes(compiled(source))
        loader("load", "-m", "native", *words, net.outer, str(path))

    return load_other


def loader(*words: str, fails: bool = False) -> str:
    done = subprocess.run(["xdp-loader", *words], capture_output=True, text=True)
    assert fails or done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def number_of(name: str) -> int:
    """The newest program of that name."""
    for number in reversed(program_ids()):
        try:
            fd = program_of_id(number)
        except KernelError:  # gone since
            continue
        try:
            if program_name(fd) == name:
                return number
        finally:
            os.close(fd)
    raise AssertionError(f"no program {name}")


def hits(name: str) -> int:
    """What it has counted."""
    fd = program_of_id(number_of(name))
    try:
        with map_of(fd, "hits") as found:
            return int.from_bytes(found.lookup(bytes(4)), "little")
    finally:
        os.close(fd)


def counted(net: Net) -> tuple[int, ...]:
    """How often each of the programs runs for three packets; -1: it is not there."""
    names = [name for name in ("count", "other", "third") if programs(name)]
    before = [hits(name) for name in names]
    net.packets_out(3)
    found = {name: hits(name) - first for name, first in zip(names, before, strict=True)}
    return tuple(found.get(name, -1) for name in ("count", "other", "third"))


def gone(*names: str) -> bool:
    # The kernel frees a replaced function when all tasks have slept once: a busy one takes its time.
    return within(30, lambda: not programs(*names))


def outer(net: Net) -> Target:
    return Target("host", interface=net.outer)


@pytest.mark.fires
def test_a_program_runs_beside_that_of_another_tool(start, net, others):
    others(OTHER)
    started = start(OURS, target=outer(net))

    assert counted(net) == (3, 3, -1)
    assert "count" in loader("status", net.outer)

    started.plan.stack.close()
    assert gone("count")
    assert counted(net) == (-1, 3, -1)
    loader("unload", net.outer, "--all")
    assert gone("other", "xdp_dispatcher")
    assert not list(PINS.glob("dispatch-*"))


def test_others_may_come_and_go_meanwhile(start, net, others):
    others(OTHER)
    started = start(OURS, target=outer(net))
    others(THIRD)
    assert counted(net) == (3, 3, 3)

    started.plan.stack.close()

    assert gone("count")
    assert counted(net) == (-1, 3, 3)


def test_another_tool_may_come_after_us(start, net, others):
    started = start(OURS, target=outer(net))
    others(OTHER)
    assert counted(net) == (3, 3, -1)

    started.plan.stack.close()

    assert gone("count")
    assert counted(net) == (-1, 3, -1)


def test_the_last_program_takes_the_dispatcher_with_it(start, net, others):
    others(OTHER)
    started = start(OURS, target=outer(net))
    loader("unload", net.outer, "--id", str(number_of("other")))
    assert counted(net) == (3, -1, -1)

    started.plan.stack.close()

    assert gone("count", "xdp_dispatcher")
    assert not list(PINS.glob("dispatch-*"))


def test_two_igruns_share_a_dispatcher(start, net, others):
    others(OTHER)
    one = start(OURS, target=outer(net))
    two = start(OURS.replace("int count(", "int third("), target=outer(net))
    assert counted(net) == (3, 3, 3)

    one.loaded.detach()
    assert counted(net)[1:] == (3, 3)
    two.loaded.detach()
    assert counted(net)[1] == 3


@pytest.mark.parametrize(("priority", "seen"), [(10, 3), (90, 0)])
def test_the_priority_says_who_comes_first(start, net, others, priority, seen):
    others(OTHER.replace("return 2", "return 1"))  # it drops what it sees
    yaml = f"name: test\nprograms:\n  count:\n    xdp.priority: {priority}\n"
    start(OURS, target=outer(net), yaml=yaml)

    assert counted(net) == (seen, 3, -1)


def test_a_killed_process_leaves_an_empty_place_that_the_next_run_removes(start, net, others, compiled):
    others(OTHER)
    killed(compiled(OURS.replace("return 2", "return 1")), target=outer(net))
    assert "count" in loader("status", net.outer)
    assert counted(net) == (0, 3, -1)

    started = start(OURS.replace("int count(", "int third("), target=outer(net))

    assert gone("count")
    assert counted(net) == (-1, 3, 3)
    started.plan.stack.close()
    assert counted(net) == (-1, 3, -1)


def test_a_process_that_was_killed_before_it_heard_of_another_tool_is_removed_by_the_next_run(
    start, net, others, compiled
):
    with elsewhere(compiled(OURS.replace("return 2", "return 1")), outer(net), listens=False) as end:
        others(OTHER)
        end(signal.SIGKILL)
    assert counted(net) == (3, 0, -1)

    start(OURS.replace("int count(", "int third("), target=outer(net))

    assert gone("count")
    assert counted(net) == (-1, 3, 3)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_the_end_of_a_process_is_not_that_of_another_tools_program(net, others, compiled, how):
    with elsewhere(compiled(OURS), outer(net)) as end:
        others(OTHER)
        assert counted(net) == (3, 3, -1)
        assert within(10, lambda: not is_link(next(PINS.glob("*/prog0-link"))))
        end(how)
    net.packets_out(1)

    assert counted(net)[1] == 3
    loader("unload", net.outer, "--all")
    assert gone("count", "other", "xdp_dispatcher")


def test_an_interface_that_goes_away_takes_the_pins_of_ours_along(start, others, net):
    others(OTHER)
    started = start(OURS, target=outer(net))
    subprocess.run(["ip", "link", "del", net.outer], check=True)

    started.plan.stack.close()

    assert gone("count")
