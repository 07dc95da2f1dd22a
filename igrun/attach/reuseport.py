"""sk_reuseport: programs that choose among the sockets of a port, which gadget.yaml gives: `reuseport.port: tcp/8080`.

The port's sockets belong to other processes; one of them is borrowed for a moment, to attach and again to detach.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from errno import EINVAL, ENOENT, ENOSYS, EPERM
from pathlib import Path
from typing import TYPE_CHECKING

from igrun.attach.common import feature, handle_of
from igrun.attach.dispatch import Dispatcher
from igrun.attach.namespaces import Namespace, inside, of
from igrun.clib import syscall
from igrun.dataclass import dataclass
from igrun.errors import AttachError, KernelError, MetadataError, UnsupportedError

if TYPE_CHECKING:
    from igrun.host import Target
    from igrun.program import Hook

OPTION = "reuseport.port"
ATTACH, DETACH = 52, 68  # SO_ATTACH_REUSEPORT_EBPF, SO_DETACH_REUSEPORT_BPF
LISTEN, UNCONNECTED = 10, 7  # TCP_LISTEN; TCP_CLOSE, which a bound UDP socket is in
PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Place:
    """A port of a namespace."""

    namespace: Namespace
    protocol: str
    port: int

    def __str__(self) -> str:
        return f"port {self.protocol}/{self.port} of network namespace {self.namespace.inode}"


class Group:
    """The sockets of a port, with the program attached."""

    def __init__(self, place: Place, dispatcher: Dispatcher) -> None:
        self._place: Place | None = place
        self._dispatcher = dispatcher

    def close(self) -> None:
        """Detach, if there still are sockets. Again: nothing."""
        place, self._place = self._place, None
        if place is None:
            return
        with suppress(OSError):  # the namespace, or whoever had the sockets, is gone, and the program with them
            for one in borrowed(place):
                with one, suppress(OSError):
                    one.setsockopt(socket.SOL_SOCKET, DETACH, 0)
        self._dispatcher.close()


def places(hook: Hook, target: Target) -> tuple[Place, ...]:
    """The port. AttachError; MetadataError: gadget.yaml does not say which."""
    told = hook.options.get(OPTION, "")
    found = re.fullmatch(r"(tcp|udp)/(\d{1,5})", told.strip().lower())
    if found is None or not 0 < int(found[2]) < 1 << 16:
        problem = f"{told!r} is no port" if told else "it must say between whose sockets the program chooses"
        raise MetadataError(f"programs.{hook.program}.{OPTION}", problem, hint="such as: tcp/8080")
    return (Place(of(target, hook), found[1], int(found[2])),)


def attach(hook: Hook, place: Place) -> Group:
    """Attach the program. AttachError; UnsupportedError: sockets of others cannot be borrowed."""
    refusal: OSError | None = None
    try:
        dispatcher = Dispatcher.load("guard", "ig_reuseport", handle_of(hook))
        try:
            for one in borrowed(place):
                with one:
                    try:
                        # Of any socket it goes to all of the port and address.
                        one.setsockopt(socket.SOL_SOCKET, ATTACH, dispatcher.fd)
                        return Group(place, dispatcher)
                    except OSError as error:
                        refusal = error
        except BaseException:
            dispatcher.close()
            raise
        dispatcher.close()
    except KernelError as error:
        if error.errno == ENOSYS:
            # Before Linux 5.6 (8649c322f75c, "pid: Implement pidfd_getfd syscall").
            lacks = "this kernel does not lend sockets of other processes"
            raise UnsupportedError(feature(hook), lacks, since="5.6") from None
        hint = "CAP_SYS_PTRACE is needed to borrow a socket" if error.errno == EPERM else ""
        number = error.errno or EINVAL
        raise AttachError(number, hook.program, hook.section, str(place), reason=str(error), hint=hint) from None
    if refusal is None:
        reason, hint = "no process has a socket there", "start the server first"
        raise AttachError(ENOENT, hook.program, hook.section, str(place), reason=reason, hint=hint)
    hint = "its sockets must have SO_REUSEPORT" if refusal.errno == EINVAL else ""
    raise AttachError(refusal.errno or EINVAL, hook.program, hook.section, str(place), hint=hint)


def borrowed(place: Place) -> Iterator[socket.socket]:
    """Descriptors of our own for sockets of the port, one of each address. KernelError: they are refused."""
    addresses = inside(place.namespace, lambda: listening(place.protocol, place.port))
    done = set()
    for pid, fd, inode in holders(set(addresses)) if addresses else ():
        if addresses[inode] in done:
            continue
        with suppress(ProcessLookupError):
            process = os.pidfd_open(pid)
            try:
                ours = syscall("pidfd_getfd", process, fd, 0, what=f"borrow a socket of process {pid}")
            finally:
                os.close(process)
            one = socket.socket(fileno=ours)
            if os.fstat(ours).st_ino != inode:
                one.close()
                continue
            done.add(addresses[inode])
            yield one


def listening(protocol: str, port: int) -> dict[int, str]:
    """Inode -> local address of the sockets that wait at a port, in this thread's namespace."""
    found = {}
    for file in (protocol, f"{protocol}6"):
        with suppress(FileNotFoundError):  # no IPv6
            for line in (PROC / "thread-self/net" / file).read_text().splitlines()[1:]:
                words = line.split()
                address, state, inode = words[1], int(words[3], 16), int(words[9])
                waits = state == (LISTEN if protocol == "tcp" else UNCONNECTED)
                if waits and inode and int(address.rpartition(":")[2], 16) == port:
                    found[inode] = address
    return found


def holders(inodes: set[int]) -> Iterator[tuple[int, int, int]]:
    """Process, descriptor and inode of who has one of these sockets."""
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    for process in PROC.iterdir():
        if not process.name.isdigit():
            continue
        with suppress(OSError):  # it has ended, or is closed to us
            for descriptor in (process / "fd").iterdir():
                with suppress(OSError):
                    inode = wanted.get(str(descriptor.readlink()))
                    if inode:
                        yield int(process.name), int(descriptor.name), inode
