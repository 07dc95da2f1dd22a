"""Tracepoints, kprobes, fentry, LSM hooks, CPU samples and iterators: programs that watch the whole machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from errno import EACCES, EINVAL, ENODEV, ENOENT, EPERM
from pathlib import Path
from typing import TYPE_CHECKING

from igrun import mounts
from igrun.clib import (
    PERF_ATTR_FREQ,
    PERF_COUNT_SW_CPU_CLOCK,
    PERF_SAMPLE_RAW,
    PERF_TYPE_SOFTWARE,
    PERF_TYPE_TRACEPOINT,
    perf_event_open,
)
from igrun.errors import AttachError, KernelError, MetadataError, UnsupportedError
from igrun.host import numbers

if TYPE_CHECKING:
    from igrun.host import Target
    from igrun.libbpf import BpfLink, BpfProgram
    from igrun.program import Hook

SECTIONS = (
    "tracepoint/",
    "tp/",
    "raw_tracepoint/",
    "raw_tp/",
    "tp_btf/",
    "kprobe/",
    "kretprobe/",
    "fentry/",
    "fexit/",
    "iter/",
    "perf_event/",
    "lsm/",
)
KPROBE_PMU = Path("/sys/bus/event_source/devices/kprobe")
ONLINE = Path("/sys/devices/system/cpu/online")
KALLSYMS = Path("/proc/kallsyms")
SYSCALL_PREFIX = {"x86_64": "__x64_", "aarch64": "__arm64_"}
# What gadget.yaml says under programs.<name> of a perf_event program -> the only values there are
PERF_OPTIONS = {"perf.type": "software", "perf.config": "count_sw_cpu_clock", "perf.sampleType": "sample_raw"}
FREQUENCY = "sampler.frequency"

Place = tuple[str, int]
"""What the program is attached to, and the tracepoint's id or the sample's CPU (-1: neither)."""


def places(hook: Hook, target: Target) -> tuple[Place, ...]:
    """One; one per online CPU for samples; none for an iterator, whose reader attaches it.

    AttachError: there is no such tracepoint
    """
    kind = hook.section.partition("/")[0]
    if kind == "iter":
        return ()
    if kind == "perf_event":
        return tuple((hook.attach_to, cpu) for cpu in numbers(ONLINE.read_text()))
    if kind in ("tracepoint", "tp"):
        return ((hook.attach_to, tracepoint_id(hook)),)
    return ((hook.attach_to, -1),)


def attach(hook: Hook, place: Place) -> BpfLink:
    """Attach the program. UnsupportedError: the kernel has no such thing; AttachError; MetadataError: samples only."""
    kind = hook.section.partition("/")[0]
    name, number = place
    if kind in ("tracepoint", "tp"):
        # A BPF program on a tracepoint runs on every CPU, whichever the event was opened for.
        return on_perf_event(hook, lambda: perf_event_open(0, type=PERF_TYPE_TRACEPOINT, config=number, sample=1))
    if kind in ("kprobe", "kretprobe"):
        return kprobe(hook, name, at_return=kind == "kretprobe")
    if kind == "perf_event":
        return samples(hook, number)
    if kind == "lsm":
        return lsm(hook)
    if kind in ("raw_tracepoint", "raw_tp"):
        return raw_tracepoint(hook, name)
    try:
        return handle_of(hook).attach_trace()
    except KernelError as error:
        raise refused(error, hook) from None


def iterate(hook: Hook, map_fd: int | None = None) -> BpfLink:
    """A link for an iterator, from which each run is made. map_fd: of the map that `iter/bpf_map_elem` walks."""
    try:
        return handle_of(hook).attach_iter(map_fd)
    except KernelError as error:
        raise refused(error, hook) from None


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
        return handle_of(hook).attach_raw_tracepoint(name)
    except KernelError as error:
        if error.errno != ENOENT:
            raise refused(error, hook) from None
        try:
            with mounts.tracefs() as directory:
                hint = nearest(name, [one.partition("/")[2] for one in tracepoints(directory)])
        except (OSError, UnsupportedError):
            hint = ""
        reason = "there is no such tracepoint"
        raise AttachError(ENOENT, hook.program, hook.section, name, reason=reason, hint=hint) from None


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
        raise UnsupportedError(
            f"program {hook.program!r} ({hook.section})", "this kernel was built without kprobes (CONFIG_KPROBES)"
        )
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


def lsm(hook: Hook) -> BpfLink:
    active = active_lsms()
    if active and "bpf" not in active:
        raise UnsupportedError(
            f"program {hook.program!r} ({hook.section})",
            "`bpf` is not among the active security modules, so it would never run",
            hint=f"boot with lsm={','.join([*active, 'bpf'])}",
        )
    try:
        return handle_of(hook).attach_lsm()
    except KernelError as error:
        raise refused(error, hook) from None


def active_lsms() -> list[str]:
    """The kernel's security modules in their order; empty if that cannot be found out."""
    try:
        with mounts.filesystem("securityfs") as directory:
            return mounts.read(directory, "lsm").strip().split(",")
    except (OSError, UnsupportedError):
        return []


