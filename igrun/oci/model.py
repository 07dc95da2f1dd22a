"""The words of the OCI image specification: references, descriptors, manifests, indexes. No I/O."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol, Self

from igrun.dataclass import dataclass, field, replace
from igrun.digests import sha256
from igrun.errors import ImageError, InvalidReferenceError
from igrun.regex import regex

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
EMPTY = "application/vnd.oci.empty.v1+json"
INDEXES = frozenset((INDEX, "application/vnd.docker.distribution.manifest.list.v2+json"))
MANIFESTS = frozenset((MANIFEST, "application/vnd.docker.distribution.manifest.v2+json"))

REF_NAME = "org.opencontainers.image.ref.name"
CREATED = "org.opencontainers.image.created"
TITLE = "org.opencontainers.image.title"

LARGEST_MANIFEST = 4 << 20
LARGEST_LAYER = 256 << 20
MOST_ENTRIES = 10_000

DIGEST = regex(r"sha256:[0-9a-f]{64}")

# ---------------------------------------------------------------------------------------------- references

DEFAULT_REGISTRY = "ghcr.io"
DEFAULT_PREFIX = "inspektor-gadget/gadget/"
COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
HOST = regex(rf"(?:{LABEL}(?:\.{LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?")
REPOSITORY = regex(rf"{COMPONENT}(?:/{COMPONENT})*")
TAG = regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
LONGEST_NAME = 255


@dataclass(frozen=True, slots=True)
class Reference:
    """The full name of an image. `str()` is its key in stores and registries; tag or digest may be "", not both."""

    registry: str
    repository: str
    tag: str = ""
    digest: str = ""

    @classmethod
    def parse(cls, text: str, default_registry: str = DEFAULT_REGISTRY, default_prefix: str = DEFAULT_PREFIX) -> Self:
        """Read a name as people write it. InvalidReferenceError: it cannot be one.

        default_registry: for a name without a host
        default_prefix:   for a name of that registry without a folder
        """
        first, slash, rest = text.partition("/")
        if slash and ("." in first or ":" in first or first == "localhost" or first.lower() != first):
            registry, path = first, rest
        else:
            registry, path = default_registry, text
        path, at, digest = path.partition("@")
        folder, slash, last = path.rpartition("/")
        last, colon, tag = last.partition(":")
        repository = f"{folder}{slash}{last}"
        if registry == "index.docker.io":
            registry = "docker.io"
        if "/" not in repository:
            if registry == default_registry:
                repository = default_prefix + repository
            elif registry == "docker.io":
                repository = f"library/{repository}"
        problem = ""
        if not HOST.fullmatch(registry):
            problem = f"{registry!r} is no registry host"
        elif re.fullmatch(r"[0-9a-f]{64}", text):
            problem = "64 hexadecimal digits are no name"
        elif not REPOSITORY.fullmatch(repository):
            lower = repository.lower()
            problem = (
                "the name must be in lower case" if REPOSITORY.fullmatch(lower) else "the name has wrong characters"
            )
        elif len(registry) + 1 + len(repository) > LONGEST_NAME:
            problem = f"the name is longer than {LONGEST_NAME} characters"
        elif colon and not TAG.fullmatch(tag):
            problem = f"{tag!r} is no tag"
        elif at and not DIGEST.fullmatch(digest):
            problem = f"{digest!r} is no digest, which is sha256: and 64 hexadecimal digits"
        if problem:
            raise InvalidReferenceError(
                f"invalid reference format: {text!r}: {problem}",
                hint="an image is called [registry/]name[:tag][@sha256:digest]",
            )
        return cls(registry, repository, tag if tag or digest else "latest", digest)

    @property
    def name(self) -> str:
        """Registry and repository."""
        return f"{self.registry}/{self.repository}"

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.name}{tag}@{self.digest}" if self.digest else f"{self.name}{tag}"


# ---------------------------------------------------------------------------------------------- descriptors

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Platform:
    """What an image of an index is for. architecture: as Go names it (amd64, arm64)."""

    architecture: str
    os: str = "linux"


@dataclass(frozen=True, slots=True)
class Descriptor:
    """Names a blob: what it is, its digest and its size in bytes."""

    media_type: str
    digest: str
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    platform: Platform | None = None
    artifact_type: str = ""

    @classmethod
    def of(cls, media_type: str, data: bytes, **more: Any) -> Self:
        """The descriptor of these bytes."""
        return cls(media_type, f"sha256:{sha256(data).hexdigest()}", len(data), **more)

    @classmethod
    def read(cls, value: Any, where: str = "descriptor") -> Self:
        """From parsed JSON. ImageError: a member is missing or wrong."""
        entry = mapping(value, where)
        digest = text(entry, "digest", where)
        if not DIGEST.fullmatch(digest):
            raise ImageError(f"{where}: {digest[:100]!r} is no sha256 digest")
        size = entry.get("size")
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 1 << 62:
            raise ImageError(f"{where}: wrong size of {digest}")
        platform = entry.get("platform")
        if platform is not None:
            platform = mapping(platform, where)
            platform = Platform(text(platform, "architecture", where, ""), text(platform, "os", where, ""))
        return cls(
            text(entry, "mediaType", where, ""),
            digest,
            size,
            annotations_of(entry, where),
            platform,
            text(entry, "artifactType", where, ""),
        )

    def json(self) -> Json:
        """As parsed JSON, members in the usual order."""
        members: Json = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        if self.annotations:
            members["annotations"] = dict(sorted(self.annotations.items()))
        if self.platform:
            members["platform"] = {"architecture": self.platform.architecture, "os": self.platform.os}
        if self.artifact_type:
            members["artifactType"] = self.artifact_type
        return members

    def with_annotations(self, more: Mapping[str, str]) -> Self:
        """The same descriptor with these annotations over its own."""
        return replace(self, annotations={**self.annotations, **more})


@dataclass(frozen=True, slots=True)
class Manifest:
    """One image: its config and its layers."""

    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    artifact_type: str = ""
    subject: Descriptor | None = None

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read a manifest. ImageError: it is none."""
        entry = parsed(data, "manifest")
        if "config" not in entry:
            raise ImageError("manifest: has no config")
        layers = entry.get("layers") or []
        if not isinstance(layers, list) or len(layers) > MOST_ENTRIES:
            raise ImageError("manifest: wrong layers")
        return cls(
            Descriptor.read(entry["config"], "manifest config"),
            tuple(Descriptor.read(layer, "manifest layer") for layer in layers),
            annotations_of(entry, "manifest"),
            text(entry, "artifactType", "manifest", ""),
            subject(entry, "manifest"),
        )

    def to_bytes(self) -> bytes:
        """As it is stored: no member `mediaType`, as the ecosystem writes it."""
        members: Json = {"schemaVersion": 2}
        if self.artifact_type:
            members["artifactType"] = self.artifact_type
        members["config"] = self.config.json()
        members["layers"] = [layer.json() for layer in self.layers]
        if self.subject:
            members["subject"] = self.subject.json()
        if self.annotations:
            members["annotations"] = dict(sorted(self.annotations.items()))
        return dumped(members)


