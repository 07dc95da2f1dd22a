"""Debian kernels for guests: the newest patch of each series, fetched from the mirror once a day and kept in a cache.

    $IGRUN_CACHE or ~/.cache/igrun
        kernels/
            6.12.json                 what the series resolved to, when
            6.12.lock                 held while one process fetches
            6.12.107+deb13-cloud-amd64_6.12.107-1/
                vmlinux               uncompressed; QEMU boots it directly (PVH)
                config                what it was built with; empty where its packages do not tell
                modules/              lib/modules/<release>, with modules.dep
            6.12.117+deb13-cloud-arm64_6.12.117-1_4b3a.../
                root/                 of another machine: its root file system, of Debian's packages
            nobtf_4f1c.../            built here, see nobtf.py

Nothing of this touches the machine's own package state: apt runs with sources, lists and cache of its own.
"""

import fcntl
import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.vm import bzimage, mirror, nobtf
from tests.vm.machines import MACHINES, Machine

ARM64_ROOT = Path(__file__).with_name("arm64-root.packages")
MACHINES_PLACE = "machine"  # where guests with a root of their own see this machine's files
FRESH_S = 24 * 3600  # how long a resolved version is believed before the mirror is asked again
CLOUD = r"linux-(?:image|binary)-(%s[^-]*(?:-\d+)?-cloud-%s)"  # 5.10.0-32-, 6.12.107+deb13-; no -dbg, no -unsigned


@dataclass(frozen=True)
class Series:
    """Where the kernels of one series are. `pattern`: finds the release in a package's name; `root`: the packages of
    the guests' root file system; none: it is this machine's."""

    name: str
    suites: tuple[str, ...]
    pattern: re.Pattern[str]
    architecture: str
    root: tuple[str, ...]


def _series(name: str, version: str, *suites: str, architecture: str = "amd64", root: Path | None = None) -> Series:
    lines = root.read_text().splitlines() if root else []
    packages = tuple(line for line in lines if not line.startswith("#"))
    return Series(name, suites, re.compile(CLOUD % (version, architecture)), architecture, packages)


SERIES = {
    series.name: series
    for series in (
        _series("5.10", r"5\.10\.", "bullseye", "bullseye-security"),
        _series("6.1", r"6\.1\.", "bookworm", "bookworm-security"),
        _series("6.12", r"6\.12\.", "trixie", "trixie-security", "bookworm-backports", "bookworm-security"),
        _series("newest", r"\d+\.\d+\.", "sid"),
        _series("arm64", r"6\.12\.", "trixie", "trixie-security", architecture="arm64", root=ARM64_ROOT),
    )
}

NAMES = (*SERIES, nobtf.NAME)  # the last one is built here


class KernelUnavailableError(Exception):
    """No kernel of that series can be had here; the text says why, in one line."""


@dataclass(frozen=True)
class Kernel:
    """A kernel ready to boot. `release` is its `uname -r`, `version` the package's."""

    series: str
    release: str
    version: str
    folder: Path
    architecture: str = "amd64"

    @property
    def machine(self) -> Machine:
        return MACHINES[self.architecture]

    @property
    def root(self) -> Path | None:
        """The root file system of its guests; None: this machine's."""
        return None if self.machine.name == os.uname().machine else self.folder / "root"

    @property
    def vmlinux(self) -> Path:
        return self.folder / "vmlinux"

    @property
    def modules(self) -> Path:
        return self.folder / "modules"

    @property
    def config(self) -> Path:
        """What it was built with. It may be missing, or empty."""
        return self.folder / "config"


def cache_root() -> Path:
    chosen = os.environ.get("IGRUN_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "igrun"


def fetch(name: str, cache: Path | None = None) -> Kernel:
    """The newest kernel of a series, from the cache if it was looked up today.

    A kernel in the cache is used too when the mirror is out of reach. Raises KernelUnavailableError.
    """
    if name not in NAMES:
        raise KernelUnavailableError(f"no kernel series {name!r}; there are {', '.join(NAMES)}")
    if os.uname().machine != "x86_64":
        raise KernelUnavailableError(f"guest kernels are for x86_64, this machine is {os.uname().machine}")
    folder = (cache or cache_root()) / "kernels"
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / f"{name}.lock"):
        known = _known(folder, name)
        if known is not None and 0 <= known[1] < FRESH_S:
            return known[0]
        try:
            kernel = _resolve(SERIES[name], folder) if name in SERIES else Kernel(name, *nobtf.fetch(folder))
        except (KernelUnavailableError, nobtf.NotBuiltError, mirror.UnreachableError) as error:
            if known is not None:
                return known[0]
            raise KernelUnavailableError(f"kernel {name}: {error}") from error
        record = {**asdict(kernel), "folder": kernel.folder.name, "resolved": int(time.time())}
        _write(folder / f"{name}.json", json.dumps(record, indent=1).encode())
        _prune(folder, name, keep=kernel)
        return kernel


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _known(folder: Path, name: str) -> tuple[Kernel, float] | None:
    """The kernel that the series last resolved to, and how many seconds ago."""
    try:
        record = json.loads((folder / f"{name}.json").read_text())
        place, architecture = folder / record["folder"], record.get("architecture", "amd64")
        kernel = Kernel(name, record["release"], record["version"], place, architecture)
        age_s = time.time() - record["resolved"]
    except (FileNotFoundError, ValueError, KeyError):
        return None
    return (kernel, age_s) if kernel.vmlinux.exists() else None


