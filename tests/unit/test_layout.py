import ctypes as C

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igrun.btf import Btf, TypeKind
from igrun.elf import Elf
from igrun.engine.reference import ENGINE
from igrun.errors import ImageError
from igrun.layout import DEEPEST, Layout, layout
from igrun.record import At, Batch, DataSource, Facts, Framing, Kind, Region
from tests.compiled import compiled
from tests.unit.test_btf import Writer

K = TypeKind


def of_source(source: str, name: str = "event", **how) -> Layout:
    """The layout of a C struct."""
    elf = Elf(compiled(f"{source}\nstruct {name} *keep_{name};"))
    btf = Btf.parse(elf.content(elf.by_name[".BTF"]))
    return layout(btf, btf.find(name, K.STRUCT), **how)


def dtypes(source: str) -> dict[str, tuple[str, int]]:
    return {one.name: (one.dtype, one.place.offset) for one in of_source(source).fields}


def values(found: Layout, raw: bytes) -> dict[str, object]:
    source = DataSource("s", Kind.EVENTS, found.fields, size=found.size)
    return next(Batch(source, Region(raw, Framing.FIXED, found.size), ENGINE.columns(Facts({}))).rows())


def test_numbers_have_their_size_and_sign():
    assert dtypes("""
        struct event { u8 a; s8 b; u16 c; s16 d; u32 e; s32 f; u64 g; s64 h; bool i; char j; float k; double l; };
    """) == {
        "a": ("|u1", 0),
        "b": ("|i1", 1),
        "c": ("<u2", 2),
        "d": ("<i2", 4),
        "e": ("<u4", 8),
        "f": ("<i4", 12),
        "g": ("<u8", 16),
        "h": ("<i8", 24),
        "i": ("?", 32),
        "j": ("|i1", 33),
        "k": ("<f4", 36),
        "l": ("<f8", 40),
    }


def test_a_char_array_is_text_and_any_other_an_array():
    assert dtypes("""
        typedef char name_t[8];
        struct event { char a[16]; gadget_comm b[4]; name_t c; u8 d[3]; u32 e[27]; bool f[2]; signed char g[2]; };
    """) == {
        "a": ("|S16", 0),
        "b": ("|S4", 16),
        "c": ("|S8", 20),
        "d": ("(3,)|u1", 28),
        "e": ("(27,)<u4", 32),
        "f": ("(2,)?", 140),
        "g": ("(2,)|i1", 142),
    }


def test_what_numpy_has_no_name_for_is_bytes():
    assert dtypes("""
        struct point { int x, y; };
        struct event { __int128 a; struct point b[3]; u32 c[2][5]; __int128 d[2]; };
    """) == {"a": ("|V16", 0), "b": ("|V24", 16), "c": ("|V40", 40), "d": ("|V32", 80)}


def test_pointers_functions_and_what_begins_with_two_underscores_are_left_out():
    assert list(
        dtypes("struct event { void *a; int (*b)(void); u32 __c; u32 d; char *e[3]; char f[0]; u32 _g; };")
    ) == ["d", "_g"]


def test_members_of_members_stand_below_their_parent():
    assert dtypes("""
        struct inner { u32 x; struct { u16 y; } deep; };
        struct event { u64 t; struct inner in; union { u32 v4; u8 v6[16]; } addr; };
    """) == {
        "t": ("<u8", 0),
        "in": ("|V8", 8),
        "in.x": ("<u4", 8),
        "in.deep": ("|V2", 12),
        "in.deep.y": ("<u2", 12),
        "addr": ("|V16", 16),
        "addr.v4": ("<u4", 16),
        "addr.v6": ("(16,)|u1", 16),
    }


def test_structs_without_a_name_give_their_members_to_the_parent():
    assert dtypes("struct event { u32 a; union { struct { u16 b, c; }; u32 d; }; };") == {
        "a": ("<u4", 0),
        "b": ("<u2", 4),
        "c": ("<u2", 6),
        "d": ("<u4", 4),
    }


