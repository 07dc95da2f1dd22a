"""The table, and the same as JSON."""

import os
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cases import IG, C, Case, Results, figure
from consumers import Sample

FIGURES = ("us", "rate", "lost_share", "traced_us", "cores", "made_rate")
HEADS = ("us/event", "x C", "rate/s", "lost", "traced us", "x C")
BUSY = 0.2
"""So many CPUs are busy with other programs where figures begin to suffer."""
NAME, COLUMNS = 40, (9, 7, 10, 7, 10, 7)


@dataclass(frozen=True)
class Row:
    """A case.

    figures: consumer -> name -> median
    told:    why there are none, or what is to be known about them
    goals:   what they say, whether met
    """

    key: str
    name: str
    base: str
    figures: Mapping[str, Mapping[str, float]]
    told: str
    goals: Sequence[tuple[str, bool]]


@dataclass(frozen=True)
class Line:
    """Something else that was measured. theirs: the consumer's in C, None where it has none"""

    key: str
    name: str
    ours: float
    theirs: float | None
    unit: str
    goals: Sequence[tuple[str, bool]]


def of_case(case: Case, results: Results, told: str, slack: float) -> Row:
    consumers = results.get(case.key, {})
    figures = {one: {name: figure(results, case.key, one, name) for name in FIGURES} for one in consumers}
    goals = [(goal.text, goal.met(results, case.key, slack)) for goal in case.goals if IG in consumers]
    base = figure(results, case.base, C, "us") if case.base else float("nan")
    if consumers and case.base and base == base:
        figures[f"{C}, JSON"] = {"us": base}
    slow = [one for one, of in figures.items() if case.rate and of.get("made_rate", case.rate) < 0.95 * case.rate]
    if slow and not told:
        rates = ", ".join(f"{figures[one]['made_rate']:,.0f} for {one}" for one in slow)
        told = f"the producer did not come to {case.rate:,} a second: {rates}"
    return Row(case.key, case.name, case.base, figures, told, goals)


# ---------------------------------------------------------------------------------------------- text


def text(head: Sequence[str], rows: Iterable[Row], lines: Sequence[Line], told: Sequence[str]) -> str:
    """told: why lines are missing"""
    table = [*head, ""]
    table.append(f"{'':{NAME}}" + "".join(f"{name:>{width}}" for name, width in zip(HEADS, COLUMNS, strict=True)))
    for row in rows:
        table += of_row(row)
    if lines:
        table += ["", f"{'':{NAME}}{'igrun':>12}{'C':>12}"]
        table += map(of_line, lines)
    table += told
    return "\n".join(line.rstrip() for line in table)


def of_row(row: Row) -> list[str]:
    """A line for each consumer, the goals behind them."""
    goals = [verdict(*goal) for goal in row.goals]
    found = []
    theirs = next((figures for name, figures in row.figures.items() if name.startswith(C)), {})
    for consumer, figures in row.figures.items():
        compared = theirs if consumer == IG else {}
        cells = (
            f"{figures['us']:.3f}",
            times(figures, compared, "us"),
            f"{figures['rate']:,.0f}" if "rate" in figures else "",
            share(figures.get("lost_share")),
            f"{figures['traced_us']:.3f}" if "traced_us" in figures else "",
            times(figures, compared, "traced_us"),
        )
        cells_text = "".join(f"{cell:>{width}}" for cell, width in zip(cells, COLUMNS, strict=True))
        name = row.name if consumer == IG else f"    {consumer}"
        found.append(f"{name:{NAME}}{cells_text}   {goals.pop(0) if goals else ''}")
    if row.told:
        found.append(f"{'' if found else row.name:{NAME}} {row.told}")
    width = NAME + sum(COLUMNS) + 3
    return found + [f"{'':{width}}{goal}" for goal in goals]


def times(ours: Mapping[str, float], theirs: Mapping[str, float], name: str) -> str:
    return f"{ours[name] / theirs[name]:.2f}" if name in ours and name in theirs else ""


def share(lost: float | None) -> str:
    """Of what was made; what is not nothing does not look like it."""
    if not lost:
        return "" if lost is None else "0"
    return f"{lost:.1%}" if lost >= 0.001 else "<0.1%"


def of_line(line: Line) -> str:
    ours, theirs = (f"{value:.1f} {line.unit}" if value is not None else "" for value in (line.ours, line.theirs))
    return f"{line.name:{NAME}}{ours:>12}{theirs:>12}   {', '.join(verdict(*goal) for goal in line.goals)}"


def verdict(goal: str, met: bool) -> str:
    return f"{goal}: {'met' if met else 'MISSED'}"


# ---------------------------------------------------------------------------------------------- about the run


def head(
    load: float, others: float, seconds: float, repeats: int, slack: float, ring_bytes: int, compiler: str
) -> list[str]:
    """What must be known to judge the figures. others: CPUs that other programs kept busy meanwhile"""
    about = [
        f"igrun {version()}, {engine()}; Python {platform.python_version()}; {platform.release()}; C by {compiler}",
        f"{os.cpu_count()} CPUs ({processor()}); ring {ring_bytes >> 10} KiB; medians of {repeats}, {seconds:g} s each",
        f"load {load:.2f} at the start; meanwhile other programs kept {others:.2f} CPUs busy",
    ]
    if load > 1 or others > BUSY:
        about.append("LOADED: figures beside other programs are too high, and say little about how much")
    if slack != 1:
        about.append(f"goals are met with {slack:g} times as much, as there are few runs")
    return about


def version() -> str:
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as of

    try:
        return of("igrun")
    except PackageNotFoundError:
        return "from its folder"


def engine() -> str:
    """Which of them a run takes here."""
    import igrun.engine

    choose = getattr(igrun.engine, "open", None)
    return f"engine {type(choose()).__name__}" if choose else "engine Reference"


def processor() -> str:
    found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    return found[1] if found else platform.machine()


def document(head: Sequence[str], rows: Iterable[Row], lines: Iterable[Line], results: Results) -> dict[str, Any]:
    """Everything, each sample too, for programs."""
    return {
        "about": list(head),
        "rows": [asdict(row) | {"goals": goals(row.goals)} for row in rows],
        "others": [asdict(line) | {"goals": goals(line.goals)} for line in lines],
        "samples": {key: {one: list(map(sample, of)) for one, of in by.items()} for key, by in results.items()},
    }


def goals(found: Sequence[tuple[str, bool]]) -> list[dict[str, Any]]:
    return [{"goal": goal, "met": met} for goal, met in found]


def sample(one: Sample) -> dict[str, Any]:
    return asdict(one) | {name: getattr(one, name) for name in FIGURES}
