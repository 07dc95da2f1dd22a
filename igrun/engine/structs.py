"""What the host writes into the record engine's memory: the structs and numbers of records.c and its headers."""

from __future__ import annotations

import ctypes as C
from collections.abc import Callable, Sequence
from struct import Struct
from typing import NamedTuple

from igrun.dataclass import dataclass
from igrun.record import Batch, Predicate

# base.h
DONE, FULL, MISSING, UNKNOWN = range(4)
U8, U16, U32, U64, S8, S16, S32, S64, BOOL, BIG_U16, BIG_U32, BIG_U64, BIG_S16, BIG_S32, BIG_S64, WALL = range(16)
SIZES = (1, 2, 4, 8, 1, 2, 4, 8, 1, 2, 4, 8, 2, 4, 8, 8)  # of a number, by how it is loaded
SPAN = 65536  # bytes of a record that numbers can be in
SLACK = 64  # bytes behind whatever is read or written 16 bytes at a time
# walk.h
RING, PERF, FIXED = range(3)
# tables.h
PART_INTEGER, PART_TEXT, PART_BYTES = range(3)
KEY_SIZE = 512  # bytes of a memo's key, at most
# format.h
NOTHING, INTEGER, HEXADECIMAL, BOOLEAN, RAW, UTF8, JSON, CELL, BYTES, HEX, COUNT = range(11)
ADDRESS, ENDPOINT, DURATION, SIZE, TIME, KNOWN, SIDE, ARRAY = range(11, 19)
AS_IS, FIT, QUOTE = range(3)
REST = (1 << 32) - 1  # the size of what is a record's rest
# filter.h
TEST_INTEGER, TEST_F4, TEST_F8, TEST_TEXT, TEST_PREFIX, TEST_PART, TEST_KNOWN = range(7)
LESS, EQUAL, GREATER, UNORDERED = 1, 2, 4, 8
KEEP, DROP = 0xFFFF, 0xFFFE  # in place of a test that follows

_CELL, _PIECE, _FIT = "IBBBB", "II", "IIIBBxx"
OP = Struct(f"<{_PIECE}BBBxI{_FIT}{_CELL}{_CELL}IIII")
MEMO = Struct(f"<IIIIIIIIII{_CELL}")
PART = Struct(f"<{_CELL}II")
TEST = Struct(f"<BBHHxx8sQI{OP.format[1:]}4x")
PROGRAM = Struct(f"<IIIII{_PIECE}I")
PIECE = Struct(f"<{_PIECE}")
FRACTION = Struct("<BBBx")


class Job(C.Structure):
    """struct job"""

    _fields_ = tuple(
        (name, C.c_uint32)
        for name in "program region size rest offsets lengths records selected at rows out end sides printed filtered "
        "why memo record".split()
    ) + tuple((name, C.c_uint64) for name in ("key", "now", "wall_minus_boot"))


class Walk(C.Structure):
    """struct walk"""

    _fields_ = (
        *((name, C.c_uint32) for name in "region size framing stride offsets lengths room at count more".split()),
        ("lost", C.c_uint64),
    )


class Number(NamedTuple):
    """An integer in a record (struct cell). shift, bits: of a bit-field; bits: 0 where it is none."""

    offset: int = 0
    load: int = U8
    signed: bool = False
    shift: int = 0
    bits: int = 0

    @property
    def end(self) -> int:
        return self.offset + SIZES[self.load]


NOWHERE = Number()


class Part(NamedTuple):
    """A part of a key (struct part)."""

    kind: int
    number: Number  # of text and bytes only its offset
    size: int = 8

    @property
    def end(self) -> int:
        return self.number.end if self.kind == PART_INTEGER else self.number.offset + self.size


@dataclass(frozen=True, slots=True)
class Fit:
    """Exactly `width` characters (struct fit). Of longer text remain the first `head`, … if `mark`, the last `tail`."""

    width: int = 0
    head: int = 0
    tail: int = 0
    mark: bool = False
    right: bool = False

    @property
    def members(self) -> tuple[int, ...]:
        """Of struct fit."""
        return self.width, self.head, self.tail, self.mark, self.right


AS_LONG = Fit()
Fill = Callable[[Batch, int, int], bytes]
"""The text for a record of a batch (its index), whose key is the last argument unless it is a wide one."""


class Memo:
    """Texts by key, of which the engine has those that it was asked for (struct memo).

    key:    one integer, or anything of at most KEY_SIZE bytes
    fill:   makes a text
    tables: tables that the texts come from
    """

    def __init__(self, key: Sequence[Part], fill: Fill, tables: frozenset[str] = frozenset()) -> None:
        self.fill, self.tables = fill, tables
        self.cell = key[0].number if len(key) == 1 and key[0].kind == PART_INTEGER else None
        self.parts = tuple(key) if self.cell is None else ()
        self.key_size = sum(part.size + 7 & ~7 for part in self.parts)
        self.end = max((part.end for part in key), default=0)


