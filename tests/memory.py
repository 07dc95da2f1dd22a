"""A place for images in memory, to test what works on any."""

from collections.abc import Iterator, Mapping

from igrun.errors import ImageError, NotFoundError
from igrun.oci.model import INDEX, MANIFEST, Content, Descriptor, Index, Manifest, Reference, Referrer, Stream


class Memory:
    """Blobs, names and referrers in dictionaries. read_blobs: digests that were read"""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.names: dict[str, Descriptor] = {}
        self.about: dict[str, list[Referrer]] = {}
        self.read_blobs: list[str] = []

    def resolve(self, ref: Reference | str) -> Descriptor:
        try:
            return self.names[str(ref)]
        except KeyError:
            raise NotFoundError(f"{ref} not found") from None

    def read(self, descriptor: Descriptor) -> bytes:
        self.read_blobs.append(descriptor.digest)
        if descriptor.digest not in self.blobs:
            raise NotFoundError(f"{descriptor.digest} not found")
        data = self.blobs[descriptor.digest]
        if Descriptor.of("", data).digest != descriptor.digest or len(data) != descriptor.size:
            raise ImageError(f"blob {descriptor.digest} is damaged")
        return data

    def has(self, descriptor: Descriptor) -> bool:
        return descriptor.digest in self.blobs

    def stream(self, descriptor: Descriptor, start: int = 0) -> Iterator[bytes]:
        yield self.read(descriptor)[start:]

    def write(self, media_type: str, data: bytes, annotations: Mapping[str, str] | None = None) -> Descriptor:
        descriptor = Descriptor.of(media_type, data, annotations=dict(annotations or {}))
        self.blobs[descriptor.digest] = data
        return descriptor

    def receive(self, descriptor: Descriptor, stream: Stream) -> None:
        self.blobs[descriptor.digest] = b"".join(stream(0))

    def mount(self, descriptor: Descriptor, source: Content) -> bool:
        return False

    def tag(self, descriptor: Descriptor, ref: Reference | str) -> None:
        self.names[str(ref)] = descriptor

    def referrers(self, subject: Descriptor) -> tuple[Referrer, ...]:
        return tuple(self.about.get(subject.digest, ()))

    def refer(self, subject: Descriptor, referrer: Referrer) -> None:
        there = self.about.setdefault(subject.digest, [])
        there[:] = [one for one in there if not (referrer.tag and one.tag == referrer.tag)]
        there.append(referrer)

    def image(self, layer: bytes = b"layer") -> Descriptor:
        """An index of one manifest."""
        written = self.write("application/layer", layer)
        manifest = Manifest(self.write("application/config", b"name: x"), (written,))
        return self.write(INDEX, Index((self.write(MANIFEST, manifest.to_bytes()),)).to_bytes())
