"""Archives of images: round trips, reproducible bytes, and what other tools write."""

import gzip
import json
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from igrun.errors import ImageError, NotFoundError, RegistryError
from igrun.oci.archive import Archive, restore
from igrun.oci.copy import copy
from igrun.oci.export import export
from igrun.oci.model import CREATED, INDEX, MANIFEST, REF_NAME, Descriptor, Index, Manifest
from igrun.oci.store import Store
from tests.images import NAME, Meter, about, blobs, image, legacy


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def other(tmp_path):
    with Store.open(tmp_path / "other") as opened:
        yield opened


def built(store: Store, layer: bytes, name: str, created: str = "2024-05-06T07:08:09Z") -> Descriptor:
    """An image that says when it was built."""
    annotations = {CREATED: created}
    manifest = Manifest(store.write("a/config", b"name: x"), (store.write("a/layer", layer),), annotations)
    one = store.write(MANIFEST, manifest.to_bytes())
    root = store.write(INDEX, Index((one,), annotations).to_bytes())
    store.tag(root, name)
    return root


def layout(folder: Path, *entries: dict, blobs: tuple[bytes, ...] = ()) -> Path:
    """A layout as other tools write it."""
    (folder / "blobs/sha256").mkdir(parents=True)
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": entries}))
    for data in blobs:
        (folder / "blobs/sha256" / Descriptor.of("", data).digest[7:]).write_bytes(data)
    return folder


def foreign(folder: Path, annotations: dict[str, str]) -> tuple[Path, Descriptor]:
    """A layout of one manifest."""
    config, layer = b"{}", b"layer"
    manifest = Manifest(Descriptor.of("a/config", config), (Descriptor.of("a/layer", layer),)).to_bytes()
    root = Descriptor.of(
        MANIFEST, manifest, annotations={key.replace("_", "."): annotations[key] for key in annotations}
    )
    return layout(folder, root.json(), blobs=(config, layer, manifest)), root


# ---------------------------------------------------------------------------------------------- round trips


def test_what_is_exported_is_imported_with_equal_digests(store, other, tmp_path):
    root = image(store, b"one", b"two" * 1_000_000)
    about(store, root)
    about(store, about(store, root, b"sbom", "application/spdx+json"), b"of the sbom")
    legacy(store, root)
    second = built(store, b"three", "ghcr.io/a/b:1")
    written = export(store, [NAME, "ghcr.io/a/b:1"], tmp_path / "x.tar")
    with Archive.open(tmp_path / "x.tar") as archive:
        found = restore(archive, other)

    assert [one.name for one in found] == [one.name for one in written] == ["ghcr.io/a/b:1", NAME]
    assert other.resolve(NAME).digest == root.digest
    assert other.resolve("ghcr.io/a/b:1").digest == second.digest
    assert other.resolve("ghcr.io/a/b:1").annotations[CREATED] == "2024-05-06T07:08:09Z"
    assert other.referrers(root) == store.referrers(root)
    assert len(other.referrers(root)) == 3
    assert blobs(other) == blobs(store)
    export(other, ["ghcr.io/a/b:1", NAME], tmp_path / "y.tar")
    assert (tmp_path / "x.tar").read_bytes() == (tmp_path / "y.tar").read_bytes()


def test_an_archive_is_a_layout_of_regular_files_that_nobody_owns(store, tmp_path):
    first = image(store, b"undated")
    store.tag(first, "ghcr.io/a/b:1")
    root = built(store, b"one", NAME)
    export(store, [NAME, "ghcr.io/a/b:1"], tmp_path / "x.tar")

    with tarfile.open(tmp_path / "x.tar") as tar:
        members = {member.name: member for member in tar}
        index = json.load(tar.extractfile("index.json"))
    assert [one["digest"] for one in index["manifests"]] == sorted((root.digest, first.digest))
    assert {member.type for member in members.values()} == {tarfile.REGTYPE}
    assert {(member.uid, member.gid, member.uname, member.gname) for member in members.values()} == {(0, 0, "", "")}
    assert list(members) == sorted(members)
    assert {name: oct(member.mode) for name, member in members.items() if "/" not in name} == {
        "index.json": "0o600",
        "oci-layout": "0o644",
    }
    assert members["index.json"].mtime == members[f"blobs/sha256/{root.digest[7:]}"].mtime == 1714979289
    assert members[f"blobs/sha256/{first.digest[7:]}"].mtime == 0


