"""Recordings: every record that a run reads, before any filter, and what printing it needs, in one file.

A file is `MAGIC` and frames: a byte that says what it is, four bytes of length, and so many bytes.

    HEAD    JSON: what the machine was, the image, the time zone
    ANSWER  JSON: what a table answers for a key (names of users, errors, containers, ...)
    BATCH   four bytes of length, JSON: source, framing, losses; then the region as the kernel wrote it
    TICK    nothing: time passed
    END     JSON: what was lost at the end; missing where the run was killed

A reader takes the frames that are whole. Nothing in a file is trusted: it holds JSON and bytes, no code.
"""

from __future__ import annotations

import base64
import json
import os
import struct
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self

from igrun.errors import GadgetError
from igrun.host import Host
from igrun.image import GadgetImage
from igrun.metadata import GadgetMetadata
from igrun.record import (
    TICK as NO_SOURCE,
)
from igrun.record import (
    Batch,
    Batches,
    Columns,
    Derived,
    Field,
    Framing,
    Key,
    Lookup,
    Reason,
    Region,
    Sources,
    Table,
    Value,
)

if TYPE_CHECKING:
    from igrun.bpfmap import BpfMap

MAGIC = b"igrun recording 1\n"
HEAD, ANSWER, BATCH, TICK, END = b"HABTE"
FRAME = struct.Struct("<BI")
LARGEST = 1 << 30  # bytes of a frame
LOCALTIME = Path("/etc/localtime")


# ---------------------------------------------------------------------------------------------- writing


class Recorder:
    """Writes a recording."""

    def __init__(
        self,
        path: Path,
        image: GadgetImage,
        host: Host,
        sources: Sources,
        tables: Mapping[str, Table],
        uncountable: Iterable[str] = (),
    ) -> None:
        """GadgetError: the file cannot be written. uncountable: sources whose losses nobody counts."""
        self._path, self._tables = path, tables
        self._lookups = {name: list(lookups(source.fields)) for name, source in sources.items()}
        self._known: set[tuple[str, Key]] = set()
        try:
            self._file: IO[bytes] = path.open("wb")
        except OSError as error:
            raise GadgetError(f"cannot write {path}: {error.strerror}") from None
        self._write(MAGIC)
        self._frame(HEAD, as_json({**head(image, host), "uncountable": list(uncountable)}))

    def taken(self, batches: Batches) -> Batches:
        """The batches as they come, each written before it is passed on."""
        for batch in batches:
            self.add(batch)
            yield batch

    def add(self, batch: Batch) -> None:
        """Write what the kernel wrote, and what tables say about it. GadgetError: it cannot be written."""
        if batch.source is NO_SOURCE:
            self._frame(TICK)
            self._flush()
            return
        for table, fields in self._lookups.get(batch.source.name, ()):
            columns = [hashable(batch.values(field)) for field in fields]
            keys: Iterable[Any] = columns[0] if len(columns) == 1 else zip(*columns, strict=True)
            for key in {(table, key) for key in keys} - self._known:
                self._known.add(key)
                answer = self._tables[table](key[1])
                self._frame(ANSWER, as_json([table, coded(key[1]), [coded(value) for value in answer]]))
        about = as_json(
            {
                "source": batch.source.name,
                "framing": batch.region.framing.value,
                "stride": batch.region.stride,
                "lost": {reason.value: count for reason, count in batch.lost.items()},
                "lost_on": {str(cpu): count for cpu, count in batch.lost_on.items()},
            }
        )
        memory = memoryview(batch.region.memory).cast("B")
        self._write(FRAME.pack(BATCH, 4 + len(about) + len(memory)), len(about).to_bytes(4, "little"), about, memory)

    def end(self, untold: Mapping[str, Mapping[Reason, int]], missed: int) -> None:
        """What became known at the end."""
        lost = {name: {reason.value: count for reason, count in one.items()} for name, one in untold.items()}
        self._frame(END, as_json({"untold": lost, "missed": missed}))

    def close(self) -> None:
        """Close the file. GadgetError: what was held could not be written."""
        try:
            self._file.close()
        except OSError as error:
            raise GadgetError(f"cannot write {self._path}: {error.strerror}") from None

    def _flush(self) -> None:
        try:
            self._file.flush()
        except OSError as error:
            raise GadgetError(f"cannot write {self._path}: {error.strerror}") from None

    def _frame(self, kind: int, data: bytes = b"") -> None:
        self._write(FRAME.pack(kind, len(data)), data)

    def _write(self, *parts: bytes | memoryview) -> None:
        try:
            for part in parts:
                self._file.write(part)
        except OSError as error:
            raise GadgetError(f"cannot write {self._path}: {error.strerror}") from None


