"""What `ig image inspect` shows of an image."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from igrun.cli.describe import columns, flag, type_name
from igrun.errors import NotFoundError, ParamError
from igrun.host import GOARCH
from igrun.image import ARCHITECTURES, BTFGEN, EBPF, WASM, GadgetImage, unpack
from igrun.lookup import advice, places
from igrun.oci.model import INDEXES, Descriptor, Index, Manifest, Reference
from igrun.oci.store import Store
from igrun.record import DataSource, Field, Kind
from igrun.runtime import Gadget

if TYPE_CHECKING:
    from igrun.config import Settings

LAYERS = {EBPF: "eBPF", WASM: "WASM", BTFGEN: "BTF"}
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
STEP = re.compile(r"\.([A-Za-z_][\w-]*)|\[(\d+)\]|\['([^']*)'\]|\[\"([^\"]*)\"\]")


@dataclass(frozen=True)
class Found:
    """An image: its name, the digest it stands for, its manifests by architecture, and one of them opened."""

    reference: Reference
    root: Descriptor
    manifests: dict[str, tuple[Descriptor, Manifest]]
    image: GadgetImage
    gadget: Gadget


def find(name: str, settings: Settings) -> Found:
    """Look an image up as `ig run` does, and open it for this machine's architecture, else for one that it has."""
    machine = os.uname().machine
    own = GOARCH.get(machine, machine)
    reference = Reference.parse(name)
    with Store.open(writable=False) as local:
        for store, full in places(name, reference, local, settings.search):
            try:
                root = store.resolve(full)
            except NotFoundError:
                continue
            manifests = {}
            if root.media_type in INDEXES:
                for one in Index.parse(store.read(root)).manifests:
                    if one.platform and one.platform.architecture in ARCHITECTURES:
                        manifests[one.platform.architecture] = (one, Manifest.parse(store.read(one)))
            image = unpack(store, root, own if own in manifests else next(iter(manifests), own))
            named = Reference.parse(full) if "/" in full else reference
            return Found(named, root, manifests, image, Gadget.of(image))
    raise NotFoundError(f"image {name!r} not found", hint=advice(reference, False, {}))


# ---------------------------------------------------------------------------------------------- for people


def overview(found: Found) -> str:
    """The image in a page of text."""
    image, gadget = found.image, found.gadget
    metadata = image.metadata
    links = [("Homepage", metadata.homepage_url), ("Documentation", metadata.documentation_url)]
    rows = [
        ("Name", metadata.name),
        ("Description", metadata.description),
        ("Image", str(found.reference)),
        ("Digest", found.root.digest),
        ("Created", image.created),
        ("Built by", f"version {image.builder_version}" if image.builder_version else ""),
        *links,
        ("Source", metadata.source_url),
    ]
    lines = [f"{title + ':':<15}{text}" for title, text in rows if text]
    for architecture, (_, manifest) in sorted(found.manifests.items()):
        layers = ", ".join(f"{LAYERS.get(one.media_type, one.media_type)} {size(one.size)}" for one in manifest.layers)
        lines.append(f"{'Platform:':<15}linux/{architecture} ({layers or 'no layers'})")
    program = gadget.program
    if program:
        lines += ["", "Programs:"]
        for hook in program.hooks:
            lines += columns(f"  {hook.program}", f"{kind_of(hook.section)}, section {hook.section}")
        lines += ["", "Maps:"]
        for spec in program.maps.values():
            sizes = f", {spec.key_size} -> {spec.value_size} bytes" if spec.key_size or spec.value_size else ""
            lines += columns(f"  {spec.name}", f"{spec.type_name}, {spec.max_entries} entries{sizes}")
    for source in gadget.sources.values():
        lines += ["", f"Data source {source.name} ({'table' if source.kind is Kind.TABLE else 'events'}):"]
        for field in source.fields:
            text = " ".join(field.annotations.get("description", "").split())
            lines += columns(f"  {field.name}  {type_name(field)}", text)
    own = [param for param in gadget.params if param.group.startswith(("operator.oci", "custom"))]
    if own:
        lines += ["", "Params:"]
        for param in own:
            lines += flag(param.key, param, gadget.values.get(param.key, param.default))
    return "\n".join([*lines, ""])