def test_an_export_needs_every_image(store, tmp_path):
    image(store, b"one")
    (tmp_path / "x.tar").write_bytes(b"before")
    with pytest.raises(NotFoundError):
        export(store, [NAME, "ghcr.io/a/none:1"], tmp_path / "x.tar")
    (store.root / "blobs/sha256" / Descriptor.of("", b"one").digest[7:]).write_bytes(b"two")
    with pytest.raises(ImageError, match="is damaged"):
        export(store, [NAME], tmp_path / "x.tar")
    with pytest.raises(ImageError, match="cannot write"):
        export(store, [NAME], tmp_path / "none/x.tar")

    assert (tmp_path / "x.tar").read_bytes() == b"before"
    assert {path.name for path in tmp_path.iterdir()} == {"store", "x.tar"}


def test_an_export_may_go_to_the_standard_output(store, tmp_path, capfdbinary):
    image(store, b"one")
    export(store, [NAME], tmp_path / "x.tar")
    export(store, [NAME], "-")

    assert capfdbinary.readouterr().out == (tmp_path / "x.tar").read_bytes()


def test_an_export_to_a_pipe_does_not_replace_it(store, tmp_path):
    image(store, b"one")
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE) as reader:
        export(store, [NAME], tmp_path / "pipe")
        assert len(reader.communicate(timeout=10)[0]) % 512 == 0

    assert (tmp_path / "pipe").is_fifo()


def test_an_export_tells_how_far_it_is(store, tmp_path):
    image(store, b"one" * 1_000_000)
    meter = Meter()
    export(store, [NAME], tmp_path / "x.tar", progress=meter)

    assert meter.counts == {one.digest: one.size for one in meter.expected}
    assert sorted(meter.finished) == sorted(meter.counts)


def test_an_import_goes_on_where_it_ended(store, other, tmp_path):
    data = bytes(range(256)) * 20_000
    image(store, data)
    export(store, [NAME], tmp_path / "x.tar")
    with Archive.open(tmp_path / "x.tar") as archive:
        whole = archive.stream

        def cut(descriptor, start=0):
            for chunk in whole(descriptor, start):
                yield chunk
                if descriptor.size == len(data):
                    raise RegistryError("cut")

        archive.stream = cut
        with pytest.raises(RegistryError):
            restore(archive, other)
        starts = []
        archive.stream = lambda descriptor, start=0: starts.append(start) or whole(descriptor, start)
        restore(archive, other)

    assert [start for start in starts if start] == [1 << 20]
    assert other.read(Descriptor.of("a/layer", data)) == data


# ---------------------------------------------------------------------------------------------- other tools


def test_a_layout_in_a_folder_is_an_archive_too(store, other):
    root = image(store, b"one")
    about(store, root)
    with Archive.open(store.root) as archive:
        assert [one.name for one in restore(archive, other)] == [NAME]

    assert other.referrers(root) == store.referrers(root)


def test_a_packed_archive_is_unpacked(store, other, tmp_path):
    root = image(store, b"one")
    export(store, [NAME], tmp_path / "x.tar")
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress((tmp_path / "x.tar").read_bytes()))
    with Archive.open(tmp_path / "x.tar.gz") as archive:
        restore(archive, other)

    assert other.resolve(NAME).digest == root.digest


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ({REF_NAME: "latest"}, "ghcr.io/inspektor-gadget/gadget/my-gadget_x:latest"),
        ({REF_NAME: "v1.2"}, "ghcr.io/inspektor-gadget/gadget/my-gadget_x:v1.2"),
        ({}, "ghcr.io/inspektor-gadget/gadget/my-gadget_x:latest"),
        ({REF_NAME: "trace_open:1"}, "ghcr.io/inspektor-gadget/gadget/trace_open:1"),
        ({REF_NAME: "me/gadget"}, "ghcr.io/me/gadget:latest"),
        ({REF_NAME: "docker.io/me/gadget:2"}, "docker.io/me/gadget:2"),
        ({REF_NAME: "2", "io.containerd.image.name": "docker.io/me/gadget:2"}, "docker.io/me/gadget:2"),
    ],
)
def test_a_short_name_becomes_a_full_one(other, tmp_path, written, name):
    folder, root = foreign(tmp_path / "My Gadget_x", written)
    with Archive.open(folder) as archive:
        assert archive.list() == [(name, root)]
        restore(archive, other)

    assert other.resolve(name).digest == root.digest


