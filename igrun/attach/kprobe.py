"""kprobes: programs at functions of the kernel, by name."""

from __future__ import annotations

import os
from errno import EINVAL, ENOENT
from pathlib import Path
from typing import TYPE_CHECKING

from igrun.attach.common import feature, handle_of, nearest, refused
from igrun.errors import AttachError, KernelError, UnsupportedError

if TYPE_CHECKING:
    from igrun.host import Target
    from igrun.libbpf import BpfLink
    from igrun.program import Hook

KPROBE_PMU = Path("/sys/bus/event_source/devices/kprobe")
KALLSYMS = Path("/proc/kallsyms")
SYSCALL_PREFIX = {"x86_64": "__x64_", "aarch64": "__arm64_"}


def places(hook: Hook, target: Target) -> tuple[str, ...]:
    """One."""
    return (hook.attach_to,)


def attach(hook: Hook, place: str) -> BpfLink:
    """Attach the program. UnsupportedError: the kernel has no such thing; AttachError."""
    kind = hook.section.partition("/")[0]
    if kind not in ("kprobe", "kretprobe"):
        raise UnsupportedError(feature(hook), "this version of igrun cannot attach it")
    return kprobe(hook, place, at_return=kind == "kretprobe")


def kprobe(hook: Hook, name: str, *, at_return: bool) -> BpfLink:
    """`function` or `function+offset`; `sys_x` also finds what the architecture calls it (`__x64_sys_x`)."""
    function, plus, text = name.partition("+")
    try:
        offset = int(text, 0) if plus else 0
    except ValueError:
        raise AttachError(EINVAL, hook.program, hook.section, name, reason=f"{text!r} is no offset") from None
    if not KPROBE_PMU.exists():
        # Before Linux 4.17 (e12f03d7031a, "perf/core: Implement the 'perf_kprobe' PMU") there were other ways to
        # attach one; everything that can run igrun is newer.
        raise UnsupportedError(feature(hook), "this kernel was built without kprobes (CONFIG_KPROBES)")
    names = [function]
    if function.startswith("sys_"):
        names.append(SYSCALL_PREFIX.get(os.uname().machine, "__") + function)
    failure: KernelError | None = None
    for one in names:
        try:
            return handle_of(hook).attach_kprobe(one, offset, at_return=at_return)
        except KernelError as error:
            failure = error
            if error.errno not in (ENOENT, EINVAL):
                break
    assert failure is not None
    if failure.errno not in (ENOENT, EINVAL):
        raise refused(failure, hook) from None
    symbols = functions(function)
    if function in symbols:
        reason, hint = "the function is there, but may not be probed at this place", "see kprobes/blacklist in debugfs"
    else:
        reason, hint = "this kernel has no such function", nearest(function, symbols)
        hint = hint or "it may be inlined, or of another kernel version"
    raise AttachError(failure.errno or EINVAL, hook.program, hook.section, name, reason=reason, hint=hint) from None


def functions(like: str) -> list[str]:
    """The kernel's function names that begin as `like` does: comparing with all 100,000 takes seconds."""
    found = []
    with KALLSYMS.open() as file:
        for line in file:
            kind, name = line.split(None, 3)[1:3]
            if kind in "tTwW" and name.startswith(like[:4]):
                found.append(name)
    return found
