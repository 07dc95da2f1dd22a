"""Programs of maps that hold sockets: sk_skb, which parses and redirects streams, and sk_msg, which sees what is sent.

The map is the one that GADGET_SK_TARGET_MAP names, or the object's only one of that kind.
"""

from __future__ import annotations

from contextlib import suppress
from errno import EBUSY, EINVAL, EOPNOTSUPP, EPERM
from typing import TYPE_CHECKING

from igrun.attach.common import feature, handle_of
from igrun.bpfcall import prog_attach, prog_detach
from igrun.errors import AttachError, KernelError, MetadataError, UnsupportedError
from igrun.objects import SOCKHASH, SOCKMAP
from igrun.sections import program_type

if TYPE_CHECKING:
    from igrun.host import Target
    from igrun.program import Hook

STREAM_VERDICT = 5  # BPF_SK_SKB_*


class Attached:
    """A program on a map. The map is the gadget's own, so that it goes with it, also after SIGKILL."""

    def __init__(self, program_fd: int, map_fd: int, kind: int) -> None:
        self._arguments: tuple[int, int, int] | None = program_fd, map_fd, kind

    def close(self) -> None:
        """Detach. Again: nothing."""
        arguments, self._arguments = self._arguments, None
        if arguments is not None:
            with suppress(KernelError):
                prog_detach(*arguments)


def places(hook: Hook, target: Target) -> tuple[str, ...]:
    """The name of the map. MetadataError: nothing says which, or it holds no sockets."""
    maps = {one.name: one.type for one in handle_of(hook).object.maps.values()}
    of_sockets = [name for name, kind in maps.items() if kind in (SOCKMAP, SOCKHASH)]
    where = f"programs.{hook.program}"
    if hook.target_map:
        if hook.target_map not in of_sockets:
            raise MetadataError(where, f"map {hook.target_map!r} holds no sockets", hint="use SOCKMAP or SOCKHASH")
        return (hook.target_map,)
    if len(of_sockets) != 1:
        problem = f"nothing says which of {', '.join(of_sockets)} it is for" if of_sockets else "no map holds sockets"
        hint = f"GADGET_SK_TARGET_MAP({hook.program}, <map>), with a map of type SOCKMAP or SOCKHASH"
        raise MetadataError(where, f"program {hook.program!r} ({hook.section}): {problem}", hint=hint)
    return (of_sockets[0],)


def attach(hook: Hook, place: str) -> Attached:
    """Attach the program to the map. AttachError; UnsupportedError: the kernel does not know it."""
    program = handle_of(hook)
    map_ = program.object.maps[place].loaded()
    row = program_type(hook.section)
    kind = STREAM_VERDICT if row is None or row.attach is None else row.attach
    try:
        prog_attach(program.fd, map_.fd, kind, what=f"attach {hook.program!r}")
    except KernelError as error:
        number = error.errno or EINVAL
        if number in (EINVAL, EOPNOTSUPP):
            # 5.13 for sk_skb/verdict (a7ba4558e69a, "sock_map: Introduce BPF_SK_SKB_VERDICT")
            since = "5.13" if hook.section == "sk_skb/verdict" else ""
            raise UnsupportedError(feature(hook), "this kernel attaches no such program to maps", since=since) from None
        hint = {
            EPERM: "CAP_NET_ADMIN is needed",
            EBUSY: "stream_verdict and verdict exclude each other on one map",
        }.get(number, "")
        raise AttachError(number, hook.program, hook.section, place, hint=hint) from None
    return Attached(program.fd, map_.fd, kind)
