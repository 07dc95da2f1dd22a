"""Samples: programs that run so many times a second, or at every so many events, on each CPU or in one process.

gadget.yaml says under `programs.<name>` what is counted, in the words of the ecosystem and more of the same kind:

    perf.type: software          # or hardware, hw_cache, raw
    perf.config: count_sw_cpu_clock
    perf.sampleType: sample_raw
    sampler.frequency: 99        # or sampler.period: 1000
    perf.pid: 4711               # that process alone
"""

from __future__ import annotations

from errno import EINVAL, ENODEV, ENOENT, EOPNOTSUPP, ESRCH
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from igrun.attach.common import Links, feature, nearest, number_of, on_perf_event
from igrun.clib import (
    PERF_ATTR_FREQ,
    PERF_ATTR_INHERIT,
    PERF_SAMPLE_RAW,
    PERF_TYPE_HARDWARE,
    PERF_TYPE_HW_CACHE,
    PERF_TYPE_RAW,
    PERF_TYPE_SOFTWARE,
    perf_event_open,
)
from igrun.errors import AttachError, KernelError, MetadataError, UnsupportedError
from igrun.host import numbers, text_of

if TYPE_CHECKING:
    from igrun.host import Target
    from igrun.libbpf import BpfLink
    from igrun.program import Hook

ONLINE = Path("/sys/devices/system/cpu/online")
FASTEST = Path("/proc/sys/kernel/perf_event_max_sample_rate")
TYPE, CONFIG, SAMPLE_TYPE, PID = "perf.type", "perf.config", "perf.sampleType", "perf.pid"
FREQUENCY, PERIOD = "sampler.frequency", "sampler.period"
ALL = -1
NOT_THERE = (ENOENT, ENODEV, EOPNOTSUPP)


def counted(prefix: str, names: str) -> dict[str, int]:
    """The names of an enumeration that counts from 0, as gadget.yaml has them."""
    return {f"count_{prefix}_{name}": number for number, name in enumerate(names.split())}


# include/uapi/linux/perf_event.h: enum perf_hw_id, perf_sw_ids, perf_hw_cache_id and what is done with a cache
HARDWARE = counted(
    "hw",
    "cpu_cycles instructions cache_references cache_misses branch_instructions branch_misses bus_cycles "
    "stalled_cycles_frontend stalled_cycles_backend ref_cpu_cycles",
)
SOFTWARE = counted(
    "sw",
    "cpu_clock task_clock page_faults context_switches cpu_migrations page_faults_min page_faults_maj "
    "alignment_faults emulation_faults dummy bpf_output cgroup_switches",
)
CACHES = {
    f"count_hw_cache_{cache}_{done}_{result}": cache_number | done_number << 8 | result_number << 16
    for cache_number, cache in enumerate("l1d l1i ll dtlb itlb bpu node".split())
    for done_number, done in enumerate(("read", "write", "prefetch"))
    for result_number, result in enumerate(("access", "miss"))
}
TYPES: dict[str, tuple[int, dict[str, int]]] = {
    "software": (PERF_TYPE_SOFTWARE, SOFTWARE),
    "hardware": (PERF_TYPE_HARDWARE, HARDWARE),
    "hw_cache": (PERF_TYPE_HW_CACHE, CACHES),
    "raw": (PERF_TYPE_RAW, {}),
}
# Not every kernel has it (d0d1dd628527, "perf core: Add PERF_COUNT_SW_CGROUP_SWITCHES event").
SINCE = {"count_sw_cgroup_switches": "5.13"}


class Place(NamedTuple):
    """Where events are counted. cpu: ALL of a process; thread: its first one, which stands for all; ALL of a CPU."""

    cpu: int
    thread: int = ALL


def places(hook: Hook, target: Target) -> tuple[Place, ...]:
    """The online CPUs, or the process that gadget.yaml names. MetadataError; AttachError: there is no such process."""
    event(hook)
    rate(hook)
    if pid := number_of(hook, PID):
        if not threads(pid):
            raise gone(hook, pid)
        return (Place(ALL, pid),)
    return tuple(map(Place, numbers(ONLINE.read_text())))


def attach(hook: Hook, place: Place) -> BpfLink | Links:
    """Run the program at the samples of this place. MetadataError; AttachError; UnsupportedError: no such counter."""
    return sampled(hook, place) if place.thread == ALL else of_process(hook, place.thread)


def sampled(hook: Hook, place: Place) -> BpfLink:
    """Samples of one CPU, or of one thread."""
    return on_perf_event(hook, lambda: opened(hook, place))


