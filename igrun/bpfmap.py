"""Maps in the kernel: their entries one by one and in batches, also from kernels that have no batches."""

from __future__ import annotations

import ctypes as C
import os
from collections.abc import Callable, Iterator
from errno import EINVAL, ENOENT, ENOSPC
from functools import cached_property
from itertools import islice

from igrun.bpfcall import ENOTSUPP
from igrun.bpflib import check, library

# enum bpf_map_type
HASH, PERF_EVENT_ARRAY, PERCPU_HASH, PERCPU_ARRAY, LRU_HASH, LRU_PERCPU_HASH, RINGBUF = 1, 4, 5, 6, 9, 10, 27
PER_CPU = (PERCPU_HASH, PERCPU_ARRAY, LRU_PERCPU_HASH, 21)  # 21: PERCPU_CGROUP_STORAGE


class CreateOptions(C.Structure):
    """struct bpf_map_create_opts."""

    _fields_ = (
        ("sz", C.c_size_t),
        ("btf_fd", C.c_uint32),
        ("btf_key_type_id", C.c_uint32),
        ("btf_value_type_id", C.c_uint32),
        ("btf_vmlinux_value_type_id", C.c_uint32),
        ("inner_map_fd", C.c_uint32),
        ("map_flags", C.c_uint32),
        ("map_extra", C.c_uint64),
        ("numa_node", C.c_uint32),
        ("map_ifindex", C.c_uint32),
    )


class MapInfo(C.Structure):
    """The head of struct bpf_map_info."""

    _fields_ = (
        ("type", C.c_uint32),
        ("id", C.c_uint32),
        ("key_size", C.c_uint32),
        ("value_size", C.c_uint32),
        ("max_entries", C.c_uint32),
        ("map_flags", C.c_uint32),
        ("name", C.c_char * 16),
    )


