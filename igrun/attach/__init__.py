"""How programs are attached: a module per family of program types, picked by the ELF section.

A module has SECTIONS (prefixes), places(hook, target) and attach(hook, place). A place is hashable and says where: two
targets that share a library, an interface, ... give the same place, which is attached once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import import_module
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING

from igrun.errors import UnsupportedError

if TYPE_CHECKING:
    from igrun.host import Target
    from igrun.load import LoadedProgram
    from igrun.program import Hook

MODULES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    # module of this package -> its SECTIONS; here so that a run imports only what it needs, held equal by a test
    {
        "tracing": (
            "tracepoint/",
            "tp/",
            "raw_tracepoint/",
            "raw_tp/",
            "tp_btf/",
            "kprobe/",
            "kretprobe/",
            "fentry/",
            "fexit/",
            "iter/",
            "perf_event/",
            "lsm/",
        )
    }
)


def attach(hooks: Iterable[Hook], target: Target, loaded: LoadedProgram) -> None:
    """Attach programs to a target, in order; `loaded.detach()` undoes it. Iterators are left to their readers.

    Every place is found before anything is attached: the search opens files, which a gadget might report.

    UnsupportedError: nobody knows the section, or this kernel cannot do it; AttachError
    """
    found = [
        (module, hook, place)
        for hook in hooks
        for module in (module_for(hook),)
        for place in module.places(hook, target)
    ]
    for module, hook, place in found:
        loaded.links.append(module.attach(hook, place))


def module_for(hook: Hook) -> ModuleType:
    """The module whose section prefix is the longest that fits. UnsupportedError: there is none."""
    fitting = [
        (len(prefix), name)
        for name, prefixes in MODULES.items()
        for prefix in prefixes
        if hook.section.startswith(prefix)
    ]
    if not fitting:
        raise UnsupportedError(
            f"program {hook.program!r}",
            f"section {hook.section!r} cannot be attached",
            hint=f"sections begin with: {', '.join(prefix for prefixes in MODULES.values() for prefix in prefixes)}",
        )
    return import_module(f"igrun.attach.{max(fitting)[1]}")
