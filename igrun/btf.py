"""BTF: the types of a BPF object or of a kernel, read lazily and never trusted.

A kernel has 130 000 types, of which somebody wants one: opening checks the header alone, the first look-up by name
finds where each type starts (25 ms for a kernel), and a type is read when it is asked for.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from enum import IntEnum
from struct import Struct
from typing import NamedTuple

from igrun.dataclass import dataclass
from igrun.errors import ImageError


class TypeKind(IntEnum):
    """As BTF_KIND_* in linux/btf.h."""

    VOID = 0
    INT = 1
    PTR = 2
    ARRAY = 3
    STRUCT = 4
    UNION = 5
    ENUM = 6
    FWD = 7
    TYPEDEF = 8
    VOLATILE = 9
    CONST = 10
    RESTRICT = 11
    FUNC = 12
    FUNC_PROTO = 13
    VAR = 14
    DATASEC = 15
    FLOAT = 16
    DECL_TAG = 17
    TYPE_TAG = 18
    ENUM64 = 19


K = TypeKind
RECORDS = (K.STRUCT, K.UNION)
ENUMS = (K.ENUM, K.ENUM64)
SIZED = (K.INT, *RECORDS, *ENUMS, K.FLOAT, K.DATASEC)
QUALIFIERS = (K.CONST, K.VOLATILE, K.RESTRICT, K.TYPE_TAG)
GLOBAL, EXTERN = 1, 2  # linkage of a variable; 0: static

# 32-bit words of a type, and for each of its members; an unknown kind ends the walk beyond every file
ENDLESS = 1 << 40
WORDS = [ENDLESS] * 32
PER_MEMBER = [0] * 32
for _kind in K:
    WORDS[_kind] = 3
WORDS[K.VOID] = ENDLESS
WORDS[K.INT] = WORDS[K.VAR] = WORDS[K.DECL_TAG] = 4
WORDS[K.ARRAY] = 6
PER_MEMBER[K.STRUCT] = PER_MEMBER[K.UNION] = PER_MEMBER[K.DATASEC] = PER_MEMBER[K.ENUM64] = 3
PER_MEMBER[K.ENUM] = PER_MEMBER[K.FUNC_PROTO] = 2

MAGIC = 0xEB9F
NO_TYPES = Struct("HBBIIIII").pack(MAGIC, 1, 0, 24, 0, 0, 0, 1) + b"\0"  # BTF that describes nothing
LONGEST_CHAIN = 64  # of typedefs, qualifiers and arrays of arrays; libbpf follows 32
LONGEST_NAME = 1024
POINTER_SIZE = 8


class Type(NamedTuple):
    """One type.

    rows:  how many members, values or variables it has
    flag:  the kind's own
    value: its size, or the id of the type it refers to
    at:    its first word
    """

    id: int
    kind: TypeKind
    name: str
    rows: int
    flag: bool
    value: int
    at: int


VOID = Type(0, K.VOID, "", 0, False, 0, 0)


class Member(NamedTuple):
    """A member of a struct or union. bits: width of a bit-field, 0 if it is none."""

    name: str
    type: int
    bit_offset: int
    bits: int


class InSection(NamedTuple):
    """A variable of a data section. offset: may be 0 where only the ELF symbol tells it."""

    type: int
    offset: int
    size: int


class Integer(NamedTuple):
    """An integer type. bits: fewer than its size has in old objects' bit-fields, which start at bit `offset`."""

    signed: bool
    is_char: bool
    is_bool: bool
    offset: int
    bits: int


class Resolved(NamedTuple):
    """What stands behind typedefs and qualifiers. names: the typedefs met, outermost first."""

    type: Type
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Enumeration:
    """A C enumeration. is_set: its values are bits that may be set together."""

    name: str
    members: tuple[tuple[str, int], ...]
    is_set: bool


