"""The built-in plug-ins, by name, and those that the config names.

The tables stand here so that a run imports only the modules it needs; a test holds them equal to the modules.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import import_module
from types import MappingProxyType, ModuleType

from igrun.errors import PluginError

OPERATORS: Mapping[str, int] = MappingProxyType(
    # module under igrun.operators -> its stage
    {"env": 1, "formatters": 2, "uidgid": 2, "filter": 3, "sql": 4, "sort": 5, "limiter": 6}
)
OUTPUTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    # module under igrun.outputs -> its modes; `text` prints every other mode
    {
        "columns": ("columns",),
        "json": ("json", "jsonpretty"),
        "yaml": ("yaml",),
        "csv": ("csv",),
        "arrow": ("arrow",),
        "parquet": ("parquet",),
        "none": ("none",),
        "text": (),
    }
)
INTO_FILES = ("arrow", "parquet")
"""Modes that may name the file they go to: `-o parquet=FILE`."""


def operators(extra: Iterable[str] = ()) -> tuple[ModuleType, ...]:
    """The operator modules in the order they bind: by stage, then by name. extra: dotted names from the config."""
    built_in = [import_module(f"igrun.operators.{name}") for name in OPERATORS]
    others = [module for module in map(named, extra) if not hasattr(module, "SECTIONS")]
    return tuple(sorted([*built_in, *others], key=lambda module: (module.STAGE, module.NAME)))


def families(extra: Iterable[str] = ()) -> tuple[ModuleType, ...]:
    """The modules among those of the config that attach programs of sections of their own (see `igrun.attach`)."""
    return tuple(module for module in map(named, extra) if hasattr(module, "SECTIONS"))


def output(mode: str) -> ModuleType:
    """The module that prints in this mode."""
    return import_module(f"igrun.outputs.{next((name for name, modes in OUTPUTS.items() if mode in modes), 'text')}")


def named(module: str) -> ModuleType:
    """A third-party plug-in. PluginError: it cannot be imported, or is none."""
    try:
        found = import_module(module)
    except ImportError as error:
        raise PluginError(f"plug-in {module!r}: {error}", hint="check `plugins:` in the config") from None
    wanted = ("places", "attach") if hasattr(found, "SECTIONS") else ("NAME", "STAGE", "PARAMS", "bind")
    missing = [name for name in wanted if not hasattr(found, name)]
    if missing:
        raise PluginError(f"plug-in {module!r} has no {', '.join(missing)}", hint="see DESIGN: a plug-in is a module")
    return found
