"""What a build refuses although a run would not notice: names that nothing has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from igrun.btf import GLOBAL, Btf, TypeKind
from igrun.errors import ImageError, MetadataError
from igrun.metadata import GadgetMetadata
from igrun.record import DataSource
from igrun.sections import TYPES, program_type

if TYPE_CHECKING:
    from igrun.program import Program

# Fields that operators add to a source of any gadget, below these parents
FOREIGN = ("k8s", "runtime")
USERS = ("gadget_uid", "gadget_gid")
PARENTS_WITH_MORE = ("gadget_l3endpoint_t", "gadget_l4endpoint_t", "gadget_user_stack")


def check(program: Program, metadata: GadgetMetadata, *, has_guest: bool) -> None:
    """Raise the first thing that is wrong. has_guest: a WASM module may bring sources and fields of its own.

    ImageError: a section that no loader knows; MetadataError: gadget.yaml speaks of what the object does not have
    """
    check_sections(program)
    check_params(program, metadata)
    check_programs(program, metadata)
    if not has_guest:
        check_sources(program, metadata)


def check_sections(program: Program) -> None:
    """Every program's section begins with a word that says how it is attached."""
    known = {row.section.partition("/")[0] for row in TYPES}
    for hook in program.hooks:
        if program_type(hook.section) is None:
            word = hook.section.removeprefix("?").partition("/")[0]
            raise ImageError(
                f"program {hook.program!r}: section {hook.section!r} is none that can be attached",
                hint=near(word, known - {word}) or 'give it SEC("tracepoint/..."), SEC("kprobe/..."), ...',
            )


def check_params(program: Program, metadata: GadgetMetadata) -> None:
    """`params.ebpf` speaks of constants of the object."""
    by_lower = {one.name.lower(): one for one in program.btf.of_kind(TypeKind.VAR)}
    marked = {variable.lower() for variable, _ in program.setters.values()}
    for name, entry in metadata.ebpf_params.items():
        path = f"params.ebpf.{name}"
        variable = by_lower.get(name)
        if variable is None:
            raise MetadataError(path, f'variable "{name}" not found in eBPF object', hint=near(name, marked))
        if program.btf.linkage(variable) != GLOBAL:
            raise MetadataError(path, f'"{name}" is not a global variable')
        for kind in (TypeKind.CONST, TypeKind.VOLATILE):
            if kind not in qualifiers(program.btf, variable.value):
                raise MetadataError(path, f'"{name}" is not {kind.name.lower()}', hint="declare it `const volatile`")
        if name not in marked:
            raise MetadataError(path, f'"{name}" is no param', hint=f"add GADGET_PARAM({variable.name});")
        if not entry.key:
            raise MetadataError(path, f'param "{name}" has an empty key', hint=f"add `key: {name}`")


def qualifiers(btf: Btf, number: int) -> set[TypeKind]:
    """The qualifiers of a type, or of the elements of an array."""
    found = set()
    for _ in range(len(btf)):
        one = btf.type(number)
        found.add(one.kind)
        if one.kind is TypeKind.ARRAY:
            number = btf.element(one)[0]
        elif one.kind in (TypeKind.CONST, TypeKind.VOLATILE, TypeKind.RESTRICT, TypeKind.TYPEDEF, TypeKind.TYPE_TAG):
            number = one.value
        else:
            break
    return found


def check_programs(program: Program, metadata: GadgetMetadata) -> None:
    """`programs` speaks of programs, or of samplers by the second part of their section."""
    names = {hook.program for hook in program.hooks}
    names |= {hook.section.partition("/")[2] for hook in program.hooks if hook.section.startswith("perf_event/")}
    lower = {name.lower() for name in names}
    for name in mapping(metadata.raw.get("programs")):
        if name not in lower:
            raise MetadataError(
                f"programs.{name}", f'program "{name}" not found in eBPF object', hint=near(name, names)
            )


def check_sources(program: Program, metadata: GadgetMetadata) -> None:
    """`datasources` speaks of sources and fields that are there, or that an operator adds."""
    by_lower = {name.lower(): source for name, source in program.sources.items()}
    extra = ["bpfstats", "containers"]
    for name, entry in mapping(metadata.raw.get("datasources")).items():
        source = by_lower.get(name)
        if source is None:
            if name not in extra:
                hint = near(name, program.sources)
                raise MetadataError(f"datasources.{name}", f'data source "{name}" not found in eBPF object', hint=hint)
            continue
        check_fields(source, mapping(mapping(entry).get("fields")))


def check_fields(source: DataSource, entries: Mapping[str, Any]) -> None:
    """Every field of `entries` is one of the source, or comes out of one."""
    names = {one.name.lower() for one in source.fields} | {one.lower() for one in companions(source)}
    open_parents = tuple(f"{parent}." for parent in (*FOREIGN, *parents_with_more(source)))
    for name in entry_names(entries, ""):
        if name not in names and not name.startswith(open_parents) and name not in FOREIGN:
            path = f"datasources.{source.name}.fields.{name}"
            raise MetadataError(path, f'data source "{source.name}" has no field "{name}"', hint=near(name, names))


def companions(source: DataSource) -> Iterator[str]:
    """Names of the fields that operators may make of those of the source."""
    for one in source.fields:
        prefix = f"{one.parent}." if one.parent else ""
        if one.name.endswith("_raw"):
            yield one.name.removesuffix("_raw")
        for key, target in one.annotations.items():
            if key.endswith(".target") or key in ("ebpf.formatter.enum", "ebpf.formatter.kstack"):
                yield f"{prefix}{target.partition('/')[0]}"
        if any(one.has_type(name) for name in USERS):
            yield from (f"{prefix}user", f"{prefix}group")
    yield from (key.removeprefix("env.fields.") for key in source.annotations if key.startswith("env.fields."))


def parents_with_more(source: DataSource) -> Iterator[str]:
    """Structs below which operators add fields."""
    for one in source.fields:
        if any(one.has_type(name) for name in PARENTS_WITH_MORE):
            yield one.name.lower()


def entry_names(entries: Mapping[str, Any], prefix: str) -> Iterator[str]:
    """Full names of the fields that a `fields:` mapping speaks of; below a name stand what it says and more names."""
    for name, value in entries.items():
        inner = {key: one for key, one in mapping(value).items() if key not in ("annotations", "tags")}
        if not inner or len(inner) < len(mapping(value)):
            yield prefix + name
        yield from entry_names(inner, f"{prefix}{name}.")


def mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def near(name: str, known: Iterable[str]) -> str:
    """The hint that says which of the known names is most like it."""
    from difflib import get_close_matches

    found = get_close_matches(name, sorted(known), 1)
    return f"did you mean {found[0]}?" if found else ""
