"""BPF objects, programs, maps and links: thin handles on libbpf, each with `close()`."""

from __future__ import annotations

import ctypes as C
import os
from collections.abc import Callable, Iterator
from errno import EINVAL, ENOENT, ENOSPC
from functools import cached_property
from itertools import islice

from igrun.bpfcall import ENOTSUPP
from igrun.bpfcall import Extra as Extra
from igrun.bpfcall import link_create as link_create
from igrun.bpfcall import prog_attach as prog_attach
from igrun.bpfcall import prog_detach as prog_detach
from igrun.bpfcall import prog_query as prog_query
from igrun.bpflib import check, last_said, library, pointer, refusal, said
from igrun.errors import KernelError

# enum bpf_map_type
HASH, PERF_EVENT_ARRAY, PERCPU_HASH, PERCPU_ARRAY, LRU_HASH, LRU_PERCPU_HASH, RINGBUF = 1, 4, 5, 6, 9, 10, 27
PER_CPU = (PERCPU_HASH, PERCPU_ARRAY, LRU_PERCPU_HASH, 21)  # 21: PERCPU_CGROUP_STORAGE
PIN_ROOT = "/sys/fs/bpf"
SLEEPABLE, XDP_FRAGS = 1 << 4, 1 << 5  # flags of a program: BPF_F_SLEEPABLE, BPF_F_XDP_HAS_FRAGS


class OpenOptions(C.Structure):
    """struct bpf_object_open_opts; the library reads as much as `sz` says."""

    _fields_ = (
        ("sz", C.c_size_t),
        ("object_name", C.c_char_p),
        ("relaxed_maps", C.c_bool),
        ("pin_root_path", C.c_char_p),
        ("removed", C.c_uint32),
        ("kconfig", C.c_char_p),
        ("btf_custom_path", C.c_char_p),
        ("kernel_log_buf", C.c_void_p),
        ("kernel_log_size", C.c_size_t),
        ("kernel_log_level", C.c_size_t),
    )


class KprobeOptions(C.Structure):
    """struct bpf_kprobe_opts."""

    _fields_ = (
        ("sz", C.c_size_t),
        ("bpf_cookie", C.c_uint64),
        ("offset", C.c_size_t),
        ("retprobe", C.c_bool),
    )


class PerfEventOptions(C.Structure):
    """struct bpf_perf_event_opts."""

    _fields_ = (("sz", C.c_size_t), ("bpf_cookie", C.c_uint64))


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


class BpfLink:
    """What keeps a program attached. `fd`: -1 where the kernel has no link for this kind, and once it is closed."""

    def __init__(self, fd: int, release: Callable[[], object]) -> None:
        self.fd = fd
        self._release: Callable[[], object] | None = release

    @classmethod
    def of(cls, link: int) -> BpfLink:
        """From a `struct bpf_link *`."""
        lib = library()
        return cls(lib.bpf_link__fd(link), lambda: lib.bpf_link__destroy(link))

    @classmethod
    def of_fd(cls, fd: int) -> BpfLink:
        """From a link's descriptor, which is closed with it."""
        return cls(fd, lambda: os.close(fd))

    def close(self) -> None:
        """Detach. Again: nothing."""
        release, self._release, self.fd = self._release, None, -1
        if release:
            release()


