"""The record engine in WebAssembly: records.c and its host. It prints what the reference prints, byte for byte."""

from __future__ import annotations

from array import array

from igrun.engine import Out, Printed, Printer, Slot, Template, Yaml, structs
from igrun.engine.framing import walk
from igrun.engine.loaded import Given, Loaded
from igrun.engine.machine import Mapped, NoRoomError
from igrun.engine.printing import Filter, Printing
from igrun.engine.programs import made
from igrun.engine.reference import ReferenceColumns
from igrun.engine.structs import Graph
from igrun.engine.work import Work
from igrun.record import Batch, Columns, Facts, Framing, Predicate, Records, Region


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


def tests_of(keep: Predicate | None, facts: Facts) -> Graph:
    """The tests of a predicate. ParamError: an expression is wrong."""
    if keep is None:
        return Graph()
    from igrun.engine.conditions import graph

    return graph(keep, facts)
