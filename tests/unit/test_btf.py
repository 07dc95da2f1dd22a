import ctypes as C
import json
import shutil
import struct
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from igrun.btf import Btf, Integer, Member, TypeKind
from igrun.elf import Elf
from igrun.errors import ImageError
from tests.compiled import compiled

VMLINUX = Path("/sys/kernel/btf/vmlinux")
needs_vmlinux = pytest.mark.skipif(not VMLINUX.exists(), reason="this kernel has no BTF of its own")
needs_bpftool = pytest.mark.skipif(not shutil.which("bpftool"), reason="no bpftool")

K = TypeKind


# ------------------------------------------------------------------------------------------------ a writer


@dataclass
class Writer:
    """Writes BTF, the obvious way."""

    order: str = "<"
    types: bytes = b""
    strings: bytes = b"\0"
    count: int = 0
    places: dict[str, int] = field(default_factory=dict)

    def name(self, text: str) -> int:
        if text and text not in self.places:
            self.places[text] = len(self.strings)
            self.strings += text.encode() + b"\0"
        return self.places.get(text, 0)

    def add(self, kind: int, name: str, value: int, *words: int, rows: int = 0, flag: bool = False) -> int:
        info = int(flag) << 31 | kind << 24 | rows
        every = (self.name(name), info, value, *words)
        self.types += struct.pack(f"{self.order}{len(every)}I", *(word & 0xFFFFFFFF for word in every))
        self.count += 1
        return self.count

    def integer(self, name: str, size: int, encoding: int = 0) -> int:
        return self.add(K.INT, name, size, encoding << 24 | 8 * size)

    def struct(self, name: str, size: int, *members: tuple[str, int, int], flag: bool = False) -> int:
        words = [word for text, of, offset in members for word in (self.name(text), of, offset)]
        return self.add(K.STRUCT, name, size, *words, rows=len(members), flag=flag)

    def bytes(self) -> bytes:
        header = struct.pack(
            f"{self.order}HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(self.types), len(self.types), len(self.strings)
        )
        return header + self.types + self.strings

    def btf(self) -> Btf:
        return Btf.parse(self.bytes())


orders = pytest.mark.parametrize("order", ["<", ">"], ids=["little-endian", "big-endian"])


# ------------------------------------------------------------------------------------------------ every kind


@orders
def test_every_kind_of_type_is_read(order):
    to = Writer(order)
    number = to.integer("int", 4, 1)
    to.add(K.PTR, "", number)
    array = to.add(K.ARRAY, "", 0, number, number, 7)
    record = to.struct("s", 8, ("a", number, 0), ("b", number, 32))
    to.add(K.UNION, "u", 4, to.name("m"), number, 0, rows=1)
    to.add(K.ENUM, "e", 4, to.name("x"), -1, to.name("y"), 2, rows=2, flag=True)
    to.add(K.FWD, "f", 0)
    typedef = to.add(K.TYPEDEF, "t", record)
    volatile = to.add(K.VOLATILE, "", typedef)
    const = to.add(K.CONST, "", volatile)
    to.add(K.RESTRICT, "", const)
    proto = to.add(K.FUNC_PROTO, "", number, to.name("arg"), number, rows=1)
    to.add(K.FUNC, "fn", proto)
    var = to.add(K.VAR, "v", number, 1)
    to.add(K.DATASEC, ".data", 8, var, 4, 4, rows=1)
    to.add(K.FLOAT, "double", 8)
    to.add(K.DECL_TAG, "tag", record, 0)
    tagged = to.add(K.TYPE_TAG, "user", number)
    to.add(K.ENUM64, "e64", 8, to.name("big"), 1, 0x80000000, rows=1)
    btf = to.btf()

    assert [btf.type(one).kind for one in range(len(btf))] == [
        K.VOID,
        *(K.INT, K.PTR, K.ARRAY, K.STRUCT, K.UNION, K.ENUM, K.FWD, K.TYPEDEF, K.VOLATILE, K.CONST, K.RESTRICT),
        *(K.FUNC_PROTO, K.FUNC, K.VAR, K.DATASEC, K.FLOAT, K.DECL_TAG, K.TYPE_TAG, K.ENUM64),
    ]
    assert btf.integer(btf.type(number)) == Integer(True, False, False, 0, 32)
    assert btf.element(btf.type(array)) == (number, 7)
    assert list(btf.members(btf.type(record))) == [Member("a", number, 0, 0), Member("b", number, 32, 0)]
    assert btf.resolve(const) == (btf.type(record), ("t",))
    assert btf.resolve(tagged).type.id == number
    assert [tuple(one) for one in btf.variables(btf.find(".data", K.DATASEC))] == [(var, 4, 4)]
    assert btf.linkage(btf.type(var)) == 1
    assert btf.enumeration(btf.find("e")).members == (("x", -1), ("y", 2))
    assert btf.enumeration(btf.find("e64")).members == (("big", 1 << 63 | 1),)
    assert [btf.size(one) for one in (number, array, const)] == [4, 28, 8]
    assert btf.find("t").kind is K.TYPEDEF and btf.find("t", K.STRUCT) is None
    assert [one.name for one in btf.of_kind(K.VAR)] == ["v"]
    assert btf.type(0).kind is K.VOID


