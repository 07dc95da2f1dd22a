"""Build a gadget: its sources and gadget.yaml become an image in the local store."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import igrun
from igrun.build.recipe import Recipe
from igrun.build.toolchain import compile_bpf, compile_go, compile_rust
from igrun.build.when import created, source_time
from igrun.errors import BuildError, GadgetError
from igrun.image import ARCHITECTURES, Objects, pack
from igrun.metadata import GadgetMetadata
from igrun.oci.model import LARGEST_LAYER, Descriptor, Reference
from igrun.oci.store import Store
from igrun.program import Program


@dataclass(frozen=True, slots=True)
class Built:
    """An image that was built. reference: None without a tag; output: what the compilers said; warnings: one a line."""

    descriptor: Descriptor
    reference: Reference | None = None
    output: str = ""
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        name = f"{self.reference.name}:{self.reference.tag}" if self.reference else ""
        return f"{name}@{self.descriptor.digest}"


def build(
    path: str | os.PathLike[str],
    *,
    file: str | os.PathLike[str] | None = None,
    output: str | os.PathLike[str] | None = None,
    local: bool = True,
    update_metadata: bool = False,
    validate_metadata: bool = True,
    store: Store | None = None,
    tag: str = "",
    env: Mapping[str, str] | None = None,
    headers: Path | None = None,
    reference: Callable[[str], Reference] = Reference.parse,
) -> Built:
    """Build the gadget in folder `path`.

    file:              build.yaml; None: the one in `path`, if there is one
    output:            an existing folder that gets the objects; None: they are only in the image
    local:             with the tools of this machine; a builder container is not there yet, so it is always so
    update_metadata:   write into gadget.yaml what the objects have and it does not say
    validate_metadata: refuse a gadget.yaml that does not fit to the objects
    store:             where the image goes; None: this user's
    tag:               its name; "": none
    env:               environment variables; None: this process's
    headers:           folder with gadget/*.h and vmlinux/<arch>/vmlinux.h; None: igrun's own
    reference:         reads the name

    BuildError: a source is missing or does not compile. MetadataError, ImageError: it compiled and is wrong.
    """
    import tempfile

    env = os.environ if env is None else env
    name = reference(tag) if tag else None
    folder = Path(path)
    if not folder.is_dir():
        raise BuildError(f"{str(path)!r} is no folder", hint="give the folder of the gadget")
    if output is not None and not Path(output).is_dir():
        raise BuildError(f"output folder {str(output)!r} does not exist", hint="make it first")
    # what is relative is meant from here; the compilers run in the gadget's folder
    folder = folder.resolve()
    kept = Path(output).resolve() if output is not None else None
    recipe = Recipe.read(folder, Path(file) if file is not None else None)
    epoch_s = source_time(folder, kept, env)

    with tempfile.TemporaryDirectory(prefix="gadget-build-") as scratch:
        objects, said = compiled(recipe, Path(scratch), env, epoch_s, headers)
        metadata, warnings = described(recipe, objects, update=update_metadata, validate=validate_metadata)
        if kept:
            keep(objects, kept)

    with contextlib.ExitStack() as stack:
        place = store if store is not None else stack.enter_context(Store.open())
        descriptor = pack(place, metadata, objects, created=created(epoch_s), builder_version=igrun.__version__)
        if name:
            place.tag(descriptor, name)
        else:
            place.keep(descriptor)
    return Built(descriptor, name, said, (*recipe.warnings, *warnings))


def compiled(
    recipe: Recipe, scratch: Path, env: Mapping[str, str], epoch_s: int, headers: Path | None
) -> tuple[dict[str, Objects], str]:
    """The objects of every architecture, and what the compilers said."""
    said = []
    ebpf: dict[str, bytes] = {}
    if recipe.ebpf:
        ebpf, text = compile_bpf(recipe, scratch, env, ARCHITECTURES, epoch_s, headers)
        said.append(text)
    wasm = None
    if recipe.wasm:
        suffix = Path(recipe.wasm).suffix
        if suffix == ".wasm":
            wasm = load(recipe.folder / recipe.wasm)
        else:
            compiler = compile_go if suffix == ".go" else compile_rust
            product, text = compiler(recipe, scratch, env)
            wasm = load(product)
            said.append(text)
        if not wasm.startswith(b"\0asm"):
            raise BuildError(f"{recipe.wasm} is no WASM module")
    return {one: Objects(ebpf.get(one), wasm) for one in ARCHITECTURES}, "".join(said)


def described(
    recipe: Recipe, objects: Mapping[str, Objects], *, update: bool, validate: bool
) -> tuple[bytes | None, tuple[str, ...]]:
    """gadget.yaml as it goes into the image, None if there is none; what is odd about it."""
    path = recipe.folder / recipe.metadata
    if update:
        from igrun.build.populate import populate

        first = objects[ARCHITECTURES[0]].ebpf
        populate(path, Program.open(first, GadgetMetadata()) if first else None)
    text = load(path) if path.exists() else None
    metadata = GadgetMetadata.parse(text or b"", strict=validate)
    if validate:
        for architecture, one in objects.items():
            if not one.ebpf:
                continue
            try:
                Program.open(one.ebpf, metadata).check(metadata, has_guest=one.wasm is not None)
            except GadgetError as error:
                if architecture == ARCHITECTURES[0]:
                    raise
                raise BuildError(f"{error} (only on {architecture})", hint=error.hint) from error
    return text, metadata.warnings


def load(path: Path) -> bytes:
    """The content of a file of the gadget."""
    try:
        if path.stat().st_size > LARGEST_LAYER:
            raise BuildError(f"{path} is larger than {LARGEST_LAYER >> 20} MiB")
        return path.read_bytes()
    except OSError as error:
        raise BuildError(f"cannot read {path}: {error.strerror}") from None


def keep(objects: Mapping[str, Objects], folder: Path) -> None:
    """Write the objects into a folder, each at once."""
    files = {f"{architecture}.bpf.o": one.ebpf for architecture, one in objects.items()}
    files["program.wasm"] = next((one.wasm for one in objects.values() if one.wasm), None)
    for name, data in files.items():
        if data is None:
            continue
        temporary = folder / f".{name}.{os.getpid()}"
        try:
            temporary.write_bytes(data)
            temporary.replace(folder / name)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise BuildError(f"cannot write {folder / name}: {error.strerror}") from None
