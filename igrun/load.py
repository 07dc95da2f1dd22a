"""A program into the kernel: constants written, maps sized, everything loaded; nothing is attached yet."""

from __future__ import annotations

import ctypes as C
import os
import struct
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator
from errno import EINVAL
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from igrun.bpflib import library, pointer
from igrun.bpfmap import PERF_EVENT_ARRAY, RINGBUF, BpfMap
from igrun.choosing import (
    EXTENSION,
    VMLINUX,
    Choices,
    RefusedError,
    chosen,
    explained,
    kind_of,
    refuse_without_capabilities,
    wanted,
)
from igrun.errors import ImageError, KernelError, UnsupportedError
from igrun.extensions import extended
from igrun.libbpf import BpfObject, BpfProgram
from igrun.structops import link_struct_ops, with_struct_ops

if TYPE_CHECKING:
    from igrun.attach.following import Following
    from igrun.host import Host, Target
    from igrun.program import Hook, Plan

LOST_SUFFIX = "_lost_samples"
MOST_RETRIES = 20  # each for one program that the kernel refuses, and the run can do without
DEFAULT_ENTRIES = 1024
# A perf event array has one entry for each CPU; the other types (storage of cgroups, sockets, inodes and tasks, and
# STRUCT_OPS) grow with what they belong to, and the kernel refuses one with a size.
SIZELESS = (PERF_EVENT_ARRAY, 19, 21, 24, 26, 28, 29, 32)


class Closable(Protocol):
    """Something that keeps a program attached."""

    def close(self) -> object: ...


Key = tuple[str, Hashable]  # program, place


class Attached:
    """What keeps the programs of a run attached: a link for each program and place, however many targets share it."""

    def __init__(self) -> None:
        self._links: dict[Key, Closable] = {}
        self._targets: dict[Key, set[Target]] = {}

    def __iter__(self) -> Iterator[Closable]:
        return iter(self._links.values())

    def __len__(self) -> int:
        return len(self._links)

    def of(self, target: Target) -> list[Key]:
        """What a target needs, in the order in which it was attached."""
        return [key for key, targets in self._targets.items() if target in targets]

    def add(self, key: Key, target: Target, attach: Callable[[], Closable]) -> None:
        """Attach for a target, unless that is done for another one."""
        if key not in self._links:
            self._links[key] = attach()
        self._targets.setdefault(key, set()).add(target)

    def release(self, target: Target, keys: Collection[Key]) -> None:
        """A target does not need these any more."""
        for key in reversed([one for one in self.of(target) if one in keys]):
            self._targets[key].discard(target)
            if not self._targets[key]:
                self.end(key)

    def end(self, key: Key) -> None:
        """Close a link, whoever needs it. Again: nothing."""
        self._targets.pop(key, None)
        if link := self._links.pop(key, None):
            link.close()

    def refresh(self) -> None:
        """Let links look after themselves that others may have changed."""
        for link in self._links.values():
            if hasattr(link, "refresh"):
                link.refresh()

    def close(self) -> None:
        """Close all, the last first. Again: nothing."""
        while self._links:
            self.end(next(reversed(self._links)))


