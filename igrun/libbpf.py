"""BPF objects, programs, maps and links: thin handles on libbpf, each with `close()`."""

from __future__ import annotations

import ctypes as C
import os
from collections.abc import Callable, Iterator

from igrun.bpflib import check, last_said, library, pointer, refusal, said
from igrun.bpfmap import BpfMap
from igrun.errors import KernelError

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