def head(image: GadgetImage, host: Host) -> dict[str, Any]:
    """What printing needs beside the records."""
    zone = b""
    with suppress(OSError):
        zone = LOCALTIME.read_bytes()
    return {
        "image": {
            "digest": image.digest,
            "metadata": text_of(image.metadata_text),
            "ebpf": text_of(image.ebpf or b""),
            "wasm": text_of(image.wasm or b""),
        },
        "host": {
            "machine": host.machine,
            "release": host.release,
            "os_release": dict(host.os_release),
            "wall_minus_boot_ns": host.wall_minus_boot_ns,
            "page_size": host.page_size,
            "possible_cpus": host.possible_cpus,
            "online_cpus": host.online_cpus,
        },
        "zone": {"TZ": os.environ.get("TZ"), "localtime": text_of(zone)},
        "begun_ns": time.time_ns(),
    }


def lookups(fields: Iterable[Field]) -> set[tuple[str, tuple[Field, ...]]]:
    """The tables that fields ask, with what they ask about."""
    found = set()
    for field in fields:
        place = field.place
        if isinstance(place, Derived):
            found |= lookups(place.sources)
            if isinstance(place.rule, Lookup):
                found.add((place.rule.table, place.sources))
    return found


def hashable(column: Iterable[Any]) -> list[Any]:
    """The values as keys of tables are: arrays of bytes as bytes."""
    return [bytes(value) if isinstance(value, list) else value for value in column]


# ---------------------------------------------------------------------------------------------- reading


class Recording:
    """A recording, read from its beginning to its end. truncated: its run was killed, or still writes."""

    def __init__(self, path: Path) -> None:
        """GadgetError: it cannot be read, or is none."""
        self.path, self.truncated = path, False
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise GadgetError(f"cannot read {path}: {error.strerror}") from None
        try:
            if self._file.read(len(MAGIC)) != MAGIC:
                raise GadgetError(f"{path} is no recording", hint="`ig run IMAGE --record FILE` makes one")
            kind, data = next(self._frames(), (0, b""))
            if kind != HEAD:
                raise self._broken("it has no head")
            self._head = self._json(data)
            self.image, self.host = self._image(), self._host()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def batches(self, sources: Sources, columns: Columns, answers: dict[str, dict[Key, tuple[Value, ...]]]) -> Batches:
        """The batches as they were read. answers: gets what tables answered, before the records that ask.

        GadgetError: the file is broken
        """
        for kind, data in self._frames():
            if kind == ANSWER:
                table, key, values = self._parts(data)
                answers.setdefault(table, {})[key] = values
            elif kind == TICK:
                yield Batch(NO_SOURCE, Region(b"", Framing.RING))
            elif kind == BATCH:
                yield self._batch(data, sources, columns)
            elif kind == END:
                self.ending = self._json(data)
                return
        self.truncated = True

    ending: Mapping[str, Any] = {}

    def untold(self) -> dict[str, Counter[Reason]]:
        """What was lost at the end, by source."""
        return {name: self._lost(lost) for name, lost in dict(self.ending.get("untold", {})).items()}

    @property
    def missed(self) -> int:
        missed = self.ending.get("missed", 0)
        return missed if isinstance(missed, int) else 0

    def zone(self) -> tuple[str | None, bytes]:
        """The variable TZ and /etc/localtime of the machine."""
        zone = self._head.get("zone")
        if not isinstance(zone, dict):
            return None, b""
        name = zone.get("TZ")
        return name if isinstance(name, str) else None, self._bytes(zone.get("localtime", ""))

    def _frames(self) -> Iterator[tuple[int, bytes]]:
        while len(head := self._file.read(FRAME.size)) == FRAME.size:
            kind, length = FRAME.unpack(head)
            if length > LARGEST:
                raise self._broken(f"a frame of {length} bytes")
            data = self._file.read(length)
            if len(data) < length:
                return
            yield kind, data

    def _batch(self, data: bytes, sources: Sources, columns: Columns) -> Batch:
        size = int.from_bytes(data[:4], "little")
        about = self._json(data[4 : 4 + size])
        source = sources.get(str(about.get("source")))
        stride = about.get("stride")
        if source is None or not isinstance(stride, int) or not 0 <= stride <= LARGEST:
            raise self._broken("a batch of no source")
        try:
            framing = Framing(about.get("framing"))
        except ValueError:
            raise self._broken("a batch of no framing") from None
        lost, lost_on = self._lost(about.get("lost")), self._lost_on(about.get("lost_on"))
        return Batch(source, Region(data[4 + size :], framing, stride), columns, lost=dict(lost), lost_on=lost_on)

    def _lost(self, lost: Any) -> Counter[Reason]:
        try:
            return Counter({Reason(name): int(count) for name, count in dict(lost or {}).items()})
        except (TypeError, ValueError):
            raise self._broken("losses that are none") from None

    def _lost_on(self, lost: Any) -> dict[int, int]:
        try:
            return {int(cpu): int(count) for cpu, count in dict(lost or {}).items()}
        except (TypeError, ValueError):
            raise self._broken("losses that are none") from None

    def countable(self, source: str) -> bool:
        """True if every record of the source that the kernel lost was counted."""
        return source not in (self._head.get("uncountable") or ())

    def _image(self) -> GadgetImage:
        image = self._head.get("image")
        if not isinstance(image, dict):
            raise self._broken("it has no image")
        text = self._bytes(image.get("metadata", ""))
        ebpf, wasm = (self._bytes(image.get(part, "")) or None for part in ("ebpf", "wasm"))
        metadata = GadgetMetadata.parse(text, strict=False)
        return GadgetImage(metadata, text, ebpf, wasm, None, str(image.get("digest", "")))

    def _host(self) -> Host:
        told: Any = self._head.get("host")
        try:
            return Host(
                root=Path("/nonexistent"),
                machine=str(told["machine"]),
                release=str(told["release"]),
                os_release={str(key): str(value) for key, value in told["os_release"].items()},
                wall_minus_boot_ns=int(told["wall_minus_boot_ns"]),
                capabilities=frozenset(),
                lockdown="",
                page_size=int(told["page_size"]),
                possible_cpus=tuple(map(int, told["possible_cpus"])),
                online_cpus=tuple(map(int, told["online_cpus"])),
                tracefs=None,
            )
        except (TypeError, KeyError, ValueError, AttributeError):
            raise self._broken("its head does not say what the machine was") from None

    def _parts(self, data: bytes) -> tuple[str, Key, tuple[Value, ...]]:
        try:
            table, key, values = json.loads(data)
            return str(table), decoded(key), tuple(map(decoded, values))
        except (ValueError, TypeError, RecursionError):
            raise self._broken("an answer that is none") from None

    def _json(self, data: bytes) -> dict[str, Any]:
        try:
            found = json.loads(data)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise self._broken("a frame that is no JSON")
        return found

    def _bytes(self, text: Any) -> bytes:
        try:
            return base64.b64decode(text, validate=True)
        except (ValueError, TypeError):
            raise self._broken("bytes that are no base64") from None

    def _broken(self, why: str) -> GadgetError:
        return GadgetError(f"{self.path} is broken: {why}")