class LoadedProgram:
    """A program in the kernel (satisfies `program.Loaded`).

    hooks:   what is to be attached, in the object's order, with handles
    choices: which programs were left out, and why
    links:   what is attached, filled by `attach`; `detach()` closes them
    following: interfaces that come and go, if somebody looks after them
    """

    def __init__(
        self,
        plan: Plan,
        object_: BpfObject,
        hooks: Iterable[Hook],
        choices: Choices,
        extensions: BpfObject | None = None,
    ) -> None:
        self.plan = plan
        self.hooks = tuple(hooks)
        self.choices = choices
        self.links = Attached()
        self.following: Following | None = None
        self._object, self._extensions = object_, extensions
        self._maps: dict[str, BpfMap] = {}
        self._choose_iterators()

    @property
    def host(self) -> Host:
        return self.plan.host

    def map(self, name: str) -> BpfMap:
        """The map of that name. KeyError if the object has none."""
        if name not in self._maps:
            self._maps[name] = self._object.maps[name].loaded()
        return self._maps[name]

    def has_map(self, name: str) -> bool:
        return name in self._object.maps

    def program(self, name: str) -> BpfProgram:
        """The program of that function. KeyError if the object has none."""
        return self._object.programs[name]

    def missed(self) -> int:
        """Runs of its programs that the kernel left out; each may have been a record (see BpfProgram.missed)."""
        return sum(hook.handle.missed() for hook in self.hooks if hook.handle)

    def detach(self) -> None:
        """Detach everything. Again: nothing."""
        if self.following:
            self.following.close()
        self.links.close()

    def close(self) -> None:
        """Detach and unload."""
        self.detach()
        if self._extensions:
            self._extensions.close()
        self._object.close()

    def drop(self, program: str) -> None:
        """Unload a program that was left out, or is not needed."""
        for hook in self.hooks:
            if hook.program == program and hook.handle:
                hook.handle.unload()
        self.hooks = tuple(hook for hook in self.hooks if hook.program != program)

    def drop_unneeded(self) -> None:
        """Unload what is left out, and alternatives that others were chosen instead of."""
        for hook in self.hooks:
            if hook.program in self.choices.left_out or not self.choices.needed(hook.program):
                self.drop(hook.program)

    def _choose_iterators(self) -> None:
        """Of alternatives that are iterators the first is used: what loads can be read."""
        for hook in self.hooks:
            if kind_of(hook) == "iter" and self.choices.needed(hook.program):
                self.choices.choose(hook.program)
        self.drop_unneeded()


def load(plan: Plan) -> LoadedProgram:
    """Load the plan's program. It is closed with `plan.stack`.

    Programs that are optional or have alternatives, and that this kernel refuses, are left out.

    KernelError: refused, with what is missing; VerifierError; AttachError: a target fixed at load does not exist;
    UnsupportedError: this kernel cannot do it; ImageError: the plan does not fit the object
    """
    btf = btf_for(plan)
    rings = any(one.type == RINGBUF for one in plan.program.maps.values())
    old = rings and not has_ring_buffers()
    elf = without_boot_clock(plan.program.elf) if old and not has_boot_clock() else plan.program.elf
    elf = with_struct_ops(filtered(plan, elf))
    choices = Choices(wanted(plan))
    for retries in range(MOST_RETRIES, -1, -1):
        object_ = BpfObject.open(elf, "gadget", btf)
        extensions = None
        try:
            hooks = chosen(plan, object_, choices)
            refuse_without_capabilities(plan.host, hooks)
            write_constants(plan, object_)
            size_maps(plan, object_)
            if old:
                use_perf_buffers(object_)
            replace_maps(plan, object_)
            link_struct_ops(object_, used=any(kind_of(hook) == "struct_ops" for hook in hooks))
            try:
                for hook in hooks:
                    if kind_of(hook) == EXTENSION:
                        object_.programs[hook.program].leave_out()
                object_.load()
                hooks, extensions = extended(plan, object_, hooks, elf, btf)
            except KernelError as error:
                raise explained(error, plan, hooks) from None
            break
        except RefusedError as refusal:
            object_.close()
            if not retries:
                raise refusal.error from None
            choices.leave_out(refusal.program, refusal.error)
        except BaseException:
            object_.close()
            raise
    loaded = LoadedProgram(plan, object_, hooks, choices, extensions)
    plan.stack.callback(loaded.close)
    return loaded


# ------------------------------------------------------------------------------------------------ packet filters

NO_LINK_HEADER = (768, 769, 776, 778, 823, 65534)  # ARPHRD_TUNNEL, _TUNNEL6, _SIT, _IPGRE, _IP6GRE, _NONE


