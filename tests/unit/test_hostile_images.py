"""Images made to do harm: one clear error, bounded memory and disk, nothing outside of the store."""

import gzip
import io
import json
import os
import tarfile
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from igrun.errors import ImageError, NotFoundError
from igrun.oci import tar, walk
from igrun.oci.archive import Archive, restore
from igrun.oci.copy import copy
from igrun.oci.export import export
from igrun.oci.model import INDEX, MANIFEST, REF_NAME, Descriptor, Index, Manifest
from igrun.oci.store import Store
from tests.images import NAME, Slow, image

LAYER = "application/layer"


@pytest.fixture
def source(tmp_path):
    with Store.open(tmp_path / "source") as opened:
        yield opened


@pytest.fixture
def target(tmp_path):
    with Store.open(tmp_path / "target") as opened:
        yield opened


def manifest(store: Store, *layers: Descriptor) -> Descriptor:
    return store.write(MANIFEST, Manifest(store.write("application/config", b"{}"), layers).to_bytes())


def refused(source, target: Store, root: Descriptor | str, why: str) -> None:
    """It cannot be copied, and nothing has been written for it."""
    with pytest.raises(ImageError, match=why):
        copy(source, target, root)
    assert not target.root.exists()


# ---------------------------------------------------------------------------------------------- manifests


@pytest.mark.parametrize(
    ("kind", "data", "why"),
    [
        (INDEX, b'{"config":{},"layers":[]}', "but it has 'config'"),
        (MANIFEST, b'{"manifests":[]}', "but it has 'manifests'"),
        (MANIFEST, b'{"mediaType":"application/vnd.oci.image.index.v1+json"}', "but it is listed as"),
        (INDEX, b'{"mediaType":5,"manifests":[]}', "but it is listed as"),
        (INDEX, b'{"manifests":5}', "wrong manifests"),
        (INDEX, b"[]", "not an object"),
        (INDEX, b"\xff\xfe", "no JSON"),
        (INDEX, b"[" * 100_000, "no JSON"),
        (MANIFEST, b"{}", "no config"),
        (MANIFEST, b'{"config":{"digest":"sha256:../../../etc/passwd","size":1}}', "no sha256 digest"),
        ("application/vnd.docker.distribution.manifest.v1+json", b"{}", "is no image"),
        ("", b"{}", "is no image"),
    ],
)
def test_a_manifest_that_is_not_what_it_says_is_refused(source, target, kind, data, why):
    refused(source, target, source.write(kind, data), why)


def test_a_manifest_of_another_size_is_refused(source, target):
    root = image(source, b"one")
    for size in (root.size - 1, root.size + 1, 0):
        refused(source, target, Descriptor(INDEX, root.digest, size), "is damaged")
    refused(source, target, Descriptor(INDEX, root.digest, 1 << 40), "larger than 64 MiB")


def test_a_layer_of_another_size_is_refused(source, target):
    layer = source.write(LAYER, b"layer")
    refused(source, target, manifest(source, layer, Descriptor(LAYER, layer.digest, 6)), "5 bytes, and 6 elsewhere")
    with pytest.raises(ImageError, match="is damaged"):
        copy(source, target, manifest(source, Descriptor(LAYER, layer.digest, 4)))


def test_one_blob_cannot_be_a_manifest_and_a_layer(source, target):
    inner = manifest(source)
    as_layer = Descriptor(LAYER, inner.digest, inner.size)
    both = source.write(INDEX, Index((inner, manifest(source, as_layer))).to_bytes())
    refused(source, target, both, "a manifest and a layer")
    both = source.write(INDEX, Index((manifest(source, as_layer), inner)).to_bytes())
    refused(source, target, both, "a manifest and a layer")
    refused(source, target, manifest(source, inner), "it is listed as a layer")


def test_an_index_of_an_unknown_type_of_image_is_refused(source, target):
    layer = source.write(LAYER, b"{}")
    refused(source, target, source.write(INDEX, Index((layer,)).to_bytes()), "is no image: its media type")


def loop(*digests: str) -> Callable[[Descriptor], bytes]:
    """A place that does not verify what it reads: each index lists the next, the last one the first."""
    following = dict(zip(digests, (*digests[1:], digests[0]), strict=True))
    return lambda one: Index((Descriptor(INDEX, following[one.digest], 10),)).to_bytes()