def test_an_enumeration_whose_name_ends_in_set_is_one():
    to = Writer()
    to.add(K.ENUM, "cap_set", 4, to.name("A"), 1, rows=1)
    to.add(K.ENUM, "", 4, to.name("B"), 1, rows=1)
    btf = to.btf()

    assert btf.enumeration(btf.type(1)).is_set
    assert btf.enumeration(btf.type(2), "flags_set") == btf.enumeration(btf.type(2), "flags_set")
    assert btf.enumeration(btf.type(2), "flags_set").is_set
    assert not btf.enumeration(btf.type(2)).is_set


names = st.text(st.sampled_from("abcXYZ_09"), min_size=1, max_size=6)
words = st.integers(0, 2**32 - 1)


@st.composite
def written(draw):
    """A writer, and what it wrote: (kind, name, value, rows of words)."""
    to = Writer(draw(st.sampled_from("<>")))
    expected = []
    for _ in range(draw(st.integers(1, 12))):
        kind = draw(st.sampled_from([K.INT, K.PTR, K.STRUCT, K.ENUM, K.TYPEDEF, K.VAR, K.DATASEC, K.ENUM64, K.FUNC]))
        name, value, flag = draw(names), draw(words), draw(st.booleans())
        width = {K.STRUCT: 3, K.ENUM: 2, K.DATASEC: 3, K.ENUM64: 3}.get(kind, 0)
        rows = []
        for _ in range(draw(st.integers(0, 4)) if width else 0):
            first = draw(words) if kind is K.DATASEC else to.name(draw(names))
            rows.append((first, *(draw(words) for _ in range(width - 1))))
        fixed = [draw(words)] if kind in (K.INT, K.VAR) else []
        to.add(kind, name, value, *fixed, *(word for row in rows for word in row), rows=len(rows), flag=flag)
        expected.append((kind, name, value, flag, rows))
    return to, expected


@settings(max_examples=150, deadline=None)
@given(written())
def test_what_was_written_is_read_again(both):
    to, expected = both
    btf = to.btf()

    assert len(btf) == len(expected) + 1
    for number, (kind, name, value, flag, rows) in enumerate(expected, 1):
        one = btf.type(number)
        assert one[:6] == (number, kind, name, len(rows), flag, value)
        same_name = [n for n, row in enumerate(expected, 1) if (row[0], row[1]) == (kind, name)]
        assert btf.find(name, kind).id == same_name[0]
        if kind is K.STRUCT:
            read = [(m.name, m.type, m.bits << 24 | m.bit_offset if flag else m.bit_offset) for m in btf.members(one)]
            assert read == [(btf.text(row[0]), row[1], row[2]) for row in rows]
        if kind is K.DATASEC:
            assert [tuple(row) for row in btf.variables(one)] == rows
        if kind in (K.ENUM, K.ENUM64):
            bits = 32 * (len(rows[0]) - 1) if rows else 32
            members = btf.enumeration(one).members
            numbers = [row[1] if kind is K.ENUM else row[2] << 32 | row[1] for row in rows]
            assert [name for name, _ in members] == [btf.text(row[0]) for row in rows]
            assert [value % (1 << bits) for _, value in members] == numbers
            assert flag or all(value >= 0 for _, value in members)


# ------------------------------------------------------------------------------------------------ against other tools


def bpftool(path: Path) -> list[dict]:
    done = subprocess.run(["bpftool", "-j", "btf", "dump", "file", str(path)], capture_output=True, check=True)
    return json.loads(done.stdout)["types"]


