"""Where the kernel's BTF is looked for, and how what is found there is read."""

import contextlib
import gzip
import io
import os
import random
import struct
import tarfile
from pathlib import Path

import pytest

from igrun import caches, kernel_btf
from igrun.btf import MAGIC, Btf
from igrun.btfgen import minimal, relocations
from igrun.cli.btf import command
from igrun.cli.face import Face
from igrun.dataclass import replace
from igrun.errors import GadgetError, ImageError, UnsupportedError
from igrun.host import Host
from igrun.kernel_btf import Searched, bundle, cache, layer, policy, probe, vmlinux
from igrun.kernel_btf.names import Kernel, named
from igrun.kernel_btf.small import keep, kept
from igrun.metadata import GadgetMetadata
from igrun.oci.archive import Archive
from igrun.oci.export import export
from igrun.oci.store import Store
from igrun.program import Program
from tests.compiled import compiled
from tests.images import NAME, image

BTF = struct.pack("<HBBIIIII", MAGIC, 1, 0, 24, 0, 0, 0, 1) + b"\0"
KERNEL = Kernel("debian", "10", "x86_64", "4.19.0-20-amd64")
CORE = """
SEC("raw_tp/sys_enter")
int see(struct task_struct *task)
{
	return __builtin_preserve_access_index(&task->tgid) != 0;
}
"""


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(policy, "cache", lambda: tmp_path / "cache")


@pytest.fixture
def host(tmp_path) -> Host:
    """A machine without anything."""
    root = tmp_path / "root"
    root.mkdir()
    os_release = {"ID": "debian", "VERSION_ID": "10"}
    return replace(Host.current(), root=root, machine="x86_64", release=KERNEL.release, os_release=os_release)


@pytest.fixture
def right(monkeypatch):
    """Whatever is found is of this kernel."""
    monkeypatch.setattr(probe, "check", lambda path: ["process id"])


def program(source: str = CORE) -> Program:
    return Program.open(compiled(source), GadgetMetadata())


def find(host: Host, **more):
    return kernel_btf.find(host, program(), **{"values": {"btfhub": "never"}, **more})


# ---------------------------------------------------------------------------------------------- the order


def test_the_kernels_own_is_used_and_nothing_else_looked_at(host):
    own = host.root / "sys/kernel/btf/vmlinux"
    own.parent.mkdir(parents=True)
    own.write_bytes(BTF)

    found = find(host, btfs=b"broken")

    assert found.searched == (Searched("kernel", str(own), True, "used"),)
    assert found.path == (None if Path("/sys/kernel/btf/vmlinux").exists() else str(own))


def test_a_program_that_asks_nothing_of_the_kernel_needs_none(host):
    plain = Program.open(compiled('SEC("raw_tp/sys_enter") int see(void *ctx) { return 0; }'), GadgetMetadata())

    assert kernel_btf.find(host, plain).searched == ()


def test_each_place_is_named_with_the_reason(host):
    found = find(host)

    assert found.missing
    assert [(place.split()[0], why) for place, why in found.missing.searched] == [
        ("kernel", "no such file"),
        ("vmlinux", "no such file"),
        ("image", "the image has none"),
        ("cache", "no such file"),
        ("BTFHub", "not asked, as --btfhub is never"),
    ]
    assert "ig btf fetch" in found.missing.hint
    assert (found.path, found.source) == (None, "")


def test_the_image_comes_before_the_cache(host, right, tmp_path):
    cache.save(tmp_path / "cache", KERNEL, BTF)
    both = find(host, btfs=layer.write({f"{KERNEL.name}.btf": BTF}))
    one = find(host)

    assert (both.source, one.source) == ("image", "cache")
    assert Path(both.path).read_bytes() == BTF


def test_a_layer_that_is_broken_is_a_reason(host, right, tmp_path):
    cache.save(tmp_path / "cache", KERNEL, BTF)
    found = find(host, btfs=b"\x1f\x8bbroken")

    assert [one.why for one in found.searched if one.source == "image"] == [
        "the image's BTFGen layer is damaged: it does not unpack"
    ]


def test_what_is_no_btf_is_a_reason(host):
    missing = find(host, btfs=layer.write({f"{KERNEL.name}.btf": b"x" * 100})).missing

    assert "image debian/10/x86_64/4.19.0-20-amd64.btf: BTF: wrong magic" in str(missing)


def test_a_machine_that_does_not_say_what_it_is_asks_no_hub(host):
    nobody = replace(host, os_release={})
    missing = kernel_btf.find(nobody, program(), values={"btfhub": "http://127.0.0.1:9"}).missing

    assert "not asked: the kernel's ID is not known" in str(missing)