class BpfProgram:
    """A program of an object. type: BPF_PROG_TYPE_*, 0 while libbpf does not know its section; fd: once loaded.

    object: what it is of
    """

    def __init__(self, program: int, object_: BpfObject) -> None:
        lib = library()
        self._program = program
        self.object = object_
        self.name: str = lib.bpf_program__name(program).decode()
        self.section: str = lib.bpf_program__section_name(program).decode()

    @property
    def type(self) -> int:
        kind: int = library().bpf_program__type(self._program)
        return kind

    @property
    def fd(self) -> int:
        return check(library().bpf_program__fd(self._program), f"program {self.name!r} is not loaded")

    @property
    def loaded(self) -> bool:
        """True while it is in the kernel."""
        return bool(library().bpf_program__fd(self._program) >= 0)

    def set_type(self, kind: int, attach_type: int = 0, flags: int = 0) -> None:
        """BPF_PROG_TYPE_*, BPF_* (expected attach type) and BPF_F_*, before load; libbpf chooses none by the section.

        What libbpf does by the section changes from version to version; it forgets the section where the type changes.
        """
        lib = library()
        for one in (1 if kind != 1 else 2, kind):
            check(lib.bpf_program__set_type(self._program, one), f"set the type of {self.name!r}")
        done = lib.bpf_program__set_expected_attach_type(self._program, attach_type)
        check(done, f"set the attach type of {self.name!r}")
        self.set_flags(flags)

    def set_flags(self, flags: int) -> None:
        """Add BPF_F_*, before load."""
        lib = library()
        done = lib.bpf_program__set_flags(self._program, lib.bpf_program__flags(self._program) | flags)
        check(done, f"set the flags of {self.name!r}")

    @property
    def attach_type(self) -> int:
        """Its expected attach type, BPF_*."""
        kind: int = library().bpf_program__expected_attach_type(self._program)
        return kind

    def set_target(self, function: str, program_fd: int = 0) -> None:
        """The function or hook that it is for, before load. program_fd: the program that has it, 0: the kernel."""
        done = library().bpf_program__set_attach_target(self._program, program_fd, function.encode())
        check(done, f"set the target of {self.name!r} to {function!r}")

    def leave_out(self, out: bool = True) -> None:
        """Do not load it. out=False: load it, though its section begins with `?`."""
        check(library().bpf_program__set_autoload(self._program, not out), f"leave out {self.name!r}")

    def unload(self) -> None:
        """Give it back to the kernel, once loaded; the rest of the object stays."""
        library().bpf_program__unload(self._program)

    def missed(self) -> int:
        """Runs that the kernel left out because a program of its kind was already running on that CPU.

        0 too before Linux 5.12 (9ed9e9ba2337, "bpf: Count the number of times recursion was prevented").
        """
        with open(f"/proc/self/fdinfo/{self.fd}") as told:
            for line in told:
                key, _, value = line.partition(":")
                if key == "recursion_misses":
                    return int(value)
        return 0

    def attach_perf_event(self, event: int, cookie: int = 0) -> BpfLink:
        """To a perf event; the link owns the descriptor `event` then."""
        options = PerfEventOptions(C.sizeof(PerfEventOptions), cookie)
        return self._attached(library().bpf_program__attach_perf_event_opts(self._program, event, C.byref(options)))

    def attach_raw_tracepoint(self, name: str) -> BpfLink:
        return self._attached(library().bpf_program__attach_raw_tracepoint(self._program, name.encode()))

    def attach_trace(self) -> BpfLink:
        """To what it was loaded for: fentry, fexit, fmod_ret, tp_btf, freplace."""
        return self._attached(library().bpf_program__attach_trace(self._program))

    def attach_kprobe(self, function: str, offset: int = 0, *, at_return: bool = False, cookie: int = 0) -> BpfLink:
        options = KprobeOptions(C.sizeof(KprobeOptions), cookie, offset, at_return)
        return self._attached(
            library().bpf_program__attach_kprobe_opts(self._program, function.encode(), C.byref(options))
        )

    def _attached(self, link: int | None) -> BpfLink:
        return BpfLink.of(pointer(link, f"attach {self.name!r}"))


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