def kind_of(section: str) -> str:
    """The program's type, as its section says it."""
    return section.partition("/")[0].removesuffix(".s")


def size(count: int) -> str:
    """A number of bytes for people."""
    return (
        f"{count} B"
        if count < 1024
        else f"{count / 1024:.1f} KiB"
        if count < 1 << 20
        else f"{count / (1 << 20):.1f} MiB"
    )


# ---------------------------------------------------------------------------------------------- for programs


def extra_info(found: Found) -> dict[str, tuple[str, str]]:
    """Key -> (content type, content)."""
    text = "text/plain"
    info = {
        "oci.created": (text, found.image.created),
        "oci.digest": (text, found.image.config_digest),
        "oci.manifest": ("application/json", found.image.manifest.decode("utf-8", "replace")),
        "oci.metadata": ("text/yaml", found.image.metadata_text.decode("utf-8", "replace")),
        "oci.repository": (text, found.reference.name),
        "oci.tag": (text, found.reference.tag),
    }
    program = found.gadget.program
    if program:
        from igrun.elf import Elf

        maps = [{"Name": one.name, "Type": map_name(one.type)} for one in program.maps.values()]
        variables = [
            {"Name": one.name, "Offset": one.offset, "Size": one.size, "Map": one.section}
            for one in program.variables.values()
        ]
        values = {
            "ebpf.maps": maps,
            "ebpf.programs": [{"Name": hook.program, "Section": hook.section} for hook in program.hooks],
            "ebpf.sections": list(Elf(program.elf).by_name),
            "ebpf.variables": variables,
        }
        info |= {key: ("application/json", json.dumps(value, separators=(",", ":"))) for key, value in values.items()}
    return info


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


def selected(found: Found, key: str, path: str, sources: bool) -> Any:
    """What was asked for. NotFoundError: there is no such key, or nothing stands at the path."""
    if sources:
        value: Any = [data_source(source) for source in found.gadget.sources.values() if source.referenced]
        return at(value, path, "data sources") if path else value
    info = extra_info(found)
    if not key:
        return {name: {"content": content, "contentType": kind} for name, (kind, content) in sorted(info.items())}
    if key not in info:
        raise NotFoundError(f'extra info "{key}" not found', hint=f"there are: {', '.join(sorted(info))}")
    kind, content = info[key]
    value = content
    if kind == "application/json":
        value = json.loads(content or "null")
    elif kind == "text/yaml":
        from igrun.metadata.document import load

        value = load(content.encode(), strict=False)
    return at(value, path, f'extra info "{key}"') if path else value


def at(value: Any, path: str, where: str) -> Any:
    """What stands at a JSONPath of names and indexes. ParamError: it is another kind of path."""
    place = 0
    path = path.removeprefix("$")
    while place < len(path):
        step = STEP.match(path, place)
        if step is None:
            raise ParamError(
                "jsonpath", path, f'resolving path "{path}": only .name, [number] and ["name"] are understood'
            )
        place = step.end()
        name = next((one for one in (step[1], step[3], step[4]) if one is not None), None)
        try:
            value = value[int(step[2])] if name is None else value[name]
        except (KeyError, IndexError, TypeError):
            raise NotFoundError(f'path "{path}" not found in {where}') from None
    return value


def written(value: Any, output: str) -> str:
    """A value as JSON or YAML; a text as it is."""
    if isinstance(value, str):
        return f"{value}\n"
    if output == "yaml":
        import yaml

        return str(yaml.safe_dump(value, allow_unicode=True))
    if output == "json":
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n"
    return json.dumps(value, ensure_ascii=False, indent=2) + "\n"
