"""How large buffers are made."""

import pytest

from igrun.load import affordable, left_below, ring_size, spare_memory
from igrun.readers import perf_pages
from igrun.ringbuf import PAGE

MIB = 1 << 20


@pytest.fixture
def machine(tmp_path):
    """The root of a machine with that much memory to spare, in KiB."""

    def made(kib: int):
        (tmp_path / "proc").mkdir(exist_ok=True)
        (tmp_path / "proc/meminfo").write_text(f"MemTotal: 999999999 kB\nMemAvailable: {kib} kB\n")
        return tmp_path

    return made


def test_a_ring_has_what_is_declared_or_more():
    assert ring_size(256 << 10, 8 * MIB) == 8 * MIB
    assert ring_size(16 * MIB, 8 * MIB) == 16 * MIB
    assert ring_size(256 << 10, 0) == 256 << 10
    assert ring_size(4096, 5000) == 8192


def test_rings_get_a_64th_of_the_memory_to_spare_and_share_it(machine):
    root = machine(1 << 20)

    assert affordable(root, 1) == 16 * MIB
    assert affordable(root, 3) == 4 * MIB
    assert affordable(machine(100), 1) == 1024


def test_where_nobody_tells_of_memory_rings_are_as_declared(tmp_path):
    assert spare_memory(tmp_path) == 0
    assert ring_size(4096, affordable(tmp_path, 1)) == 4096


def test_a_cgroup_and_those_above_it_limit_what_may_be_taken(tmp_path):
    for path, limit, used in (("", "max", 5), ("a", "1000", 100), ("a/b", "max", 50), ("a/b/c", "800", 30)):
        folder = tmp_path / path
        folder.mkdir(exist_ok=True)
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{used}\n")

    assert left_below(tmp_path, "/a/b/c", "memory.max", "memory.current") == [770, 900]
    assert left_below(tmp_path, "/", "memory.max", "memory.current") == []
    assert left_below(tmp_path, "/gone", "memory.max", "memory.current") == []


@pytest.mark.parametrize("cpus", [1, 2, 3, 64, 1000])
def test_perf_buffers_share_what_a_ring_would_have(cpus):
    pages = perf_pages(8 * MIB, cpus)

    assert pages & (pages - 1) == 0
    assert pages == 64 or 4 * MIB < pages * PAGE * cpus <= 8 * MIB
    assert perf_pages(0, cpus) == 64