@pytest.mark.parametrize("count", [1, 3])
def test_an_index_that_contains_itself_is_refused(source, target, count):
    digests = [f"sha256:{n:064x}" for n in range(count)]
    lying = Slow(source, read=loop(*digests))
    refused(lying, target, Descriptor(INDEX, digests[0], 10), "contains itself")


def test_endless_indexes_are_refused(source, target):
    made = iter(range(1, 1 << 30))

    def read(one: Descriptor) -> bytes:
        return Index((Descriptor(INDEX, f"sha256:{next(made):064x}", 10),)).to_bytes()

    refused(Slow(source, read=read), target, Descriptor(INDEX, f"sha256:{0:064x}", 10), "more than 8 deep")
    assert next(made) < 20


def test_too_many_manifests_are_refused(source, target, monkeypatch):
    monkeypatch.setattr(walk, "MOST_MANIFESTS", 60)
    made = iter(range(1, 1 << 30))

    def read(one: Descriptor) -> bytes:
        more = tuple(Descriptor(INDEX, f"sha256:{next(made):064x}", 10) for _ in range(50))
        return Index(more).to_bytes()

    refused(Slow(source, read=read), target, Descriptor(INDEX, f"sha256:{0:064x}", 10), "8 deep|60 manifests")
    lots = tuple(manifest(source, source.write(LAYER, b"%d" % n)) for n in range(walk.MOST_MANIFESTS))
    refused(source, target, source.write(INDEX, Index(lots).to_bytes()), "more than 60 manifests")


def test_huge_manifests_are_refused(source, target, monkeypatch):
    huge = Descriptor(MANIFEST, "sha256:" + "1" * 64, 5 << 20)
    refused(source, target, huge, "too large")
    with pytest.raises(ImageError, match="too large"):
        target.receive(huge, lambda start: iter(()))
    monkeypatch.setattr(walk, "LARGEST_MANIFESTS", 3000)
    lots = tuple(manifest(source, source.write(LAYER, b"%d" % n)) for n in range(20))
    refused(source, target, source.write(INDEX, Index(lots).to_bytes()), "larger than 64 MiB together")


def test_layers_that_are_too_large_are_refused_before_anything_is_fetched(source, target):
    layers = [Descriptor(LAYER, f"sha256:{n:064x}", 6 << 30) for n in range(3)]
    refused(source, target, manifest(source, *layers), "larger than 16 GiB together")
    refused(source, target, manifest(source, Descriptor(LAYER, layers[0].digest, 1 << 61)), "16 GiB together")


def test_thousands_of_layers_are_copied_or_refused_in_bounded_memory(source, target, monkeypatch):
    layers = [Descriptor(LAYER, f"sha256:{n:064x}", 10) for n in range(10_001)]
    refused(source, target, manifest(source, *layers), "wrong layers")
    monkeypatch.setattr(walk, "MOST_BLOBS", 5000)
    refused(source, target, manifest(source, *layers[:6000]), "more than 5000 layers")
    few = [source.write(LAYER, b"%d" % n) for n in range(300)]
    tracemalloc.start()
    try:
        copy(source, target, manifest(source, *few))
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
    assert all(target.has(one) for one in few)


def test_an_endless_blob_ends_at_its_announced_size(source, target):
    root = manifest(source, Descriptor(LAYER, "sha256:" + "1" * 64, 3 << 20))
    sent = []

    def stream(one: Descriptor, start: int) -> Iterator[bytes]:
        if one.media_type != LAYER:
            yield from source.stream(one, start)
            return
        while True:
            sent.append(1)
            yield bytes(1 << 20)

    with pytest.raises(ImageError, match="sent other bytes"):
        copy(Slow(source, stream=stream), target, root)
    assert len(sent) == 4
    assert list((target.root / "ingest").iterdir()) == []


def test_a_blob_for_which_there_is_no_room_is_refused_at_once(source, target):
    size = 15 << 30
    room = os.statvfs(target.root.parent)
    if room.f_bavail * room.f_frsize > size:
        size = room.f_bavail * room.f_frsize + (1 << 30)
    huge = Descriptor(LAYER, "sha256:" + "1" * 64, size)
    asked = []
    with pytest.raises(ImageError, match="No space left"):
        target.receive(huge, lambda start: asked.append(start) or iter(()))
    assert asked == []