class Answers(dict[str, Table]):
    """Tables that answer what was recorded; a key that was never asked about is its own answer."""

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[str, dict[Key, tuple[Value, ...]]] = {}

    def __missing__(self, table: str) -> Table:
        def answer(key: Key) -> tuple[Value, ...]:
            found = self.known.get(table, {}).get(key)
            return found if found is not None else (str(key),) * 16

        self[table] = answer
        return answer


class Played:
    """A program that ran once (see `program.Loaded`)."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording

    @property
    def host(self) -> Host:
        return self._recording.host

    def map(self, name: str) -> BpfMap:
        """GadgetError: maps are not recorded."""
        raise GadgetError(f"map {name!r} is not in a recording")

    def missed(self) -> int:
        """Runs of programs that the kernel left out."""
        return self._recording.missed


class Playing:
    """The events of a recording, as `events.Events` gives those of the kernel."""

    def __init__(self, recording: Recording, sources: Sources, columns: Columns, answers: Answers) -> None:
        self._recording, self._sources, self._columns, self._answers = recording, sources, columns, answers
        self._stopping = False

    def run(self) -> Batches:
        """Batches until `stop`, or to the end."""
        for batch in self._recording.batches(self._sources, self._columns, self._answers.known):
            yield batch
            if self._stopping:
                return

    def lend(self) -> None:
        """Its batches are their own."""

    def stop(self) -> None:
        """End before the next batch."""
        self._stopping = True

    def untold(self) -> dict[str, Counter[Reason]]:
        return self._recording.untold()

    def so_far(self) -> dict[str, dict[Reason | int, int]]:
        """Nothing is lost while it is played."""
        return {}

    def countable(self, source: str) -> bool:
        return self._recording.countable(source)

    def leave(self) -> dict[str, Counter[Reason]]:
        """What is not read of a file is not left behind."""
        return {}


def set_zone(recording: Recording, keep: ExitStack) -> None:
    """Show times as the machine did that recorded, until the stack closes."""
    name, localtime = recording.zone()
    before = os.environ.get("TZ")
    if not localtime and name is None:
        return
    if name is None or name.startswith(":"):
        fd = os.memfd_create("zone", os.MFD_CLOEXEC)
        keep.callback(os.close, fd)
        os.write(fd, localtime)
        name = f":/proc/self/fd/{fd}"

    def back() -> None:
        if before is None:
            os.environ.pop("TZ", None)
        else:
            os.environ["TZ"] = before
        time.tzset()

    keep.callback(back)
    os.environ["TZ"] = name
    time.tzset()


# ---------------------------------------------------------------------------------------------- values


def as_json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=True).encode()


def text_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def coded(value: Any) -> Any:
    """A key or value as JSON has it: what it has no form for as a list of one letter and a text."""
    if isinstance(value, bytes):
        return ["b", text_of(value)]
    if isinstance(value, tuple | list):
        return ["t" if isinstance(value, tuple) else "l", [coded(one) for one in value]]
    return value


def decoded(value: Any) -> Any:
    """What `coded` made it of. ValueError, TypeError."""
    if not isinstance(value, list):
        return value
    kind, content = value
    if kind == "b":
        return base64.b64decode(content, validate=True)
    if kind not in ("t", "l"):
        raise ValueError("no such value")
    parts = [decoded(one) for one in content]
    return tuple(parts) if kind == "t" else parts
