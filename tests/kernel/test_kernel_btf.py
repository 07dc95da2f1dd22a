"""Gadgets on kernels without BTF: each source of it, and that a wrong one never passes.

Where the kernel has its own, it is hidden. `make test-nobtf` runs these on a kernel that really has none.
"""

import os
import struct
import subprocess
import sys
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest

from igrun import attach, kernel_btf
from igrun.btfgen import minimal, relocations
from igrun.cli.running import tell_btf
from igrun.elf import Elf
from igrun.errors import BtfNotFoundError, UnsupportedError
from igrun.host import HOST_TARGET, Host
from igrun.image import GadgetImage
from igrun.kernel_btf import layer, probe
from igrun.kernel_btf.names import Kernel
from igrun.load import load
from igrun.metadata import GadgetMetadata
from igrun.program import Plan, Program
from igrun.runtime import Gadget
from tests.compiled import HEAD, compiled
from tests.counting import counting, hits
from tests.kernel.btfless import Hub, hidden, hub_with, right_btf

pytestmark = pytest.mark.guest

OTHERS = Path(__file__).parent / "other_kernels"
READS = HEAD + "#include <bpf/bpf_core_read.h>\n"
SEES = """
struct answer { __u32 parent; __u32 mntns; };
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct answer);
} answers SEC(".maps");

const volatile __u32 only_pid = 0;
GADGET_PARAM(only_pid);

SEC("raw_tp/sys_enter")
int see(void *ctx)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct answer *answer;
	__u32 zero = 0;

	answer = bpf_map_lookup_elem(&answers, &zero);
	if (!answer || bpf_get_current_pid_tgid() >> 32 != only_pid)
		return 0;
	answer->parent = BPF_CORE_READ(task, real_parent, tgid);
	answer->mntns = BPF_CORE_READ(task, nsproxy, mnt_ns, ns.inum);
	return 0;
}
"""


def elf() -> bytes:
    return compiled(SEES, head=READS)


def wrong_btf() -> bytes:
    """Of a kernel that is not this one: what the probe needs of it."""
    return (OTHERS / ("6.1.btf" if os.uname().release.startswith("5.10.") else "5.10.btf")).read_bytes()


@cache
def small_btf() -> bytes:
    return minimal(right_btf(), [relocations(elf()), relocations(probe.elf())])


@pytest.fixture(autouse=True)
def no_kernel_btf():
    """Nothing in /sys/kernel/btf, no cache, and nothing left in the kernel."""
    with hidden():
        yield


def image(btfs: bytes | None = None) -> GadgetImage:
    return GadgetImage(GadgetMetadata(), b"", elf(), None, btfs, "sha256:0")


def seen(btfs: bytes | None = None, **values: str):
    """Run it for a moment; what it read, and where its BTF was from."""
    gadget = Gadget.of(image(btfs), {"pull": "never", "only_pid": str(os.getpid()), **values})
    with gadget.run() as run:
        os.getppid()
        return struct.unpack("<II", run._loaded.map("answers").lookup(bytes(4))), run.kernel_btf


RIGHT = (os.getppid(), Path("/proc/self/ns/mnt").stat().st_ino)
NAME = f"{Kernel.of(Host.current()).names()[0]}.btf"


@pytest.fixture
def hub():
    with ExitStack() as stack:

        def start(btf: bytes) -> Hub:
            return stack.enter_context(hub_with(btf))

        yield start


def test_without_any_the_error_lists_where_it_was_looked_for():
    with pytest.raises(BtfNotFoundError) as told:
        seen()

    assert told.value.release == os.uname().release
    assert [place.split()[0] for place, _ in told.value.searched] == ["kernel", "vmlinux", "image", "cache", "BTFHub"]
    assert "not asked, as --pull is never" in str(told.value)


LAYOUTS = {"documented": NAME, "of tar": f"./{NAME}", "flat": f"./{os.uname().release}.btf"}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_image_may_bring_it(layout):
    answer, btf = seen(layer.write({LAYOUTS[layout]: small_btf()}))

    assert answer == RIGHT
    assert (btf.source, btf.checked) == ("image", True)
    assert "process id, thread id, name, mount namespace read with it are right" in btf.searched[-1].why


def test_btfhub_has_it_and_is_asked_once(hub):
    there = hub(right_btf())
    first, btf = seen(btfhub=there.url)
    again, kept = seen(btfhub=there.url)

    assert first == again == RIGHT
    assert (btf.source, kept.source) == ("BTFHub", "cache")
    assert len(there.asked) == 1