class Btf:
    """The types of one file; ids start at 1, 0 is void.

    Every method raises ImageError where the file is broken in what it looks at.
    """

    __slots__ = ("_starts", "_types", "_words", "little_endian", "strings")

    def __init__(self, types: bytes, strings: bytes, little_endian: bool) -> None:
        self._types, self.strings, self.little_endian = types, strings, little_endian
        self._words = array("I", types)
        if little_endian != (sys.byteorder == "little"):
            self._words.byteswap()
        self._starts: array[int] | None = None

    @classmethod
    def parse(cls, data: bytes) -> Btf:
        """Read the contents of a .BTF section or file. ImageError: it is none, or its parts do not fit into it."""
        little_endian = data[:2] == MAGIC.to_bytes(2, "little")
        header = Struct(("<" if little_endian else ">") + "HBBIIIII")
        if len(data) < header.size:
            raise ImageError(f"BTF: {len(data)} bytes are too few for a header")
        magic, version, _, length, types, types_size, strings, strings_size = header.unpack_from(data)
        if magic != MAGIC:
            raise ImageError(f"BTF: wrong magic number {data[:2].hex()}")
        if version != 1:
            raise ImageError(f"BTF: unknown version {version}")
        room = len(data) - length
        if length < header.size or types + types_size > room or strings + strings_size > room:
            raise ImageError(f"BTF: the header tells of more than the {len(data)} bytes there are")
        if types_size % 4:
            raise ImageError(f"BTF: {types_size} bytes of types are no whole number of words")
        names = data[length + strings : length + strings + strings_size]
        if names[:1] != b"\0" or names[-1:] != b"\0":
            raise ImageError("BTF: the strings do not begin and end with a NUL")
        return cls(data[length + types : length + types + types_size], names, little_endian)

    def __len__(self) -> int:
        """The ids there are, that of void included."""
        return len(self._index())

    # ------------------------------------------------------------------------------------------ one type

    def type(self, number: int) -> Type:
        """The type of that id."""
        starts = self._index()
        if number == 0:
            return VOID
        if not 0 < number < len(starts):
            raise ImageError(f"BTF: there is no type {number}, the last is {len(starts) - 1}")
        return self._type(number, starts[number])

    def resolve(self, number: int) -> Resolved:
        """The type behind typedefs and qualifiers."""
        names = []
        for _ in range(LONGEST_CHAIN):
            found = self.type(number)
            if found.kind is K.TYPEDEF:
                names.append(found.name)
            elif found.kind not in QUALIFIERS:
                return Resolved(found, tuple(names))
            number = found.value
        raise ImageError(f"BTF: type {number} stands behind an endless chain of types")

    def size(self, number: int) -> int:
        """sizeof. ImageError: it has none (void, a function, ...)."""
        many = 1
        for _ in range(LONGEST_CHAIN):
            found = self.resolve(number).type
            if found.kind is K.PTR:
                return many * POINTER_SIZE
            if found.kind in SIZED:
                return many * found.value
            if found.kind is not K.ARRAY:
                raise ImageError(f"BTF: {described(found)} has no size")
            number, count = self.element(found)
            many *= count
        raise ImageError(f"BTF: type {number} stands in an endless chain of arrays")

    def integer(self, of: Type) -> Integer:
        """What an INT says beside its size."""
        word = self._words[of.at + 3]
        return Integer(bool(word >> 24 & 1), bool(word >> 24 & 2), bool(word >> 24 & 4), word >> 16 & 0xFF, word & 0xFF)

    def element(self, of: Type) -> tuple[int, int]:
        """Type id and number of an ARRAY's elements."""
        return self._words[of.at + 3], self._words[of.at + 5]

    def array_of(self, of: Type) -> tuple[int, int, int]:
        """Type ids of an ARRAY's elements and of its index, and the number of elements."""
        element, index, count = self._words[of.at + 3 : of.at + 6]
        return element, index, count

    def parameters(self, of: Type) -> list[int]:
        """Type ids of a FUNC_PROTO's parameters."""
        return [number for _, number in self._rows(of, 2)]

    def raw(self, of: Type) -> array[int]:
        """Its words as they stand in the file, those of its members among them."""
        return self._words[of.at : of.at + WORDS[of.kind] + PER_MEMBER[of.kind] * of.rows]

    def linkage(self, of: Type) -> int:
        """That of a VAR: 0 static, GLOBAL or EXTERN."""
        return self._words[of.at + 3]

    def members(self, of: Type) -> Iterator[Member]:
        """Those of a STRUCT or UNION, in order."""
        for name, kind, place in self._rows(of, 3):
            # With the flag the upper 8 bits are the width of a bit-field, 0 where the member is none.
            bits, offset = (place >> 24, place & 0xFFFFFF) if of.flag else (0, place)
            yield Member(self.text(name), kind, offset, bits)

    def variables(self, of: Type) -> Iterator[InSection]:
        """Those of a DATASEC, in order."""
        for row in self._rows(of, 3):
            yield InSection(*row)

    def enumeration(self, of: Type, name: str = "") -> Enumeration:
        """The names and values of an ENUM or ENUM64. name: what it is called if it has no tag."""
        members = []
        if of.kind is K.ENUM:
            for text, value in self._rows(of, 2):
                members.append((self.text(text), value - (value >> 31 << 32) if of.flag else value))
        else:
            for text, low, high in self._rows(of, 3):
                value = high << 32 | low
                members.append((self.text(text), value - (value >> 63 << 64) if of.flag else value))
        name = of.name or name
        return Enumeration(name, tuple(members), name.endswith("_set"))

    # ------------------------------------------------------------------------------------------ by name

    def find(self, name: str, *kinds: TypeKind) -> Type | None:
        """The first type of that name and one of these kinds (any, where none is given); None if there is none."""
        starts = self._index()
        for at in self._named(name):
            number = bisect_left(starts, at, 1)
            if number < len(starts) and starts[number] == at:
                found = self._type(number, at)
                if not kinds or found.kind in kinds:
                    return found
        return None

    def named(self, names: Iterable[str]) -> dict[str, list[Type]]:
        """All types of each name, in order, found in one pass (40 ms for a kernel)."""
        found: dict[str, list[Type]] = {name: [] for name in names}
        offsets = {}
        for name in found:
            wanted = b"\0" + name.encode(errors="surrogatepass") + b"\0"
            at = self.strings.find(wanted) if name else -1
            while at >= 0:
                offsets[at + 1] = name
                at = self.strings.find(wanted, at + 1)
        words = self._words
        for number, at in enumerate(self._index() if offsets else ()):
            if number and words[at] in offsets:
                found[offsets[words[at]]].append(self._type(number, at))
        return found

    def of_kind(self, kind: TypeKind) -> Iterator[Type]:
        """Every type of that kind, in order."""
        words = self._words
        for number, at in enumerate(self._index()):
            if number and words[at + 1] >> 24 & 0x1F == kind:
                yield self._type(number, at)

    def enumerations(self, name: str) -> Iterator[Enumeration]:
        """Every enumeration of that name, found without reading the other types (5 ms for a kernel).

        A word that happens to be the name's offset is never taken for an enumeration: the word behind it would have to
        hold an enum's kind in its upper byte, which no type id, name offset or array length of a real file reaches; and
        where an enumerator has that value, what follows is a name's offset where an enumeration has its size.
        """
        words = self._words
        for at in self._named(name):
            kind, count = words[at + 1] >> 24 & 0x1F, words[at + 1] & 0xFFFF
            whole = at + WORDS[kind] + PER_MEMBER[kind] * count <= len(words)
            if kind in ENUMS and whole and words[at + 2] in (1, 2, 4, 8):
                yield self.enumeration(Type(0, K(kind), name, count, bool(words[at + 1] >> 31), words[at + 2], at))

    def text(self, offset: int) -> str:
        """The name at that offset of the strings. ImageError: there is none, or it is not text that can be printed."""
        if offset >= len(self.strings):
            raise ImageError(f"BTF: there is no name at {offset}, the strings have {len(self.strings)} bytes")
        end = self.strings.find(b"\0", offset, offset + LONGEST_NAME)
        try:
            text = self.strings[offset:end].decode()
        except UnicodeDecodeError:
            text = "\0"
        # A column's name reaches the terminal.
        if end < 0 or not text.isprintable():
            raise ImageError(f"BTF: the name at {offset} is no name")
        return text

    # ------------------------------------------------------------------------------------------ words

    def _index(self) -> array[int]:
        """The first word of each type, by id."""
        if self._starts is not None:
            return self._starts
        words, at, end = self._words, 0, len(self._words)
        starts = array("I", (0,))
        add = starts.append
        last = end - 2
        while at < last:
            add(at)
            info = words[at + 1]
            kind = info >> 24 & 0x1F
            at += WORDS[kind] + PER_MEMBER[kind] * (info & 0xFFFF)
        if at != end:
            number = len(starts) - 1
            why = "has an unknown kind" if at >= ENDLESS else "is cut off"
            raise ImageError(f"BTF: type {number if at > end else number + 1} {why}")
        self._starts = starts
        return starts

    def _type(self, number: int, at: int) -> Type:
        name, info, value = self._words[at : at + 3]
        return Type(number, K(info >> 24 & 0x1F), self.text(name), info & 0xFFFF, bool(info >> 31), value, at)

    def _rows(self, of: Type, width: int) -> Iterator[tuple[int, ...]]:
        """The words of each member."""
        first = of.at + WORDS[of.kind]
        flat = iter(self._words[first : first + width * of.rows])
        return zip(*[flat] * width, strict=True)

    def _named(self, name: str) -> Iterator[int]:
        """Every word that may be the first of a type of that name."""
        wanted = b"\0" + name.encode(errors="surrogatepass") + b"\0"
        offset = self.strings.find(wanted) if name else -1
        while offset >= 0:
            word = (offset + 1).to_bytes(4, "little" if self.little_endian else "big")
            place = self._types.find(word)
            while 0 <= place <= len(self._types) - 12:
                if place % 4 == 0:
                    yield place // 4
                place = self._types.find(word, place + 1)
            offset = self.strings.find(wanted, offset + 1)


def described(of: Type) -> str:
    """The type for messages: struct event, type 12 (func_proto)."""
    kind = of.kind.name.lower()
    return f"{kind} {of.name}" if of.name else f"type {of.id} ({kind})"
