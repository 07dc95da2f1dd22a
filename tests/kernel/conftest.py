"""What kernel tests share: BPF programs compiled from their text, and runs of them."""

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest

import tests.compiled
from igrun import attach
from igrun.engine.reference import ENGINE
from igrun.events import Events
from igrun.host import HOST_TARGET, Host, Target
from igrun.load import LoadedProgram, load
from igrun.metadata import GadgetMetadata
from igrun.program import Plan, Program
from igrun.record import Batch, Facts

HEAD = """// SPDX-License-Identifier: GPL-2.0
#include <vmlinux.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>
#include <gadget/macros.h>
#include <gadget/buffer.h>
char LICENSE[] SEC("license") = "GPL";
"""
Compile = Callable[[str], bytes]


@pytest.fixture(scope="session")
def compiled() -> Compile:
    """Compile BPF C (without includes and license) to an object's bytes."""
    return functools.partial(tests.compiled.compiled, head=HEAD)


@dataclass
class Started:
    plan: Plan
    loaded: LoadedProgram
    events: Events

    def batches(self, timeout_s: float) -> list[Batch]:
        """All batches with a source."""
        return [batch for batch in self.events.run(timeout_s) if batch.source.name]


Start = Callable[..., Started]


@pytest.fixture
def start(compiled: Compile, request: pytest.FixtureRequest) -> Iterator[Start]:
    """Compile, load and attach; undone after the test.

    values: params; constants: as in Plan, ints as u32; prepare: called with the plan before load
    target: None: attached to nothing yet
    """
    with ExitStack() as stack:

        def start_(
            source: str,
            *,
            yaml: str = "name: test\n",
            values: dict[str, str] | None = None,
            constants: dict[str, int | bytes] | None = None,
            prepare: Callable[[Plan], Any] = lambda plan: None,
            target: Target | None = HOST_TARGET,
        ) -> Started:
            program = Program.open(compiled(source), GadgetMetadata.parse(yaml.encode(), strict=True))
            request.node.user_properties += [("section", hook.section) for hook in program.hooks]
            plan = Plan(program, Host.current(), program.sources, stack, values or {})
            for name, value in (constants or {}).items():
                plan.constants[name] = value.to_bytes(4, "little") if isinstance(value, int) else value
            prepare(plan)
            loaded = load(plan)
            attach.follow(loaded)
            events = stack.enter_context(Events(loaded, plan, ENGINE.columns(Facts({}))))
            if target:
                attach.attach(loaded.hooks, target, loaded)
            return Started(plan, loaded, events)

        yield start_
