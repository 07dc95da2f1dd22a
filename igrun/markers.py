"""The GADGET_* markers of a BPF object: variables that say by their name what the object offers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from igrun.btf import GLOBAL, Btf, Type, TypeKind
from igrun.dataclass import dataclass
from igrun.errors import ImageError
from igrun.objects import (
    HASH,
    LRU_HASH,
    LRU_PERCPU_HASH,
    PERCPU_HASH,
    PERF_EVENT_ARRAY,
    RINGBUF,
    SOCKHASH,
    SOCKMAP,
    Hook,
    MapSpec,
    struct_of,
)

TRACER = "gadget_tracer_"
ITER, SNAPSHOTTER = "gadget_iter_", "gadget_snapshotter_"
MAP_ITER = "gadget_mapiter_"
ITER_TARGET, SK_TARGET = "gadget_mapelem_iter_target_", "gadget_sk_prog_target_"
PARAM = "gadget_param_"
FILTER = "gadget_pf_"
MAP_WALKERS = ("bpf_map_elem", "bpf_sk_storage_map", "sockmap")
MOST_SOURCES = 100  # far above every real object


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
    """Rows of `source` are the entries of `map`: key, then value; `key_size` bytes are the key's.

    per_cpu: an entry has a value for each CPU, and a row for each value; the CPU's number (u64) comes last
    """

    source: str
    map: str
    key_size: int
    value_size: int
    per_cpu: bool = False


class Markers:
    """What the markers of an object say.

    records: data source -> the struct of its rows; of a map iterator those of key and value
    targets: program -> the map it is attached to, or walks
    params:  names of variables that are flags
    filters: names of packet filters ("" has none)
    """

    def __init__(self, btf: Btf, maps: Mapping[str, MapSpec], hooks: tuple[Hook, ...]) -> None:
        """ImageError: a marker is wrong, or names what the object does not have."""
        self.tracers: list[Tracer] = []
        self.iterators: list[Iterator_] = []
        self.map_iterators: list[MapIterator] = []
        self.records: dict[str, tuple[Type, ...]] = {}
        self.targets: dict[str, str] = {}
        self.params: list[str] = []
        self.warnings: list[str] = []
        self._btf, self._maps = btf, maps
        self._sections = {hook.program: hook.section for hook in hooks}
        self._readers = {
            TRACER: self._tracer,
            ITER: self._iter,
            SNAPSHOTTER: self._snapshotter,
            MAP_ITER: self._map_iter,
            ITER_TARGET: self._iter_target,
            SK_TARGET: self._sk_target,
            PARAM: self.params.append,
        }
        for name in marker_names(btf):
            self._read(name)

    def _read(self, name: str) -> None:
        for prefix, read in self._readers.items():
            if name.startswith(prefix):
                rest = name.removeprefix(prefix)
                try:
                    read(rest)
                except ImageError as error:
                    raise ImageError(f'handling type by prefix "{rest}": {error}') from None

    def _tracer(self, text: str) -> None:
        parts = text.split("___")
        if len(parts) != 3 or not all(parts):
            raise ImageError(f'invalid tracer info: "{text}"')
        name, map_name, struct = parts
        map_ = self._map(map_name)
        if map_.type not in (RINGBUF, PERF_EVENT_ARRAY):
            expected = "expected: ringbuf or perf event array"
            raise ImageError(f'map "{map_name}" has a wrong type, {expected}, got: {map_.type_name}')
        if any(known.source == name for known in self.tracers):
            return
        self._declare(name, self._struct(struct))
        self.tracers.append(Tracer(name, map_name))

    def _snapshotter(self, text: str) -> None:
        self.warnings.append("gadget_snapshotter_ prefix is deprecated; please use gadget_iter_ instead")
        self._iter(text)

    def _iter(self, text: str) -> None:
        name, *parts = text.split("___")
        if len(parts) < 2 or not all((name, *parts)):
            raise ImageError(f'invalid iterator info: "{text}"')
        struct, *programs = parts
        for program in programs:
            section = self._sections.get(program)
            if section is None:
                raise ImageError(f'program "{program}" not found in eBPF object')
            if not section.startswith(("iter/", "iter.s/")):
                raise ImageError(f'program "{program}" is no iterator: its section is "{section}"')
        if any(known.source == name for known in self.iterators):
            return
        self._declare(name, self._struct(struct))
        self.iterators.append(Iterator_(name, tuple(programs)))

    def _map_iter(self, text: str) -> None:
        parts = text.split("___")
        if len(parts) != 2 or not all(parts):
            raise ImageError(f'invalid map iterator info: "{text}"')
        name, map_name = parts
        map_ = self._map(map_name)
        if map_.type not in (HASH, LRU_HASH, PERCPU_HASH, LRU_PERCPU_HASH):
            raise ImageError(f'map "{map_name}" is not a hash map')
        key, value = struct_of(self._btf, map_.key), struct_of(self._btf, map_.value)
        if key is None:
            raise ImageError(f'map "{map_name}" key is not a struct')
        if value is None:
            raise ImageError(f'map "{map_name}" value is not a struct')
        if (key.value, value.value) != (map_.key_size, map_.value_size):
            raise ImageError(f'key/value sizes of map "{map_name}" does not match size of structs')
        if any(known.source == name for known in self.map_iterators):
            raise ImageError(f'duplicate map iterator "{name}"')
        self._declare(name, key, value)
        per_cpu = map_.type in (PERCPU_HASH, LRU_PERCPU_HASH)
        self.map_iterators.append(MapIterator(name, map_name, map_.key_size, map_.value_size, per_cpu))

    def _iter_target(self, text: str) -> None:
        program, map_ = self._target(text, "iter target map")
        section = self._sections[program]
        if section.partition("/")[0] not in ("iter", "iter.s") or section.partition("/")[2] not in MAP_WALKERS:
            problem = f'is not iter/bpf_map_elem (its section is "{section}")'
            raise ImageError(f'iter target map references program "{program}" which {problem}')
        self.targets[program] = map_.name

    def _sk_target(self, text: str) -> None:
        program, map_ = self._target(text, "sk target map")
        if map_.type not in (SOCKMAP, SOCKHASH):
            raise ImageError(f'map "{map_.name}" is not a sockmap or sockhash, but a {map_.type_name}')
        self.targets[program] = map_.name

    def _target(self, text: str, what: str) -> tuple[str, MapSpec]:
        """Program and map of a marker that joins the two."""
        parts = text.split("___")
        if len(parts) != 2 or not all(parts):
            raise ImageError(f'invalid {what} info: "{text}"')
        program, map_name = parts
        if program not in self._sections:
            raise ImageError(f'{what} references unknown program "{program}"')
        if map_name not in self._maps:
            raise ImageError(f'{what} references unknown map "{map_name}" (for program "{program}")')
        if program in self.targets:
            known = self.targets[program]
            raise ImageError(f'duplicate {what} for program "{program}": "{known}" and "{map_name}"')
        return program, self._maps[map_name]

    def _map(self, name: str) -> MapSpec:
        if name not in self._maps:
            raise ImageError(f'map "{name}" not found in eBPF object')
        return self._maps[name]

    def _struct(self, name: str) -> Type:
        found = self._btf.find(name, TypeKind.STRUCT)
        if found is None:
            raise ImageError(f'finding struct "{name}" in eBPF object: it is not there, or a typedef')
        return found

    def _declare(self, source: str, *records: Type) -> None:
        if source in self.records:
            raise ImageError(f'data source "{source}" is declared twice')
        if len(self.records) == MOST_SOURCES:
            raise ImageError(f"the object has more than {MOST_SOURCES} data sources")
        self.records[source] = records


def marker_names(btf: Btf) -> Iterator[str]:
    """Names of the global variables of type `const void *`."""
    for variable in btf.of_kind(TypeKind.VAR):
        if variable.name.startswith("gadget_") and btf.linkage(variable) == GLOBAL:
            pointer = btf.type(variable.value)
            target = btf.type(pointer.value) if pointer.kind is TypeKind.PTR else pointer
            if target.kind is TypeKind.CONST and target.value == 0:
                yield variable.name


def packet_filters(btf: Btf) -> tuple[str, ...]:
    """Names of the packet filters: the functions `gadget_pf_<name>`."""
    return tuple(one.name.removeprefix(FILTER) for one in btf.of_kind(TypeKind.FUNC) if one.name.startswith(FILTER))


def filter_key(name: str) -> str:
    """The flag of a packet filter."""
    return f"pf-{name}" if name else "pf"
