"""The BTFGen layers of an image: BTF of many kernels without their own, cut down to what its programs look at."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from igrun import data
from igrun.btfgen import Relocation, minimal, relocations
from igrun.dataclass import replace
from igrun.errors import BuildError, GadgetError, ImageError
from igrun.image import Objects
from igrun.kernel_btf import cache, layer
from igrun.kernel_btf.names import ARCHITECTURES, Kernel, named

MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}  # as `uname -m` has them, and so the layer
Wanted = list[tuple[Relocation, ...]]


def with_btfs(
    objects: Mapping[str, Objects], archive: Path, tell: Callable[[str], None]
) -> tuple[dict[str, Objects], tuple[str, ...]]:
    """The objects with BTF for every kernel in an archive of BTFHub's layout; what was left out, one line each.

    An object that looks at nothing of the kernel gets none. BuildError: the archive has nothing, or is damaged.
    """
    kernels = listed(archive)
    warnings: list[str] = []
    made = {}
    for architecture, one in objects.items():
        own = relocations(one.ebpf) if one.ebpf else ()
        if not own:
            made[architecture] = one
            continue
        wanted = [own]
        probe = data.find(f"bpf/{architecture}/btf_probe.bpf.o")
        if probe:  # so that a run can see if it is the right one
            wanted.append(relocations(probe.read_bytes()))
        mine = [pair for pair in kernels if pair[0].hub_machine == ARCHITECTURES[architecture]]
        tell(f"Shrinking BTF of {len(mine)} kernels for {architecture}...")
        files, refused = shrunk(mine, wanted, MACHINES[architecture])
        warnings += refused
        made[architecture] = replace(one, btfs=layer.write(files)) if files else one
        if not files:
            warnings.append(f"{archive} has no BTF for {architecture}")
    return made, tuple(warnings)


def listed(archive: Path) -> list[tuple[Kernel, Path]]:
    """Every kernel of an archive. BuildError: it has none."""
    try:
        files = [(named(path), path) for path in cache.files(archive)]
    except GadgetError as error:
        raise BuildError(f"--btfhub-archive: {error}") from None
    found = [(kernel, path) for kernel, path in files if kernel]
    if not found:
        raise BuildError(
            f"--btfhub-archive: no file below {archive} is called as BTFHub has them",
            hint="<id>/<version>/<x86_64 or arm64>/<release>.btf.tar.xz",
        )
    return found


def shrunk(kernels: list[tuple[Kernel, Path]], wanted: Wanted, machine: str) -> tuple[dict[str, bytes], list[str]]:
    """Path in the layer -> small BTF; and why some kernels have none."""

    def one(pair: tuple[Kernel, Path]) -> tuple[str, bytes | str]:
        kernel, path = pair
        name = f"{kernel.id}/{kernel.version_id}/{machine}/{kernel.release}.btf"
        try:
            whole = cache.load(path, kernel.release)
        except ImageError as error:
            raise BuildError(str(error)) from None
        try:
            return name, minimal(whole, wanted)
        except ImageError as error:
            return name, f"{path} is left out: {error}"

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = dict(pool.map(one, kernels))
    files = {name: found for name, found in results.items() if isinstance(found, bytes)}
    return files, [found for found in results.values() if isinstance(found, str)]