class Op:
    """A value to print and the literal before it (struct op).

    items:     of an array, or fractions of a time, or the number of a side column (`count`)
    fractions: of a time, packed
    inner:     operations of an array
    """

    def __init__(
        self,
        code: int,
        cell: Number = NOWHERE,
        other: Number = NOWHERE,
        *,
        before: bytes = b"",
        offset: int = 0,
        size: int = 0,
        has_length: bool = False,
        memo: Memo | None = None,
        items: int = 0,
        stride: int = 0,
        fractions: bytes = b"",
        inner: tuple[Op, ...] = (),
    ) -> None:
        self.code, self.cell, self.other, self.before = code, cell, other, before
        self.offset, self.size, self.has_length, self.memo = offset, size, has_length, memo
        self.items, self.stride, self.fractions, self.inner = items, stride, fractions, inner
        self.finish, self.fit = AS_IS, AS_LONG

    @property
    def end(self) -> int:
        """How far it reads numbers, and bytes that are zeros where a record has ended."""
        bytes_ = self.offset + self.size if self.code in (BYTES, HEX) and self.size != REST else 0
        address = self.offset + 16 if self.code in (ADDRESS, ENDPOINT) else 0
        inner = max((op.end for op in self.inner), default=0) + max(self.items - 1, 0) * self.stride
        return max(self.cell.end, self.other.end, bytes_, address, inner, self.memo.end if self.memo else 0)

    @property
    def memos(self) -> list[Memo]:
        """Those that it and the operations in it use."""
        return [op.memo for op in (self, *self.inner) if op.memo]


NO_VALUE = Op(NOTHING)


@dataclass(frozen=True, slots=True)
class Test:
    """A condition, and which follows where it holds or not (struct test)."""

    kind: int
    then: int
    otherwise: int
    accepted: int = 0
    operand: bytes = b""  # a literal, or 8 bytes of a number
    span: int = 0
    memo: Memo | None = None
    value: Op = NO_VALUE

    @property
    def end(self) -> int:
        number = {TEST_F4: 4, TEST_F8: 8}.get(self.kind)
        return max(self.value.end, self.value.offset + number if number else 0, self.memo.end if self.memo else 0)

    @property
    def memos(self) -> list[Memo]:
        """The one that it asks."""
        return [self.memo] if self.memo else []


@dataclass(frozen=True, slots=True)
class Graph:
    """The tests of a predicate. first: the one to begin with, or a verdict; rest: what they leave to the reference."""

    tests: tuple[Test, ...] = ()
    first: int = KEEP
    rest: Predicate | None = None


class Image:
    """What a program is in memory, from address `base` on. memos: the address of each."""

    def __init__(
        self, base: int, ops: Sequence[Op], between: bytes, tests: Sequence[Test], first: int, memos: Sequence[Memo]
    ) -> None:
        """first: the test that it begins with, or a verdict."""
        self._base, self.bytes = base, bytearray(PROGRAM.size)
        self.memos = {id(memo): self._put(self._memo(memo)) for memo in memos}
        at_ops = self._put(b"".join([self._op(op) for op in ops]))
        at_tests = self._put(b"".join([self._test(test) for test in tests]))
        piece = self._piece(between)
        self.bytes[: PROGRAM.size] = PROGRAM.pack(
            max([*(op.end for op in ops), *(test.end for test in tests)], default=0),
            first,
            at_tests,
            at_ops,
            len(ops),
            *piece,
            0,
        )

    def _put(self, data: bytes) -> int:
        """Its address."""
        self.bytes += bytes(-len(self.bytes) % 8)
        address = self._base + len(self.bytes)
        self.bytes += data
        return address

    def _piece(self, text: bytes) -> tuple[int, int]:
        # copied 16 bytes at a time
        return (self._put(text + bytes(16)) if text else 0), len(text)

    def _memo(self, memo: Memo) -> bytes:
        parts = self._put(b"".join(PART.pack(*part.number, part.kind, part.size) for part in memo.parts))
        return MEMO.pack(*[0] * 6, parts, len(memo.parts), memo.key_size, 0, *(memo.cell or NOWHERE))

    def _op(self, op: Op) -> bytes:
        return OP.pack(
            *self._piece(op.before),
            op.code,
            op.finish,
            op.has_length,
            self._put(b"".join(map(self._op, op.inner))) if op.inner else self.memos[id(op.memo)] if op.memo else 0,
            *op.fit.members,
            *op.cell,
            *op.other,
            op.offset,
            op.size,
            op.items,
            self._put(op.fractions) if op.fractions else op.stride,
        )

    def _test(self, test: Test) -> bytes:
        operand = test.operand
        if test.kind in (TEST_TEXT, TEST_PREFIX, TEST_PART):
            operand = PIECE.pack(*self._piece(operand))
        memo = self.memos[id(test.memo)] if test.memo else 0
        head = test.kind, test.accepted, test.then, test.otherwise, operand, test.span, memo
        return TEST.pack(*head, *OP.unpack(self._op(test.value)))
