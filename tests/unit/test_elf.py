import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from igrun.elf import Elf, Section
from igrun.errors import ImageError
from tests.compiled import compiled

SOURCE = """
const volatile int limit = 5; int counter; static volatile int hidden = 3;
SEC("raw_tp/sys_enter") int first(void *ctx) { return limit; }
SEC("raw_tp/sys_enter") int second(void *ctx) { return counter + hidden; }
"""


def an_elf() -> Elf:
    return Elf(compiled(SOURCE))


def test_sections_and_symbols_are_those_that_readelf_sees():
    elf = an_elf()
    symbols = {one.name: one for one in elf.symbols}

    assert {".text", "raw_tp/sys_enter", ".BTF", ".rodata", ".symtab"} <= set(elf.by_name)
    assert elf.content(elf.by_name[".rodata"]) == (5).to_bytes(4, "little")
    assert (symbols["first"].type, symbols["first"].value) == ("STT_FUNC", 0)
    assert symbols["second"].value == symbols["first"].size
    assert symbols["counter"].section == elf.by_name[".bss"].number


def test_functions_stand_in_the_order_of_their_section():
    elf = an_elf()

    assert [one.name for one in elf.functions[elf.by_name["raw_tp/sys_enter"].number]] == ["first", "second"]


def test_a_section_without_bytes_in_the_file_is_zeros():
    elf = an_elf()

    assert elf.content(elf.by_name[".bss"]) == bytes(elf.by_name[".bss"].size)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda raw: b"", "does not begin with"),
        (lambda raw: b"MZ" + raw[2:], "does not begin with"),
        (lambda raw: raw[:40], "too few"),
        (lambda raw: raw[:4] + b"\1" + raw[5:], "not a little-endian 64-bit"),
        (lambda raw: raw[:5] + b"\2" + raw[6:], "not a little-endian 64-bit"),
        (lambda raw: raw[:16] + b"\2\0" + raw[18:], "not a BPF object"),
        (lambda raw: raw[:18] + b"\x3e\0" + raw[20:], "not a BPF object"),
        (lambda raw: raw[: len(raw) // 2], "do not fit"),
        (lambda raw: raw[:40] + b"\xff" * 8 + raw[48:], "do not fit"),
        (lambda raw: raw[:60] + b"\0\0" + raw[62:], "do not fit"),
        (lambda raw: raw[:62] + b"\xff\xff" + raw[64:], "names of sections"),
    ],
)
def test_what_is_no_bpf_object_is_refused(change, problem):
    with pytest.raises(ImageError, match=problem) as error:
        Elf(change(compiled(SOURCE)))

    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        (Section(1, "a", "SHT_PROGBITS", 0, 2**40, 8), "reaches over the end"),
        (Section(1, "a", "SHT_PROGBITS", 0, 0, 2**64 - 1), "reaches over the end"),
        (Section(1, "a", "SHT_NOBITS", 0, 0, 2**40), "too large"),
        (Section(1, "a", "SHT_PROGBITS", 0x800, 0, 8), "compressed"),
    ],
)
def test_a_section_that_cannot_be_read_is_refused(section, problem):
    with pytest.raises(ImageError, match=problem):
        an_elf().content(section)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_a_broken_object_gives_nothing_but_an_image_error(data):
    raw = bytearray(compiled(SOURCE))
    # the header and the table of sections, where it hurts most, or anywhere
    table = int.from_bytes(raw[40:48], "little")
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.one_of(st.integers(0, 63), st.integers(table, len(raw) - 1), st.integers(0, len(raw) - 1)))
        raw[at] = data.draw(st.integers(0, 255))
    try:
        elf = Elf(bytes(raw))
        for section in elf.sections:
            elf.functions.get(section.number)
            elf.content(section)
    except ImageError as error:
        assert str(error).isprintable()
