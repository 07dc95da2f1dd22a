"""Names of images, and the JSON of manifests and indexes."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igrun.errors import ImageError, InvalidReferenceError
from igrun.oci.model import INDEX, MANIFEST, Descriptor, Index, Manifest, Platform, Reference

DIGEST = "sha256:" + "0123456789abcdef" * 4
HOME = "ghcr.io/inspektor-gadget/gadget"


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("trace_open", f"{HOME}/trace_open:latest"),
        ("trace_open:v0.40.0", f"{HOME}/trace_open:v0.40.0"),
        (f"trace_open@{DIGEST}", f"{HOME}/trace_open@{DIGEST}"),
        (f"trace_open:v1@{DIGEST}", f"{HOME}/trace_open:v1@{DIGEST}"),
        ("foo/bar", "ghcr.io/foo/bar:latest"),
        ("ghcr.io/bar", f"{HOME}/bar:latest"),
        ("ghcr.io/foo/bar:1", "ghcr.io/foo/bar:1"),
        ("docker.io/me/g", "docker.io/me/g:latest"),
        ("docker.io/g", "docker.io/library/g:latest"),
        ("index.docker.io/me/g", "docker.io/me/g:latest"),
        ("localhost:5000/g", "localhost:5000/g:latest"),
        ("localhost/g", "localhost/g:latest"),
        ("localhost:5000/a/b/c:1.2_3-x", "localhost:5000/a/b/c:1.2_3-x"),
        ("[::1]:5000/g", "[::1]:5000/g:latest"),
        ("HOST/g", "HOST/g:latest"),
        ("my.registry/g", "my.registry/g:latest"),
        (f"localhost:5000/g@{DIGEST}", f"localhost:5000/g@{DIGEST}"),
    ],
)
def test_a_name_becomes_the_full_name(text, full):
    assert str(Reference.parse(text)) == full
    assert Reference.parse(full) == Reference.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "@",
        "a:",
        "a@",
        "a/",
        "/a",
        "a//b",
        "A",
        "foo/Bar",
        "a b",
        "a:b c",
        "-a",
        "a-",
        "a..b",
        "a@sha256:12",
        f"a@{DIGEST.upper()}",
        "a@md5:" + "0" * 32,
        "../a",
        "a/../b",
        "host:port/a",
        "a:" + "x" * 129,
        "a" * 256,
        "0123456789abcdef" * 4,
        "a\n",
        "a\x00",
        "é",
        "ghcr.io/",
        "http://ghcr.io/a/b",
        "a:b:c",
        f"a@{DIGEST}@{DIGEST}",
    ],
)
def test_what_is_no_name_is_an_error(text):
    with pytest.raises(InvalidReferenceError, match="invalid reference format"):
        Reference.parse(text)


def test_short_names_may_stand_for_another_registry():
    found = Reference.parse("trace_open", "registry.example.org", "gadgets/")

    assert str(found) == "registry.example.org/gadgets/trace_open:latest"


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=40) | st.from_regex(r"[a-zA-Z0-9./:@_-]{0,40}", fullmatch=True))
def test_a_name_is_an_error_or_survives(text):
    try:
        found = Reference.parse(text)
    except InvalidReferenceError as error:
        assert "\n" not in str(error)
    else:
        assert Reference.parse(str(found)) == found


# ---------------------------------------------------------------------------------------------- JSON


def descriptor(data: bytes = b"x", **more: object) -> Descriptor:
    return Descriptor.of("application/x", data, **more)


def test_a_manifest_is_written_as_the_ecosystem_writes_it():
    manifest = Manifest(descriptor(), (descriptor(b"y"),), {"b": "2", "a": "1"}, "application/vnd.gadget.v1+binary")

    members = json.loads(manifest.to_bytes())
    assert list(members) == ["schemaVersion", "artifactType", "config", "layers", "annotations"]
    assert members["schemaVersion"] == 2
    assert list(members["annotations"]) == ["a", "b"]
    assert Manifest.parse(manifest.to_bytes()) == manifest


def test_an_index_keeps_platforms_and_annotations():
    one = descriptor(annotations={"a": "é"}, platform=Platform("arm64"), artifact_type="application/y")
    index = Index((one,), {"a": "é"})

    members = json.loads(index.to_bytes())
    assert list(members) == ["schemaVersion", "mediaType", "manifests", "annotations"]
    assert members["mediaType"] == INDEX
    assert members["manifests"][0]["platform"] == {"architecture": "arm64", "os": "linux"}
    assert Index.parse(index.to_bytes()) == index


GOOD = {"mediaType": MANIFEST, "digest": DIGEST, "size": 1}


@pytest.mark.parametrize(
    "wrong",
    [
        {**GOOD, "digest": "sha256:../../../etc/passwd"},
        {**GOOD, "digest": DIGEST + "/x"},
        {**GOOD, "digest": DIGEST.upper()},
        {**GOOD, "digest": None},
        {**GOOD, "size": -1},
        {**GOOD, "size": "1"},
        {**GOOD, "size": True},
        {**GOOD, "size": 10**30},
        {**GOOD, "annotations": {"a": 1}},
        {**GOOD, "annotations": []},
        {**GOOD, "platform": "amd64"},
        {**GOOD, "mediaType": 3},
        [],
        None,
    ],
)
def test_a_wrong_descriptor_is_an_error(wrong):
    for kind, member in ((Index, {"manifests": [wrong]}), (Manifest, {"config": wrong, "layers": []})):
        with pytest.raises(ImageError) as caught:
            kind.parse(json.dumps(member).encode())
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff", b"[" * 200_000, b'{"manifests": {}}', b" " * (5 << 20)])
def test_what_is_no_index_or_manifest_is_an_error(data):
    for kind in (Index, Manifest):
        with pytest.raises(ImageError):
            kind.parse(data)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.sampled_from([DIGEST, MANIFEST, GOOD]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(sorted(GOOD)), inner),
    max_leaves=6,
)
MEMBERS = ["schemaVersion", "mediaType", "config", "layers", "manifests", "annotations", "subject", "artifactType"]


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60) | st.dictionaries(st.sampled_from(MEMBERS), VALUES).map(lambda x: json.dumps(x).encode()))
def test_parsing_raises_nothing_but_an_image_error(data):
    for kind in (Index, Manifest):
        try:
            found = kind.parse(data)
        except ImageError as error:
            assert "\n" not in str(error)
        else:
            if not found.subject:
                assert kind.parse(found.to_bytes()) == found