class BpfMap:
    """A map in the kernel. type: BPF_MAP_TYPE_*.

    fd:    its descriptor
    owned: close() closes the descriptor; a map of an object is closed with the object
    """

    def __init__(
        self, fd: int, name: str, type: int, key_size: int, value_size: int, max_entries: int, *, owned: bool = False
    ) -> None:
        self.fd, self.name, self.type = fd, name, type
        self.key_size, self.value_size, self.max_entries = key_size, value_size, max_entries
        self._owned = owned

    @classmethod
    def create(
        cls,
        type: int,
        name: str,
        key_size: int,
        value_size: int,
        max_entries: int,
        *,
        flags: int = 0,
        kernel_type: int = 0,
    ) -> BpfMap:
        """A new map of ours. kernel_type: BTF id of the kernel's struct in it. KernelError."""
        options = CreateOptions(C.sizeof(CreateOptions), btf_vmlinux_value_type_id=kernel_type, map_flags=flags)
        fd = library().bpf_map_create(type, name[:15].encode(), key_size, value_size, max_entries, C.byref(options))
        return cls(check(fd, f"create map {name!r}"), name, type, key_size, value_size, max_entries, owned=True)

    @classmethod
    def of_fd(cls, fd: int, name: str) -> BpfMap:
        """The map behind a descriptor, which stays the caller's."""
        info = MapInfo()
        size = C.c_uint32(C.sizeof(info))
        check(library().bpf_obj_get_info_by_fd(fd, C.byref(info), C.byref(size)), f"ask about map {name!r}")
        return cls(fd, name, info.type, info.key_size, info.value_size, info.max_entries)

    def close(self) -> None:
        if self._owned:
            self._owned = False
            os.close(self.fd)

    @cached_property
    def value_bytes(self) -> int:
        """Bytes that one look-up gives: of a per-CPU map one value, padded to 8, for every possible CPU."""
        return (self.value_size + 7) // 8 * 8 * possible_cpus() if self.type in PER_CPU else self.value_size

    def lookup(self, key: bytes) -> bytes | None:
        """The value, None if there is none."""
        value = C.create_string_buffer(self.value_bytes)
        result = library().bpf_map_lookup_elem(self.fd, key, value)
        if result == -ENOENT:
            return None
        check(result, f"look up in map {self.name!r}")
        return value.raw

    def update(self, key: bytes, value: bytes, flags: int = 0) -> None:
        check(library().bpf_map_update_elem(self.fd, key, value, flags), f"update map {self.name!r}")

    def delete(self, key: bytes) -> bool:
        """False if there was none."""
        result = library().bpf_map_delete_elem(self.fd, key)
        if result == -ENOENT:
            return False
        check(result, f"delete from map {self.name!r}")
        return True

    def keys(self) -> Iterator[bytes]:
        """Its keys, one system call each; keys that come or go meanwhile may be left out or come twice."""
        key: bytes | None = None
        following = C.create_string_buffer(self.key_size)
        while True:
            result = library().bpf_map_get_next_key(self.fd, key, following)
            if result == -ENOENT:
                return
            check(result, f"list map {self.name!r}")
            key = following.raw
            yield key

    def freeze(self) -> None:
        """No more writes from user space."""
        check(library().bpf_map_freeze(self.fd), f"freeze map {self.name!r}")

    def lookup_batch(self, room: int = 0) -> tuple[bytes, bytes]:
        """All its keys, and all its values (`value_bytes` each), one after the other.

        Of a hash table, an entry that is there all the time comes exactly once: the kernel goes from bucket to bucket,
        and holds each while it copies what is in it.

        room: entries per system call to begin with, 0: what fits in a megabyte
        """
        found = self._batches("bpf_map_lookup_batch", room)
        return self._one_by_one(lambda key: self.lookup(key)) if found is None else found

    def drain(self, room: int = 0) -> tuple[bytes, bytes]:
        """As `lookup_batch`, and take them out. An entry that is made meanwhile comes now or the next time."""
        found = self._batches("bpf_map_lookup_and_delete_batch", room)
        return self._one_by_one(self._taken) if found is None else found

    def _batches(self, command: str, room: int) -> tuple[bytes, bytes] | None:
        """None: the kernel cannot do that with this map."""
        function = getattr(library(), command)
        keys, values = [], []
        room = room or max(16, min(self.max_entries, (1 << 20) // (self.key_size + self.value_bytes)))
        # where to go on: a bucket number for hash tables, a key for others
        here: C.Array[C.c_char] | None = None
        while True:
            there = C.create_string_buffer(max(self.key_size, 8))
            some_keys = C.create_string_buffer(room * self.key_size)
            some_values = C.create_string_buffer(room * self.value_bytes)
            count = C.c_uint32(room)
            result = function(self.fd, here, there, some_keys, some_values, C.byref(count), None)
            if result == -ENOSPC:
                # The next bucket alone has more entries than there is room. None of them was taken.
                room *= 2
                continue
            if result in (-EINVAL, -ENOTSUPP) and here is None:
                # Before Linux 5.6 (057996380a42, "bpf: Add batch ops to all htab bpf map") the kernel does not know the
                # command; other kinds of maps have no batch operations.
                return None
            if result != -ENOENT:  # which says: that was the last
                check(result, f"read map {self.name!r}")
            keys.append(C.string_at(some_keys, count.value * self.key_size))
            values.append(C.string_at(some_values, count.value * self.value_bytes))
            if result == -ENOENT:
                return b"".join(keys), b"".join(values)
            here = there

    def _one_by_one(self, read: Callable[[bytes], bytes | None]) -> tuple[bytes, bytes]:
        # Where the key that was found last is gone, the kernel begins again: keys may come twice, without end.
        keys = dict.fromkeys(islice(self.keys(), 2 * self.max_entries))
        found = {key: value for key in keys if (value := read(key)) is not None}
        return b"".join(found), b"".join(found.values())

    def _taken(self, key: bytes) -> bytes | None:
        value = self.lookup(key)
        return value if value is not None and self.delete(key) else None


def possible_cpus() -> int:
    """How many CPUs there can be: the number of values of a per-CPU map's entry."""
    return check(library().libbpf_num_possible_cpus(), "count the possible CPUs")
