"""Some types of a BTF file as a file of its own."""

from __future__ import annotations

from array import array
from struct import Struct

from igrun.btf import ENUMS, MAGIC, PER_MEMBER, RECORDS, WORDS, Btf, Type, TypeKind
from igrun.btfgen.marks import Marks

HEADER = Struct("HBBIIIII")
K = TypeKind
FLAG = 1 << 31
REFERRING = (K.PTR, K.TYPEDEF, K.VOLATILE, K.CONST, K.RESTRICT, K.TYPE_TAG, K.FUNC, K.FUNC_PROTO, K.VAR, K.DECL_TAG)


def written(btf: Btf, marks: Marks) -> bytes:
    """The marked types in the order of their ids, which begin at 1 again; a type that is not marked becomes void.

    Of structs and unions only the marked members are there; their size stays.
    """
    names = Names()
    renamed = {old: new for new, old in enumerate(sorted(marks.types), 1)}
    words = array("I")
    for number in renamed:
        words.extend(type_words(btf, btf.type(number), marks.members.get(number, set()), renamed, names))
    types, strings = words.tobytes(), names.data()
    head = HEADER.pack(MAGIC, 1, 0, HEADER.size, 0, len(types), len(types), len(strings))
    return head + types + strings


def type_words(btf: Btf, of: Type, kept: set[int], renamed: dict[int, int], names: Names) -> list[int]:
    """One type."""
    raw = btf.raw(of)
    name = names.add(of.name)
    if of.kind in RECORDS:
        first, members = WORDS[K.STRUCT], []
        bit_field = False
        for index in sorted(kept):
            at = first + PER_MEMBER[K.STRUCT] * index
            text, number, place = raw[at : at + 3]
            bits, offset = (place >> 24, place & 0xFFFFFF) if of.flag else (0, place)
            bit_field |= bool(bits or offset % 8)
            members.append((names.add(btf.text(text)), renamed.get(number, 0), bits, offset))
        # without the flag an offset has all 32 bits
        flat = [word for text, number, bits, offset in members for word in (text, number, bits << 24 | offset)]
        return [name, of.kind << 24 | len(members) | (FLAG if bit_field else 0), of.value, *flat]
    raw[0] = name
    if of.kind in REFERRING:
        raw[2] = renamed.get(raw[2], 0)
    rows = range(WORDS[of.kind], len(raw), PER_MEMBER[of.kind] or 1)
    if of.kind is K.ARRAY:
        raw[3], raw[4] = renamed.get(raw[3], 0), renamed.get(raw[4], 0)
    elif of.kind in ENUMS:
        for at in rows:
            raw[at] = names.add(btf.text(raw[at]))
    elif of.kind is K.FUNC_PROTO:
        for at in rows:
            raw[at], raw[at + 1] = names.add(btf.text(raw[at])), renamed.get(raw[at + 1], 0)
    return list(raw)


class Names:
    """The strings of a file, each once."""

    def __init__(self) -> None:
        self._places = {"": 0}
        self._size = 1

    def add(self, name: str) -> int:
        """Where it is."""
        if name not in self._places:
            self._places[name] = self._size
            self._size += len(name.encode()) + 1
        return self._places[name]

    def data(self) -> bytes:
        return b"".join(name.encode() + b"\0" for name in self._places)
