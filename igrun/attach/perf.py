"""CPU samples: programs that run so many times a second on each CPU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from igrun.attach.common import on_perf_event
from igrun.clib import (
    PERF_ATTR_FREQ,
    PERF_COUNT_SW_CPU_CLOCK,
    PERF_SAMPLE_RAW,
    PERF_TYPE_SOFTWARE,
    perf_event_open,
)
from igrun.errors import MetadataError
from igrun.host import numbers

if TYPE_CHECKING:
    from igrun.host import Target
    from igrun.libbpf import BpfLink
    from igrun.program import Hook

ONLINE = Path("/sys/devices/system/cpu/online")
# What gadget.yaml says under programs.<name> of a perf_event program -> the only values there are
PERF_OPTIONS = {"perf.type": "software", "perf.config": "count_sw_cpu_clock", "perf.sampleType": "sample_raw"}
FREQUENCY = "sampler.frequency"


def places(hook: Hook, target: Target) -> tuple[int, ...]:
    """The online CPUs."""
    return numbers(ONLINE.read_text())


def attach(hook: Hook, cpu: int) -> BpfLink:
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
