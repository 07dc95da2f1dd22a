"""The data sources of a BPF object: markers and structs -> fields, as gadget.yaml describes them."""

from __future__ import annotations

from collections.abc import Container, Mapping

from igrun.btf import Btf, Enumeration
from igrun.dataclass import replace
from igrun.errors import ImageError, MetadataError
from igrun.layout import Layout, layout
from igrun.markers import Markers
from igrun.metadata import GadgetMetadata
from igrun.record import At, DataSource, Field, Kind, Rest, Sources

KERNEL_STACK, STACKS = "gadget_kernel_stack", "ig_kstack"
Enums = Mapping[tuple[str, str], Enumeration]


def data_sources(btf: Btf, markers: Markers, maps: Container[str], metadata: GadgetMetadata) -> tuple[Sources, Enums]:
    """The sources by name, and the enumerations by (source, field).

    ImageError: a struct cannot be a record, or two fields have one name
    """
    sources: dict[str, DataSource] = {}
    enums: dict[tuple[str, str], Enumeration] = {}
    events = {tracer.source for tracer in markers.tracers}
    per_cpu = {one.source for one in markers.map_iterators if one.per_cpu}
    for name, records in markers.records.items():
        if len(records) == 1:
            parts = [layout(btf, records[0])]
        else:
            key = layout(btf, records[0], tags=("role:key",))
            parts = [key, layout(btf, records[1], base=key.size)]
        if name in per_cpu:
            parts.append(number_of_cpu(parts))
        kind = Kind.EVENTS if name in events else Kind.TABLE
        source = metadata.source(DataSource(name, kind, size=sum(part.size for part in parts)))
        fields = described(source, parts, metadata)
        if kind is Kind.EVENTS:
            fields = with_rest(source, fields, metadata)
        for field in fields.values():
            if field.has_type(KERNEL_STACK) and STACKS not in maps:
                raise ImageError(
                    f"field {field.name!r} of data source {name!r} is a {KERNEL_STACK}: that needs the map {STACKS}",
                    hint="include <gadget/kernel_stack_map.h>",
                )
        sources[name] = replace(source, fields=tuple(fields.values()))
        for part in parts:
            for field_name, enumeration in part.enums.items():
                if field_name not in part.indirect or has_text(fields[field_name]):
                    enums[name, field_name] = enumeration
    return sources, enums


def described(source: DataSource, parts: list[Layout], metadata: GadgetMetadata) -> dict[str, Field]:
    """The fields of the structs, by name."""
    fields: dict[str, Field] = {}
    for part in parts:
        for field in part.fields:
            if field.name in fields:
                raise ImageError(f"data source {source.name!r}: field {field.name!r} already exists")
            fields[field.name] = metadata.describe(source.name, field)
    return fields


def number_of_cpu(parts: list[Layout]) -> Layout:
    """A column behind the others, with the CPU that a row is of."""
    taken = {field.name for part in parts for field in part.fields}
    name = "cpu" if "cpu" not in taken else "on_cpu"
    place = At(sum(part.size for part in parts))
    tags = (f"name:{name}", "src:ebpf", "role:key")
    field = Field(name, "<u8", place, tags, {"columns.width": "4", "columns.alignment": "right"})
    return Layout((field,), 8, {}, frozenset())


def has_text(field: Field) -> bool:
    """True if the field has a name for a second one with its values as text."""
    return field.name.endswith("_raw") or bool(field.annotations.get("ebpf.formatter.enum"))


def with_rest(source: DataSource, fields: dict[str, Field], metadata: GadgetMetadata) -> dict[str, Field]:
    """The fields, and the one that holds what follows the struct if gadget.yaml names one."""
    name, length_name = source.annotations.get("ebpf.rest.name"), source.annotations.get("ebpf.rest.len")
    if not name:
        return fields
    place = f"datasources.{source.name}.annotations"
    if name in fields:
        raise MetadataError(f"{place}.ebpf.rest.name", f"field {name!r} already exists")
    length = fields.get(length_name) if length_name else None
    if length_name and (length is None or not (length.dtype or "").startswith(("<u", "|u", "<i", "|i"))):
        raise MetadataError(f"{place}.ebpf.rest.len", f"data source {source.name!r} has no integer {length_name!r}")
    rest = Field(name, "O", Rest(length), (f"name:{name}", "src:ebpf"))
    return {**fields, name: metadata.describe(source.name, rest)}
