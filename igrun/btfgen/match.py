"""Where a CO-RE relocation leads in a kernel's BTF, found as libbpf finds it (relo_core.c)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from igrun.btf import ENUMS, RECORDS, Btf, Member, Type, TypeKind
from igrun.btfgen.marks import Marks
from igrun.btfgen.relocations import LONGEST_PATH, OF_TYPES, OF_VALUES, Kind, Relocation, Step, essential, plain
from igrun.errors import ImageError

K = TypeKind
DEEPEST = 32  # types that are compared inside of each other


class Place(NamedTuple):
    """What an access leads to. raw: as the relocation's path, members without names among it; bits: where it is."""

    raw: tuple[int, ...]
    bits: int


class Matching:
    """Relocations in a kernel's BTF."""

    def __init__(self, btf: Btf, wanted: Iterable[Relocation]) -> None:
        """wanted: those that will be looked for."""
        self._btf = btf
        names = {one.name for one in wanted}
        self._flavors = {name: flavors(btf, name) for name in names}
        self._types = btf.named(names.union(*self._flavors.values()))
        self._members_of: dict[int, list[Member]] = {}

    def mark(self, relocation: Relocation, marks: Marks) -> None:
        """Keep what it needs; nothing where it leads nowhere. ImageError: to two different things."""
        if relocation.kind is Kind.TYPE_MATCHES:
            for one in self.candidates(relocation):
                marks.whole(one.id)
            return
        found = list(self.found(relocation))
        if not found:
            return
        (first, place), *others = found
        if any(other.bits != place.bits for _, other in others):
            raise ImageError(f"BTF: there are several types {relocation.name}, and they differ")
        if relocation.kind in OF_TYPES:
            marks.type(first.id, pointers=True)
        elif relocation.kind in OF_VALUES:
            marks.type(first.id, pointers=False)
        else:
            self._mark_access(first, place.raw, marks)

    def _mark_access(self, root: Type, raw: tuple[int, ...], marks: Marks) -> None:
        btf = self._btf
        here = marks.type(root.id, pointers=True)
        for index in raw[1:]:
            here = plain(btf, here.id)
            if here.kind is K.ARRAY:
                here = btf.type(btf.array_of(here)[0])
                continue
            marks.member(here.id, index)
            here = marks.type(self._members(here)[index].type, pointers=False)

    # ------------------------------------------------------------------------------------------ candidates

    def candidates(self, relocation: Relocation) -> list[Type]:
        """The kernel's types of that name and kind, its flavors among them."""
        kind = relocation.type.kind
        names = {relocation.name, *self._flavors[relocation.name]}
        found = [one for name in names for one in self._types[name] if alike(one.kind, kind)]
        return sorted(found, key=lambda one: one.id)

    def found(self, relocation: Relocation) -> Iterator[tuple[Type, Place]]:
        """The candidates that it fits to."""
        for one in self.candidates(relocation):
            if relocation.kind in OF_TYPES:
                place = Place((), 0) if self._types_fit(relocation.btf, relocation.type.id, one.id) else None
            elif relocation.kind in OF_VALUES:
                place = self._value(relocation, one)
            else:
                place = self._access(relocation, one)
            if place is not None:
                yield one, place

    # ------------------------------------------------------------------------------------------ values and members

    def _value(self, relocation: Relocation, candidate: Type) -> Place | None:
        target = plain(self._btf, candidate.id)
        if target.kind not in ENUMS:
            return None
        wanted = essential(relocation.path[0].name)
        for index, (name, value) in enumerate(self._btf.enumeration(target).members):
            if essential(name) == wanted:
                return Place((index,), value if relocation.kind is Kind.ENUMVAL_VALUE else 0)
        return None

    def _access(self, relocation: Relocation, candidate: Type) -> Place | None:
        btf = self._btf
        here = candidate.id
        raw: tuple[int, ...] = ()
        bits = 0
        holder: tuple[Type, int] | None = None  # the struct whose last member this is
        for number, step in enumerate(relocation.path):
            target = plain(btf, here)
            if step.name:
                found = self._member(relocation.btf, step, target, 0)
                if found is None:
                    return None
                record, inner, offset, member = found
                raw, bits, here, holder = (*raw, *inner), bits + offset, member.type, (record, inner[-1])
            else:
                if number:
                    if target.kind is not K.ARRAY:
                        return None
                    element, count = btf.element(target)
                    flexible = count == 0 and holder is not None and holder[1] == holder[0].rows - 1
                    if not flexible and step.place >= count:
                        return None
                    here = element
                raw = (*raw, step.place)
                bits += step.place * self._size(here) * 8
                holder = None
            if len(raw) > LONGEST_PATH:
                return None
        return Place(raw, bits)

    def _member(
        self, local: Btf, step: Step, target: Type, depth: int
    ) -> tuple[Type, tuple[int, ...], int, Member] | None:
        """The member of that name: its struct, the indices that lead to it, its bits from the start."""
        if target.kind not in RECORDS or depth > DEEPEST:
            return None
        for index, member in enumerate(self._members(target)):
            if not member.name:
                inner = self._member(local, step, plain(self._btf, member.type), depth + 1)
                if inner:
                    record, raw, bits, found = inner
                    return record, (index, *raw), member.bit_offset + bits, found
            elif member.name == step.name:
                fits = self._members_fit(local, step.type, member.type)
                return (target, (index,), member.bit_offset, member) if fits else None
        return None

    def _members(self, record: Type) -> list[Member]:
        if record.id not in self._members_of:
            self._members_of[record.id] = list(self._btf.members(record))
        return self._members_of[record.id]

    def _size(self, number: int) -> int:
        """sizeof, 0 of what has none."""
        try:
            return self._btf.size(number)
        except ImageError:
            return 0

    # ------------------------------------------------------------------------------------------ types alike

    def _members_fit(self, local: Btf, ours: int, theirs: int) -> bool:
        """Whether a member of their type can be read as one of ours."""
        for _ in range(DEEPEST):
            one, other = plain(local, ours), plain(self._btf, theirs)
            if one.kind in RECORDS and other.kind in RECORDS:
                return True
            if not alike(one.kind, other.kind):
                return False
            if one.kind is K.FWD or one.kind in ENUMS:
                return not one.name or not other.name or essential(one.name) == essential(other.name)
            if one.kind is K.INT:
                return local.integer(one).offset == 0 and self._btf.integer(other).offset == 0
            if one.kind is not K.ARRAY:
                return one.kind in (K.PTR, K.FLOAT)
            ours, theirs = local.element(one)[0], self._btf.element(other)[0]
        return False

    def fits(self, local: Btf, ours: int, theirs: int) -> bool:
        """Whether their type may stand for ours, as libbpf wants of functions of the kernel that a program calls."""
        return self._types_fit(local, ours, theirs)

    def _types_fit(self, local: Btf, ours: int, theirs: int, depth: int = 0) -> bool:
        """Whether their type may stand for ours, by kinds alone."""
        btf = self._btf
        if depth == 0 and not alike(local.type(ours).kind, btf.type(theirs).kind):
            return False
        for _ in range(DEEPEST - depth):
            one, other = plain(local, ours), plain(btf, theirs)
            if not alike(one.kind, other.kind):
                return False
            if one.kind is K.PTR:
                ours, theirs = one.value, other.value
            elif one.kind is K.ARRAY:
                ours, theirs = local.element(one)[0], btf.element(other)[0]
            elif one.kind is K.FUNC_PROTO:
                mine, others = local.parameters(one), btf.parameters(other)
                if len(mine) != len(others):
                    return False
                pairs = zip(mine, others, strict=True)
                if not all(self._types_fit(local, *pair, depth + 1) for pair in pairs):
                    return False
                ours, theirs = one.value, other.value
            elif one.kind is K.INT:
                return local.integer(one).offset == 0 and btf.integer(other).offset == 0
            else:
                return one.kind in (K.VOID, *RECORDS, *ENUMS, K.FWD)
        return False


def alike(one: TypeKind, other: TypeKind) -> bool:
    """Whether they are the same kind to libbpf, to which enums of 32 and of 64 bits are one."""
    return one is other or (one in ENUMS and other in ENUMS)


def flavors(btf: Btf, name: str) -> set[str]:
    """The names in the strings that are this one with a flavor."""
    found = set()
    wanted = b"\0" + name.encode() + b"___"
    at = btf.strings.find(wanted)
    while at >= 0:
        end = btf.strings.find(b"\0", at + 1)
        text = btf.strings[at + 1 : end].decode(errors="replace")
        if essential(text) == name:
            found.add(text)
        at = btf.strings.find(wanted, end)
    return found
