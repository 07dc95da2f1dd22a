"""A condition as a graph of single tests, without those whose outcome is known on the way to them.

Only what was evaluated before on every way is left out, so that a read past the packet's end is never lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from igrun.dataclass import dataclass, field
from igrun.packetfilter.values import (
    And,
    Assign,
    Condition,
    Const,
    Fixed,
    If,
    Not,
    Or,
    Test,
    Value,
    Variable,
    holds,
    parts,
)

ACCEPT, REJECT = 0, 1
MOST_NODES = 20_000
PASSES = 8

Facts = dict[Test | Value, bool | int]


@dataclass(slots=True)
class Block:
    """Assignments, then a test (None: none); where to go on if it is true, and if not. ACCEPT and REJECT are ends."""

    assigned: tuple[tuple[Variable, Value], ...]
    test: Test | None
    yes: int
    no: int

    def targets(self) -> tuple[int, ...]:
        return (self.yes,) if self.test is None else (self.yes, self.no)


END = Block((), None, ACCEPT, ACCEPT)


class TooLongError(Exception):
    """The condition has too many tests."""


@dataclass(slots=True)
class Graph:
    """blocks: each goes on only to ones before it; root: where to begin."""

    blocks: list[Block] = field(default_factory=lambda: [END, END])
    root: int = ACCEPT
    _known: dict[tuple[int, int, int], int] = field(default_factory=dict)

    @classmethod
    def of(cls, condition: Condition) -> Graph:
        """The graph of a condition. TooLongError."""
        graph = cls()
        graph.root = graph._add(condition, ACCEPT, REJECT)
        for _ in range(PASSES):
            if not graph._thread():
                break
        return graph

    def order(self) -> list[int]:
        """The blocks that can be reached, each before those that it goes on to."""
        reached = {self.root}
        for at in range(self.root, REJECT, -1):
            if at in reached:
                reached.update(self.blocks[at].targets())
        return sorted(reached - {ACCEPT, REJECT}, reverse=True)

    # ---------------------------------------------------------------------------------------- building

    def _add(self, condition: Condition, yes: int, no: int) -> int:
        """The block to begin with."""
        key = (id(condition), yes, no)
        if key not in self._known:
            self._known[key] = self._added(condition, yes, no)
        return self._known[key]

    def _added(self, condition: Condition, yes: int, no: int) -> int:
        while True:  # what is joined leans to the left, for as long as the filter is
            match condition:
                case And(left=left, right=right):
                    condition, yes = left, self._add(right, yes, no)
                case Or(left=left, right=right):
                    condition, no = left, self._add(right, yes, no)
                case If(test=test, then=then, otherwise=otherwise):
                    condition, yes, no = test, self._add(then, yes, no), self._add(otherwise, yes, no)
                case Not(inner=inner):
                    condition, yes, no = inner, no, yes
                case Fixed(value=value):
                    return yes if value else no
                case Assign(values=values):
                    return self._block(Block(values, None, yes, yes))
                case Test(op=op, left=Const(number=one), right=Const(number=other)):
                    return yes if holds(op, one, other) else no
                case Test():
                    return self._block(Block((), condition, yes, no))

    def _block(self, block: Block) -> int:
        if len(self.blocks) >= MOST_NODES:
            raise TooLongError
        self.blocks.append(block)
        return len(self.blocks) - 1

    # ---------------------------------------------------------------------------------------- threading

    def _thread(self) -> bool:
        """Let each block go on where the tests that it need not make would lead. False if nothing changed."""
        asked: dict[Test, int] = {}
        compared: dict[Value, int] = {}
        order = self.order()
        for at in order:
            test = self.blocks[at].test
            if test is not None:
                asked[test] = asked.get(test, 0) + 1
                compared[test.left] = compared.get(test.left, 0) + 1
        known: dict[int, Facts] = {self.root: {}}
        changed = False
        for at in order:
            block, facts = self.blocks[at], known.pop(at, None)
            if facts is None:  # no longer reached
                continue
            facts = after(block, facts)
            for outcome in (True, False)[: len(block.targets())]:
                there = dict(facts)
                if block.test is not None:
                    learn(block.test, outcome, there, asked, compared)
                before = block.yes if outcome else block.no
                to = self._skip(before, there)
                changed |= to != before
                if outcome:
                    block.yes = to
                else:
                    block.no = to
                if to > REJECT:
                    known[to] = common(known[to], there) if to in known else there
        return changed

    def _skip(self, at: int, facts: Facts) -> int:
        """Where one arrives from this block on with what is known."""
        while at > REJECT:
            block = self.blocks[at]
            if block.assigned or block.test is None:
                return at
            outcome = decided(block.test, facts)
            if outcome is None:
                # Wherever it leads, that is the same place: but what it reads may lie behind the packet's end.
                return at
            at = block.yes if outcome else block.no
        return at


def after(block: Block, facts: Facts) -> Facts:
    """What is still known after the block's assignments."""
    if not block.assigned:
        return facts
    changed = {variable for variable, _ in block.assigned}
    return {fact: value for fact, value in facts.items() if not mentions(fact, changed)}


def mentions(what: Test | Value, variables: Iterable[Value]) -> bool:
    """True if one of the variables is in it."""
    inside = (what.left, what.right) if isinstance(what, Test) else (what,)
    return any(part in variables for value in inside for part in parts(value))


def learn(test: Test, outcome: bool, facts: Facts, asked: dict[Test, int], compared: dict[Value, int]) -> None:
    """Add what the outcome tells, if anybody asks for it."""
    if asked[test] > 1:
        facts[test] = outcome
    if outcome and test.op == "==" and isinstance(test.right, Const) and compared[test.left] > 1:
        facts[test.left] = test.right.number


def decided(test: Test, facts: Facts) -> bool | None:
    """The test's outcome, None if it is not known."""
    if test in facts:
        return bool(facts[test])
    number = facts.get(test.left)
    if number is None or not isinstance(test.right, Const):
        return None
    return holds(test.op, number, test.right.number)


def common(one: Facts, other: Facts) -> Facts:
    """What is known on both ways."""
    return {fact: value for fact, value in one.items() if fact in other and other[fact] == value}


def values(block: Block) -> Iterator[Value]:
    """What a block evaluates, in order."""
    for _, value in block.assigned:
        yield value
    if block.test is not None:
        yield block.test.left
        yield block.test.right
