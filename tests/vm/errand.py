"""Compilers for tests. In a guest, where code runs some thirty times slower, the machine that it runs on compiles."""

import base64
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

COMPILERS = ("clang", "llvm-", "ld.lld")  # how the names of those that a guest may ask for begin


def run(command: Sequence[str], source: str | bytes) -> "subprocess.CompletedProcess[bytes]":
    """Run a compiler from standard input to standard output (`-xc - -o -`), as subprocess.run with captured output.

    Paths in the command are absolute, and of files that are on the machine too.
    """
    data = source.encode() if isinstance(source, str) else source
    if "IGRUN_CONTROL_FD" not in os.environ:
        return subprocess.run(command, input=data, capture_output=True)
    control = int(os.environ["IGRUN_CONTROL_FD"])
    errand = {"command": list(command), "input": base64.b64encode(data).decode()}
    with open(control, "r+b", buffering=0, closefd=False) as file:
        _write(file.fileno(), json.dumps({"errand": errand}).encode() + b"\n")
        answer = b""
        while not answer.endswith(b"\n"):
            answer += file.read(1 << 16)
    body = json.loads(answer)
    out, err = (base64.b64decode(body[name]) for name in ("stdout", "stderr"))
    return subprocess.CompletedProcess(list(command), body["status"], out, err)


def answer(errand: Mapping[str, Any]) -> dict[str, Any]:
    """Do for a guest what its `run` asked for."""
    command = errand["command"]
    if not Path(command[0]).name.startswith(COMPILERS):
        return {"status": 126, "stdout": "", "stderr": base64.b64encode(b"guests may ask for compilers only").decode()}
    done = subprocess.run(command, input=base64.b64decode(errand["input"]), capture_output=True)
    out, err = (base64.b64encode(data).decode() for data in (done.stdout, done.stderr))
    return {"status": done.returncode, "stdout": out, "stderr": err}


def _write(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
