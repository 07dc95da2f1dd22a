"""Which mode each source prints in, and which columns of it: the texts of `-o` and `--fields`, by source."""

from __future__ import annotations

from collections.abc import Mapping

from igrun import plugins
from igrun.errors import ParamError
from igrun.logs import Logger
from igrun.record import DataSource, Sources

LOG = Logger(__name__)
SUPPORTED = "cli.supported-output-modes"
DEFAULT = "cli.default-output-mode"


def supported(source: DataSource) -> tuple[str, ...]:
    """The modes that a source can be printed in, sorted."""
    told = source.annotations.get(SUPPORTED, "")
    if told:
        return tuple(sorted({mode.strip() for mode in told.split(",") if mode.strip()}))
    return tuple(sorted(mode for modes in plugins.OUTPUTS.values() for mode in modes))


def default(source: DataSource) -> str:
    """The mode that a source prints in where none is asked for."""
    modes = supported(source)
    wanted = source.annotations.get(DEFAULT, "")
    if wanted in modes:
        return wanted
    return "columns" if "columns" in modes or not modes else modes[0]


def mode_of(source: DataSource, output: str, sources: Sources) -> str:
    """The mode of one source, with the file it goes to behind a `=` where one is named.

    output: the text of `-o`: `MODE`, or `source:MODE,...`, "" for the defaults

    A source that cannot be printed so is not printed (mode none), with a warning. ParamError: no source can, the
    source is named in the text itself, or the text is wrong.
    """
    asked = by_source("output", output, ",", sources)
    whole = asked.get(source.name, asked.get("", ""))
    mode, equals, _ = whole.partition("=")
    if not mode:
        return default(source)
    if equals and mode not in plugins.INTO_FILES:
        takers = " and ".join(f"{one}=FILE" for one in plugins.INTO_FILES)
        raise ParamError("output", output, f'output mode "{mode}" takes no file', hint=f"{takers} do; or redirect it")
    if mode in supported(source) or mode == "none":
        return whole
    if source.name in asked or not any(mode in supported(other) for other in sources.values()):
        modes = ", ".join(
            sorted({m for s in ([source] if source.name in asked else sources.values()) for m in supported(s)})
        )
        raise ParamError(
            "output",
            output,
            f'output mode "{mode}" for data source "{source.name}" is not supported',
            hint=f"supported: {modes}",
        )
    LOG.warning('output mode "%s" for data source "%s" is not supported; skipping data source', mode, source.name)
    return "none"


def files(modes: Mapping[str, str]) -> dict[str, str]:
    """By source, the file that its mode names: its own where several sources name the same.

    modes: by source, as `mode_of` returns them

    ParamError: a binary stream would share standard output
    """
    named = {source: mode.partition("=")[2] for source, mode in modes.items()}
    binary = [source for source, mode in modes.items() if mode == "arrow"]
    others = [source for source, mode in modes.items() if not named[source] and mode not in ("arrow", "none")]
    if len(binary) > 1 or (binary and others):
        raise ParamError(
            "output", "arrow", "one Arrow stream has room on standard output", hint=f"-o {binary[0]}:arrow=FILE,..."
        )
    taken = list(named.values())
    return {source: apart(file, source) if taken.count(file) > 1 else file for source, file in named.items()}


def apart(file: str, source: str) -> str:
    """The name with the source's in it, before the suffix."""
    if not file:
        return ""
    folder, slash, name = file.rpartition("/")
    stem, dot, suffix = name.rpartition(".")
    return f"{folder}{slash}{f'{stem}-{source}{dot}{suffix}' if stem else f'{name}-{source}'}"


def fields_by_source(fields: str | None, sources: Sources) -> Mapping[str, str]:
    """The part of `--fields` (`f1,f2` for all, or `source:f1,f2;source2:f3`) for each source that has one."""
    if not fields:
        return {}
    asked = by_source("fields", fields, ";", sources)
    return dict.fromkeys(sources, asked[""]) if "" in asked else asked


def by_source(key: str, text: str, separator: str, sources: Sources) -> dict[str, str]:
    """`value` -> {"": value}; `source:value` pairs -> {source: value}. ParamError: mixed, or no such source."""
    found: dict[str, str] = {}
    for part in (part.strip() for part in text.split(separator)):
        if not part:
            continue
        name, colon, value = part.partition(":")
        name, value = (name.strip(), value.strip()) if colon else ("", part)
        if name and name not in sources:
            raise _unknown(key, text, name, sources)
        if found and ("" in found) != (name == ""):
            raise ParamError(
                key, text, f'invalid value "{text}" as "{key}": mixed values with and without specifying data source'
            )
        found[name] = value
    return found


def _unknown(key: str, text: str, name: str, sources: Sources) -> ParamError:
    import difflib

    near = difflib.get_close_matches(name, sources, 1)
    hint = f"did you mean {near[0]}?" if near else f"data sources: {', '.join(sources)}"
    return ParamError(key, text, f'invalid value "{text}" as "{key}": data source "{name}" not found', hint=hint)
