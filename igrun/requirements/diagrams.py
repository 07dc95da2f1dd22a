"""What the programs of an object do with its maps, as Mermaid diagrams in the ecosystem's form."""

from __future__ import annotations

from igrun.requirements import Requirements


def flowchart(found: Requirements) -> str:
    """Maps and programs by name, and an arrow from program to map that says all that is done."""
    lines = ["flowchart LR"]
    lines += [f'{name}[("{name}")]' for name in sorted(one.name for one in found.maps)]
    for program in sorted(found.programs, key=lambda one: one.name):
        done: dict[str, list[str]] = {}
        for name, operation in program.maps:
            done.setdefault(name, []).append(operation)
        lines += [f'{program.name} -- "{"+".join(operations)}" --> {name}' for name, operations in done.items()]
        lines.append(f'{program.name}["{program.name}"]')
    return "\n".join([*lines, ""])


def sequence(found: Requirements) -> str:
    """What each program does, in the order in which it stands in its code."""
    programs = sorted(found.programs, key=lambda one: one.name)
    steps = [(program.name, name, operation) for program in programs for name, operation in program.maps]
    return "\n".join(
        [
            "sequenceDiagram",
            "box eBPF Programs",
            *(f"participant {program.name}" for program in programs),
            "end",
            "box eBPF Maps",
            *(f"participant {name}" for name in dict.fromkeys(name for _, name, _ in steps)),
            "end",
            *(f"{program}->>{name}: {operation}" for program, name, operation in steps),
            "",
        ]
    )
