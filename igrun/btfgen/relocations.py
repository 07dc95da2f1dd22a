"""The CO-RE relocations of a BPF object: which types, members and values of the kernel its programs look at."""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import NamedTuple

from igrun.btf import ENUMS, MAGIC, QUALIFIERS, RECORDS, Btf, Type, TypeKind
from igrun.elf import Elf
from igrun.errors import ImageError

HEADER = Struct("<HBBIIIIIII")  # struct btf_ext_header, with the table of CO-RE relocations
SECTION = Struct("<II")  # struct btf_ext_info_sec: name, number of records
RECORD = Struct("<IIII")  # struct bpf_core_relo
LONGEST_PATH = 64  # BPF_CORE_SPEC_MAX_LEN
MOST = 100_000


class Kind(IntEnum):
    """As enum bpf_core_relo_kind in linux/bpf.h."""

    BYTE_OFFSET = 0
    BYTE_SIZE = 1
    EXISTS = 2
    SIGNED = 3
    LSHIFT = 4
    RSHIFT = 5
    TYPE_ID_LOCAL = 6
    TYPE_ID_TARGET = 7
    TYPE_EXISTS = 8
    TYPE_SIZE = 9
    ENUMVAL_EXISTS = 10
    ENUMVAL_VALUE = 11
    TYPE_MATCHES = 12


OF_TYPES = (Kind.TYPE_ID_LOCAL, Kind.TYPE_ID_TARGET, Kind.TYPE_EXISTS, Kind.TYPE_SIZE, Kind.TYPE_MATCHES)
OF_VALUES = (Kind.ENUMVAL_EXISTS, Kind.ENUMVAL_VALUE)


class Step(NamedTuple):
    """One step of an access. name: of the member or enumerator, "" for the element of an array.

    place: of the element; type: id of the member's type, 0 where there is none
    """

    name: str
    place: int = 0
    type: int = 0


class Relocation(NamedTuple):
    """One look at the kernel's types.

    btf:  the object's own
    type: what the access starts at, in there; perhaps a typedef
    path: from there on; empty where the type itself is meant
    """

    kind: Kind
    btf: Btf
    type: Type
    path: tuple[Step, ...]

    @property
    def name(self) -> str:
        """The type's name in the kernel: without a flavor, as `___old` is one."""
        return essential(self.type.name)


def relocations(elf: bytes) -> tuple[Relocation, ...]:
    """All that an object has, each once. ImageError: it is no BPF object, or they are broken."""
    object_ = Elf(elf)
    types, table = object_.by_name.get(".BTF"), object_.by_name.get(".BTF.ext")
    if types is None or table is None:
        return ()
    btf = Btf.parse(object_.content(types))
    found = {}
    for kind, number, at in sorted(set(records(object_.content(table)))):
        if kind is not Kind.TYPE_ID_LOCAL:
            one = read(btf, kind, number, btf.text(at))
            if one.type.name:
                found[kind, number, at] = one
    return tuple(found.values())


def records(data: bytes) -> list[tuple[Kind, int, int]]:
    """Kind, type id and place of the path's text of each record in a section .BTF.ext."""
    if len(data) < HEADER.size:
        return []
    magic, version, _, length, _, _, _, _, start, size = HEADER.unpack_from(data)
    if magic != MAGIC or version != 1:
        raise ImageError("BTF.ext: not of a kind that is known")
    if length < HEADER.size or not size:
        return []
    end = length + start + size
    at = length + start + 4
    if size < 4 or end > len(data):
        raise ImageError("BTF.ext: the table of relocations does not fit into it")
    width = int.from_bytes(data[at - 4 : at], "little")
    if width < RECORD.size:
        raise ImageError(f"BTF.ext: relocations of {width} bytes are too short")
    found: list[tuple[Kind, int, int]] = []
    while at < end:
        if at + SECTION.size > end:
            raise ImageError("BTF.ext: the table of relocations ends inside of a section")
        _, count = SECTION.unpack_from(data, at)
        at += SECTION.size
        if at + count * width > end or len(found) + count > MOST:
            raise ImageError(f"BTF.ext: {count} relocations do not fit into the table")
        for _ in range(count):
            _, number, text, kind = RECORD.unpack_from(data, at)
            at += width
            if kind not in Kind.__members__.values():
                raise ImageError(f"BTF.ext: unknown kind of relocation {kind}")
            found.append((Kind(kind), number, text))
    return found


def read(btf: Btf, kind: Kind, number: int, text: str) -> Relocation:
    """A relocation whose path is written as `0:1:2`: indices of members and elements, the first that of an array."""
    parts = text.split(":")
    if len(parts) > LONGEST_PATH or not all(part.isascii() and part.isdigit() for part in parts):
        raise ImageError(f"BTF.ext: {text[:80]!r} is no access")
    indices = [int(part) for part in parts]
    root = btf.type(number)
    if kind in OF_TYPES:
        return Relocation(kind, btf, root, ())
    here = plain(btf, number)
    if kind in OF_VALUES:
        members = btf.enumeration(here).members if here.kind in ENUMS else ()
        if len(indices) != 1 or indices[0] >= len(members):
            raise ImageError(f"BTF.ext: type {number} has no value {text[:80]}")
        return Relocation(kind, btf, root, (Step(members[indices[0]][0], indices[0]),))
    path = [Step("", indices[0])]
    for index in indices[1:]:
        if here.kind in RECORDS:
            members_ = list(btf.members(here))
            if index >= len(members_):
                raise ImageError(f"BTF.ext: {here.name} has no member {index}")
            member = members_[index]
            if member.name:  # what is in one without a name is looked for wherever it is
                path.append(Step(member.name, index, member.type))
            here = plain(btf, member.type)
        elif here.kind is TypeKind.ARRAY:
            path.append(Step("", index))
            here = plain(btf, btf.element(here)[0])
        else:
            raise ImageError(f"BTF.ext: access {text[:80]} leads into type {here.id}, which has no parts")
    return Relocation(kind, btf, root, tuple(path))


def plain(btf: Btf, number: int) -> Type:
    """The type behind typedefs and qualifiers."""
    found = btf.type(number)
    return btf.resolve(number).type if found.kind is TypeKind.TYPEDEF or found.kind in QUALIFIERS else found


def essential(name: str) -> str:
    """The name without its flavor: what follows the last three underscores between other letters."""
    for at in range(len(name) - 5, -1, -1):
        if name[at] != "_" and name[at + 1 : at + 4] == "___" and name[at + 4] != "_":
            return name[: at + 1]
    return name
