"""BTF cut down to what a program needs: the same bytes as bpftool's, on real kernels."""

import contextlib
import shutil
import subprocess
from pathlib import Path

import pytest

from igrun.btf import Btf, TypeKind
from igrun.btfgen import minimal, relocations
from igrun.btfgen.relocations import Kind, essential, records
from igrun.elf import Elf
from igrun.errors import ImageError
from igrun.kernel_btf import vmlinux
from tests.compiled import HEAD, compiled
from tests.vm.kernels import cache_root

READS = HEAD + "#include <bpf/bpf_core_read.h>\n#include <bpf/bpf_tracing.h>\n"
HOST = Path("/sys/kernel/btf/vmlinux")
PROGRAMS = {
    "chains": "return BPF_CORE_READ(task, real_parent, nsproxy, mnt_ns, ns.inum);",
    "arrays": "char name[8]; BPF_CORE_READ_STR_INTO(&name, task, comm); return name[0] + BPF_CORE_READ(task, comm[3]);",
    "bit-fields": "return BPF_CORE_READ_BITFIELD_PROBED((struct tcp_sock *)task, nonagle) + "
    "BPF_CORE_READ_BITFIELD_PROBED(task, sched_reset_on_fork);",
    "unions": "return BPF_CORE_READ((struct sock *)task, __sk_common.skc_family) + "
    "BPF_CORE_READ((struct sock *)task, __sk_common.skc_v6_daddr.in6_u.u6_addr32[2]);",
    "flavors": "struct task_struct___old *old = (void *)task; if (bpf_core_field_exists(old->state)) "
    "return BPF_CORE_READ(old, state); return BPF_CORE_READ(task, __state);",
    "enums": "return bpf_core_enum_value(enum bpf_func_id, BPF_FUNC_ringbuf_output) + "
    "bpf_core_enum_value_exists(enum pid_type___x, PIDTYPE_SID___x) + bpf_core_type_size(enum zone_type);",
    "types": "return bpf_core_type_exists(struct nothing) + bpf_core_type_size(struct sk_buff) + "
    "bpf_core_type_exists(struct bpf_ringbuf) + bpf_core_type_id_kernel(struct file) + "
    "bpf_core_type_exists(kuid_t) + bpf_core_type_exists(work_func_t) + bpf_core_type_size(atomic_t);",
    "pointers": "return bpf_core_type_exists(poll_queue_proc) + BPF_CORE_READ((struct file *)task, f_op, read) + "
    "bpf_core_field_size(((struct file *)0)->f_path.dentry);",
    "nothing": "return 0;",
}
FLAVORS = """
struct task_struct___old { long state; } __attribute__((preserve_access_index));
enum pid_type___x { PIDTYPE_SID___x = 1 };
struct nothing { int x; };
"""


def program(body: str) -> bytes:
    return compiled(
        FLAVORS
        + 'SEC("raw_tp/sys_enter") int see(void *ctx) { struct task_struct *task = (void *)bpf_get_current_task(); '
        + body
        + " }",
        head=READS,
    )


def kernels() -> dict[str, Path]:
    """Files with BTF: this machine's, and the kernels for guests that are in the cache."""
    found = {"this machine": HOST} if HOST.exists() else {}
    for path in sorted((cache_root() / "kernels").glob("*/vmlinux")):
        if "arm64" not in path.parent.name:  # whose image is no ELF file
            found[path.parent.name] = path
    return found


def btf_of(path: Path) -> bytes | None:
    if path.read_bytes()[:4] != b"\x7fELF":
        return path.read_bytes()
    try:
        return vmlinux.btf_of(path)
    except ImageError:
        return (path.parent / "kernel.btf").read_bytes()


@pytest.mark.parametrize("what", PROGRAMS)
def test_it_is_byte_for_byte_what_bpftool_makes(what, tmp_path):
    if not kernels() or not (bpftool := shutil.which("bpftool") or shutil.which("bpftool", path="/usr/sbin")):
        pytest.skip("no kernel's BTF, or no bpftool (Debian and Ubuntu: apt install bpftool)")
    elf = program(PROGRAMS[what])
    (tmp_path / "program.o").write_bytes(elf)
    for name, path in kernels().items():
        whole = btf_of(path)
        (tmp_path / "whole.btf").write_bytes(whole)
        command = [bpftool, "gen", "min_core_btf", "whole.btf", "small.btf", "program.o"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert minimal(whole, [relocations(elf)]) == (tmp_path / "small.btf").read_bytes(), name


@pytest.mark.skipif(not HOST.exists(), reason="this kernel has no BTF")
def test_what_several_objects_need_is_all_there():
    one, other = (relocations(program(PROGRAMS[what])) for what in ("chains", "unions"))
    whole = HOST.read_bytes()

    both = Btf.parse(minimal(whole, [one, other]))

    assert both.find("mnt_namespace", TypeKind.STRUCT)
    assert both.find("sock_common", TypeKind.STRUCT)
    assert minimal(whole, [one, one]) == minimal(whole, [one])


def test_an_object_without_relocations_needs_nothing():
    assert relocations(compiled("int number = 7;")) == ()


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("task_struct", "task_struct"),
        ("task_struct___old", "task_struct"),
        ("a___b___c", "a___b"),
        ("a____b", "a____b"),
    ],
)
def test_a_flavor_is_no_part_of_the_name(name, plain):
    assert essential(name) == plain


def test_a_broken_table_is_refused():
    elf = program(PROGRAMS["chains"])
    object_ = Elf(elf)
    section = object_.by_name[".BTF.ext"]
    data = bytearray(object_.content(section))
    good = records(bytes(data))
    assert {kind for kind, _, _ in good} == {Kind.BYTE_OFFSET}

    for at in range(len(data)):
        for value in (0, 1, 0x7F, 0xFF):
            changed = bytearray(elf)
            changed[section.offset + at] = value
            with contextlib.suppress(ImageError):
                relocations(bytes(changed))
