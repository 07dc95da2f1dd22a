"""What a BPF object needs: the oldest kernel, with each reason, and capabilities; its helpers, kfuncs and maps.

All of this is read from the object alone. It says what the kernel must know, not that its configuration has it, nor
that the verifier will take the programs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property

from igrun.btf import Btf
from igrun.dataclass import dataclass
from igrun.elf import Elf
from igrun.errors import ImageError
from igrun.objects import Hook, MapSpec, Variable, hooks, map_sizes, maps, needs_kernel_btf, variables
from igrun.program import Program
from igrun.requirements.code import EXISTS, Code, Function
from igrun.requirements.features import Found, Where
from igrun.requirements.flow import reached
from igrun.requirements.memory import Memory, memory
from igrun.requirements.sections import NET_ADMIN, PERFMON, UNKNOWN, kind_of
from igrun.requirements.versions import (
    HELPER_SINCE,
    MAP_FLAG_SINCE,
    MAP_SINCE,
    Version,
    helper_name,
    kfunc_since,
    kfunc_table,
    shown,
    since,
)

__all__ = ["MapNeed", "Need", "ProgramNeed", "Requirements", "requirements", "shown"]

RINGBUF, PERF_EVENT_ARRAY = 27, 4
LOST_SUFFIX = "_lost_samples"
BOOT_CLOCK = 125
DEFAULT_ENTRIES = 1024
SIZELESS = (PERF_EVENT_ARRAY, 19, 21, 24, 26, 28, 29, 32)
MOST_FUNCTIONS = 10_000
# Helpers that want more than the type of program does (bpf_base_func_proto, bpf_tracing_func_proto)
READS_KERNEL = frozenset((4, 6, 35, 45, 112, 113, 114, 115, 149, 158, 165, 175, 177))
WRITES_USER = 36


@dataclass(frozen=True, slots=True)
class Need:
    """Something that a kernel must have.

    since:   the first version; None: not known
    what:    ring buffer, helper bpf_loop, ...
    users:   programs or maps, sorted
    instead: what is done on a kernel without it; "": nothing, it is needed
    """

    since: Version | None
    what: str
    users: tuple[str, ...]
    instead: str = ""

    def __str__(self) -> str:
        text = f"{shown(self.since) if self.since else '?'}: {self.what}"
        return f"{text} (else {self.instead})" if self.instead else text


@dataclass(frozen=True, slots=True)
class ProgramNeed:
    """A program. type: as `kprobe`, "" if nobody knows the section; attach: as `trace_fentry`, "" if it has none.

    helpers, kfuncs: names in the order of first use, of the functions that it calls too
    maps:            (map, what is done with it) in the order of first use
    instructions:    how many, those of called functions too
    """

    name: str
    section: str
    type: str
    attach: str
    helpers: tuple[str, ...]
    kfuncs: tuple[str, ...]
    maps: tuple[tuple[str, str], ...]
    instructions: int


@dataclass(frozen=True, slots=True)
class MapNeed:
    """A map. entries: as the object's variables say; memory: None where it depends on what the map belongs to."""

    name: str
    type: str
    key_size: int
    value_size: int
    entries: int
    flags: int
    memory: Memory | None


@dataclass(frozen=True, slots=True)
class Requirements:
    """What an object needs.

    needs:        newest first; those with `instead` do not raise the minimum
    capabilities: name -> why
    kernel_btf:   it cannot be loaded without BTF of the kernel (its own or a file)
    """

    programs: tuple[ProgramNeed, ...]
    maps: tuple[MapNeed, ...]
    needs: tuple[Need, ...]
    capabilities: Mapping[str, str]
    kernel_btf: bool

    @property
    def minimum_kernel(self) -> Version:
        """The oldest kernel that has all of it."""
        return max((one.since for one in self.needs if one.since and not one.instead), default=(0, 0))

    @property
    def reasons(self) -> tuple[str, ...]:
        """What makes the minimum."""
        least = self.minimum_kernel
        return tuple(one.what for one in self.needs if one.since == least and not one.instead)

    @property
    def unknown(self) -> tuple[str, ...]:
        """Needs whose version is not known here."""
        return tuple(one.what for one in self.needs if one.since is None and not one.instead)

    @property
    def helpers(self) -> tuple[str, ...]:
        return tuple(sorted({name for one in self.programs for name in one.helpers}))

    @property
    def kfuncs(self) -> tuple[str, ...]:
        return tuple(sorted({name for one in self.programs for name in one.kfuncs}))


