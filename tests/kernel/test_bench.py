"""The bench runs, and finds that what igrun prints is what the consumers in C print."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[1] / "bench/bench.py"

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one CPU is traced, another one traces"),
    pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler"),
]


def test_what_is_measured_is_right(tmp_path):
    some = {"calls-10k", "opens-100k"}
    only = [word for case in some for word in ("--only", case)]
    figures = tmp_path / "figures.json"

    command = [sys.executable, BENCH, "--quick", "--seconds", "0.2", *only, "--json", figures]
    done = subprocess.run(command, capture_output=True, text=True)

    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["key"]: row["figures"] for row in json.loads(figures.read_bytes())["rows"]}
    assert rows.keys() == some
    assert all(of["us"] > 0 for row in rows.values() for of in row.values())
