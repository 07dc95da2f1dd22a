"""The local image store: layout, locks, damage, crashes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from igrun.errors import ImageError, NotFoundError, ParamError
from igrun.oci import folder
from igrun.oci.model import INDEX, MANIFEST, REF_NAME, Descriptor, Index, Manifest, Reference
from igrun.oci.prune import Freed
from igrun.oci.store import Store, default_root, user_store
from tests.images import about, legacy

NAME = "ghcr.io/inspektor-gadget/gadget/trace_open:latest"


def image(store: Store, *layers: bytes, config: bytes = b"name: x") -> Descriptor:
    """An index of one manifest of these layers."""
    written = tuple(store.write("application/layer", layer) for layer in layers)
    manifest = Manifest(store.write("application/config", config), written)
    one = store.write(MANIFEST, manifest.to_bytes())
    return store.write(INDEX, Index((one,)).to_bytes())


def blobs(store: Store) -> set[str]:
    return {path.name for path in (store.root / "blobs/sha256").iterdir()}


def entries(store: Store) -> list[dict]:
    return json.loads((store.root / "index.json").read_bytes())["manifests"]


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "store") as opened:
        yield opened


# ---------------------------------------------------------------------------------------------- layout


def test_a_store_may_have_a_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    with Store.open("folder/store") as store:
        descriptor = store.write("text/plain", b"hello")
        assert store.read(descriptor) == b"hello"

    assert (tmp_path / "folder/store/oci-layout").exists()


def test_what_is_written_is_an_oci_image_layout(store):
    descriptor = image(store, b"one", b"two")
    store.tag(descriptor, Reference.parse("trace_open"))

    assert json.loads((store.root / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads((store.root / "index.json").read_bytes())
    assert index["schemaVersion"] == 2
    assert index["manifests"] == [
        {
            "mediaType": INDEX,
            "digest": descriptor.digest,
            "size": descriptor.size,
            "annotations": {REF_NAME: NAME},
        }
    ]
    assert len(blobs(store)) == 5
    for name in blobs(store):
        data = (store.root / "blobs/sha256" / name).read_bytes()
        assert Descriptor.of("", data).digest == f"sha256:{name}"
    assert list((store.root / "ingest").iterdir()) == []
    assert (store.root / "index.json.lock").exists()


def test_a_name_resolves_to_what_was_tagged(store):
    descriptor = image(store, b"one")
    store.tag(descriptor, NAME)

    found = store.resolve(Reference.parse("trace_open"))
    assert (found.digest, found.size, found.media_type) == (descriptor.digest, descriptor.size, INDEX)
    assert store.resolve(descriptor.digest).digest == descriptor.digest
    assert store.resolve(f"@{descriptor.digest}").digest == descriptor.digest
    assert store.resolve(f"ghcr.io/a/b@{descriptor.digest}").digest == descriptor.digest
    assert Index.parse(store.read(found)).manifests[0].media_type == MANIFEST


def test_an_unknown_name_is_not_found_and_nothing_is_created(tmp_path):
    with Store.open(tmp_path / "none") as store:
        with pytest.raises(NotFoundError, match=r"image '.*x:latest' not found"):
            store.resolve(Reference.parse("x"))
        assert store.list() == []

    assert not (tmp_path / "none").exists()


def test_a_users_store_is_for_the_user_alone(store):
    image(store, b"one")

    assert store.root.stat().st_mode & 0o777 == 0o700


def test_an_image_without_a_name_is_kept(store):
    descriptor = image(store, b"one")
    store.keep(descriptor)
    store.keep(descriptor)

    assert [(entry["digest"], entry.get("annotations")) for entry in entries(store)] == [(descriptor.digest, None)]
    assert store.list() == []
    store.tag(descriptor, NAME)
    assert len(entries(store)) == 1


def test_a_name_that_moves_leaves_the_old_image_without_one(store):
    old, new = image(store, b"old"), image(store, b"new")
    store.tag(old, NAME)
    store.tag(new, NAME)

    assert store.resolve(NAME).digest == new.digest
    assert {entry["digest"]: entry.get("annotations", {}) for entry in entries(store)} == {
        old.digest: {},
        new.digest: {REF_NAME: NAME},
    }


def test_the_list_is_sorted_by_name_and_leaves_out_what_has_none(store):
    descriptor = image(store, b"one")
    for name in ("b", "a"):
        store.tag(descriptor, Reference.parse(name))
    store.keep(image(store, b"two"))

    assert [stored.name.rpartition("/")[2] for stored in store.list()] == ["a:latest", "b:latest"]


def test_only_an_image_that_is_there_gets_a_name(store):
    with pytest.raises(NotFoundError):
        store.tag(Descriptor.of(INDEX, b"absent"), NAME)

    assert store.list() == []


def test_entries_of_other_tools_survive(store):
    descriptor = image(store, b"one")
    store.tag(descriptor, NAME)
    index = json.loads((store.root / "index.json").read_bytes())
    foreign = [
        {
            "mediaType": MANIFEST,
            "digest": "sha256:" + "1" * 64,
            "size": 3,
            "artifactType": "x",
            "data": "e30=",
            "new": 1,
        },
        {"digest": 5, "annotations": "what"},
    ]
    index["manifests"] += foreign
    index["annotations"] = {"by": "another tool"}
    (store.root / "index.json").write_text(json.dumps(index, indent=1))

    assert store.resolve(NAME).digest == descriptor.digest
    store.tag(descriptor, "other:1")
    store.untag("other:1")
    after = json.loads((store.root / "index.json").read_bytes())
    assert [entry for entry in after["manifests"] if entry in foreign] == foreign
    assert after["annotations"] == {"by": "another tool"}


def test_resolving_among_thousands_of_images_is_quick(store):
    descriptor = image(store, b"one")
    store.tag(descriptor, NAME)
    entry = entries(store)[0]
    many = [
        {**entry, "annotations": {"org.opencontainers.image.title": "x" * 100, REF_NAME: f"ghcr.io/a/b{n}:latest"}}
        for n in range(20_000)
    ]
    text = json.dumps({"schemaVersion": 2, "manifests": [*many[:10_000], entry, *many[10_000:]]}, separators=(",", ":"))
    (store.root / "index.json").write_text(text)

    start = time.perf_counter()
    assert store.resolve(NAME).digest == descriptor.digest
    assert time.perf_counter() - start < 0.1
    assert store.resolve("ghcr.io/a/b19999:latest").annotations["org.opencontainers.image.title"] == "x" * 100


def test_a_name_inside_another_annotation_does_not_resolve(store):
    descriptor = image(store, b"one")
    trap = json.dumps({REF_NAME: NAME}, separators=(",", ":"))[1:-1]
    store.tag(descriptor.with_annotations({"title": trap, "other": '{"mediaType":"x",' + trap + "}"}), "other:1")

    with pytest.raises(NotFoundError):
        store.resolve(NAME)


# ---------------------------------------------------------------------------------------------- removing


def test_removing_an_image_removes_its_blobs(store):
    store.tag(image(store, b"one", b"two"), NAME)
    store.remove(NAME)

    assert blobs(store) == set()
    assert entries(store) == []
    with pytest.raises(NotFoundError):
        store.remove(NAME)


def test_removing_one_of_two_names_only_takes_the_name(store):
    descriptor = image(store, b"one")
    store.tag(descriptor, NAME)
    store.tag(descriptor, "other:1")
    before = blobs(store)
    store.remove(NAME)

    assert blobs(store) == before
    assert store.resolve("other:1").digest == descriptor.digest


def test_removing_leaves_what_other_images_need(store):
    store.tag(image(store, b"shared", b"one"), NAME)
    other = image(store, b"shared", b"two")
    store.tag(other, "other:1")
    before = blobs(store)
    store.remove(NAME)

    assert len(before - blobs(store)) == 3  # its layer, manifest and index; the config is shared too
    manifest = Manifest.parse(store.read(Index.parse(store.read(store.resolve("other:1"))).manifests[0]))
    assert [store.read(layer) for layer in manifest.layers] == [b"shared", b"two"]


def test_an_image_goes_with_its_own_manifests_and_signatures(store):
    descriptor = image(store, b"one")
    store.tag(descriptor, NAME)
    inner = Index.parse(store.read(descriptor)).manifests[0]
    store.keep(inner)  # as the ecosystem's tools list it
    referrer = Manifest(store.write("application/c", b"c"), (), subject=descriptor)
    store.keep(store.write(MANIFEST, referrer.to_bytes()))
    signature = Manifest(store.write("application/c", b"signature"), ())
    store.tag(store.write(MANIFEST, signature.to_bytes()), f"sha256-{descriptor.digest[7:]}.sig")
    store.remove(NAME)

    assert entries(store) == []
    assert blobs(store) == set()


def test_untagging_keeps_the_image(store):
    descriptor = image(store, b"one")
    store.tag(descriptor, NAME)
    store.untag(NAME)

    assert [entry["digest"] for entry in entries(store)] == [descriptor.digest]
    assert store.read(descriptor)


def test_blobs_that_somebody_is_writing_are_not_deleted(store):
    store.tag(image(store, b"one"), NAME)
    with Store.open(store.root) as writer:
        image(writer, b"one")  # the same blobs, not tagged yet
        store.remove(NAME)
        writer.tag(image(writer, b"one"), NAME)

    assert store.read(store.resolve(NAME))
    assert len(blobs(store)) == 4


def test_left_over_blobs_go_once_they_are_old(store):
    with Store.open(store.root) as crashed:
        image(crashed, b"old", config=b"old")
        image(crashed, b"new", config=b"new")
    for data in (b"old",):
        os.utime(store.root / "blobs/sha256" / Descriptor.of("", data).digest[7:], (0, 0))
    (store.root / "ingest" / f"x{folder.TEMPORARY}").write_bytes(b"half")
    store.tag(image(store, b"one"), NAME)
    before = blobs(store)
    store.remove(NAME)

    assert Descriptor.of("", b"old").digest[7:] in before - blobs(store)
    assert Descriptor.of("", b"new").digest[7:] in blobs(store)
    assert list((store.root / "ingest").iterdir()) == []


def test_nothing_nobodys_goes_while_a_manifest_cannot_be_read(store):
    damaged = image(store, b"two")
    store.tag(damaged, "damaged:1")
    (store.root / "blobs/sha256" / damaged.digest[7:]).write_bytes(b"{}")
    layer = store.root / "blobs/sha256" / Descriptor.of("", b"two").digest[7:]
    os.utime(layer, (0, 0))
    store.tag(image(store, b"one"), NAME)
    store.remove(NAME)

    assert layer.exists()


def test_signatures_of_what_an_image_is_made_of_go_with_it(store):
    root = image(store, b"one")
    store.tag(root, NAME)
    inner = Index.parse(store.read(root)).manifests[0]
    for subject in (root, inner):
        signature = about(store, subject)
        about(store, signature, b"of the signature")
        legacy(store, subject)
        legacy(store, signature, b"of the signature too", ".att")
    store.remove(NAME)

    assert entries(store) == []
    assert blobs(store) == set()


def test_signatures_of_what_another_image_needs_stay(store):
    root = image(store, b"one")
    store.tag(root, NAME)
    inner = Index.parse(store.read(root)).manifests[0]
    other = store.write(INDEX, Index((inner,), {"title": "other"}).to_bytes())
    store.tag(other, "ghcr.io/a/other:1")
    kept = {about(store, inner).digest, legacy(store, inner, b"legacy").digest}
    about(store, root, b"gone")
    store.remove(NAME)

    assert {one.descriptor.digest for one in store.referrers(inner)} == kept
    assert len(entries(store)) == 3


# ---------------------------------------------------------------------------------------------- prune


def test_pruning_leaves_what_names_need(store):
    root = image(store, b"one")
    store.tag(root, NAME)
    about(store, about(store, root), b"of the signature")
    legacy(store, root)
    store.keep(Index.parse(store.read(root)).manifests[0])  # as the ecosystem's tools list it
    before, listed = blobs(store), entries(store)

    assert store.prune(fresh_s=0) == Freed()
    assert (blobs(store), entries(store)) == (before, listed)


def test_pruning_takes_what_no_name_needs(store):
    root = image(store, b"one")
    store.tag(root, NAME)
    about(store, root)
    before, listed = blobs(store), entries(store)
    nameless = image(store, b"two")
    store.keep(nameless)
    signature = about(store, nameless, b"of the nameless")
    stray = legacy(store, Descriptor.of(INDEX, b"gone"), b"of what is gone")
    store.write("application/layer", b"nobody's")
    (store.root / "ingest" / ("1" * 64 + ".part")).write_bytes(b"half")
    would = store.prune(dry_run=True, fresh_s=0)
    assert len(entries(store)) == len(listed) + 3
    freed = store.prune(fresh_s=0)

    assert would == freed
    assert set(freed.images) == {nameless.digest, signature.digest, stray.digest}
    assert freed.size > 1000
    assert (blobs(store), entries(store)) == (before, listed)
    assert list((store.root / "ingest").iterdir()) == []
    assert store.prune(fresh_s=0) == Freed()


def test_pruning_leaves_what_an_unfinished_download_wants(store):
    store.tag(image(store, b"one"), NAME)
    layer = store.write("application/layer", b"nobody's")
    part = store.root / "ingest" / ("1" * 64 + ".part")
    part.write_bytes(b"half")
    assert store.prune() == Freed()
    for path in (part, store.root / "blobs/sha256" / layer.digest[7:]):
        os.utime(path, (0, 0))

    assert store.prune() == Freed((), 1, len(b"nobody's") + len(b"half"))


def test_pruning_waits_for_nobody(store):
    store.tag(image(store, b"one"), NAME)
    store.keep(image(store, b"two"))
    with Store.open(store.root) as writer:
        image(writer, b"three")
        assert store.prune(fresh_s=0) == Freed(busy=True)
    assert len(store.prune(fresh_s=0).images) == 1


def test_there_is_nothing_to_prune_in_a_store_that_is_not_there(tmp_path):
    with Store.open(tmp_path / "none") as store:
        assert store.prune() == Freed()
    assert not (tmp_path / "none").exists()


def test_an_index_of_which_only_a_part_is_there_can_be_pruned(store):
    there = Index.parse(store.read(image(store, b"one"))).manifests[0]
    absent = Descriptor(MANIFEST, "sha256:" + "1" * 64, 5)
    store.tag(store.write(INDEX, Index((there, absent)).to_bytes()), NAME)
    store.write("application/layer", b"nobody's")
    before = blobs(store)
    store.prune(fresh_s=0)

    assert before - blobs(store) == {Descriptor.of("", b"nobody's").digest[7:]} | {
        Descriptor.of("", Index((there,)).to_bytes()).digest[7:]
    }


# ---------------------------------------------------------------------------------------------- referrers


def crowd(store: Store, count: int = 400) -> list[Descriptor]:
    """So many images with a signature each that index.json is no longer small."""
    roots, listed = [], []
    for n in range(count):
        root = store.write(INDEX, Index((), {"n": str(n)}).to_bytes())
        signature = Manifest(store.write("a/config", b"{}"), (), {"n": str(n)}, "a/signature", root)
        roots.append(root)
        listed.append(root.with_annotations({REF_NAME: f"ghcr.io/a/g{n}:1", "title": "x & \u003c"}).json())
        listed.append(store.write(MANIFEST, signature.to_bytes()).json())
    (store.root / "index.json").write_text(json.dumps({"manifests": listed}, separators=(",", ":")))
    return roots


def test_the_signature_of_one_image_is_found_without_reading_the_others(store, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    roots = crowd(store)
    with Store.open(store.root, writable=False) as reader:
        assert [one.descriptor.annotations for one in reader.referrers(roots[7])] == [{"n": "7"}]
    read = []
    with Store.open(store.root, writable=False) as reader:
        monkeypatch.setattr(reader, "_children", lambda digest: read.append(digest))
        for n in (0, 7, 399):
            (one,) = reader.referrers(roots[n])
            assert one.descriptor.annotations == {"n": str(n)}
            assert one.descriptor.artifact_type == "a/signature"
    assert read == []


def test_what_is_kept_about_signatures_follows_each_change(store, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    roots = crowd(store)
    assert len(store.referrers(roots[7])) == 1
    second = about(store, roots[7], b"second")
    with Store.open(store.root, writable=False) as reader:
        monkeypatch.setattr(reader, "_children", None)
        assert second.digest in {one.descriptor.digest for one in reader.referrers(roots[7])}
        assert len(reader.referrers(roots[7])) == 2
    store.remove("ghcr.io/a/g7:1")
    assert store.referrers(roots[7]) == ()
    assert len(store.referrers(roots[8])) == 1
    # another tool's change is seen too
    listed = entries(store)
    (store.root / "index.json").write_text(json.dumps({"manifests": listed[: len(listed) // 2]}))
    assert store.referrers(roots[399]) == ()
    assert len(store.referrers(roots[8])) == 1
    # and damage does no harm
    (store.root / "referrers.cache").write_bytes(b"\xff\n" * 100)
    assert len(store.referrers(roots[8])) == 1


def test_the_fallback_index_of_a_registry_is_read(store):
    root = image(store, b"one")
    signature = Manifest(store.write("a/config", b"{}"), (), {}, "a/signature", root)
    written = store.write(MANIFEST, signature.to_bytes())
    store.tag(store.write(INDEX, Index((written,)).to_bytes()), f"sha256-{root.digest[7:]}")

    assert [one.descriptor.digest for one in store.referrers(root)] == [written.digest]


def test_a_name_that_is_written_in_another_way_is_found(store, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    roots = crowd(store)
    text = (store.root / "index.json").read_text()
    assert len(text) > 1 << 16
    (store.root / "index.json").write_text(text.replace("ghcr.io/a/g7:1", "ghcr.io\\/a\\u002Fg7:1"))
    assert store.resolve("ghcr.io/a/g7:1").digest == roots[7].digest
    with pytest.raises(NotFoundError):
        store.resolve("ghcr.io/a/none:1")
    (store.root / "index.json").write_text(text[:-10])
    with pytest.raises(ImageError, match=r"index\.json is damaged"):
        store.resolve("ghcr.io/a/none:1")


def test_listing_and_resolving_among_5000_images_takes_no_time(store, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    roots = crowd(store, 5000)
    store.referrers(roots[0])

    def nothing(reader):
        with pytest.raises(NotFoundError):
            reader.resolve("ghcr.io/a/none:1")

    best = dict.fromkeys(("list", "resolve", "miss", "referrers"), 9.0)
    for _ in range(3):
        for name, action in (
            ("list", lambda reader: reader.list()),
            ("resolve", lambda reader: reader.resolve("ghcr.io/a/g4999:1")),
            ("miss", nothing),
            ("referrers", lambda reader: reader.referrers(roots[4999])),
        ):
            with Store.open(store.root, writable=False) as reader:
                start = time.perf_counter()
                action(reader)
                best[name] = min(best[name], time.perf_counter() - start)

    assert best["list"] < 1
    assert max(best["resolve"], best["miss"], best["referrers"]) < 0.01, best


# ---------------------------------------------------------------------------------------------- damage


def test_a_damaged_blob_is_an_error_and_is_healed_by_writing_it_again(store):
    descriptor = store.write("application/layer", b"good")
    path = store.root / "blobs/sha256" / descriptor.digest[7:]
    for damage in (b"evil", b"goo", b""):
        path.write_bytes(damage)
        with pytest.raises(ImageError, match="is damaged"):
            store.read(descriptor)
        assert store.write("application/layer", b"good") == descriptor
        assert store.read(descriptor) == b"good"


@pytest.mark.parametrize(
    "digest", ["sha256:../../x", "sha256:" + "A" * 64, "md5:" + "0" * 32, "", "sha256:" + "0" * 63]
)
def test_a_digest_cannot_leave_the_store(store, digest):
    with pytest.raises(ImageError, match="no sha256 digest"):
        store.read(Descriptor("application/layer", digest, 3))


def test_a_blob_must_be_a_regular_file_of_sane_size(store, tmp_path):
    descriptor = store.write("application/layer", b"good")
    path = store.root / "blobs/sha256" / descriptor.digest[7:]
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ImageError, match="no regular file"):
        store.read(descriptor)
    with pytest.raises(ImageError, match="too large"):
        store.read(Descriptor(MANIFEST, descriptor.digest, 5 << 20))
    with pytest.raises(ImageError, match="too large"):
        store.read(Descriptor("application/layer", descriptor.digest, 1 << 40))


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff", b'{"manifests": 3}'])
def test_a_damaged_index_is_an_error_and_stays_as_it_is(store, text):
    descriptor = image(store, b"one")
    store.tag(descriptor, NAME)
    (store.root / "index.json").write_bytes(text)

    for action in (
        lambda: store.resolve(NAME),
        store.list,
        lambda: store.tag(descriptor, NAME),
        lambda: store.remove(NAME),
    ):
        with pytest.raises(ImageError, match=r"index\.json"):
            action()
    assert (store.root / "index.json").read_bytes() == text


def test_another_layout_version_is_an_error(tmp_path):
    (tmp_path / "oci-layout").write_text('{"imageLayoutVersion": "2.0.0"}')

    with pytest.raises(ImageError, match=r"unknown layout version '2\.0\.0'"):
        Store.open(tmp_path)


def test_a_store_opened_to_read_is_never_written(store):
    descriptor = image(store, b"one")
    store.tag(descriptor, NAME)
    with Store.open(store.root, writable=False) as reader:
        assert reader.resolve(NAME).digest == descriptor.digest
        for action in (
            lambda: reader.write("x", b"y"),
            lambda: reader.tag(descriptor, "a"),
            lambda: reader.remove(NAME),
        ):
            with pytest.raises(ImageError, match="is read-only"):
                action()


def test_a_place_that_is_no_folder_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        Store.open(tmp_path / "file" / "store") as store,
        pytest.raises(ImageError, match="cannot write to image store"),
    ):
        store.write("x", b"y")


# ---------------------------------------------------------------------------------------------- users


def test_root_and_users_have_their_own_places(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_root() == Path("/var/lib/ig/oci-store")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert default_root() == Path("/home/somebody/.ig/oci-store")


def test_the_store_of_the_user_of_sudo_is_read_only(monkeypatch, tmp_path):
    import pwd

    root = tmp_path / ".ig/oci-store"
    with Store.open(root) as mine:
        mine.tag(image(mine, b"one"), NAME)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(pwd, "getpwnam", lambda name: type("Entry", (), {"pw_dir": str(tmp_path)}))

    with user_store({"SUDO_USER": "somebody"}) as found:
        assert found.resolve(NAME).media_type == INDEX
        assert not found.writable
    for env in ({}, {"SUDO_USER": "root"}):
        with pytest.raises(ParamError, match="requires being run with sudo, not as root directly"):
            user_store(env)
    (root / "index.json.lock").unlink()
    with pytest.raises(NotFoundError, match=r"index\.json\.lock does not exist"):
        user_store({"SUDO_USER": "somebody"})


# ---------------------------------------------------------------------------------------------- processes

WRITER = """
import sys
from igrun.oci.store import Store
from igrun.oci.model import INDEX, MANIFEST, Index, Manifest
root, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
print("ready", flush=True)
for n in range(count):
    with Store.open(root) as store:
        layer = store.write("application/layer", f"{name} {n}".encode() * 2000)
        config = store.write("application/config", b"name: shared")
        one = store.write(MANIFEST, Manifest(config, (layer,)).to_bytes())
        store.tag(store.write(INDEX, Index((one,)).to_bytes()), f"ghcr.io/{name}/{n}:1")
        if n % 3 == 2:
            store.remove(f"ghcr.io/{name}/{n - 1}:1")
