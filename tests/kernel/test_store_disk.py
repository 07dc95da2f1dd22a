"""The image store on a full and on a read-only disk."""

import subprocess

import pytest

from igrun.errors import ImageError
from igrun.oci.model import INDEX, MANIFEST, Descriptor, Index, Manifest
from igrun.oci.store import Store

pytestmark = pytest.mark.root
NAME = "ghcr.io/a/b:1"


@pytest.fixture
def disk(tmp_path):
    """A file system of 1 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "none", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def tagged(store: Store, name: str, layer: bytes) -> Descriptor:
    config = store.write("application/config", b"name: x")
    manifest = Manifest(config, (store.write("application/layer", layer),))
    index = store.write(INDEX, Index((store.write(MANIFEST, manifest.to_bytes()),)).to_bytes())
    store.tag(index, name)
    return index


def test_a_full_disk_is_one_clear_error_and_nothing_is_lost(disk):
    with Store.open(disk / "store") as store:
        before = tagged(store, NAME, b"x" * 100_000)
        with pytest.raises(ImageError, match=r"cannot write to image store .*: No space left on device") as caught:
            tagged(store, "ghcr.io/a/large:1", b"y" * 2_000_000)
        assert caught.value.hint == "free some space on that file system"
        for n in range(10_000):  # until not even index.json fits
            try:
                store.tag(before, f"ghcr.io/a/{'n' * 200}{n}:1")
            except ImageError as error:
                assert "No space left on device" in str(error)
                break
        else:
            pytest.fail("the disk never got full")

        assert store.resolve(NAME).digest == before.digest
        assert store.read(before)
        assert len(store.list()) == n + 1
        assert list((store.root / "ingest").iterdir()) == []


def test_a_full_disk_can_be_freed_by_removing(disk):
    with Store.open(disk / "store") as store:
        tagged(store, NAME, b"x" * 700_000)
        with pytest.raises(ImageError):
            tagged(store, "ghcr.io/a/other:1", b"y" * 700_000)
        store.remove(NAME)
        tagged(store, "ghcr.io/a/other:1", b"y" * 700_000)

        assert [stored.name for stored in store.list()] == ["ghcr.io/a/other:1"]


def test_a_read_only_disk_can_be_read_and_says_why_it_is_not_written(disk):
    with Store.open(disk / "store") as store:
        before = tagged(store, NAME, b"x")
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)

    with Store.open(disk / "store") as store:
        assert store.resolve(NAME).digest == before.digest
        for action in (lambda: store.write("x", b"new"), lambda: store.tag(before, "a"), lambda: store.remove(NAME)):
            with pytest.raises(ImageError, match=r"cannot write to image store .*: Read-only file system") as caught:
                action()
            assert caught.value.hint == "mount that file system writable"
        assert store.resolve(NAME).digest == before.digest