def filtered(plan: Plan, elf: bytes) -> bytes:
    """The object with the run's packet filters in its programs. ParamError, ImageError, UnsupportedError."""
    filters = plan.program.filters(plan.values)
    if not filters:
        return elf
    from igrun.packetfilter import Link, inject

    # Interfaces of containers are Ethernet. What --iface names may be a tunnel.
    interface = plan.values.get("iface", "")
    kind = plan.host.root / "sys/class/net" / interface / "type"
    tunnel = "/" not in interface and kind.is_file() and int(kind.read_text()) in NO_LINK_HEADER
    return inject(elf, filters, Link.IP if tunnel else Link.ETHERNET)


# ------------------------------------------------------------------------------------------------ maps and data


def write_constants(plan: Plan, object_: BpfObject) -> None:
    """Write `plan.constants` into the object's data sections."""
    for name, value in plan.constants.items():
        variable = plan.program.variables.get(name)
        section = object_.section(variable.section) if variable else None
        if variable is None or section is None:
            raise ImageError(f"the BPF object has no variable {name!r}")
        if len(value) > variable.size:
            raise ImageError(f"variable {name!r} has {variable.size} bytes, not {len(value)}")
        try:
            section.write(variable.offset, value)
        except ValueError as error:
            raise ImageError(f"variable {name!r}: {error}") from None


def size_maps(plan: Plan, object_: BpfObject) -> None:
    """Give the maps their sizes."""
    sizes = {**plan.program.map_sizes(plan.constants), **plan.sizes}
    for map_ in object_.maps.values():
        if map_.name in sizes:
            map_.set(max_entries=sizes[map_.name])
        if map_.type == RINGBUF:
            map_.set(max_entries=ring_size(map_.max_entries, plan.ring_bytes))
        elif map_.max_entries == 0 and map_.type not in SIZELESS:
            map_.set(max_entries=DEFAULT_ENTRIES)  # the program left the size to a param that nobody set


def ring_size(declared: int, at_least: int) -> int:
    """Bytes of a ring buffer that the object declares with so many: a power of two."""
    return max(declared, 1 << (at_least - 1).bit_length() if at_least else 0)


def affordable(root: Path, rings: int) -> int:
    """Bytes that each of so many ring buffers may have, a power of two, where nobody said how many.

    All together get a 64th of the memory that this machine has to spare, or that this process may still take.
    """
    share = spare_memory(root) // 64 // max(rings, 1)
    return 1 << share.bit_length() - 1 if share else 0


