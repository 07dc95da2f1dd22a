"""All tests of a session that go to one kernel: one boot, one pytest inside, the reports as they come."""

import collections
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.compiled import CLANG
from tests.vm import errand, guest, kernels

# What a guest's pytest gets of the environment: enough to find programs and to act alike.
PASSED_ON = ("PATH", "HOME", "LANG", "VIRTUAL_ENV", "SOURCE_DATE_EPOCH")
PASSED_ON_STARTS = ("LC_", "PYTHON", "IGRUN_", "IG_", "INSPEKTOR_GADGET_", "HYPOTHESIS_")
# Where guests of another machine find igrun, pytest and what these import: a folder of packages made for them.
PACKAGES = "IGRUN_GUEST_PACKAGES"
OUTPUT_TAIL = 8000  # bytes of the guest's pytest that a failure shows


def told(kernel: kernels.Kernel) -> dict[str, bytes]:
    """What the kernel was built with, as the file `config`."""
    return {"config": kernel.config.read_bytes()} if kernel.config.exists() else {}


class UnavailableError(Exception):
    """No guest can run here, for a reason outside of the tests."""


def started_in(root: Path) -> str:
    """A Python program that is pytest, with `root` last in the path, as conftest.py puts it."""
    return f"import sys; sys.path.append({str(root)!r}); import pytest; sys.exit(pytest.main(sys.argv[1:]))"


class Batch:
    """The tests of one session on one kernel. `kernel` and `seconds` are known once it has run."""

    def __init__(self, config: pytest.Config, series: str, tests: Mapping[str, Path]) -> None:
        """`tests`: the node ids as the guest knows them, each with its file."""
        self.series = series
        self.kernel: kernels.Kernel | None = None
        self.seconds = 0.0
        self._config, self._tests = config, tests
        self._guest: guest.Guest | None = None
        self._events: Iterator[guest.Output | guest.Message] = iter(())
        self._reports: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
        self._finished: set[str] = set()
        self._broken: list[str] = []
        self._tail = b""
        self._over = ""  # why there will be no more reports
        self._unavailable = ""

    def reports(self, test: str) -> Iterator[dict[str, Any]]:
        """The serialised reports of one test, as they come. The first call boots the guest.

        Raises UnavailableError when there is no kernel, GuestError when the guest ends without all of them.
        """
        if self._guest is None and not self._over and not self._unavailable:
            self._start()
        if self._unavailable:
            raise UnavailableError(self._unavailable)
        sent = 0
        while True:
            yield from self._reports[test][sent:]
            sent = len(self._reports[test])
            if test in self._finished:
                return
            self._pump()

    def close(self) -> None:
        if self._guest is not None:
            self._guest.close()
            self._over = self._over or "the session is over"

    def _start(self) -> None:
        if os.geteuid() != 0:
            self._unavailable = "a guest needs root, to be given this machine's files"
            return
        try:
            self.kernel = kernels.fetch(self.series)
            missing = guest.missing_programs(self.kernel.machine)
            if missing:
                self._over = f"guests need: apt-get install {' '.join(missing)}"
            elif self.kernel.root and PACKAGES not in os.environ:
                self._unavailable = f"guests of {self.series} run by `make test-{self.series}` alone: no {PACKAGES}"
            else:
                self._boot(self.kernel)
        except kernels.KernelUnavailableError as error:
            self._unavailable = str(error)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            self._over = f"no guest with kernel {self.series}: {error!r}"

    def _boot(self, kernel: kernels.Kernel) -> None:
        self._began = time.monotonic()
        root = self._config.rootpath
        env = {n: v for n, v in os.environ.items() if n in PASSED_ON or n.startswith(PASSED_ON_STARTS)}
        env.pop("PYTHONDONTWRITEBYTECODE", None)  # what a guest writes is gone with it
        keep = [root, *self._tests.values(), *guest.python_paths()]
        python = sys.executable
        if kernel.root:
            env |= {"PYTHONPATH": env[PACKAGES], "IGRUN_TEST_CLANG": CLANG or ""}
            keep, python = [root, Path(env[PACKAGES])], "/usr/bin/python3"
        self._guest = guest.Guest(
            kernel,
            self._command(python),
            cwd=root,
            env=env,
            files={"tests": "".join(f"{test}\n" for test in self._tests).encode(), **told(kernel)},
            keep=keep,
        )
        self._events = self._guest.events(self._config.getoption("guest_timeout"))

    def _command(self, python: str) -> Sequence[str]:
        option = self._config.option
        # Whether the folder of the tests comes before what is installed is decided as it was for this process.
        first = [] if sys.path[0] in ("", str(Path.cwd())) else ["-P"]
        command = [python, *first, "-c", started_in(self._config.rootpath)]
        command += ["--rootdir", str(self._config.rootpath)]
        if self._config.inipath is not None:
            command += ["-c", str(self._config.inipath)]
        command += ["-p", "no:cacheprovider", "--basetemp=/tmp/pytest", "-q", f"--tb={option.tbstyle}"]
        command += [f"--capture={option.capture}", *(["--showlocals"] if option.showlocals else [])]
        for flag, values in (("-o", option.override_ini), ("-W", option.pythonwarnings), ("-p", option.plugins)):
            command += [f"{flag}{value}" for value in values or ()]
        if self._config.pluginmanager.hasplugin("timeout"):
            # One test that hangs fails with its traceback, long before the guest is given up with all that are left.
            command.append(f"--timeout={option.timeout or option.guest_timeout / 2}")
        return command + [str(path) for path in dict.fromkeys(self._tests.values())]

    def _pump(self) -> None:
        """Take one event from the guest."""
        if self._over:
            raise guest.GuestError(self._over)
        assert self._guest is not None
        try:
            event = next(self._events, None)
        except guest.GuestError as error:
            self._stop(str(error))
            return
        self.seconds = time.monotonic() - self._began
        if event is None:
            self._stop(f"kernel {self._guest.kernel.release}: pytest ended ({self._guest.status}) without this test")
        elif isinstance(event, guest.Output):
            self._tail = (self._tail + event.data)[-OUTPUT_TAIL:]
            if self._config.option.capture == "no":
                sys.stdout.write(event.data.decode(errors="replace"))
        elif "report" in event.body:
            self._reports[event.body["report"]["nodeid"]].append(event.body["report"])
        elif "finished" in event.body:
            self._finished.add(event.body["finished"])
        elif "errand" in event.body:
            self._guest.send(errand.answer(event.body["errand"]))
        else:
            self._broken.append(f"{event.body['broken']}: {event.body['why']}")

    def _stop(self, why: str) -> None:
        tail = self._tail.decode(errors="replace").strip()
        parts = [why, *self._broken, *([f"--- output ---\n{tail}"] if tail else [])]
        self._over = "\n".join(parts)
        self.close()
