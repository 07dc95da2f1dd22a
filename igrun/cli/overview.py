"""What `ig image inspect` shows to people: a page about an image."""

from __future__ import annotations

from textwrap import wrap
from typing import TYPE_CHECKING

from igrun.cli.describe import WIDTH, columns, flag, type_name
from igrun.image import BTFGEN, EBPF, WASM
from igrun.record import Kind

if TYPE_CHECKING:
    from igrun.cli.inspect import Found
    from igrun.requirements import MapNeed, Requirements
    from igrun.requirements.memory import Memory

LAYERS = {EBPF: "eBPF", WASM: "WASM", BTFGEN: "BTF"}
LEFT = 16


def overview(found: Found) -> str:
    """The image in a page of text."""
    lines = [*about(found), *referrers(found)]
    needs = found.requirements
    if needs:
        lines += [*kernel(needs), *programs(needs), *maps(needs), *functions(needs)]
    if found.guest:
        upcalls = ", ".join(found.guest.upcalls) or "nothing"
        lines += ["", "WASM module:", *row("  calls", upcalls)]
    for source in found.gadget.sources.values():
        lines += ["", f"Data source {source.name} ({'table' if source.kind is Kind.TABLE else 'events'}):"]
        for field in source.fields:
            text = " ".join(field.annotations.get("description", "").split())
            lines += columns(f"  {field.name}  {type_name(field)}", text)
    own = found.gadget.own_params
    if own:
        lines += ["", "Params:"]
        for param in own:
            lines += flag(param.key, param, found.gadget.values.get(param.key, param.default))
    return "\n".join([*lines, ""])


def about(found: Found) -> list[str]:
    """What it is, where it comes from, how large it is."""
    image, metadata = found.image, found.image.metadata
    rows = [
        ("Name", metadata.name),
        ("Description", metadata.description),
        ("Image", str(found.reference)),
        ("Digest", found.root.digest),
        ("Signature", str(found.signature)),
        ("Created", image.created),
        ("Built by", f"version {image.builder_version}" if image.builder_version else ""),
        ("Homepage", metadata.homepage_url),
        ("Documentation", metadata.documentation_url),
        ("Source", metadata.source_url),
        ("Size", size(whole(found))),
    ]
    lines = [line for title, text in rows if text for line in row(f"{title}:", text)]
    for architecture, (_, manifest) in sorted(found.manifests.items()):
        layers = ", ".join(f"{LAYERS.get(one.media_type, one.media_type)} {size(one.size)}" for one in manifest.layers)
        lines += row("Platform:", f"linux/{architecture} ({layers or 'no layers'})")
    return lines


def whole(found: Found) -> int:
    """Bytes of all its parts, each once."""
    parts = {found.root.digest: found.root.size}
    for descriptor, manifest in found.manifests.values():
        parts |= {one.digest: one.size for one in (descriptor, manifest.config, *manifest.layers)}
    return sum(parts.values())


def referrers(found: Found) -> list[str]:
    """Signatures, SBOMs and what else there is about it."""
    if not found.referrers:
        return []
    rows = [f"  {one.what:<28} {size(one.size):>10}  {one.digest}" for one in found.referrers]
    return ["", "Referrers:", *rows]


def kernel(needs: Requirements) -> list[str]:
    """The oldest kernel, and what newer ones are used for."""
    from igrun.requirements import shown

    users = {reason.removeprefix("helper ") for reason in needs.reasons}
    lines = ["", "Needs:", *row("  kernel", f"{shown(needs.minimum_kernel)} ({', '.join(sorted(users))})")]
    if needs.unknown:
        lines += row("  and", f"{', '.join(needs.unknown)} (of unknown version)")
    for one in needs.needs:
        if one.instead and one.since and one.since > needs.minimum_kernel:
            lines += row("  can use", str(one))
    btf = "yes: the kernel's own, or a file" if needs.kernel_btf else "no"
    lines += row("  kernel BTF", btf)
    lines += [line for name, why in needs.capabilities.items() for line in row(f"  {name}", why)]
    return lines


def programs(needs: Requirements) -> list[str]:
    lines = ["", "Programs:"]
    for one in needs.programs:
        kind = one.type or "unknown type"
        kind += f" ({one.attach})" if one.attach else ""
        lines += columns(f"  {one.name}", f"{kind}, section {one.section}, {one.instructions} instructions")
    return lines


def maps(needs: Requirements) -> list[str]:
    if not needs.maps:
        return []
    lines = ["", "Maps:"]
    for one in needs.maps:
        lines += columns(f"  {one.name}", f"{one.type}, {extent(one)}, {room(one.memory)}")
    fixed = sum(one.memory.fixed for one in needs.maps if one.memory)
    each = sum(one.memory.per_cpu for one in needs.maps if one.memory)
    return [*lines, *columns("  together", sum_of(fixed, each))]


def extent(one: MapNeed) -> str:
    """How much a map holds."""
    if one.type in ("ringbuf", "user_ringbuf"):
        return f"{size(one.entries)} of events"
    entries = f"{one.entries} {'entry' if one.entries == 1 else 'entries'}" if one.entries else "as many as needed"
    return f"{entries}, {one.key_size} -> {one.value_size} bytes" if one.key_size or one.value_size else entries


def room(memory: Memory | None) -> str:
    """The memory of a map."""
    if memory is None:
        return "memory with what it belongs to"
    return f"{'up to ' if memory.grows else ''}{sum_of(memory.fixed, memory.per_cpu)}"


def sum_of(fixed: int, each: int) -> str:
    """Bytes, and bytes per CPU."""
    if not each:
        return size(fixed)
    return f"{size(fixed)} + {size(each)} per CPU" if fixed else f"{size(each)} per CPU"


def functions(needs: Requirements) -> list[str]:
    """Helpers and kfuncs."""
    lines = []
    for title, names in (("Helpers", needs.helpers), ("Kfuncs", needs.kfuncs)):
        if names:
            text = wrap(", ".join(names), WIDTH - 2, break_on_hyphens=False)
            lines += ["", f"{title}:", *(f"  {line}" for line in text)]
    return lines


def row(title: str, text: str) -> list[str]:
    """A title and its text, wrapped."""
    first, *others = wrap(text, WIDTH - LEFT, break_on_hyphens=False, break_long_words=False) or [""]
    return [f"{title:<{LEFT - 1}} {first}", *(f"{'':{LEFT}}{line}" for line in others)]


def size(count: int) -> str:
    """A number of bytes for people."""
    return (
        f"{count} B"
        if count < 1024
        else f"{count / 1024:.1f} KiB"
        if count < 1 << 20
        else f"{count / (1 << 20):.1f} MiB"
    )