def test_the_file_in_memory_goes_with_the_stack(host, right):
    with contextlib.ExitStack() as stack:
        before = descriptors()
        find(host, btfs=layer.write({f"{KERNEL.release}.btf": BTF}), stack=stack)
        assert descriptors() == before + 1

    assert descriptors() == before


def test_a_rejected_one_leaves_no_file(host, monkeypatch):
    def wrong(path: str) -> list[str]:
        raise probe.WrongBtfError("it is of another kernel")

    monkeypatch.setattr(probe, "check", wrong)
    before = descriptors()
    missing = find(host, btfs=layer.write({f"{KERNEL.name}.btf": BTF})).missing

    assert "rejected: it is of another kernel" in str(missing)
    assert descriptors() == before


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


FENTRY = 'SEC("fentry/vfs_read") int see(void *ctx) { return 0; }'


def test_what_the_kernel_itself_resolves_is_looked_for_nowhere_else(host):
    found = kernel_btf.find(host, program(FENTRY), values={"btfhub": "http://127.0.0.1:9"})

    assert [one.source for one in found.searched] == ["kernel"]
    assert found.missing is None


def test_igruns_own_programs_have_theirs_in_the_package(host, right, monkeypatch, tmp_path):
    place = tmp_path / "btfs" / f"{KERNEL.name}.btf"
    place.parent.mkdir(parents=True)
    place.write_bytes(BTF)
    monkeypatch.setattr("igrun.data.find", lambda name: tmp_path / name)

    assert find(host, packaged=True).source == "package"


# ---------------------------------------------------------------------------------------------- the layer


@pytest.mark.parametrize(
    "path",
    [
        f"{KERNEL.name}.btf",
        f"./{KERNEL.name}.btf",
        f"./{KERNEL.release}.btf",
        f"{KERNEL.release}.btf",
    ],
)
def test_both_layouts_of_layers_are_read(path):
    assert layer.find(layer.write({path: BTF, "./other.btf": b"x"}), KERNEL)[1] == BTF


def test_the_documented_layout_wins():
    found = layer.find(layer.write({f"{KERNEL.release}.btf": b"flat", f"{KERNEL.name}.btf": b"nested"}), KERNEL)

    assert found == (f"{KERNEL.name}.btf", b"nested")


@pytest.mark.parametrize("machine", ["aarch64", "arm64"])
def test_both_names_of_arm_are_read(machine):
    kernel = KERNEL._replace(machine="aarch64")

    assert layer.find(layer.write({f"debian/10/{machine}/{kernel.release}.btf": BTF}), kernel)[1] == BTF


def test_what_gnu_tar_writes_is_read(tmp_path):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", format=tarfile.GNU_FORMAT) as tar:
        for name in (".", "./debian", "./debian/10", "./debian/10/x86_64"):
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE
            tar.addfile(info)
        info = tarfile.TarInfo(f"./{KERNEL.name}.btf")
        info.size = len(BTF)
        tar.addfile(info, io.BytesIO(BTF))

    assert layer.find(out.getvalue(), KERNEL)[1] == BTF


def test_another_kernels_layer_says_so():
    with pytest.raises(ImageError, match="it has BTF of 1 kernels, and none of debian/10/x86_64/4"):
        layer.find(layer.write({"ubuntu/20.04/x86_64/5.4.0.btf": BTF}), KERNEL)


def test_a_layer_that_is_a_bomb_does_not_go_off():
    with pytest.raises(ImageError, match="unpacks to more than 64 MiB"):
        layer.find(gzip.compress(bytes(80 << 20), 9), KERNEL)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_a_layer_has_regular_files_only(kind):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        info = tarfile.TarInfo(f"{KERNEL.name}.btf")
        info.type, info.linkname = kind, "/etc/shadow"
        tar.addfile(info)

    with pytest.raises(ImageError, match="is no regular file"):
        layer.find(out.getvalue(), KERNEL)


def test_a_layer_is_the_same_bytes_each_time():
    files = {f"a/1/x86_64/{number}.btf": bytes([number]) for number in range(20)}
    shuffled = list(files.items())
    random.Random(1).shuffle(shuffled)

    assert layer.write(files) == layer.write(dict(shuffled))


def test_damaged_layers_are_only_refused():
    good = layer.write({f"{KERNEL.name}.btf": BTF, "./x.btf": b"x" * 3000})
    chance = random.Random(7)
    for _ in range(300):
        data = bytearray(good)
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        with contextlib.suppress(ImageError):
            layer.find(bytes(data[: chance.randint(0, len(data))]), KERNEL)


