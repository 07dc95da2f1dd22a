"""Structs of functions that the kernel calls (struct_ops): the maps that hold them are attached, not the programs."""

from __future__ import annotations

from errno import EBUSY, EEXIST, EINVAL, ENOENT
from typing import TYPE_CHECKING

from igrun.attach.common import handle_of
from igrun.bpfcall import link_create
from igrun.bpflib import library
from igrun.errors import AttachError, KernelError
from igrun.libbpf import BpfLink, ObjectMap
from igrun.sections import program_type
from igrun.structops import F_LINK, STRUCT_OPS_MAP

if TYPE_CHECKING:
    from igrun.host import Target
    from igrun.program import Hook

STRUCT_OPS = 44  # BPF_STRUCT_OPS


def places(hook: Hook, target: Target) -> tuple[str, ...]:
    """The names of the object's structs, for the first of its programs that is loaded; for the others none."""
    object_ = handle_of(hook).object
    first = next(
        (one.name for one in object_.programs.values() if one.loaded and family(one.section) == "struct_ops"), ""
    )
    if hook.program != first:
        return ()
    return tuple(one.name for one in object_.maps.values() if one.type == STRUCT_OPS_MAP)


def attach(hook: Hook, place: str) -> BpfLink:
    """Give the struct of that name to the kernel. AttachError."""
    map_ = handle_of(hook).object.maps[place]
    try:
        return registered(map_)
    except KernelError as error:
        reason, hint = "", ""
        if error.errno in (EEXIST, EBUSY):
            reason = "the kernel has one of that name already"
            hint = "another gadget gave it, or one that was killed; see `bpftool struct_ops`"
        elif error.errno in (EINVAL, ENOENT):
            reason = "the kernel does not take it: a function that must be there is missing, or a name is wrong"
        number = error.errno or EINVAL
        raise AttachError(number, hook.program, hook.section, place, reason=reason, hint=hint) from None


def registered(map_: ObjectMap) -> BpfLink:
    """A link, or what is one for kernels without such: the struct is in use until close(). KernelError."""
    lib = library()
    link = map_.register()
    if not map_.flags & F_LINK:
        return BpfLink(-1, lambda: lib.bpf_link__destroy(link))
    if lib.bpf_link__fd(link) != map_.loaded().fd:
        return BpfLink.of(link)
    # libbpf before 1.2 does not know links of structs: it has filled the map, and that is all.
    lib.bpf_link__disconnect(link)
    lib.bpf_link__destroy(link)
    return BpfLink.of_fd(link_create(map_.loaded().fd, 0, STRUCT_OPS, what=f"attach {map_.name!r}"))


def family(section: str) -> str:
    """The family of its type, "" if nobody knows it."""
    row = program_type(section)
    return row.family if row else ""
