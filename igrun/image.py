"""A gadget as an OCI image: pack its parts into layers by media type, and unpack them for one architecture."""

from __future__ import annotations

from collections.abc import Mapping

from igrun.caches import remembered
from igrun.dataclass import dataclass, field
from igrun.errors import ImageError
from igrun.metadata import GadgetMetadata
from igrun.oci.model import (
    CREATED,
    EMPTY,
    INDEX,
    INDEXES,
    MANIFEST,
    MANIFESTS,
    TITLE,
    Content,
    Descriptor,
    Index,
    Manifest,
    Platform,
)

ARTIFACT = "application/vnd.gadget.v1+binary"
CONFIG = "application/vnd.gadget.config.v1+yaml"
EBPF = "application/vnd.gadget.ebpf.program.v1+binary"
WASM = "application/vnd.gadget.wasm.program.v1+binary"
BTFGEN = "application/vnd.gadget.btfgen.v1+binary"
BUILDER_VERSION = "io.inspektor-gadget.builder.version"
ARCHITECTURES = ("amd64", "arm64")


@dataclass(frozen=True, slots=True)
class Objects:
    """What an image holds for one architecture. btfs: a gzip'ed tar of BTF files."""

    ebpf: bytes | None = None
    wasm: bytes | None = None
    btfs: bytes | None = None


@dataclass(frozen=True, slots=True)
class GadgetImage:
    """An image for one architecture.

    metadata_text: gadget.yaml as packed; b"" if the image has none
    btfs:          a gzip'ed tar of BTF files
    digest:        of what the name stands for, the index
    annotations:   of the manifest
    manifest:      its JSON
    warnings:      what is odd about the image, one line each
    """

    metadata: GadgetMetadata
    metadata_text: bytes
    ebpf: bytes | None
    wasm: bytes | None
    btfs: bytes | None
    digest: str
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    manifest: bytes = b""
    config_digest: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def created(self) -> str:
        """When it was built, RFC 3339."""
        return self.annotations.get(CREATED, "")

    @property
    def builder_version(self) -> str:
        """The version of what built it, "" if it does not say."""
        return self.annotations.get(BUILDER_VERSION, "")


# ---------------------------------------------------------------------------------------------- unpack


def unpack(content: Content, image: Descriptor | str, architecture: str) -> GadgetImage:
    """Read what an image holds for one architecture, every blob verified.

    image:        its descriptor, digest or full name
    architecture: as Go names it (amd64, arm64)

    NotFoundError: a blob is not there. ImageError: it is no gadget, not for this architecture, or damaged.
    """
    root = content.resolve(image) if isinstance(image, str) else image
    descriptor = manifest_for(content, root, architecture)
    data = content.read(descriptor)
    manifest = Manifest.parse(data)
    warnings: list[str] = []
    found: dict[str, bytes] = {}
    for layer in manifest.layers:
        if layer.media_type not in (EBPF, WASM, BTFGEN):
            warnings.append(f'no operator found for media type "{layer.media_type}", skipping layer')
        elif layer.media_type in found:
            warnings.append(f'more than one layer of media type "{layer.media_type}", skipping all but the first')
        else:
            found[layer.media_type] = content.read(layer)
    text = read_config(content, manifest.config)
    metadata = remembered(GadgetMetadata, (text,), lambda: GadgetMetadata.parse(text, strict=False))
    return GadgetImage(
        metadata,
        text,
        found.get(EBPF),
        found.get(WASM),
        found.get(BTFGEN),
        root.digest,
        manifest.annotations,
        data,
        manifest.config.digest,
        (*warnings, *metadata.warnings),
    )


def manifest_for(content: Content, root: Descriptor, architecture: str) -> Descriptor:
    """The manifest for one architecture. A manifest that stands alone is for every one."""
    if root.media_type in MANIFESTS:
        return root
    if root.media_type not in INDEXES:
        raise ImageError(f'image "{root.digest}" is not an image index', hint=f"it is {root.media_type or 'untyped'}")
    index = Index.parse(content.read(root))
    for one in index.manifests:
        if one.platform and one.platform.architecture == architecture:
            if one.media_type not in MANIFESTS:
                raise ImageError(f"the entry for {architecture} of image {root.digest} is no manifest")
            return one
    there = sorted({one.platform.architecture for one in index.manifests if one.platform})
    raise ImageError(
        f'no manifest found for architecture "{architecture}"',
        hint=f"the image has: {', '.join(there)}" if there else "the image is for no architecture",
    )


def read_config(content: Content, config: Descriptor) -> bytes:
    """gadget.yaml of an image, b"" if it has none."""
    if config.media_type == EMPTY:
        return b""
    text = content.read(config)
    if config.media_type != CONFIG and not text.strip().startswith(b"{}"):
        raise ImageError(f"this image is no gadget: its config is {config.media_type or 'untyped'}")
    return b"" if text.strip() == b"{}" else text


# ---------------------------------------------------------------------------------------------- pack


def pack(
    content: Content,
    metadata: bytes | None,
    objects: Mapping[str, Objects],
    *,
    created: str,
    builder_version: str,
) -> Descriptor:
    """Write an image and return the descriptor of its index, which is not tagged yet.

    metadata: gadget.yaml as it stands, None if there is none
    objects:  architecture (amd64, arm64) -> what it holds for it
    created:  RFC 3339

    ImageError: there is nothing to pack.
    """
    if metadata is None and not any(one.ebpf or one.wasm for one in objects.values()):
        raise ImageError("gadget contains no layers")
    annotations = annotations_for(metadata, created, builder_version)
    config = content.write(CONFIG, metadata) if metadata is not None else content.write(EMPTY, b"{}")
    manifests = []
    for architecture in sorted(objects):
        one = objects[architecture]
        parts = ((EBPF, one.ebpf), (WASM, one.wasm), (BTFGEN, one.btfs))
        layers = tuple(content.write(media_type, data) for media_type, data in parts if data is not None)
        manifest = Manifest(config.with_annotations(annotations), layers, annotations, ARTIFACT)
        written = content.write(MANIFEST, manifest.to_bytes(), annotations)
        manifests.append(
            Descriptor(MANIFEST, written.digest, written.size, annotations, Platform(architecture), ARTIFACT)
        )
    return content.write(INDEX, Index(tuple(manifests), annotations).to_bytes(), annotations)


def annotations_for(metadata: bytes | None, created: str, builder_version: str) -> dict[str, str]:
    """What the image says about itself."""
    if metadata is None:
        return {CREATED: created}
    said = GadgetMetadata.parse(metadata, strict=False)
    prefix = TITLE.removesuffix("title")
    texts = {
        TITLE: said.name,
        f"{prefix}description": said.description,
        f"{prefix}url": said.homepage_url,
        f"{prefix}documentation": said.documentation_url,
        f"{prefix}source": said.source_url,
    }
    known = {key: text for key, text in texts.items() if text}
    return {**known, CREATED: created, BUILDER_VERSION: builder_version, **said.annotations}
