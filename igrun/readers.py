"""What is read from a loaded program: rings and perf buffers, iterators, maps. The event loop says when."""

from __future__ import annotations

import ctypes as C
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from struct import calcsize
from typing import TYPE_CHECKING, Literal

from igrun import mounts
from igrun.bpflib import check, library
from igrun.bpfmap import PERF_EVENT_ARRAY, possible_cpus
from igrun.clib import libc
from igrun.dataclass import dataclass
from igrun.errors import ImageError, KernelError, ParamError, UnsupportedError
from igrun.libbpf import BpfLink
from igrun.load import LOST_SUFFIX, LoadedProgram
from igrun.logs import Logger
from igrun.record import DataSource, Framing, Region
from igrun.ringbuf import PAGE, Buffer, Perf, Ring, See, counted

if TYPE_CHECKING:
    from igrun.program import Hook, Iterator_, MapIterator, Tracer
    from igrun.record import Batches

PERF_PAGES = 64  # of each CPU's perf buffer
CLONE_NEWNET = 0x40000000
WORDS: tuple[Literal["Q"], Literal["I"], Literal["H"], Literal["B"]] = ("Q", "I", "H", "B")


# ------------------------------------------------------------------------------------------------ when


@dataclass(frozen=True, slots=True)
class Schedule:
    """When a table is fetched. interval_s 0: once at the start if count is 1, else not; count 0: without end."""

    interval_s: float
    count: int
    at_stop: bool = False

    @property
    def at_start(self) -> bool:
        return not self.interval_s and self.count == 1


def iterator_schedule(source: DataSource) -> Schedule:
    """What the annotations say. ParamError: they make no sense."""
    interval = seconds("fetch-interval", source.annotations.get("fetch-interval", "0"))
    count = number("fetch-count", source.annotations.get("fetch-count", "1"))
    if count > 1 and not interval:
        problem = f'iterator "{source.name}" has count > 1 but interval is zero'
        raise ParamError("fetch-count", str(count), problem, hint="set fetch-interval as well")
    return Schedule(interval, count, source.annotations.get("ebpf.iter.fetch-on-stop") == "true")


def map_schedules(values: Mapping[str, str], sources: Iterable[DataSource]) -> dict[str, Schedule]:
    """By source, what the params `map-fetch-interval` and `map-fetch-count` say. ParamError: they make no sense."""
    known = {source.name: source for source in sources}
    intervals = per_source("map-fetch-interval", values, "1000ms", known)
    counts = per_source("map-fetch-count", values, "0", known)
    found = {}
    for name, source in known.items():
        interval, count = seconds("map-fetch-interval", intervals[name]), number("map-fetch-count", counts[name])
        if count > 1 and not interval:
            problem = f'map iterator "{name}" has count > 1 but interval is zero'
            raise ParamError("map-fetch-count", str(count), problem, hint="set --map-fetch-interval as well")
        found[name] = Schedule(interval, count, source.annotations.get("ebpf.map.flush-on-stop") == "true")
    return found


def per_source(key: str, values: Mapping[str, str], default: str, names: Iterable[str]) -> dict[str, str]:
    """The text for each source of a param like `500ms` or `one:1s,other:0`, or set as `<key>.<source>`."""
    names = list(names)
    given = values.get(key) or default
    found = dict.fromkeys(names, default)
    for part in given.split(","):
        name, colon, text = part.strip().rpartition(":")
        if not colon:
            found = dict.fromkeys(names, text)
        elif name in found:
            found[name] = text
        else:
            what = key.removeprefix("map-").replace("-", " ")
            problem = f'map {what} found for non-existing iterator "{name}"'
            raise ParamError(key, given, problem, hint=f"map iterators: {', '.join(names) or 'none'}")
    return {name: values.get(f"{key}.{name}") or text for name, text in found.items()}


def seconds(key: str, text: str) -> float:
    """Of a duration in Go's syntax. ParamError."""
    from igrun.metadata import read_duration

    try:
        found = read_duration(text) / 1e9
        if found < 0:
            raise ValueError("it is negative")
        return found
    except ValueError as problem:
        raise ParamError(key, text, f'invalid value "{text}" as "{key}": {problem}') from None