def test_a_kernel_on_disk_has_it(tmp_path):
    place = Path("/boot", f"vmlinux-{os.uname().release}")
    place.parent.mkdir(exist_ok=True)
    try:
        place.write_bytes(kernel_with(right_btf()))
        answer, btf = seen()
    finally:
        place.unlink()

    assert answer == RIGHT
    assert (btf.source, btf.searched[-1].place) == ("vmlinux", str(place))


def kernel_with(btf: bytes) -> bytes:
    """An ELF file with nothing but section .BTF."""
    names = b"\0.BTF\0.shstrtab\0"
    head = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, 62, 1, 0, 0, 64, 0, 64, 0, 0, 64, 3, 2)
    start = 64 + 3 * 64
    sections = struct.pack("<IIQQQQIIQQ", *[0] * 10)
    sections += struct.pack("<IIQQQQIIQQ", 1, 1, 0, 0, start, len(btf), 0, 0, 1, 0)
    sections += struct.pack("<IIQQQQIIQQ", 6, 3, 0, 0, start + len(btf), len(names), 0, 0, 1, 0)
    return head + sections + btf + names


def test_another_kernels_is_rejected_and_the_next_source_tried(hub):
    answer, btf = seen(layer.write({NAME: wrong_btf()}), btfhub=hub(right_btf()).url)

    assert answer == RIGHT
    assert btf.source == "BTFHub"
    [rejected] = [one for one in btf.searched if one.source == "image"]
    assert not rejected.used
    assert rejected.why.startswith("rejected: it is of another kernel: ")


def test_another_kernels_alone_is_an_error(hub):
    with pytest.raises(BtfNotFoundError, match="rejected: it is of another kernel: "):
        seen(layer.write({NAME: wrong_btf()}), btfhub=hub(wrong_btf()).url)


def test_small_btf_that_describes_no_process_is_used_and_that_is_said():
    nothing = minimal(right_btf(), [relocations(compiled(NO_PROCESS, head=READS))])
    program = Gadget.of(image()).program
    with ExitStack() as stack:
        found = kernel_btf.find(
            Host.current(), program, stack=stack, btfs=layer.write({NAME: nothing}), values={"btfhub": "never"}
        )

    assert found.source == "image"
    assert not found.checked
    assert found.searched[-1].why == "used, but not checked: it describes nothing of a process"


NO_PROCESS = """
SEC("raw_tp/sys_enter")
int see(struct pt_regs *ctx)
{
	return bpf_core_field_size(((struct file *)0)->f_flags);
}
"""


@pytest.mark.parametrize("section", ["fentry/do_sys_openat2", "tp_btf/sys_enter", "iter/task", "struct_ops/init"])
def test_what_the_kernel_itself_resolves_needs_btf_in_it(section):
    source = RESOLVED[section]

    with pytest.raises(UnsupportedError, match=rf"program 'bad' \({section}\): programs of this type need BTF in"):
        ran(source, btfs=layer.write({NAME: small_btf()}))


RESOLVED = {
    section: f'SEC("{section}") int bad(__u64 *ctx) {{ return 0; }}\n'
    for section in ("fentry/do_sys_openat2", "tp_btf/sys_enter", "iter/task")
}
RESOLVED["struct_ops/init"] = """
SEC("struct_ops/init")
void bad(__u64 *ctx)
{
}
SEC(".struct_ops") struct tcp_congestion_ops ours = { .init = (void *)bad, .name = "igrun_test" };
"""
RELOCATED = """
static __attribute__((noinline)) int told(struct task_struct *task)
{
	return BPF_CORE_READ(task, tgid);
}

SEC("raw_tp/sys_exit")
int bad(void *ctx)
{
	return told((struct task_struct *)bpf_get_current_task()) > 0;
}
"""


def ran(source: str, yaml: str = "name: test\n", btfs: bytes | None = None):
    """Run it for a moment: how often its program `count` was called, and what was left out."""
    metadata = GadgetMetadata.parse(yaml.encode(), strict=True)
    gadget = Gadget.of(GadgetImage(metadata, b"", compiled(source, head=READS), None, btfs, ""), {"pull": "never"})
    with gadget.run() as run:
        os.getppid()
        return hits(SimpleNamespace(loaded=run._loaded)), run._loaded.choices.left_out


