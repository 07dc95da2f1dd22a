"""A kernel without BTF for guests: 5.10 of Debian's source package, built here once and kept in the cache of kernels.

    ~/.cache/igrun/kernels/nobtf_<hash of configuration and version>/
        vmlinux               without its debug information
        kernel.btf            what pahole makes of that: the BTF which this kernel should have had
        modules/<release>/    none: everything is built in
        building.log          what make said

It is built for `make test-nobtf` alone: five minutes where nothing else runs.
"""

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.vm import mirror

NAME = "nobtf"
SUITES = ("bullseye", "bullseye-security")
PACKAGE = "linux-source-5.10"
FRAGMENT = Path(__file__).with_name("nobtf.config")
TOOLS = {name: name for name in ("gcc", "make", "flex", "bison", "bc")} | {"pahole": "dwarves", "xz": "xz-utils"}


class NotBuiltError(Exception):
    """It cannot be built here; the text says why, in one line."""


def missing_packages() -> list[str]:
    """What to install before it can be built."""
    return [package for program, package in TOOLS.items() if shutil.which(program) is None]


def fetch(folder: Path) -> tuple[str, str, Path]:
    """Its release, the version of the source and its folder; built if it is not in the cache. NotBuiltError."""
    try:
        with tempfile.TemporaryDirectory(prefix=".nobtf-", dir=folder) as scratch:
            apt = mirror.PrivateApt(Path(scratch), SUITES)
            version = apt.versions([PACKAGE]).get(PACKAGE)
            if version is None:
                raise NotBuiltError(f"no package {PACKAGE} in {', '.join(apt.suites)}{apt.trouble}")
            target = folder / f"{NAME}_{key(version)}"
            if not (target / "vmlinux").exists():
                build(apt, Path(scratch), version, target)
    except mirror.UnreachableError as error:
        raise NotBuiltError(str(error)) from None
    release = next((target / "modules").iterdir()).name
    return release, version, target


def key(version: str) -> str:
    """What tells one build from another."""
    return hashlib.sha256(FRAGMENT.read_bytes() + version.encode()).hexdigest()[:16]


def build(apt: mirror.PrivateApt, scratch: Path, version: str, target: Path) -> None:
    """Make the folder of the cache: complete, or not at all."""
    if lacking := missing_packages():
        raise NotBuiltError(f"to build a kernel without BTF: apt-get install {' '.join(lacking)}")
    tree = apt.unpack([PACKAGE])
    ready = scratch / "ready"
    ready.mkdir()
    source = scratch / "source"
    source.mkdir()
    archive = next((tree / "usr/src").glob("linux-source-*.tar.xz"))
    subprocess.run(["tar", "-xJf", str(archive), "-C", str(source), "--strip-components=1"], check=True)
    archive.unlink()
    with (scratch / "building.log").open("w") as log:
        for step in (
            ["make", "tinyconfig"],
            ["scripts/kconfig/merge_config.sh", "-m", ".config", str(FRAGMENT)],
            ["make", "olddefconfig"],
            ["nice", "-n", "10", "make", f"-j{os.cpu_count()}", "vmlinux"],
            ["make", "-s", "kernelrelease"],
            ["pahole", f"--btf_encode_detached={ready / 'kernel.btf'}", "vmlinux"],
            ["strip", "-g", "-o", str(ready / "vmlinux"), "vmlinux"],
        ):
            # Reproducible as far as that goes: no name of this machine in it.
            env = {**os.environ, "LC_ALL": "C", "KBUILD_BUILD_USER": "igrun", "KBUILD_BUILD_HOST": "test"}
            done = subprocess.run(step, cwd=source, stdout=log, stderr=log, env=env)
            if done.returncode:
                kept = target.with_name(f"{target.name}.log")
                shutil.copy(scratch / "building.log", kept)
                raise NotBuiltError(f"{' '.join(step[:2])} failed with {done.returncode}: see {kept}")
    refuse_unset(source / ".config")
    release = (source / "include/config/kernel.release").read_text().strip()
    modules = ready / "modules" / release
    modules.mkdir(parents=True)
    (modules / "modules.dep").touch()
    (scratch / "building.log").rename(ready / "building.log")
    shutil.copy(source / ".config", ready / "config")
    shutil.rmtree(target, ignore_errors=True)
    ready.rename(target)


def refuse_unset(config: Path) -> None:
    """NotBuiltError: the kernel's configuration does not have what the fragment asks for."""
    have = set(config.read_text().splitlines())
    wanted = [line for line in FRAGMENT.read_text().splitlines() if line.startswith("CONFIG_")]
    lacking = [line for line in wanted if line not in have]
    if lacking or "CONFIG_DEBUG_INFO_BTF=y" in have:
        raise NotBuiltError(f"the configuration lost {', '.join(lacking) or 'its lack of BTF'}")
