"""The pytest plug-in for registries: which tests run, and the table of what was exchanged with whom.

A test marked `oci` needs a tool that is no Debian package of this machine, or takes long. It runs with --oci alone,
which `make test-oci` gives.
"""

import textwrap
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field

import pytest

from tests.registry import tools

OPTION = "--oci"
HEADS = ("registry", "client", "exchanged", "result")
WIDTH = 72  # of the third column

Exchanged = Callable[[str, str, str], None]


@dataclass
class Pair:
    """What one registry and one client did. done: what -> outcome"""

    done: dict[str, str] = field(default_factory=dict)

    def add(self, what: str, outcome: str) -> None:
        worst = ("passed", "skipped", "failed")
        self.done[what] = max(outcome, self.done.get(what, "passed"), key=worst.index)

    @property
    def result(self) -> str:
        failed, skipped = ([what for what, had in self.done.items() if had == bad] for bad in ("failed", "skipped"))
        if failed:
            return f"FAILED: {', '.join(failed)}"
        if skipped:
            return "not run" if len(skipped) == len(self.done) else f"ok, but not run: {', '.join(skipped)}"
        return "ok"


class Pairs:
    """Collects what tests tell with the fixture `exchanged`."""

    def __init__(self) -> None:
        self.told: dict[str, list[tuple[str, str, str]]] = {}
        self.pairs: dict[tuple[str, str], Pair] = {}
        self.measured: list[str] = []
        self.left_out = 0

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if report.when == "call":
            for registry, client, what in self.told.pop(item.nodeid, ()):
                self.pairs.setdefault((registry, client), Pair()).add(what, report.outcome)
        return report

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        if config.getoption(OPTION):
            return
        out = [item for item in items if item.get_closest_marker("oci")]
        if out:
            config.hook.pytest_deselected(items=out)
            items[:] = [item for item in items if not item.get_closest_marker("oci")]
        self.left_out = len(out)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.pairs:
            terminalreporter.section("registries and clients")
            for line in table(self.pairs):
                terminalreporter.write_line(line)
            terminalreporter.write_line(versions(self.pairs))
        for line in self.measured:
            terminalreporter.write_line(line)
        if self.left_out:
            reason = "real registries and clients that are no packages here: `make test-oci` runs them"
            terminalreporter.write_line(f"NOT RUN ({self.left_out}): {reason}", yellow=True, bold=True)


def table(pairs: dict[tuple[str, str], Pair]) -> list[str]:
    """Lines of text."""
    rows = [HEADS] + [(*key, ", ".join(pair.done), pair.result) for key, pair in sorted(pairs.items())]
    cells = [[row[0], row[1], textwrap.wrap(row[2], WIDTH), row[3]] for row in rows]
    widths = [max(len(row[0]) for row in rows), max(len(row[1]) for row in rows)]
    third = max(len(line) for _, _, lines, _ in cells for line in lines)
    lines = []
    for registry, client, wrapped, result in cells:
        heads = [registry.ljust(widths[0]), client.ljust(widths[1]), wrapped[0].ljust(third), result]
        lines.append("  ".join(heads).rstrip())
        lines += [" " * (sum(widths) + 4) + more for more in wrapped[1:]]
    lines.insert(1, "-" * max(map(len, lines)))
    return lines


def versions(pairs: Iterable[tuple[str, str]]) -> str:
    """Which versions of the tools in the table there are."""
    words = " ".join(f"{registry} {client}" for registry, client in pairs)
    there = {name: tools.version(name) for name in tools.VERSION if name in words}
    return ", ".join(f"{name} {version}" for name, version in there.items() if version)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("oci", "real registries and clients")
    group.addoption(OPTION, action="store_true", help="run the tests marked oci too, and kill more often")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Pairs(), "igrun-registries")


@pytest.fixture
def exchanged(request: pytest.FixtureRequest) -> Exchanged:
    """Tell the table: registry, client, what was exchanged. The test's outcome is the result."""
    pairs: Pairs = request.config.pluginmanager.get_plugin("igrun-registries")

    def tell(registry: str, client: str, what: str) -> None:
        pairs.told.setdefault(request.node.nodeid, []).append((registry, client, what))

    return tell


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Print a line below the table."""
    pairs: Pairs = request.config.pluginmanager.get_plugin("igrun-registries")
    return pairs.measured.append
