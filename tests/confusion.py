"""The pytest plug-in that counts what `ig check` predicted against what then happened, kernel by kernel.

A test tells by `record_property(PREDICTION, {...})`, in a guest too. The table is printed at the end of the session;
--check-matrix FILE keeps it, in Markdown.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

PREDICTION = "prediction"
SAID = ("works", "fails", "not predicted")
DID = ("loads", "does not")
TOLD = pytest.StashKey[list[dict[str, Any]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--check-matrix", metavar="FILE", help="write what `ig check` predicted, and what happened, there")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[TOLD] = []
    config.pluginmanager.register(Collector(config), "igrun-confusion")


class Collector:
    """Takes predictions out of reports."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":
            told = self._config.stash[TOLD]
            told += [dict(value) for name, value in report.user_properties if name == PREDICTION]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    told = config.stash[TOLD]
    if not told or "IGRUN_IN_GUEST" in os.environ:
        return
    terminalreporter.section("ig check: predicted and happened")
    for line in totals(told):
        terminalreporter.write_line(line)
    if path := config.getoption("check_matrix"):
        Path(path).write_text("\n".join(written(told)) + "\n")


def totals(told: Iterable[dict[str, Any]], key: str = "predicted") -> Iterator[str]:
    """A row for each kernel: how often what was said, and what happened."""
    counts: dict[str, Counter[tuple[str, str]]] = {}
    for one in told:
        counts.setdefault(one["kernel"], Counter())[one[key], one["happened"]] += 1
    yield from table(["kernel"], {(kernel,): count for kernel, count in counts.items()})


def table(titles: list[str], counts: dict[tuple[str, ...], Counter[tuple[str, str]]]) -> Iterator[str]:
    """Markdown."""
    columns = [(said, did) for said in SAID for did in DID]
    heads = [*titles, *(f"{said}, {did}" for said, did in columns)]
    rows = [[*names, *(str(count[column]) for column in columns)] for names, count in counts.items()]
    widths = [max(len(row[place]) for row in [heads, *rows]) for place in range(len(heads))]
    for row in [heads, ["-" * width for width in widths], *rows]:
        yield "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"


def written(told: list[dict[str, Any]]) -> Iterator[str]:
    """The whole of it in Markdown."""
    yield "# What `ig check` predicted, and what loading and attaching then did"
    yield ""
    yield "As root, where the kernel is asked:"
    yield ""
    yield from totals(told)
    yield ""
    yield "Where it may not be asked (no capabilities), from BTF, kallsyms and the configuration alone:"
    yield ""
    yield from totals(told, "unasked")
    yield ""
    yield "As root, by what a case is about:"
    yield ""
    counts: dict[tuple[str, ...], Counter[tuple[str, str]]] = {}
    for one in told:
        counts.setdefault((one["kernel"], one["aspect"]), Counter())[one["predicted"], one["happened"]] += 1
    yield from table(["kernel", "about"], dict(sorted(counts.items())))
    yield ""
    yield "Each case (predicted as root, predicted without asking, what happened):"
    yield ""
    kernels = list(dict.fromkeys(one["kernel"] for one in told))
    yield "| about | case | " + " | ".join(kernels) + " |"
    yield "|---|---|" + "---|" * len(kernels)
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for one in told:
        text = f"{one['predicted']}, {one['unasked']}, {one['happened']}"
        cells.setdefault((one["aspect"], one["case"]), {})[one["kernel"]] = text
    for (aspect, case), by_kernel in cells.items():
        name = case.replace("|", "\\|")
        yield f"| {aspect} | `{name}` | " + " | ".join(by_kernel.get(kernel, "") for kernel in kernels) + " |"
