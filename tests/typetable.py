"""Which types of programs fire on which kernels: recorded by tests marked `fires`, and shown in docs/program-types.md.

pytest ... --types-into tests/types      writes what the tests saw, a file for each kernel
python -m tests.typetable                writes docs/program-types.md from these files
"""

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from igrun.sections import TYPES, ProgramType, program_type, sleeps
from tests.vm.plugin import UNSUPPORTED

SEEN = Path(__file__).parent / "types"
DOCUMENT = Path(__file__).parent.parent / "docs" / "program-types.md"
SECTIONS = {row.section for row in TYPES}
SECTION = "section"  # the property of a test that says which programs it loads
FIRES = "fires"
COUNTERS = "perf_event/name, counters of the CPU"  # a line of its own: few machines have them
ORDER = ("5.10", "6.1", "6.12", "newest")
HEAD = """# Types of programs

What the tests saw on Debian's kernels: programs of each type are loaded, attached, made to run by what they are for,
and are gone afterwards. "fires" is that, anything else is why not. `make test-matrix` writes it, nobody does by hand.

"""
BELOW = """
A section may end its first word in `.s` where the table has such a line: the program may sleep then. The names are
libbpf's and the ecosystem's; what stands behind a `/` can be set by `attach_to` in gadget.yaml too.
"""

# ---------------------------------------------------------------------------------------------- recording


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--types-into", metavar="DIR", help="write there which types of programs fire, by kernel")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "fires: makes every program that it loads run (see tests/typetable.py)")
    if config.getoption("types_into"):
        config.pluginmanager.register(Recorder(config), "igrun-types")


class Recorder:
    """Gathers what tests marked `fires` saw."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._sections: dict[str, set[str]] = {}
        self._outcomes: dict[str, list[pytest.TestReport]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if FIRES in report.keywords:
            found = self._sections.setdefault(report.nodeid, set())
            found |= {value for name, value in report.user_properties if name == SECTION}
            self._outcomes.setdefault(report.nodeid, []).append(report)

    def pytest_sessionfinish(self) -> None:
        guests: Any = self._config.pluginmanager.get_plugin("igrun-guests")
        by_kernel: dict[str, dict[str, str]] = {}
        for test, sections in self._sections.items():
            what = verdict(self._outcomes[test])
            if what is None:
                continue  # a failure is no answer
            rows = by_kernel.setdefault(guests.place(test), {})
            for section in sections:
                for name in names(section):
                    if rows.get(name) != FIRES:
                        rows[name] = what
        into = Path(self._config.getoption("types_into"))
        into.mkdir(exist_ok=True)
        known = read(into)
        for kernel, rows in by_kernel.items():
            release = short(os.uname().release if kernel == "host" else guests.version(kernel))
            if known.get(kernel, {}).get("release") == release:  # of a part of the tests: the rest is as it was
                rows = {**known[kernel]["types"], **rows}
            text = json.dumps({"release": release, "types": dict(sorted(rows.items()))}, indent=1)
            (into / f"{kernel}.json").write_text(text + "\n")


def verdict(reports: Iterable[pytest.TestReport]) -> str | None:
    """What a test says about its programs: that they fire, or why the kernel cannot do it; None: nothing."""
    reports = list(reports)
    lacking = [value for one in reports for name, value in one.user_properties if name == UNSUPPORTED]
    if any(one.failed for one in reports):
        return None
    if lacking:
        return why(str(lacking[0]))
    return None if any(one.skipped for one in reports) else FIRES


def why(reason: str) -> str:
    """A reason without what is of that test alone."""
    return re.sub(r"^program '\w+'( \([^)]*\))?: ", "", reason.partition("\n")[0])


def names(section: str) -> tuple[str, ...]:
    """The lines of the table that a section is in; of a line that tests name, that one."""
    if section == COUNTERS:
        return (section,)
    row = program_type(section)
    if row is None:
        return ()
    name = line_of(row, sleeps(section))
    return (name, f"iter/{section.partition('/')[2]}") if row.section == "iter/" else (name,)


def line_of(row: ProgramType, may_sleep: bool = False) -> str:
    """The line of the table that a type is in: that of its form with a target, where there are two."""
    name = row.section if f"{row.section}/" not in SECTIONS else f"{row.section}/"
    return name if not may_sleep else f"{name.removesuffix('/')}.s{'/' if name.endswith('/') else ''}"


def short(release: str) -> str:
    return release.partition("-")[0]


# ---------------------------------------------------------------------------------------------- the document


def lines_of_table() -> dict[str, str]:
    """Every line that the table must have, with the section as the reader writes it."""
    found = {}
    for row in TYPES:
        for may_sleep in (False, True)[: 1 + row.sleeps]:
            name = line_of(row, may_sleep)
            if name not in found or not found[name].removeprefix(name):
                found[name] = f"{name}{row.target}" if name.endswith("/") else name
        if row.family == "perf":
            found[COUNTERS] = COUNTERS
    return found


def document(seen: Mapping[str, Mapping[str, Any]]) -> str:
    """The text of docs/program-types.md. seen: kernel -> what its file holds."""
    kernels = [one for one in ORDER if one in seen]
    heads = [f"Linux {seen[one]['release']}" for one in kernels]
    reasons: dict[str, int] = {}
    rows = lines_of_table()
    kinds = sorted({name for one in seen.values() for name in one["types"] if name.startswith("iter/")} - rows.keys())
    text = [HEAD, "| `SEC(...)` |", *(f" {head} |" for head in heads), "\n|---|", "---|" * len(heads), "\n"]
    for name, shown in {**rows, **{kind: kind for kind in kinds}}.items():
        cells = [cell(seen[kernel]["types"].get(name, ""), reasons) for kernel in kernels]
        text.append(f"| `{shown.replace('|', chr(92) + '|')}` | {' | '.join(cells)} |\n")
    text += ["\n", *(f"{number}. {reason}\n" for reason, number in reasons.items()), BELOW]
    return "".join(text)


def cell(what: str, reasons: dict[str, int]) -> str:
    """A cell: reasons are below the table, by number."""
    if what in ("", FIRES):
        return what or "not run"
    return f"no ({reasons.setdefault(what, len(reasons) + 1)})"


def read(folder: Path = SEEN) -> dict[str, dict[str, Any]]:
    """What the files hold, by kernel."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


if __name__ == "__main__":
    DOCUMENT.parent.mkdir(exist_ok=True)
    DOCUMENT.write_text(document(read()))
    print(DOCUMENT)
