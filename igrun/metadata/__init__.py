"""gadget.yaml -> GadgetMetadata: what a gadget says about its sources, fields, params and programs. Params."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Self

from igrun.dataclass import dataclass, field, replace
from igrun.errors import ParamError
from igrun.metadata.custom import ANNOTATE, Annotated, annotated, patched, read_annotate
from igrun.metadata.document import Tree, as_text, folded, load, text_list, texts, within
from igrun.metadata.known import BASE, BY_TYPE, TEMPLATES
from igrun.metadata.params import (
    BOOL,
    BYTES,
    DURATION,
    FLOAT32,
    FLOAT64,
    INT,
    INT8,
    INT16,
    INT32,
    INT64,
    IP,
    LIST,
    TEXT,
    TYPES,
    UINT,
    UINT8,
    UINT16,
    UINT32,
    UINT64,
    Param,
    Type,
    from_file,
    key_of,
    read_duration,
    split_commas,
)
from igrun.record import At, DataSource, Field, Sources

__all__ = [
    "BOOL",
    "BYTES",
    "DURATION",
    "FLOAT32",
    "FLOAT64",
    "INT",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "IP",
    "LIST",
    "TEXT",
    "TYPES",
    "UINT",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "GadgetMetadata",
    "Param",
    "ParamEntry",
    "Type",
    "from_file",
    "key_of",
    "read_duration",
    "split_commas",
]

EBPF = "operator.oci.ebpf"
WASM = "operator.oci.wasm"
NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class ParamEntry:
    """What gadget.yaml says about one param; empty where it says nothing. default None: not given."""

    name: str
    key: str = ""
    default: str | None = None
    description: str = ""
    alias: str = ""
    alternative: str = ""
    title: str = ""
    type: str = ""
    hint: str = ""
    choices: tuple[str, ...] = ()
    mandatory: bool = False
    tags: tuple[str, ...] = ()

    @classmethod
    def read(cls, name: str, entry: Any) -> Self:
        """From its mapping in gadget.yaml."""
        if not isinstance(entry, dict):
            return cls(name)
        default = entry.get("defaultvalue")
        return cls(
            name,
            key=as_text(entry.get("key")),
            default=None if default is None else as_text(default),
            description=as_text(entry.get("description")),
            alias=as_text(entry.get("alias")),
            alternative=as_text(entry.get("alternativekey")),
            title=as_text(entry.get("title")),
            type=as_text(entry.get("typehint")) or as_text(entry.get("type")),
            hint=as_text(entry.get("valuehint")),
            choices=text_list(entry.get("possiblevalues")),
            mandatory=as_text(entry.get("ismandatory")).lower() == "true",
            tags=text_list(entry.get("tags")),
        )

    def over(self, param: Param[Any]) -> Param[Any]:
        """The param with what gadget.yaml says in place of what it had. An empty default keeps the old one."""
        return replace(
            param,
            key=self.key or param.key,
            default=self.default or param.default,
            description=self.description or param.description,
            alias=self.alias or param.alias,
            alternative=self.alternative or param.alternative,
            title=self.title or param.title,
            hint=self.hint or param.hint,
            choices=self.choices or param.choices,
            mandatory=self.mandatory or param.mandatory,
            tags=(*param.tags, *self.tags),
        )


@dataclass(frozen=True, slots=True)
class GadgetMetadata:
    """What gadget.yaml says.

    annotations:    of the image, keys as written
    param_defaults: full param name in lower case -> text
    default_values: the same by key, in the spelling of the file
    raw:            the whole document, keys in lower case, dots as paths
    warnings:       what is unknown or wrong in it, one line each
    annotated:      what `--annotate` added
    """

    name: str = ""
    description: str = ""
    raw: Mapping[str, Any] = field(default_factory=dict, hash=False)
    homepage_url: str = ""
    documentation_url: str = ""
    source_url: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    default_values: Mapping[str, str] = field(default_factory=dict, hash=False)
    warnings: tuple[str, ...] = ()
    annotated: tuple[Annotated, ...] = ()

    @classmethod
    def parse(cls, text: bytes, *, strict: bool) -> Self:
        """Read gadget.yaml.

        strict: as at build: what is unknown or wrong is a MetadataError; else it is a warning, and only what is no
                YAML mapping at all is an error
        """
        from igrun.metadata.check import problems, refuse

        tree = load(text, strict=strict)
        found = problems(tree, strict=strict)
        if strict:
            refuse(tree, found)
        by_lower_key = {key.lower(): value for key, value in tree.items()}
        defaults = texts(by_lower_key.get("paramdefaults"))
        raw = folded(tree)
        return cls(
            name=as_text(raw.get("name")),
            description=as_text(raw.get("description")),
            raw=raw,
            homepage_url=as_text(raw.get("homepageurl")),
            documentation_url=as_text(raw.get("documentationurl")),
            source_url=as_text(raw.get("sourceurl")),
            annotations=texts(by_lower_key.get("annotations")),
            default_values={key_of(name): value for name, value in defaults.items()},
            warnings=tuple(str(problem) for problem in found),
        )

    # ------------------------------------------------------------------------------------------ sources and fields

    def describe(self, source: str, field: Field) -> Field:
        """The field with templates and gadget.yaml's annotations merged over its own.

        A field of the C struct has the base defaults and the template of its C type below its own annotations; any
        other field has the base defaults only while it has no annotations at all.
        """
        if isinstance(field.place, At) or "src:ebpf" in field.tags:
            by_type = next(
                (BY_TYPE[tag[5:]] for tag in field.tags if tag.startswith("type:") and tag[5:] in BY_TYPE),
                NOTHING,
            )
            merged = {**BASE, **by_type, **field.annotations}
        else:
            merged = dict(field.annotations or BASE)
        merged.update(TEMPLATES.get(field.annotations.get("template", ""), NOTHING))
        entry = within(self.raw, f"datasources.{source}.fields.{field.name}")
        tags = field.tags
        if isinstance(entry, dict):
            written = texts(entry.get("annotations"))
            merged.update(TEMPLATES.get(written.get("template", ""), NOTHING))
            merged.update(written)
            tags += tuple(tag for tag in text_list(entry.get("tags")) if tag not in tags)
        hidden = field.hidden or merged.get("columns.hidden") == "true"
        return replace(field, annotations=merged, tags=tags, hidden=hidden)

    def source(self, source: DataSource) -> DataSource:
        """The source with gadget.yaml's annotations for it below those it has."""
        written = texts(within(self.raw, f"datasources.{source.name}.annotations"))
        return replace(source, annotations={**written, **source.annotations})

    # ------------------------------------------------------------------------------------------ programs and params

    def program_options(self, program: str) -> Mapping[str, str]:
        """`programs.<program>`: dotted key in lower case -> text (`attach_to`, `perf.type`, `sampler.frequency`)."""
        return texts(within(self.raw, f"programs.{program}"))

    @property
    def ebpf_params(self) -> Mapping[str, ParamEntry]:
        """C variable in lower case -> what gadget.yaml says about its param. `params.ebpf` goes before `ebpfParams`."""
        both = {**self._group("ebpfparams"), **self._group("params.ebpf")}
        return {name: ParamEntry.read(name, entry) for name, entry in both.items()}

    def ebpf_param(self, variable: str, param: Param[Any]) -> Param[Any]:
        """The param of that C variable with what gadget.yaml says about it."""
        entry = self.ebpf_params.get(variable.lower())
        return entry.over(param) if entry else param

    @property
    def wasm_params(self) -> tuple[Param[Any], ...]:
        """The params that the WASM guest asks for."""
        entries = [ParamEntry.read(name, entry) for name, entry in self._group("params.wasm").items()]
        return tuple(one.over(Param(one.name, TYPES.get(one.type.lower(), TEXT), "", group=WASM)) for one in entries)

    @property
    def custom_params(self) -> tuple[Param[Any], ...]:
        """The params that change this document."""
        found = []
        for name, entry in self._group("params.custom").items():
            if not isinstance(entry, dict) or not ("patch" in entry or "values" in entry):
                continue
            values = entry.get("values")
            one = replace(ParamEntry.read(name, entry), key=name)
            choices = tuple(values) if isinstance(values, dict) else ()
            kind = TYPES.get(one.type.lower(), TEXT)
            found.append(one.over(Param(name, kind, "", group="custom", choices=choices)))
        return tuple(found)

    @property
    def param_defaults(self) -> Mapping[str, str]:
        """Full param name in lower case -> the default that gadget.yaml wants."""
        return texts(self.raw.get("paramdefaults"))

    def _group(self, path: str) -> Mapping[str, Any]:
        found = within(self.raw, path)
        return found if isinstance(found, dict) else {}

    # ------------------------------------------------------------------------------------------ the rest

    def config(self, path: str, default: str = "") -> str:
        """The text at a dotted path (`operator.process.interval`), whatever the case of its letters."""
        found = within(self.raw, path)
        return default if found is None else as_text(found)

    def customized(self, values: Mapping[str, str]) -> Self:
        """With the patches of the custom params and the assignments of `--annotate`, as these values say.

        values: param key -> text
        """
        assignments = read_annotate(values.get(ANNOTATE, ""))
        params = self.custom_params
        if not assignments and not params:
            return self
        tree: Tree = dict(self.raw)
        tree = patched(tree, params, values, self.default_values)
        tree = annotated(tree, assignments)
        defaults = {**self.default_values}
        for name, value in texts(tree.get("paramdefaults")).items():
            if self.param_defaults.get(name) != value:
                defaults[key_of(name)] = value
        return replace(self, raw=tree, default_values=defaults, annotated=assignments)

    def check_annotated(self, sources: Sources) -> None:
        """ParamError if `--annotate` names a source or a field that none of these is."""
        by_name = {name.lower(): source for name, source in sources.items()}
        for one in self.annotated:
            source = by_name.get(one.source.lower())
            known_names = [field.name for field in source.fields] if source else list(sources)
            if source and (not one.field or one.field.lower() in [name.lower() for name in known_names]):
                continue
            from difflib import get_close_matches

            what = f"field {one.field!r} of datasource {one.source!r}" if source else f"datasource {one.source!r}"
            near = get_close_matches(one.field if source else one.source, known_names, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(known_names)}"
            raise ParamError(ANNOTATE, one.text, f'annotation "{one.text}": {what} not found', hint=hint)
