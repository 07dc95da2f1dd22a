"""Columns for people out of raw ones: names of errors, signals and flags, times, sizes, addresses, enumerations.

Every field whose C type is one of `FORMATS`, and every enumeration, gets a text field beside it, named by its
annotation `formatters.<format>.target` or by its own name without `_raw`; the raw field is hidden. A field with neither
stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from igrun.dataclass import dataclass, replace
from igrun.logs import Logger
from igrun.metadata import GadgetMetadata
from igrun.names import enums, errnos, files, protocols, signals, syscalls
from igrun.operators import Added, Given, Stage, Step, added, beside, free, visible
from igrun.record import (
    Address,
    DataSource,
    Derived,
    Duration,
    Endpoint,
    Field,
    Key,
    Lookup,
    Rule,
    Size,
    Table,
    Time,
    Value,
    WallClock,
)

if TYPE_CHECKING:
    from igrun.btf import Btf
    from igrun.host import Host
    from igrun.program import Plan

NAME = "formatters"
STAGE = Stage.FORMAT
PARAMS = ()

LOG = Logger(__name__)
KERNEL_BTF = "sys/kernel/btf/vmlinux"


@dataclass(frozen=True, slots=True)
class Format:
    """One kind of raw number and its text. Its C type is `gadget_<name>`.

    rule:        raw field -> how its text is made
    sizes:       bytes of the integers it takes
    annotations: what the text field brings along
    """

    name: str
    rule: Callable[[Field], Rule]
    sizes: tuple[int, ...] = (1, 2, 4, 8)
    annotations: Callable[[], Mapping[str, str]] = dict


@dataclass(frozen=True, slots=True)
class Enumerated:
    """An enumeration that a table answers from. size: bytes of the field."""

    table: str
    name: str
    members: enums.Members
    is_set: bool
    size: int
    separator: str

    def answers(self) -> Table:
        if self.is_set:
            return by_number(enums.set_text(self.members, self.size, self.separator))
        return by_number(enums.enum_text(self.members, self.size))

    def known_to(self, btf: Btf | None) -> Enumerated:
        """The same with the values of this kernel, if it has the enumeration: they differ between kernels."""
        own = {name for name, _ in self.members}
        for found in btf.enumerations(self.name) if btf else ():
            # A namesake that shares no member is another thing.
            if any(name in own for name, _ in found.members):
                return replace(self, members=found.members)
        return self


def bind(given: Given) -> tuple[Step, ...]:
    named: list[Enumerated] = []
    sources = {}
    for name, source in given.sources.items():
        source = with_enums(source, given, named)
        for rank, one in enumerate(FORMATS, 1):
            source = with_texts(source, given.metadata, one, rank)
        sources[name] = with_endpoints(with_stacks_hidden(source), given.metadata)

    def prepare(plan: Plan) -> None:
        plan.tables.update(tables(plan.host))
        plan.tables.update({one.table: one.answers() for one in known_to_kernel(named, plan)})

    return (Step(sources=sources, prepare=prepare),)


# ---------------------------------------------------------------------------------------------- numbers


def lookup(table: str) -> Callable[[Field], Rule]:
    return lambda raw: Lookup(table)


def one_of(names: Callable[[], Mapping[int, str]]) -> str:
    return ", ".join(names().values())


def time(raw: Field) -> Rule:
    layout = raw.annotations.get("formatters.timestamp.format")
    return Time(layout) if layout else Time()


# The columns they add stand in this order.
FORMATS = (
    Format("signal", lookup("signal"), annotations=lambda: {"value.one-of": one_of(signals.names)}),
    Format(
        "errno", lookup("errno"), annotations=lambda: {"template": "errorString", "value.one-of": one_of(errnos.names)}
    ),
    Format("syscall", lookup("syscall"), (8,)),
    Format("timestamp", time, (8,), lambda: {"template": "timestamp"}),
    Format("bytes", lambda raw: Size(), (8,), lambda: {"template": "bytes"}),
    Format("duration", lambda raw: Duration(), (8,), lambda: {"template": "duration"}),
    Format("file_mode", lookup("file_mode")),
    Format("file_flags", lookup("file_flags")),
)


def with_texts(source: DataSource, metadata: GadgetMetadata, wanted: Format, rank: int) -> DataSource:
    """The source with a text field for every field of that format."""
    for raw in source.fields:
        if not raw.has_type(f"gadget_{wanted.name}") or integer_size(raw) not in wanted.sizes:
            continue
        target = target_name(raw, f"formatters.{wanted.name}.target")
        if target is None or not free(source, target):
            LOG.debug("%s of %s stays as it is: no name for its text", raw.name, source.name)
            continue
        shown = visible(raw, hidden=True)
        if wanted.name == "timestamp":
            shown = replace(shown, place=Derived((raw,), WallClock()))
        text = Field(
            target,
            "T",
            Derived((shown,), wanted.rule(raw)),
            annotations=wanted.annotations(),
            order=Added.FORMATTERS.order(target, rank),
        )
        source = added(source.having(shown), metadata, text)
    return source


def integer_size(field: Field) -> int:
    """Its bytes; 0 where it is no integer."""
    dtype = (field.dtype or "").lstrip("<|")
    return int(dtype[1:]) if dtype[:1] in ("i", "u") and dtype[1:].isdecimal() else 0


def target_name(raw: Field, annotation: str) -> str | None:
    """Full name of the field that holds the text of `raw`, None where nothing names it."""
    short = raw.annotations.get(annotation) or raw.short.removesuffix("_raw")
    return beside(raw, short) if short != raw.short else None


# ---------------------------------------------------------------------------------------------- enumerations


def with_enums(source: DataSource, given: Given, named: list[Enumerated]) -> DataSource:
    """The source with a text field for every enumeration; `named` gets what their tables need."""
    known = given.program.enums if given.program else {}
    for raw in source.fields:
        enumeration = known.get((source.name, raw.name))
        if enumeration is None or not integer_size(raw):
            continue
        target = target_name(raw, "ebpf.formatter.enum")
        named_here = target is not None and free(source, target)
        if not named_here and sum(tag.startswith("type:") for tag in raw.tags) > 1:
            # Behind a typedef, which the ecosystem's tools do not look through: a number to them.
            continue
        shown = visible(raw, hidden=True)
        source = source.having(shown)
        if target is None or not named_here:
            LOG.warning("enum field %s of %s: no name for its text (ebpf.formatter.enum)", raw.name, source.name)
            continue
        table = f"enum/{source.name}/{raw.name}"
        separator = raw.annotations.get("ebpf.formatter.bitfield.separator") or "|"
        named.append(
            Enumerated(table, enumeration.name, enumeration.members, enumeration.is_set, integer_size(raw), separator)
        )
        # They stand before a guest's columns, as if the object itself had brought them.
        new = Field(target, "T", Derived((shown,), Lookup(table)), order=int(Added.FORMATTERS))
        source = added(source, given.metadata, new)
    return source


def known_to_kernel(named: list[Enumerated], plan: Plan) -> Iterable[Enumerated]:
    """The enumerations with the values of the kernel that will run the program. ImageError: its BTF cannot be read."""
    if not named:
        return ()
    from igrun.caches import remembered
    from igrun.kernel_btf.small import identity

    def found() -> tuple[enums.Members, ...]:
        btf = kernel_btf(plan)
        return tuple(one.known_to(btf).members for one in named)

    kernel = identity(plan.host, plan.host.root / KERNEL_BTF)
    asked = repr([(one.name, one.members) for one in named])
    members = remembered(tuple, (*kernel, asked), found) if kernel else found()
    return [replace(one, members=its) for one, its in zip(named, members, strict=True)]


def kernel_btf(plan: Plan) -> Btf | None:
    """The BTF of the kernel that will run the program, None if it has none. ImageError: it cannot be read."""
    from pathlib import Path

    from igrun.btf import Btf
    from igrun.kernel_btf import has_own

    own = plan.host.root / KERNEL_BTF
    path = own if has_own(own) or not plan.kernel_btf else Path(plan.kernel_btf)  # which may be a part of its own
    try:
        return Btf.parse(path.read_bytes())
    except OSError as error:
        LOG.warning("enumerations have the values of the gadget, not of this kernel: %s: %s", path, error.strerror)
        return None


# ---------------------------------------------------------------------------------------------- endpoints


def with_endpoints(source: DataSource, metadata: GadgetMetadata) -> DataSource:
    """The source with the address, and for layer 4 the protocol and `address:port`, of every endpoint."""
    for parent in source.fields:
        layer4 = parent.has_type("gadget_l4endpoint_t")
        if not layer4 and not parent.has_type("gadget_l3endpoint_t"):
            continue
        below = {one.short: one for one in source.fields if one.parent == parent.name}
        raw = next((one for one in below.values() if one.has_type("gadget_ip_addr_t")), None)
        version, port, proto = below.get("version"), below.get("port"), below.get("proto_raw")
        if raw is None or version is None or (layer4 and port is None):
            LOG.debug("endpoint %s of %s lacks an address, version or port", parent.name, source.name)
            continue
        new = [text(beside(raw, raw.short.removesuffix("_raw")), Address(), raw, version)]
        if layer4 and proto:
            new.append(text(beside(raw, "proto"), Lookup("protocol"), proto))
        if layer4 and port:
            endpoint = text(beside(raw, "endpoint"), Endpoint(), raw, version, port)
            new.append(replace(endpoint, tags=("endpoint",), annotations={"json.skip": "true"}))
        instead = {**parent.annotations, "columns.replace": new[-1].name}
        kept = [visible(one, hidden=True) for one in source.fields if one.name.startswith(f"{parent.name}.")]
        source = source.having(visible(replace(parent, annotations=instead), hidden=False), *kept)
        gone = [one.name for one in kept if f"{one.name}.".startswith(f"{raw.name}.")]
        source = added(source.without(*gone), metadata, *new)
    return source


def text(name: str, rule: Rule, *sources: Field) -> Field:
    return Field(name, "T", Derived(sources, rule), hidden=True, order=Added.FORMATTERS.order(name))


# ---------------------------------------------------------------------------------------------- stacks


def with_stacks_hidden(source: DataSource) -> DataSource:
    """The source with the parts of user stacks hidden: numbers that only a symbolizer can use."""
    stacks = tuple(f"{one.name}." for one in source.fields if one.has_type("gadget_user_stack"))
    return source.having(*(visible(one, hidden=True) for one in source.fields if one.name.startswith(stacks)))


# ---------------------------------------------------------------------------------------------- tables


def tables(host: Host) -> dict[str, Table]:
    """What the look-ups answer on that machine."""
    return {
        "errno": by_number(errnos.errno_name),
        "signal": by_number(signals.signal_name),
        "syscall": by_number(lambda number: syscalls.syscall_text(number, host.arch)),
        "protocol": by_number(protocols.protocol_name),
        "file_mode": by_number(files.file_mode_text),
        "file_flags": by_number(lambda flags: files.file_flags_text(flags, host.arch)),
    }


def by_number(answer: Callable[[int], str]) -> Table:
    """The table of one part whose keys are integers."""

    def table(key: Key) -> tuple[Value, ...]:
        return (answer(key),) if isinstance(key, int) else ("",)

    return table
