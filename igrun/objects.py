"""What a BPF object declares: its maps, variables and programs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from igrun.btf import EXTERN, RECORDS, Btf, Type, TypeKind, described
from igrun.dataclass import dataclass, field
from igrun.elf import EXECUTABLE, LOCAL, OBJECT, PROGBITS, Elf, Section
from igrun.errors import ImageError

if TYPE_CHECKING:
    from igrun.libbpf import BpfProgram

# enum bpf_map_type
HASH, PERF_EVENT_ARRAY, PERCPU_HASH, LRU_HASH, LRU_PERCPU_HASH, SOCKMAP, SOCKHASH, RINGBUF = 1, 4, 5, 9, 10, 15, 18, 27
MAP_TYPES = """
unspec hash array prog_array perf_event_array percpu_hash percpu_array stack_trace cgroup_array lru_hash lru_percpu_hash
lpm_trie array_of_maps hash_of_maps devmap sockmap cpumap xskmap sockhash cgroup_storage reuseport_sockarray
percpu_cgroup_storage queue stack sk_storage devmap_hash struct_ops ringbuf inode_storage task_storage bloom_filter
user_ringbuf cgrp_storage arena
"""
DATA = (".rodata", ".data", ".bss")
# Bounds of what a file may ask of us, far above every real object
LARGEST_DATA = 1 << 26  # bytes of all data sections
MOST_MAPS = 1000
MOST_MEMBERS = 100  # of the struct that declares a map
ENTRIES = "_max_entries"


@dataclass(frozen=True, slots=True)
class MapSpec:
    """A map as the object declares it. type: BPF_MAP_TYPE_*; key, value: BTF type ids, 0 if none."""

    name: str
    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int = 0
    pinning: int = 0
    key: int = 0
    value: int = 0

    @property
    def type_name(self) -> str:
        """The type's name in lower case, without its prefix."""
        return dict(enumerate(MAP_TYPES.split())).get(self.type, f"type {self.type}")


@dataclass(frozen=True, slots=True)
class Variable:
    """A global variable. section: .rodata, .data or .bss, or one that begins so; type: BTF id; value: initial bytes."""

    name: str
    section: str
    offset: int
    size: int
    type: int
    value: bytes


@dataclass(slots=True)
class Hook:
    """One BPF function to attach.

    section:   the whole ELF section name
    attach_to: what follows its first "/", or what the metadata says instead; `gadget_program_disabled`: not loaded
    options:   gadget.yaml's `programs.<name>` beside attach_to (perf.type, sampler.frequency, ...), flat dotted keys
    target_map: from GADGET_ITER_TARGET_MAP or GADGET_SK_TARGET_MAP
    handle:    set once loaded
    """

    program: str
    section: str
    attach_to: str
    options: Mapping[str, str] = field(default_factory=dict)
    target_map: str | None = None
    handle: BpfProgram | None = None


# ---------------------------------------------------------------------------------------------- maps


def maps(elf: Elf, btf: Btf) -> dict[str, MapSpec]:
    """The maps of section .maps. ImageError: one is declared in a way that nobody can read."""
    for section in elf.sections:
        if section.name == "maps" or section.name.startswith("maps/"):
            raise ImageError(
                f"section {section.name!r} holds maps in the old form, without types",
                hint='declare them as structs with __uint and __type in SEC(".maps")',
            )
    found: dict[str, MapSpec] = {}
    for area in btf.of_kind(TypeKind.DATASEC):
        if area.name == ".maps":
            for one in btf.variables(area):
                variable = btf.type(one.type)
                if variable.kind is not TypeKind.VAR:
                    raise ImageError(f"section .maps holds {described(variable)}, which is no map")
                if len(found) == MOST_MAPS:
                    raise ImageError(f"the object has more than {MOST_MAPS} maps")
                if variable.name in found:
                    raise ImageError(f"map {variable.name!r} is declared twice")
                found[variable.name] = map_spec(btf, variable)
    return found


def map_spec(btf: Btf, variable: Type) -> MapSpec:
    """The map that the variable's type declares: integers as array lengths, types as pointers."""
    record = btf.resolve(variable.value).type
    if record.kind is not TypeKind.STRUCT or record.rows > MOST_MEMBERS:
        raise ImageError(f"map {variable.name!r} is {described(record)}, not a struct of __uint and __type")
    numbers: dict[str, int] = {}
    types: dict[str, int] = {}
    for member in btf.members(record):
        found = btf.resolve(member.type).type
        if found.kind is TypeKind.PTR:
            target = btf.resolve(found.value).type
            if target.kind is TypeKind.ARRAY and member.name not in ("key", "value"):
                numbers[member.name] = btf.element(target)[1]
            else:
                types[member.name] = found.value
    kind = numbers.get("type", 0)
    if kind == 0:
        raise ImageError(f"map {variable.name!r} has no type")
    sizes = {}
    for which in ("key", "value"):
        declared = numbers.get(f"{which}_size")
        sizes[which] = btf.size(types[which]) if which in types else declared or 0
        if declared is not None and declared != sizes[which]:
            raise ImageError(f"map {variable.name!r}: {which}_size is {declared}, its type has {sizes[which]} bytes")
    if kind == PERF_EVENT_ARRAY:
        # What libbpf does where the declaration says nothing.
        sizes = {which: size or 4 for which, size in sizes.items()}
    return MapSpec(
        variable.name,
        kind,
        sizes["key"],
        sizes["value"],
        numbers.get("max_entries", 0),
        numbers.get("map_flags", 0),
        numbers.get("pinning", 0),
        types.get("key", 0),
        types.get("value", 0),
    )