def samples(hook: Hook, cpu: int) -> BpfLink:
    """Run the program `sampler.frequency` times a second on this CPU."""
    name = hook.section.partition("/")[2]
    for key, only in PERF_OPTIONS.items():
        given = hook.options.get(key)
        if given is None:
            raise MetadataError(f"programs.{name}.{key}", f"{key} not specified for program {name!r}")
        if given != only:
            raise MetadataError(f"programs.{name}.{key}", f"unsupported {key} {given!r}", hint=f"use {only}")
    text = str(hook.options.get(FREQUENCY, ""))
    if not text.isdecimal() or not int(text):
        problem = "is zero" if text.isdecimal() else "is no number" if text else "not specified"
        raise MetadataError(f"programs.{name}.{FREQUENCY}", f"{FREQUENCY} {problem} for program {name!r}")
    return on_perf_event(
        hook,
        lambda: perf_event_open(
            cpu,
            type=PERF_TYPE_SOFTWARE,
            config=PERF_COUNT_SW_CPU_CLOCK,
            sample=int(text),
            sample_type=PERF_SAMPLE_RAW,
            flags=PERF_ATTR_FREQ,
        ),
    )


def on_perf_event(hook: Hook, open_event: Callable[[], int]) -> BpfLink:
    """Attach to a perf event, which the link then owns."""
    try:
        event = open_event()
        try:
            return handle_of(hook).attach_perf_event(event)
        except KernelError:
            os.close(event)
            raise
    except KernelError as error:
        raise refused(error, hook) from None


# ------------------------------------------------------------------------------------------------ words


def handle_of(hook: Hook) -> BpfProgram:
    """The loaded program."""
    if hook.handle is None:
        raise ValueError(f"program {hook.program!r} is not loaded")
    return hook.handle


def nearest(name: str, names: Iterable[str]) -> str:
    """A hint that names what is like it, "" if nothing is."""
    from difflib import get_close_matches

    near = get_close_matches(name, list(names), 3)
    return f"did you mean {', '.join(near)}?" if near else ""


def refused(error: KernelError, hook: Hook) -> AttachError:
    """The kernel's refusal, with the program and what can be done."""
    number = error.errno or EINVAL
    hint = {
        EPERM: "CAP_PERFMON (or CAP_SYS_ADMIN) is needed to attach, and kernel.perf_event_paranoid may forbid it",
        EACCES: "CAP_PERFMON (or CAP_SYS_ADMIN) is needed to attach, and kernel.perf_event_paranoid may forbid it",
        ENODEV: "this machine or kernel has no such event",
    }.get(number, "")
    return AttachError(number, hook.program, hook.section, hook.attach_to, hint=hint)
