"""ELF -> Program (pure). (CONTRACT STUB, being written)"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from igrun.metadata import GadgetMetadata, Param
from igrun.record import Batches, Sources, Table

if TYPE_CHECKING:
    from igrun.btf import Btf, Enumeration
    from igrun.host import Host
    from igrun.libbpf import BpfMap, BpfProgram


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


@dataclass(frozen=True, slots=True)
class Variable:
    """A global variable. section: .rodata, .data or .bss; value: its initial bytes."""

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


@dataclass(frozen=True, slots=True)
class Tracer:
    """Events of `source` come through map `map` (ring buffer or perf event array)."""

    source: str
    map: str


@dataclass(frozen=True, slots=True)
class Iterator_:
    """Rows of `source` are what these iterator programs print."""

    source: str
    programs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MapIterator:
    """Rows of `source` are the entries of `map`: key, then value; `key_size` bytes are the key's."""

    source: str
    map: str
    key_size: int
    value_size: int


@dataclass(frozen=True, slots=True)
class Program:
    """A gadget's eBPF object, opened. Nothing here depends on the machine.

    params:   the object's own flags, `iface`, `map-fetch-*`, `trace-pipe` among them
    setters:  param key -> (variable, text -> its bytes)
    enums:    (source, field) -> the enumeration that names its values
    """

    elf: bytes
    license: str
    btf: Btf
    sources: Sources
    params: tuple[Param[Any], ...]
    setters: Mapping[str, tuple[str, Callable[[str], bytes]]]
    hooks: tuple[Hook, ...]
    maps: Mapping[str, MapSpec]
    variables: Mapping[str, Variable]
    tracers: tuple[Tracer, ...]
    iterators: tuple[Iterator_, ...]
    map_iterators: tuple[MapIterator, ...]
    enums: Mapping[tuple[str, str], Enumeration]

    @classmethod
    def open(cls, elf: bytes, metadata: GadgetMetadata) -> Program:
        """Read the object. ImageError: it is no BPF object, or a marker in it is wrong."""
        raise NotImplementedError


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
    sources:    as the last step leaves them
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
