"""Build a gadget: its sources and gadget.yaml become an image in the local store."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import igrun
from igrun.build.making import Making, load
from igrun.build.recipe import Recipe
from igrun.build.when import created, source_time
from igrun.dataclass import dataclass, replace
from igrun.errors import BuildError, GadgetError, ImageError, ParamError
from igrun.image import ARCHITECTURES, Objects, pack
from igrun.metadata import GadgetMetadata
from igrun.oci.folder import SYSTEM_ROOT
from igrun.oci.model import CREATED, EMPTY, MANIFEST, Content, Descriptor, Manifest, Reference, Referrer
from igrun.oci.store import Store
from igrun.program import Program

BTFS = {"amd64": "btfs-x86_64.tar.gz", "arm64": "btfs-arm64.tar.gz"}  # what is kept, as the ecosystem calls it


@dataclass(frozen=True, slots=True)
class Built:
    """An image that was built.

    reference: None without a tag
    output:    what the compilers said
    warnings:  one a line
    attached:  the SBOM and the provenance
    """

    descriptor: Descriptor
    reference: Reference | None = None
    output: str = ""
    warnings: tuple[str, ...] = ()
    attached: tuple[Descriptor, ...] = ()

    def __str__(self) -> str:
        name = f"{self.reference.name}:{self.reference.tag}" if self.reference else ""
        return f"{name}@{self.descriptor.digest}"


def build(
    path: str | os.PathLike[str],
    *,
    file: str | os.PathLike[str] | None = None,
    output: str | os.PathLike[str] | None = None,
    local: bool = False,
    builder_image: str = "",
    builder_image_pull: str = "always",
    update_metadata: bool = False,
    validate_metadata: bool = True,
    sbom: str = "",
    provenance: bool = False,
    btfhub_archive: str | os.PathLike[str] | None = None,
    store: Store | None = None,
    tag: str = "",
    env: Mapping[str, str] | None = None,
    headers: Path | None = None,
    reference: Callable[[str], Reference] = Reference.parse,
    tell: Callable[[str], None] = lambda line: None,
) -> Built:
    """Build the gadget in folder `path`.

    file:               build.yaml; None: the one in `path`, if there is one
    output:             an existing folder that gets the objects; None: they are only in the image
    local:              only with the tools of this machine; else a builder container where they are missing
    builder_image:      build in a container of this image; "": as `local` says
    builder_image_pull: when that image is pulled: always, missing or never
    update_metadata:    write into gadget.yaml what the objects have and it does not say
    validate_metadata:  refuse a gadget.yaml that does not fit to the objects
    sbom:               attach a bill of materials, "spdx" or "cyclonedx"; "": none
    provenance:         attach a statement of how it was built
    btfhub_archive:     folder of BTF in BTFHub's layout: what the programs need of it goes into the image; None: none
    store:              where the image goes; None: this user's
    tag:                its name; "": none
    env:                environment variables; None: this process's
    headers:            folder with gadget/*.h and vmlinux/<arch>/vmlinux.h; None: igrun's own
    reference:          reads the name
    tell:               gets a line where something takes its time

    BuildError: a source is missing or does not compile. MetadataError, ImageError: it compiled and is wrong.
    """
    import tempfile

    env = os.environ if env is None else env
    name = reference(tag) if tag else None
    refuse(local, builder_image, builder_image_pull, sbom)
    folder = Path(path)
    if not folder.is_dir():
        raise BuildError(f"{str(path)!r} is no folder", hint="give the folder of the gadget")
    if output is not None and not Path(output).is_dir():
        raise BuildError(f"output folder {str(output)!r} does not exist", hint="make it first")
    # what is relative is meant from here; the compilers run in the gadget's folder
    folder = folder.resolve()
    kept = Path(output).resolve() if output is not None else None
    archive = Path(btfhub_archive).resolve() if btfhub_archive is not None else None
    recipe = Recipe.read(folder, Path(file) if file is not None else None)
    epoch_s = source_time(folder, kept, env)

    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="gadget-build-"))
        making = Making(
            recipe,
            Path(scratch),
            env,
            headers,
            local=local,
            builder_image=builder_image,
            pull=builder_image_pull,
            tell=tell,
        )
        made = making.make(epoch_s)
        metadata, warnings = described(recipe, made.objects, update=update_metadata, validate=validate_metadata)
        if archive:
            from igrun.build.btfs import with_btfs

            objects, refused = with_btfs(made.objects, archive, tell)
            made, warnings = replace(made, objects=objects), (*warnings, *refused)
        if kept:
            keep(made.objects, kept)
        # after gadget.yaml was written, which is one of them
        materials = making.materials() if sbom or provenance else None
    when = created(epoch_s)
    attached: list[Descriptor] = []
    with contextlib.ExitStack() as stack:
        place = store if store is not None else stack.enter_context(Store.open())
        descriptor = pack(place, metadata, made.objects, created=when, builder_version=igrun.__version__)
        if name:
            place.tag(descriptor, name)
        else:
            place.keep(descriptor)
        if materials:
            from igrun.build.provenance import IN_TOTO, PREDICATE, statement
            from igrun.build.sbom import Bill, write

            bill = Bill.of(metadata, descriptor.digest, when, recipe, made.objects, materials)
            if sbom:
                attached.append(attach(place, descriptor, *write(sbom, bill), {CREATED: when}))
            if provenance:
                text = statement(bill, recipe, epoch_s, made.builder, image=builder_image, checked=validate_metadata)
                about = {CREATED: when, "in-toto.io/predicate-type": PREDICATE}
                attached.append(attach(place, descriptor, IN_TOTO, text, about))
        if place.root == SYSTEM_ROOT:
            from igrun.oci.provenance import PLACE, Provenance

            try:
                Provenance.open(PLACE).record(descriptor.digest, "built here", place.root)
            except ImageError as error:
                # It is built all the same; it needs a signature now.
                warnings = (*warnings, f"{error} ({error.hint})")
    return Built(descriptor, name, made.said, (*recipe.warnings, *warnings), tuple(attached))


def refuse(local: bool, builder_image: str, pull: str, sbom: str) -> None:
    """ParamError: what is asked for does not go together, or is not there."""
    from igrun.build.container import PULL
    from igrun.build.sbom import FORMATS

    if local and builder_image:
        raise ParamError("builder-image", builder_image, "--local and --builder-image cannot be used at the same time")
    if pull not in PULL:
        values = ",".join(PULL)
        problem = f"invalid value for --builder-image-pull: {pull}. Valid values are {values}"
        raise ParamError("builder-image-pull", pull, problem)
    if sbom and sbom not in FORMATS:
        raise ParamError("sbom", sbom, f"invalid value for --sbom: {sbom}. Valid values are {','.join(FORMATS)}")


def attach(content: Content, subject: Descriptor, kind: str, data: bytes, annotations: Mapping[str, str]) -> Descriptor:
    """Write a document about an image, to be found from it. Returns the descriptor of its manifest."""
    config = content.write(EMPTY, b"{}")
    layer = content.write(kind, data)
    bare = Descriptor(subject.media_type, subject.digest, subject.size)
    manifest = Manifest(config, (layer.with_annotations(annotations),), annotations, kind, bare)
    written = replace(content.write(MANIFEST, manifest.to_bytes(), annotations), artifact_type=kind)
    content.refer(subject, Referrer(written))
    return written


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


def keep(objects: Mapping[str, Objects], folder: Path) -> None:
    """Write the objects into a folder, each at once."""
    files = {f"{architecture}.bpf.o": one.ebpf for architecture, one in objects.items()}
    for architecture, name in BTFS.items():
        files[name] = objects[architecture].btfs if architecture in objects else None
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