def _resolve(series: Series, folder: Path) -> Kernel:
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as scratch:
        apt = mirror.PrivateApt(Path(scratch), series.suites, architecture=series.architecture)
        names = apt.names("linux-")
        found = {name: match[1] for name in names if (match := series.pattern.fullmatch(name))}
        if not found:
            raise KernelUnavailableError(f"no package {series.pattern.pattern} in {', '.join(apt.suites)}{apt.trouble}")
        versions = apt.versions(list(found))
        newest = max(versions, key=lambda name: functools.cmp_to_key(mirror.compare_versions)(versions[name]))
        release, version = found[newest], versions[newest]
        target = folder / f"{release}_{version.replace(':', '.')}{_key(series.root)}"
        kernel = Kernel(series.name, release, version, target, series.architecture)
        if kernel.vmlinux.exists() and kernel.config.exists():
            return kernel
        # Newer kernels are split over several packages, and linux-image only depends on them.
        parts = [f"linux-{part}-{release}" for part in ("image", "binary", "modules", "base")]
        tree = apt.unpack([part for part in parts if part in names])
        if kernel.vmlinux.exists():  # a guest may be running from it
            _write(kernel.config, _config(tree, release))
        else:
            _install(tree, release, target, apt.unpack_all(series.root) if series.root else None)
    return kernel


def _key(packages: Sequence[str]) -> str:
    """What tells one root file system from another."""
    return f"_{hashlib.sha256(' '.join(packages).encode()).hexdigest()[:16]}" if packages else ""


def _config(tree: Path, release: str) -> bytes:
    """The kernel's configuration in its unpacked packages, empty if it is not there."""
    places = (f"boot/config-{release}", f"usr/lib/modules/{release}/config", f"usr/lib/kernel/config-{release}")
    return next(((tree / place).read_bytes() for place in places if (tree / place).exists()), b"")


def _install(tree: Path, release: str, target: Path, root: Path | None) -> None:
    """Make the cache's folder from the unpacked packages: complete, or not at all."""
    homes = [tree / "usr/lib/modules" / release, tree / "lib/modules" / release]
    image = next(
        (p for p in (tree / "boot" / f"vmlinuz-{release}", *(h / "vmlinuz" for h in homes)) if p.exists()), None
    )
    home = next((h for h in homes if (h / "kernel").is_dir()), None)
    if image is None or home is None:
        raise KernelUnavailableError(f"the packages of {release} hold no {'kernel' if image is None else 'modules'}")
    ready = tree.parent / "ready"
    (ready / "modules").mkdir(parents=True)
    (ready / "vmlinux").write_bytes(bzimage.vmlinux(image.read_bytes()))
    (ready / "config").write_bytes(_config(tree, release))
    # depmod wants lib/modules/<release>; the cache leaves the prefix out.
    place = tree.parent / "depmod/lib/modules"
    place.mkdir(parents=True)
    home.rename(place / release)
    command = ["busybox", "depmod", "-b", str(tree.parent / "depmod"), release]
    subprocess.run(command, check=True, capture_output=True)
    (place / release / "vmlinuz").unlink(missing_ok=True)
    (place / release).rename(ready / "modules" / release)
    if root is not None:
        _set_up(root)
        root.rename(ready / "root")
    shutil.rmtree(target, ignore_errors=True)
    ready.rename(target)


def _set_up(root: Path) -> None:
    """What the packages' scripts would have done, as far as tests need it; and where this machine's files appear."""
    for name in ("passwd", "group"):
        shutil.copy(root / f"usr/share/base-passwd/{name}.master", root / "etc" / name)
    (root / MACHINES_PLACE).mkdir()


def _write(path: Path, data: bytes) -> None:
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_bytes(data)
    fresh.replace(path)


def _prune(folder: Path, name: str, keep: Kernel) -> None:
    """Drop what no series points to any more, but nothing younger than a day: a guest may be running from it."""
    used = {keep.folder.name}
    for record in folder.glob("*.json"):
        try:
            used.add(json.loads(record.read_text())["folder"])
        except (ValueError, KeyError):
            continue
    for path in folder.iterdir():
        if path.is_dir() and path.name not in used and time.time() - path.stat().st_mtime > FRESH_S:
            shutil.rmtree(path, ignore_errors=True)


def main(names: Sequence[str]) -> None:
    """Fetch the series named (all when none) and print what they are: `python -m tests.vm.kernels [SERIES...]`."""
    for name in names or [series.name for series in SERIES.values() if not series.root]:
        try:
            kernel = fetch(name)
        except KernelUnavailableError as error:
            raise SystemExit(f"NOT RUN: {error}") from None
        print(f"{name:8} {kernel.release:32} {kernel.version:20} {kernel.folder}")


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
