"""A program into the kernel: constants written, maps sized, everything loaded; nothing is attached yet."""

from __future__ import annotations

import ctypes as C
import os
import re
import struct
from collections.abc import Iterable
from dataclasses import replace
from errno import EINVAL, ENOENT, EPERM, ESRCH
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from igrun.bpflib import library, pointer
from igrun.errors import AttachError, GadgetError, ImageError, KernelError, UnsupportedError, VerifierError
from igrun.libbpf import PERF_EVENT_ARRAY, RINGBUF, SLEEPABLE, XDP_FRAGS, BpfMap, BpfObject, BpfProgram
from igrun.sections import TYPES, ProgramType, program_type, sleeps

if TYPE_CHECKING:
    from igrun.host import Host
    from igrun.program import Hook, Plan

DISABLED = "gadget_program_disabled"
LOST_SUFFIX = "_lost_samples"
# enum bpf_prog_type
XDP, STRUCT_OPS, EXT, SYSCALL = 6, 27, 28, 31
# What the kernel wants more than CAP_BPF for (is_perfmon_prog_type and is_net_admin_prog_type in its
# kernel/bpf/syscall.c), or wants when it is attached (CGROUP_SKB, LIRC_MODE2 and SK_LOOKUP)
TRACING = frozenset((2, 5, 7, 17, 24, 26, STRUCT_OPS, EXT, 29))
NETWORK = frozenset((3, 4, XDP, 8, 9, 10, 11, 12, 13, 14, 15, 16, 18, 19, 20, 22, 23, 25, EXT, 30, 32))
# Their target is fixed at load: the section's first word
TARGETED = ("fentry", "fexit", "fmod_ret", "tp_btf", "lsm", "lsm_cgroup", "iter")
DEFAULT_ENTRIES = 1024
# A perf event array has one entry for each CPU; the other types (storage of cgroups, sockets, inodes and tasks, and
# STRUCT_OPS) grow with what they belong to, and the kernel refuses one with a size.
SIZELESS = (PERF_EVENT_ARRAY, 19, 21, 24, 26, 28, 29, 32)
VMLINUX = "/sys/kernel/btf/vmlinux"


class Closable(Protocol):
    """Something that keeps a program attached."""

    def close(self) -> object: ...


class LoadedProgram:
    """A program in the kernel (satisfies `program.Loaded`).

    hooks: what is to be attached, in the object's order, with handles
    links: what is attached, filled by `attach`; `detach()` closes them
    """

    def __init__(self, plan: Plan, object_: BpfObject, hooks: Iterable[Hook]) -> None:
        self.plan = plan
        self.hooks = tuple(hooks)
        self.links: list[Closable] = []
        self._object = object_
        self._maps: dict[str, BpfMap] = {}

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
        while self.links:
            self.links.pop().close()

    def close(self) -> None:
        """Detach and unload."""
        self.detach()
        self._object.close()


def load(plan: Plan) -> LoadedProgram:
    """Load the plan's program. It is closed with `plan.stack`.

    KernelError: refused, with what is missing; VerifierError; AttachError: a target fixed at load does not exist;
    UnsupportedError: this kernel cannot do it; ImageError: the plan does not fit the object
    """
    btf = plan.kernel_btf if not plan.extra_btf else merged_btf(plan)
    rings = any(one.type == RINGBUF for one in plan.program.maps.values())
    old = rings and not has_ring_buffers()
    elf = without_boot_clock(plan.program.elf) if old and not has_boot_clock() else plan.program.elf
    object_ = BpfObject.open(elf, "gadget", btf)
    try:
        hooks = chosen(plan, object_)
        refuse_without_capabilities(plan.host, hooks)
        write_constants(plan, object_)
        size_maps(plan, object_)
        if old:
            use_perf_buffers(object_)
        replace_maps(plan, object_)
        try:
            object_.load()
        except KernelError as error:
            raise explained(error, plan, hooks) from None
    except BaseException:
        object_.close()
        raise
    loaded = LoadedProgram(plan, object_, hooks)
    plan.stack.callback(loaded.close)
    return loaded


# ------------------------------------------------------------------------------------------------ programs


def chosen(plan: Plan, object_: BpfObject) -> list[Hook]:
    """The hooks to attach, each with its handle, type and target; the programs of the others are left out."""
    hooks = []
    types = (*TYPES, *(row for family in plan.families for row in family.SECTIONS))
    for hook in plan.program.hooks:
        handle = object_.programs[hook.program]
        target = plan.attach_to.get(hook.program, hook.attach_to)
        if target == DISABLED or hook.program in plan.disabled:
            handle.leave_out()
            continue
        set_type(handle, types)
        hook = replace(hook, attach_to=target, handle=handle)
        if hook.section.partition("/")[0].removesuffix(".s") in TARGETED:
            set_target(hook, handle)
        hooks.append(hook)
    return hooks


def set_target(hook: Hook, handle: BpfProgram) -> None:
    """Tell what it is for. AttachError, UnsupportedError: this kernel does not have it."""
    try:
        handle.set_target(hook.attach_to)
    except KernelError as error:
        if error.errno not in (ENOENT, ESRCH, EINVAL):
            raise
        raise missing_target(hook) from None


