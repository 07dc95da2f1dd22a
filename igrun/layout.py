"""C structs -> the fields of a data source."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from igrun.btf import ENUMS, RECORDS, Btf, Enumeration, Member, Type, TypeKind, described
from igrun.errors import ImageError
from igrun.record import At, Field

# Bounds of what a file may ask of us, far above every real struct
LARGEST = 1 << 24  # bytes
DEEPEST = 16
MOST_MEMBERS = 1 << 14

# What a process is made of. Its members are known by their short names, its parts are not shown as columns.
PROCESS_PARTS = ("gadget_process", "gadget_creds", "gadget_parent")
# Its members are for the look-up of the stack, not to be read.
STACK = "gadget_user_stack"


class Layout(NamedTuple):
    """A struct's fields.

    size:     bytes of the struct
    enums:    field name -> the enumeration of its values
    indirect: those of them whose enumeration stands behind a typedef, which other runtimes show as a number
    """

    fields: tuple[Field, ...]
    size: int
    enums: Mapping[str, Enumeration]
    indirect: frozenset[str]


def layout(btf: Btf, record: Type, *, base: int = 0, tags: tuple[str, ...] = ()) -> Layout:
    """The fields of a struct, members of members included, in their order.

    base: where the struct begins in the record; tags: of every field, beside its own

    ImageError: no such struct can be in a record. Left out are pointers, functions, arrays without elements and what
    begins with `__`; the bytes are given as they are of arrays of structs or arrays, and of numbers wider than 64 bits.
    """
    if not btf.little_endian:
        raise ImageError(f"BTF: {described(record)} is big-endian, which no supported machine is")
    if record.kind not in RECORDS or record.value > LARGEST:
        raise ImageError(f"BTF: {described(record)} ({record.value} bytes) cannot be a record")
    walk = Walk(btf, record, base, tags)
    walk.members(record, "", base, 1)
    return Layout(tuple(walk.fields.values()), record.value, walk.enums, frozenset(walk.indirect))


class Shown(NamedTuple):
    """How a type is shown. nested: it is a struct or union whose members are fields too."""

    dtype: str
    size: int
    type: Type
    typedefs: tuple[str, ...]
    nested: bool = False


class Walk:
    """Goes through a struct's members and theirs."""

    def __init__(self, btf: Btf, record: Type, base: int, tags: tuple[str, ...]) -> None:
        self.btf, self.record, self.end, self.tags = btf, record, base + record.value, tags
        self.fields: dict[str, Field] = {}
        self.enums: dict[str, Enumeration] = {}
        self.known_enums: dict[int, Enumeration] = {}
        self.indirect: set[str] = set()
        self.left = MOST_MEMBERS

    def members(self, record: Type, prefix: str, start: int, depth: int) -> None:
        """Add the fields of `record`, which begins at byte `start`."""
        if depth > DEEPEST:
            raise ImageError(f"BTF: {described(self.record)} has structs in structs more than {DEEPEST} deep")
        for member in self.btf.members(record):
            self.left -= 1
            if self.left < 0:
                raise ImageError(f"BTF: {described(self.record)} has more than {MOST_MEMBERS} members")
            if member.name.startswith("__"):
                continue
            if member.name and not member.name.isidentifier():
                raise ImageError(f"BTF: {described(record)}: {member.name!r} is no name of a member")
            shown = shown_as(self.btf, member.type)
            if shown is None:
                continue
            at, split = At(start + member.bit_offset // 8), bool(member.bit_offset % 8)
            if shown.dtype[0] != "(" and (place := bit_field(self.btf, member, shown.type, record.value, start)):
                at, dtype, size = place
                shown, split = shown._replace(dtype=dtype, size=size), False
            if at.offset + shown.size > self.end or split:
                raise ImageError(f"BTF: {described(record)}: member {member.name!r} does not lie within it")
            if member.name:
                self.add(record, member.name, prefix, at, shown)
            if shown.nested:
                below = f"{prefix}{member.name}." if member.name else prefix
                self.members(shown.type, below, at.offset, depth + 1)

    def add(self, record: Type, short: str, prefix: str, at: At, shown: Shown) -> None:
        """Add one field. record: the struct it is a member of."""
        name = prefix + short
        if name in self.fields:
            raise ImageError(f"BTF: {described(self.record)}: field {name!r} already exists")
        types = [f"type:{one}" for one in (*shown.typedefs, shown.type.name) if one]
        annotations = {}
        if record.name in PROCESS_PARTS:
            annotations["columns.alias"] = short
        if record.name == STACK or (shown.nested and shown.type.name in PROCESS_PARTS):
            annotations["columns.hidden"] = "true"
        self.fields[name] = Field(name, shown.dtype, at, (*types, f"name:{short}", "src:ebpf", *self.tags), annotations)
        if shown.type.kind in ENUMS and shown.dtype[1] in "iu":
            if shown.type.id not in self.known_enums:
                called = shown.typedefs[-1] if shown.typedefs else ""
                self.known_enums[shown.type.id] = self.btf.enumeration(shown.type, called)
            self.enums[name] = self.known_enums[shown.type.id]
            if shown.typedefs:
                self.indirect.add(name)


def shown_as(btf: Btf, number: int) -> Shown | None:
    """How that type is shown; None of what is not shown."""
    found, typedefs = btf.resolve(number)
    if found.kind in RECORDS:
        return Shown(f"|V{found.value}", found.value, found, typedefs, nested=True) if found.value else None
    if found.kind is not TypeKind.ARRAY:
        dtype = scalar(btf, found)
        return Shown(dtype, found.value, found, typedefs) if dtype else None
    element, count = btf.element(found)
    found, more = btf.resolve(element)
    typedefs += more
    dtype = scalar(btf, found)
    if count == 0 or (dtype is None and found.kind not in (*RECORDS, TypeKind.ARRAY)):
        return None
    size = btf.size(number)
    if dtype is None or dtype.startswith("|V"):
        return Shown(f"|V{size}", size, found, typedefs) if size else None
    return Shown(f"|S{size}" if is_char(btf, found) else f"({count},){dtype}", size, found, typedefs)


def scalar(btf: Btf, of: Type) -> str | None:
    """The dtype of a number; None of what is none, `|V` and its size of one that numpy has no name for."""
    if of.value == 0:
        return None
    if of.kind is TypeKind.INT:
        number = btf.integer(of)
        if number.is_bool and of.value == 1:
            return "?"
        return sized("i" if number.signed and not number.is_char else "u", of.value)
    if of.kind in ENUMS:
        return sized("i" if of.flag else "u", of.value)
    if of.kind is TypeKind.FLOAT:
        return f"<f{of.value}" if of.value in (4, 8) else f"|V{of.value}"
    return None


def sized(sign: str, size: int) -> str:
    if size not in (1, 2, 4, 8):
        return f"|V{size}"
    return f"{'<' if size > 1 else '|'}{sign}{size}"


def is_char(btf: Btf, of: Type) -> bool:
    """True of plain `char`, which compilers describe in several ways."""
    return of.kind is TypeKind.INT and of.value == 1 and (of.name == "char" or btf.integer(of).is_char)


def bit_field(btf: Btf, member: Member, of: Type, room: int, start: int) -> tuple[At, str, int] | None:
    """Place, dtype and bytes of a bit-field; None of a member that is none.

    room: bytes of its struct, which begins at byte `start`
    """
    first, width = member.bit_offset, member.bits
    if of.kind not in (TypeKind.INT, *ENUMS):
        return None
    if of.kind is TypeKind.INT:
        # Before the struct's flag the integer type told the width (see btf_int in Linux' btf.rst).
        number = btf.integer(of)
        if not width and number.bits < 8 * of.value:
            first, width = first + number.offset, number.bits
    if not width:
        return None
    if width > 8 * of.value:
        raise ImageError(f"BTF: bit-field {member.name!r} is wider than its type")
    dtype = scalar(btf, of) or ""
    # Its own type's unit, unless that reaches over the end of a packed struct; then the smallest that holds it.
    for size in sorted({of.value, 1, 2, 4, 8}, key=lambda size: (size != of.value, size)):
        offset = min(first // (8 * size) * size if size == of.value else first // 8, room - size)
        shift = first - 8 * offset
        if size in (1, 2, 4, 8) and offset >= 0 and shift + width <= 8 * size:
            kind = dtype if size == of.value else sized("i" if "i" in dtype else "u", size)
            return At(start + offset, (shift, width)), kind, size
    offset, size = first // 8, (first % 8 + width + 7) // 8
    return At(start + offset), f"|V{size}", size
