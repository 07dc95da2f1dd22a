"""What the gadgets' tests share: a run in this process, and one through the command."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest

import igrun

Row = dict[str, Any]
TIMEOUT_S = 10


@pytest.fixture
def rows_of() -> Callable[..., list[Row]]:
    """Run a gadget, act once it is attached, and give the rows until one is `wanted`; all of them if none ever is."""

    def rows_of_(
        name: str,
        act: Callable[[], object] = lambda: None,
        wanted: Callable[[Row], bool] = lambda row: False,
        timeout_s: float = TIMEOUT_S,
        **params: object,
    ) -> list[Row]:
        rows: list[Row] = []
        with igrun.run(name, host=True, timeout_s=timeout_s, **params) as run:
            act()
            for batch in run:
                new = list(batch.rows())
                rows += new
                if any(map(wanted, new)):
                    run.stop()
        return rows

    return rows_of_


@pytest.fixture
def ig() -> Callable[..., list[str]]:
    """Run `ig run NAME --host` for a second or so, act once it is attached, and give the lines it printed."""

    def ig_(name: str, *arguments: str, act: Callable[[], object] = lambda: None, timeout_s: int = 2) -> list[str]:
        command = [sys.executable, "-m", "igrun", "run", name, "--host", "-v", "--timeout", str(timeout_s), *arguments]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout and process.stderr
            said = []
            for line in process.stderr:
                said.append(line)
                if "running..." in line:
                    break
            act()
            lines = process.stdout.read().splitlines()
            said += process.stderr.readlines()
        assert process.returncode == 0, "".join(said)
        return lines

    return ig_


@pytest.fixture
def ig_json(ig: Callable[..., list[str]]) -> Callable[..., list[Row]]:
    """As `ig`, the rows as JSON has them."""

    def ig_json_(name: str, *arguments: str, **options: Any) -> list[Row]:
        return flat(json.loads(line) for line in ig(name, "-o", "json", *arguments, **options))

    return ig_json_


def flat(records: Any) -> list[Row]:
    """Records, and the records of lists of records."""
    rows: list[Row] = []
    for record in records:
        rows += record if isinstance(record, Sequence) else [record]
    return rows
