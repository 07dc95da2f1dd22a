"""The record engine in WebAssembly: records.c and its host. It prints what the reference prints, byte for byte."""

from __future__ import annotations

import ctypes as C
import os
import time
from array import array
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from igrun.engine import Out, Printed, Printer, Slot, Template, Yaml, structs
from igrun.engine.framing import walk
from igrun.engine.machine import Block, Machine, Mapped, NoRoomError
from igrun.engine.printing import Filter, Printing
from igrun.engine.programs import made
from igrun.engine.reference import ReferenceColumns
from igrun.engine.structs import Graph, Image, Job, Memo, Op, Test, Walk
from igrun.record import Batch, Columns, Facts, Framing, Predicate, Records, Region

Memory = bytes | bytearray | memoryview
_FRAMINGS = {Framing.RING: structs.RING, Framing.PERF: structs.PERF, Framing.FIXED: structs.FIXED}
_ENTRIES = 256, 1 << 16  # of a memo: at first, at most
_POOL = 4096, 16 << 20  # bytes of a memo's texts
_PROGRAM = 1 << 14  # bytes that most programs are smaller than
_TEXT = 512 << 10, 8 << 20  # bytes that are printed at once: about half of a CPU's cache, if that is possible; at most
_U64 = (1 << 64) - 1


class Fast:
    """Makes columns and text out of records (see engine.Engine). Not for several threads at once."""

    def __init__(self) -> None:
        """NoEngineError."""
        self._work = Work()

    def columns(self, facts: Facts) -> Columns:
        """The evaluator that batches carry."""
        return FastColumns(self._work, facts)

    def printer(self, template: Template, keep: Predicate | None, facts: Facts) -> Printer:
        """A printer by this template of the rows for which `keep` holds. Its texts are valid until the next is made."""
        if any(isinstance(piece, Slot) and isinstance(piece.form, Yaml) for piece in template.pieces):
            return Printing(template, keep, facts)
        try:
            return FastPrinter(self._work, template, keep, facts)
        except NoRoomError:
            return Printing(template, keep, facts)

    def room(self, size: int) -> memoryview | None:
        """Memory for a region, which is then not copied again; None: too much of it is in use."""
        room = self._work.machine.lend(size + structs.SLACK)
        return room and room[:size]

    def window(self, fd: int, offset: int, size: int) -> FastWindow | None:
        """A mapping of a ring's data that it reads where it is; None: there is no room for it."""
        try:
            return FastWindow(self._work, self._work.machine.map(fd, offset, size))
        except NoRoomError:
            return None


class FastWindow:
    """A ring's data in the engine's memory (see engine.Window)."""

    def __init__(self, work: Work, mapped: Mapped) -> None:
        self._work, self._mapped = work, mapped
        self.address = work.machine.base + mapped.address

    def region(self, start: int, size: int) -> Region | None:
        """The complete records among these bytes, from the first one on; None: there is none."""
        place = self._mapped.address + start
        records, end = self._work.records(place, size, structs.RING)
        return Region(self._work.machine.memory[place : place + end], Framing.RING, 0, records) if end else None

    def close(self, start: int = 0, size: int = 0) -> None:
        """Unmap it. Regions among these bytes stay as they are."""
        self._mapped.close(start, size)


class FastColumns(ReferenceColumns):
    """Evaluates fields and predicates over a batch (see record.Columns)."""

    def __init__(self, work: Work, facts: Facts) -> None:
        super().__init__(facts)
        self._work = work
        self._kept: dict[int, tuple[Predicate, FastFilter]] = {}

    def walk(self, region: Region) -> Records:
        """Find the records; busy, discarded and malformed ones are left out."""
        try:
            return self._work.walked(region, self._work.place(region.memory))
        except NoRoomError:
            return walk(region)

    def where(self, batch: Batch, predicate: Predicate) -> array[int]:
        """The selected records (indices, array "I") for which it holds."""
        known = self._kept.get(id(predicate))
        try:
            if known is None:
                new = FastFilter(self._work, tests_of(predicate, self._facts), self._facts)
                known = self._kept[id(predicate)] = predicate, new
            return known[1](batch)
        except NoRoomError:
            return super().where(batch, predicate)