# ---------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("path", "kernel"),
    [
        ("/x/debian/10/x86_64/4.19.0-20-amd64.btf.tar.xz", KERNEL),
        ("debian/10/x86_64/4.19.0-20-amd64.btf", KERNEL),
        ("/ubuntu/20.04/arm64/5.4.0-1.btf", Kernel("ubuntu", "20.04", "arm64", "5.4.0-1")),
        ("/4.19.0-20-amd64.btf", None),
        ("/debian/10/mips/4.19.0-20-amd64.btf", None),
        ("/debian/10/x86_64/notes.txt", None),
        ("/de\nbian/10/x86_64/4.btf", None),
    ],
)
def test_a_path_tells_the_kernel(path, kernel):
    assert named(Path(path)) == kernel


@pytest.mark.parametrize("part", ["", "..", "a/b", "a\n", "x" * 201])
def test_a_kernels_name_is_no_way_out(part, tmp_path):
    with pytest.raises(GadgetError, match="the kernel's release"):
        cache.save(tmp_path, KERNEL._replace(release=part), BTF)


# ---------------------------------------------------------------------------------------------- the probe


def answer(**changed) -> probe.Answer:
    right = probe.Answer(b"ig-1".ljust(16, b"\0"), 7, 8, 15, 7, 8, 4026531840, b"ig-1".ljust(16, b"\0"))
    return right._replace(**changed)


def test_what_was_read_is_compared_with_what_is_known():
    assert probe.compare(answer(), 7, 4026531840) == ["process id", "thread id", "name", "mount namespace"]
    assert probe.compare(answer(), 0, 0) == ["process id", "thread id", "name"]
    assert probe.compare(answer(has=probe.COMM, tgid=0, pid=0), 7, 1) == ["name"]


@pytest.mark.parametrize(
    ("changed", "pid", "why"),
    [
        ({"tgid": 0}, 7, "process id 7 reads as 0"),
        ({"tgid": 9, "kernel_tgid": 9}, 7, "process id 7 reads as 9"),
        ({"tgid": 9}, 0, "process id 7 reads as 9"),
        ({"pid": 7}, 7, "thread id 8 reads as 7"),
        ({"comm": bytes(16)}, 7, "name 'ig-1' reads as ''"),
        ({"mntns": 0}, 7, "mount namespace 4026531840 reads as 0"),
    ],
)
def test_what_differs_is_told(changed, pid, why):
    with pytest.raises(probe.WrongBtfError, match=why):
        probe.compare(answer(**changed), pid, 4026531840)


def test_btf_that_describes_nothing_is_not_checked():
    with pytest.raises(probe.UncheckedError):
        probe.compare(answer(has=0), 7, 1)


@pytest.mark.kernel
def test_the_kernels_own_btf_passes_the_probe():
    from tests import packaged

    packaged.bpf()
    if not Path("/sys/kernel/btf/vmlinux").exists():
        raise UnsupportedError("the kernel's own BTF", "it has none")

    assert probe.check("/sys/kernel/btf/vmlinux") == ["process id", "thread id", "name", "mount namespace"]
    assert Path("/proc/self/comm").read_text()[:3] != "ig-"


# ---------------------------------------------------------------------------------------------- vmlinux


def elf(**changed) -> bytes:
    names = b"\0.BTF\0.shstrtab\0"
    about = {"size": len(BTF), "flags": 0, "count": 3, "names": 2, "start": 64, **changed}
    head = (b"\x7fELF\x02\x01\x01", 2, 62, 1, 0, 0, about["start"], 0, 64, 0, 0, 64, about["count"], about["names"])
    at = 64 + 3 * 64
    sections = [[0] * 10, [1, 1, about["flags"], 0, at, about["size"], 0, 0, 1, 0]]
    sections.append([6, 3, 0, 0, at + len(BTF), len(names), 0, 0, 1, 0])
    table = b"".join(struct.pack("<IIQQQQIIQQ", *section) for section in sections)
    return struct.pack("<16sHHIQQQIHHHHHH", *head) + table + BTF + names


