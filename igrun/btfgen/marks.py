"""What of a kernel's BTF is kept: types, and of structs and unions the members."""

from __future__ import annotations

from igrun.btf import QUALIFIERS, RECORDS, Btf, Type, TypeKind

WHOLE = 10_000  # types that one type may lead to


class Marks:
    """types: ids that are kept; members: struct or union -> indices of its members that are"""

    def __init__(self, btf: Btf) -> None:
        self.types: set[int] = set()
        self.members: dict[int, set[int]] = {}
        self._btf = btf

    def type(self, number: int, *, pointers: bool) -> Type:
        """Keep a type and what it is made of, but no members. pointers: also what a pointer points to. Returns it."""
        btf = self._btf
        first = btf.type(number)
        left = [number]
        seen = set()
        while left:
            number = left.pop()
            if number == 0 or number in seen:
                continue
            seen.add(number)
            self.types.add(number)
            found = btf.type(number)
            if found.kind is TypeKind.PTR:
                left += [found.value] if pointers else []
            elif found.kind is TypeKind.TYPEDEF or found.kind in QUALIFIERS:
                left.append(found.value)
            elif found.kind is TypeKind.ARRAY:
                left += btf.array_of(found)[:2]
            elif found.kind is TypeKind.FUNC_PROTO:
                left += [found.value, *btf.parameters(found)]
        return first

    def member(self, record: int, index: int) -> None:
        """Keep a member of a struct or union."""
        self.members.setdefault(record, set()).add(index)

    def whole(self, number: int) -> None:
        """Keep a type with all members and all that they are made of, up to pointers to structs."""
        btf = self._btf
        left = [(number, False)]
        seen: set[tuple[int, bool]] = set()
        while left and len(seen) < WHOLE:
            number, behind = left.pop()
            if number == 0 or (number, behind) in seen:
                continue
            seen.add((number, behind))
            self.types.add(number)
            found = btf.type(number)
            if found.kind in RECORDS:
                if behind:
                    continue
                for index, member in enumerate(btf.members(found)):
                    self.member(number, index)
                    left.append((member.type, False))
            elif found.kind is TypeKind.ARRAY:
                left += [(one, behind) for one in btf.array_of(found)[:2]]
            elif found.kind is TypeKind.FUNC_PROTO:
                left += [(one, behind) for one in (found.value, *btf.parameters(found))]
            elif found.kind is TypeKind.PTR:
                left.append((found.value, True))
            elif found.kind is TypeKind.TYPEDEF or found.kind in QUALIFIERS:
                left.append((found.value, behind))
