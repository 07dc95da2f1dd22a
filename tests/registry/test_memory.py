"""What moves an image needs the same memory for a large one as for a small one."""

import pytest

from tests.registry.machine import large

pytestmark = pytest.mark.root
SMALL, LARGE, LARGEST = 4 << 20, 32 << 20, 200 << 20
MORE_KIB = 8 << 10  # that much more is no sign of a blob in memory


@pytest.mark.parametrize("size", [LARGE, pytest.param(LARGEST, marks=pytest.mark.oci)], ids=["32MiB", "200MiB"])
def test_memory_does_not_grow_with_the_blob(size, ig, another_ig, plain, repository, measured, tmp_path):
    way = ("--insecure-registries", plain.address)
    most: dict[str, list[int]] = {}
    for bytes_ in (SMALL, size):
        name = plain.named(f"{repository}/{bytes_}")
        with ig.store() as store:
            large(store, name, bytes_)
        archive = tmp_path / "it.tar"
        most.setdefault("push", []).append(ig.most_kib("image", "push", name, *way))
        most.setdefault("pull", []).append(another_ig.most_kib("image", "pull", name, *way))
        if size == LARGEST:
            most.setdefault("copy", []).append(ig.most_kib("image", "copy", name, f"{name}-copy", *way))
            most.setdefault("export", []).append(ig.most_kib("image", "export", name, archive))
            another_ig("image", "remove", name)
            most.setdefault("import", []).append(another_ig.most_kib("image", "import", archive))

    for what, (small, big) in most.items():
        measured(f"peak memory of ig image {what}: {small} KiB for {SMALL >> 20} MiB, {big} KiB for {size >> 20} MiB")
    assert {what: big - small for what, (small, big) in most.items() if big - small > MORE_KIB} == {}
