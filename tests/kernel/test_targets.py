"""Programs that a run can do without, where it has several targets: what one lacks, another may have."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from igrun import attach
from igrun.errors import AttachError, UnsupportedError
from igrun.host import Target
from tests import packaged
from tests.counting import hits
from tests.kernel.networks import HITS, Net, network

pytestmark = pytest.mark.kernel
OUTGOING = 4  # PACKET_OUTGOING: an answer
SEES = f"if (ctx->pkt_type != {OUTGOING}) hit(0, 1); return 0;"
SOCKET = HITS + f'SEC("socket1") int count(struct __sk_buff *ctx) {{ {SEES} }}\n'
SPARE = 'SEC("socket2") int spare(struct __sk_buff *ctx) { return 0; }\n'
LIBRARY = 'SEC("uprobe/libnothing:nothing") int library(void *ctx) { return 0; }\n'
GONE = Target("gone", netns=Path("/run/netns/none"))


@pytest.fixture(autouse=True, scope="module")
def own_programs() -> None:
    packaged.bpf()


@pytest.fixture(scope="module")
def nets() -> Iterator[tuple[Net, Net]]:
    with network() as one, network() as other:
        yield one, other


def programs(**options: str) -> str:
    return "name: test\nprograms:\n" + "".join(f"  {name}: {{{text}}}\n" for name, text in options.items())


def attached(started) -> list[str]:
    return [hook.program for hook in started.loaded.hooks]


def test_alternatives_are_settled_for_all_targets(start, nets):
    one, other = nets
    started = start(SOCKET + SPARE, yaml=programs(count="any_of: see", spare="any_of: see"), target=one.target)
    attach.attach(started.loaded.hooks, other.target, started.loaded)

    one.packets_in()
    other.packets_in()

    assert attached(started) == ["count"]
    assert hits(started) == 2


def test_a_target_for_which_the_chosen_alternative_does_not_work_is_told_and_the_others_go_on(start, nets):
    one, other = nets
    started = start(SOCKET + SPARE, yaml=programs(count="any_of: see", spare="any_of: see"), target=one.target)

    with pytest.raises(UnsupportedError) as told:
        attach.attach(started.loaded.hooks, GONE, started.loaded)

    said = str(told.value)
    assert f"alternatives 'see': program 'count', which was chosen at {one.name!r}, does not work at 'gone'" in said
    assert "its network namespace /run/netns/none cannot be found" in said
    assert told.value.hint
    attach.attach(started.loaded.hooks, other.target, started.loaded)
    one.packets_in()
    other.packets_in()
    assert hits(started) == 2


def test_a_target_without_a_place_for_an_alternative_settles_nothing(start, nets, tmp_path):
    source, yaml = LIBRARY + SOCKET, programs(library="any_of: see", count="any_of: see")
    empty = Target("empty", root=tmp_path, netns=GONE.netns)

    with pytest.raises(AttachError):
        start(source, yaml=programs(library="optional: true"), target=empty)
    started = start(source, yaml=yaml, target=Target("web", root=tmp_path, netns=nets[0].path))

    nets[0].packets_in()
    assert hits(started) == 1
    assert attached(started) == ["count"]


def test_where_no_alternative_works_at_a_target_the_others_still_may(start, nets):
    started = start(SOCKET + SPARE, yaml=programs(count="any_of: see", spare="any_of: see"), target=None)

    with pytest.raises(UnsupportedError, match="none of the alternatives 'see' works at 'gone'"):
        attach.attach(started.loaded.hooks, GONE, started.loaded)
    attach.attach(started.loaded.hooks, nets[0].target, started.loaded)

    nets[0].packets_in()
    assert hits(started) == 1


def test_an_optional_program_is_left_out_at_the_target_that_lacks_it(start, nets, caplog):
    caplog.set_level(logging.INFO)
    started = start(SOCKET, yaml=programs(count="optional: true"), target=GONE)
    attach.attach(started.loaded.hooks, nets[0].target, started.loaded)

    nets[0].packets_in()

    assert hits(started) == 1
    assert started.loaded.choices.left_out == {}
    assert "left out at 'gone': attach 'count' (socket1) to 'gone'" in caplog.text


def test_after_an_error_nothing_of_the_target_is_attached(start, nets):
    source = SOCKET + 'SEC("xdp") int later(struct xdp_md *ctx) { return 2; }\n'
    started = start(source, yaml=programs(later="xdp.mode: offload"), target=None)

    with pytest.raises(AttachError, match="later"):
        attach.attach(started.loaded.hooks, nets[0].target, started.loaded)

    nets[0].packets_in()
    assert not [*started.loaded.links]
    assert hits(started) == 0
