"""`ig image build --btfgen`: what goes into an image for kernels without BTF."""

import io
import struct
import tarfile
from pathlib import Path

import pytest

from igrun.btf import MAGIC, Btf, TypeKind
from igrun.build import build
from igrun.errors import BuildError
from igrun.image import unpack
from igrun.kernel_btf import layer
from igrun.kernel_btf.names import Kernel
from igrun.oci.store import Store

SOURCE = """// SPDX-License-Identifier: GPL-2.0
#include <vmlinux.h>
#include <bpf/bpf_helpers.h>
char LICENSE[] SEC("license") = "GPL";
SEC("raw_tp/sys_enter") int see(struct task_struct *task)
{
	return task->exit_code;
}
"""


def whole(offset: int) -> bytes:
    """BTF of a kernel whose task_struct has two members, the second at this byte."""
    names = b"\0task_struct\0int\0other\0exit_code\0"
    words = [names.index(b"int"), 1 << 24, 4, 1 << 24 | 32]
    words += [names.index(b"task"), 4 << 24 | 2, 4096, names.index(b"other"), 1, 0, names.index(b"exit"), 1, offset * 8]
    types = struct.pack(f"<{len(words)}I", *words)
    return struct.pack("<HBBIIIII", MAGIC, 1, 0, 24, 0, len(types), len(types), len(names)) + types + names


@pytest.fixture
def archive(tmp_path) -> Path:
    """Of BTFHub's layout: the same release in two distributions, and another machine."""
    folder = tmp_path / "archive"
    for name, offset in (
        ("debian/10/x86_64/4.19", 100),
        ("ubuntu/18.04/x86_64/4.19", 200),
        ("debian/10/arm64/4.19", 300),
    ):
        path = folder / f"{name}.btf.tar.xz"
        path.parent.mkdir(parents=True)
        with tarfile.open(path, "w:xz") as tar:
            info = tarfile.TarInfo("4.19.btf")
            info.size = len(whole(offset))
            tar.addfile(info, io.BytesIO(whole(offset)))
    return folder


@pytest.fixture
def gadget(tmp_path) -> Path:
    folder = tmp_path / "gadget"
    folder.mkdir()
    (folder / "program.bpf.c").write_text(SOURCE)
    (folder / "gadget.yaml").write_text("name: test\n")
    return folder


def built(gadget: Path, archive: Path, store: Store, **more):
    return build(gadget, local=True, store=store, btfhub_archive=archive, env={"SOURCE_DATE_EPOCH": "1"}, **more)


def offset(data: bytes) -> int:
    btf = Btf.parse(data)
    [member] = [one for one in btf.members(btf.find("task_struct", TypeKind.STRUCT)) if one.name == "exit_code"]
    return member.bit_offset // 8


def test_each_kernel_has_what_the_program_needs(gadget, archive, tmp_path):
    with Store.open(tmp_path / "store") as store:
        descriptor = built(gadget, archive, store).descriptor
        images = {name: unpack(store, descriptor, name) for name in ("amd64", "arm64")}

    for architecture, kernel, at in (
        ("amd64", Kernel("debian", "10", "x86_64", "4.19"), 100),
        ("amd64", Kernel("ubuntu", "18.04", "x86_64", "4.19"), 200),
        ("arm64", Kernel("debian", "10", "aarch64", "4.19"), 300),
    ):
        path, data = layer.find(images[architecture].btfs, kernel)
        assert path == f"{kernel.id}/{kernel.version_id}/{kernel.machine}/4.19.btf"
        assert offset(data) == at
        assert b"other" not in data


def test_the_layer_is_the_same_each_time_and_kept_where_asked(gadget, archive, tmp_path):
    with Store.open(tmp_path / "store") as store:
        one = built(gadget, archive, store, output=tmp_path)
        two = built(gadget, archive, store)

    assert one.descriptor == two.descriptor
    assert {"btfs-x86_64.tar.gz", "btfs-arm64.tar.gz"} <= {path.name for path in tmp_path.iterdir()}


def test_a_damaged_archive_stops_the_build(gadget, archive, tmp_path):
    (archive / "debian/10/x86_64/4.19.btf.tar.xz").write_bytes(b"broken")
    with Store.open(tmp_path / "store") as store, pytest.raises(BuildError, match=r"4\.19\.btf\.tar\.xz: "):
        built(gadget, archive, store)


@pytest.mark.parametrize("name", ["nothing", "empty"])
def test_a_folder_that_is_no_archive_stops_the_build(name, gadget, tmp_path):
    (tmp_path / "empty").mkdir()
    with Store.open(tmp_path / "store") as store, pytest.raises(BuildError, match="--btfhub-archive: "):
        built(gadget, tmp_path / name, store)
