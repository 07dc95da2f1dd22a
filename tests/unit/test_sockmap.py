"""Which map a program of sockets goes on."""

import re

import pytest

from igrun.attach.sockmap import map_of
from igrun.errors import MetadataError
from igrun.objects import SOCKHASH, SOCKMAP, Hook

HASH = 1
MAPS = {"counts": HASH, "listening": SOCKMAP, "connected": SOCKHASH}


def test_gadget_yaml_comes_before_the_marker_and_the_marker_before_what_is_there_alone():
    marked = Hook("count", "sk_skb/verdict", "verdict", target_map="listening")

    assert map_of(Hook("count", "sk_skb/verdict", "connected", target_map="listening"), MAPS) == "connected"
    assert map_of(marked, MAPS) == "listening"
    assert map_of(Hook("count", "sk_msg", ""), {"counts": HASH, "connected": SOCKHASH}) == "connected"


@pytest.mark.parametrize(
    ("attach_to", "maps", "problem", "hint"),
    [
        ("", MAPS, "nothing says which of listening, connected it is for", "GADGET_SK_TARGET_MAP(count, <map>)"),
        ("", {"counts": HASH}, "no map holds sockets", "GADGET_SK_TARGET_MAP(count, <map>)"),
        ("counts", MAPS, "map 'counts' holds no sockets", "SOCKMAP or SOCKHASH"),
        ("listenin", MAPS, "there is no map 'listenin'", "did you mean listening?"),
    ],
)
def test_a_map_that_cannot_be_is_told(attach_to, maps, problem, hint):
    with pytest.raises(MetadataError, match=re.escape(problem)) as error:
        map_of(Hook("count", "sk_msg", attach_to), maps)

    assert hint in error.value.hint
    assert error.value.path == "programs.count.attach_to"
