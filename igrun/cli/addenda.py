"""What `ig image inspect` gives to programs: the ecosystem's keys, and under `igrun.` what people are shown."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from igrun.record import DataSource, Field, Kind

if TYPE_CHECKING:
    from igrun.cli.inspect import Found
    from igrun.requirements import Requirements

TEXT, JSON, YAML, MERMAID = "text/plain", "application/json", "text/yaml", "text/mermaid"
# What other tools of the ecosystem call the map types, by number
MAP_NAMES = """
UnspecifiedMap Hash Array ProgramArray PerfEventArray PerCPUHash PerCPUArray StackTrace CGroupArray LRUHash LRUCPUHash
LPMTrie ArrayOfMaps HashOfMaps DevMap SockMap CPUMap XSKMap SockHash CGroupStorage ReusePortSockArray
PerCPUCGroupStorage Queue Stack SkStorage DevMapHash StructOpsMap RingBuf InodeStorage TaskStorage BloomFilter
UserRingbuf CgroupStorage Arena
"""
# The numbers of value types in their API
KIND_NAMES = "? i1 i2 i4 i8 u1 u2 u4 u8 f4 f8 T S V"
ARRAY = 0x10000000


def extra_info(found: Found) -> dict[str, tuple[str, str]]:
    """Key -> (content type, content)."""
    info = {
        "oci.created": (TEXT, found.image.created),
        "oci.digest": (TEXT, found.image.config_digest),
        "oci.manifest": (JSON, found.image.manifest.decode("utf-8", "replace")),
        "oci.metadata": (YAML, found.image.metadata_text.decode("utf-8", "replace")),
        "oci.repository": (TEXT, found.reference.name),
        "oci.tag": (TEXT, found.reference.tag),
        "igrun.image": (JSON, dumped(image(found))),
        "igrun.datasources": (JSON, dumped([data_source(one) for one in found.gadget.sources.values()])),
        "igrun.params": (JSON, dumped(params(found))),
    }
    if found.guest is not None:
        if found.guest.api is not None:
            info["wasm.gadgetAPIVersion"] = (TEXT, str(found.guest.api))
        info["wasm.upcalls"] = (JSON, dumped(found.guest.upcalls))
    return info | ebpf(found)


def ebpf(found: Found) -> dict[str, tuple[str, str]]:
    """What there is about the BPF object."""
    program, needs = found.gadget.program, found.requirements
    if program is None or needs is None:
        return {}
    from igrun.elf import Elf
    from igrun.requirements.code import Code
    from igrun.requirements.diagrams import flowchart, sequence
    from igrun.requirements.listing import source, source_with_relocation

    elf = Elf(program.elf)
    code = Code(elf, program.btf)
    functions = {(elf.sections[one.section].name, one.name): one for one in code.by_start.values()}
    programs = []
    for hook in program.hooks:
        function = functions.get((hook.section, hook.program))
        entry = {"Name": hook.program, "Section": hook.section}
        if function is not None:
            entry |= {"Source": source(code, function), "SourceWithRelocation": source_with_relocation(code, function)}
        programs.append(entry)
    values = {
        "ebpf.maps": [{"Name": one.name, "Type": map_name(one.type)} for one in program.maps.values()],
        "ebpf.programs": programs,
        "ebpf.sections": [one.name for one in elf.sections],
        "ebpf.variables": [
            {"Name": one.name, "Offset": one.offset, "Size": one.size, "Map": one.section}
            for one in program.variables.values()
        ],
        "igrun.requirements": requirements(needs),
    }
    info = {key: (JSON, dumped(value)) for key, value in values.items()}
    return {**info, "ebpf.flowchart": (MERMAID, flowchart(needs)), "ebpf.sequence": (MERMAID, sequence(needs))}


def image(found: Found) -> dict[str, Any]:
    """The image itself."""
    return {
        "name": str(found.reference),
        "digest": found.root.digest,
        "created": found.image.created,
        "builder": found.image.builder_version,
        "architecture": found.architecture,
        "signature": found.signature._asdict(),
        "platforms": [
            {
                "os": one.platform.os if one.platform else "linux",
                "architecture": architecture,
                "digest": one.digest,
                "layers": [
                    {"mediaType": layer.media_type, "digest": layer.digest, "size": layer.size}
                    for layer in manifest.layers
                ],
            }
            for architecture, (one, manifest) in sorted(found.manifests.items())
        ],
        "referrers": [one._asdict() for one in found.referrers],
    }


def params(found: Found) -> list[dict[str, Any]]:
    """The gadget's own params."""
    values = found.gadget.values
    return [
        {
            "key": one.key,
            "group": one.group,
            "type": one.type.name,
            "default": values.get(one.key, one.default),
            "description": one.description or one.title,
            "required": one.mandatory,
        }
        for one in found.gadget.own_params
    ]


def requirements(needs: Requirements) -> dict[str, Any]:
    """What the BPF object needs. Versions are texts; memory is in bytes."""
    from igrun.requirements import shown

    return {
        "minimumKernel": shown(needs.minimum_kernel),
        "reasons": list(needs.reasons),
        "unknown": list(needs.unknown),
        "kernelBtf": needs.kernel_btf,
        "capabilities": dict(needs.capabilities),
        "helpers": list(needs.helpers),
        "kfuncs": list(needs.kfuncs),
        "needs": [
            {
                "since": shown(one.since) if one.since else None,
                "what": one.what,
                "users": list(one.users),
                "instead": one.instead,
            }
            for one in needs.needs
        ],
        "programs": [
            {
                "name": one.name,
                "section": one.section,
                "type": one.type,
                "attach": one.attach,
                "instructions": one.instructions,
                "helpers": list(one.helpers),
                "kfuncs": list(one.kfuncs),
            }
            for one in needs.programs
        ],
        "maps": [
            {
                "name": one.name,
                "type": one.type,
                "keySize": one.key_size,
                "valueSize": one.value_size,
                "entries": one.entries,
                "flags": one.flags,
                "memory": one.memory.fixed if one.memory else None,
                "memoryPerCpu": one.memory.per_cpu if one.memory else None,
                "grows": bool(one.memory and one.memory.grows),
            }
            for one in needs.maps
        ],
    }


def dumped(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def map_name(number: int) -> str:
    return dict(enumerate(MAP_NAMES.split())).get(number, f"MapType({number})")


def data_source(source: DataSource) -> dict[str, Any]:
    """A data source as the ecosystem's API describes it."""
    return {
        "name": source.name,
        "type": 2 if source.kind is Kind.TABLE else 1,
        "fields": [field_info(field, index) for index, field in enumerate(source.fields)],
        "annotations": dict(source.annotations),
    }


def field_info(field: Field, index: int) -> dict[str, Any]:
    return {
        "name": field.short,
        "fullName": field.name,
        "index": index,
        "kind": kind_number(field.dtype),
        "tags": list(field.tags),
        "annotations": dict(field.annotations),
        "order": field.order,
    }


def kind_number(dtype: str | None) -> int:
    """The number of a type of value in the ecosystem's API."""
    shape, _, base = (dtype or "").rpartition(")")
    base = base.lstrip(",<>|=")
    kinds = {name: number for number, name in enumerate(KIND_NAMES.split(), 1)}
    kinds |= {"b1": kinds["?"], "O": kinds["V"]}
    kind = kinds.get(base, kinds.get(base[:1], 0))
    return ARRAY | kind if shape and kind else kind