def test_tags_of_several_images_are_theirs(tmp_path):
    folder, root = foreign(tmp_path / "x.oci.tar", {})
    entries = [root.with_annotations({REF_NAME: tag}).json() for tag in ("1", "2")]
    (folder / "index.json").write_text(json.dumps({"manifests": entries}))
    with Archive.open(folder) as archive:
        assert [one.name.rpartition("/")[2] for one in archive.list()] == ["x:1", "x:2"]


def test_an_image_without_a_name_among_its_own_manifests_is_found(store, tmp_path):
    root = image(store, b"one")
    inner = Index.parse(store.read(root)).manifests[0]
    signature = about(store, root)
    (store.root / "index.json").write_text(
        json.dumps({"manifests": [signature.json(), inner.json(), Descriptor.read(root.json()).json()]})
    )
    with Archive.open(store.root) as archive:
        assert [one.descriptor.digest for one in archive.list()] == [root.digest]


def test_tars_of_other_tools_are_read(store, other, tmp_path):
    folder, root = foreign(tmp_path / "my", {REF_NAME: "latest"})
    subprocess.run(["tar", "-C", folder, "-cf", tmp_path / "gadget.tar", "."], check=True)
    subprocess.run(["tar", "-C", folder, "--format=pax", "-czf", tmp_path / "gadget.tgz", "."], check=True)
    for name in ("gadget.tar", "gadget.tgz"):
        with Archive.open(tmp_path / name) as archive:
            (one,) = restore(archive, other)
            assert one == ("ghcr.io/inspektor-gadget/gadget/gadget:latest", root)


def test_an_archive_is_only_read(store, tmp_path):
    image(store, b"one")
    export(store, [NAME], tmp_path / "x.tar")
    with Archive.open(tmp_path / "x.tar") as archive, pytest.raises(ImageError, match="is only read"):
        copy(store, archive, NAME, "ghcr.io/a/b:1")


def test_a_copy_can_begin_in_an_archive(store, other, tmp_path):
    root = image(store, b"one")
    export(store, [NAME], tmp_path / "x.tar")
    with Archive.open(tmp_path / "x.tar") as archive:
        copy(archive, other, NAME, "ghcr.io/a/b:1")
        with pytest.raises(NotFoundError):
            archive.resolve("ghcr.io/a/b:1")
        assert archive.resolve(root.digest).digest == root.digest

    assert other.resolve("ghcr.io/a/b:1").digest == root.digest


@pytest.mark.parametrize("data", [b"", b"no tar", b"x" * 2048, bytes(1024)])
def test_what_is_no_archive_is_one_clear_error(tmp_path, data):
    (tmp_path / "x.tar").write_bytes(data)
    with pytest.raises(ImageError, match=r"x\.tar"):
        Archive.open(tmp_path / "x.tar")
    with pytest.raises(NotFoundError, match="does not exist"):
        Archive.open(tmp_path / "none.tar")


def test_no_file_stays_open(store, tmp_path):
    image(store, b"one")
    export(store, [NAME], tmp_path / "x.tar")
    (tmp_path / "x.tgz").write_bytes(gzip.compress((tmp_path / "x.tar").read_bytes()))
    (tmp_path / "bad.tar").write_bytes(b"x" * 1024)
    before = len([*Path("/proc/self/fd").iterdir()])
    for name in ("x.tar", "x.tgz", "bad.tar"):
        try:
            with Archive.open(tmp_path / name) as archive:
                archive.has(archive.resolve(NAME))
        except ImageError:
            pass

    assert len([*Path("/proc/self/fd").iterdir()]) == before
