"""What the section of a program needs: its type, how it is attached, and the first Linux version that can."""

from __future__ import annotations

from types import MappingProxyType
from typing import NamedTuple

from igrun.requirements.versions import (
    ATTACH_SINCE,
    ATTACH_TYPES,
    ITERATORS,
    PROGRAM_SINCE,
    PROGRAM_TYPES,
    Version,
    since,
)
from igrun.sections import program_type, sleeps

# Attach types that a program is loaded without where the kernel does not know them
OPTIONAL = ("cgroup_inet_ingress", "cgroup_inet_egress", "xdp", "sk_reuseport_select", "struct_ops")
# Those that only what follows the section's first word tells
BY_TARGET = MappingProxyType(
    {
        "tcx/ingress": "tcx_ingress",
        "tcx/egress": "tcx_egress",
        "netkit/primary": "netkit_primary",
        "netkit/peer": "netkit_peer",
        "xdp/devmap": "xdp_devmap",
        "xdp/cpumap": "xdp_cpumap",
    }
)
# First word of a section that ends in .s -> when such programs could sleep
SLEEPABLE: MappingProxyType[str, Version] = MappingProxyType(
    {
        **dict.fromkeys(("fentry", "fexit", "fmod_ret", "lsm"), (5, 10)),
        "iter": (5, 18),
        **dict.fromkeys(("uprobe", "uretprobe", "usdt"), (6, 0)),
        **dict.fromkeys(("uprobe.multi", "uretprobe.multi"), (6, 6)),
        "uprobe.session": (6, 13),
        "struct_ops": (6, 4),
    }
)

# What CAP_PERFMON, and what CAP_NET_ADMIN is needed for (is_perfmon_prog_type and is_net_admin_prog_type in the
# kernel's kernel/bpf/syscall.c; programs of cgroups and of network namespaces want it when they are attached)
PERFMON = frozenset(
    "kprobe tracepoint perf_event raw_tracepoint raw_tracepoint_writable tracing lsm struct_ops ext".split()
)
NET_ADMIN = frozenset(
    """
    sched_cls sched_act xdp lwt_in lwt_out lwt_xmit lwt_seg6local sk_skb sk_msg flow_dissector cgroup_device cgroup_sock
    cgroup_sock_addr cgroup_sockopt cgroup_sysctl sock_ops ext netfilter cgroup_skb sk_lookup
    """.split()
)


class Kind(NamedTuple):
    """What a section says. type: without BPF_PROG_TYPE_; attach: in lower case, "" where the type says it all.

    needs: each version with its reason
    """

    type: str
    attach: str
    needs: tuple[tuple[Version, str], ...]


UNKNOWN = Kind("", "", ())


def kind_of(section: str) -> Kind | None:
    """What a section says; None if nobody knows such sections."""
    section = section.removeprefix("?")
    row = program_type(section)
    if row is None:
        return None
    type_ = PROGRAM_TYPES.split()[row.type]
    attach = ATTACH_TYPES.split()[row.attach] if row.attach is not None else ""
    word, _, rest = section.partition("/")
    target = rest.partition("/")[0]
    attach = BY_TARGET.get(f"{word.partition('.')[0]}/{target}", attach)
    found = [(since(PROGRAM_SINCE, row.type), f"program type {type_}")]
    if attach and attach not in OPTIONAL:
        found.append((since(ATTACH_SINCE, ATTACH_TYPES.split().index(attach)), f"attach type {attach}"))
    base = word.removesuffix(".s")
    if base == "iter":
        found.append((ITERATORS.get(target), f"iterator {target}"))
    if sleeps(section):
        found.append((SLEEPABLE.get(base), f"{base} programs that may sleep"))
    if word == "xdp.frags":
        found.append(((5, 18), "xdp programs for packets in fragments"))
    return Kind(type_, attach, tuple((version, what) for version, what in found if version))