def number(key: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise ParamError(key, text, f'invalid value "{text}" as "{key}": it is no number')
    return int(text)


# ------------------------------------------------------------------------------------------------ events


class Losses:
    """Records of a source that found no room in the kernel.

    countable: each of them is counted; else there may be more
    """

    def __init__(self, countable: bool, count: Callable[[], Mapping[int, int]] = dict) -> None:
        """count: how many since the start, by CPU."""
        self.countable = countable
        self._count = count
        self._told: Mapping[int, int] = count()

    @classmethod
    def of_map(cls, name: str, loaded: LoadedProgram) -> Losses:
        """Those that the program itself counts for its map, as GADGET_TRACER_MAP does."""
        if not loaded.has_map(name + LOST_SUFFIX):
            return cls(False)
        counter = loaded.map(name + LOST_SUFFIX)
        return cls(True, lambda: counted(counter))

    def total(self) -> int:
        """Since the start, on all CPUs."""
        return sum(self._count().values())

    def new(self) -> dict[int, int]:
        """Those that were not told before, by CPU."""
        now, told = self._count(), self._told
        self._told = now
        return {cpu: lost - told.get(cpu, 0) for cpu, lost in now.items() if lost > told.get(cpu, 0)}


class TracerReader:
    """Events through a ring buffer or a perf event array. buffers: what to wait for and read.

    by_timer: nobody is woken for each first record; the buffers have to be looked at now and then
    """

    def __init__(self, tracer: Tracer, source: DataSource, loaded: LoadedProgram, see: See) -> None:
        self.source = source
        self.map = loaded.map(tracer.map)
        self._stack = ExitStack()
        self.buffers: Sequence[Buffer]
        self.by_timer = self.map.type == PERF_EVENT_ARRAY  # a perf buffer wakes nobody before its watermark
        if self.by_timer:
            cpus = loaded.host.online_cpus
            perf = Perf(self.map, cpus, perf_pages(loaded.plan.ring_bytes, len(cpus)))
            self._stack.callback(perf.close)
            self.buffers = perf.buffers
            self.losses = Losses(perf.counts, perf.lost)
        else:
            ring = Ring(self.map, see)
            self._stack.callback(ring.close)
            self.buffers = [ring]
            self.losses = Losses.of_map(tracer.map, loaded)

    def close(self) -> None:
        self._stack.close()


def perf_pages(bytes_: int, cpus: int) -> int:
    """Pages of each CPU's perf buffer, a power of two, so that all of them have about `bytes_`."""
    pages = bytes_ // PAGE // cpus
    return max(PERF_PAGES, 1 << pages.bit_length() - 1 if pages else 0)


# ------------------------------------------------------------------------------------------------ tables


class IteratorReader:
    """Rows that iterator programs print. exhausted: fetched as often as the schedule says."""

    def __init__(self, iterator: Iterator_, source: DataSource, loaded: LoadedProgram) -> None:
        from igrun.attach.iterators import iterate

        self.source = source
        self.schedule = iterator_schedule(source)
        self.exhausted = False
        self._proc = loaded.host.proc
        self._links: list[tuple[Hook, BpfLink]] = []
        self._stack = ExitStack()
        hooks = {hook.program: hook for hook in loaded.hooks}
        with ExitStack() as stack:
            for program in iterator.programs:
                hook = hooks.get(program)
                if hook is None:  # disabled
                    continue
                map_fd = loaded.map(hook.target_map).fd if hook.target_map else None
                try:
                    link = iterate(hook, map_fd)
                except (KernelError, UnsupportedError) as error:
                    loaded.choices.leave_out(program, error)
                    loaded.drop(program)
                    continue
                stack.callback(link.close)
                self._links.append((hook, link))
            self._stack = stack.pop_all()

    def fetch(self) -> Region:
        """One run of all its programs. ImageError: one printed no whole number of rows."""
        size = self.source.size
        parts = []
        for hook, link in self._links:
            text = self._run(hook, link)
            if size and len(text) % size:
                raise ImageError(
                    f'iter "{hook.program}" returned an invalid buffer\'s size {len(text)}, expected multiple of {size}'
                )
            parts.append(text)
        return Region(b"".join(parts), Framing.FIXED, size)

    def _run(self, hook: Hook, link: BpfLink) -> bytes:
        from igrun.attach.iterators import OF_NAMESPACE

        per_namespace = hook.attach_to in OF_NAMESPACE
        runs = in_namespaces(self._proc, lambda: new_run(link)) if per_namespace else [new_run(link)]
        return b"".join(whole(run) for run in runs)

    def close(self) -> None:
        self._stack.close()


def new_run(link: BpfLink) -> int:
    """The descriptor of a new run of an iterator, in this thread's network namespace."""
    return check(library().bpf_iter_create(link.fd), "run an iterator")


def whole(run: int) -> bytes:
    """All that an iterator prints; its descriptor is closed."""
    parts: list[bytes] = []
    try:
        while True:
            try:
                part = os.read(run, 1 << 16)
            except BlockingIOError:
                continue  # the kernel walked a million objects without output, and lets others have their turn
            if not part:
                return b"".join(parts)
            parts.append(part)
    finally:
        os.close(run)


def in_namespaces(proc: Path, action: Callable[[], int]) -> list[int]:
    """What `action` returns in each network namespace of the host.

    A thread that ends afterwards goes from one to the next, so that this one stays where it is.
    """
    from threading import Thread

    results: list[int] = []
    failure: list[OSError] = []

    def visit() -> None:
        try:
            for _ in visited(proc):
                results.append(action())
        except OSError as error:
            failure.append(error)

    thread = Thread(target=visit, name="namespaces")
    thread.start()
    thread.join()
    if failure:
        for run in results:
            os.close(run)
        raise failure[0]
    return results


def visited(proc: Path) -> Iterator[None]:
    """Enter each network namespace of the host's processes in turn, our own first (which needs no right)."""
    own = Path("/proc/self/ns/net").stat().st_ino
    seen = {own}
    yield
    for entry in proc.iterdir():
        if not entry.name.isdecimal():
            continue
        path = entry / "ns/net"
        try:
            inode = path.stat().st_ino
            if inode in seen:
                continue
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue  # it has ended; or the machine hides it, to root too
        seen.add(inode)
        try:
            if libc().setns(fd, CLONE_NEWNET) < 0:
                hint = "CAP_SYS_ADMIN is needed to see the sockets of other network namespaces"
                raise KernelError(C.get_errno(), f"enter the network namespace of process {entry.name}", hint=hint)
        finally:
            os.close(fd)
        yield


class MapReader:
    """The entries of a map, key, then value, taken out of it where the source does not say that they stay.

    exhausted: fetched as often as the schedule says
    """

    def __init__(self, iterator: MapIterator, source: DataSource, loaded: LoadedProgram, schedule: Schedule) -> None:
        self.source, self.schedule, self.exhausted = source, schedule, False
        self._map = loaded.map(iterator.map)
        self._keep = source.annotations.get("ebpf.map.keep-entries") == "true"
        self._cpus = possible_cpus() if iterator.per_cpu else 0
        self.losses = Losses.of_map(iterator.map, loaded)

    def fetch(self) -> Region:
        """All entries now."""
        keys, values = self._map.lookup_batch() if self._keep else self._map.drain()
        rows = joined(keys, self._map.key_size, values, self._map.value_size, self._cpus)
        return Region(rows, Framing.FIXED, self._map.key_size + self._map.value_size + (8 if self._cpus else 0))

    def close(self) -> None:
        """Nothing is held."""


def joined(keys: bytes, key_size: int, values: bytes, value_size: int, cpus: int = 0) -> bytearray:
    """Key and value of each entry side by side, word by word for all entries at once.

    cpus: 0: an entry has one value; else one, padded to 8 bytes, for each of so many CPUs: then it has so many rows,
          and a u64 with the CPU's number follows each value
    """
    entries, rows = len(keys) // key_size, max(cpus, 1)
    stride = key_size + value_size + (8 if cpus else 0)
    out = bytearray(entries * rows * stride)
    if not entries:
        return out
    # the widest word that divides all
    word = next(form for form in WORDS if key_size % calcsize(form) == value_size % calcsize(form) == 0)
    width = calcsize(word)
    target, key_words, value_words = (memoryview(one).cast(word) for one in (out, keys, values))
    key, value = key_size // width, value_size // width
    padded = len(values) // width // (entries * rows)
    for row in range(rows):
        ours = target[row * stride // width :]
        step = rows * stride // width
        for at in range(key):
            ours[at::step] = key_words[at::key]
        for at in range(value):
            ours[key + at :: step] = value_words[row * padded + at :: rows * padded]
        if cpus:
            number = memoryview(row.to_bytes(8, "little")).cast(word)
            for at in range(8 // width):
                ours[key + value + at :: step] = memoryview(array(word, (number[at],)) * entries)
    return out


# ------------------------------------------------------------------------------------------------ trace_pipe


class TracePipe:
    """The kernel's trace_pipe, line by line to the log (a `program.Reader` without batches)."""

    def __init__(self, root: Path) -> None:
        with mounts.tracefs(root) as directory:
            self._fd = os.open("trace_pipe", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
        self._rest = b""

    def fileno(self) -> int:
        return self._fd

    def read(self) -> Batches:
        """Log what is there."""
        try:
            text = os.read(self._fd, 1 << 16)
        except BlockingIOError:
            return
        *lines, self._rest = (self._rest + text).split(b"\n")
        for line in lines:
            Logger("igrun.trace_pipe").info("%s", line.decode(errors="replace"))
        yield from ()

    def close(self) -> None:
        os.close(self._fd)
