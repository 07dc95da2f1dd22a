"""igrun's own BPF programs for tests of a checkout, where no package was built: compiled as packaging does."""

import fcntl
import sys
from pathlib import Path

import igrun
from igrun import data

ROOT = Path(igrun.__file__).parent.parent


def bpf() -> None:
    """See to it that they are there, and new enough."""
    sources = list((ROOT / "bpf").glob("*.bpf.c")) if (ROOT / "hatch_build.py").exists() else []
    if not sources:
        return  # installed from a wheel
    target = ROOT / "igrun/_data/bpf"
    target.parent.mkdir(exist_ok=True)
    with (target.parent / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder = data.find("bpf/amd64")
        made = {path.name: path.stat().st_mtime for path in folder.iterdir()} if folder else {}
        newest = {path.name.replace(".bpf.c", ".bpf.o"): path.stat().st_mtime for path in sources}
        if all(made.get(name, 0) >= when for name, when in newest.items()):
            return
        sys.path.insert(0, str(ROOT))
        try:
            from hatch_build import objects

            objects(target, ROOT)
        finally:
            sys.path.remove(str(ROOT))
