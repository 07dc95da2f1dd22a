"""What happens to batches between the kernel and the output.

An operator is a module of this folder: `NAME`, `STAGE`, `PARAMS` and `bind(given) -> tuple[Step, ...]`. `bind` is pure;
what needs the running kernel happens in `Step.prepare`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import TYPE_CHECKING, TypeVar

from igrun.dataclass import dataclass, field, replace
from igrun.metadata import GadgetMetadata, Param
from igrun.record import Batches, DataSource, Field, Predicate, Sources

if TYPE_CHECKING:
    from igrun.host import Host
    from igrun.program import Loaded, Plan, Program

T = TypeVar("T")


class Stage(IntEnum):
    """Where a step stands; steps of one stage commute."""

    GADGET = 0  # the image's own WASM
    ENRICH = 1  # columns from outside: containers, sockets, processes
    FORMAT = 2  # columns from columns: errno -> name, ns -> time
    FILTER = 3  # drop rows
    GROUP = 4  # rows into other sources; at most one such step per source
    ORDER = 5  # reorder rows
    LIMIT = 6  # drop rows past a count
    EXPORT = 7  # copy rows elsewhere: metrics, logs


@dataclass(frozen=True, slots=True)
class Given:
    """What an operator gets to decide what it does.

    program: None for an image without eBPF
    sources: as the operators bound before left them
    values:  param key -> text, for every param that was set or has a default from the gadget or the config
    host:    None for --help and inspect; only the WASM step reads it
    env:     environment variables
    """

    metadata: GadgetMetadata
    program: Program | None
    sources: Sources
    values: Mapping[str, str]
    host: Host | None = None
    env: Mapping[str, str] = field(default_factory=dict)

    def value(self, param: Param[T], source: str = "") -> T:
        """The typed value of a param; with `source`: that of `<key>.<source>`. ParamError if its text is wrong."""
        key = f"{param.key}.{source}" if source else param.key
        return param.parse(self.values.get(key, param.default), key=key)


Run = Callable[[Batches, "Loaded"], Batches]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one operator does in one run.

    sources: what leaves this step: fields, the Derived ones it adds among them
    keep:    rows to keep, by source name
    prepare: called after every bind, before load, in stage order
    run:     a generator over batches, only for what cannot be declared; it passes on sources it does not know
    stage:   where run stands; None: the module's STAGE
    """

    sources: Sources
    keep: Mapping[str, Predicate] = field(default_factory=dict)
    prepare: Callable[[Plan], None] | None = None
    run: Run | None = None
    stage: Stage | None = None


# ---------------------------------------------------------------------------------------------- for operators

HIDDEN = "columns.hidden"


class Added(IntEnum):
    """Who adds columns after the gadget's own (those have order 0, a guest's their index), in the order they stand."""

    FORMATTERS = 1
    ENV = 2
    USERS = 3

    def order(self, name: str, rank: int = 0) -> int:
        """`Field.order` of an added field. rank: among the fields of the same operator, 0 to 999.

        Below a parent a field stands beside the gadget's own; at the top it stands last. So the order of the columns
        does not depend on the order in which the operators of one stage are bound.
        """
        return int(self) if "." in name else 1000 * self + rank


def visible(field: Field, hidden: bool) -> Field:
    """The field, hidden as its annotation `columns.hidden` says, or as `hidden` says where it has none."""
    wish = field.annotations.get(HIDDEN)
    return replace(field, hidden=hidden if wish is None else wish == "true")


def added(source: DataSource, metadata: GadgetMetadata, *fields: Field) -> DataSource:
    """The source with these new fields, each with what gadget.yaml says about it."""
    described = [visible(metadata.describe(source.name, one), one.hidden) for one in fields]
    return source.having(*described)


def free(source: DataSource, name: str) -> bool:
    """True if no field of the source has this very name."""
    return all(one.name != name for one in source.fields)


def beside(field: Field, short: str) -> str:
    """The full name of `short` under the parent of `field`."""
    return f"{field.parent}.{short}" if field.parent else short


def quoted(text: str) -> str:
    """The text between double quotes, for messages."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
    return f'"{escaped}"'