# ---------------------------------------------------------------------------------------------- layouts


def packed(path: Path, *members: tuple[tarfile.TarInfo | str, bytes], form: int = tarfile.PAX_FORMAT) -> Path:
    """A tar of these members behind those of a whole layout without images."""
    with tarfile.open(path, "w", format=form) as archive:
        for name, data in (("oci-layout", b'{"imageLayoutVersion":"1.0.0"}'), *members):
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            if info.isreg():
                info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def link(kind: bytes, to: str, name: str = "index.json") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, to
    return info


@pytest.mark.parametrize(
    ("member", "why"),
    [
        ("../../outside", "leads out of it"),
        ("/etc/outside", "leads out of it"),
        ("blobs/../../outside", "leads out of it"),
        ("blobs/sha256/" + "x/" * 200 + "../" * 300 + "outside", "leads out of it"),
        (link(tarfile.SYMTYPE, "/etc/passwd"), "is no regular file"),
        (link(tarfile.LNKTYPE, "oci-layout"), "is no regular file"),
        (link(tarfile.CHRTYPE, ""), "is no regular file"),
        (link(tarfile.FIFOTYPE, ""), "is no regular file"),
        (link(tarfile.GNUTYPE_SPARSE, ""), "is no regular file|damaged"),
        ("oci-layout", "is there twice"),
        ("./oci-layout", "is there twice"),
    ],
)
@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_a_tar_that_no_layout_is_like_is_refused(tmp_path, member, why, form):
    path = packed(tmp_path / "x.tar", ("index.json", b'{"manifests":[]}'), (member, b""), form=form)
    with pytest.raises(ImageError, match=why):
        Archive.open(path)
    assert [one.name for one in tmp_path.iterdir()] == ["x.tar"]


def test_a_tar_of_too_many_files_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tar, "MOST_MEMBERS", 50)
    path = packed(tmp_path / "x.tar", *((f"file{n}", b"") for n in range(50)))
    with pytest.raises(ImageError, match="more than 50 members"):
        Archive.open(path)


def test_long_headers_are_not_read(tmp_path):
    info = tarfile.TarInfo("index.json")
    info.pax_headers = {"comment": "x" * (1 << 20)}
    path = packed(tmp_path / "x.tar", (info, b"{}"))
    with pytest.raises(ImageError, match="longer than 64 KiB"):
        Archive.open(path)


def test_a_file_larger_than_its_archive_is_refused(tmp_path):
    for size in (1 << 30, 1 << 40):
        info = tarfile.TarInfo("index.json")
        info.size = size
        layout = packed(tmp_path / "x.tar").read_bytes()[:1024]
        (tmp_path / "x.tar").write_bytes(layout + info.tobuf(tarfile.GNU_FORMAT))
        with pytest.raises(ImageError, match="ends inside of a file"):
            Archive.open(tmp_path / "x.tar")


def test_a_sparse_index_is_not_read_into_memory(tmp_path):
    info = tarfile.TarInfo("index.json")
    info.size = 1 << 30
    layout = packed(tmp_path / "x.tar").read_bytes()[:1024]
    with (tmp_path / "x.tar").open("wb") as file:
        file.write(layout + info.tobuf())
        file.truncate(2048 + (1 << 30))
    tracemalloc.start()
    try:
        with pytest.raises(ImageError, match="larger than"):
            Archive.open(tmp_path / "x.tar")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@given(some.binary(max_size=2000), some.integers(0, 4000))
def test_any_bytes_are_an_archive_or_one_clear_error(tmp_path_factory, data, at):
    path = tmp_path_factory.getbasetemp() / "any.tar"
    packed(path, ("index.json", b'{"manifests":[]}'), ("blobs/sha256/x", b"x" * 600))
    whole = path.read_bytes()
    path.write_bytes(whole[:at] + data + whole[at + len(data) :])
    try:
        Archive.open(path).close()
    except ImageError as error:
        assert "any.tar" in str(error) or "image index" in str(error)


