"""Programs that take the place of a function in another program (freplace).

The other program must be in the kernel first. So they are loaded from a second look at the same object, which shares
the maps of the first.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from errno import EINVAL, ENOENT, ESRCH
from typing import TYPE_CHECKING

from igrun import bpfcall
from igrun.choosing import EXTENSION, RefusedError, explained, kind_of, set_type
from igrun.dataclass import replace
from igrun.errors import AttachError, GadgetError, KernelError, MetadataError
from igrun.libbpf import BpfObject
from igrun.structops import STRUCT_OPS_MAP, leave_out

if TYPE_CHECKING:
    from igrun.program import Hook, Plan

TARGET = "target"


def extended(
    plan: Plan, object_: BpfObject, hooks: Sequence[Hook], elf: bytes, btf: str | None
) -> tuple[list[Hook], BpfObject | None]:
    """The hooks, where those of extensions have handles in the second object, and that object; None: there are none.

    RefusedError: one of them cannot be loaded
    """
    wanted = {hook.program for hook in hooks if kind_of(hook) == EXTENSION}
    if not wanted:
        return list(hooks), None
    second = BpfObject.open(elf, "gadget", btf)
    with ExitStack() as stack:
        stack.callback(second.close)
        share_maps(second, object_)
        found = [
            replace(hook, handle=second.programs[hook.program]) if hook.program in wanted else hook for hook in hooks
        ]
        ours = [hook for hook in found if hook.program in wanted]
        for name, handle in second.programs.items():
            handle.leave_out(name not in wanted)
        with ExitStack() as targets:
            for hook in ours:
                targets.enter_context(prepared(hook, object_))
            try:
                second.load()
            except KernelError as error:
                raise explained(error, plan, ours) from None
        stack.pop_all()
    return found, second


def share_maps(second: BpfObject, first: BpfObject) -> None:
    """Let the second object have the maps of the first, which are in the kernel."""
    for name, map_ in second.maps.items():
        if map_.type == STRUCT_OPS_MAP:
            leave_out(map_)
        else:
            map_.reuse(first.maps[name].loaded())


@contextmanager
def prepared(hook: Hook, object_: BpfObject) -> Iterator[None]:
    """Say what it replaces; the program that has it is held meanwhile.

    RefusedError: there is no such program or function; MetadataError: nobody says which
    """
    assert hook.handle
    program, function = named(hook, object_)
    set_type(hook.handle)
    fd = -1
    try:
        fd = opened(hook, program, object_)
        hook.handle.set_target(function, fd)
        yield
    except KernelError as error:
        told: GadgetError = error
        if not isinstance(error, AttachError) and error.errno in (ENOENT, ESRCH, EINVAL):
            reason = f"program {program!r} has no function {function!r}, or no BTF that tells of it"
            told = AttachError(ENOENT, hook.program, hook.section, hook.attach_to, reason=reason)
        raise RefusedError(hook.program, told) from None
    finally:
        if fd >= 0:
            os.close(fd)


def named(hook: Hook, object_: BpfObject) -> tuple[str, str]:
    """The program and the function in it: `programs.<name>.target`, or `PROGRAM:FUNCTION`. MetadataError."""
    program, _, function = hook.attach_to.rpartition(":")
    program = str(hook.options.get(TARGET, "")) or program
    if not program and function in object_.programs:
        program = function
    if not program:
        hint = 'name a program of the gadget, or a loaded one by name or id; or write SEC("freplace/PROGRAM:FUNCTION")'
        raise MetadataError(f"programs.{hook.program}.{TARGET}", "no program whose function it replaces", hint=hint)
    return program, function


def opened(hook: Hook, program: str, object_: BpfObject) -> int:
    """A descriptor of the program to change, for the caller to close. KernelError: there is none."""
    if program in object_.programs:
        if not object_.programs[program].loaded:
            reason = f"program {program!r} of this gadget is not loaded"
            raise AttachError(ENOENT, hook.program, hook.section, hook.attach_to, reason=reason)
        return os.dup(object_.programs[program].fd)
    if program.isdecimal():
        return bpfcall.program_of_id(int(program))
    for number in bpfcall.program_ids():
        try:
            fd = bpfcall.program_of_id(number)
        except KernelError:
            continue  # gone meanwhile
        # The kernel keeps 15 characters of a name.
        if bpfcall.program_name(fd) == program[:15]:
            return fd
        os.close(fd)
    reason = f"no program {program!r} is loaded"
    raise AttachError(ENOENT, hook.program, hook.section, hook.attach_to, reason=reason)
