"""USDT probes of a binary: where they are, and where their arguments are found (section .note.stapsdt)."""

from __future__ import annotations

import re
from struct import Struct
from struct import error as StructError
from typing import NamedTuple

from igrun.symbols.binary import AARCH64, X86_64, Binary

SECTION, BASE = ".note.stapsdt", ".stapsdt.base"
OWNER, TYPE = b"stapsdt", 3
MOST_ARGUMENTS = 12  # BPF_USDT_MAX_ARG_CNT in libbpf's usdt.bpf.h


class Probe(NamedTuple):
    """One location of a probe.

    offset:    in the file
    counter:   offset of its semaphore, which counts who watches; 0: it has none
    arguments: as the note says them: `-4@%edi 8@-16(%rbp)`
    address:   as the binary says it
    """

    provider: str
    name: str
    offset: int
    counter: int
    arguments: str
    address: int


def probes(binary: Binary) -> list[Probe]:
    """All locations of all probes; what is broken, or is never loaded, is left out. ImageError."""
    form = Struct("<3Q" if binary.wide else "<3I")
    base_now = binary.section(BASE)
    found = []
    for note in binary.notes(SECTION):
        if note.owner != OWNER or note.type != TYPE:
            continue
        try:
            address, base, counter = form.unpack_from(note.content)
        except StructError:
            continue
        texts = note.content[form.size :].split(b"\0")
        if len(texts) < 4 or not texts[0] or not texts[1]:
            continue
        if base and base_now:  # prelink moved the code, and left the notes as they were
            moved = base_now.address - base
            address, counter = address + moved, counter + moved if counter else 0
        offset = binary.offset_of(address)
        counter_at = binary.offset_of(counter, code=False) if counter else 0
        if offset is None or counter_at is None:
            continue
        provider, name, arguments = (one.decode(errors="replace") for one in texts[:3])
        if f"{provider}{name}{arguments}".isprintable():
            found.append(Probe(provider, name, offset, counter_at, arguments, address))
    return found


# ------------------------------------------------------------------------------------------------ arguments

CONSTANT, REGISTER, MEMORY, UNREADABLE = 0, 1, 2, 0xFF  # enum __bpf_usdt_arg_type
ARGUMENT = Struct("<QIhBb")  # struct __bpf_usdt_arg_spec
SPEC_BYTES = ARGUMENT.size * MOST_ARGUMENTS + 16  # struct __bpf_usdt_spec
APART = re.compile(r"\s+(?=-?\d+f?@)")
SIZES = {"1": 8, "2": 16, "4": 32, "8": 64}
BITS_OF_A_NUMBER = 64

# struct pt_regs of x86-64, eight bytes each (arch/x86/include/asm/ptrace.h)
PT_REGS = "r15 r14 r13 r12 bp bx r11 r10 r9 r8 ax cx dx si di orig_ax ip cs flags sp".split()


def x86_registers() -> dict[str, int]:
    """Register -> its offset in struct pt_regs; of one with several sizes each name."""
    found = {}
    for place, name in enumerate(PT_REGS):
        names = [name]
        if name.startswith("r"):
            names += [f"{name}{size}" for size in "dwb"]
        elif name in ("ax", "bx", "cx", "dx"):
            names = [f"r{name}", f"e{name}", name, f"{name[0]}l"]
        elif name in ("si", "di", "bp", "sp"):
            names = [f"r{name}", f"e{name}", name, f"{name}l"]
        elif name == "ip":
            names = ["rip", "eip"]
        found.update(dict.fromkeys(names, place * 8))
    return found


def arm_registers() -> dict[str, int]:
    """As `x86_registers`, for arm64: struct user_pt_regs."""
    found = {f"{kind}{number}": number * 8 for number in range(31) for kind in "xw"}
    return {**found, "sp": 31 * 8, "pc": 32 * 8}


REGISTERS = {X86_64: x86_registers(), AARCH64: arm_registers()}
NUMBER = r"[-+]?(?:0x[0-9a-fA-F]+|\d+)"
# (argument without its size) -> constant, register, or offset and register
FORMS = {
    X86_64: (
        re.compile(rf"\$(?P<constant>{NUMBER})"),
        re.compile(r"%(?P<register>\w+)"),
        re.compile(rf"(?P<offset>{NUMBER})?\(%(?P<base>\w+)\)"),
    ),
    AARCH64: (
        re.compile(rf"(?P<constant>{NUMBER})"),
        re.compile(r"(?P<register>\w+)"),
        re.compile(rf"\[(?P<base>\w+)(?:,\s*(?P<offset>{NUMBER}))?\]"),
    ),
}


def spec(machine: int, arguments: str, cookie: int = 0) -> tuple[bytes, list[str]]:
    """How a program finds the arguments: struct __bpf_usdt_spec of libbpf's usdt.bpf.h; and those that it cannot.

    A program that asks for one that it cannot read gets -EINVAL from bpf_usdt_arg().
    """
    words = [word for word in APART.split(arguments.strip()) if word]
    rows, cannot = [], []
    for word in words[:MOST_ARGUMENTS]:
        row = argument(machine, word)
        rows.append(row or ARGUMENT.pack(0, UNREADABLE, 0, 0, 0))
        if row is None:
            cannot.append(word)
    cannot += words[MOST_ARGUMENTS:]
    packed = b"".join(rows).ljust(ARGUMENT.size * MOST_ARGUMENTS, b"\0")
    return packed + Struct("<Qh6x").pack(cookie, len(rows)), cannot


def argument(machine: int, word: str) -> bytes | None:
    """struct __bpf_usdt_arg_spec of one argument: `-4@%edi`; None: nobody can read it."""
    size, at, place = word.partition("@")
    signed = size.startswith("-")
    bits = SIZES.get(size.removeprefix("-"))
    registers = REGISTERS.get(machine)
    if not at or bits is None or registers is None:
        return None
    for form in FORMS[machine]:
        match = form.fullmatch(place.strip())
        if match is None:
            continue
        parts = match.groupdict()
        value = number(parts.get("constant") or parts.get("offset") or "0") & (1 << 64) - 1
        register = parts.get("register") or parts.get("base")
        kind = CONSTANT if register is None else REGISTER if parts.get("register") else MEMORY
        if register in ("xzr", "wzr") and kind == REGISTER:
            kind, register = CONSTANT, None
        if register is not None and register not in registers:
            return None
        offset = registers[register] if register else 0
        return ARGUMENT.pack(value, kind, offset, signed, BITS_OF_A_NUMBER - bits)
    return None


def number(text: str) -> int:
    """Of a decimal or hexadecimal text with a sign, perhaps."""
    return int(text, 16 if "0x" in text.lower() else 10)
