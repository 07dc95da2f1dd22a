"""How programs are attached: a module per family of program types, which `igrun.sections` names for each ELF section.

A module has places(hook, target) and attach(hook, place). A place is hashable and says where: two targets that share a
library, an interface, ... give the same place, which is attached once. A third-party family is a module with SECTIONS
as well, rows like those of `sections.TYPES` whose family is the module's dotted name.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from igrun.errors import KernelError, UnsupportedError
from igrun.sections import TYPES, ProgramType, program_type

if TYPE_CHECKING:
    from igrun.host import Target
    from igrun.load import LoadedProgram
    from igrun.program import Hook


def attach(hooks: Iterable[Hook], target: Target, loaded: LoadedProgram) -> None:
    """Attach programs to a target, in order; `loaded.detach()` undoes it. Iterators are left to their readers.

    Every place is found before anything is attached: the search opens files, which a gadget might report. Of
    alternatives the first that can be attached is; programs that are optional, and cannot, are left out.

    UnsupportedError: nobody knows the section, or this kernel cannot do it; AttachError
    """
    found: list[tuple[ModuleType, Hook, tuple[Hashable, ...]]] = []
    for hook in hooks:
        module = module_for(hook, loaded.plan.families)
        try:
            found.append((module, hook, module.places(hook, target)))
        except (KernelError, UnsupportedError) as error:
            loaded.choices.leave_out(hook.program, error)
            loaded.drop(hook.program)
    for module, hook, places in found:
        if not loaded.choices.needed(hook.program):
            loaded.drop(hook.program)
            continue
        attached = len(loaded.links)
        try:
            for place in places:
                loaded.links.append(module.attach(hook, place))
        except (KernelError, UnsupportedError) as error:
            loaded.choices.leave_out(hook.program, error)
            while len(loaded.links) > attached:
                loaded.links.pop().close()
            loaded.drop(hook.program)
            continue
        loaded.choices.choose(hook.program)


def module_for(hook: Hook, families: Iterable[ModuleType] = ()) -> ModuleType:
    """The module that attaches programs of this section. families: third-party ones.

    UnsupportedError: there is none
    """
    types = (*TYPES, *(row for family in families for row in family.SECTIONS))
    row = program_type(hook.section, types)
    if row is None:
        raise UnsupportedError(
            f"program {hook.program!r}",
            f"section {hook.section!r} cannot be attached",
            hint=f"sections begin with: {', '.join(one.section for one in types)}",
        )
    return module_of(row)


def module_of(row: ProgramType) -> ModuleType:
    """The module of a row's family. UnsupportedError: it is not there."""
    name = f"igrun.attach.{row.family}" if row in TYPES else row.family
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise UnsupportedError(f"section {row.section!r}", "this version of igrun cannot attach it") from None
