"""What kernel tests share: compiling BPF programs, and a program of this process that makes events."""

import hashlib
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

HEAD = """// SPDX-License-Identifier: GPL-2.0
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
char LICENSE[] SEC("license") = "GPL";
"""
Compile = Callable[[str], bytes]


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compile:
    """Compile BPF C (without includes and license) to an object's bytes."""
    folder: Path = tmp_path_factory.mktemp("bpf")

    def compile_(source: str) -> bytes:
        name = hashlib.sha256(source.encode()).hexdigest()[:16]
        where = folder / f"{name}.bpf.o"
        if not where.exists():
            (folder / f"{name}.bpf.c").write_text(HEAD + source)
            machine = os.uname().machine
            target = {"x86_64": "x86", "aarch64": "arm64"}[machine]
            command = ["clang-14", "-O2", "-g", "-target", "bpf", f"-D__TARGET_ARCH_{target}"]
            command += [f"-I/usr/include/{machine}-linux-gnu", "-c", f"{name}.bpf.c", "-o", where.name]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
        return where.read_bytes()

    return compile_
