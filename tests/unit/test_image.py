"""Gadgets as OCI images: what is packed comes out again, for the right architecture."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igrun.errors import GadgetError, ImageError, NotFoundError
from igrun.image import (
    ARTIFACT,
    BTFGEN,
    BUILDER_VERSION,
    CONFIG,
    EBPF,
    WASM,
    Objects,
    pack,
    unpack,
)
from igrun.metadata import GadgetMetadata
from igrun.oci.model import (
    CREATED,
    EMPTY,
    INDEX,
    MANIFEST,
    TITLE,
    Descriptor,
    Index,
    Manifest,
    Platform,
)
from igrun.oci.store import Store

YAML = b"""
name: trace_x
description: Trace x
sourceURL: https://example.org/src
annotations:
  io.example.Team: 7
  org.opencontainers.image.source: https://example.org/other
"""
BOTH = {"amd64": Objects(b"elf amd64", b"wasm", b"btfs amd64"), "arm64": Objects(b"elf arm64", b"wasm", b"btfs arm64")}
WHEN = "2026-01-02T03:04:05Z"


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "store") as opened:
        yield opened


def packed(store: Store, metadata: bytes | None = YAML, objects: dict[str, Objects] = BOTH) -> Descriptor:
    return pack(store, metadata, objects, created=WHEN, builder_version="0.1.0")


def raw(store: Store, digest: str) -> dict:
    return json.loads((store.root / "blobs/sha256" / digest[7:]).read_bytes())


def by_hand(
    store: Store, *layers: Descriptor, config: Descriptor | None = None, architecture: str = "amd64"
) -> Descriptor:
    manifest = Manifest(config or store.write(CONFIG, YAML), layers)
    one = store.write(MANIFEST, manifest.to_bytes())
    listed = Descriptor(MANIFEST, one.digest, one.size, platform=Platform(architecture))
    return store.write(INDEX, Index((listed,)).to_bytes())


@pytest.mark.parametrize("architecture", ["amd64", "arm64"])
def test_what_is_packed_comes_out_for_its_architecture(store, architecture):
    descriptor = packed(store)
    image = unpack(store, descriptor, architecture)

    assert image.ebpf == f"elf {architecture}".encode()
    assert image.btfs == f"btfs {architecture}".encode()
    assert (image.wasm, image.metadata_text, image.digest) == (b"wasm", YAML, descriptor.digest)
    assert image.metadata.name == "trace_x"
    assert (image.created, image.builder_version, image.warnings) == (WHEN, "0.1.0", ())


def test_an_image_unpacks_by_name_and_by_digest(store):
    descriptor = packed(store)
    store.tag(descriptor, "ghcr.io/a/b:1")

    assert unpack(store, "ghcr.io/a/b:1", "amd64") == unpack(store, descriptor, "amd64")
    assert unpack(store, descriptor.digest, "amd64") == unpack(store, descriptor, "amd64")
    with pytest.raises(NotFoundError):
        unpack(store, "ghcr.io/a/c:1", "amd64")


def test_the_index_and_its_manifests_have_the_ecosystems_shape(store):
    descriptor = packed(store)
    index = raw(store, descriptor.digest)

    said = {
        TITLE: "trace_x",
        "org.opencontainers.image.description": "Trace x",
        "org.opencontainers.image.source": "https://example.org/other",
        CREATED: WHEN,
        BUILDER_VERSION: "0.1.0",
        "io.example.Team": "7",
    }
    assert descriptor.media_type == INDEX
    assert index["schemaVersion"] == 2
    assert index["annotations"] == said
    assert [one["platform"] for one in index["manifests"]] == [
        {"architecture": "amd64", "os": "linux"},
        {"architecture": "arm64", "os": "linux"},
    ]
    for one in index["manifests"]:
        assert (one["mediaType"], one["artifactType"], one["annotations"]) == (MANIFEST, ARTIFACT, said)
        manifest = raw(store, one["digest"])
        assert list(manifest) == ["schemaVersion", "artifactType", "config", "layers", "annotations"]
        assert manifest["artifactType"] == ARTIFACT
        assert manifest["annotations"] == manifest["config"]["annotations"] == said
        assert manifest["config"]["mediaType"] == CONFIG
        assert [layer["mediaType"] for layer in manifest["layers"]] == [EBPF, WASM, BTFGEN]


def test_every_descriptor_of_the_layout_has_the_right_digest_and_size(store):
    store.tag(packed(store), "ghcr.io/a/b:1")
    waiting = list(json.loads((store.root / "index.json").read_bytes())["manifests"])
    seen = 0
    while waiting:
        one = waiting.pop()
        data = (store.root / "blobs/sha256" / one["digest"][7:]).read_bytes()
        assert (Descriptor.of("", data).digest, len(data)) == (one["digest"], one["size"])
        seen += 1
        if one["mediaType"] in (INDEX, MANIFEST):
            inner = json.loads(data)
            waiting += [*inner.get("manifests", []), *inner.get("layers", [])]
            waiting += [inner["config"]] if "config" in inner else []

    assert seen == 1 + 2 + 2 * 4


def test_the_same_parts_give_the_same_digest(store, tmp_path):
    with Store.open(tmp_path / "other") as other:
        assert packed(store) == packed(other)


def test_an_image_may_hold_only_metadata(store):
    image = unpack(store, packed(store, objects={"amd64": Objects(), "arm64": Objects()}), "arm64")

    assert (image.ebpf, image.wasm, image.btfs, image.metadata.name) == (None, None, None, "trace_x")


def test_an_image_may_lack_metadata(store):
    descriptor = packed(store, metadata=None)
    image = unpack(store, descriptor, "amd64")

    assert (image.metadata, image.metadata_text) == (GadgetMetadata(), b"")
    assert image.annotations == {CREATED: WHEN}
    config = raw(store, raw(store, descriptor.digest)["manifests"][0]["digest"])["config"]
    assert (config["mediaType"], config["size"]) == (EMPTY, 2)


def test_nothing_at_all_is_no_image(store):
    with pytest.raises(ImageError, match="gadget contains no layers"):
        packed(store, metadata=None, objects={"amd64": Objects(btfs=b"x")})


def test_a_missing_architecture_is_an_error_that_names_the_others(store):
    descriptor = packed(store, objects={"amd64": Objects(b"elf")})

    with pytest.raises(ImageError, match=r'^no manifest found for architecture "arm64"$') as caught:
        unpack(store, descriptor, "arm64")
    assert caught.value.hint == "the image has: amd64"


def test_a_plain_manifest_is_for_every_architecture(store):
    inner = Index.parse(store.read(packed(store))).manifests[0]

    assert unpack(store, inner, "arm64").ebpf == b"elf amd64"


def test_an_unknown_layer_is_a_warning(store):
    descriptor = by_hand(
        store, store.write("application/x", b"x"), store.write(EBPF, b"elf"), store.write(EBPF, b"elf 2")
    )
    image = unpack(store, descriptor, "amd64")

    assert image.ebpf == b"elf"
    assert image.warnings == (
        'no operator found for media type "application/x", skipping layer',
        f'more than one layer of media type "{EBPF}", skipping all but the first',
    )


def test_what_is_wrong_in_gadget_yaml_is_a_warning(store):
    descriptor = packed(store, metadata=b"nmae: x")

    assert unpack(store, descriptor, "amd64").warnings == (
        "gadget.yaml: top level: unknown key 'nmae' (did you mean name?)",
    )


def test_an_image_of_another_kind_is_an_error(store):
    config = store.write("application/vnd.docker.container.image.v1+json", b'{"os": "linux"}')

    with pytest.raises(ImageError, match="this image is no gadget"):
        unpack(store, by_hand(store, config=config), "amd64")
    with pytest.raises(ImageError, match=r'image "sha256:\w+" is not an image index'):
        unpack(store, store.write("application/x", b"x"), "amd64")


def test_a_missing_or_damaged_layer_is_an_error(store):
    descriptor = packed(store)
    layer = store.root / "blobs/sha256" / Descriptor.of(EBPF, b"elf amd64").digest[7:]
    layer.write_bytes(b"elf amd65")
    with pytest.raises(ImageError, match="is damaged"):
        unpack(store, descriptor, "amd64")
    assert unpack(store, descriptor, "arm64").ebpf == b"elf arm64"
    layer.unlink()
    with pytest.raises(NotFoundError):
        unpack(store, descriptor, "amd64")


class Held:
    """Content that gives one text for whatever is asked."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def read(self, descriptor: Descriptor) -> bytes:
        return self.data


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=80) | st.text('{}[]":,schemaVersionlayersconfigdigest0123456789', max_size=60).map(str.encode)
)
def test_unpacking_raises_nothing_but_a_gadget_error(data):
    for media_type in (INDEX, MANIFEST):
        with pytest.raises(GadgetError):
            unpack(Held(data), Descriptor.of(media_type, data), "amd64")