@dataclass(frozen=True, slots=True)
class Index:
    """Several images, by platform."""

    manifests: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    subject: Descriptor | None = None

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read an index. ImageError: it is none."""
        entry = parsed(data, "image index")
        manifests = entry.get("manifests")
        if not isinstance(manifests, list) or len(manifests) > MOST_ENTRIES:
            raise ImageError("image index: wrong manifests")
        return cls(
            tuple(Descriptor.read(one, "image index") for one in manifests),
            annotations_of(entry, "image index"),
            subject(entry, "image index"),
        )

    def to_bytes(self) -> bytes:
        """As it is stored."""
        members: Json = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [one.json() for one in self.manifests]}
        if self.annotations:
            members["annotations"] = dict(sorted(self.annotations.items()))
        return dumped(members)


class Referrer(NamedTuple):
    """What is about an image: a signature, an SBOM, an attestation.

    tag: where it is found by a name made of the image's digest alone (cosign's `sha256-<hex>.sig`); "" for a manifest
         that names its subject
    """

    descriptor: Descriptor
    tag: str = ""


Stream = Callable[[int], Iterator[bytes]]
"""The bytes of a blob from that offset on, in chunks, not verified yet. May be called again to go on after a break."""


class Content(Protocol):
    """A place that holds images: the local store, a repository of a registry, an archive."""

    def resolve(self, ref: Reference | str) -> Descriptor:
        """What a name or digest stands for. NotFoundError: nothing."""
        ...

    def read(self, descriptor: Descriptor) -> bytes:
        """The bytes of a blob, verified. NotFoundError: it is not there. ImageError: it is damaged."""
        ...

    def has(self, descriptor: Descriptor) -> bool:
        """Whether a blob or manifest is there and need not be sent."""
        ...

    def stream(self, descriptor: Descriptor, start: int = 0) -> Iterator[bytes]:
        """The bytes of a blob from an offset on, in chunks; who takes them verifies. NotFoundError: it is not there."""
        ...

    def write(self, media_type: str, data: bytes, annotations: Mapping[str, str] | None = None) -> Descriptor:
        """Put a blob there."""
        ...

    def receive(self, descriptor: Descriptor, stream: Stream) -> None:
        """Put a blob or manifest of any size there, in flat memory. ImageError: its bytes are not what it says."""
        ...

    def mount(self, descriptor: Descriptor, source: Content) -> bool:
        """Take a blob over from another place without its bytes passing through here. False: that cannot be done."""
        ...

    def tag(self, descriptor: Descriptor, ref: Reference | str) -> None:
        """Let a name stand for an image whose blobs are all there. A digest alone holds it without a name."""
        ...

    def referrers(self, subject: Descriptor) -> tuple[Referrer, ...]:
        """What is about an image, in a fixed order; () if nothing is."""
        ...

    def refer(self, subject: Descriptor, referrer: Referrer) -> None:
        """Let a referrer whose blobs and manifest are all there be found from its subject."""
        ...


# ---------------------------------------------------------------------------------------------- JSON


def dumped(members: Json) -> bytes:
    """JSON without blanks, UTF-8."""
    import json

    return json.dumps(members, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")


def parsed(data: bytes, where: str) -> Json:
    """A JSON object. ImageError: it is none."""
    import json

    if len(data) > LARGEST_MANIFEST:
        raise ImageError(f"{where}: larger than {LARGEST_MANIFEST >> 20} MiB")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ImageError(f"{where}: no JSON: {' '.join(str(error).split())[:200]}") from None
    return mapping(value, where)


def mapping(value: Any, where: str) -> Json:
    """A JSON object, else ImageError."""
    if not isinstance(value, dict):
        raise ImageError(f"{where}: not an object")
    return value


def text(entry: Json, member: str, where: str, default: str | None = None) -> str:
    """A text member, `default` where it is missing, else ImageError."""
    value = entry.get(member, default)
    value = default if value is None else value
    if not isinstance(value, str):
        raise ImageError(f"{where}: {'no' if value is None else 'wrong'} {member}")
    return value


def annotations_of(entry: Json, where: str) -> dict[str, str]:
    """The annotations of an object."""
    found = entry.get("annotations")
    if found is None:
        return {}
    if not all(isinstance(value, str) for value in mapping(found, f"{where}: annotations").values()):
        raise ImageError(f"{where}: an annotation is no text")
    return mapping(found, where)


def subject(entry: Json, where: str) -> Descriptor | None:
    """The image that an object is about."""
    found = entry.get("subject")
    return None if found is None else Descriptor.read(found, f"{where} subject")
