"""Compile a gadget with what there is: the local clang, zig's, or a builder container."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from igrun import data
from igrun.build.places import PACKAGES, Here, Place
from igrun.build.recipe import Recipe
from igrun.build.toolchain import Clang, compile_bpf, compile_go, compile_rust
from igrun.dataclass import dataclass
from igrun.errors import BuildError
from igrun.image import ARCHITECTURES, Objects
from igrun.oci.model import LARGEST_LAYER

if TYPE_CHECKING:
    from igrun.build.container import Builder, Container, Engine
    from igrun.build.materials import Materials

WITHOUT = f"{PACKAGES}; or pip install ziglang; or docker or podman for a builder container"


@dataclass(frozen=True, slots=True)
class Made:
    """What was compiled. said: what the compilers said; builder: the image they ran in, None if here"""

    objects: Mapping[str, Objects]
    said: str
    builder: Builder | None


class Making:
    """The choice of tools for one build, and the compiling with them.

    headers:       folder with gadget/*.h and vmlinux/<arch>/vmlinux.h; None: igrun's own
    local:         no containers
    builder_image: only containers of this image; "": what this machine has, else those of igrun's own image
    pull:          when builder_image is pulled: always, missing or never
    """

    def __init__(
        self,
        recipe: Recipe,
        scratch: Path,
        env: Mapping[str, str],
        headers: Path | None,
        *,
        local: bool,
        builder_image: str,
        pull: str,
        tell: Callable[[str], None],
    ) -> None:
        found = headers or data.headers()
        if found is None:
            raise BuildError("the headers for gadgets are missing from this installation", hint="install igrun again")
        self._recipe, self._scratch, self._env, self._headers = recipe, scratch, env, found.resolve()
        self._local, self._image, self._pull, self._tell = local, builder_image, pull, tell
        self._used: tuple[Clang, Place] | None = None
        self._guest: Place | None = None

    def make(self, epoch_s: int) -> Made:
        """Compile everything. epoch_s: what __DATE__ and __TIME__ are"""
        recipe = self._recipe
        said = []
        ebpf: dict[str, bytes] = {}
        if recipe.ebpf:
            clang, place = self._used = self._clang()
            ebpf, text = compile_bpf(clang, place, recipe, ARCHITECTURES, epoch_s)
            said.append(text)
        wasm = None
        if recipe.wasm:
            suffix = Path(recipe.wasm).suffix
            if suffix == ".wasm":
                wasm = load(recipe.folder / recipe.wasm)
            else:
                guest = self._guest = self._container if self._image else self._here
                wasm, text = (compile_go if suffix == ".go" else compile_rust)(guest, recipe)
                said.append(text)
            if not wasm.startswith(b"\0asm"):
                raise BuildError(f"{recipe.wasm} is no WASM module")
        return Made(
            {one: Objects(ebpf.get(one), wasm) for one in ARCHITECTURES},
            "".join(said),
            self._container.image if "_container" in self.__dict__ else None,
        )

    def materials(self) -> Materials:
        """What it was made of, while the scratch folder is there."""
        from igrun.build.materials import Component, Materials, of_bpf, of_folder

        files, components = of_folder(self._recipe)
        if self._used:
            clang, place = self._used
            files |= of_bpf(clang, place, self._recipe, ARCHITECTURES)
            components.add(Component("tool", "zig cc" if clang.zig else "clang", clang.full))
        if self._guest:
            name, word = ("go", "version") if self._recipe.wasm.endswith(".go") else ("cargo", "--version")
            said = self._guest.run({f"{name} {word}": [self._guest.which(name), word]}, {}, settings=True)
            version = next((one for one in said.split() if any(map(str.isdigit, one))), "")
            components.add(Component("tool", name, version))
        return Materials(tuple(sorted(files)), tuple(sorted(components)))

    def _clang(self) -> tuple[Clang, Place]:
        if self._image:
            return Clang.there(self._container, self._image), self._container
        try:
            return Clang.find(self._env), self._here
        except BuildError as error:
            lacking = error
        if self._env.get("CLANG"):
            raise lacking
        zig = Clang.of_zig(self._env)
        if zig:
            return zig, self._here
        if self._local:
            raise BuildError(f"{lacking}; --local forbids a builder container", hint=WITHOUT)
        try:
            engine = self._engine
        except BuildError as error:
            raise BuildError(f"{lacking}; {error}", hint=WITHOUT) from None
        self._tell(f"No clang on this machine: building with {engine.name}")
        return Clang.there(self._container, self._container.image.name), self._container

    @cached_property
    def _here(self) -> Here:
        made = self._scratch / "here"
        made.mkdir()
        return Here(self._recipe.folder, self._headers, made, self._env)

    @cached_property
    def _engine(self) -> Engine:
        from igrun.build.container import Engine

        return Engine.find(self._env)

    @cached_property
    def _container(self) -> Container:
        from igrun.build.container import Container, builder

        image = builder(self._engine, self._image, self._pull, self._scratch, self._tell)
        return Container.of(self._engine, image, self._recipe, self._headers, self._scratch)


def load(path: Path) -> bytes:
    """The content of a file of the gadget."""
    try:
        if path.stat().st_size > LARGEST_LAYER:
            raise BuildError(f"{path} is larger than {LARGEST_LAYER >> 20} MiB")
        return path.read_bytes()
    except OSError as error:
        raise BuildError(f"cannot read {path}: {error.strerror}") from None
