"""What an image was made of: the sources, each header that was read, the compilers and the modules of guests."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from igrun.build.places import HEADERS_AS, Place, read
from igrun.build.recipe import Recipe
from igrun.build.toolchain import ZIG_AS, Clang
from igrun.dataclass import dataclass
from igrun.errors import BuildError

LICENSE = re.compile(rb"SPDX-License-Identifier:[ \t]*([A-Za-z0-9.+() -]+?)[ \t]*(?:\*/|-->|\r?\n|$)")
GUEST_SOURCES = (".go", ".rs", ".mod", ".sum", ".toml", ".lock", ".c", ".h")
NO_SOURCES = ("target", "node_modules")  # what compilers and package managers keep beside sources


@dataclass(frozen=True, slots=True, order=True)
class Material:
    """A file. name: the same on every machine; license: an SPDX expression, "" if it does not say"""

    name: str
    sha256: str
    sha1: str
    license: str = ""

    @classmethod
    def of(cls, name: str, data: bytes) -> Material:
        from hashlib import sha1, sha256

        said = LICENSE.search(data[:4096])
        # SPDX wants the SHA-1 of a file too
        old = sha1(data, usedforsecurity=False).hexdigest()
        return cls(name, sha256(data).hexdigest(), old, said[1].decode() if said else "")


@dataclass(frozen=True, slots=True, order=True)
class Component:
    """A tool that was used, or a module that is part of a guest. kind: tool, golang or cargo"""

    kind: str
    name: str
    version: str

    @property
    def purl(self) -> str:
        """As a package URL, "" for a tool."""
        return "" if self.kind == "tool" else f"pkg:{self.kind}/{self.name}@{self.version}"


@dataclass(frozen=True, slots=True)
class Materials:
    """All that an image was made of, in a fixed order."""

    files: tuple[Material, ...] = ()
    components: tuple[Component, ...] = ()


def of_bpf(clang: Clang, place: Place, recipe: Recipe, architectures: Iterable[str]) -> set[Material]:
    """What the compiler read, as it says itself."""
    paths: set[str] = set()
    for one in architectures:
        paths.update(prerequisites((place.made / f"{one}.d").read_text(errors="surrogateescape")))
    contents = place.read(sorted(paths))
    return {Material.of(common_name(path, clang, place), data) for path, data in contents.items()}


def prerequisites(rule: str) -> list[str]:
    """The files that a rule for make names behind its colon."""
    _, _, rest = rule.replace("\\\n", " ").partition(": ")
    words = re.findall(r"(?:\\.|\$\$|[^\\\s$])+", rest)
    return [re.sub(r"\\([ #\\])", r"\1", word).replace("$$", "$") for word in words]


def common_name(path: str, clang: Clang, place: Place) -> str:
    """A name for a file that tells nothing of this machine."""
    roots = {place.headers: HEADERS_AS, place.folder: ""}
    if clang.zig:
        roots[str(clang.zig)] = ZIG_AS
    if not path.startswith("/"):
        return os.path.normpath(path)
    for root, name in roots.items():
        if path.startswith(f"{root}/"):
            return os.path.normpath(f"{name}{path[len(root) :]}".lstrip("/") if not name else name + path[len(root) :])
    own = re.search(r"/lib(?:64)?/clang/[^/]+/include/(.*)", path)
    if own:
        return f"clang/include/{own[1]}"
    return path if path.startswith("/usr/include/") else f"include/{PurePosixPath(path).name}"


def of_folder(recipe: Recipe) -> tuple[set[Material], set[Component]]:
    """gadget.yaml, build.yaml, and what a guest is made of."""
    names = [recipe.metadata] if (recipe.folder / recipe.metadata).is_file() else []
    if recipe.wasm:
        names += guest_files(recipe)
    files = {Material.of(name, data) for name, data in read(recipe.folder, names).items()}
    if recipe.file:
        data = read(recipe.folder, [str(recipe.file.absolute())])
        files |= {Material.of(recipe.file.name, one) for one in data.values()}
    return files, {one for name in names for one in modules(recipe.folder / name)}


def guest_files(recipe: Recipe) -> list[str]:
    """The sources of a guest: all of its module."""
    source = Path(recipe.wasm)
    if source.suffix == ".wasm":
        return [recipe.wasm]
    start = recipe.folder / (source.parent if source.suffix == ".go" else source.parent.parent)
    if source.suffix == ".go":
        # go.mod may stand above the package
        start = next((one for one in (start, *start.parents) if (one / "go.mod").is_file()), start)
        start = start if start.is_relative_to(recipe.folder) else recipe.folder / source.parent
    found = []
    for folder, folders, names in os.walk(start):
        folders[:] = sorted(one for one in folders if not one.startswith(".") and one not in NO_SOURCES)
        found += [os.path.relpath(f"{folder}/{one}", recipe.folder) for one in names if one.endswith(GUEST_SOURCES)]
    return sorted(found)


def modules(path: Path) -> list[Component]:
    """The modules that go.mod or Cargo.lock names."""
    if path.name == "go.mod":
        text = path.read_text(errors="replace")
        required = re.findall(r"^(?:require)?[ \t]+([\w.~/-]+\.[\w.~/-]+)[ \t]+(v[\w.+-]+)", text, re.MULTILINE)
        return [Component("golang", name, version) for name, version in required]
    if path.name == "Cargo.lock":
        import tomllib

        try:
            packages: list[Mapping[str, Any]] = tomllib.loads(path.read_text()).get("package", [])
            return [Component("cargo", str(one["name"]), str(one["version"])) for one in packages if "source" in one]
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise BuildError(f"cannot read {path}: {error}") from None
    return []
