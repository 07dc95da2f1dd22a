"""What `ig check` predicts is what loading and attaching then does, for each type, target, map, helper, kfunc, ..."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from igrun import attach, kernel_btf
from igrun.checking import check
from igrun.checking.kernel import Kernel
from igrun.checking.table import WORKS, Report, worst
from igrun.dataclass import replace
from igrun.errors import GadgetError
from igrun.host import HOST_TARGET, Host, Target
from igrun.load import load
from igrun.metadata import GadgetMetadata
from igrun.objects import MAP_TYPES
from igrun.program import Plan, Program
from igrun.requirements.versions import ITERATORS
from igrun.runtime import Gadget
from igrun.sections import TYPES
from tests.compiled import HEAD, compiled
from tests.confusion import PREDICTION

pytestmark = pytest.mark.kernel

GUEST_CONFIG = Path("/run/guest/config")
# vmlinux.h takes most of the time of a compilation, and few cases need it.
SMALL = """// SPDX-License-Identifier: GPL-2.0
typedef unsigned char __u8;
typedef unsigned short __u16, __be16, __sum16;
typedef unsigned int __u32, __be32, __wsum;
typedef unsigned long long __u64, __be64;
typedef signed char __s8;
typedef short __s16;
typedef int __s32;
typedef long long __s64;
#define bool _Bool
#define true 1
#define false 0
#include <bpf/bpf_helpers.h>
"""


class Case(NamedTuple):
    """One thing to be predicted. what: the aspect; yaml: below `programs:`"""

    what: str
    name: str
    source: str
    yaml: str = ""
    license: str = "GPL"
    whole: bool = False  # with vmlinux.h

    @property
    def elf(self) -> bytes:
        if self.whole:
            return compiled(self.source, head=HEAD)
        return compiled(f'char LICENSE[] SEC("license") = "{self.license}";\n{self.source}', head=SMALL)


# ------------------------------------------------------------------------------------------------ types and targets

LIBC = "libc.so.6"
TARGETS = {
    "tracepoint/": "syscalls/sys_enter_openat",
    "tp/": "sched/sched_switch",
    "raw_tracepoint/": "sched_switch",
    "raw_tp/": "sys_enter",
    "raw_tracepoint.w/": "bpf_test_finish",
    "raw_tp.w/": "bpf_test_finish",
    "tp_btf/": "sys_enter",
    "fmod_ret/": "security_file_open",
    "lsm/": "file_open",
    "lsm_cgroup/": "socket_post_create",
    "iter/": "task",
    "ksyscall/": "openat",
    "kretsyscall/": "openat",
    "usdt/": f"{LIBC}:libc:setjmp",
    "perf_event/": "cpu",
    "classifier/": "ingress/x",
    "tc/": "egress",
    "tcx/": "ingress",
    "netkit/": "primary",
}
UPROBES = ("uprobe/", "uretprobe/", "uprobe.multi/", "uretprobe.multi/", "uprobe.session/")
TARGETS |= dict.fromkeys(UPROBES, f"{LIBC}:malloc")
RETURNS = {"xdp": 2, "xdp.frags": 2, "tc": -1, "classifier": -1, "tcx": -1, "action": -1, "flow_dissector": 129}
RETURNS |= dict.fromkeys(("sk_lookup", "netfilter", "sk_reuseport", "sk_skb", "sk_msg", "sockops", "cgroup"), 1)
RETURNS |= dict.fromkeys(("cgroup_skb", "lsm_cgroup"), 1)
SAMPLER = "perf.type: software, perf.config: count_sw_cpu_clock, perf.sampleType: sample_raw, sampler.frequency: 10"
OPTIONS = {
    "perf_event/cpu": f"cpu: {{{SAMPLER}}}",
    "perf_event": f"one: {{{SAMPLER}}}",
    "classifier": "one: {direction: ingress}",
    "tc": "one: {direction: ingress}",
    "action": "one: {direction: ingress}",
    "netfilter": "one: {netfilter.hook: local_in}",
    "sk_reuseport": "one: {reuseport.port: tcp/4242}",
    "sk_reuseport/migrate": "one: {reuseport.port: tcp/4242}",
    **dict.fromkeys(("lwt_in", "lwt_out", "lwt_xmit", "lwt_seg6local"), "one: {route: 198.51.100.0/24 dev lo}"),
}
CALLEE = """
__attribute__((noinline)) int callee(int x)
{
	asm volatile("" : "+r"(x));
	return x;
}
SEC("raw_tp/sys_enter") int other(void *ctx)
{
	return callee(1) > 5;
}
"""
CONGESTION = """
SEC("struct_ops%s/begin") void begin(void *ctx) {}
SEC("struct_ops/threshold") __u32 threshold(void *ctx) { return 2; }
SEC("struct_ops/undo") __u32 undo(void *ctx) { return 2; }
SEC("struct_ops/avoid") void avoid(void *ctx) {}
SEC(".struct_ops") struct tcp_congestion_ops steady = {
	.init = (void *)begin,
	.ssthresh = (void *)threshold,
	.cong_avoid = (void *)avoid,
	.undo_cwnd = (void *)undo,
	.name = "igrun_checked",
};
"""

SOCKETS = """
struct {
	__uint(type, 15);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} sockets SEC(".maps");
"""
UNHEARD = """
struct unheard_ops { void (*start)(void *); };
SEC("struct_ops/begin") void begin(void *ctx) {}
SEC(".struct_ops") struct unheard_ops unheard = { .start = (void *)begin };
"""


def program(section: str, body: str = "", name: str = "one") -> str:
    """A program of that section."""
    result = RETURNS.get(section.partition("/")[0].removesuffix(".s"), 0)
    return f'SEC("{section}") int {name}(void *ctx)\n{{\n\t{body}\n\treturn {result};\n}}\n'


def of_types() -> Iterator[Case]:
    """A case for each row of the table of types, and one for each that may sleep."""
    for row in TYPES:
        for sleeps in (False, True)[: 1 + row.sleeps]:
            word, slash, rest = row.section.partition("/")
            section = f"{word}{'.s' if sleeps else ''}{slash}{rest}"
            if row.section.endswith("/"):
                section += TARGETS.get(row.section, "do_sys_openat2")
            if row.section == "freplace/":
                yield Case(
                    "type",
                    "freplace/other:callee",
                    CALLEE + 'SEC("freplace/other:callee") int one(int x) { return 2; }\n',
                )
            elif row.section == "struct_ops/":
                yield Case("type", f"{word}{'.s' if sleeps else ''}", CONGESTION % (".s" if sleeps else ""), whole=True)
            elif row.section != "struct_ops":
                before = SOCKETS if row.family == "sockmap" else ""
                yield Case("type", section, before + program(section), OPTIONS.get(section, ""))


OTHERS = """
tracepoint/syscalls/sys_exit_execve tracepoint/raw_syscalls/sys_enter tracepoint/sock/inet_sock_set_state
tracepoint/signal/signal_generate tracepoint/syscalls/sys_enter_landlock_create_ruleset
tracepoint/syscalls/sys_enter_nothing tracepoint/nothing/sched_switch tracepoint/sched/nothing tracepoint/nothing
raw_tp/sched_process_exec raw_tp/nothing raw_tp.w/nothing tp_btf/sched_switch tp_btf/nothing tp_btf/inet_sock_set_state
fentry/vfs_read fentry/nothing fentry/tcp_connect fentry/__x64_sys_openat fentry.s/vfs_read fentry/bpf_lsm_file_open
fentry/migrate_disable fentry/bpf_fentry_test1
fexit/vfs_read fexit/nothing fexit/do_exit fexit.s/security_file_open fexit/tcp_v4_connect
fmod_ret/do_sys_openat2 fmod_ret/__x64_sys_openat fmod_ret/security_file_permission fmod_ret/nothing fmod_ret/vfs_read
lsm/bprm_check_security lsm/nothing lsm/task_alloc lsm.s/task_free lsm.s/bprm_committed_creds lsm/inode_getsecurity
lsm/socket_connect lsm/path_unlink
kprobe/vfs_read kprobe/nothing kprobe/sys_openat kprobe/do_sys_openat2+0x1 kprobe/do_sys_openat2+0xfffff
kprobe/do_int3 kprobe/kprobe_int3_handler kprobe/asm_exc_int3 kprobe/__x64_sys_openat kprobe/do_sys_openat2+x
kretprobe/vfs_read kretprobe/do_sys_openat2+8 kretprobe/nothing ksyscall/nothing ksyscall/landlock_create_ruleset
kprobe.multi/vfs_rea? kprobe.multi/nothing kprobe.multi/{vfs_read,vfs_write} kprobe.multi/{vfs_read,nothing}
kprobe.multi/vfs_* kprobe.multi/*_lock* kprobe.multi/{vfs_read kretprobe.multi/vfs_read kprobe.session/nothing
uprobe/libc.so.6:nothing uprobe/libnothing.so:malloc uprobe/nothing uprobe/libc.so.6:malloc+0x4
uprobe//bin/bash:readline uprobe//etc/passwd:main uprobe//bin/nothing:main uprobe.multi/libc.so.6:mallo*
uprobe.multi/libc.so.6:nothing* uretprobe/libc.so.6:free usdt/libc.so.6:libc:nothing usdt/libc.so.6:setjmp
netkit/peer tcx/egress classifier/nothing classifier/egress/x
struct_ops/nothing_here unheard_of/x
"""


def of_targets() -> Iterator[Case]:
    """Targets that there are, and that there are not."""
    for section in OTHERS.split():
        yield Case("target", section, program(section), OPTIONS.get(section, ""))
    for name in (*ITERATORS, "nothing"):
        yield Case("target", f"iter/{name}", program(f"iter/{name}"))
    yield Case(
        "target", "freplace/other:nothing", CALLEE + 'SEC("freplace/other:nothing") int one(int x) { return 2; }'
    )
    yield Case("target", "struct_ops: no such struct", UNHEARD)
    yield Case("target", "struct_ops: no such member", UNHEARD.replace("unheard_ops", "tcp_congestion_ops"))
    yield Case("target", "sk_msg: no map", program("sk_msg"))
    yield Case("target", "sk_skb: two maps", SOCKETS + SOCKETS.replace(" sockets ", " others ") + program("sk_skb"))
    hardware = SAMPLER.replace("type: software", "type: hardware").replace("sw_cpu_clock", "hw_cpu_cycles")
    yield Case("target", "perf_event: hardware", program("perf_event"), f"one: {{{hardware}}}")
    yield Case("target", "perf_event: nothing said", program("perf_event"))
    yield Case("target", "netfilter: no such hook", program("netfilter"), "one: {netfilter.hook: nothing}")
    yield Case(
        "target", "?tracepoint/nothing/x is not loaded", program("?tracepoint/nothing/x") + program(KNOWN, "", "b")
    )


KNOWN = "raw_tp/sys_enter"

# ------------------------------------------------------------------------------------------------ choices


def of_choices() -> Iterator[Case]:
    """Programs that a run can do without."""
    bad, good = program("raw_tp/nothing", "", "bad"), program(KNOWN, "", "good")
    yield Case("choice", "optional, missing", bad + good, "bad: {optional: true}")
    yield Case("choice", "missing, not optional", bad + good, "good: {optional: true}")
    yield Case("choice", "alternatives, the first is missing", bad + good, "bad: {any_of: x}\n  good: {any_of: x}")
    two = bad + program("tp_btf/nothing", "", "worse") + good
    yield Case("choice", "alternatives, all missing", two, "bad: {any_of: x}\n  worse: {any_of: x}")
    kprobe = program("kprobe/vfs_read", "", "bad") + program("fentry/vfs_read", "", "worse") + good
    group = "bad: {any_of: x}\n  worse: {any_of: x}\n  good: {any_of: x}"
    yield Case("choice", "alternatives of three types", kprobe, group)
    lsm = program("lsm/file_open", "", "bad") + good
    yield Case("choice", "optional, perhaps refused", lsm, "bad: {optional: true}")
    off = program("raw_tp/nothing", "", "bad") + good
    yield Case("choice", "disabled, missing", off, "bad: {attach_to: gadget_program_disabled}")


# ------------------------------------------------------------------------------------------------ maps

INNER = (
    "__array(values, struct { __uint(type, 2); __uint(max_entries, 1); __type(key, __u32); __type(value, __u32); });"
)
# type, key, value, entries, flags (and further lines)
MAPS = [
    (1, 4, 8, 100, 0, ""),
    (1, 4, 8, 100, 1, ""),
    (2, 4, 8, 1, 0, ""),
    (2, 4, 8, 1, 1 << 10, ""),
    (2, 4, 8, 1, 1 << 12, ""),
    (3, 4, 4, 8, 0, ""),
    (4, 4, 4, 0, 0, ""),
    (5, 4, 8, 100, 0, ""),
    (6, 4, 8, 1, 0, ""),
    (7, 4, 80, 64, 0, ""),
    (7, 4, 80, 64, 1 << 5, ""),
    (8, 4, 4, 1, 0, ""),
    (9, 4, 8, 100, 0, ""),
    (10, 4, 8, 100, 0, ""),
    (11, 8, 8, 100, 1, ""),
    (11, 8, 8, 100, 0, ""),
    (12, 4, 4, 4, 0, INNER),
    (13, 4, 4, 4, 0, INNER),
    (14, 4, 4, 4, 0, ""),
    (14, 4, 8, 4, 0, ""),
    (15, 4, 4, 4, 0, ""),
    (16, 4, 4, 4, 0, ""),
    (16, 4, 8, 4, 0, ""),
    (17, 4, 4, 4, 0, ""),
    (18, 4, 4, 4, 0, ""),
    (18, 4, 8, 4, 0, ""),
    (19, 16, 8, 0, 0, ""),
    (20, 4, 8, 4, 0, ""),
    (21, 16, 8, 0, 0, ""),
    (22, 0, 8, 4, 0, ""),
    (23, 0, 8, 4, 0, ""),
    (24, 4, 8, 0, 1, ""),
    (24, 4, 8, 0, 0, ""),
    (25, 4, 4, 4, 0, ""),
    (27, 0, 0, 4096, 0, ""),
    (27, 0, 0, 5000, 0, ""),
    (28, 4, 8, 0, 1, ""),
    (29, 4, 8, 0, 1, ""),
    (30, 0, 8, 100, 0, ""),
    (31, 0, 0, 4096, 0, ""),
    (32, 4, 8, 0, 1, ""),
    (33, 0, 0, 4, 1 << 10, ""),
    (34, 4, 16, 4, 0, ""),
    (99, 4, 8, 4, 0, ""),
    (1, 4, 1 << 30, 4, 0, ""),
    (1, 0, 8, 4, 0, ""),
    (1, 4, 8, 4, 1 << 30, ""),
    (2, 8, 8, 4, 0, ""),
    (1, 4, 8, 1 << 31, 1, ""),
    (2, 4, 4096, 1 << 30, 0, ""),
]  # fmt: skip


def of_maps() -> Iterator[Case]:
    """Maps of each type, with sizes and flags."""
    names = dict(enumerate(MAP_TYPES.split()))
    for kind, key, value, entries, flags, more in MAPS:
        lines = [f"__uint(type, {kind});", f"__uint(max_entries, {entries});", f"__uint(map_flags, {flags});"]
        if kind in (24, 28, 29, 32):
            lines += ["__type(key, int);", "__type(value, __u64);"]
        else:
            lines += [f"__uint(key_size, {key});"] * bool(key)
            lines += [f"__uint(value_size, {value});"] * bool(value and not more)
        source = f'struct {{ {" ".join(lines)} {more} }} m SEC(".maps");\n'
        name = f"{names.get(kind, kind)} {key}+{value} x{entries} flags {flags:#x}"
        yield Case("map", name, source + program(KNOWN))


# ------------------------------------------------------------------------------------------------ helpers

TRACE = (
    "raw_tp/sys_enter",
    "tracepoint/syscalls/sys_enter_openat",
    "tp_btf/sys_enter",
    "xdp",
    "socket",
    "kprobe/vfs_read",
)
CALLS = {
    "ktime_get_boot_ns": "bpf_ktime_get_boot_ns();",
    "ktime_get_coarse_ns": "bpf_ktime_get_coarse_ns();",
    "ktime_get_tai_ns": "bpf_ktime_get_tai_ns();",
    "jiffies64": "bpf_jiffies64();",
    "get_current_task_btf": "bpf_get_current_task_btf();",
    "get_current_pid_tgid": "bpf_get_current_pid_tgid();",
    "get_current_cgroup_id": "bpf_get_current_cgroup_id();",
    "get_current_ancestor_cgroup_id": "bpf_get_current_ancestor_cgroup_id(1);",
    "send_signal": "bpf_send_signal(0);",
    "redirect": "bpf_redirect(1, 0);",
    "get_func_ip": "bpf_get_func_ip(ctx);",
    "get_attach_cookie": "bpf_get_attach_cookie(ctx);",
    "strncmp": 'bpf_strncmp("abc", 3, "abc");',
    "probe_read_kernel": "long x; bpf_probe_read_kernel(&x, 8, (void *)8);",
    "probe_read": "long x; bpf_probe_read(&x, 8, (void *)8);",
    "copy_from_user": "long x; bpf_copy_from_user(&x, 8, (void *)8);",
    "probe_write_user": "long x = 0; bpf_probe_write_user((void *)8, &x, 8);",
    "override_return": "bpf_override_return(ctx, 0);",
    "get_retval": "bpf_get_retval();",
    "get_func_arg_cnt": "bpf_get_func_arg_cnt(ctx);",
    "sys_close": "bpf_sys_close(99);",
    "get_netns_cookie": "bpf_get_netns_cookie(0);",
    "snprintf": 'char text[8]; __u64 args[1] = {1}; bpf_snprintf(text, 8, "%d", args, 8);',
}
WHERE = {
    "get_func_ip": ("kprobe/vfs_read", "fentry/vfs_read", "raw_tp/sys_enter"),
    "get_attach_cookie": ("tracepoint/sched/sched_switch", "kprobe/vfs_read", "raw_tp/sys_enter"),
    "probe_write_user": ("raw_tp/sys_enter", "kprobe/vfs_read"),
    "override_return": ("kprobe/__x64_sys_openat", "kprobe/vfs_read", "raw_tp/sys_enter"),
    "copy_from_user": ("raw_tp/sys_enter", "uprobe.s/libc.so.6:malloc", "uprobe/libc.so.6:malloc", "lsm.s/file_open"),
    "get_retval": ("cgroup/getsockopt", "cgroup/dev", "raw_tp/sys_enter", "cgroup_skb/egress"),
    "get_func_arg_cnt": ("fentry/vfs_read", "fmod_ret/security_file_open", "raw_tp/sys_enter", "tp_btf/sys_enter"),
    "sys_close": ("syscall", "raw_tp/sys_enter"),
    "get_netns_cookie": ("socket", "cgroup/connect4", "cgroup/sock_create", "raw_tp/sys_enter", "xdp"),
    "redirect": ("xdp", "classifier/ingress/x", "lwt_xmit", "lwt_in", "raw_tp/sys_enter"),
    "get_current_pid_tgid": (
        *TRACE,
        "cgroup/connect4",
        "cgroup_skb/ingress",
        "sk_lookup",
        "flow_dissector",
        "netfilter",
    ),
    "snprintf": ("raw_tp/sys_enter", "xdp"),
    "strncmp": ("raw_tp/sys_enter", "xdp"),
}
GUARD = """
enum bpf_func_id___x { BPF_FUNC_%s___x = 1 };
#define exists(type, value) __builtin_preserve_enum_value(*(type *)value, 0)
"""
CALLBACK = "static long step(__u32 index, void *context)\n{\n\treturn 0;\n}\n"
BY_NUMBER = "((long (*)(void)){number})();"


def of_helpers() -> Iterator[Case]:
    """Helpers by version, by type of program, by license, and ruled out."""
    for name, call in CALLS.items():
        for section in WHERE.get(name, TRACE[:3]):
            yield Case("helper", f"{name} in {section}", program(section, call), OPTIONS.get(section, ""))
    loop = program(KNOWN, "bpf_loop(3, step, 0, 0);")
    yield Case("helper", "loop in raw_tp/sys_enter", CALLBACK + loop)
    for name in ("ktime_get_boot_ns", "probe_read_kernel", "get_current_task_btf", "send_signal"):
        yield Case("helper", f"{name}, license MIT", program(KNOWN, CALLS[name]), license="MIT")
    yield Case("helper", "number 250", program(KNOWN, "((long (*)(void))250)();"))
    for name in ("loop", "never", "ktime_get_tai_ns"):
        asked = f"if (exists(enum bpf_func_id___x, BPF_FUNC_{name}___x)) {CALLS['ktime_get_tai_ns']}"
        yield Case("helper", f"tai, where CO-RE finds {name}", GUARD % name + program(KNOWN, asked))
    flag = "const volatile bool flag = {};\n" + program(KNOWN, "if (flag) bpf_sys_close(99);").replace(
        "{", "{{"
    ).replace("}", "}}")
    for value in ("true", "false"):
        yield Case("helper", f"sys_close behind a constant that is {value}", flag.format(value))


# ------------------------------------------------------------------------------------------------ kfuncs

ACQUIRE = """
struct task_struct;
extern struct task_struct *bpf_task_from_pid(int pid) __ksym%s;
extern void bpf_task_release(struct task_struct *task) __ksym%s;
"""
TAKE = "struct task_struct *t = bpf_task_from_pid(1); if (t) bpf_task_release(t);"
LOCK = "extern void bpf_rcu_read_lock(void) __ksym;\nextern void bpf_rcu_read_unlock(void) __ksym;\n"
NOTHING = "extern void bpf_nothing_like_this(void) __ksym%s;\n"


def of_kfuncs() -> Iterator[Case]:
    """Functions of the kernel, by version and by type of program."""
    for section in ("tp_btf/sys_enter", "raw_tp/sys_enter", "xdp", "syscall", "fentry/vfs_read", "kprobe/vfs_read"):
        yield Case("kfunc", f"bpf_task_from_pid in {section}", ACQUIRE % ("", "") + program(section, TAKE), whole=True)
        yield Case(
            "kfunc",
            f"bpf_rcu_read_lock in {section}",
            LOCK + program(section, "bpf_rcu_read_lock(); bpf_rcu_read_unlock();"),
        )
    yield Case("kfunc", "one that no kernel has", NOTHING % "" + program(KNOWN, "bpf_nothing_like_this();"))
    weak = NOTHING % " __weak" + program(KNOWN, "if (bpf_nothing_like_this) bpf_nothing_like_this();")
    yield Case("kfunc", "a weak one that no kernel has, asked for", weak)
    blind = NOTHING % " __weak" + program(KNOWN, "bpf_nothing_like_this();")
    yield Case("kfunc", "a weak one that no kernel has, not asked for", blind)
    guarded = ACQUIRE % (" __weak", " __weak") + program("tp_btf/sys_enter", f"if (bpf_task_from_pid) {{ {TAKE} }}")
    yield Case("kfunc", "weak bpf_task_from_pid, asked for", guarded, whole=True)
    wrong = ACQUIRE % ("", "") + program("tp_btf/sys_enter", TAKE)
    yield Case("kfunc", "bpf_task_from_pid, declared with less than the kernel", wrong)
    wrong = "extern int vfs_fsync(void *file, int data) __ksym;\n" + program(KNOWN, "vfs_fsync(ctx, 0);")
    yield Case("kfunc", "a function that is none", wrong)
    optional = NOTHING % "" + program(KNOWN, "bpf_nothing_like_this();", "bad") + program(KNOWN, "", "good")
    yield Case("kfunc", "one that no kernel has, in an optional program", optional, "bad: {optional: true}")


# ------------------------------------------------------------------------------------------------ configuration

HZ = "extern %s CONFIG_%s __kconfig%s;\nlong seen;\n"


def of_config() -> Iterator[Case]:
    """Values of the configuration that programs read."""
    for name, kind, weak in (("HZ", "int", ""), ("NEVER", "int", ""), ("NEVER", "int", " __weak"), ("NET", "bool", "")):
        source = HZ % (kind, name, weak) + program(KNOWN, f"seen = CONFIG_{name};")
        yield Case("config", f"CONFIG_{name}{' (weak)' if weak else ''}", source)
    version = "extern int LINUX_KERNEL_VERSION __kconfig;\nint seen;\n"
    yield Case("config", "LINUX_KERNEL_VERSION", version + program(KNOWN, "seen = LINUX_KERNEL_VERSION;"))
    for name in ("bpf_prog_active", "runqueues", "nothing_like_this"):
        source = f"extern const void {name} __ksym;\nlong seen;\n" + program(KNOWN, f"seen = (long)&{name};")
        yield Case("config", f"variable {name}", source)


# ------------------------------------------------------------------------------------------------ BTF

READS = "#include <bpf/bpf_core_read.h>\nint seen;\n"
PARENT = "seen = BPF_CORE_READ((struct task_struct *)bpf_get_current_task(), real_parent, tgid);"


def of_btf() -> Iterator[Case]:
    """With and without BTF of the kernel."""
    yield Case("BTF", "CO-RE", READS + program(KNOWN, PARENT), whole=True)
    yield Case("BTF", "none is needed", program(KNOWN))


CASES = [
    *of_types(),
    *of_targets(),
    *of_choices(),
    *of_maps(),
    *of_helpers(),
    *of_kfuncs(),
    *of_config(),
    *of_btf(),
]


# ------------------------------------------------------------------------------------------------ what happens


@pytest.fixture(scope="session")
def elsewhere() -> Iterator[Target]:
    """A network namespace of its own, so that this machine's packets take no harm."""
    with subprocess.Popen(["unshare", "-n", "sh", "-c", "ip link set lo up; exec sleep 1000000"]) as child:
        path = Path(f"/proc/{child.pid}/ns/net")
        while path.stat().st_ino == Path("/proc/self/ns/net").stat().st_ino:
            time.sleep(0.01)
        yield Target("host", netns=path)
        child.kill()


@cache
def kernels() -> tuple[Kernel, Kernel]:
    """This one, as root sees it, and as it is seen without asking it."""
    host = Host.current()
    usual = Path(f"/boot/config-{host.release}")
    if GUEST_CONFIG.exists() and GUEST_CONFIG.stat().st_size and not usual.exists():
        usual.write_bytes(GUEST_CONFIG.read_bytes())  # its package puts it there; libbpf looks for it too
    return Kernel.here(host), Kernel.here(host, ask=False)


def happens(program: Program, values: dict[str, str], target: Target) -> str:
    """Why it cannot be loaded and attached, "" if it can."""
    with ExitStack() as stack:
        plan = Plan(program, Host.current(), program.sources, stack, values)
        found = kernel_btf.find(plan.host, program, stack=stack, values=values)
        plan.kernel_btf, plan.missing_btf = found.path, found.missing
        plan.constants.update(program.constants(values))
        try:
            loaded = load(plan)
            attach.attach(loaded.hooks, target, loaded)
        except GadgetError as error:
            return str(error) or type(error).__name__
        return ""


def said(report: Report, hooks: list[str]) -> str:
    """In one word, for all programs that are to be used."""
    if not report.runs:
        return "fails"
    used = [name for name in hooks if name not in report.left_out]
    return "works" if worst(map(report.of_program, used)) is WORKS else "not predicted"


Tell = Callable[[str, object], None]


def compare(tell: Tell, case: str, what: str, reports: list[Report], hooks: list[str], problem: str) -> None:
    """Tell what was predicted and what happened; no prediction may be wrong."""
    words = [said(report, hooks) for report in reports]
    happened = "does not" if problem else "loads"
    tell(
        PREDICTION,
        {
            "kernel": os.uname().release,
            "aspect": what,
            "case": case,
            "predicted": words[0],
            "unasked": words[1],
            "happened": happened,
        },
    )
    wrong = {"works": "does not", "fails": "loads"}
    for word, report, asked in zip(words, reports, ("as root", "unasked"), strict=True):
        if wrong.get(word) == happened:
            rows = "\n".join(
                f"{row.kind} {row.name}: {row.verdict}: {row.why}" for row in report.rows if row.verdict is not WORKS
            )
            pytest.fail(f"{asked}: predicted {word!r}, but it {happened}: {problem}\n{report.refusals}\n{rows}")


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.what}: {case.name}")
def test_what_is_predicted_happens(case: Case, elsewhere: Target, record_property: Tell):
    yaml = f"name: test\nprograms:\n  {case.yaml}\n" if case.yaml else "name: test\n"
    program = Program.open(case.elf, GadgetMetadata.parse(yaml.encode(), strict=False))
    here = any(param.key == "iface" for param in program.params)
    values = {"iface": "lo"} if here else {}

    reports = [check(program, kernel, values=values) for kernel in kernels()]
    problem = happens(program, values, replace(HOST_TARGET, interface="lo") if here else elsewhere)

    compare(record_property, case.name, case.what, reports, [hook.program for hook in program.hooks], problem)


GADGETS = sorted(
    path.name for path in (Path(__file__).parents[2] / "gadgets").iterdir() if (path / "gadget.yaml").exists()
)


@pytest.mark.parametrize("name", GADGETS)
def test_gadgets_run_as_predicted(name: str, record_property: Tell):
    gadget = Gadget.open(name, pull="never")
    assert gadget.program
    values = dict(gadget.values)

    reports = [check(gadget.program, kernel, values=values, btfs=gadget.image.btfs) for kernel in kernels()]
    try:
        gadget.run(timeout_s=1).close()
        problem = ""
    except GadgetError as error:
        problem = str(error)

    compare(record_property, name, "gadget", reports, [hook.program for hook in gadget.program.hooks], problem)
