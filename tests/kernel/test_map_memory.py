"""The memory of maps, as computed and as the kernel says it."""

import os

import pytest

from igrun.bpfmap import BpfMap, possible_cpus
from igrun.errors import KernelError
from igrun.objects import MAP_TYPES, MapSpec
from igrun.requirements.memory import PAGE, memory

pytestmark = pytest.mark.kernel

CASES = [
    *((1, 4, 8, 1000, 0), (1, 4, 4, 10240, 0), (1, 13, 3, 100, 1)),
    *((2, 4, 8, 100, 0), (2, 4, 5000, 10, 0), (2, 4, 8, 3000, 1 << 10)),
    *((3, 4, 4, 100, 0), (4, 4, 4, 16, 0), (8, 4, 4, 64, 0)),
    *((5, 4, 20, 500, 0), (6, 4, 20, 500, 0), (7, 4, 1016, 1000, 0)),
    *((9, 8, 32, 5000, 0), (10, 8, 32, 500, 0)),
    *((22, 0, 24, 500, 0), (23, 0, 24, 500, 0), (27, 0, 0, 1 << 18, 0)),
]


def told(fd: int) -> int:
    """Bytes, as the kernel says them."""
    with open(f"/proc/self/fdinfo/{fd}") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("memlock:"))


def counts_bytes() -> bool:
    """Whether the kernel tells what a map takes, not only its entries.

    It does since Linux 6.4 (90a5527d7686, "bpf: add new map ops ->map_mem_usage").
    """
    map_ = BpfMap.create(2, "probe", 4, 8, 1)
    try:
        return told(map_.fd) % PAGE != 0
    finally:
        map_.close()


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{MAP_TYPES.split()[case[0]]}-{case[3]}-{case[4]}")
def test_memory_is_what_the_kernel_says(case):
    type_, key, value, entries, flags = case
    if os.sysconf("SC_PAGE_SIZE") != PAGE:
        pytest.skip("this machine has other pages than those of 4 KiB that are computed with")
    if not counts_bytes():
        pytest.skip("this kernel tells the sizes of entries in pages, not the memory of a map")
    try:
        map_ = BpfMap.create(type_, "probe", key, value, entries, flags=flags)
    except KernelError as error:
        pytest.skip(f"this kernel has no such map: {error}")
    try:
        there = told(map_.fd)
    finally:
        map_.close()
    expected = memory(MapSpec("probe", type_, key, value, entries, flags), entries)

    if expected.grows:
        assert there <= expected.on(possible_cpus()) + PAGE
        return
    # The struct of the map itself, with a lock for each CPU in that of a hash, is the rest.
    assert 0 <= there - expected.on(possible_cpus()) <= PAGE
