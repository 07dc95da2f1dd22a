"""One run of a consumer while the producer works: what it costs, what was lost, what it wrote."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import kernel
from making import environment

START_S, DRAIN_S = 30.0, 60.0
QUIET_S = 0.1
"""It neither wrote nor ran for so long: it is done."""
COUNTER = "_lost_"  # and more, cut to 15 characters
TOLD = re.compile(r"(\d+) records? lost")


class BrokenRunError(Exception):
    """A number of this run would say nothing."""


@dataclass(frozen=True)
class Load:
    """What the producer does. kind: calls or opens; count, seconds: 0 for no limit; rate: a second, 0 for flat out."""

    kind: str
    count: int = 0
    seconds: float = 0
    rate: int = 0


@dataclass(frozen=True)
class Made:
    """What the producer did. cpu_s: its CPU time, the traced calls and what the BPF programs take."""

    count: int
    wall_s: float
    cpu_s: float

    @property
    def rate(self) -> float:
        return self.count / self.wall_s


class Producer:
    """The traced program, on a CPU of its own. namespaces: mount namespaces that its opens are in, in turn."""

    def __init__(self, program: Path, cpu: int, namespaces: int) -> None:
        self._process = started((str(program), str(namespaces)), cpu, subprocess.PIPE, stdin=subprocess.PIPE)
        self.namespaces = list(map(int, self._line().split()))

    @property
    def pid(self) -> int:
        return self._process.pid

    def make(self, load: Load) -> Made:
        assert self._process.stdin
        self._process.stdin.write(f"{load.kind} {load.count} {load.seconds} {load.rate}\n".encode())
        self._process.stdin.flush()
        count, wall_s, cpu_s = self._line().split()
        return Made(int(count), float(wall_s), float(cpu_s))

    def _line(self) -> str:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            sys.exit("the producer has failed")
        return line.decode()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()


@dataclass(frozen=True)
class Reading:
    """What is known of a consumer at one moment.

    at_s:     when
    cpu_s:    that it used until then
    written:  bytes
    produced: bytes that went into the ring
    lost:     as the program counts
    """

    at_s: float
    cpu_s: float
    written: int
    produced: int
    lost: int


@dataclass(frozen=True)
class Sample:
    """One measurement.

    wall_s:  until the consumer was done with all of it
    cpu_s:   that the consumer used
    lost:    events that did not come through
    written: bytes
    """

    made: Made
    wall_s: float
    cpu_s: float
    lost: int
    written: int

    @property
    def events(self) -> int:
        """That came through."""
        return self.made.count - self.lost

    @property
    def us(self) -> float:
        """CPU of the consumer for each event that came through."""
        return self.cpu_s / max(1, self.events) * 1e6

    @property
    def traced_us(self) -> float:
        """CPU of the traced program for each event that it made."""
        return self.made.cpu_s / self.made.count * 1e6

    @property
    def rate(self) -> float:
        """Events a second that came through."""
        return self.events / self.wall_s

    @property
    def made_rate(self) -> float:
        return self.made.rate

    @property
    def lost_share(self) -> float:
        return self.lost / self.made.count

    @property
    def cores(self) -> float:
        """That it kept busy while events were made."""
        return self.cpu_s / self.made.wall_s


class Consumer:
    """A process that reads a ring or a table, of igrun or of C: in the kernel, attached and read when it is here.

    stride: bytes of a record in the ring
    """

    def __init__(self, command: Sequence[str], cpu: int, out: int, poke: Callable[[], object], stride: int = 0) -> None:
        self._stride = stride
        self.ring: kernel.Ring | None = None
        with ExitStack() as stack:
            self._said = stack.enter_context(tempfile.TemporaryFile())
            self._process = started(command, cpu, out, stderr=self._said)
            stack.callback(self._process.wait)
            stack.callback(self._process.kill)
            self._map(stack)
            self._attached(poke)
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def _map(self, stack: ExitStack) -> None:
        """Find its map and the counter of what found no room in it, once they are there."""
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            self._check_alive()
            found = kernel.maps(self.pid)
            with ExitStack() as rest:
                for one in found:
                    rest.callback(one.close)
                counter = next((one for one in found if COUNTER in one.name), None)
                map = next((one for one in found if counter and counter.name.startswith(f"{one.name}_")), None)
                if counter and map:
                    stack.push(rest.pop_all())
                    self._counter, self.table = counter, map
                    if map.info.type == kernel.RINGBUF:
                        self.ring = kernel.Ring(map)
                        stack.callback(self.ring.close)
                    return
            time.sleep(0.01)
        raise BrokenRunError(f"it loads nothing: {self.said()}")

    def _attached(self, poke: Callable[[], object]) -> None:
        """Make one event after the other until one comes through."""
        end = time.monotonic() + START_S
        while not (self.ring.produced if self.ring else not self.table.empty()):
            if time.monotonic() > end:
                raise BrokenRunError(f"it is not attached: {self.said()}")
            self._check_alive()
            poke()
            time.sleep(0.01)
        self.drain()

    def drain(self) -> Reading:
        """Wait until all is read and written, and read then."""
        end = time.monotonic() + DRAIN_S
        reading, quiet_since = self.read(), time.monotonic()
        while time.monotonic() - quiet_since < QUIET_S:
            time.sleep(0.01)
            self._check_alive()
            now = self.read()
            behind = self.ring.consumed != self.ring.produced if self.ring else not self.table.empty()
            if now.written != reading.written or behind or kernel.at_work(self.pid):
                reading, quiet_since = now, time.monotonic()
            if time.monotonic() > end:
                raise BrokenRunError("it does not come to an end")
        return reading

    def read(self) -> Reading:
        produced = self.ring.produced if self.ring else 0
        return Reading(
            time.monotonic(), kernel.cpu_s(self.pid), kernel.written(self.pid), produced, self._counter.sum()
        )

    def measure(self, producer: Producer, load: Load) -> Sample:
        """What it takes to get what the producer makes. BrokenRunError: there are events that nobody knows of."""
        before = self.read()
        made = producer.make(load)
        after = self.drain()
        lost = after.lost - before.lost
        if self.ring:
            events, odd = divmod(after.produced - before.produced, self._stride)
            # Where a program interrupts another one on its CPU, the kernel leaves it out.
            missing = made.count - events - lost
            if odd or not 0 <= missing <= made.count / 10_000:
                raise BrokenRunError(f"of {made.count} events {events} were read and {lost} lost")
        wall_s, cpu_s = after.at_s - before.at_s, after.cpu_s - before.cpu_s
        return Sample(made, wall_s, cpu_s, lost, after.written - before.written)

    def stop(self) -> int:
        """End it; the records that it says were lost."""
        self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(DRAIN_S)
        except subprocess.TimeoutExpired:
            raise BrokenRunError("it does not end") from None
        said = self.said()
        if code or "Traceback" in said:
            raise BrokenRunError(f"it ended with {code}: {said}")
        return sum(map(int, TOLD.findall(said)))

    def said(self) -> str:
        """What it wrote to stderr."""
        self._said.seek(0)
        return self._said.read().decode(errors="replace").strip()

    def _check_alive(self) -> None:
        if self._process.poll() is not None:
            raise BrokenRunError(f"it ended with {self._process.returncode}: {self.said()}")


def started(command: Sequence[str], cpu: int, out: int, **given: Any) -> subprocess.Popen[bytes]:
    """A process that runs on one CPU only."""
    return subprocess.Popen(("taskset", "-c", str(cpu), *command), stdout=out, env=environment(), **given)


def two_cpus() -> tuple[int, int]:
    """The producer's and the consumer's."""
    found = sorted(os.sched_getaffinity(0))
    if len(found) < 2:
        sys.exit("two CPUs are needed: one for what is traced, one for what traces it")
    return found[0], found[1]
