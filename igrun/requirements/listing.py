"""The instructions of a program as text, in the words that other tools of the ecosystem use (those of cilium/ebpf)."""

from __future__ import annotations

from collections.abc import Iterator

from igrun.requirements.code import CALL, EXIT, KINDS, LD_IMM64, PSEUDO_CALL, Code, Function, Instruction
from igrun.requirements.versions import helper_name

CLASSES = ("Ld", "LdX", "St", "StX", "", "", "", "")
MODES = ("Imm", "Abs", "Ind", "Mem", "MemSX", "?", "XAdd", "?")
SIZES = ("W", "H", "B", "DW")
ARITHMETIC = "Add Sub Mul Div Or And LSh RSh Neg Mod Xor Mov ArSh Swap ? ?".split()
JUMPS = "Ja JEq JGT JGE JSet JNE JSGT JSGE Call Exit JLT JLE JSLT JSLE MayGoto ?".split()
MOST_FUNCTIONS = 1000


def source(code: Code, entry: Function) -> str:
    """The program with the lines of C that it comes from; the functions it calls stand behind it."""
    rows = list(linked(code, entry))
    width = max(1, len(str(len(rows))))
    lines = []
    for place, (function, one) in rows_with_places(rows):
        if one.at == function.start:
            lines.append(f"{function.name}:")
        text = code.lines.get((function.section, one.at))
        if text:
            lines.append(f"\t{'':{width}}; {text}")
        lines.append(f"\t{place:{width}}: {shown(code, function, one)}")
    return "\n".join([*lines, ""])


def source_with_relocation(code: Code, entry: Function) -> str:
    """The program with its lines of C and its CO-RE relocations, without places."""
    lines = []
    for function, one in linked(code, entry):
        place = (function.section, one.at)
        if text := code.lines.get(place):
            lines.append(f"; {text}")
        if core := code.cores.get(place):
            type_ = code.btf.type(core.type)
            kinds = KINDS.split()
            kind = kinds[core.kind] if core.kind < len(kinds) else str(core.kind)
            of = f'{type_.kind.name.capitalize()}:"{type_.name}"'
            lines.append(f"; CORERelocation({kind}, {of}[{core.access}], local_id={core.type})")
        lines.append(shown(code, function, one))
    return "\n".join([*lines, ""])


def linked(code: Code, entry: Function) -> Iterator[tuple[Function, Instruction]]:
    """The instructions of a function and of those that it calls, each once."""
    work, seen = [entry], {(entry.section, entry.start)}
    while work and len(seen) <= MOST_FUNCTIONS:
        function = work.pop(0)
        for one in code.body(function):
            yield function, one
            callee = code.callee(function.section, one)
            if callee and callee not in seen and callee in code.by_start:
                seen.add(callee)
                work.append(code.by_start[callee])


def rows_with_places(
    rows: list[tuple[Function, Instruction]],
) -> Iterator[tuple[int, tuple[Function, Instruction]]]:
    """Each row with the number of its first slot."""
    place = 0
    for row in rows:
        yield place, row
        place += 2 if row[1].op == LD_IMM64 else 1


def register(number: int) -> str:
    return "rfp" if number == 10 else f"r{number}"


def signed(value: int) -> int:
    return value - (value >> 63 << 64)


def shown(code: Code, function: Function, one: Instruction) -> str:
    """One instruction."""
    target = code.targets.get((function.section, one.at))
    dst, src = register(one.dst), register(one.src)
    if one.op == LD_IMM64:
        if target and target.kind == "map":
            return f"LoadMapPtr dst: {dst} fd: 0 <{target.name}>"
        if target and target.kind == "data":
            return f"LoadMapValue dst: {dst}, fd: 0 off: {target.value} <{target.name}>"
        return f"LdImmDW dst: {dst} imm: {signed(one.imm)}" + (f" <{target.name}>" if target else "")
    kind = one.op & 7
    if one.op == EXIT:
        return "Exit"
    if one.op == CALL:
        callee = code.callee(function.section, one)
        if callee in code.by_start:
            return f"Call -1 <{code.by_start[callee].name}>"
        if target or one.src == PSEUDO_CALL:
            return f"Call {one.imm}" + (f" <{target.name}>" if target else "")
        return f"Call Fn{''.join(part.capitalize() for part in helper_name(one.imm).removeprefix('bpf_').split('_'))}"
    if kind in (5, 6):
        name = JUMPS[one.op >> 4] + ("32" if kind == 6 else "")
        if name not in ("Ja", "Ja32"):
            name += "Reg" if one.op & 8 else "Imm"
        return f"{name} dst: {dst} off: {one.off} " + (f"src: {src}" if one.op & 8 else f"imm: {one.imm}")
    if kind in (4, 7):
        operation = ARITHMETIC[one.op >> 4]
        if operation == "Swap":
            name = "BSwap" if kind == 7 else "SwapBE" if one.op & 8 else "SwapLE"
            return f"{name} dst: {dst} imm: {one.imm}"
        name = operation + ("Reg" if one.op & 8 else "Imm") + ("32" if kind == 4 else "")
        return f"{name} dst: {dst} " + (f"src: {src}" if one.op & 8 else f"imm: {one.imm}")
    mode, size = MODES[one.op >> 5], SIZES[one.op >> 3 & 3]
    name = f"{CLASSES[kind]}{mode}{size}"
    if mode == "Abs":
        return f"{name} imm: {one.imm}"
    if mode == "Ind":
        return f"{name} dst: {dst} src: {src} imm: {one.imm}"
    if mode == "XAdd":
        return f"{name} dst: {dst} src: {src}"
    return f"{name} dst: {dst} src: {src} off: {one.off} imm: {one.imm}"
