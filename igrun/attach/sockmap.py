"""Programs of maps that hold sockets: sk_skb, which parses and redirects streams, and sk_msg, which sees what is sent.

The map is the one that GADGET_SK_TARGET_MAP names, or `programs.<name>.attach_to` in gadget.yaml, or the object's only
one of that kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from errno import EBUSY, EINVAL, EOPNOTSUPP, EPERM
from typing import TYPE_CHECKING

from igrun.attach.common import feature, handle_of, linked, named, nearest
from igrun.bpfcall import prog_attach, prog_detach, prog_query
from igrun.errors import AttachError, KernelError, MetadataError, UnsupportedError
from igrun.objects import SOCKHASH, SOCKMAP
from igrun.sections import program_type

if TYPE_CHECKING:
    from igrun.host import Target
    from igrun.libbpf import BpfLink
    from igrun.program import Hook

STREAM_VERDICT, VERDICT = 5, 38  # BPF_SK_SKB_*


class Attached:
    """A program on a map, without a link. The kernel detaches it too when nobody has the map open: after SIGKILL."""

    def __init__(self, program_fd: int, map_fd: int, kind: int) -> None:
        self._arguments: tuple[int, int, int] | None = program_fd, map_fd, kind

    def close(self) -> None:
        """Detach. Again: nothing."""
        arguments, self._arguments = self._arguments, None
        if arguments is not None:
            with suppress(KernelError):  # somebody has put another program in its place
                prog_detach(*arguments)


def places(hook: Hook, target: Target) -> tuple[str, ...]:
    """The name of the map. MetadataError: nothing says which, or it holds no sockets."""
    return (map_of(hook, {one.name: one.type for one in handle_of(hook).object.maps.values()}),)


def map_of(hook: Hook, maps: Mapping[str, int]) -> str:
    """As `places`. maps: name -> BPF_MAP_TYPE_*, of all that the object has."""
    of_sockets = [name for name, kind in maps.items() if kind in (SOCKMAP, SOCKHASH)]
    said = hook.attach_to if hook.attach_to != hook.section.partition("/")[2] else ""
    path = f"programs.{hook.program}.attach_to"
    if name := said or hook.target_map or "":
        if name not in of_sockets:
            problem = f"map {name!r} holds no sockets" if name in maps else f"there is no map {name!r}"
            hint = nearest(name, of_sockets) or "it must be of type SOCKMAP or SOCKHASH"
            raise MetadataError(path, problem, hint=hint)
        return name
    if len(of_sockets) != 1:
        problem = f"nothing says which of {', '.join(of_sockets)} it is for" if of_sockets else "no map holds sockets"
        hint = f"GADGET_SK_TARGET_MAP({hook.program}, <map>), with a map of type SOCKMAP or SOCKHASH"
        raise MetadataError(path, f"program {hook.program!r} ({hook.section}): {problem}", hint=hint)
    return of_sockets[0]


def attach(hook: Hook, place: str) -> BpfLink | Attached:
    """Attach the program to the map. AttachError; UnsupportedError: the kernel does not know it."""
    program = handle_of(hook)
    map_ = program.object.maps[place].loaded()
    row = program_type(hook.section)
    kind = STREAM_VERDICT if row is None or row.attach is None else row.attach
    refuse_if_taken(hook, place, map_.fd, kind)
    try:
        return linked(hook, map_.fd, kind)
    except KernelError as error:
        # Before Linux 6.10 (699c23f02c65, "bpf: Add bpf_link support for sk_msg and sk_skb progs").
        if error.errno != EINVAL:
            raise refused(error, hook, place, kind) from None
    try:
        prog_attach(program.fd, map_.fd, kind, what=f"attach {hook.program!r}")
    except KernelError as error:
        raise refused(error, hook, place, kind) from None
    return Attached(program.fd, map_.fd, kind)


def refuse_if_taken(hook: Hook, place: str, map_fd: int, kind: int) -> None:
    """AttachError: the map has such a program already, which would be replaced without a word."""
    try:
        taken = prog_query(map_fd, kind)
    except KernelError:
        # Before Linux 5.17 (748cd5729ac7, "bpf: support BPF_PROG_QUERY for progs attached to sockmap").
        return
    if taken:
        reason, hint = f"the map has {named(taken)} already", "a map has one program of each type"
        raise AttachError(EBUSY, hook.program, hook.section, place, reason=reason, hint=hint)


def refused(error: KernelError, hook: Hook, place: str, kind: int) -> AttachError | UnsupportedError:
    """The kernel's refusal, with what can be done."""
    number = error.errno or EINVAL
    if number in (EINVAL, EOPNOTSUPP):
        # a7ba4558e69a, "sock_map: Introduce BPF_SK_SKB_VERDICT"
        since = "5.13" if kind == VERDICT else ""
        return UnsupportedError(feature(hook), "this kernel attaches no such program to maps", since=since)
    hint = {
        EPERM: "CAP_NET_ADMIN is needed",
        EBUSY: "stream_verdict and verdict exclude each other on one map",
    }.get(number, "")
    return AttachError(number, hook.program, hook.section, place, hint=hint)