class FastFilter:
    """The selected records of a batch for which a predicate holds (indices, array "I")."""

    def __init__(self, work: Work, tests: Graph, facts: Facts) -> None:
        self._work = work
        self._rest = None if tests.rest is None else Filter(tests.rest, facts)
        self._program = None
        if tests.first != structs.KEEP:
            self._program = Loaded(work, (), b"", tests, facts)

    def __call__(self, batch: Batch) -> array[int]:
        kept = self._program.select(batch) if self._program else None
        if self._rest is not None:
            kept = array("I", self._rest(batch if kept is None else batch.narrowed(kept, None)))
        elif kept is None:
            kept = array("I", range(len(batch)) if batch.selected is None else batch.selected)
        return kept


class FastPrinter:
    """A printer (see engine.Printer)."""

    def __init__(self, work: Work, template: Template, keep: Predicate | None, facts: Facts) -> None:
        program, tests = made(template, facts), tests_of(keep, facts)
        self._work = work
        self._sides = program.sides
        self._filter: FastFilter | None = None
        if keep is not None and (tests.rest is not None or program.sides):
            # Only rows that pass are worth the reference's time
            self._filter = FastFilter(work, tests, facts)
            tests = Graph()
        self._program = Loaded(work, program.ops, template.between, tests, facts)
        self._arguments = template, keep, facts

    def __call__(self, batch: Batch, out: Out | None = None) -> Printed:
        given = Given()
        try:
            if self._filter is None and not self._sides:
                return self._program.print(batch, batch.selected, (), out, given)
            if self._filter is not None:
                before, batch = len(batch), batch.narrowed(self._filter(batch), None)
                given.filtered = before - len(batch)
            sides = [list(side.rows(batch, batch.selected, len(batch))) for side in self._sides]
            return self._program.print(batch, batch.selected, sides, out, given)
        except NoRoomError:
            rest = batch.select(slice(given.at, None), None) if given.at else batch
            text, rows, filtered = Printing(*self._arguments)(rest)
            if given.rows and rows:
                text = self._arguments[0].between + text
            return Printed(text, given.rows + rows, given.filtered + filtered)


class Given:
    """What of a batch has been given away: how many of its rows were looked at, printed, filtered."""

    __slots__ = ("at", "filtered", "rows")

    def __init__(self) -> None:
        self.at = self.rows = self.filtered = 0


def tests_of(keep: Predicate | None, facts: Facts) -> Graph:
    """The tests of a predicate. ParamError: an expression is wrong."""
    if keep is None:
        return Graph()
    from igrun.engine.conditions import graph

    return graph(keep, facts)


class Loaded:
    """A program in the engine's memory, and the texts that it remembers."""

    def __init__(self, work: Work, ops: Sequence[Op], between: bytes, tests: Graph, facts: Facts) -> None:
        """NoRoomError."""
        self._work, self._facts = work, facts
        users: list[Op | Test] = [*ops, *tests.tests]
        memos = list({id(memo): memo for one in users for memo in one.memos}.values())
        size = _PROGRAM
        while True:
            self._block = work.machine.take(size)
            image = Image(self._block.address, ops, between, tests.tests, tests.first, memos)
            size = len(image.bytes) + structs.SLACK
            if size <= self._block.size:
                break
        work.machine.write(self._block.address, image.bytes)
        work.prepare(self._block.address)
        self._texts = {image.memos[id(memo)]: Texts(work, memo, image.memos[id(memo)]) for memo in memos}
        self._forgotten = dict(facts.forgotten)

    def print(
        self,
        batch: Batch,
        selected: Sequence[int] | None,
        sides: Sequence[list[bytes]],
        out: Out | None,
        given: Given,
    ) -> Printed:
        """Print the records `selected` (None: all) for which its tests hold.

        sides: a text per record
        out:   takes the text as far as it is each time the buffer is full
        given: told then; what it has to begin with counts too
        """
        work, job = self._work, self._work.job
        self._set_up(batch, selected)
        blocks = work.put_sides(sides)
        buffer = work.out
        job.out, job.end = buffer.address, buffer.address + buffer.size
        job.printed, job.filtered = given.rows, given.filtered
        parts: list[bytes] = []
        while self._run(work.print, batch) != structs.DONE:
            used = job.out - buffer.address
            if used and out:
                out(work.machine.memory[buffer.address : job.out])
                job.out = buffer.address
                given.at, given.rows, given.filtered = job.at, job.printed, job.filtered
            elif used and 2 * buffer.size > _TEXT[1]:
                parts.append(bytes(work.machine.memory[buffer.address : job.out]))
                job.out = buffer.address
            else:
                old, buffer = buffer, work.machine.take(2 * buffer.size)
                work.machine.write(buffer.address, work.machine.memory[old.address : old.address + used])
                job.out, job.end = buffer.address + used, buffer.address + buffer.size
                work.out = buffer
        del blocks
        text: bytes | memoryview = work.machine.memory[buffer.address : job.out]
        return Printed(b"".join([*parts, text]) if parts else text, job.printed, job.filtered)

    def select(self, batch: Batch) -> array[int]:
        """The selected records for which its tests hold."""
        work, job = self._work, self._work.job
        self._set_up(batch, batch.selected)
        kept = work.machine.take(4 * job.rows)
        job.out, job.end = kept.address, kept.address + kept.size
        self._run(work.select, batch)
        found = array("I")
        found.frombytes(work.machine.memory[kept.address : job.out])
        return found

    def _set_up(self, batch: Batch, selected: Sequence[int] | None) -> None:
        job = self._work.job
        if self._forgotten != self._facts.forgotten:
            self._forget()
        self._work.put_rows(batch, selected)
        job.program = self._block.address
        job.now, job.wall_minus_boot = time.time_ns(), self._facts.wall_minus_boot_ns & _U64

    def _forget(self) -> None:
        changed = {table for table, times in self._facts.forgotten.items() if self._forgotten.get(table) != times}
        self._forgotten = dict(self._facts.forgotten)
        for texts in self._texts.values():
            if changed & texts.memo.tables:
                texts.forget()

    def _run(self, function: Any, batch: Batch) -> int:
        """Run it until all is done, or the output is full. What it does not know it is told."""
        work, job = self._work, self._work.job
        while True:
            why: int = function(work.job_address)
            if why == structs.MISSING:
                self._texts[job.memo].add(batch, job.record, job.key)
            elif why in (structs.DONE, structs.FULL):
                return why
            else:
                work.tell(job.key)