def of_process(hook: Hook, pid: int) -> Links:
    """Samples of the threads of a process, and of the threads and processes that these start from now on."""
    links, found = Links(), 0
    try:
        # One look, as perf(1) takes it: a second would find threads that are sampled already, by inheritance.
        for thread in threads(pid):
            try:
                links.add(sampled(hook, Place(ALL, thread)))
                found += 1
            except AttachError as error:
                if error.errno != ESRCH:  # the thread has ended
                    raise
        if not found:
            raise gone(hook, pid)
    except BaseException:
        links.close()
        raise
    return links


def gone(hook: Hook, pid: int) -> AttachError:
    return AttachError(ESRCH, hook.program, hook.section, f"process {pid}", reason="there is no such process")


def threads(pid: int) -> list[int]:
    """The threads that a process has; none if there is no such process."""
    try:
        return sorted(int(one.name) for one in Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return []


# ------------------------------------------------------------------------------------------------ what gadget.yaml says


def event(hook: Hook) -> tuple[int, int]:
    """What is counted: type and config of struct perf_event_attr. MetadataError."""
    kind = given(hook, TYPE)
    if kind not in TYPES:
        raise unsupported(hook, TYPE, kind, f"use {', '.join(TYPES)}")
    number, names = TYPES[kind]
    name = given(hook, CONFIG)
    if kind == "raw":
        config = number_of(hook, CONFIG)
    elif name in names:
        config = names[name]
    else:
        raise unsupported(hook, CONFIG, name, nearest(name, names) or f"use {', '.join(names)}")
    if (sample := given(hook, SAMPLE_TYPE)) != "sample_raw":
        raise unsupported(hook, SAMPLE_TYPE, sample, "use sample_raw")
    return number, config


def rate(hook: Hook) -> tuple[int, int]:
    """How often a sample is taken: number and flags of struct perf_event_attr. MetadataError."""
    period, frequency = str(hook.options.get(PERIOD, "")), str(hook.options.get(FREQUENCY, ""))
    if period and frequency:
        raise MetadataError(path(hook, PERIOD), f"there is {FREQUENCY} as well", hint="leave out one of the two")
    key, text = (PERIOD, period) if period else (FREQUENCY, frequency)
    number = int(text) if text.isascii() and text.isdecimal() else -1
    if not 0 < number < 1 << 63:
        problem = {-1: "is no number" if text else "not specified", 0: "is zero"}.get(number, "is too large")
        raise MetadataError(path(hook, key), f"{key} {problem} for program {label(hook)!r}")
    return number, PERF_ATTR_FREQ if key == FREQUENCY else 0


def given(hook: Hook, key: str) -> str:
    """What gadget.yaml says. MetadataError: nothing."""
    text = hook.options.get(key)
    if text is None:
        raise MetadataError(path(hook, key), f"{key} not specified for program {label(hook)!r}")
    return str(text)


def unsupported(hook: Hook, key: str, text: str, hint: str) -> MetadataError:
    return MetadataError(path(hook, key), f"unsupported {key} {text!r}", hint=hint)


def path(hook: Hook, key: str) -> str:
    """Where in gadget.yaml the option stands."""
    return f"programs.{label(hook)}.{key}"


def label(hook: Hook) -> str:
    """The program as gadget.yaml names it: by the second part of its section, else by its function."""
    return hook.section.partition("/")[2] or hook.program


# ------------------------------------------------------------------------------------------------ the kernel


def opened(hook: Hook, place: Place) -> int:
    """The perf event. UnsupportedError: there is no such counter here; KernelError."""
    kind, config = event(hook)
    every, flags = rate(hook)
    if place.thread != ALL:
        flags |= PERF_ATTR_INHERIT
    try:
        return perf_event_open(
            place.cpu,
            thread=place.thread,
            type=kind,
            config=config,
            sample=every,
            sample_type=PERF_SAMPLE_RAW,
            flags=flags,
        )
    except KernelError as error:
        name = given(hook, CONFIG) if kind != PERF_TYPE_RAW else f"{config:#x}"
        if error.errno == EINVAL and flags & PERF_ATTR_FREQ and every > (fastest := fastest_rate()) > 0:
            reason = f"{FREQUENCY} {every} is above kernel.perf_event_max_sample_rate ({fastest})"
            raise AttachError(EINVAL, hook.program, hook.section, name, reason=reason) from None
        if kind == PERF_TYPE_SOFTWARE and error.errno in NOT_THERE:
            lacks, since = f"this kernel has no counter {name}", SINCE.get(name, "")
            raise UnsupportedError(feature(hook), lacks, since=since) from None
        if kind != PERF_TYPE_SOFTWARE and error.errno in (*NOT_THERE, EINVAL):
            lacks = f"this machine has no counter {name} to sample"
            hint = f"use {TYPE} software: virtual machines often have no counters of the CPU at all"
            raise UnsupportedError(feature(hook), lacks, hint=hint) from None
        raise


def fastest_rate() -> int:
    """How many samples a second the kernel allows, 0 if it does not say."""
    return next(iter(numbers(text_of(FASTEST))), 0)
