"""A gadget's eBPF object, opened: what it prints, which flags it has, what is to be attached; and the plan of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from igrun.btf import Btf, Enumeration
from igrun.caches import remembered
from igrun.dataclass import dataclass, field
from igrun.datasources import data_sources
from igrun.elf import Elf
from igrun.errors import ImageError, ParamError
from igrun.logs import Logger
from igrun.markers import Iterator_, MapIterator, Markers, Tracer, filter_key, packet_filters
from igrun.metadata import BOOL, EBPF, TEXT, GadgetMetadata, Param, Type
from igrun.metadata.params import read_text
from igrun.objects import Hook, MapSpec, Variable, hooks, license_of, map_sizes, maps, needs_kernel_btf, variables
from igrun.record import Batches, Sources, Table
from igrun.variables import Coding, param_of

if TYPE_CHECKING:
    from types import ModuleType

    from igrun.bpfmap import BpfMap
    from igrun.errors import BtfNotFoundError
    from igrun.host import Host

__all__ = [
    "Hook",
    "Iterator_",
    "Loaded",
    "MapIterator",
    "MapSpec",
    "Plan",
    "Program",
    "Reader",
    "Tracer",
    "Variable",
]

INTERFACE_SECTIONS = ("classifier", "tc", "tcx", "netkit", "action", "xdp", "xdp.frags")
Setter = Callable[[str], bytes]

TRACE_PIPE = Param("trace-pipe", BOOL, "false", "Show what the programs print with bpf_printk", group=EBPF)
INTERFACE = Param("iface", TEXT, "", "Network interface to attach to", group=EBPF)
FETCH_INTERVAL = Param(
    "map-fetch-interval", TEXT, "1000ms", "Time between two fetches of a map: 1000ms, or source:1000ms,...", group=EBPF
)
FETCH_COUNT = Param(
    "map-fetch-count",
    Type("int", read_text),  # of one source, or source:number,...
    "0",
    "Fetches of a map, 0: until the gadget ends",
    group=EBPF,
)


@dataclass(frozen=True, slots=True)
class Program:
    """A gadget's eBPF object, opened. Nothing here depends on the machine.

    params:   the object's own flags, `iface`, `map-fetch-*`, `trace-pipe` among them
    setters:  param key -> (variable, text -> its bytes)
    kept:     keys of params whose default is what their variable has already
    enums:    (source, field) -> the enumeration that names its values
    packet_filters: names of the places where a packet filter may be put in; "" for the one without a name
    needs_kernel_btf: it cannot be loaded without BTF of the kernel
    """

    elf: bytes
    license: str
    btf: Btf
    sources: Sources
    params: tuple[Param[Any], ...]
    setters: Mapping[str, tuple[str, Setter]]
    kept: frozenset[str]
    hooks: tuple[Hook, ...]
    maps: Mapping[str, MapSpec]
    variables: Mapping[str, Variable]
    tracers: tuple[Tracer, ...]
    iterators: tuple[Iterator_, ...]
    map_iterators: tuple[MapIterator, ...]
    enums: Mapping[tuple[str, str], Enumeration]
    packet_filters: tuple[str, ...] = ()
    needs_kernel_btf: bool = True

    @classmethod
    def open(cls, elf: bytes, metadata: GadgetMetadata, *, remember: bool = False) -> Program:
        """Read the object. remember: it need not be examined where that was done before (see `igrun.caches`).

        ImageError: it is no BPF object, or a marker in it is wrong; MetadataError: gadget.yaml does not fit to it
        """
        if remember:
            found = remembered(Examined, (elf, repr(metadata)), lambda: examine(elf, metadata))
        else:
            found = examine(elf, metadata)
        for warning in found.warnings:
            Logger(__name__).warning(warning)
        params, setters, kept = own_params(found.btf, found.flags, found.variables, metadata)
        return cls(
            elf=elf,
            license=found.license,
            btf=found.btf,
            sources=found.sources,
            params=(*params, *common_params(found)),
            setters=setters,
            kept=kept,
            hooks=found.hooks,
            maps=found.maps,
            variables=found.variables,
            tracers=found.tracers,
            iterators=found.iterators,
            map_iterators=found.map_iterators,
            enums=found.enums,
            packet_filters=found.packet_filters,
            needs_kernel_btf=found.needs_kernel_btf,
        )

    def constants(self, values: Mapping[str, str]) -> dict[str, bytes]:
        """The variables that differ from what the object has, by name.

        values: param key -> text, of those that were set; the others have their defaults

        ParamError: a value or a packet filter is wrong, or a mandatory one is missing
        """
        found = {}
        self.filters(values)
        for param in self.params:
            text = values.get(param.key, values.get(param.alternative, param.default))
            if param.mandatory and not text:
                raise ParamError(param.key, "", f"param {param.key!r} must be given", hint=f"set --{param.key}")
            if param.key not in self.setters:
                continue
            given = param.key in values or param.alternative in values
            if not given and param.key in self.kept:
                continue
            # Only a text may be set to nothing.
            if text or (given and param.type.name == TEXT.name):
                variable, encode = self.setters[param.key]
                raw = encode(text)
                if raw != self.variables[variable].value:
                    found[variable] = raw
        return found

    def filters(self, values: Mapping[str, str]) -> dict[str, str]:
        """The packet filters that are set, by name. ParamError: one is wrong."""
        found = {name: text for name in self.packet_filters if (text := values.get(filter_key(name), "").strip())}
        if found:
            from igrun.packetfilter import check

            for name, text in found.items():
                check(text, filter_key(name))
        return found

    def map_sizes(self, constants: Mapping[str, bytes]) -> dict[str, int]:
        """Entries of each map whose size a variable tells. constants: variables that were set."""
        sizes = map_sizes(self.variables, constants)
        return {name: entries for name, entries in sizes.items() if name in self.maps}

    def check(self, metadata: GadgetMetadata, *, has_guest: bool = False) -> None:
        """Refuse at build what would be ignored, or fail, at run: MetadataError, ImageError.

        has_guest: a WASM module may bring sources and fields that the object does not have
        """
        from igrun.checks import check

        check(self, metadata, has_guest=has_guest)


class Examined(NamedTuple):
    """What an object and gadget.yaml say together. Nothing in it is a function, so that it can be kept.

    flags: names of the variables that are flags
    """

    license: str
    btf: Btf
    sources: Sources
    flags: tuple[str, ...]
    hooks: tuple[Hook, ...]
    maps: Mapping[str, MapSpec]
    variables: Mapping[str, Variable]
    tracers: tuple[Tracer, ...]
    iterators: tuple[Iterator_, ...]
    map_iterators: tuple[MapIterator, ...]
    enums: Mapping[tuple[str, str], Enumeration]
    packet_filters: tuple[str, ...]
    needs_kernel_btf: bool
    warnings: tuple[str, ...]


def examine(elf: bytes, metadata: GadgetMetadata) -> Examined:
    """Read all of an object (see `Program.open`)."""
    object_ = Elf(elf)
    section = object_.by_name.get(".BTF")
    if section is None:
        raise ImageError("the BPF object has no section .BTF with its types", hint="compile with `clang -g`")
    btf = Btf.parse(object_.content(section))
    found_hooks = hooks(object_, lambda program, section: options_of(program, section, metadata))
    found_maps = maps(object_, btf)
    found_variables = variables(object_, btf)
    markers = Markers(btf, found_maps, found_hooks)
    for hook in found_hooks:
        hook.target_map = markers.targets.get(hook.program)
    sources, enums = data_sources(btf, markers, found_maps, metadata)
    return Examined(
        license_of(object_),
        btf,
        sources,
        tuple(markers.params),
        found_hooks,
        found_maps,
        found_variables,
        tuple(markers.tracers),
        tuple(markers.iterators),
        tuple(markers.map_iterators),
        enums,
        packet_filters(btf),
        needs_kernel_btf(object_, found_hooks),
        tuple(markers.warnings),
    )


def options_of(program: str, section: str, metadata: GadgetMetadata) -> dict[str, str]:
    """What gadget.yaml says about a program. For samples it stands under the second part of the section's name."""
    kind, _, suffix = section.partition("/")
    options = dict(metadata.program_options(suffix)) if kind == "perf_event" else {}
    options.pop("attach_to", None)
    options.update(metadata.program_options(program))
    # gadget.yaml is read in lower case; this is how the key is written
    if "perf.sampletype" in options:
        options["perf.sampleType"] = options.pop("perf.sampletype")
    return options