def test_a_kernel_on_disk_holds_it(tmp_path):
    (tmp_path / "vmlinux").write_bytes(elf())

    assert vmlinux.btf_of(tmp_path / "vmlinux") == BTF
    Btf.parse(BTF)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "no ELF file"),
        (b"MZ" + bytes(100), "no ELF file"),
        (elf(size=1 << 40), "larger than 64 MiB"),
        (elf(size=5000), "cut off"),
        (elf(flags=0x800), "compressed"),
        (elf(names=9), "broken"),
        (elf(count=0), "broken"),
        (elf(start=1 << 63), "cut off"),
        (elf().replace(b".BTF\0", b".btf\0"), "no section .BTF"),
    ],
)
def test_a_file_that_holds_none_is_refused(data, why, tmp_path):
    (tmp_path / "vmlinux").write_bytes(data)
    with pytest.raises(ImageError, match=why):
        vmlinux.btf_of(tmp_path / "vmlinux")


def test_a_device_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "vmlinux")
    with pytest.raises(ImageError, match="no regular file"):
        vmlinux.btf_of(tmp_path / "vmlinux")


# ---------------------------------------------------------------------------------------------- the cache


def test_what_others_can_write_is_not_used(host, tmp_path):
    cache.save(tmp_path / "cache", KERNEL, BTF).chmod(0o666)

    assert "others than its owner and root can write it" in str(find(host).missing)


@pytest.fixture
def run(capfd):
    """What a command prints."""

    def run_(*args: object) -> str:
        command.main([str(arg) for arg in args], obj=Face(), standalone_mode=False)
        return capfd.readouterr().out

    return run_


def test_a_folder_is_imported_and_listed(run, tmp_path):
    for path in ("in/debian/10/x86_64/4.19.0-20-amd64.btf", "in/ubuntu/20.04/arm64/5.4.0.btf", "in/other.btf"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(BTF)

    assert run("import", tmp_path / "in").splitlines() == [
        f"{tmp_path}/cache/debian/10/x86_64/4.19.0-20-amd64.btf",
        f"{tmp_path}/cache/ubuntu/20.04/arm64/5.4.0.btf",
    ]
    assert '{"Id":"debian","VersionId":"10","Arch":"x86_64","Release":"4.19.0-20-amd64","Size":25}' in run(
        "list", "-o", "json"
    )


def test_a_file_is_imported_for_the_kernel_that_flags_name(run, tmp_path):
    (tmp_path / "some").write_bytes(BTF)

    flags = ("--id", "debian", "--version-id", "10", "--arch", "amd64", "--release", "4.9")

    assert run("import", tmp_path / "some", *flags) == f"{tmp_path}/cache/debian/10/x86_64/4.9.btf\n"


def test_what_is_no_btf_is_not_imported(run, tmp_path):
    (tmp_path / "some").write_bytes(b"nothing")
    with pytest.raises(ImageError, match="some: BTF: 7 bytes are too few"):
        run("import", tmp_path / "some")


def test_btf_goes_along_with_images(tmp_path):
    cache.save(tmp_path / "cache", KERNEL, BTF)
    with Store.open(tmp_path / "store") as store:
        image(store, b"layer")
        for name in ("one.tar", "two.tar"):
            export(store, [NAME], tmp_path / name, more=bundle.members(tmp_path / "cache"))

    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()
    assert bundle.take(tmp_path / "one.tar", tmp_path / "other") == [KERNEL]
    assert (tmp_path / "other" / f"{KERNEL.name}.btf").read_bytes() == BTF
    with Archive.open(tmp_path / "one.tar") as archive:
        assert [one.name for one in archive.list()] == [NAME]


def test_an_empty_cache_has_nothing_to_take_along(tmp_path):
    with pytest.raises(GadgetError, match="there is no BTF in"):
        bundle.members(tmp_path / "cache")


def test_an_archive_cannot_write_elsewhere(tmp_path):
    with tarfile.open(tmp_path / "bad.tar", "w") as tar:
        info = tarfile.TarInfo("btfs/a/../../../../etc/x.btf")
        info.size = len(BTF)
        tar.addfile(info, io.BytesIO(BTF))
    with pytest.raises(ImageError, match="leads out of it"):
        bundle.take(tmp_path / "bad.tar", tmp_path / "cache")


def test_what_an_object_needs_of_the_kernels_own_is_kept_for_the_next_run(tmp_path, monkeypatch):
    monkeypatch.setattr(caches, "home", lambda: tmp_path / "cache")
    host, own = Host.current(), Path("/sys/kernel/btf/vmlinux")
    if not own.exists():
        pytest.skip("this kernel has no BTF of its own")
    elf = compiled(CORE)

    assert kept(host, own, elf) is None
    keep(host, own, elf)
    part = kept(host, own, elf)
    assert part == minimal(own.read_bytes(), [relocations(elf)])
    assert kept(host, own, elf + b"\0") is None
    assert kept(replace(host, release="other"), own, elf) is None