def requirements(source: bytes | Program) -> Requirements:
    """What a compiled BPF object, or an opened one, needs. ImageError: it is none, or broken."""
    if isinstance(source, Program):
        elf = Elf(source.elf)
        return Reader(elf, source.btf, source.hooks, source.maps, source.variables).requirements()
    code = Code.of(source)
    elf, btf = code.elf, code.btf
    found = hooks(elf, lambda program, section: {})
    return Reader(elf, btf, found, maps(elf, btf), variables(elf, btf)).requirements()


Told = tuple[Version | None, str, str]


def oldest(needs: list[Told]) -> Version:
    """The oldest kernel that has all of it."""
    return max((version for version, _, instead in needs if version and not instead), default=(0, 0))


class Reader:
    """Collects the needs of one object."""

    def __init__(
        self,
        elf: Elf,
        btf: Btf,
        found: tuple[Hook, ...],
        specs: Mapping[str, MapSpec],
        values: Mapping[str, Variable],
    ) -> None:
        self.elf, self.btf, self.hooks, self.specs, self.values = elf, btf, found, specs, values
        self.code = Code(elf, btf)
        self.kfuncs = kfunc_table()
        self.needs: dict[tuple[Version | None, str, str], set[str]] = {}
        # Section -> slots where CO-RE is asked whether something exists
        self.asked: dict[int, list[int]] = {}
        for (section, at), core in self.code.cores.items():
            if core.kind in EXISTS:
                self.asked.setdefault(section, []).append(at)
        # load.py turns ring buffers into perf buffers where the object has the code for them
        self.rings = [one for one in specs.values() if one.type == RINGBUF]
        self.perf = bool(self.rings) and all(f"{one.name}{LOST_SUFFIX}" in specs for one in self.rings)
        self._found: dict[tuple[tuple[int, int], int | None], Found] = {}

    def requirements(self) -> Requirements:
        programs = tuple(self.program(hook) for hook in self.hooks)
        found_maps = tuple(self.map(spec) for spec in self.specs.values())
        if any(value.section.startswith((".rodata", ".data", ".bss")) for value in self.values.values()):
            self.need((5, 2), "global variables", "")
        kernel_btf = needs_kernel_btf(self.elf, self.hooks)
        must = {(version, what) for version, what, instead in self.needs if not instead}
        needs = [
            Need(version, what, tuple(sorted(users - {""})), instead)
            for (version, what, instead), users in self.needs.items()
            if not instead or (version, what) not in must
        ]
        needs.sort(key=lambda one: (one.since is not None, one.since or (0, 0), one.what), reverse=True)
        return Requirements(programs, found_maps, tuple(needs), self.capabilities(programs), kernel_btf)

    def need(self, version: Version | None, what: str, user: str, instead: str = "") -> None:
        self.needs.setdefault((version, what, instead), set()).add(user)

    # ------------------------------------------------------------------------------------------ programs

    def program(self, hook: Hook) -> ProgramNeed:
        kind = kind_of(hook.section)
        if kind is None:
            self.need(None, f"section {hook.section}", hook.program)
            kind = UNKNOWN
        for kind_since, what in kind.needs:
            self.need(kind_since, what, hook.program)
        entry = self.entries.get((hook.section, hook.program))
        whole = Found()
        if entry is not None:
            whole = self.closure(entry, None)
            # An old kernel has nothing of what CO-RE asks for, a new one all of it.
            answers = (self.closure(entry, answer) for answer in (0, 1)) if self.asked else (whole, whole)
            chosen, other = sorted(map(self.needs_of, answers), key=oldest)
            for need in chosen:
                self.need(need[0], need[1], hook.program, need[2])
            for version, what, instead in other:
                if (version, what, instead) not in chosen:
                    self.need(version, what, hook.program, instead or "CO-RE leaves it out")
        helpers = tuple(map(helper_name, whole.helpers))
        return ProgramNeed(
            hook.program,
            hook.section,
            kind.type,
            kind.attach,
            helpers,
            tuple(whole.kfuncs),
            tuple(whole.maps),
            whole.instructions,
        )

    @cached_property
    def entries(self) -> dict[tuple[str, str], Function]:
        """Section and name -> function."""
        functions = self.code.by_start.values()
        return {(self.elf.sections[one.section].name, one.name): one for one in functions}

    def needs_of(self, found: Found) -> list[Told]:
        """What is needed, its version, and what is done without it."""
        needs: list[Told] = []
        for number in found.helpers:
            instead = "its time is that of reading" if number == BOOT_CLOCK and self.perf else ""
            needs.append((since(HELPER_SINCE, number), f"helper {helper_name(number)}", instead))
        for name, weak in found.kfuncs.items():
            needs.append((kfunc_since(name, self.kfuncs), f"kfunc {name}", "it is weak" if weak else ""))
        needs += [(version, what, "") for what, version in found.features.items()]
        return needs

    def closure(self, entry: Function, answer: int | None) -> Found:
        """What a function uses, with those that it calls. answer: that of every question of CO-RE, None: either."""
        total = Found()
        seen: set[tuple[int, int]] = set()
        work = [(entry.section, entry.start)]
        while work:
            place = work.pop()
            function = self.code.by_start.get(place)
            if place in seen or function is None:
                continue
            seen.add(place)
            if len(seen) > MOST_FUNCTIONS:
                raise ImageError(f"program {entry.name!r} calls more than {MOST_FUNCTIONS} functions")
            one = self.one(function, answer)
            total.join(one)
            work += reversed(one.callees)
        if len(seen) > 1:
            total.features.setdefault("functions that programs call", (4, 16))
        return total

    def one(self, function: Function, answer: int | None) -> Found:
        """What one function uses by itself."""
        asked = () if answer is None else self.asked.get(function.section, ())
        given = {at: answer for at in asked if function.start <= at < function.end and answer is not None}
        key = ((function.section, function.start), answer if given else None)
        if key not in self._found:
            known = self.code.instructions(function.section)
            slots = reached(known, function.start, function.end, given) if given else None
            self._found[key] = Where(self.code, function, slots).found()
        return self._found[key]

    # ------------------------------------------------------------------------------------------ maps

    def map(self, spec: MapSpec) -> MapNeed:
        instead = "a perf buffer" if spec.type == RINGBUF and self.perf else ""
        self.need(since(MAP_SINCE, spec.type), f"map type {spec.type_name}", spec.name, instead)
        for bit, flag_since in MAP_FLAG_SINCE.items():
            if spec.flags >> bit & 1:
                self.need(flag_since, f"map flag {1 << bit:#x}", spec.name)
        entries = map_sizes(self.values, {}).get(spec.name, spec.max_entries)
        if not entries and spec.type not in SIZELESS:
            entries = DEFAULT_ENTRIES
        return MapNeed(
            spec.name, spec.type_name, spec.key_size, spec.value_size, entries, spec.flags, memory(spec, entries)
        )

    # ------------------------------------------------------------------------------------------ capabilities

    def capabilities(self, programs: Iterable[ProgramNeed]) -> dict[str, str]:
        """Capability -> why."""
        programs = tuple(programs)
        types = {one.type for one in programs}
        helpers = {number for (_, answer), found in self._found.items() if answer is None for number in found.helpers}
        found = {"CAP_BPF": "load BPF programs and maps"}
        tracing = sorted(types & set(PERFMON))
        if tracing:
            found["CAP_PERFMON"] = f"programs of type {', '.join(tracing)}"
        elif reading := sorted(helper_name(number) for number in helpers & READS_KERNEL):
            found["CAP_PERFMON"] = f"helpers {', '.join(reading)}"
        elif any(one.type == PERF_EVENT_ARRAY for one in self.specs.values()):
            found["CAP_PERFMON"] = "perf buffers"
        network = sorted(types & set(NET_ADMIN))
        if network:
            found["CAP_NET_ADMIN"] = f"programs of type {', '.join(network)}"
        if "socket_filter" in types:
            found["CAP_NET_RAW"] = "packet sockets for socket filters"
        if WRITES_USER in helpers:
            found["CAP_SYS_ADMIN"] = helper_name(WRITES_USER)
        return found
