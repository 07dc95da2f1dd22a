"""tc: programs at what comes into and goes out of interfaces, by tcx, netkit, or filters of the clsact qdisc."""

from __future__ import annotations

import os
from errno import E2BIG, EACCES, EBUSY, EINVAL, ENOENT, EOPNOTSUPP, EPERM
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from igrun.attach import clsact
from igrun.attach.common import Links, feature, handle_of
from igrun.attach.dispatch import Dispatcher
from igrun.attach.interfaces import Place, namespace, of_target
from igrun.attach.namespaces import inside
from igrun.bpfcall import ENOTSUPP, F_BEFORE, beside, link_create, prog_load
from igrun.errors import AttachError, KernelError, MetadataError, UnsupportedError
from igrun.libbpf import BpfLink
from igrun.netlink import bpf_action

if TYPE_CHECKING:
    from igrun.host import Target
    from igrun.load import Closable
    from igrun.program import Hook

__all__ = ["attach", "namespace", "places"]
# enum bpf_attach_type
TCX = {"ingress": 46, "egress": 47}
NETKIT = {"primary": 54, "peer": 55}
DIRECTION, HOW = "direction", "tc.attach"
WAYS = ("clsact", "tcx")
SCHED_CLS, SCHED_ACT = 3, 4
RETURN_MINUS_1 = bytes.fromhex("b7000000ffffffff 9500000000000000")
UNKNOWN = (EINVAL, E2BIG, EOPNOTSUPP, ENOTSUPP)


def places(hook: Hook, target: Target) -> tuple[Place, ...]:
    """The interfaces, with a direction as seen from each. AttachError; MetadataError: an option is wrong."""
    direction = direction_of(hook)
    found = of_target(hook, target, direction)
    if direction not in NETKIT:
        return found
    pairs = tuple(one for one in found if one.kind == "netkit")
    if target.interface and not pairs:
        reason = f"it is of the kind {found[0].kind!r}" if found[0].kind else "it is of hardware"
        raise AttachError(EINVAL, hook.program, hook.section, target.interface, reason=f"no netkit interface: {reason}")
    return pairs


def direction_of(hook: Hook) -> str:
    """What the section says, or gadget.yaml under `programs.<name>.direction`. AttachError, MetadataError."""
    known = NETKIT if hook.section.removeprefix("?").startswith("netkit") else TCX
    words = " or ".join(known)
    told = hook.options.get(DIRECTION, "")
    if told and told not in known:
        raise MetadataError(f"programs.{hook.program}.{DIRECTION}", f"{told!r} is not {words}")
    direction = told or hook.attach_to.partition("/")[0]
    if direction not in known:
        hint = f"name the section classifier/{words.replace(' or ', '/... or classifier/')}/..."
        if known is NETKIT:
            hint = "name the section netkit/primary or netkit/peer"
        reason = f"the section does not say {words}"
        raise AttachError(EINVAL, hook.program, hook.section, hook.attach_to, reason=reason, hint=hint)
    return direction


def attach(hook: Hook, place: Place) -> Closable:
    """Attach the program. AttachError; UnsupportedError: netkit where the kernel has none."""
    how = hook.options.get(HOW, "")
    if how and how not in WAYS:
        raise MetadataError(f"programs.{hook.program}.{HOW}", f"{how!r} is not {' or '.join(WAYS)}")
    program = handle_of(hook)
    try:
        if program.type == SCHED_ACT:
            return acting(hook, place)
        dispatcher = Dispatcher.load("tc", "ig_tc", program, netns=place.netns)
        try:
            return Links((dispatcher, inside(place.namespace, lambda: linked(hook, place, dispatcher.fd, how))))
        except BaseException:
            dispatcher.close()
            raise
    except KernelError as error:
        if isinstance(error, AttachError):
            raise
        number = error.errno or EINVAL
        hint = {
            EPERM: "CAP_NET_ADMIN (and CAP_SYS_ADMIN, in another network namespace) is needed",
            EACCES: "only the primary end of a netkit pair takes programs",
            EBUSY: "it is held by another program",
        }.get(number, "")
        name = f"{place.name} {place.direction}"
        raise AttachError(number, hook.program, hook.section, name, reason=str(error), hint=hint) from None


def linked(hook: Hook, place: Place, program: int, how: str) -> Closable:
    """A program on an interface of this thread's namespace. KernelError, UnsupportedError."""
    if place.direction in NETKIT:
        try:
            return BpfLink.of_fd(link_create(program, place.index, NETKIT[place.direction], what="attach to netkit"))
        except KernelError as error:
            if error.errno not in UNKNOWN:
                raise
            raise UnsupportedError(feature(hook), "this kernel has no netkit", since="6.7") from None
    # Before Linux 6.6 (e420bed02507, "bpf: Add fd-based tcx multi-prog infra with link support") there are filters
    # only. A link ends with its owner, and every program of an interface finds its place beside the others. In front
    # of them, as a filter is: those who come first may keep packets from the others.
    if how != "clsact" and has_tcx():
        what = "attach by tcx"
        extra = beside()
        return BpfLink.of_fd(link_create(program, place.index, TCX[place.direction], extra, flags=F_BEFORE, what=what))
    if how == "tcx":
        raise UnsupportedError(feature(hook), "this kernel has no tcx", since="6.6")
    return clsact.filtered(place, program)


class Match(NamedTuple):
    """A classifier that takes every packet, as far as a dispatcher must know it."""

    fd: int
    type: int = SCHED_CLS
    attach_type: int = 0


def acting(hook: Hook, place: Place) -> Closable:
    """An action that every packet gets. KernelError; UnsupportedError: the kernel has no such actions."""
    links = Links()
    try:
        # Both have a dispatcher: the filter's tells whether anybody still owns it.
        match = prog_load(SCHED_CLS, code=RETURN_MINUS_1, what="load a classifier")
        try:
            first = Dispatcher.load("tc", "ig_tc", Match(match))
        finally:
            os.close(match)
        links.add(first)
        second = Dispatcher.load("tc", "ig_tc", handle_of(hook), netns=place.netns)
        links.add(second)
        action = bpf_action(second.fd, clsact.OURS)
        links.add(inside(place.namespace, lambda: clsact.filtered(place, first.fd, action)))
    except BaseException as error:
        links.close()
        if isinstance(error, KernelError) and error.errno in (ENOENT, EOPNOTSUPP):
            lacks = "this kernel has no tc actions that are BPF programs (CONFIG_NET_ACT_BPF)"
            raise UnsupportedError(feature(hook), lacks) from None
        raise
    return links


@cache
def has_tcx() -> bool:
    """Ask the kernel."""
    program = prog_load(SCHED_CLS, what="load a probe")
    try:
        # No interface has this number: only a kernel that knows the type looks for it.
        os.close(link_create(program, 0x7FFFFFFF, TCX["ingress"]))
    except KernelError as error:
        return error.errno not in UNKNOWN
    finally:
        os.close(program)
    return True