def own_params(
    btf: Btf, flags: tuple[str, ...], found: Mapping[str, Variable], metadata: GadgetMetadata
) -> tuple[list[Param[Any]], dict[str, tuple[str, Setter]], frozenset[str]]:
    """The variables that are flags, as gadget.yaml describes them; what makes their bytes; whose default they have."""
    params: list[Param[Any]] = []
    setters: dict[str, tuple[str, Setter]] = {}
    kept = set()
    for name in flags:
        if name not in found:
            raise ImageError(f'variable "{name}" not found in eBPF object')
        plain, coding = param_of(btf, found[name])
        param = metadata.ebpf_param(name, plain)
        if param.key in setters:
            raise ImageError(f'variables "{setters[param.key][0]}" and "{name}" are both the param "{param.key}"')
        params.append(param)
        setters[param.key] = (name, setter(param, coding))
        if param.default == plain.default:
            kept.add(param.key)
    return params, setters, frozenset(kept)


def setter(param: Param[Any], coding: Coding) -> Setter:
    """Text -> the variable's bytes; ParamError names the flag."""
    return lambda text: coding.pack(param.parse(text))


def common_params(found: Examined) -> list[Param[Any]]:
    """The flags that every object with such programs, maps or functions has."""
    params: list[Param[Any]] = [
        Param(filter_key(name), TEXT, "", f"packet filter {name}".rstrip(), group=EBPF) for name in found.packet_filters
    ]
    if any(hook.section.partition("/")[0] in INTERFACE_SECTIONS for hook in found.hooks):
        params.append(INTERFACE)
    if found.map_iterators:
        params += [FETCH_INTERVAL, FETCH_COUNT]
    return [*params, TRACE_PIPE]


