"""What the record engine takes per event, in us of CPU, from a region in memory to text: python engine.py [--engine E].

Two layouts: an event of 336 bytes, and what trace_open has on this machine, both with the fields of 64 containers.
"""

import argparse
import random
import struct
import time
from collections.abc import Callable

from igrun import engine
from igrun.engine import Cell, Engine, Slot, Template
from igrun.engine.reference import ENGINE
from igrun.outputs import json as json_output
from igrun.record import (
    At,
    Batch,
    Compare,
    DataSource,
    Derived,
    Facts,
    Field,
    Framing,
    Kind,
    Lookup,
    Predicate,
    Region,
    Time,
    WallClock,
)

EVENTS = 2500
REGION = 1 << 20
CONTAINERS = 64
NAMES = {
    "k8s": ("containerName", "hostnetwork", "namespace", "node", "owner.kind", "owner.name", "podLabels", "podName"),
    "runtime": (
        *("containerId", "containerImageDigest", "containerImageName", "containerName", "containerPid"),
        *("containerStartedAt", "runtimeName"),
    ),
}


def main() -> None:
    """Measure and print."""
    read = argparse.ArgumentParser(description=__doc__)
    read.add_argument("--engine", choices=("fast", "reference"), default="fast")
    read.add_argument("--events", type=int, default=EVENTS, help="in a batch")
    read.add_argument("--rounds", type=int, default=60)
    given = read.parse_args()
    used = ENGINE if given.engine == "reference" else engine.open()
    small, big = small_source(), open_source()
    cases: dict[str, Callable[[], float]] = {}

    def add(name: str, source: DataSource, records: list[bytes], template: Template, keep: Predicate | None = None):
        cases[name] = lambda: per_event(used, source, records, template, keep, given.rounds)

    events = [small_event(number) for number in range(given.events)]
    opens = [open_event(number) for number in range(min(given.events, REGION // 430))]
    pid = small.field("pid")
    add("336 bytes: JSON", small, events, json_output.template(small))
    add("336 bytes: JSON, no containers", bare(small), events, json_output.template(bare(small)))
    add("336 bytes: columns", small, events, columns(small))
    add("336 bytes: filter 1.6 %, JSON", small, events, json_output.template(small), Compare(pid, "==", 17))
    name = small.field("fname")
    add("336 bytes: filter fname==", small, events, json_output.template(small), Compare(name, "==", "/etc/file17"))
    add("336 bytes: filter nothing", small, events, json_output.template(small), Compare(pid, "==", 1 << 20))
    add("trace_open: JSON", big, opens, json_output.template(big))
    add("trace_open: JSON, no containers", bare(big), opens, json_output.template(bare(big)))
    for name, measure in cases.items():
        print(f"{name:34} {measure():7.3f} us")


def per_event(
    used: Engine, source: DataSource, records: list[bytes], template: Template, keep: Predicate | None, rounds: int
) -> float:
    """The best of some passes."""
    facts = Facts({"container": container, **TABLES}, 1_700_000_000_000_000_000)
    printer, columns = used.printer(template, keep, facts), used.columns(facts)
    region = Region(ring(records), Framing.RING)
    best = 1e9
    for _ in range(rounds):
        batch = Batch(source, region, columns)
        start = time.process_time_ns()
        printed = printer(batch)
        best = min(best, time.process_time_ns() - start)
    assert printed.rows + printed.filtered == len(records)
    return best / len(records) / 1000


def ring(records: list[bytes]) -> bytes:
    return b"".join(struct.pack("<II", len(one), 0) + one + bytes(-len(one) % 8) for one in records)


# ---------------------------------------------------------------------------------------------- what is printed


def container(key: object) -> tuple[object, ...]:
    """The parts of one, as many bytes as real ones have."""
    if key not in range(4026532000, 4026532000 + CONTAINERS * 3 // 4):
        return tuple("" for names in NAMES.values() for _ in names)
    return tuple(
        f"{name}-{key}"[:20] if at != 8 else "0123456789abcdef" * 4 for at, name in enumerate(sum(NAMES.values(), ()))
    )


TABLES = {
    "errno": lambda number: ("" if number == 0 else f"E{number}",),
    "flags": lambda number: ("O_RDONLY|O_CLOEXEC" if number & 1 else "O_WRONLY|O_CREAT|O_TRUNC",),
    "mode": lambda number: ("-rw-r--r--",),
    "uid": lambda number: (f"user{number}",),
    "gid": lambda number: (f"group{number}",),
}


def containers(mntns: Field) -> list[Field]:
    names = [f"{group}.{name}" for group, below in NAMES.items() for name in below]
    return [Field(name, "T", Derived((mntns,), Lookup("container", part))) for part, name in enumerate(names)]


def named(name: str, table: str, raw: Field) -> Field:
    return Field(name, "T", Derived((raw,), Lookup(table)))


def bare(source: DataSource) -> DataSource:
    return source.without(*(f"{group}.{name}" for group, below in NAMES.items() for name in below))


def small_source() -> DataSource:
    boot, mntns = Field("timestamp_raw", "<u8", At(0)), Field("mntns_id", "<u8", At(8))
    wall = Field("timestamp_raw", "<u8", Derived((boot,), WallClock()))
    ids = [Field(name, "<u4", At(16 + 4 * at)) for at, name in enumerate(("pid", "tid", "ppid", "uid", "gid"))]
    flags, error, mode = (Field(f"{n}_raw", "<u4", At(36 + 4 * at)) for at, n in enumerate(("flags", "error", "mode")))
    fields = (
        *(wall, mntns, *ids, flags, error, mode, Field("comm", "|S16", At(48)), Field("pcomm", "|S16", At(64))),
        *(Field("fname", "|S256", At(80)), named("error", "errno", error), named("flags", "flags", flags)),
        *(named("mode", "mode", mode), Field("timestamp", "T", Derived((wall,), Time()))),
        *containers(mntns),
    )
    return DataSource("small", Kind.EVENTS, fields, size=336)


def small_event(number: int) -> bytes:
    any_ = random.Random(number)
    path = (f"/etc/file{number % 64}" + "/some/longer/path"[: any_.randrange(18)] * any_.randrange(4)).encode()
    if number % 50 == 0:
        path += b'"\\\x01\xff'
    numbers = 1000, 1001, 999, number % 4, 0, number & 1, 0 if number % 3 else 2, 0o644
    return struct.pack(
        "<QQIIIIIIII16s16s256s",
        *(10**12 + number * 777, 4026532000 + number * 7 % CONTAINERS, number % 62, *numbers[1:]),
        *(b"cat", b"bash", path),
    )


def columns(source: DataSource) -> Template:
    wanted = (("k8s.containerName", 16), ("comm", 16), ("pid", 7), ("tid", 7), ("uid", 5), ("fname", 32), ("mode", 10))
    pieces: list[bytes | Slot] = []
    for name, width in (*wanted, ("error", 7)):
        pieces += [b" ", Slot(source.field(name), Cell(width))]
    return Template((*pieces[1:], b"\n"))


def open_source() -> DataSource:
    """trace_open's, as the operators leave it, and containers."""
    from igrun.runtime import Gadget

    source = Gadget.open("trace_open").sources["open"]
    tables = {"errno", "flags", "mode", "uid", "gid", "file_mode", "file_flags"}
    for table in tables - set(TABLES):
        TABLES[table] = TABLES[table.removeprefix("file_")]
    return source.having(*containers(source.field("proc.mntns_id")))


def open_event(number: int) -> bytes:
    """struct event, cut before its last member."""
    path = f"/usr/lib/x86_64-linux-gnu/lib{number % 99}.so".encode()
    mntns = 4026532000 + number * 7 % CONTAINERS
    process = struct.pack("<16sIIQII16sII", b"cat", 4242, 4243, mntns, number % 4, 0, b"bash", 999, 999)
    head = struct.pack("<Q64sIIiH2x", 10**12 + number * 777, process, 0, 3, number & 1, 0o644)
    return head + bytes(72) + path.ljust(255, b"\0")


if __name__ == "__main__":
    main()