def spare_memory(root: Path) -> int:
    """Bytes; 0 where nothing tells. root: of the machine."""
    spare = [int(line.split()[1]) << 10 for line in lines(root / "proc/meminfo") if line.startswith("MemAvailable:")]
    if not spare:
        return 0
    # The memory of maps is charged to the cgroup of who makes them, and to all above it. An own cgroup namespace begins
    # at what is mounted.
    for line in lines(Path("/proc/self/cgroup")):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            spare += left_below(Path("/sys/fs/cgroup"), path, "memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            files = "memory.limit_in_bytes", "memory.usage_in_bytes"
            spare += left_below(Path("/sys/fs/cgroup/memory"), path, *files)
    return max(0, min(spare))


def left_below(mount: Path, path: str, limit: str, used: str) -> list[int]:
    """What each cgroup from `path` upwards may still take; those without a limit are left out."""
    folder = mount / path.strip("/")
    folders = [one for one in (folder, *folder.parents) if one.is_relative_to(mount)]
    told = [(lines(one / limit), lines(one / used)) for one in folders]
    return [int(most[0]) - int(now[0]) for most, now in told if most and now and most[0] != "max"]


def lines(path: Path) -> list[str]:
    """Of a file; none if it cannot be read."""
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def has_ring_buffers() -> bool:
    """Ask the kernel. True as well if it does not let us ask: then loading tells why."""
    try:
        BpfMap.create(RINGBUF, "probe", 0, 0, os.sysconf("SC_PAGE_SIZE")).close()
    except KernelError as error:
        # Before Linux 5.8 (457f44363a88, "bpf: Implement BPF ring buffer and verifier support for it").
        return error.errno != EINVAL
    return True


def use_perf_buffers(object_: BpfObject) -> None:
    """Make its ring buffers perf event arrays. UnsupportedError if its programs have no code for that.

    GADGET_TRACER_MAP (which also declares the map's loss counter) brings that code: it asks by CO-RE if the kernel
    has the ring buffer helpers.
    """
    for map_ in object_.maps.values():
        if map_.type != RINGBUF:
            continue
        if f"{map_.name}{LOST_SUFFIX}" not in object_.maps:
            raise UnsupportedError(f"map {map_.name!r}", "this kernel has no ring buffers", since="5.8")
        map_.set(type=PERF_EVENT_ARRAY, key_size=4, value_size=4, max_entries=0)


BOOT_CLOCK = 125  # BPF_FUNC_ktime_get_boot_ns


def has_boot_clock() -> bool:
    """Ask the kernel for the helper bpf_ktime_get_boot_ns, which came with Linux 5.8 (71d19214776e)."""
    tracepoint = 5  # BPF_PROG_TYPE_TRACEPOINT
    return bool(library().libbpf_probe_bpf_helper(tracepoint, BOOT_CLOCK, None) != 0)


def without_boot_clock(elf: bytes) -> bytes:
    """The object with `r0 = 0` in place of every call of that helper: a time of 0 is shown as now."""
    call, zero = b"\x85\0\0\0" + BOOT_CLOCK.to_bytes(4, "little"), b"\xb7" + bytes(7)
    out = bytearray(elf)
    # ELF64: where the section headers are, the size and number of them; of each: type, flags, offset and size
    (first,) = struct.unpack_from("<Q", elf, 0x28)
    size, number = struct.unpack_from("<HH", elf, 0x3A)
    for header in range(first, first + size * number, size):
        kind, flags, _, start, length = struct.unpack_from("<IQQQQ", elf, header + 4)
        executable = kind == 1 and flags & 4  # SHT_PROGBITS, SHF_EXECINSTR
        for place in range(start, start + length, 8) if executable else ():
            if elf[place : place + 8] == call:
                out[place : place + 8] = zero
    return bytes(out)


def replace_maps(plan: Plan, object_: BpfObject) -> None:
    """Put `plan.maps` in the place of the object's. ImageError if one does not fit."""
    for name, ours in plan.maps.items():
        map_ = object_.maps.get(name)
        if map_ is None:
            continue
        if (map_.type, map_.key_size) != (ours.type, ours.key_size):
            raise ImageError(
                f"map {name!r} of the gadget has type {map_.type} and keys of {map_.key_size} bytes, "
                f"where {ours.type} and {ours.key_size} are expected"
            )
        # Before libbpf takes the other map: it compares with what the object says.
        map_.set(value_size=ours.value_size)
        map_.reuse(ours)


def btf_for(plan: Plan) -> str | None:
    """The file for libbpf to resolve CO-RE against; None: it finds the kernel's own."""
    path = plan.kernel_btf
    if plan.missing_btf:
        # libbpf wants some, were it for programs alone that are left out.
        from igrun.btf import NO_TYPES
        from igrun.kernel_btf.memory import in_memory

        path = in_memory(NO_TYPES, plan.stack)
    return merged_btf(plan, path or VMLINUX) if plan.extra_btf else path


def merged_btf(plan: Plan, kernel: str) -> str:
    """A file with the kernel's BTF and the plan's extra types: libbpf takes one only. It ends with the plan."""
    lib = library()
    base = pointer(lib.btf__parse_raw(kernel.encode()), "read the kernel's BTF")
    try:
        for data in plan.extra_btf:
            extra = pointer(lib.btf__new(data, len(data)), "read extra BTF")
            done = lib.btf__add_btf(base, extra)
            lib.btf__free(extra)
            if done < 0:
                raise KernelError(-done, "join the kernel's BTF with extra types")
        size = C.c_uint32()
        raw = C.string_at(lib.btf__raw_data(base, C.byref(size)), size.value)
    finally:
        lib.btf__free(base)
    memory = os.memfd_create("btf")
    plan.stack.callback(os.close, memory)
    with os.fdopen(os.dup(memory), "wb") as file:
        file.write(raw)
    return f"/proc/self/fd/{memory}"
