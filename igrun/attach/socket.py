"""Socket filters: a raw packet socket in each network namespace, which sees all of its packets."""

from __future__ import annotations

import socket
from ctypes import get_errno
from struct import pack
from typing import TYPE_CHECKING

from igrun.attach.common import handle_of
from igrun.attach.dispatch import Dispatcher
from igrun.attach.namespaces import Namespace, inside, of
from igrun.clib import libc
from igrun.errors import AttachError, KernelError

if TYPE_CHECKING:
    from igrun.host import Target
    from igrun.program import Hook

SO_ATTACH_BPF = 50
ETH_P_ALL = 0x0003


class Tap:
    """A raw socket with its filter."""

    def __init__(self, raw: socket.socket, dispatcher: Dispatcher) -> None:
        self._raw, self._dispatcher = raw, dispatcher

    def close(self) -> None:
        """Close both. Again: nothing."""
        self._raw.close()
        self._dispatcher.close()


def places(hook: Hook, target: Target) -> tuple[Namespace, ...]:
    """The target's network namespace."""
    return (of(target, hook),)


def attach(hook: Hook, place: Namespace) -> Tap:
    """Attach the program. AttachError."""
    try:
        dispatcher = Dispatcher.load("socket", "ig_socket", handle_of(hook), netns=place.inode)
        try:
            return Tap(inside(place, lambda: opened(dispatcher.fd)), dispatcher)
        except BaseException:
            dispatcher.close()
            raise
    except OSError as error:
        number = error.errno or 0
        reason = str(error) if isinstance(error, KernelError) else f"a raw socket: {error.strerror}"
        hint = "CAP_NET_RAW is needed for a raw socket" if isinstance(error, PermissionError) else ""
        target = f"network namespace {place.inode}"
        raise AttachError(number, hook.program, hook.section, target, reason=reason, hint=hint) from None


def opened(program: int) -> socket.socket:
    """A raw socket for every packet in this thread's namespace, with the filter. OSError."""
    kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    raw = socket.socket(socket.AF_PACKET, kind, 0)
    try:
        # The filter comes first: without it packets would be kept that nobody reads.
        raw.setsockopt(socket.SOL_SOCKET, SO_ATTACH_BPF, program)
        bind_to_all(raw)
    except BaseException:
        raw.close()
        raise
    return raw


def bind_to_all(raw: socket.socket) -> None:
    """Let a packet socket see every interface and protocol. Python's bind() wants the name of an interface."""
    address = pack("=HHi12x", socket.AF_PACKET, socket.htons(ETH_P_ALL), 0)  # struct sockaddr_ll
    if libc().bind(raw.fileno(), address, len(address)) < 0:
        raise KernelError(get_errno(), "bind a raw socket")
