"""Iterators: programs that walk objects of the kernel, and print, each time that their reader asks."""

from __future__ import annotations

import os
from contextlib import ExitStack
from errno import E2BIG, EINVAL
from pathlib import Path
from struct import pack
from typing import TYPE_CHECKING

from igrun.attach.common import feature, linked, number_of, refused
from igrun.bpfcall import NOTHING, Extra, iter_info
from igrun.errors import AttachError, KernelError, MetadataError, UnsupportedError
from igrun.mounts import magic

if TYPE_CHECKING:
    from igrun.libbpf import BpfLink
    from igrun.program import Hook

TRACE_ITER = 28  # BPF_TRACE_ITER
# Kinds that walk one map, which GADGET_ITER_TARGET_MAP names
OF_MAP = ("bpf_map_elem", "bpf_sk_storage_map", "sockmap")
# Kinds that walk the tasks of one process, or one task, if gadget.yaml says so
OF_TASK = ("task", "task_file", "task_vma")
# Kinds that walk what is in the network namespace of who asks
OF_NAMESPACE = ("tcp", "udp", "unix", "netlink", "ipv6_route")
PID, TID, CGROUP, ORDER = "iter.pid", "iter.tid", "iter.cgroup", "iter.order"
HIERARCHIES = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))
CGROUP2 = 0x63677270  # CGROUP2_SUPER_MAGIC
# enum bpf_cgroup_iter_order
ORDERS = {"self": 1, "descendants": 2, "descendants_post": 3, "ancestors": 4, "children": 5}


def iterate(hook: Hook, map_fd: int | None = None) -> BpfLink:
    """A link, from which each run is made. map_fd: of the map that it walks.

    MetadataError; AttachError: there is no such cgroup or process; UnsupportedError
    """
    kind = hook.attach_to
    with ExitStack() as stack:
        extra = NOTHING
        if kind in OF_MAP:
            if map_fd is None:
                reason, hint = "no map to walk", f"add GADGET_ITER_TARGET_MAP({hook.program}, MAP);"
                raise AttachError(EINVAL, hook.program, hook.section, kind, reason=reason, hint=hint)
            extra = iter_info(pack("=I", map_fd))
        elif kind in OF_TASK:
            extra = of_task(hook)
        elif kind == "cgroup":
            extra = of_cgroup(hook, stack)
        try:
            return linked(hook, 0, TRACE_ITER, extra)
        except KernelError as error:
            raise refused(error, hook) from None


def of_task(hook: Hook) -> Extra:
    """The tasks that gadget.yaml asks for: all, those of process `iter.pid`, or `iter.tid` alone."""
    pid, tid = number_of(hook, PID), number_of(hook, TID)
    if not pid and not tid:
        return NOTHING
    if pid and tid:
        raise MetadataError(f"programs.{hook.program}.{TID}", f"there is {PID} as well")
    try:
        # An older kernel refuses a pid, which stands where it wants zeros, but takes a tid for nothing.
        linked(hook, 0, TRACE_ITER, iter_info(pack("=III", 0, os.getpid(), 0))).close()
    except KernelError as error:
        if error.errno not in (E2BIG, EINVAL):
            raise refused(error, hook) from None
        raise UnsupportedError(feature(hook), "this kernel can only walk all tasks", since="6.1") from None
    return iter_info(pack("=III", tid, pid, 0))


def of_cgroup(hook: Hook, stack: ExitStack) -> Extra:
    """Where in the cgroup v2 hierarchy it begins (its root), and the order (the cgroup, then those below it)."""
    text = str(hook.options.get(ORDER, "") or "descendants")
    if text not in ORDERS:
        raise MetadataError(
            f"programs.{hook.program}.{ORDER}", f"unknown order {text!r}", hint=f"there are: {', '.join(ORDERS)}"
        )
    fd = 0
    if path := str(hook.options.get(CGROUP, "")):
        places = (Path(path), *(root / path.lstrip("/") for root in HIERARCHIES))
        whole = next((place for place in places if magic(place) == CGROUP2), places[0])
        try:
            fd = os.open(whole, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            reason = f"there is no cgroup {path!r}"
            raise AttachError(error.errno or EINVAL, hook.program, hook.section, "cgroup", reason=reason) from None
        stack.callback(os.close, fd)
    return iter_info(pack("=IIQ", ORDERS[text], fd, 0))