print("done", flush=True)
"""


def writer(root: Path, name: str, count: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(root), name, str(count)], stdout=subprocess.PIPE, text=True
    )


def whole(store: Store) -> int:
    """How many images there are, all of them read to the last blob."""
    for stored in store.list():
        for one in Index.parse(store.read(stored.descriptor)).manifests:
            manifest = Manifest.parse(store.read(one))
            for blob in (manifest.config, *manifest.layers):
                store.read(blob)
    return len(store.list())


def test_processes_that_write_and_remove_at_once_lose_nothing(store):
    running = [writer(store.root, f"p{n}", 12) for n in range(4)]
    for process in running:
        assert process.communicate(timeout=120)[0].endswith("done\n")
        assert process.returncode == 0

    assert whole(store) == 4 * (12 - 4)
    assert list((store.root / "ingest").iterdir()) == []


def test_a_process_killed_at_any_moment_leaves_a_whole_store(store):
    store.tag(image(store, b"before"), "before:1")
    for attempt in range(12):
        process = writer(store.root, f"k{attempt}", 1000)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.002 + 0.007 * attempt)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert whole(store) >= 1
    assert store.resolve("before:1")
    store.tag(image(store, b"after"), NAME)
    store.remove(NAME)

    assert list((store.root / "ingest").iterdir()) == []
    assert whole(store) >= 1


def test_a_lock_that_nobody_lets_go_is_an_error(store, monkeypatch):
    import fcntl

    descriptor = image(store, b"one")
    monkeypatch.setattr(folder, "PATIENCE_S", 0.1)
    with open(store.root / "index.json.lock") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ImageError, match="is locked by another process"):
            store.tag(descriptor, NAME)
        with pytest.raises(ImageError, match="is locked by another process"):
            store.resolve(NAME)
