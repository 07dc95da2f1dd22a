"""The pytest plug-in for tests that need a kernel: `kernel` runs here, `guest` on Debian kernels under QEMU.

A test marked `guest` runs in a guest and is reported as if it ran here. All of a session's guest tests share one boot
of each kernel. With several kernels (--guest-kernels 5.10,6.1) each test is reported once for each: test_x[5.10].
With --guest-all the tests marked `kernel` run in the guests too.
"""

import collections
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from _pytest.runner import runtestprotocol

from tests.vm import kernels, matrix
from tests.vm.batch import Batch, UnavailableError
from tests.vm.guest import GuestError
from tests.vm.inside import Inside

IN_GUEST = "IGRUN_IN_GUEST"
HERE = "host"
UNSUPPORTED = "unsupported"  # the property of a report that says what the kernel lacks
VARIANT = "_kernel_variant"  # the parameter that makes several tests of one
CAP_SYS_ADMIN, CAP_BPF = 21, 39
NOT_RUN = pytest.StashKey[collections.Counter[str]]()  # why tests did not run, with how many did not


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("guest", "tests on other kernels, under QEMU")
    group.addoption(
        "--guest-kernels",
        default=os.environ.get("IGRUN_GUEST_KERNELS", "6.12"),
        metavar="SERIES,...",
        help=f"kernels for tests marked guest: some of {','.join(kernels.NAMES)} (default %(default)s)",
    )
    group.addoption("--guest-all", action="store_true", help="run the tests marked kernel in the guests too")
    group.addoption(
        "--guest-timeout",
        type=float,
        default=300.0,
        metavar="SECONDS",
        help="give a guest up after this time without any test's end, one test after half of it (default %(default)s)",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[NOT_RUN] = collections.Counter()
    inside = IN_GUEST in os.environ
    config.pluginmanager.register(Inside(config) if inside else Guests(config), "igrun-guests")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """What runs here needs the rights for it."""
    kernel = item.get_closest_marker("kernel") or item.get_closest_marker("guest")
    if (kernel or item.get_closest_marker("root")) and (lacking := _lacking_rights(bpf=kernel is not None)):
        item.config.stash[NOT_RUN][lacking] += 1
        pytest.skip(lacking)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A kernel that cannot do what a test needs is no failure: UnsupportedError says so, and nothing else does."""
    from igrun.errors import UnsupportedError

    report = yield
    marked = item.get_closest_marker("kernel") or item.get_closest_marker("guest")
    if marked and report.failed and call.excinfo is not None and isinstance(call.excinfo.value, UnsupportedError):
        report.outcome = "skipped"
        report.longrepr = (str(item.path), (item.location[1] or 0) + 1, f"Skipped: {call.excinfo.value}")
        report.user_properties.append((UNSUPPORTED, str(call.excinfo.value)))
    return report


def _lacking_rights(*, bpf: bool) -> str:
    if os.geteuid() != 0:
        return "needs root"
    status = Path("/proc/self/status").read_text()
    effective = int(status.split("CapEff:")[1].split()[0], 16)
    if bpf and not effective & (1 << CAP_BPF | 1 << CAP_SYS_ADMIN):
        return "needs CAP_BPF or CAP_SYS_ADMIN"
    return ""


class Guests:
    """Sends tests to guests and reports what came of them."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._kernels = tuple(name.strip() for name in config.getoption("guest_kernels").split(",") if name.strip())
        unknown = [name for name in self._kernels if name not in kernels.NAMES]
        if unknown or not self._kernels:
            raise pytest.UsageError(f"--guest-kernels: no kernel {unknown}; there are {', '.join(kernels.NAMES)}")
        self._all: bool = config.getoption("guest_all")
        self._batches: dict[str, Batch] = {}
        # Node id -> kernel; node id -> outcomes of its phases. Only of tests marked kernel or guest.
        self._place: dict[str, str] = {}
        self._phases: dict[str, list[str]] = collections.defaultdict(list)

    def place(self, test: str) -> str:
        """Where that test ran: the host, or the name of a kernel."""
        return self._place[test]

    def version(self, where: str) -> str:
        """The version of a guest's kernel, "" if it was never booted."""
        kernel = self._batches[where].kernel
        return kernel.version if kernel else ""

    def _variants(self, item: pytest.Item | pytest.Function) -> tuple[str, ...]:
        """Where a test is to run."""
        if item.get_closest_marker("guest"):
            return self._kernels
        if self._all and item.get_closest_marker("kernel"):
            return (HERE, *self._kernels)
        return (HERE,)

    @pytest.hookimpl(trylast=True)
    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        variants = self._variants(metafunc.definition)
        if len(variants) > 1:
            metafunc.fixturenames.append(VARIANT)
            metafunc.parametrize(VARIANT, variants)

    def _variant(self, item: pytest.Item) -> str:
        callspec = getattr(item, "callspec", None)
        chosen: str | None = callspec.params.get(VARIANT) if callspec is not None else None
        return chosen or self._variants(item)[0]

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Guests come last, one kernel after the other."""
        order = {name: place for place, name in enumerate((HERE, *self._kernels))}
        items.sort(key=lambda item: order[self._variant(item)])
        for item in items:
            if self._variant(item) != HERE and config.pluginmanager.hasplugin("timeout"):
                # pytest-timeout counts in the guest, where a test really runs; here it would count booting too.
                item.add_marker(pytest.mark.timeout(0), append=False)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        tests: dict[str, dict[str, Path]] = {}
        for item in session.items:
            where = self._variant(item)
            if item.get_closest_marker("kernel") or where != HERE:
                self._place[item.nodeid] = where
            if where != HERE:
                tests.setdefault(where, {})[_plain(item, where)] = item.path
        self._batches = {where: Batch(self._config, where, wanted) for where, wanted in tests.items()}

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
        where = self._variant(item)
        if where == HERE and (nextitem is None or self._variant(nextitem) == HERE):
            return None
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        if where == HERE:
            # The last test here: what its module and the session set up ends now, not after the guests.
            runtestprotocol(item, nextitem=None)
        else:
            for report in self._reports(item, where):
                item.ihook.pytest_runtest_logreport(report=report)
            if nextitem is None or self._variant(nextitem) != where:
                self._batches[where].close()
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def _reports(self, item: pytest.Item, where: str) -> Generator[pytest.TestReport, None, None]:
        try:
            for data in self._batches[where].reports(_plain(item, where)):
                mine: dict[str, Any] = {**data, "nodeid": item.nodeid, "location": item.location}
                if isinstance(data["longrepr"], list):  # JSON has no tuples; a skip's place and reason is one
                    mine["longrepr"] = tuple(data["longrepr"])
                yield self._config.hook.pytest_report_from_serializable(config=self._config, data=mine)
        except UnavailableError as error:
            self._config.stash[NOT_RUN][str(error)] += 1
            place = (str(item.path), (item.location[1] or 0) + 1, f"Skipped: {error}")
            yield pytest.TestReport(item.nodeid, item.location, {}, "skipped", place, "setup")
        except GuestError as error:
            yield pytest.TestReport(item.nodeid, item.location, {}, "failed", str(error), "call")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.nodeid in self._place:
            self._phases[report.nodeid].append(report.outcome)

    def pytest_sessionfinish(self) -> None:
        for batch in self._batches.values():
            batch.close()

    def pytest_unconfigure(self) -> None:
        self.pytest_sessionfinish()

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        ran = {where: batch for where, batch in self._batches.items() if batch.kernel is not None}
        if ran:
            heads = {HERE: os.uname().release} if HERE in self._place.values() else {}
            heads |= {where: batch.kernel.version for where, batch in ran.items() if batch.kernel is not None}
            counts: dict[tuple[str, str], collections.Counter[str]] = collections.defaultdict(collections.Counter)
            for test, phases in self._phases.items():
                if self._place[test] in heads:
                    counts[test.partition("::")[0], self._place[test]][matrix.outcome(phases)] += 1
            terminalreporter.section("kernels")
            seconds = {where: f"{batch.seconds:.1f}" for where, batch in ran.items()}
            for line in matrix.table(counts, heads, seconds):
                terminalreporter.write_line(line)
        for reason, number in self._config.stash[NOT_RUN].items():
            terminalreporter.write_line(f"NOT RUN ({number}): {reason}", yellow=True, bold=True)


def _plain(item: pytest.Item, where: str) -> str:
    """The test's node id without the kernel in it, as pytest in the guest knows it."""
    callspec = getattr(item, "callspec", None)
    if callspec is None or VARIANT not in callspec.params:
        return item.nodeid
    base = item.nodeid.removesuffix(f"{where}]")
    return base[:-1] if base.endswith("[") else f"{base[:-1]}]"
