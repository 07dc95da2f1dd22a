"""What packaging adds to the Python files: the bundled gadgets, igrun's own BPF programs, the SDK's headers
and the builder image's file.

A wheel gets them below `igrun/_data`; an editable install gets what must be compiled in the checkout's `igrun/_data`.
Needs clang; the same sources and the same clang give the same bytes.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

DATA = "igrun/_data"
ARCHITECTURES = ("amd64", "arm64")


class CustomBuildHook(BuildHookInterface):
    """Called by hatchling before it puts the wheel together."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        root = Path(self.root)
        if version == "editable":
            compile_into(root / DATA, root)
            return
        self.scratch = tempfile.TemporaryDirectory(prefix="igrun-wheel-")  # gone with this object, if the build fails
        compiled = Path(self.scratch.name)
        compile_into(compiled, root)
        files = {compiled / name: name for name in ("gadgets", "bpf") if (compiled / name).exists()}
        files[root / "sdk" / "include"] = "sdk/include"
        files[root / "Dockerfile.builder"] = "Dockerfile.builder"
        if (root / "btfs").exists():
            files[root / "btfs"] = "btfs"
        build_data["force_include"].update({str(path): f"{DATA}/{name}" for path, name in files.items()})

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if version != "editable":
            self.scratch.cleanup()


def compile_into(target: Path, root: Path) -> None:
    """Compile `gadgets/` to an OCI layout and `bpf/` to objects, in the folder `target`."""
    sys.path.insert(0, str(root))
    try:
        bundle(target / "gadgets", root)
        objects(target / "bpf", root)
    finally:
        sys.path.remove(str(root))


def bundle(target: Path, root: Path) -> None:
    """An OCI layout of every gadget, named `<folder>:latest`."""
    from igrun.build import build
    from igrun.oci.store import Store

    shutil.rmtree(target, ignore_errors=True)
    with Store.open(target) as store:
        for folder in sorted(path.parent for path in (root / "gadgets").glob("*/gadget.yaml")):
            built = build(folder, local=True, store=store, headers=root / "sdk" / "include")
            store.tag(built.descriptor, f"{folder.name}:latest")
            if built.output:
                sys.stderr.write(built.output)
    # what only a store that is written to needs
    for lock in target.glob("*.lock"):
        lock.unlink()
    shutil.rmtree(target / "ingest", ignore_errors=True)
    # a store is its owner's alone; these are for everybody
    for path in (target.parent, target, *target.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def objects(target: Path, root: Path) -> None:
    """`<architecture>/<name>.bpf.o` of every program of igrun's own."""
    from igrun.build.places import Here
    from igrun.build.recipe import Recipe
    from igrun.build.toolchain import Clang, compile_bpf
    from igrun.build.when import source_time

    shutil.rmtree(target, ignore_errors=True)
    for source in sorted((root / "bpf").glob("*.bpf.c")):
        recipe = Recipe(source.parent, source.name, wasm="", metadata="")
        with tempfile.TemporaryDirectory() as scratch:
            epoch_s = source_time(source.parent, None, {})
            place = Here(source.parent, root / "sdk" / "include", Path(scratch), os.environ)
            compiled, said = compile_bpf(Clang.find(os.environ), place, recipe, ARCHITECTURES, epoch_s)
        sys.stderr.write(said)
        for architecture, data in compiled.items():
            place = target / architecture / source.name.replace(".bpf.c", ".bpf.o")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)
