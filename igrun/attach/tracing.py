"""Tracepoints, fentry and its like, LSM hooks and iterators: programs that watch the whole machine."""

from __future__ import annotations

from errno import EACCES, EINVAL, ENOENT, EPERM
from typing import TYPE_CHECKING

from igrun import mounts
from igrun.attach.common import (
    cookie_of,
    handle_of,
    linked,
    nearest,
    on_perf_event,
    refuse_without_bpf_lsm,
    refused,
)
from igrun.bpfcall import raw_tracepoint as raw_tracepoint_link
from igrun.bpfcall import tracing as tracing_
from igrun.choosing import kind_of
from igrun.clib import PERF_TYPE_TRACEPOINT, perf_event_open
from igrun.errors import AttachError, KernelError, UnsupportedError
from igrun.libbpf import BpfLink

if TYPE_CHECKING:
    from igrun.host import Target
    from igrun.program import Hook

Place = tuple[str, int]
"""What the program is attached to, and the tracepoint's id (-1: it is none)."""
RAW = ("raw_tracepoint", "raw_tp", "raw_tracepoint.w", "raw_tp.w")


def places(hook: Hook, target: Target) -> tuple[Place, ...]:
    """One; none for an iterator, whose reader attaches it. AttachError: there is no such tracepoint."""
    kind = kind_of(hook)
    if kind == "iter":
        return ()
    if kind in ("tracepoint", "tp"):
        return ((hook.attach_to, tracepoint_id(hook)),)
    return ((hook.attach_to, -1),)


def attach(hook: Hook, place: Place) -> BpfLink:
    """Attach the program. UnsupportedError: the kernel has no such thing; AttachError."""
    kind = kind_of(hook)
    name, number = place
    if kind in ("tracepoint", "tp"):
        # A BPF program on a tracepoint runs on every CPU, whichever the event was opened for.
        return on_perf_event(hook, lambda: perf_event_open(0, type=PERF_TYPE_TRACEPOINT, config=number, sample=1))
    if kind == "lsm":
        refuse_without_bpf_lsm(hook)
    if kind in RAW:
        return raw_tracepoint(hook, name)
    return traced(hook)


def traced(hook: Hook) -> BpfLink:
    """At what the program was loaded for."""
    handle, cookie = handle_of(hook), cookie_of(hook)
    try:
        return linked(hook, 0, handle.attach_type, tracing_(0, cookie)) if cookie else handle.attach_trace()
    except KernelError as error:
        raise refused(error, hook, since="5.19") from None


# ------------------------------------------------------------------------------------------------ one by one


def tracepoint_id(hook: Hook) -> int:
    """Of `group/event`. It is read here, not by libbpf, which knows tracefs only where it is mounted."""
    name = hook.attach_to
    group, slash, event = name.partition("/")
    if not slash or not event:
        raise AttachError(EINVAL, hook.program, hook.section, name, reason="it is not of the form group/name")
    with mounts.tracefs() as directory:
        try:
            return int(mounts.read(directory, f"events/{group}/{event}/id"))
        except OSError as error:
            if error.errno not in (ENOENT, EACCES, EPERM):
                raise
            reason = "there is no such tracepoint" if error.errno == ENOENT else ""
            hint = nearest(name, tracepoints(directory, group)) if reason else "tracefs is closed to this process"
            raise AttachError(error.errno, hook.program, hook.section, name, reason=reason, hint=hint) from None


def tracepoints(directory: int, group: str = "") -> list[str]:
    """`group/name` of the group's tracepoints, or of all of them where no group is given or there is none such."""
    groups = mounts.listing(directory, "events")
    found = []
    for one in [group] if group in groups else groups:
        try:
            found += [f"{one}/{event}" for event in mounts.listing(directory, f"events/{one}")]
        except NotADirectoryError:
            continue
    return found


def raw_tracepoint(hook: Hook, name: str) -> BpfLink:
    try:
        what = f"attach {hook.program!r}"
        return BpfLink.of_fd(raw_tracepoint_link(handle_of(hook).fd, name, cookie_of(hook), what=what))
    except KernelError as error:
        if error.errno != ENOENT:
            raise refused(error, hook, since="6.10") from None
        try:
            with mounts.tracefs() as directory:
                hint = nearest(name, [one.partition("/")[2] for one in tracepoints(directory)])
        except (OSError, UnsupportedError):
            hint = ""
        reason = "there is no such tracepoint"
        raise AttachError(ENOENT, hook.program, hook.section, name, reason=reason, hint=hint) from None