SOURCE = """
enum colour { RED, GREEN = 7, BLUE = -1 };
enum wide { HUGE = 0xffffffff00000000ULL };
struct inner { char text[5]; _Bool yes; float f; double d; };
struct event {
    u64 time; struct inner in; enum colour colour; enum wide wide; u32 list[27]; u8 a : 3, b : 5; s32 c : 17;
    struct { u16 left, right; }; union { u32 v4; u8 v6[16]; } addr; void *pointer; __int128 big;
};
struct event *keep; const volatile int number = 5; static volatile int hidden = 3;
SEC("raw_tp/sys_enter") int program(void *ctx) { return number + hidden; }
"""


@needs_bpftool
def test_a_compiled_object_has_the_types_that_bpftool_sees(tmp_path):
    path = tmp_path / "o.o"
    path.write_bytes(compiled(SOURCE))
    elf = Elf(path.read_bytes())
    btf = Btf.parse(elf.content(elf.by_name[".BTF"]))

    assert_as_bpftool(btf, bpftool(path))


@needs_vmlinux
@needs_bpftool
def test_the_kernel_has_the_types_that_bpftool_sees():
    if subprocess.run(["bpftool", "version"], capture_output=True).returncode:
        pytest.skip("bpftool does not run")
    assert_as_bpftool(Btf.parse(VMLINUX.read_bytes()), bpftool(VMLINUX)[::7])


def assert_as_bpftool(btf: Btf, dump: list[dict]) -> None:
    assert dump
    for one in dump:
        found = btf.type(one["id"])
        assert found.kind.name == one["kind"]
        assert found.name == one["name"].replace("(anon)", "")
        if found.kind in (K.STRUCT, K.UNION):
            assert found.value == one["size"]
            assert [(m.name or "(anon)", m.type, m.bit_offset, m.bits) for m in btf.members(found)] == [
                (m["name"], m["type_id"], m["bits_offset"], m.get("bitfield_size", 0)) for m in one["members"]
            ]
        elif found.kind is K.ENUM:
            values = [(name, value % 2**32) for name, value in btf.enumeration(found).members]
            assert values == [(v["name"], v["val"] % 2**32) for v in one["values"]]
        elif found.kind is K.ARRAY:
            assert btf.element(found) == (one["type_id"], one["nr_elems"])
        elif "type_id" in one:
            assert found.value == one["type_id"]


@needs_vmlinux
def test_one_enumeration_of_the_kernel_is_found_at_once():
    data = VMLINUX.read_bytes()
    start = time.perf_counter()
    fast = [one.members for one in Btf.parse(data).enumerations("pid_type")]
    seconds = time.perf_counter() - start
    btf = Btf.parse(data)
    sure = btf.enumeration(btf.find("pid_type", K.ENUM, K.ENUM64)).members

    assert fast == [sure]
    assert dict(sure)["PIDTYPE_PID"] == 0
    assert seconds < 0.5  # 10 ms; the rest is for busy machines


@needs_vmlinux
def test_a_search_without_reading_types_finds_every_enumeration_of_the_kernel():
    btf = Btf.parse(VMLINUX.read_bytes())
    named = {}
    for kind in (K.ENUM, K.ENUM64):
        for one in btf.of_kind(kind):
            if one.name:
                named.setdefault(one.name, []).append(btf.enumeration(one))

    assert len(named) > 500
    for name in list(named)[::20]:
        assert list(btf.enumerations(name)) == named[name]


def test_a_name_that_nothing_has_is_not_found():
    to = Writer()
    to.struct("s", 0)
    to.name("unused")
    btf = to.btf()

    assert btf.find("nothing") is btf.find("unused") is btf.find("") is None
    assert list(btf.enumerations("s")) == []


# ------------------------------------------------------------------------------------------------ hostile


def header(**changed: int) -> bytes:
    names = ("magic", "version", "flags", "length", "types", "types_size", "strings", "strings_size")
    fields = dict(zip(names, (0xEB9F, 1, 0, 24, 0, 0, 0, 1), strict=True))
    return struct.pack("<HBBIIIII", *{**fields, **changed}.values()) + b"\0"


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "too few"),
        (header()[:20], "too few"),
        (header(magic=1), "magic"),
        (header(version=2), "version 2"),
        (header(length=8), "more than"),
        (header(length=2**32 - 1), "more than"),
        (header(types_size=2**32 - 4), "more than"),
        (header(strings=2**31), "more than"),
        (header(strings_size=2), "more than"),
        (header(strings_size=0), "NUL"),
        (header(types_size=1), "words"),
    ],
)
def test_a_wrong_header_is_refused(data, problem):
    with pytest.raises(ImageError, match=problem):
        Btf.parse(data)


