"""Will an image run on this machine? Everything that it needs, as rows: works, missing, fails or not predicted.

`works` is what was tried or seen. The kernel is asked with minimal programs and maps where this process may do that;
else its BTF, kallsyms and configuration are read, which tell what is missing, but seldom that something works. Whether
the verifier takes a program is never known before.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from igrun.btf import Btf
from igrun.checking import config, machine, programs
from igrun.checking.kernel import Kernel
from igrun.checking.table import Report, Row
from igrun.checking.targets import Where
from igrun.checking.uses import Uses
from igrun.choosing import ANY_OF, OPTIONAL, wanted
from igrun.dataclass import replace
from igrun.host import HOST_TARGET
from igrun.program import INTERFACE, Plan

if TYPE_CHECKING:
    from igrun.kernel_btf import KernelBtf
    from igrun.program import Hook, Program

__all__ = ["check"]


def check(
    program: Program,
    kernel: Kernel,
    *,
    values: Mapping[str, str],
    btfs: bytes | None = None,
    ring_bytes: int = 0,
    families: tuple[ModuleType, ...] = (),
    more: Iterable[Row] = (),
) -> Report:
    """Compare what a program needs with what there is.

    kernel:     the running one, or another one
    values:     of params
    btfs:       the image's BTFGen layer
    ring_bytes: ring buffers have at least so many
    families:   third-party modules that attach sections of their own
    more:       rows about the image

    ParamError: a value is wrong; ImageError: the program is broken
    """
    host = kernel.host
    with ExitStack() as stack:
        plan = Plan(program, host, program.sources, stack, values, families=families)
        hooks = wanted(plan)
        constants = program.constants(values)
        found_btf = None if kernel.other else machine.searched(program, host, btfs, values, stack)
        uses = Uses(program, for_core(kernel, found_btf), constants)
        found = programs.looked_at(hooks, kernel, uses, program.license, families)
        where = Where(replace(HOST_TARGET, interface=values.get(INTERFACE.key, "")), program.maps)
        sizes = machine.entries(program, constants, ring_bytes)
        maps = list(machine.maps(program, sizes, kernel))
        relocated = uses.code.relocated()
        rows = [
            *more,
            *programs.types(found, kernel),
            *programs.targets(found, kernel, where, families),
            *maps,
            *programs.helpers(found, kernel, uses, perf_buffers=machine.uses_perf_buffers(maps)),
            *programs.kfuncs(found, kernel, uses),
            *programs.externs(uses, kernel),
            *machine.btf(kernel, found_btf, program, [hook.program for hook in hooks if hook.program in relocated]),
            *config.rows(kernel.config, hooks),
            *machine.lsm(kernel, hooks),
            *machine.capabilities(host, uses.requirements, kernel, is_root=os.geteuid() == 0),
            machine.lockdown(kernel, found),
            *machine.memory_rows(program, sizes, kernel, maps),
            programs.verifier(hooks),
        ]
    left_out, refusals = concluded(rows, hooks)
    return Report(kernel.name, tuple(rows), left_out, refusals)


def for_core(kernel: Kernel, found: KernelBtf | None) -> Btf | None:
    """The BTF that CO-RE is resolved against."""
    if found is None or found.path is None:
        return kernel.btf
    return Btf.parse(Path(found.path).read_bytes())


def concluded(rows: Iterable[Row], hooks: Iterable[Hook]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Programs that are left out, with the reason; and why it does not run."""
    hooks = list(hooks)
    refusals = [told(row) for row in rows if row.stops and not row.programs]
    stopped: dict[str, str] = {}
    for row in rows:
        for program in row.programs if row.stops else ():
            stopped.setdefault(program, told(row))
    groups: dict[str, list[Hook]] = {}
    for hook in hooks:
        if group := str(hook.options.get(ANY_OF, "")):
            groups.setdefault(group, []).append(hook)
    for hook in hooks:
        free = is_optional(hook) or ANY_OF in hook.options
        if hook.program in stopped and not free:
            refusals.append(f"program {hook.program!r}: {stopped[hook.program]}")
    for group, members in groups.items():
        if all(one.program in stopped for one in members) and not any(map(is_optional, members)):
            why = "; ".join(f"{one.program}: {stopped[one.program]}" for one in members)
            refusals.append(f"none of the alternatives {group!r} works: {why}")
    return stopped, tuple(dict.fromkeys(refusals))


def is_optional(hook: Hook) -> bool:
    """Whether a run does without it."""
    return str(hook.options.get(OPTIONAL, "")).lower() == "true"


def told(row: Row) -> str:
    """A row in a line."""
    return f"{row.kind} {row.name}: {row.why}"
