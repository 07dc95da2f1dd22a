"""What a run costs besides its events: how long it takes to start, memory, CPU time while nothing happens."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import kernel
from consumers import Consumer, Load, Producer
from making import Made
from report import Line
from startup import IMAGES, first_event, seconds, with_store

EVENTS = Load("opens", 2000, 0, 1000)


def at_rest(ig: tuple[str, ...], c: tuple[str, ...], producer: Producer, cpu: int, idle_s: float) -> list[Line]:
    """CPU time of a run that sees nothing, and its memory after some events. ig, c: with the smallest ring."""
    busy, memory = [], []
    for command in (ig, c):
        with Consumer(command, cpu, subprocess.DEVNULL, lambda: producer.make(Load("opens", 1)), 424) as running:
            running.measure(producer, EVENTS)
            memory.append(kernel.memory_mb(running.pid))
            before = kernel.cpu_s(running.pid)
            time.sleep(idle_s)
            busy.append((kernel.cpu_s(running.pid) - before) / idle_s * 100)
            running.stop()
    return [
        Line("process-idle", "CPU while nothing happens", *busy, "%", [("<= 0.3 %", busy[0] <= 0.3)]),
        Line("process-memory", "memory, trace_open, 256 KiB ring", *memory, "MB", [("<= 45 MB", memory[0] <= 45)]),
    ]


def starts(made: Made, ig: list[str], c: tuple[str, ...], runs: int, tell: Callable[[str], None]) -> list[Line]:
    """From exec to the end, or to the first event. ig: the command as it is installed; c: prints every open."""
    run = [*ig, "run", "trace_open", "--host"]
    measured: dict[str, Callable[[], float]] = {
        "ig --help": lambda: seconds([*ig, "--help"]),
        "C": lambda: first_event(list(c)),
    }
    for count in (1, IMAGES):
        apart = with_store(Path(made.folder) / f"store-{count}", ig, count)
        measured[f"{count:,}"] = lambda apart=apart: first_event(run, apart)
    times: dict[str, list[float]] = {name: [] for name in measured}
    for measure in measured.values():  # once for the caches
        measure()
    for number in range(runs):
        tell(f"start {number + 1} of {runs}")
        for name, measure in measured.items():
            times[name].append(measure() * 1000)
    ms = {name: median(found) for name, found in times.items()}

    def line(key: str, name: str, of: str, limit: float, theirs: float | None) -> Line:
        return Line(f"start-{key}", name, ms[of], theirs, "ms", [(f"<= {limit:g} ms", ms[of] <= limit)])

    return [
        line("first", "exec to first event, 1 image", "1", 100, ms["C"]),
        line("many", f"exec to first event, {IMAGES:,} images", f"{IMAGES:,}", 100, ms["C"]),
        line("help", "ig --help", "ig --help", 60, None),
    ]