def test_a_gzip_bomb_is_refused_while_it_is_small(tmp_path, monkeypatch):
    monkeypatch.setattr(tar, "UNSUSPICIOUS", 2 << 20)
    with gzip.open(tmp_path / "x.tar.gz", "wb") as file:
        for _ in range(64):
            file.write(bytes(1 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(ImageError, match="unpacks to more than"):
            Archive.open(tmp_path / "x.tar.gz")
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_a_damaged_gzip_is_one_clear_error(tmp_path):
    good = gzip.compress(packed(tmp_path / "x.tar").read_bytes())
    for data in (good[:-10], good[:20], good[:30] + b"\xff" * 30 + good[60:], b"\x1f\x8b"):
        (tmp_path / "x.tgz").write_bytes(data)
        with pytest.raises(ImageError, match=r"x\.tgz"):
            Archive.open(tmp_path / "x.tgz")


def test_a_blob_that_is_not_its_digest_is_refused(source, target, tmp_path):
    image(source, b"good" * 1000)
    export(source, [NAME], tmp_path / "x.tar")
    data = (tmp_path / "x.tar").read_bytes()
    (tmp_path / "x.tar").write_bytes(data.replace(b"good" * 1000, b"evil" * 1000))
    with Archive.open(tmp_path / "x.tar") as archive, pytest.raises(ImageError, match="is damaged"):
        restore(archive, target)
    assert target.list() == []


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "ghcr.io/a/b:1\n",
        "ghcr.io/UPPER/case",
        "a" * 300 + ":1",
        "sha256-x.sig/../a",
        "a/b:" + "x" * 200,
    ],
)
def test_a_name_that_is_none_is_refused(source, target, tmp_path, name):
    root = image(source, b"one").with_annotations({REF_NAME: name})
    (source.root / "index.json").write_text(json.dumps({"manifests": [root.json()]}))
    with pytest.raises(ImageError, match="invalid reference"):
        Archive.open(source.root)


def test_an_archive_cannot_give_two_images_one_name(source, target):
    entries = [image(source, data).with_annotations({REF_NAME: NAME}).json() for data in (b"one", b"two")]
    (source.root / "index.json").write_text(json.dumps({"manifests": entries}))
    with pytest.raises(ImageError, match="two images are called"):
        Archive.open(source.root)


def test_a_layout_whose_blobs_are_links_gives_nothing_else_away(source, target):
    root = image(source, b"one")
    secret = source.root.parent / "secret"
    secret.write_bytes(b"two")
    layer = source.root / "blobs/sha256" / Descriptor.of("", b"one").digest[7:]
    layer.unlink()
    layer.symlink_to(secret)
    with Archive.open(source.root) as archive, pytest.raises(ImageError, match="is damaged"):
        copy(archive, target, root)
    layer.unlink()
    os.mkfifo(layer)
    with Archive.open(source.root) as archive, pytest.raises(ImageError, match="no regular file"):
        copy(archive, target, root)


@pytest.mark.parametrize("digest", ["sha256:" + "1" * 63, "../../x", "sha512:" + "1" * 64, ""])
def test_no_digest_leads_out_of_the_store(target, digest):
    one = Descriptor(LAYER, digest, 1)
    for action in (
        lambda: target.has(one) or target.read(one),
        lambda: target.receive(one, lambda start: iter((b"x",))),
    ):
        with pytest.raises(ImageError, match="no sha256 digest"):
            action()


def test_a_partial_file_that_is_a_link_is_not_written_through(source, target):
    data = bytes(range(256)) * 20_000
    root = image(source, data)
    image(target, b"other")
    outside = target.root.parent / "outside"
    outside.write_bytes(b"")
    (target.root / "ingest" / f"{Descriptor.of('', data).digest[7:]}.part").symlink_to(outside)
    with pytest.raises(ImageError, match="cannot write to image store"):
        copy(source, target, root)
    assert outside.read_bytes() == b""


def test_an_archive_without_a_layout_is_one_clear_error(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("manifest.json"), io.BytesIO(b""))
    with pytest.raises(ImageError, match="is no OCI image layout"):
        Archive.open(tmp_path / "x.tar")
    with pytest.raises(ImageError, match="is no OCI image layout"):
        Archive.open(tmp_path)
    with pytest.raises(NotFoundError):
        Archive.open(tmp_path / "none")
