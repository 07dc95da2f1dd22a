"""BPF objects for tests, compiled from a few lines of C."""

import os
import platform
import shutil
from functools import cache
from pathlib import Path

import pytest

from tests.vm import errand

SDK = Path(__file__).parent.parent / "sdk/include"
# In a guest of another machine, which has none, the name is that of the machine it runs on.
CLANG = os.environ.get("IGRUN_TEST_CLANG") or next(
    (name for name in ("clang-14", "clang", "clang-16", "clang-19") if shutil.which(name)), None
)
ARCHITECTURES = {"x86_64": ("x86", "amd64"), "aarch64": ("arm64", "arm64")}  # as libbpf and Debian call them
HEAD = """// SPDX-License-Identifier: GPL-2.0
#include <vmlinux.h>
#include <bpf/bpf_helpers.h>
#include <gadget/macros.h>
#include <gadget/types.h>
char LICENSE[] SEC("license") = "GPL";
"""


@cache
def compiled(source: str, *flags: str, head: str = HEAD) -> bytes:
    """The object's bytes. head: what stands before the source: includes and a license."""
    if CLANG is None:
        pytest.skip("no clang: install clang 14 or later (Debian and Ubuntu: apt install clang)")
    architecture, debian = ARCHITECTURES[platform.machine()]
    includes = [f"-I{SDK}", f"-I{SDK}/vmlinux/{debian}"]
    flags = ("-target", "bpf", "-O2", "-g", f"-D__TARGET_ARCH_{architecture}", *includes, *flags)
    command = [CLANG, *flags, "-c", "-xc", "-", "-o", "-"]
    done = errand.run(command, head + source)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout
