"""Programs of every tracing type: loaded, attached, run, and gone afterwards."""

import os
import re
import socket
import struct
from errno import ENOENT
from pathlib import Path

import pytest

from igrun import bpfcall
from igrun.attach import functions, kprobe
from igrun.attach.syscall import Ran
from igrun.errors import AttachError, MetadataError, UnsupportedError
from igrun.libbpf import BpfObject
from igrun.objects import Hook
from tests.counting import close_and_check, counting, hits, mine, within
from tests.kernel.killing import killed

pytestmark = pytest.mark.kernel


def open_something() -> None:
    Path("/dev/null").open("rb").close()


def run_a_filter() -> None:
    """Let the kernel run a program once: its raw tracepoint bpf_test_finish fires."""
    fd = bpfcall.prog_load(1)
    bpfcall.run_once(fd, bytes(64))
    os.close(fd)


HERE = [
    ("tracepoint/syscalls/sys_enter_openat", "void *ctx", open_something),
    ("tp/syscalls/sys_enter_openat", "void *ctx", open_something),
    ("raw_tracepoint/sys_enter", "void *ctx", open_something),
    ("raw_tp/sys_enter", "void *ctx", open_something),
    ("raw_tracepoint.w/bpf_test_finish", "void *ctx", run_a_filter),
    ("raw_tp.w/bpf_test_finish", "void *ctx", run_a_filter),
    ("tp_btf/sys_enter", "__u64 *ctx", open_something),
]
IN_GUEST = [
    ("kprobe/do_sys_openat2", "struct pt_regs *ctx", open_something),
    ("kretprobe/do_sys_openat2", "struct pt_regs *ctx", open_something),
    ("kprobe/do_sys_openat2+0x0", "struct pt_regs *ctx", open_something),
    ("kprobe/sys_openat", "struct pt_regs *ctx", open_something),
    ("ksyscall/openat", "struct pt_regs *ctx", open_something),
    ("kretsyscall/openat", "struct pt_regs *ctx", open_something),
    ("kprobe.multi/do_sys_openat2", "struct pt_regs *ctx", open_something),
    ("kprobe.multi/do_sys_openat?", "struct pt_regs *ctx", open_something),
    ("kprobe.multi/{do_sys_openat2,vfs_rmdir}", "struct pt_regs *ctx", open_something),
    ("kretprobe.multi/do_sys_open*", "struct pt_regs *ctx", open_something),
    ("kprobe.session/do_sys_openat2", "struct pt_regs *ctx", open_something),
    ("fentry/do_sys_openat2", "__u64 *ctx", open_something),
    ("fexit/do_sys_openat2", "__u64 *ctx", open_something),
    ("fmod_ret/security_file_open", "__u64 *ctx", open_something),
    ("lsm/file_open", "__u64 *ctx", open_something),
    ("lsm.s/file_open", "__u64 *ctx", open_something),
]


def fires(start, section, arguments, trigger, **kwargs):
    started = start(counting(section, arguments), constants=mine(), **kwargs)
    assert len(started.loaded.links) == 1
    trigger()
    assert hits(started) > 0
    started.loaded.detach()
    before = hits(started)
    trigger()
    assert hits(started) == before
    close_and_check(started)


@pytest.mark.fires
@pytest.mark.parametrize(("section", "arguments", "trigger"), HERE, ids=[row[0] for row in HERE])
def test_a_program_runs_while_it_is_attached_and_leaves_nothing(start, section, arguments, trigger):
    fires(start, section, arguments, trigger)


@pytest.mark.fires
@pytest.mark.guest
@pytest.mark.parametrize(("section", "arguments", "trigger"), IN_GUEST, ids=[row[0] for row in IN_GUEST])
def test_a_program_in_a_guest_runs_while_it_is_attached_and_leaves_nothing(start, section, arguments, trigger):
    fires(start, section, arguments, trigger)


RUNNER = """
SEC("fentry/bpf_fentry_test2")
int runner(__u64 *ctx)
{
	return 0;
}
"""


@pytest.mark.fires
@pytest.mark.guest
@pytest.mark.parametrize("kind", ["fentry.s", "fexit.s", "fmod_ret.s"])
def test_a_program_in_a_guest_may_sleep(start, kind):
    """The kernel calls bpf_fentry_test1, where programs may sleep, when it runs an fentry program once."""
    started = start(counting(f"{kind}/bpf_fentry_test1", "__u64 *ctx") + RUNNER, constants=mine())

    bpfcall.run_once(started.loaded.program("runner").fd)

    assert hits(started) > 0
    close_and_check(started)


# ------------------------------------------------------------------------------------------------ kprobes


ARGUMENTS = """
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} hits SEC(".maps");

const volatile __u32 only_pid = 0;

SEC("ksyscall/lseek")
int BPF_KSYSCALL(count, int fd, long offset, int whence)
{
	__u32 zero = 0;
	__u64 value = offset;

	if (bpf_get_current_pid_tgid() >> 32 == only_pid)
		bpf_map_update_elem(&hits, &zero, &value, 0);
	return 0;
}
"""


@pytest.mark.fires
@pytest.mark.guest
def test_ksyscall_gives_the_arguments_of_the_system_call(start):
    started = start(ARGUMENTS, constants=mine())

    fd = os.open("/dev/zero", os.O_RDONLY)
    os.lseek(fd, 4711, os.SEEK_SET)
    os.close(fd)

    assert hits(started) == 4711


@pytest.mark.guest
def test_a_system_call_that_is_not_there_is_answered_with_its_neighbours(start):
    with pytest.raises(AttachError, match="no such system call") as error:
        start(counting("ksyscall/opennat", "struct pt_regs *ctx"))

    assert "openat" in error.value.hint


@pytest.mark.parametrize(
    ("wrapped", "names"),
    [(False, ["__se_sys_openat", "sys_openat"]), (True, [])],
)
def test_a_kernel_without_syscall_wrappers_has_the_functions_themselves(monkeypatch, wrapped, names):
    asked = []

    def nothing(hook, functions, *, at_return):
        asked.append(functions)
        if len(asked) == 1:
            raise AttachError(ENOENT, "count", "ksyscall/openat", "openat")

    monkeypatch.setattr(kprobe, "first_of", nothing)
    monkeypatch.setattr(kprobe, "has_function", lambda name: wrapped)
    hook = Hook("count", "ksyscall/openat", "openat")
    if wrapped:
        with pytest.raises(AttachError, match="no such system call"):
            kprobe.attach(hook, "openat")
    else:
        kprobe.attach(hook, "openat")

    assert asked[1:] == ([names] if names else [])


@pytest.mark.guest
@pytest.mark.parametrize(("section", "arguments", "trigger"), IN_GUEST, ids=[row[0] for row in IN_GUEST])
def test_a_killed_process_leaves_nothing(compiled, section, arguments, trigger):
    before = kept()

    killed(compiled(counting(section, arguments)))

    assert within(5, lambda: kept() == before)


def kept() -> tuple[list[list[int]], list[str]]:
    """Programs, maps and links; and probes that tracefs tells of, or the kernel's list of all."""
    tracing = Path("/sys/kernel/tracing/kprobe_events")
    probes = Path("/sys/kernel/debug/kprobes/list")
    texts = [path.read_text() for path in (tracing, probes) if path.exists()]
    kinds = (bpfcall.PROG_NEXT_ID, bpfcall.MAP_NEXT_ID, bpfcall.LINK_NEXT_ID)
    return [list(bpfcall.ids_of(kind)) for kind in kinds], texts


@pytest.mark.guest
@pytest.mark.parametrize("section", ["kprobe.multi/do_sys_opena2", "kprobe.multi/{do_sys_openat2,do_sys_opena2}"])
def test_a_function_of_a_list_that_is_not_there_is_answered_with_its_neighbours(start, section):
    with pytest.raises(AttachError, match="to 'do_sys_opena2': this kernel has no such function") as error:
        start(counting(section, "struct pt_regs *ctx"))

    assert "do_sys_openat2" in error.value.hint


@pytest.mark.guest
def test_a_pattern_that_fits_no_function_is_told(start):
    with pytest.raises(AttachError, match="no function of this kernel fits"):
        start(counting("kprobe.multi/nothing_of_this_*", "struct pt_regs *ctx"))


@pytest.mark.guest
def test_a_pattern_for_many_functions_needs_a_kernel_that_has_it(start):
    try:
        started = start(counting("kprobe.multi/vfs_*", "struct pt_regs *ctx"), constants=mine())
    except UnsupportedError as error:
        assert "5.18" in str(error) and not bpfcall.has_attach_type(bpfcall.KPROBE_MULTI)
    else:
        open_something()
        assert hits(started) > 0


@pytest.mark.guest
@pytest.mark.parametrize(
    "section", ["kprobe/do_sys_openat2+x", "kretprobe/do_sys_openat2+4", "kprobe/do_sys_openat2+1"]
)
def test_a_wrong_offset_is_told(start, section):
    with pytest.raises(AttachError, match=re.escape(section.partition("/")[2])):
        start(counting(section, "struct pt_regs *ctx"))


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("vfs_*", ["vfs_read", "vfs_"], ["xvfs_read"]),
        ("{vfs_read,vfs_w*}", ["vfs_read", "vfs_write"], ["vfs_readv"]),
        ("vfs_[a-r]ead", ["vfs_read"], ["vfs_zead"]),
        ("vfs_[!r]ead", ["vfs_zead"], ["vfs_read"]),
        ("vfs_r?ad", ["vfs_read"], ["vfs_rad"]),
        ("a.b", ["a.b"], ["axb"]),
    ],
)
def test_a_pattern_is_as_in_a_shell(pattern, yes, no):
    fits = functions.expression(pattern).fullmatch

    assert all(map(fits, yes)) and not any(map(fits, no))


@pytest.mark.parametrize("pattern", ["{a,b", "a}", "[z-a]"])
def test_a_broken_pattern_is_told(pattern):
    with pytest.raises(ValueError):
        functions.expression(pattern)


def test_a_machine_without_kprobes_says_so_of_every_kind(start):
    if kprobe.KPROBE_PMU.exists():
        return
    for section in ("kprobe/do_sys_openat2", "kprobe.multi/do_sys_openat2", "ksyscall/openat"):
        with pytest.raises(UnsupportedError, match="CONFIG_KPROBES"):
            start(counting(section, "struct pt_regs *ctx"))


# ------------------------------------------------------------------------------------------------ cookies


def with_cookie(start, section: str, arguments: str = "void *ctx"):
    source = counting(section, arguments, body="if (bpf_get_attach_cookie(ctx) != 0xcafe) return 0;")
    return start(source, constants=mine(), yaml="name: test\nprograms: {count: {cookie: 0xcafe}}\n")


@pytest.mark.parametrize("section", ["tracepoint/syscalls/sys_enter_openat", "raw_tp/sys_enter", "tp_btf/sys_enter"])
def test_a_program_gets_its_cookie(start, section):
    if not has_cookies():
        return
    started = with_cookie(start, section, "__u64 *ctx" if section.startswith("tp_btf") else "void *ctx")

    open_something()

    assert hits(started) > 0


@pytest.mark.guest
@pytest.mark.parametrize(
    "section",
    ["kprobe/do_sys_openat2", "kretprobe/do_sys_openat2", "kprobe.multi/do_sys_openat2", "fentry/do_sys_openat2"],
)
def test_a_program_in_a_guest_gets_its_cookie(start, section):
    if not has_cookies():
        return
    started = with_cookie(start, section, "__u64 *ctx" if section.startswith("fentry") else "struct pt_regs *ctx")

    open_something()

    assert hits(started) > 0


def has_cookies() -> bool:
    """Whether a kprobe program can be loaded that calls bpf_get_attach_cookie (174)."""
    code = bytes.fromhex("85000000ae000000 b700000000000000 9500000000000000")
    try:
        os.close(bpfcall.prog_load(2, code=code))
    except OSError:
        return False
    return True


def test_a_cookie_that_is_no_number_is_refused(start):
    with pytest.raises(MetadataError, match="'seven' is no number"):
        start(counting("tracepoint/syscalls/sys_enter_openat"), yaml="name: test\nprograms: {count: {cookie: seven}}\n")


# ------------------------------------------------------------------------------------------------ syscall


@pytest.mark.fires
def test_a_syscall_program_runs_once_when_it_is_attached(start):
    started = start(counting("syscall", body="if (hit) { *hit += 7; return 5; }"))

    (ran,) = started.loaded.links
    assert isinstance(ran, Ran) and ran.result == 5
    assert hits(started) == 7
    close_and_check(started)


# ------------------------------------------------------------------------------------------------ struct_ops

CONGESTION = """
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} hits SEC(".maps");

SEC("struct_ops/begin") void BPF_PROG(begin, struct sock *sk)
{
	__u32 zero = 0;
	__u64 *hit = bpf_map_lookup_elem(&hits, &zero);

	if (hit)
		__sync_fetch_and_add(hit, 1);
}

SEC("struct_ops/threshold") __u32 BPF_PROG(threshold, struct sock *sk)
{
	return 2;
}

SEC("struct_ops/undo") __u32 BPF_PROG(undo, struct sock *sk)
{
	return 2;
}

SEC("struct_ops/avoid") void BPF_PROG(avoid, struct sock *sk, __u32 ack, __u32 acked)
{
}

SEC("%s")
struct tcp_congestion_ops steady = {
	.init = (void *)begin,
	.ssthresh = (void *)threshold,
	.cong_avoid = (void *)avoid,
	.undo_cwnd = (void *)undo,
	.name = "igrun_steady",
};
"""


def connect_with(name: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name)
        client.connect(server.getsockname())


@pytest.mark.fires
@pytest.mark.parametrize("section", [".struct_ops", ".struct_ops.link"])
def test_a_struct_of_functions_is_used_while_it_is_attached(start, section):
    started = start(CONGESTION % section)
    assert len(started.loaded.links) == 1

    connect_with(b"igrun_steady")

    assert hits(started) > 0
    close_and_check(started)

    def gone() -> bool:
        try:
            connect_with(b"igrun_steady")
        except FileNotFoundError:
            return True
        return False

    assert within(5, gone)


SCHEDULER = """
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} hits SEC(".maps");

struct sched_ext_ops {
	__s32 (*init)(void);
	__u64 flags;
	char name[128];
};

SEC("struct_ops.s/init") __s32 BPF_PROG(init)
{
	__u32 zero = 0;
	__u64 *hit = bpf_map_lookup_elem(&hits, &zero);

	if (hit)
		__sync_fetch_and_add(hit, 1);
	return 0;
}

SEC(".struct_ops.link")
struct sched_ext_ops nobodys = {
	.init = (void *)init,
	.flags = 8, /* SCX_OPS_SWITCH_PARTIAL: for tasks that ask for it */
	.name = "igrun_nobodys",
};
"""


@pytest.mark.fires
@pytest.mark.guest
def test_a_function_of_a_struct_may_sleep(start):
    started = start(SCHEDULER)
    state = Path("/sys/kernel/sched_ext/state")

    assert hits(started) == 1
    assert state.read_text() == "enabled\n"
    close_and_check(started)
    assert within(5, lambda: state.read_text() == "disabled\n")


def test_two_structs_of_one_name_are_told(start):
    start(CONGESTION % ".struct_ops")

    with pytest.raises(AttachError, match="has one of that name already"):
        start(CONGESTION % ".struct_ops")


# ------------------------------------------------------------------------------------------------ freplace

ENTRY = """
__noinline int verdict(int x)
{
	volatile int seen = x;

	return !seen;
}
"""
EXTENSION = """
SEC("freplace/%s")
int better(int x)
{
	__u32 zero = 0;
	__u64 *hit = bpf_map_lookup_elem(&hits, &zero);

	return hit && x == 3;
}
"""


def asking() -> str:
    return ENTRY + counting("kprobe/do_sys_openat2", "struct pt_regs *ctx", body="if (!verdict(3)) return 0;")


def extension(of: str) -> str:
    return asking() + EXTENSION % of


@pytest.mark.fires
@pytest.mark.guest
@pytest.mark.parametrize(
    ("section", "yaml"),
    [("count:verdict", ""), ("verdict", "programs: {better: {target: count}}")],
)
def test_a_function_of_another_program_is_replaced_while_attached(start, section, yaml):
    started = start(extension(section), constants=mine(), yaml=f"name: test\n{yaml}\n")
    open_something()
    assert hits(started) > 0

    [*started.loaded.links][-1].close()
    before = hits(started)
    open_something()

    assert hits(started) == before
    close_and_check(started)


@pytest.mark.guest
@pytest.mark.parametrize("by", ["id", "name"])
def test_a_function_of_a_program_that_is_loaded_already_is_replaced(start, by):
    first = start(asking(), constants=mine())
    handle = first.loaded.program("count")
    target = bpfcall.id_of(handle.fd) if by == "id" else "count"
    source = EXTENSION.replace("return hit && x == 3", "return x == 3").replace("__u64 *hit", "//") % "verdict"

    open_something()
    assert hits(first) == 0
    start(source, yaml=f"name: test\nprograms: {{better: {{target: '{target}'}}}}\n")
    open_something()

    assert hits(first) > 0


@pytest.mark.guest
def test_an_extension_says_what_it_replaces(start):
    with pytest.raises(MetadataError, match="no program whose function it replaces"):
        start(extension("verdict"))
    with pytest.raises(AttachError, match="no function 'verdikt'"):
        start(extension("count:verdikt"))
    with pytest.raises(AttachError, match="no program 'nobody' is loaded"):
        start(extension("nobody:verdict"))


# ------------------------------------------------------------------------------------------------ the base


def test_programs_of_every_form_of_socket_get_their_type(compiled):
    from igrun.choosing import set_type

    object_ = BpfObject.open(
        compiled(
            """
SEC("socket1") int one(struct __sk_buff *skb) { return 0; }
SEC("classifier/ingress/one") int two(struct __sk_buff *skb) { return 0; }
SEC("tcx/ingress") int three(struct __sk_buff *skb) { return -1; }
SEC("cgroup_skb/egress") int four(struct __sk_buff *skb) { return 1; }
SEC("xdp.frags") int five(struct xdp_md *ctx) { return 2; }
"""
        )
    )
    for program in object_.programs.values():
        set_type(program)

    assert [(one.type, one.attach_type) for one in object_.programs.values()] == [
        (1, 0),
        (3, 0),
        (3, 0),
        (8, 1),
        (6, 37),
    ]
    object_.close()


def test_the_union_of_a_link_has_the_kernels_layout():
    assert bpfcall.tracing(7, 9).data == struct.pack("=IIQ", 7, 0, 9)
    assert len(bpfcall.uprobe_multi("/bin/x", [1], counters=[2], cookies=[3], pid=4, flags=1).data) == 44
    assert bpfcall.netfilter(2, 1, -5, 1).data == struct.pack("=IIiI", 2, 1, -5, 1)
