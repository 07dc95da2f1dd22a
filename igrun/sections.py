"""Program types by the names of ELF sections: one row for each, which code, tests and documentation share.

The forms are libbpf's and the ecosystem's. Where both have one of a name, both mean the same. The numbers are those of
`enum bpf_prog_type` and `enum bpf_attach_type` in the kernel's include/uapi/linux/bpf.h.
"""

from __future__ import annotations

import re
from typing import NamedTuple

SLEEPABLE = ".s"


class ProgramType(NamedTuple):
    """What the section of a program says about it.

    section: how the name of the section begins; what ends in `/` takes a target after it, anything else stands alone or
             takes one after a `/`
    family:  the module of `igrun.attach` that attaches it
    type:    BPF_PROG_TYPE_*
    attach:  BPF_* attach type that the kernel wants to know at load; None: none, or libbpf finds it by itself
    target:  what follows the section's name, for messages and documentation; "" if nothing does
    sleeps:  it may also end in `.s`: the program may sleep
    """

    section: str
    family: str
    type: int
    attach: int | None = None
    target: str = ""
    sleeps: bool = False


TYPES: tuple[ProgramType, ...] = tuple(
    ProgramType(*row)
    for row in (
        ("tracepoint/", "tracing", 5, None, "group/name"),
        ("tp/", "tracing", 5, None, "group/name"),
        ("raw_tracepoint/", "tracing", 17, None, "name"),
        ("raw_tp/", "tracing", 17, None, "name"),
        ("raw_tracepoint.w/", "tracing", 24, None, "name"),
        ("raw_tp.w/", "tracing", 24, None, "name"),
        ("tp_btf/", "tracing", 26, 23, "name"),
        ("fentry/", "tracing", 26, 24, "function", True),
        ("fexit/", "tracing", 26, 25, "function", True),
        ("fmod_ret/", "tracing", 26, 26, "function", True),
        ("freplace/", "tracing", 28, None, "function"),
        ("lsm/", "tracing", 29, 27, "hook", True),
        ("iter/", "tracing", 26, 28, "kind", True),
        ("kprobe/", "kprobe", 2, None, "function[+offset]"),
        ("kretprobe/", "kprobe", 2, None, "function"),
        ("ksyscall/", "kprobe", 2, None, "syscall"),
        ("kretsyscall/", "kprobe", 2, None, "syscall"),
        ("kprobe.multi/", "kprobe", 2, 42, "pattern"),
        ("kretprobe.multi/", "kprobe", 2, 42, "pattern"),
        ("kprobe.session/", "kprobe", 2, 56, "pattern"),
        ("uprobe/", "uprobe", 2, None, "file:function[+offset]", True),
        ("uretprobe/", "uprobe", 2, None, "file:function", True),
        ("uprobe.multi/", "uprobe", 2, 48, "file:pattern", True),
        ("uretprobe.multi/", "uprobe", 2, 48, "file:pattern", True),
        ("uprobe.session/", "uprobe", 2, 57, "file:pattern", True),
        ("usdt/", "uprobe", 2, None, "file:provider:name", True),
        ("perf_event/", "perf", 7, None, "name"),
        ("perf_event", "perf", 7),
        ("socket", "socket", 1),
        ("classifier/", "tc", 3, None, "ingress|egress/name"),
        ("classifier", "tc", 3, None, "ingress|egress"),
        ("tc/", "tc", 3, None, "ingress|egress"),
        ("tc", "tc", 3),
        ("tcx/", "tc", 3, None, "ingress|egress"),
        ("netkit/", "tc", 3, None, "primary|peer"),
        ("action", "tc", 4),
        ("xdp.frags", "xdp", 6, 37),
        ("xdp", "xdp", 6, 37),
        ("cgroup_skb/ingress", "cgroup", 8, 0),
        ("cgroup_skb/egress", "cgroup", 8, 1),
        ("cgroup/skb", "cgroup", 8),
        ("cgroup/sock_create", "cgroup", 9, 2),
        ("cgroup/sock_release", "cgroup", 9, 34),
        ("cgroup/sock", "cgroup", 9, 2),
        ("cgroup/post_bind4", "cgroup", 9, 12),
        ("cgroup/post_bind6", "cgroup", 9, 13),
        ("cgroup/bind4", "cgroup", 18, 8),
        ("cgroup/bind6", "cgroup", 18, 9),
        ("cgroup/connect4", "cgroup", 18, 10),
        ("cgroup/connect6", "cgroup", 18, 11),
        ("cgroup/connect_unix", "cgroup", 18, 49),
        ("cgroup/sendmsg4", "cgroup", 18, 14),
        ("cgroup/sendmsg6", "cgroup", 18, 15),
        ("cgroup/sendmsg_unix", "cgroup", 18, 50),
        ("cgroup/recvmsg4", "cgroup", 18, 19),
        ("cgroup/recvmsg6", "cgroup", 18, 20),
        ("cgroup/recvmsg_unix", "cgroup", 18, 51),
        ("cgroup/getpeername4", "cgroup", 18, 29),
        ("cgroup/getpeername6", "cgroup", 18, 30),
        ("cgroup/getpeername_unix", "cgroup", 18, 52),
        ("cgroup/getsockname4", "cgroup", 18, 31),
        ("cgroup/getsockname6", "cgroup", 18, 32),
        ("cgroup/getsockname_unix", "cgroup", 18, 53),
        ("cgroup/sysctl", "cgroup", 23, 18),
        ("cgroup/getsockopt", "cgroup", 25, 21),
        ("cgroup/setsockopt", "cgroup", 25, 22),
        ("cgroup/dev", "cgroup", 15, 6),
        ("sockops", "cgroup", 13, 3),
        ("lsm_cgroup/", "cgroup", 29, 43, "hook"),
        ("sk_skb/stream_parser", "sockmap", 14, 4),
        ("sk_skb/stream_verdict", "sockmap", 14, 5),
        ("sk_skb/verdict", "sockmap", 14, 38),
        ("sk_skb", "sockmap", 14),
        ("sk_msg", "sockmap", 16, 7),
        ("sk_lookup", "netns", 30, 36),
        ("flow_dissector", "netns", 22, 17),
        ("netfilter", "netfilter", 32, 45),
        ("sk_reuseport/migrate", "reuseport", 21, 40),
        ("sk_reuseport", "reuseport", 21, 39),
        ("lwt_in", "lwt", 10),
        ("lwt_out", "lwt", 11),
        ("lwt_xmit", "lwt", 12),
        ("lwt_seg6local", "lwt", 19),
        ("struct_ops/", "struct_ops", 27, 44, "member", True),
        ("struct_ops", "struct_ops", 27, 44, "", True),
        ("syscall", "syscall", 31),
    )
)


def program_type(section: str, types: tuple[ProgramType, ...] = TYPES) -> ProgramType | None:
    """The row of a section, the longest that fits; None if nobody knows it. A `?` before it does not matter."""
    section = section.removeprefix("?")
    fitting = [row for row in types if fits(row, section)]
    return max(fitting, key=lambda row: len(row.section)) if fitting else None


def fits(row: ProgramType, section: str) -> bool:
    """Whether a section is of this row."""
    name = row.section.removesuffix("/")
    word, slash, target = section.partition("/") if "/" not in name else (section, "", "")
    if word.endswith(SLEEPABLE) and row.sleeps:
        word = word.removesuffix(SLEEPABLE)
    if "/" in name:
        return word == name or word.startswith(f"{name}/")
    if row.section.endswith("/"):
        return word == name and bool(slash and target)
    if name == "socket":  # the ecosystem has socket1, socket2, ...
        return re.fullmatch(r"socket\w*", word) is not None
    return word == name


def sleeps(section: str) -> bool:
    """Whether the section says that its program may sleep."""
    return section.partition("/")[0].endswith(SLEEPABLE)