def test_a_type_of_an_unknown_kind_is_refused():
    to = Writer()
    to.integer("int", 4)
    to.add(25, "", 0)

    with pytest.raises(ImageError, match="type 2 has an unknown kind"):
        len(to.btf())


def test_a_type_that_is_cut_off_is_refused():
    to = Writer()
    to.add(K.STRUCT, "s", 4, rows=3)

    with pytest.raises(ImageError, match="type 1 is cut off"):
        to.btf().find("s")


def test_an_id_that_no_type_has_is_refused():
    with pytest.raises(ImageError, match="no type 9"):
        Writer().btf().type(9)


@pytest.mark.parametrize("kind", [K.TYPEDEF, K.CONST, K.TYPE_TAG])
def test_types_that_refer_to_themselves_are_refused(kind):
    to = Writer()
    to.add(kind, "t" if kind is K.TYPEDEF else "", 1)

    with pytest.raises(ImageError, match="endless"):
        to.btf().resolve(1)


def test_arrays_that_hold_themselves_are_refused():
    to = Writer()
    to.add(K.ARRAY, "", 0, 1, 1, 2**31)

    with pytest.raises(ImageError, match="endless"):
        to.btf().size(1)


@pytest.mark.parametrize("name", ["\x1b[2J", "a\nb", "\x7f", "x" * 5000])
def test_a_name_that_a_terminal_would_obey_is_refused(name):
    to = Writer()
    to.struct(name, 4)

    with pytest.raises(ImageError, match="no name"):
        to.btf().type(1)


def test_a_name_that_is_not_utf8_is_refused():
    to = Writer()
    to.struct("name", 4)
    data = to.bytes().replace(b"name", b"\xff\xfe\xfd\xfc")

    with pytest.raises(ImageError, match="no name"):
        Btf.parse(data).type(1)


def read_all(data: bytes) -> None:
    """Look at everything a BTF file says."""
    from igrun.layout import layout

    btf = Btf.parse(data)
    for number in range(len(btf)):
        try:
            one = btf.type(number)
            if one.kind in (K.STRUCT, K.UNION):
                list(btf.members(one))
                layout(btf, one)
            elif one.kind in (K.ENUM, K.ENUM64):
                btf.enumeration(one)
            elif one.kind is K.DATASEC:
                list(btf.variables(one))
            btf.find(one.name)
            list(btf.enumerations(one.name))
            btf.resolve(number)
            btf.size(number)
        except ImageError:
            continue


def a_btf() -> bytes:
    elf = Elf(compiled(SOURCE))
    return elf.content(elf.by_name[".BTF"])


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_a_broken_file_gives_nothing_but_an_image_error(data):
    raw = bytearray(a_btf())
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(raw) - 1))
        if data.draw(st.booleans()):
            raw[at] = data.draw(st.integers(0, 255))
        else:
            at &= ~3
            raw[at : at + 4] = data.draw(st.sampled_from([0, 1, 2**31, 2**32 - 1, len(raw)])).to_bytes(4, "little")
    cut = data.draw(st.integers(0, 8))
    try:
        read_all(bytes(raw[: len(raw) - cut] if cut < 7 else raw[: data.draw(st.integers(0, len(raw)))]))
    except ImageError as error:
        assert str(error).isprintable()


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
@example(b"\x9f\xeb\x01\x00")
def test_types_of_noise_give_nothing_but_an_image_error(noise):
    noise = noise[: len(noise) & ~3]
    strings = b"\0abc\0" + bytes(b for b in noise) + b"\0"
    try:
        read_all(header(types_size=len(noise), strings=len(noise), strings_size=len(strings))[:24] + noise + strings)
    except ImageError as error:
        assert str(error).isprintable()


def test_ctypes_agrees_that_pointers_have_eight_bytes():
    to = Writer()
    to.add(K.PTR, "", 0)

    assert to.btf().size(1) == C.sizeof(C.c_void_p)
