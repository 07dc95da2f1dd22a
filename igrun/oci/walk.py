"""Everything that an image consists of, found without trusting what its manifests say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from igrun.errors import ImageError
from igrun.oci.model import INDEXES, MANIFESTS, Content, Descriptor, Index, Manifest, parsed, text

DEEPEST = 8  # indexes in indexes
MOST_MANIFESTS = 1_000
MOST_BLOBS = 20_000
LARGEST_MANIFESTS = 64 << 20  # bytes of all of them, which are held in memory
LARGEST_IMAGE = 16 << 30  # bytes of all blobs


class Node(NamedTuple):
    """A manifest or an index. below: what it is made of; subject: digest of the image that it is about, "" if none;
    kind: its artifact type."""

    descriptor: Descriptor
    data: bytes
    below: tuple[Descriptor, ...]
    subject: str
    annotations: Mapping[str, str]
    kind: str


class Graph:
    """What one image and others consist of, read from one place.

    nodes: digest -> manifest or index, children before parents
    blobs: digest -> config or layer
    """

    def __init__(self, content: Content) -> None:
        self._content = content
        self.nodes: dict[str, Node] = {}
        self.blobs: dict[str, Descriptor] = {}
        self._bytes = self._announced = 0

    def add(self, root: Descriptor) -> None:
        """Add an image and all below it; nothing if that fails.

        NotFoundError: a manifest is not there. ImageError: it is not what was said, or all that is too much.
        """
        nodes, blobs, size, announced = dict(self.nodes), dict(self.blobs), self._bytes, self._announced
        try:
            self._add(root, ())
        except BaseException:
            self.nodes, self.blobs, self._bytes, self._announced = nodes, blobs, size, announced
            raise

    def _add(self, descriptor: Descriptor, above: tuple[str, ...]) -> None:
        digest = descriptor.digest
        if digest in above:
            raise ImageError(f"image index {digest} contains itself")
        if len(above) > DEEPEST:
            raise ImageError(f"image {above[0]} has indexes in indexes, more than {DEEPEST} deep")
        if known := self.nodes.get(digest):
            agree(known.descriptor, descriptor)
            return
        if len(self.nodes) + len(above) >= MOST_MANIFESTS:
            raise ImageError(f"image {(*above, digest)[0]} has more than {MOST_MANIFESTS} manifests")
        self._bytes += descriptor.size
        if self._bytes > LARGEST_MANIFESTS:
            raise ImageError(f"the manifests of image {(*above, digest)[0]} are larger than 64 MiB together")
        if digest in self.blobs:
            raise ImageError(f"{digest} is said to be a manifest and a layer")
        node = read_node(self._content, descriptor)
        for one in node.below:
            if descriptor.media_type in INDEXES:
                self._add(one, (*above, digest))
            else:
                self._blob(one)
        self.nodes[digest] = node

    def _blob(self, descriptor: Descriptor) -> None:
        if descriptor.media_type in INDEXES or descriptor.media_type in MANIFESTS:
            raise ImageError(f"{descriptor.digest} is said to be a manifest, but it is listed as a layer")
        if known := self.blobs.get(descriptor.digest):
            agree(known, descriptor)
            return
        if descriptor.digest in self.nodes:
            raise ImageError(f"{descriptor.digest} is said to be a manifest and a layer")
        self._announced += descriptor.size
        if self._announced > LARGEST_IMAGE:
            raise ImageError(f"the layers are larger than {LARGEST_IMAGE >> 30} GiB together")
        if len(self.blobs) >= MOST_BLOBS:
            raise ImageError(f"there are more than {MOST_BLOBS} layers")
        self.blobs[descriptor.digest] = descriptor

    def below(self, roots: Iterable[Descriptor]) -> Graph:
        """The part of it that these images consist of."""
        part = Graph(self._content)
        wanted: set[str] = set()
        waiting = [root.digest for root in roots]
        while waiting:
            digest = waiting.pop()
            if digest in self.nodes and digest not in wanted:
                waiting.extend(one.digest for one in self.nodes[digest].below)
                part.blobs.update((one.digest, one) for one in self.nodes[digest].below if one.digest not in self.nodes)
                wanted.add(digest)
        part.nodes = {digest: node for digest, node in self.nodes.items() if digest in wanted}
        return part


def graph(content: Content, root: Descriptor) -> Graph:
    """What an image consists of. NotFoundError, ImageError as in `Graph.add`."""
    found = Graph(content)
    found.add(root)
    return found


def agree(one: Descriptor, other: Descriptor) -> None:
    """ImageError: what is said about one blob in two places differs."""
    if one.size != other.size:
        raise ImageError(f"{one.digest} is said to have {one.size} bytes, and {other.size} elsewhere")
    both = {one.media_type, other.media_type}
    if len(both) > 1 and both & (INDEXES | MANIFESTS):
        raise ImageError(f"{one.digest} is said to be {one.media_type}, and {other.media_type} elsewhere")


def read_node(content: Content, descriptor: Descriptor) -> Node:
    """Read a manifest or an index and see whether it is what its descriptor says."""
    what, kind = descriptor.digest, descriptor.media_type
    if kind not in INDEXES and kind not in MANIFESTS:
        raise ImageError(f"{what} is no image: its media type is {kind[:100]!r}")
    data = content.read(descriptor)
    members = parsed(data, what)
    said = members.get("mediaType")
    if said is not None and said != kind:
        raise ImageError(f"{what} says it is {str(said)[:100]!r}, but it is listed as {kind!r}")
    foreign = ("config", "layers") if kind in INDEXES else ("manifests",)
    for member in foreign:
        if member in members:
            raise ImageError(f"{what} is listed as {kind!r}, but it has {member!r}")
    if kind in INDEXES:
        index = Index.parse(data)
        about = index.subject.digest if index.subject else ""
        return Node(
            descriptor, data, index.manifests, about, index.annotations, text(members, "artifactType", what, "")
        )
    manifest = Manifest.parse(data)
    about = manifest.subject.digest if manifest.subject else ""
    artifact = manifest.artifact_type or manifest.config.media_type
    return Node(descriptor, data, (manifest.config, *manifest.layers), about, manifest.annotations, artifact)