class Reader(Protocol):
    """Something the event loop waits for: when `fileno` is readable, `read` gives batches."""

    def fileno(self) -> int: ...

    def read(self) -> Batches: ...


class Loaded(Protocol):
    """A program in the kernel."""

    @property
    def host(self) -> Host: ...

    def map(self, name: str) -> BpfMap: ...


@dataclass(slots=True)
class Plan:
    """What a run hands to the kernel; steps fill it in `prepare`.

    constants:  variable -> its bytes
    maps:       name -> a map of ours that replaces the object's
    sizes:      map -> max_entries
    extra_btf:  BTF to resolve CO-RE against beside the kernel's
    attach_to:  program -> attach point, `gadget_program_disabled` leaves it out
    kernel_btf: BTF file to resolve CO-RE against; None: the running kernel's own
    missing_btf: why there is none at all
    sources:    as the last step leaves them
    ring_bytes: ring buffers have at least so many
    backlog_bytes: so much may wait for a slow reader beside what is in them
    families:   third-party modules that attach sections of their own (see `igrun.attach`)
    """

    program: Program
    host: Host
    sources: Sources
    stack: ExitStack
    values: Mapping[str, str] = field(default_factory=dict)
    constants: dict[str, bytes] = field(default_factory=dict)
    maps: dict[str, BpfMap] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    extra_btf: list[bytes] = field(default_factory=list)
    attach_to: dict[str, str] = field(default_factory=dict)
    disabled: set[str] = field(default_factory=set)
    readers: list[Reader] = field(default_factory=list)
    tables: dict[str, Table] = field(default_factory=dict)
    kernel_btf: str | None = None
    missing_btf: BtfNotFoundError | None = None
    ring_bytes: int = 0
    backlog_bytes: int = 0
    families: tuple[ModuleType, ...] = ()
