"""The instance of the record engine that does the work: its functions, and what they work on."""

from __future__ import annotations

import ctypes as C
import os
from array import array
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from igrun.engine import structs
from igrun.engine.machine import Block, Machine
from igrun.engine.structs import Job, Walk
from igrun.record import Batch, Framing, Records, Region

Memory = bytes | bytearray | memoryview
_FRAMINGS = {Framing.RING: structs.RING, Framing.PERF: structs.PERF, Framing.FIXED: structs.FIXED}
TEXT = 512 << 10, 8 << 20  # bytes that are printed at once: about half of a CPU's cache, if that is possible; at most


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
        self.out = machine.take(TEXT[0])
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
