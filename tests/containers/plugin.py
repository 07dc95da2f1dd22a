"""The pytest plug-in for tests with real container engines: they take minutes, and run with --containers alone.

`make test-containers` gives that option.
"""

import pytest

OPTION = "--containers"


class Containers:
    """Leaves the tests out, and says so."""

    def __init__(self) -> None:
        self.left_out = 0

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        if config.getoption(OPTION):
            return
        out = [item for item in items if item.get_closest_marker("containers")]
        if out:
            config.hook.pytest_deselected(items=out)
            items[:] = [item for item in items if not item.get_closest_marker("containers")]
        self.left_out = len(out)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.left_out:
            reason = "docker, podman and ziglang: `make test-containers` runs them"
            terminalreporter.write_line(f"NOT RUN ({self.left_out}): {reason}", yellow=True, bold=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("containers", "real container engines")
    group.addoption(OPTION, action="store_true", help="run the tests marked containers too")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Containers(), "igrun-containers")