def struct_of(btf: Btf, number: int) -> Type | None:
    """The struct or union behind typedefs; None if that type is something else."""
    found = btf.resolve(number).type if number else None
    return found if found is not None and found.kind in RECORDS else None


# ---------------------------------------------------------------------------------------------- variables


def variables(elf: Elf, btf: Btf) -> dict[str, Variable]:
    """The variables of the data sections. ImageError: one does not lie within its section."""
    found = {}
    seen = set()
    room = LARGEST_DATA
    for area in btf.of_kind(TypeKind.DATASEC):
        section = elf.by_name.get(area.name)
        if section is None or not area.name.startswith(DATA):
            continue
        if area.name in seen:
            raise ImageError(f"section {area.name!r} is described twice")
        seen.add(area.name)
        room -= section.size
        if room < 0:
            raise ImageError(f"the object has more than {LARGEST_DATA >> 20} MiB of data")
        content = elf.content(section)
        left = len(content)
        for type_, offset, size in placed(elf, btf, area, section):
            left -= size
            if left < 0 or offset + size > len(content):
                raise ImageError(f"variable {type_.name!r} does not lie within section {area.name!r}")
            value = content[offset : offset + size]
            found[type_.name] = Variable(type_.name, area.name, offset, size, type_.value, value)
    return found


def placed(elf: Elf, btf: Btf, area: Type, section: Section) -> Iterator[tuple[Type, int, int]]:
    """Type, offset and bytes of each variable of a data section."""
    places = {
        one.name: one.value
        for one in elf.symbols
        if one.section == section.number and one.type == OBJECT and one.bind != LOCAL
    }
    for one in btf.variables(area):
        variable = btf.type(one.type)
        if variable.kind is TypeKind.VAR and btf.linkage(variable) != EXTERN:
            # As the compiler leaves it, BTF tells the offset of static variables only.
            yield variable, places.get(variable.name, one.offset), btf.size(variable.value)


def map_sizes(found: Mapping[str, Variable], constants: Mapping[str, bytes]) -> dict[str, int]:
    """Entries of each map M that has a variable `<M>_max_entries`: its value in `constants`, else its initial one."""
    sizes = {}
    for name, variable in found.items():
        if name.endswith(ENTRIES) and name != ENTRIES:
            sizes[name.removesuffix(ENTRIES)] = int.from_bytes(constants.get(name, variable.value), "little")
    return sizes


# ---------------------------------------------------------------------------------------------- programs


def hooks(elf: Elf, options_of: Callable[[str, str], Mapping[str, str]]) -> tuple[Hook, ...]:
    """The programs, in the order in which they stand in the object.

    options_of: program, section -> what gadget.yaml says about it

    ImageError: a function of a program's section is static, which no loader takes for a program
    """
    found = []
    for section in elf.sections:
        # Section .text holds what programs call.
        if section.type != PROGBITS or not section.flags & EXECUTABLE or section.name in ("", ".text"):
            continue
        for function in elf.functions.get(section.number, ()):
            if function.bind == LOCAL:
                raise ImageError(f"function {function.name!r} in section {section.name!r} is static: make it global")
            options = dict(options_of(function.name, section.name))
            target = options.pop("attach_to", "") or section.name.partition("/")[2]
            found.append(Hook(function.name, section.name, target, options))
    return tuple(found)


def license_of(elf: Elf) -> str:
    """The license that the object declares, "" if none."""
    section = elf.by_name.get("license")
    return elf.content(section).partition(b"\0")[0].decode("utf-8", "replace") if section else ""


# Programs whose target, or whose argument types, the kernel's BTF tells
NEED_BTF = ("tp_btf", "fentry", "fexit", "fmod_ret", "freplace", "lsm", "lsm_cgroup", "iter", "struct_ops")


def needs_kernel_btf(elf: Elf, found: tuple[Hook, ...]) -> bool:
    """True if it cannot be loaded without the kernel's BTF: it has CO-RE relocations, or a program that needs some."""
    if any(hook.section.partition("/")[0].removesuffix(".s") in NEED_BTF for hook in found):
        return True
    section = elf.by_name.get(".BTF.ext")
    if section is None:
        return False
    header = elf.content(section)[:32]
    # struct btf_ext_header: length, then offset and size of three tables, the third one of CO-RE relocations
    length = int.from_bytes(header[4:8], "little")
    return length >= 32 and int.from_bytes(header[28:32], "little") > 4