def set_type(handle: BpfProgram, types: tuple[ProgramType, ...] = TYPES) -> None:
    """Give a program the type, attach type and flags that its section means. UnsupportedError: nobody knows it."""
    row = program_type(handle.section, types)
    if row is None:
        raise UnsupportedError(
            f"section {handle.section!r} of program {handle.name!r}",
            "no such type of program is known",
            hint="see the documentation for the SEC() names that can be used",
        )
    flags = SLEEPABLE if sleeps(handle.section) or row.type == SYSCALL else 0
    if row.type == STRUCT_OPS:
        # libbpf has found out which member of which struct it is, and keeps that in the attach type.
        handle.set_flags(flags)
        return
    if row.section == "xdp.frags":
        flags |= XDP_FRAGS
    handle.set_type(row.type, row.attach or 0, flags)


def refuse_without_capabilities(host: Host, hooks: Iterable[Hook]) -> None:
    """KernelError that names what is missing, if these programs cannot be loaded with what this process may do."""
    kinds = {hook.handle.type for hook in hooks if hook.handle}
    needed = ["CAP_BPF"]
    if kinds & TRACING:
        needed.append("CAP_PERFMON")
    if kinds & NETWORK:
        needed.append("CAP_NET_ADMIN")
    missing = host.missing_capabilities(*needed)
    if "CAP_SYS_ADMIN" in host.capabilities:  # which includes the first two (include/linux/capability.h)
        missing = tuple(name for name in missing if name == "CAP_NET_ADMIN")
    if missing:
        names = ", ".join(missing)
        raise KernelError(EPERM, f"load the gadget: missing {names}", hint=f"run as root, or give {names}")


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


def merged_btf(plan: Plan) -> str:
    """A file with the kernel's BTF and the plan's extra types: libbpf takes one only. It ends with the plan."""
    lib = library()
    base = pointer(lib.btf__parse_raw((plan.kernel_btf or VMLINUX).encode()), "read the kernel's BTF")
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


# ------------------------------------------------------------------------------------------------ refusals


def explained(error: KernelError, plan: Plan, hooks: Iterable[Hook]) -> GadgetError:
    """The error that says most about why the object was not loaded."""
    by_name = {hook.program: hook for hook in hooks}
    if not isinstance(error, VerifierError):
        if error.errno == EPERM:
            error.hint = refused_hint(plan.host)
        return error
    hook_or_none = by_name.get(error.program)
    if hook_or_none is None or error.log.strip():
        return error
    # Without a log the verifier has not even begun: the kernel does not take this type of program.
    feature = f"program {error.program!r} ({hook_or_none.section})"
    if error.errno == EPERM:
        lacks = "it refuses programs of this type, though no capability is missing: a policy of this machine"
        return UnsupportedError(feature, lacks, hint=refused_hint(plan.host))
    kind = hook_or_none.handle.type if hook_or_none.handle else 0
    if error.errno == EINVAL and library().libbpf_probe_bpf_prog_type(kind, None) == 0:
        return UnsupportedError(feature, "this kernel does not know programs of this type")
    return error


# First word of a section -> what its target is, and how that is called in the kernel's BTF
TARGETS = {
    "tp_btf": ("tracepoint", "btf_trace_"),
    "lsm": ("LSM hook", "bpf_lsm_"),
    "lsm_cgroup": ("LSM hook", "bpf_lsm_"),
    "iter": ("iterator", "bpf_iter_"),
}


def missing_target(hook: Hook) -> GadgetError:
    """The error for a target that the kernel's BTF does not have."""
    name = hook.attach_to
    kind = hook.section.partition("/")[0].removesuffix(".s")
    what, prefix = TARGETS.get(kind, ("function", ""))
    feature = f"program {hook.program!r} ({hook.section})"
    if not Path(VMLINUX).exists():
        return UnsupportedError(feature, "this kernel has no BTF of its own")
    if kind == "iter":
        return UnsupportedError(feature, f"this kernel has no iterator {name!r}")
    near = near_types(prefix, name)
    hint = f"did you mean {', '.join(near)}?" if near else "it may be inlined, or of another kernel version"
    reason = f"this kernel has no such {what}"
    return AttachError(ENOENT, hook.program, hook.section, hook.attach_to, reason=reason, hint=hint)


def near_types(prefix: str, name: str) -> list[str]:
    """Up to three names like it among those in the kernel's BTF that begin with the prefix, which is left out."""
    from difflib import get_close_matches

    text = Path(VMLINUX).read_bytes().decode("latin-1")
    like = re.findall(rf"\0{prefix}({re.escape(name[:3])}\w*)(?=\0)", text)
    return get_close_matches(name, like, 3)


def refused_hint(host: Host) -> str:
    """What may be behind an EPERM that no missing capability explains."""
    if host.lockdown == "confidentiality":
        return "kernel lockdown is at `confidentiality`, which forbids BPF programs that read memory"
    uid_map = (host.proc / "self" / "uid_map").read_text().split()
    if uid_map[2:3] != [str((1 << 32) - 1)]:
        return "this process is in a user namespace, whose capabilities do not count here; run it outside"
    return "ask whoever set up this machine, or use another type of program"
