"""A program in the record engine's memory, and the texts that it remembers."""

from __future__ import annotations

import time
from array import array
from collections.abc import Sequence
from typing import Any

from igrun.engine import Out, Printed, structs
from igrun.engine.structs import Graph, Image, Memo, Op, Test
from igrun.engine.work import TEXT, Work
from igrun.record import Batch, Facts

_ENTRIES = 256, 1 << 16  # of a memo: at first, at most
_POOL = 4096, 16 << 20  # bytes of a memo's texts
_PROGRAM = 1 << 14  # bytes that most programs are smaller than
_U64 = (1 << 64) - 1


class Given:
    """What of a batch has been given away: how many of its rows were looked at, printed, filtered."""

    __slots__ = ("at", "filtered", "rows")

    def __init__(self) -> None:
        self.at = self.rows = self.filtered = 0


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
            elif used and 2 * buffer.size > TEXT[1]:
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