def test_typedefs_of_structs_and_enums_are_followed():
    found = of_source("""
        typedef struct { u32 x; } point_t; typedef enum { ON, OFF } switch_t; typedef const point_t fixed_t;
        struct event { fixed_t at; switch_t state_raw; };
    """)

    assert [one.name for one in found.fields] == ["at", "at.x", "state_raw"]
    assert found.fields[0].tags == ("type:fixed_t", "type:point_t", "name:at", "src:ebpf")
    assert found.enums["state_raw"].name == "switch_t"
    assert found.indirect == {"state_raw"}


def test_tags_tell_every_type_name_from_the_outermost_on():
    found = {one.name: one for one in of_source("struct event { gadget_errno e; gadget_comm c[4]; };").fields}

    assert found["e"].tags == ("type:gadget_errno", "type:__u32", "type:unsigned int", "name:e", "src:ebpf")
    assert found["c"].tags == ("type:gadget_comm", "type:char", "name:c", "src:ebpf")


def test_extra_tags_and_a_base_go_to_every_field():
    found = of_source("struct event { u32 a; struct { u32 b; } in; };", base=100, tags=("role:key",))

    assert [(one.name, one.place.offset, one.tags[-1]) for one in found.fields] == [
        *(("a", 100, "role:key"), ("in", 104, "role:key"), ("in.b", 104, "role:key"))
    ]


def test_enumerations_have_their_names():
    found = of_source("""
        enum colour { RED, GREEN = 7, BLUE = -1 }; enum bits_set { A = 1, B = 2 } __attribute__((packed));
        enum wide { HUGE = 0xffffffff00000000ULL };
        struct event { enum colour c; enum bits_set b_raw; enum wide w; enum colour list[3]; u32 n; };
    """)
    dtype = {one.name: one.dtype for one in found.fields}

    assert set(found.enums) == {"c", "b_raw", "w"} and not found.indirect
    # clang 14 does not tell that an enumeration is signed, later ones do
    assert [(name, value % 2**32) for name, value in found.enums["c"].members] == [
        *(("RED", 0), ("GREEN", 7), ("BLUE", 2**32 - 1))
    ]
    assert found.enums["b_raw"].is_set and not found.enums["c"].is_set
    assert dtype["w"] in ("<u8", "<i8")
    assert dtype["c"] in ("<u4", "<i4") and dtype["list"] == f"(3,){dtype['c']}"
    assert dtype["b_raw"] == "|u1"


def test_the_parts_of_a_process_have_short_names_and_are_hidden():
    found = {one.name: one for one in of_source("struct event { struct gadget_process proc; u32 pid; };").fields}

    assert {name: one.annotations.get("columns.alias") for name, one in found.items()} == {
        "proc": None,
        "proc.comm": "comm",
        "proc.pid": "pid",
        "proc.tid": "tid",
        "proc.mntns_id": "mntns_id",
        "proc.creds": "creds",
        "proc.creds.uid": "uid",
        "proc.creds.gid": "gid",
        "proc.parent": "parent",
        "proc.parent.comm": "comm",
        "proc.parent.pid": "pid",
        "proc.parent.tid": "tid",
        "pid": None,
    }
    hidden = {name for name, one in found.items() if one.annotations.get("columns.hidden") == "true"}
    assert hidden == {"proc", "proc.creds", "proc.parent"}
    assert {name: one.place.offset for name, one in found.items() if "." in name and name.count(".") == 1} == {
        "proc.comm": 0,
        "proc.pid": 16,
        "proc.tid": 20,
        "proc.mntns_id": 24,
        "proc.creds": 32,
        "proc.parent": 40,
    }


class Bits(C.Structure):
    _fields_ = (
        *(("a", C.c_uint8, 3), ("b", C.c_uint8, 5), ("c", C.c_int32, 17), ("d", C.c_uint32, 2), ("e", C.c_uint64, 40)),
        *(("f", C.c_int64, 20), ("g", C.c_uint16, 16), ("h", C.c_uint8, 1)),
    )


BITS = """struct event {
    u8 a : 3, b : 5; s32 c : 17; u32 d : 2; u64 e : 40; s64 f : 20; u16 g : 16; bool h : 1;
};"""


