"""Data sources like those of the ecosystem's gadgets, with one record each, made by hand."""

import struct
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import pytest

from igrun import plugins
from igrun.engine.reference import ENGINE
from igrun.outputs import Shown
from igrun.record import (
    Address,
    At,
    Batch,
    DataSource,
    Derived,
    Endpoint,
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

BASE = {"columns.width": "16", "columns.ellipsis": "end", "columns.alignment": "left"}
RIGHT = {**BASE, "columns.alignment": "right"}
MODES = {0: "----------", 0o666: "-rw-rw-rw-"}
FLAGS = {577: "O_WRONLY|O_CREAT|O_TRUNC", 524288: "O_RDONLY|O_CLOEXEC"}
TABLES = {
    "errno": lambda number: ({0: "", 2: "ENOENT"}[number],),
    "signal": lambda number: ({15: "SIGTERM", 13: "SIGPIPE"}[number],),
    "mode": lambda number: (MODES[number],),
    "flags": lambda number: (FLAGS[number],),
    "protocol": lambda number: ({17: "UDP", 6: "TCP"}[number],),
    "user": lambda number: ("root" if number == 0 else f"uid:{number}",),
    "group": lambda number: ("root" if number == 0 else f"gid:{number}",),
}


@dataclass
class Sample:
    """A source and records of it (each as long as its C struct)."""

    source: DataSource
    records: list[bytes]
    facts: Facts = field(default_factory=lambda: Facts(TABLES))
    printed: list[bytes] = field(default_factory=list)

    def batch(self, *records: bytes) -> Batch:
        raw = b"".join(records or self.records)
        return Batch(self.source, Region(raw, Framing.FIXED, self.source.size), ENGINE.columns(self.facts))

    def open(
        self,
        mode: str,
        fields: str | None = None,
        keep: Predicate | None = None,
        terminal: bool = False,
        width: Callable[[], int] = lambda: 80,
        file: str = "",
        values: Mapping[str, str] = MappingProxyType({}),
    ):
        shown = Shown(self.source, mode, keep, self.facts, ENGINE, fields, terminal, width, file, values)
        return plugins.output(mode).open(shown, self.printed.append)

    def text(self, mode: str, **how) -> str:
        """What all records print."""
        writer = self.open(mode, **how)
        assert writer.write(self.batch()) == len(self.records)
        writer.close()
        return b"".join(self.printed).decode()


def named(name: str, table: str, raw: Field, **more) -> Field:
    return Field(name, "T", Derived((raw,), Lookup(table)), **{"annotations": BASE, **more})


def times() -> list[Field]:
    boot = Field("timestamp_raw", "<u8", At(0), hidden=True)
    wall = Field("timestamp_raw", "<u8", Derived((boot,), WallClock()), hidden=True, annotations=BASE)
    return [wall, Field("timestamp", "T", Derived((wall,), Time()), hidden=True, annotations=BASE)]


def process(at: int, prefix: str = "proc.") -> list[Field]:
    """struct gadget_process; without a prefix its members stand at the top."""

    def member(name: str, dtype: str, offset: int, look: dict[str, str] = RIGHT, hidden: bool = False) -> Field:
        alias = {"columns.alias": name.rpartition(".")[2]}
        return Field(prefix + name, dtype, At(at + offset), annotations={**look, **alias}, hidden=hidden)

    uid, gid = member("creds.uid", "<u4", 32, hidden=True), member("creds.gid", "<u4", 36, hidden=True)
    parent = [Field(prefix[:-1], "|V64", At(at), hidden=True)] if prefix else []
    return [
        *parent,
        member("comm", "|S16", 0, BASE),
        member("pid", "<u4", 16),
        member("tid", "<u4", 20),
        member("mntns_id", "<u8", 24, hidden=True),
        Field(prefix + "creds", "|V8", At(at + 32), hidden=True),
        *(uid, gid, named(prefix + "creds.user", "user", uid, hidden=True)),
        named(prefix + "creds.group", "group", gid, hidden=True),
        Field(prefix + "parent", "|V24", At(at + 40), hidden=True),
        member("parent.comm", "|S16", 40, BASE, hidden=True),
        member("parent.pid", "<u4", 56, hidden=True),
        # The real tool shows it, by an oversight
        member("parent.tid", "<u4", 60, BASE),
    ]


def process_bytes(comm: bytes, pid: int, parent: int, parent_comm: bytes = b"sh", mntns: int = 4026532169) -> bytes:
    return struct.pack("<16sIIQII16sII", comm, pid, pid, mntns, 0, 0, parent_comm, parent, parent)


def endpoint(name: str, at: int) -> list[Field]:
    wide = {**BASE, "columns.width": "40", "columns.ellipsis": "middle", "columns.replace": f"{name}.endpoint"}
    raw, port = Field(f"{name}.addr_raw", "|V16", At(at)), Field(f"{name}.port", "<u2", At(at + 16), hidden=True)
    proto = Field(f"{name}.proto_raw", "<u2", At(at + 18), hidden=True)
    version = Field(f"{name}.version", "|u1", At(at + 20), hidden=True)
    text = Derived((raw, version, port), Endpoint())
    return [
        Field(name, "|V32", At(at), annotations=wide),
        *(port, proto, version),
        Field(f"{name}.addr", "T", Derived((raw, version), Address()), hidden=True),
        named(f"{name}.proto", "protocol", proto, hidden=True),
        Field(f"{name}.endpoint", "T", text, hidden=True, annotations={"json.skip": "true"}),
    ]


def endpoint_bytes(address: bytes, port: int, proto: int = 17, version: int = 4) -> bytes:
    return struct.pack("<16sHHB11x", address, port, proto, version)


STACK = (
    *(("major", "<u4", 0), ("minor", "<u4", 4), ("inode", "<u8", 8), ("mtime_sec", "<u8", 16)),
    *(("mtime_nsec", "<u4", 24), ("base_addr_hash", "<u4", 28), ("stack_id", "<u4", 32), ("tgid_level0", "<u4", 36)),
    *(("pid_level0", "<u4", 40), ("pidns_level0", "<u4", 44), ("pid_level1", "<u4", 48), ("pidns_level1", "<u4", 52)),
    *(("otel_correlation_id", "<u8", 56), ("boot_timestamp", "<u8", 64)),
)


def open_source() -> DataSource:
    """trace_open's, without the columns of containers and stacks."""
    wide = {**BASE, "columns.width": "32", "columns.minwidth": "24"}
    error = Field("error_raw", "<u4", At(72), hidden=True)
    flags, mode = Field("flags_raw", "<i4", At(80), hidden=True), Field("mode_raw", "<u2", At(84), hidden=True)
    stack = [Field(f"ustack.{name}", dtype, At(88 + at), hidden=True) for name, dtype, at in STACK]
    wall, timestamp = times()
    fields = [
        *(wall, *process(8), error),
        Field("fd", "<u4", At(76), annotations=RIGHT),
        *(flags, mode, Field("ustack", "|V72", At(88), hidden=True), *stack),
        Field("fname", "|S255", At(160), annotations=wide),
        Field("fpath", "|S512", At(415), annotations=wide),
        named("error", "errno", error, order=28, annotations={**BASE, "columns.width": "12"}),
        timestamp,
        named("mode", "mode", mode, order=30),
        named("flags", "flags", flags, order=31, hidden=True),
    ]
    return DataSource("open", Kind.EVENTS, tuple(fields), size=928)


def open_bytes(
    comm: bytes,
    pid: int,
    parent: int,
    fname: bytes,
    fd: int = 3,
    error: int = 0,
    flags: int = 0,
    mode: int = 0,
    at: int = 1,
    **more,
) -> bytes:
    head = struct.pack("<Q64sIIiH2x", at, process_bytes(comm, pid, parent, **more), error, fd, flags, mode)
    return (head + bytes(72) + fname.ljust(255, b"\0")).ljust(928, b"\0")


@pytest.fixture
def utc(monkeypatch) -> Iterator[None]:
    with monkeypatch.context() as changed:
        changed.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


@pytest.fixture
def trace_open() -> Sample:
    return Sample(
        open_source(),
        [
            open_bytes(b"sh", 269, 248, b"/dev/null", flags=577, mode=0o666),
            open_bytes(b"cat", 1553, 269, b"/etc/hosts", flags=524288),
            open_bytes(b"cat", 1554, 269, b"/nonexistent", fd=0, error=2, flags=524288),
        ],
    )


@pytest.fixture
def opened_on_the_host() -> Sample:
    """The record of the captures' jsonpretty and yaml."""
    at = 1795217215274914134
    record = open_bytes(
        b"catx", 30079, 30032, b"/etc/ld.so.cache", flags=524288, at=at, parent_comm=b"bash", mntns=4026531832
    )
    return Sample(open_source(), [record])


@pytest.fixture
def trace_signal() -> Sample:
    error = Field("error_raw", "<u4", At(80), hidden=True)
    sig = Field("sig_raw", "<u4", At(72), hidden=True)
    wall, timestamp = times()
    fields = [
        *(wall, *process(8), sig, Field("tpid", "<u4", At(76), annotations=RIGHT), error),
        named("sig", "signal", sig, order=20, annotations={**BASE, "columns.width": "10"}),
        named("error", "errno", error, order=21, annotations={**BASE, "columns.width": "12"}),
        timestamp,
    ]
    records = [
        struct.pack("<Q64sIIII", 1795217809286876320, process_bytes(b"sh", 14712, 269), 15, 14713, 0, 0),
        struct.pack("<Q64sIIII", 1795217809286876321, process_bytes(b"wget", 14390, 14387), 13, 14390, 0, 0),
    ]
    return Sample(DataSource("signal", Kind.EVENTS, tuple(fields), size=88), records)


@pytest.fixture
def snapshot_process() -> Sample:
    records = [process_bytes(b"sh", 269, 248, b"containerd-shim"), process_bytes(b"dnsd", 296, 269)]
    return Sample(DataSource("processes", Kind.TABLE, tuple(process(0, "")), size=64), records)


@pytest.fixture
def snapshot_socket() -> Sample:
    fields = (
        *endpoint("src", 0),
        *endpoint("dst", 32),
        Field("state", "<u4", At(64), annotations={**BASE, "columns.width": "10"}),
        Field("ino", "<u8", At(72), annotations=BASE, hidden=True),
        Field("netns_id", "<u4", At(80), annotations=BASE, hidden=True),
    )

    def record(src: bytes, dst: bytes, state: int, inode: int) -> bytes:
        return struct.pack("<32s32sI4xQI4x", src, dst, state, inode, 4026532173)

    nowhere = endpoint_bytes(b"", 0)
    records = [
        record(endpoint_bytes(b"\x7f\0\0\1", 53), nowhere, 7, 725),
        record(endpoint_bytes(b"", 443, 6, 6), endpoint_bytes(b"", 0, 6, 6), 10, 726),
    ]
    return Sample(DataSource("sockets", Kind.TABLE, fields, size=88), records)


@pytest.fixture
def sampled():
    """Makes a sample of a source and records."""
    return lambda source, *records: Sample(source, list(records), Facts(dict(TABLES)))


@pytest.fixture
def printing(sampled):
    """What one record prints by a template."""

    def text(source, record, template) -> str:
        sample = sampled(source, record)
        if not record:  # FIXED has no records without bytes
            batch = Batch(source, Region(bytes(8), Framing.RING), ENGINE.columns(sample.facts))
        else:
            batch = sample.batch()
        return ENGINE.printer(template, None, sample.facts)(batch).text.decode()

    return text
