"""What igrun costs beside consumers in C: python bench.py [--quick] [--only WORD]... [--json FILE] [--strict].

One table, of medians: CPU time of the consumer for each event, in the program and in the kernel; events a second that
came through; events lost; CPU time that the traced program pays for each event. The consumers in C load the same object
and print the same lines: one as often as igrun does (the same tick), one in libbpf's usual loop. Each run is checked:
what was made was read or is counted as lost, what was printed is as long as it must be, and once for each case, line by
line, what it must be. The producer runs on one CPU, the consumer on another.

Exits with 2 if a run was broken, with --strict 1 if a goal was missed. Needs root, clang and a C compiler.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.append(str(Path(__file__).parent))  # PYTHONSAFEPATH leaves it out

import kernel
import making
import processes
import report
from cases import CASES, IG, POLL, C, Case
from consumers import BrokenRunError, Consumer, Load, Producer, Sample, two_cpus
from making import CONTAINERS, FIRST_MNTNS, KNOWN, Made

GADGETS = {"calls": "bench_events", "opens": "trace_open", "entries": "bench_entries"}
STRIDES = {"calls": 344, "opens": 424, "entries": 0}
"""Bytes of a record in the ring, its header among them."""
CHECKED = 8192
"""Events that are looked at one by one; what they say comes again after so many."""
CHECKED_RATE = 20_000
SMALLEST_RING = 256 << 10
"""Bytes of the ring that trace_open declares."""
SCRATCH = Path("/dev/shm")


@dataclass(frozen=True)
class Pace:
    """How long and how often. slack: so much worse than a goal is still good."""

    seconds: float
    repeats: int
    slack: float


FULL = Pace(2.0, 5, 1.0)
QUICK = Pace(0.5, 1, 1.5)


class Bench:
    """Everything that the cases need. told: what went wrong, by case"""

    def __init__(self, folder: Path, made: Made, pace: Pace, stack: ExitStack) -> None:
        self.folder, self.made, self.pace = folder, made, pace
        self.cpus = os.sched_getaffinity(0)
        of_producer, self.cpu = two_cpus()
        self.producer = Producer(made.produce, of_producer, CONTAINERS)
        stack.callback(self.producer.close)
        os.sched_setaffinity(0, {of_producer})
        namespaces = range(FIRST_MNTNS + CONTAINERS - KNOWN, FIRST_MNTNS + 2 * CONTAINERS - KNOWN)
        self.containers = {
            "calls": making.containers(folder, "calls", namespaces, cluster=True),
            "opens": making.containers(folder, "opens", self.producer.namespaces, cluster=False),
        }
        self.ring_bytes = 0
        self.bytes: dict[tuple[str, str], float] = {}
        self.samples: dict[str, dict[str, list[Sample]]] = {}
        self.lines: list[report.Line] = []
        self.told: dict[str, str] = {}

    def ig(self, case: Case) -> tuple[str, ...]:
        flags = [flag.format(folder=self.folder) for flag in case.flags]
        if case.records in self.containers:
            flags += ["--bench-containers", str(self.containers[case.records])]
        return (*self.made.ig, f"{GADGETS[case.records]}:bench", "--pid", str(self.producer.pid), *flags)

    def c(self, records: str, consumer: str, *, ring_bytes: int = 0, pid: int = -1) -> tuple[str, ...]:
        """ring_bytes: 0 for as many as igrun's has; pid: -1 for the producer's, 0 for all"""
        from igrun.intake import TICK_S

        tick_ms = 0 if consumer == POLL else round(TICK_S * 1000)
        pid = self.producer.pid if pid < 0 else pid
        options = ["-p", str(pid), "-r", str(ring_bytes or self.ring_bytes), "-t", str(tick_ms)]
        if records in self.containers:
            options += ["-c", str(self.containers[records])]
        object_ = self.made.objects[GADGETS[records]]
        kind = "top" if records == "entries" else records
        return making.with_tracefs((str(self.made.consume), *options, str(object_), kind))

    def command(self, case: Case, consumer: str) -> tuple[str, ...]:
        return self.ig(case) if consumer == IG else self.c(case.records, consumer)

    def started(self, case: Case, consumer: str, out: int) -> Consumer:
        poke = Load("opens" if case.records == "opens" else "calls", 1)
        command = self.command(case, consumer)
        return Consumer(command, self.cpu, out, lambda: self.producer.make(poke), STRIDES[case.records])

    # ------------------------------------------------------------------------------------ checks

    def check(self, case: Case) -> None:
        """Have igrun and C print the same events, and compare. BrokenRunError."""
        if not self.ring_bytes and case.records != "entries":
            with self.started(case, IG, subprocess.DEVNULL) as consumer:
                assert consumer.ring
                self.ring_bytes = consumer.ring.size
        texts = {}
        for consumer in (IG, C):
            path = self.folder / "printed"
            with path.open("wb") as out, self.started(case, consumer, out.fileno()) as running:
                sample = running.measure(self.producer, checked(case))
                told = running.stop()
                if sample.lost or told:
                    raise BrokenRunError(f"{consumer}: {sample.lost} records of a slow producer lost, {told} told of")
            self.bytes[case.key, consumer] = sample.written / sample.events
            texts[consumer] = (self.folder / case.file if case.file and consumer == IG else path).read_bytes()
        case.check(texts[IG], texts[C])
        for consumer in case.beside:
            self.bytes.setdefault((case.key, consumer), self.bytes[case.key, C])

    # ------------------------------------------------------------------------------------ measuring

    def measure(self, case: Case, consumer: str) -> Sample:
        """One run. BrokenRunError: its figures would say nothing."""
        with self.started(case, consumer, subprocess.DEVNULL) as running:
            seconds = max(3.2, 2 * self.pace.seconds) if case.records == "entries" else self.pace.seconds
            sample = running.measure(self.producer, case.load(seconds))
            said = running.stop()
        if consumer == IG and case.records != "entries":
            if said < sample.lost:
                raise BrokenRunError(f"{sample.lost} records found no room, and it tells of {said}")
            sample = replace(sample, lost=said)
        # A table's text depends on when it is fetched, a file's on how well it is compressed.
        expected = sample.events * self.bytes[case.key, consumer]
        if case.records != "entries" and not case.file and abs(sample.written / expected - 1) > case.spread:
            raise BrokenRunError(f"{sample.written} bytes were written, where {expected:.0f} are to be")
        return sample

    def run(self, cases: list[Case], tell: Callable[[str], None]) -> None:
        """Check each case, then measure them in turn, so that what else the machine does disturbs them alike."""
        good = []
        for case in cases:
            tell(f"checking {case.key}")
            lacks = lacking(case.needs)
            if lacks:
                self.told[case.key] = f"left out: {lacks}"
            elif self.tried(case.key, lambda case=case: self.check(case)):
                good.append(case)
        for number in range(self.pace.repeats):
            for case in good:
                for consumer in (IG, *case.beside):
                    tell(f"{number + 1} of {self.pace.repeats}: {case.key}, {consumer}")
                    self.tried(case.key, lambda case=case, consumer=consumer: self.take(case, consumer))

    def take(self, case: Case, consumer: str) -> None:
        sample = self.measure(case, consumer)
        self.samples.setdefault(case.key, {}).setdefault(consumer, []).append(sample)

    def tried(self, key: str, action: Callable[[], None]) -> bool:
        try:
            action()
        except BrokenRunError as error:
            self.told[key] = f"BROKEN: {error}"
            return False
        return True

    # ------------------------------------------------------------------------------------ the rest

    def at_rest(self, idle_s: float) -> None:
        ig = (*self.made.ig, "trace_open:bench", "--pid", str(self.producer.pid), "--ring-size", "0")
        c = self.c("opens", C, ring_bytes=SMALLEST_RING)
        self.lines += processes.at_rest(ig, c, self.producer, self.cpu, idle_s)

    def starts(self, runs: int, tell: Callable[[str], None]) -> None:
        beside = Path(sys.executable).parent / "ig"
        ig = [str(beside)] if beside.exists() else [sys.executable, "-m", "igrun"]
        every_open = self.c("opens", C, ring_bytes=SMALLEST_RING, pid=0)
        os.sched_setaffinity(0, self.cpus)  # as from a shell, not on one CPU with whoever waits for it
        self.lines += processes.starts(self.made, ig, every_open, runs, tell)


def checked(case: Case) -> Load:
    """The events that are looked at one by one."""
    if case.records == "entries":
        return case.load(2.5)
    return replace(case.load(0), count=CHECKED, rate=min(case.rate or CHECKED_RATE, CHECKED_RATE))


def lacking(needed: str) -> str:
    """Why an output cannot be measured; "" if it can."""
    from igrun import plugins

    if needed and not any(needed in modes for modes in plugins.OUTPUTS.values()):
        return f"this igrun has no output {needed}"
    if needed:
        try:
            import pyarrow  # noqa: F401
        except ImportError:
            return "pyarrow is not installed"
    return ""


def main() -> int:
    read = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    read.add_argument("--quick", action="store_true", help="one short run of each; goals with half as much again")
    read.add_argument("--repeats", type=int, help="runs of each")
    read.add_argument("--seconds", type=float, help="of each run")
    read.add_argument("--only", action="append", default=[], metavar="WORD", help="cases whose key starts like this")
    read.add_argument("--json", type=Path, metavar="FILE", help="write every figure there too")
    read.add_argument("--strict", action="store_true", help="exit with 1 if a goal is missed")
    given = read.parse_args()
    if os.geteuid() != 0:
        sys.exit("needs root")
    pace = QUICK if given.quick else FULL
    pace = replace(pace, repeats=given.repeats or pace.repeats, seconds=given.seconds or pace.seconds)

    load, start_s, others_s = os.getloadavg()[0], time.monotonic(), kernel.others_s()
    with ExitStack() as stack:
        where = SCRATCH if SCRATCH.is_dir() else None
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-", dir=where)))

        def wanted(key: str) -> bool:
            return not given.only or any(key.startswith(word) for word in given.only)

        chosen = [case for case in CASES if wanted(case.key)]
        compared = {case.base for case in chosen}
        measured = [case for case in CASES if case in chosen or case.key in compared]
        gadgets = {GADGETS[case.records] for case in measured}
        if wanted("process") or wanted("start"):
            gadgets.add(GADGETS["opens"])
        tell("building")
        bench = Bench(folder, making.make(folder, sorted(gadgets)), pace, stack)
        bench.run(measured, tell)
        if wanted("process"):
            tell("processes")
            bench.tried("process", lambda: bench.at_rest(2 if given.quick else 10))
        if wanted("start"):
            bench.tried("start", lambda: bench.starts(3 if given.quick else 15, tell))
        tell("")
    others = (kernel.others_s() - others_s) / (time.monotonic() - start_s)
    head = report.head(load, others, pace.seconds, pace.repeats, pace.slack, bench.ring_bytes, bench.made.compiler)
    shown = [case for case in CASES if case in chosen or case.key in bench.told]
    rows = [report.of_case(case, bench.samples, bench.told.get(case.key, ""), pace.slack) for case in shown]
    missing = [bench.told[key] for key in ("process", "start") if key in bench.told]
    print(report.text(head, rows, bench.lines, missing))
    if given.json:
        given.json.write_text(json.dumps(report.document(head, rows, bench.lines, bench.samples), indent=1))
    broken = any(told.startswith("BROKEN") for told in bench.told.values())
    missed = any(not met for row in (*rows, *bench.lines) for _, met in row.goals)
    return 2 if broken else int(missed and given.strict)


def tell(text: str) -> None:
    """Say on a terminal what is being done."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
