"""The guest's half of the pytest plug-in: run the tests asked for, and send each report home as it is made."""

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest

WANTED = Path("/run/guest/tests")  # node ids, one a line, in the order to run


class Inside:
    """Sends {"report": ...}, {"finished": node id} and {"broken": node id, "why": text}, one JSON object a line."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._wanted = {name: place for place, name in enumerate(WANTED.read_text().splitlines())}
        # The guest's init made the descriptor; children of tests do not get it.
        control = int(os.environ["IGRUN_CONTROL_FD"])
        os.set_inheritable(control, False)
        self._home = io.FileIO(control, "w", closefd=False)

    def _send(self, **message: Any) -> None:
        data = memoryview(json.dumps(message, default=str).encode() + b"\n")
        while data:
            data = data[self._home.write(data) or 0 :]

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        others = [item for item in items if item.nodeid not in self._wanted]
        items[:] = sorted((i for i in items if i.nodeid in self._wanted), key=lambda item: self._wanted[item.nodeid])
        if others:
            config.hook.pytest_deselected(items=others)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._send(broken=report.nodeid, why=report.longreprtext)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        self._send(report=data)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._send(finished=nodeid)
