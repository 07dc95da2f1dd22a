"""How much memory a map takes in the kernel, computed as the kernel does it (map_mem_usage, since Linux 6.4)."""

from __future__ import annotations

from typing import NamedTuple

from igrun.objects import MapSpec

PAGE = 4096
NO_PREALLOC, NO_COMMON_LRU, MMAPABLE = 1, 2, 1 << 10
# enum bpf_map_type
HASH, ARRAY, PROG_ARRAY, PERF_EVENT_ARRAY, PERCPU_HASH, PERCPU_ARRAY, STACK_TRACE, CGROUP_ARRAY = range(1, 9)
LRU_HASH, LRU_PERCPU_HASH, LPM_TRIE, ARRAY_OF_MAPS, HASH_OF_MAPS, DEVMAP, SOCKMAP, CPUMAP, XSKMAP, SOCKHASH = range(
    9, 19
)
REUSEPORT, QUEUE, STACK, DEVMAP_HASH, RINGBUF, BLOOM, USER_RINGBUF, ARENA = 20, 22, 23, 25, 27, 30, 31, 33
HASHES = (HASH, PERCPU_HASH, LRU_HASH, LRU_PERCPU_HASH, HASH_OF_MAPS)
PER_CPU_HASHES = (PERCPU_HASH, LRU_PERCPU_HASH)
LRUS = (LRU_HASH, LRU_PERCPU_HASH)
POINTER = 8
ELEMENT, BUCKET, STACK_BUCKET, TRIE_NODE = 48, 16, 16, 40  # sizeof the kernel's own structs
RING_PAGES = 3  # of a ring buffer beside its data: for itself, the consumer and the producer


class Memory(NamedTuple):
    """Bytes of a map, its own struct (some hundred bytes) left out.

    fixed:   on every machine
    per_cpu: more for each possible CPU
    grows:   so much when full; it takes less before
    """

    fixed: int
    per_cpu: int = 0
    grows: bool = False

    def on(self, cpus: int) -> int:
        """Bytes on a machine with so many possible CPUs."""
        return self.fixed + self.per_cpu * cpus


def memory(spec: MapSpec, entries: int) -> Memory | None:
    """What a map with so many entries takes; None where that depends on what it belongs to (storage of tasks, ...).

    Keys and values are padded to 8 bytes each. A hash map has a table of a power of two of buckets, all entries
    allocated beforehand unless BPF_F_NO_PREALLOC says otherwise, and one more for each CPU. A ring buffer is mapped
    twice: its pages count once, the pointers to them twice. Pages are of 4 KiB.
    """
    key, value = padded(spec.key_size), padded(spec.value_size)
    kind = spec.type
    if kind in HASHES:
        return of_hash(spec, entries, key, value)
    if kind in (ARRAY, PROG_ARRAY, CGROUP_ARRAY, ARRAY_OF_MAPS, SOCKMAP, REUSEPORT, XSKMAP, DEVMAP, CPUMAP):
        each = value if kind in (ARRAY, PROG_ARRAY, CGROUP_ARRAY, ARRAY_OF_MAPS) else POINTER
        if spec.flags & MMAPABLE:
            return Memory(PAGE + pages(entries * each) * PAGE)
        return Memory(entries * each)
    if kind == PERF_EVENT_ARRAY:
        return Memory(entries * value) if entries else Memory(0, value)
    if kind == PERCPU_ARRAY:
        return Memory(entries * POINTER, entries * value)
    if kind == STACK_TRACE:
        return Memory(power_of_two(entries) * POINTER + entries * (STACK_BUCKET + spec.value_size))
    if kind in (RINGBUF, USER_RINGBUF):
        data = pages(entries)
        return Memory((RING_PAGES + data) * PAGE + (RING_PAGES + 2 * data) * POINTER)
    if kind == LPM_TRIE:
        return Memory(entries * (TRIE_NODE + max(spec.key_size - 4, 0) + spec.value_size), grows=True)
    if kind in (QUEUE, STACK):
        return Memory((entries + 1) * spec.value_size)
    if kind == DEVMAP_HASH:
        return Memory(power_of_two(entries) * POINTER + entries * 64, grows=True)
    if kind == SOCKHASH:
        return Memory(power_of_two(entries) * BUCKET + entries * (32 + spec.key_size), grows=True)
    if kind == BLOOM:
        # Seven bits for five entries and hash function; 5 functions where the map does not say.
        return Memory(power_of_two(entries * 5 * 7 // 5) // 8)
    if kind == ARENA:
        return Memory(entries * PAGE, grows=True)
    return None


def of_hash(spec: MapSpec, entries: int, key: int, value: int) -> Memory:
    """A hash map of any kind."""
    per_cpu_values, lru = spec.type in PER_CPU_HASHES, spec.type in LRUS
    preallocated = not spec.flags & NO_PREALLOC
    element = ELEMENT + key + (POINTER if per_cpu_values else value)
    fixed = power_of_two(entries) * BUCKET + entries * element
    per_cpu = entries * value if per_cpu_values else 0
    if not preallocated:
        return Memory(fixed + entries * POINTER * (3 if per_cpu_values else 1), per_cpu, True)
    if not per_cpu_values and not lru:
        per_cpu += element + POINTER  # a spare element for each CPU
    return Memory(fixed, per_cpu)


def padded(size: int) -> int:
    return (size + 7) // 8 * 8


def pages(size: int) -> int:
    return (size + PAGE - 1) // PAGE


def power_of_two(number: int) -> int:
    return 1 << max(number - 1, 0).bit_length()