@pytest.mark.parametrize("source", [*RESOLVED.values(), RELOCATED], ids=[*RESOLVED, "CO-RE"])
@pytest.mark.parametrize("options", ["optional: true", "any_of: calls"])
def test_a_run_does_without_programs_that_need_it_and_may_be_missing(source, options, caplog):
    caplog.set_level("DEBUG")
    yaml = f"name: test\nprograms:\n  bad: {{{options}}}\n  count: {{{options}}}\n"

    number, left_out = ran(source + counting("raw_tp/sys_enter"), yaml)

    assert number > 0
    assert list(left_out) == ["bad"]
    assert "BTF" in str(left_out["bad"]) and "program 'bad'" in str(left_out["bad"])
    assert f"left out: {left_out['bad']}" in caplog.text


def test_a_disabled_program_asks_for_no_btf():
    source = RELOCATED + counting("raw_tp/sys_enter")

    number, left_out = ran(source, "name: test\nprograms:\n  bad: {attach_to: gadget_program_disabled}\n")

    assert (number > 0, left_out) == (True, {})


def test_a_struct_of_the_runtime_is_merged_with_btf_from_elsewhere():
    """As that of gadget_sockets' values: it is in no kernel, and the runtime tells how long its members are."""
    ours = Elf(compiled(OF_RUNTIME, head=READS))

    program = Program.open(compiled(SOCKETS, head=READS), GadgetMetadata())
    small = minimal(right_btf(), [relocations(program.elf)])
    with ExitStack() as stack:
        plan = Plan(program, Host.current(), program.sources, stack)
        plan.constants["only_pid"] = os.getpid().to_bytes(4, "little")
        plan.kernel_btf = kernel_btf.find(plan.host, program, stack=stack, btfs=layer.write({NAME: small})).path
        plan.extra_btf.append(ours.content(ours.by_name[".BTF"]))
        loaded = load(plan)
        attach.attach(loaded.hooks, HOST_TARGET, loaded)
        os.getppid()

        assert loaded.map("seen").lookup(bytes(4)) == struct.pack("<IIII", os.getpid(), 600, 512, 1112)


OF_RUNTIME = """
struct gadget_socket_value_of_runtime { __u64 mntns; char unused[80]; char cwd[512]; char exepath[512]; };
struct gadget_socket_value_of_runtime value = {};
"""

SOCKETS = """
struct gadget_socket_value_of_runtime {
	char cwd[1];
	char exepath[1];
} __attribute__((preserve_access_index));
struct answer { __u32 pid, at, bytes, whole; };
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct answer);
} seen SEC(".maps");

const volatile __u32 only_pid = 0;

SEC("raw_tp/sys_enter")
int see(void *ctx)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	__u32 zero = 0;
	struct gadget_socket_value_of_runtime *owner = 0;
	struct answer *answer = bpf_map_lookup_elem(&seen, &zero);

	if (!answer || !bpf_core_type_exists(struct gadget_socket_value_of_runtime))
		return 0;
	if (BPF_CORE_READ(task, tgid) != only_pid)
		return 0;
	answer->pid = only_pid;
	answer->at = bpf_core_field_offset(owner->exepath);
	answer->bytes = bpf_core_field_size(owner->cwd);
	answer->whole = bpf_core_type_size(struct gadget_socket_value_of_runtime);
	return 0;
}
"""


def test_the_probe_is_right_in_a_container(tmp_path):
    path = tmp_path / "kernel.btf"
    path.write_bytes(right_btf())
    script = f"import sys; sys.path[:0] = {sys.path!r}; from igrun.kernel_btf.probe import *; print(check(sys.argv[1]))"
    command = ["unshare", "--pid", "--mount", "--fork", "--mount-proc", sys.executable, "-c", script, str(path)]
    done = subprocess.run(command, capture_output=True, text=True)

    assert done.stdout == "['process id', 'thread id', 'name', 'mount namespace']\n", done.stderr


def test_a_verbose_run_tells_each_place(capfdbinary):
    _, btf = seen(layer.write({NAME: small_btf()}))

    tell_btf(SimpleNamespace(kernel_btf=btf), verbose=True)

    sys.stderr.flush()
    lines = capfdbinary.readouterr().err.decode().splitlines()
    assert [line.split(": ")[:2] for line in lines] == [["BTF", "kernel"], ["BTF", "vmlinux"], ["BTF", "image"]]