class Texts:
    """The texts that the engine remembers of a memo."""

    def __init__(self, work: Work, memo: Memo, address: int) -> None:
        """address: of its struct. NoRoomError."""
        self.memo = memo
        self._work, self._address = work, address
        self._entries, self._pool = work.machine.take(16 * _ENTRIES[0], zeros=True), work.machine.take(_POOL[0])
        head = self._entries.address, _ENTRIES[0] - 1, 0, self._pool.address, _POOL[0] - structs.SLACK
        work.machine.write(address, structs.MEMO.pack(*head, 0, *self._state()[6:]))

    def add(self, batch: Batch, record: int, key: int) -> None:
        """Make the text for a record. NoRoomError."""
        text = self.memo.fill(batch, record, key)
        block = self._work.machine.take(len(text) + structs.SLACK)
        self._work.machine.write(block.address, text)
        while not self._work.remember(self._address, key, block.address, len(text)):
            self._make_room(len(text))

    def forget(self) -> None:
        """Forget all of them."""
        self._work.forget(self._address)

    def _state(self) -> tuple[int, ...]:
        found: tuple[int, ...] = structs.MEMO.unpack_from(self._work.machine.memory, self._address)
        return found

    def _make_room(self, length: int) -> None:
        """Let it have more entries or a larger pool, whichever it lacks; or it starts anew."""
        _, mask, used, _, pool_size, pool_used, _, _, key_size, *_ = self._state()
        needed = key_size + length + 8
        entries = (mask + 1) * (4 if used >= mask - mask // 4 else 1)
        pool = self._pool.size * (4 if needed > pool_size - pool_used else 1)
        if needed <= pool_size and (entries > _ENTRIES[1] or pool > _POOL[1]):
            self.forget()
            return
        before = self._entries, self._pool
        self._entries = self._work.machine.take(16 * min(entries, _ENTRIES[1]), zeros=True)
        self._pool = self._work.machine.take(max(pool, needed + structs.SLACK))
        entries, pool = self._entries.size // 16, self._pool.size - structs.SLACK
        self._work.move(self._address, self._entries.address, entries, self._pool.address, pool)
        del before


class Work:
    """The instance that does the work: its functions, and what they work on."""

    def __init__(self) -> None:
        """NoEngineError."""
        self.machine = machine = Machine()
        function = machine.function
        self.print, self.select, self._walk = function("print"), function("select"), function("walk")
        self.prepare, self.remember, self.forget = function("prepare"), function("remember"), function("forget")
        self.move, self._tell = function("move"), function("tell")
        self._structs = machine.take(C.sizeof(Job) + C.sizeof(Walk))
        self.job_address = self._structs.address
        self.job: Any = Job.from_address(machine.base + self.job_address)
        self._walk_address = self.job_address + C.sizeof(Job)
        self._walking: Any = Walk.from_address(machine.base + self._walk_address)
        function("mix")(int.from_bytes(os.urandom(8), "little"))
        self.out = machine.take(_TEXT[0])
        self._placed: Records | None = None  # whose offsets and lengths are in place
        self._region = machine.take(1 << 10)
        self._selected = machine.take(1 << 10)
        self._room_for(1024)

    # ------------------------------------------------------------------------------------------ records

    def place(self, memory: Memory) -> int:
        """The address of a region, which is copied unless it is in the engine's memory already. NoRoomError."""
        size = len(memory)
        if isinstance(memory, memoryview) and not memory.readonly and size:
            address = C.addressof(C.c_char.from_buffer(memory)) - self.machine.base
            if 0 <= address < 1 << 32:
                return address
        self._region = self._grown(self._region, size + structs.SLACK)
        self.machine.write(self._region.address, memory)
        return self._region.address

    def walked(self, region: Region, address: int) -> Records:
        """The records of a region at this address; they are in place for a job too. NoRoomError."""
        return self.records(address, len(region.memory), _FRAMINGS[region.framing], max(region.stride, 0))[0]

    def records(self, address: int, size: int, framing: int, stride: int = 0) -> tuple[Records, int]:
        """The records in these bytes, and where it stopped: at one that is busy or not all there. NoRoomError."""
        walking = self._walking
        walking.region, walking.size = address, size
        walking.framing, walking.stride = framing, stride
        while True:
            walking.offsets, walking.lengths, walking.room = self._offsets.address, self._lengths.address, self._most
            walking.at = 0
            count = self._walk(self._walk_address)
            if not walking.more:
                break
            self._room_for(4 * self._most)
        offsets, lengths, memory = array("Q"), array("I"), self.machine.memory
        offsets.frombytes(memory[self._offsets.address : self._offsets.address + 8 * count])
        lengths.frombytes(memory[self._lengths.address : self._lengths.address + 4 * count])
        self._placed = Records(offsets, lengths)
        return self._placed, walking.at

    def put_rows(self, batch: Batch, selected: Sequence[int] | None) -> None:
        """Put the records of a batch into the job, walking the region if nobody has. NoRoomError."""
        job, memory = self.job, batch.region.memory
        job.region, job.size = self.place(memory), len(memory)
        job.rest = batch.source.size
        records = batch.records
        if records is None:
            records = batch.records = self.walked(batch.region, job.region)
        elif records is not self._placed:
            self._room_for(len(records.offsets))
            self.machine.write(self._offsets.address, memoryview(records.offsets).cast("B"))
            self.machine.write(self._lengths.address, memoryview(records.lengths).cast("B"))
            self._placed = records
        job.offsets, job.lengths = self._offsets.address, self._lengths.address
        job.records = job.rows = len(records.offsets)
        job.at = job.selected = 0
        if selected is not None:
            indices = selected if isinstance(selected, array) and selected.typecode == "I" else array("I", selected)
            self._selected = self._grown(self._selected, 4 * len(indices))
            self.machine.write(self._selected.address, memoryview(indices).cast("B"))
            job.selected, job.rows = self._selected.address, len(indices)

    def put_sides(self, sides: Sequence[list[bytes]]) -> list[Block]:
        """Put side columns into the job; they are there as long as the blocks are. NoRoomError."""
        blocks: list[Block] = []
        structs = array("I")
        for texts in sides:
            blocks += [self._put(b"".join(texts)), self._put(array("I", accumulate(map(len, texts))).tobytes())]
            structs.extend(block.address for block in blocks[-2:])
        if sides:
            blocks.append(self._put(structs.tobytes()))
            self.job.sides = blocks[-1].address
        return blocks

    def tell(self, page: int) -> None:
        """Say which of 256 characters are printable."""
        bits = bytearray(32)
        for at in range(256):
            bits[at >> 3] |= chr(page << 8 | at).isprintable() << (at & 7)
        block = self._put(bits)
        self._tell(page, block.address)

    # ------------------------------------------------------------------------------------------ memory

    def _put(self, data: bytes | bytearray) -> Block:
        block = self.machine.take(len(data) + structs.SLACK)
        self.machine.write(block.address, data)
        return block

    def _grown(self, block: Block, size: int) -> Block:
        return block if size <= block.size else self.machine.take(size)

    def _room_for(self, records: int) -> None:
        if records > getattr(self, "_most", 0):
            self._offsets, self._lengths = self.machine.take(8 * records), self.machine.take(4 * records)
            self._most = min(self._offsets.size // 8, self._lengths.size // 4)
            self._placed = None