@settings(max_examples=50, deadline=None)
@given(st.binary(min_size=C.sizeof(Bits), max_size=C.sizeof(Bits)))
def test_bit_fields_have_the_values_that_c_reads(raw):
    found, wanted = values(of_source(BITS), raw), Bits.from_buffer_copy(raw)

    assert found == {name: getattr(wanted, name) for name, *_ in Bits._fields_}
    assert found["h"] is bool(wanted.h)


class PackedBits(C.Structure):
    _pack_ = 1
    _layout_ = "gcc-sysv"
    _fields_ = (("a", C.c_uint8), ("b", C.c_uint32, 11), ("c", C.c_uint32, 3))


def test_bit_fields_at_the_end_of_a_packed_struct_do_not_reach_over_it():
    found = of_source("struct event { u8 a; u32 b : 11; u32 c : 3; } __attribute__((packed));")

    assert found.size == 3
    assert {one.name: (one.dtype, one.place) for one in found.fields} == {
        "a": ("|u1", At(0)),
        "b": ("<u2", At(1, (0, 11))),
        "c": ("|u1", At(2, (3, 3))),
    }
    assert values(found, bytes((1, 0xFF, 0b00101011))) == {"a": 1, "b": 0b01111111111, "c": 0b101}


def test_a_bit_field_over_nine_bytes_is_given_as_bytes():
    to = Writer()
    number = to.integer("unsigned long", 8)
    to.struct("s", 9, ("pad", number, 1 << 24 | 0), ("wide", number, 64 << 24 | 4), flag=True)
    btf = to.btf()

    assert [(one.name, one.dtype) for one in layout(btf, btf.find("s")).fields] == [("pad", "<u8"), ("wide", "|V9")]


def test_old_objects_tell_bit_fields_by_the_integer_type():
    to = Writer()
    bits = to.add(K.INT, "unsigned int", 4, 0 << 24 | 5)
    to.struct("s", 4, ("a", bits, 0), ("b", bits, 5))
    btf = to.btf()

    assert [one.place for one in layout(btf, btf.find("s")).fields] == [At(0, (0, 5)), At(0, (5, 5))]


# ------------------------------------------------------------------------------------------------ hostile


def refused(to: Writer, problem: str, name: str = "s") -> None:
    btf = to.btf()
    with pytest.raises(ImageError, match=problem):
        layout(btf, btf.find(name))


def test_a_struct_that_holds_itself_is_refused():
    to = Writer()
    to.struct("s", 8, ("again", 1, 0))

    refused(to, f"more than {DEEPEST} deep")


def test_a_struct_with_exponentially_many_members_is_refused():
    to = Writer()
    number = to.integer("char", 1)
    inner = to.struct("s0", 1, ("n", number, 0))
    for level in range(1, 12):
        inner = to.struct(f"s{level}", 1, *((f"m{i}", inner, 0) for i in range(10)))

    refused(to, "more than 16384 members", "s11")


@pytest.mark.parametrize("offset", [8, 1, 2**32 - 8])
def test_a_member_outside_of_its_struct_is_refused(offset):
    to = Writer()
    number = to.integer("int", 4)
    to.struct("s", 4, ("n", number, offset))

    refused(to, "member 'n' does not lie within it")


@pytest.mark.parametrize("name", ["a.b", "a b", "a,b", "1a"])
def test_a_member_whose_name_is_no_c_name_is_refused(name):
    to = Writer()
    to.struct("s", 4, (name, to.integer("int", 4), 0))

    refused(to, "no name of a member")


def test_two_members_of_one_name_are_refused():
    to = Writer()
    number = to.integer("int", 4)
    to.struct("s", 8, ("n", number, 0), ("n", number, 32))

    refused(to, "field 'n' already exists")


def test_a_struct_larger_than_any_record_is_refused():
    to = Writer()
    to.struct("s", 2**31)

    refused(to, "cannot be a record")


def test_big_endian_structs_are_refused():
    to = Writer(">")
    to.struct("s", 4, ("n", to.integer("int", 4), 0))

    refused(to, "big-endian")