class ObjectMap:
    """A map of an object that is not loaded yet."""

    def __init__(self, map: int) -> None:
        self._map = map
        self.name: str = library().bpf_map__name(map).decode()

    @property
    def type(self) -> int:
        kind: int = library().bpf_map__type(self._map)
        return kind

    @property
    def key_size(self) -> int:
        size: int = library().bpf_map__key_size(self._map)
        return size

    @property
    def value_size(self) -> int:
        size: int = library().bpf_map__value_size(self._map)
        return size

    @property
    def max_entries(self) -> int:
        entries: int = library().bpf_map__max_entries(self._map)
        return entries

    def set(self, *, type: int = -1, key_size: int = -1, value_size: int = -1, max_entries: int = -1) -> None:
        """Change what is given."""
        given = {"type": type, "key_size": key_size, "value_size": value_size, "max_entries": max_entries}
        for what, value in given.items():
            if value >= 0:
                done = getattr(library(), f"bpf_map__set_{what}")(self._map, value)
                check(done, f"set {what} of map {self.name!r} to {value}")

    def add_flags(self, flags: int) -> None:
        """BPF_F_*, before load."""
        lib = library()
        done = lib.bpf_map__set_map_flags(self._map, lib.bpf_map__map_flags(self._map) | flags)
        check(done, f"set the flags of map {self.name!r}")

    @property
    def flags(self) -> int:
        """BPF_F_*."""
        found: int = library().bpf_map__map_flags(self._map)
        return found

    def leave_out(self) -> None:
        """Do not create it."""
        check(library().bpf_map__set_autocreate(self._map, False), f"leave out map {self.name!r}")

    def register(self) -> int:
        """Hand the struct that it holds to the kernel; a `struct bpf_link *`. KernelError."""
        return pointer(library().bpf_map__attach_struct_ops(self._map), f"attach {self.name!r}")

    def reuse(self, ours: BpfMap) -> None:
        """Use a map of ours in its place."""
        check(library().bpf_map__reuse_fd(self._map, ours.fd), f"put {ours.name!r} in the place of map {self.name!r}")

    def write(self, offset: int, value: bytes) -> None:
        """Write into its initial value (of .rodata, .data, .bss). ValueError if it is not that large."""
        size = C.c_size_t()
        address = library().bpf_map__initial_value(self._map, C.byref(size))
        if not address or offset + len(value) > size.value:
            raise ValueError(f"map {self.name!r} has no {len(value)} bytes at {offset}")
        C.memmove(address + offset, value, len(value))

    def loaded(self) -> BpfMap:
        """The map in the kernel."""
        fd = check(library().bpf_map__fd(self._map), f"map {self.name!r} is not loaded")
        return BpfMap(fd, self.name, self.type, self.key_size, self.value_size, self.max_entries)


class BpfObject:
    """A compiled object. programs, maps: by name, in the object's order; elf, btf_custom_path: as it was opened."""

    def __init__(self, handle: int, elf: bytes, btf_custom_path: str | None = None) -> None:
        self._handle = handle
        self.elf = elf  # libbpf reads it until load
        self.btf_custom_path = btf_custom_path
        programs = (BpfProgram(one, self) for one in self._all("bpf_object__next_program"))
        self.programs = {one.name: one for one in programs}
        self.maps = {one.name: one for one in map(ObjectMap, self._all("bpf_object__next_map"))}

    @classmethod
    def open(cls, elf: bytes, name: str = "gadget", btf_custom_path: str | None = None) -> BpfObject:
        """Read the object; nothing reaches the kernel. Maps that ask for it are pinned under /sys/fs/bpf.

        KernelError: libbpf cannot read it
        """
        said.clear()
        options = OpenOptions(
            sz=C.sizeof(OpenOptions),
            object_name=name.encode(),
            pin_root_path=PIN_ROOT.encode(),
            btf_custom_path=btf_custom_path.encode() if btf_custom_path else None,
        )
        handle = library().bpf_object__open_mem(elf, len(elf), C.byref(options))
        if not handle:
            raise KernelError(C.get_errno(), f"open the BPF object ({last_said() or 'no reason given'})")
        return cls(handle, elf, btf_custom_path)

    def section(self, name: str) -> ObjectMap | None:
        """The map that holds a data section (.rodata, ...)."""
        found = library().bpf_object__find_map_by_name(self._handle, name.encode())
        return ObjectMap(found) if found else None

    def load(self) -> None:
        """Create its maps and load its programs. VerifierError, or KernelError with what libbpf said."""
        said.clear()
        result = library().bpf_object__load(self._handle)
        if result < 0:
            raise refusal(-result) or KernelError(-result, f"load the BPF object ({last_said() or 'no reason given'})")

    def close(self) -> None:
        """Unload. What is still attached stays until its link is closed."""
        if self._handle:
            library().bpf_object__close(self._handle)
            self._handle = 0

    def _all(self, following: str) -> Iterator[int]:
        step = getattr(library(), following)
        one = step(self._handle, None)
        while one:
            yield one
            one = step(self._handle, one)


def possible_cpus() -> int:
    """How many CPUs there can be: the number of values of a per-CPU map's entry."""
    return check(library().libbpf_num_possible_cpus(), "count the possible CPUs")
