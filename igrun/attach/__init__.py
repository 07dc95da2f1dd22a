"""How programs are attached: a module per family of program types, which `igrun.sections` names for each ELF section.

A module has places(hook, target) and attach(hook, place). A place is hashable and says where: two targets that share a
library, an interface, ... give the same place, which is attached once. namespace(hook, target), where a module has it,
is where places come and go as interfaces do. A third-party family is a module with SECTIONS
as well, rows like those of `sections.TYPES` whose family is the module's dotted name.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from igrun.choosing import Here, kind_of
from igrun.errors import KernelError, UnsupportedError
from igrun.sections import TYPES, ProgramType, program_type

if TYPE_CHECKING:
    from igrun.host import Target
    from igrun.load import LoadedProgram
    from igrun.program import Hook

PLACELESS = ("iter", "struct_ops")  # their readers attach them, or the first function of their struct


def attach(hooks: Iterable[Hook], target: Target, loaded: LoadedProgram) -> None:
    """Attach programs to a target, in order; `loaded.detach()` undoes it. Iterators are left to their readers.

    Every place is found before anything is attached: the search opens files, which a gadget might report. Of
    alternatives the first that can be attached is, at the first target that has a place for one; programs that are
    optional, and cannot, are left out. After an error nothing of this target is attached, all of the others is.

    UnsupportedError: nobody knows the section, or this kernel cannot do it; AttachError
    """
    links, before = loaded.links, loaded.links.of(target)
    try:
        attach_at(hooks, target, loaded)
    except BaseException:
        links.release(target, [key for key in links.of(target) if key not in before])
        if loaded.following and not before:
            loaded.following.forget(target)
        raise
    links.refresh()
    loaded.drop_unneeded()


def attach_at(hooks: Iterable[Hook], target: Target, loaded: LoadedProgram) -> None:
    """As `attach`; after an error some of the programs are attached."""
    choices, here, links = loaded.choices, Here(target.name), loaded.links
    found: list[tuple[ModuleType, Hook, tuple[Hashable, ...]]] = []
    for hook in hooks:
        module = module_for(hook, loaded.plan.families)
        if not choices.needed(hook.program):
            continue
        try:
            if loaded.following and hasattr(module, "namespace"):
                loaded.following.follow(module, hook, target)  # first: what comes while we look is seen
            found.append((module, hook, module.places(hook, target)))
        except (KernelError, UnsupportedError) as error:
            choices.leave_out(hook.program, error, here)
    for module, hook, places in found:
        if not choices.needed(hook.program):
            continue
        before = links.of(target)
        try:
            for place in places:
                links.add((hook.program, place), target, partial(module.attach, hook, place))
        except (KernelError, UnsupportedError) as error:
            links.release(target, [key for key in links.of(target) if key not in before])
            choices.leave_out(hook.program, error, here)
            continue
        if places or kind_of(hook) in PLACELESS:
            choices.choose(hook.program, target.name)


def detach(target: Target, loaded: LoadedProgram) -> None:
    """Detach what no other target needs. Again: nothing."""
    if loaded.following:
        loaded.following.forget(target)
    loaded.links.release(target, loaded.links.of(target))


def follow(loaded: LoadedProgram) -> None:
    """See to it that `attach` looks after interfaces that come and go; to be called before the event loop is opened."""
    if any(hasattr(module_for(hook, loaded.plan.families), "namespace") for hook in loaded.hooks):
        from igrun.attach.following import Following

        loaded.following = Following(loaded)
        loaded.plan.readers.append(loaded.following)


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
