"""`ig run --help`: the flags that every gadget has, and with an image its own flags, sources and fields."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from igrun.metadata import Param
from igrun.record import DataSource, Field, Kind

if TYPE_CHECKING:
    from igrun.runtime import Gadget

WIDTH = 110
LEFT = 34
NUMBERS = {"i": "int", "u": "uint", "f": "float"}
GADGETS = ("operator.oci.ebpf", "operator.oci.wasm", "custom")
Keyed = Sequence[tuple[str, Param[Any]]]


def general(own: Sequence[Param[Any]], image: Sequence[Param[Any]], shared: Sequence[Param[Any]]) -> str:
    """The help without an image."""
    return "\n".join(
        [
            "Run a gadget",
            "",
            "Specify the gadget image to get more information about it: ig run IMAGE --help",
            "",
            "Usage:",
            "  ig run [IMAGE] [flags]",
            "",
            *section("Flags", alone(own)),
            *section("Flags for the image", alone(image)),
            *section("Flags of many gadgets; some also as --FLAG.SOURCE for one data source", alone(shared)),
            *NOTES,
        ]
    )


def about(name: str, gadget: Gadget, own: Sequence[Param[Any]], image: Sequence[Param[Any]]) -> str:
    """The help of one gadget."""
    from igrun.cli.running import keyed

    params = keyed(gadget)
    twice = {param.key for key, param in params if key == param.key}
    shown = [(key, param) for key, param in params if key == param.key or param.key not in twice]
    defaults = gadget.values
    title = gadget.metadata.name or name
    return "\n".join(
        [
            f"{title}: {gadget.metadata.description}" if gadget.metadata.description else title,
            "",
            "Usage:",
            f"  ig run {name} [flags]",
            "",
            *section("Flags of this gadget", [one for one in shown if one[1].group in GADGETS], defaults),
            *section("Flags for what is shown", [one for one in shown if one[1].group not in GADGETS], defaults),
            *section("Flags", alone(own)),
            *section("Flags for the image", alone(image)),
            *NOTES,
            *(line for source in gadget.sources.values() if source.referenced for line in fields(source)),
        ]
    )


NOTES = [
    "A value @FILE is what that file holds. Where a flag is not given, the environment (INSPEKTOR_GADGET_<KEY>) and",
    "the config file are asked: see `ig config view`.",
    "",
]


def alone(params: Iterable[Param[Any]]) -> list[tuple[str, Param[Any]]]:
    return [(param.key, param) for param in params]


def section(title: str, params: Keyed, defaults: Any = None) -> list[str]:
    """A heading and its flags, or nothing."""
    if not params:
        return []
    lines = [f"{title}:"]
    for name, param in sorted(params, key=lambda one: one[0].lower()):
        lines += flag(name, param, (defaults or {}).get(name, param.default))
    return [*lines, ""]


def flag(name: str, param: Param[Any], default: str) -> list[str]:
    """The lines of one flag: its name, type, meaning and default."""
    letter = f"-{param.alias}, " if param.alias and name == param.key else "    "
    kind = param.hint or param.type.name
    kind = "" if kind == "bool" else f" {kind}"
    left = f"  {letter}--{name}{kind}"
    about = (param.description or param.title).strip()
    if param.choices and not all(choice in about for choice in param.choices):
        about += f" ({', '.join(param.choices)})"
    if default and not (param.type.name == "bool" and default == "false"):
        about += f" (default {quoted(default) if param.type.name in ('string', '[]string') else default})"
    if param.mandatory:
        about += " (required)"
    return columns(left, about)


def columns(left: str, right: str) -> list[str]:
    """Two columns, the lines of the right one wrapped."""
    from textwrap import wrap

    lines = [short for line in right.splitlines() for short in wrap(line, WIDTH - LEFT)] or [""]
    if len(left) >= LEFT - 1:
        return [left, *(f"{'':{LEFT}}{line}" for line in lines if line)]
    first, *others = lines
    return [f"{left:<{LEFT}}{first}".rstrip(), *(f"{'':{LEFT}}{line}" for line in others)]


def fields(source: DataSource) -> list[str]:
    """What a source has to show."""
    what = "one table after another" if source.kind is Kind.TABLE else "one row per event"
    lines = [f'Fields of data source "{source.name}" ({what}; * are shown by default):']
    parents = {field.parent for field in source.fields}
    for field in source.fields:
        if field.name in parents:
            continue
        star = " " if field.hidden else "*"
        text = field.annotations.get("description", "")
        lines += columns(f"  {star} {field.name}  {type_name(field)}", " ".join(text.split()))
    return [*lines, ""]


def type_name(field: Field) -> str:
    """The type of a field's values, in short."""
    if field.dtype is None:
        return "" if field.place is None else "unknown"
    shape, _, base = field.dtype.rpartition(")")
    base = base.lstrip(",<>|=")
    count = f"[{shape.lstrip('(')}]" if shape else ""
    if base[:1] in NUMBERS:
        return f"{NUMBERS[base[0]]}{int(base[1:]) * 8}{count}"
    if base[:1] in ("?", "b"):
        return f"bool{count}"
    return f"string{count}" if base[:1] in ("S", "T", "U") else "bytes"


def quoted(text: str) -> str:
    return f'"{text}"'
