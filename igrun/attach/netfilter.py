"""netfilter: programs at the hooks of a network namespace, beside the rules of nftables and iptables."""

from __future__ import annotations

from errno import EBUSY, EINVAL, EPERM
from typing import TYPE_CHECKING, NamedTuple

from igrun.attach.common import feature, handle_of, nearest
from igrun.attach.namespaces import Namespace, inside, of
from igrun.bpfcall import link_create, netfilter
from igrun.errors import AttachError, KernelError, MetadataError, UnsupportedError
from igrun.libbpf import BpfLink

if TYPE_CHECKING:
    from collections.abc import Mapping

    from igrun.host import Target
    from igrun.program import Hook

NETFILTER = 45  # BPF_NETFILTER
FAMILIES = {"ipv4": 2, "ipv6": 10}  # NFPROTO_*
HOOKS = {"prerouting": 0, "local_in": 1, "forward": 2, "local_out": 3, "postrouting": 4}  # NF_INET_*
# What iptables calls them
OTHER_NAMES = {"pre_routing": "prerouting", "post_routing": "postrouting", "input": "local_in", "output": "local_out"}
FAMILY, HOOK, PRIORITY, DEFRAG = "netfilter.pf", "netfilter.hook", "netfilter.priority", "netfilter.defrag"
LOWEST, HIGHEST = -(1 << 31) + 1, (1 << 31) - 2


class Place(NamedTuple):
    """A hook of a namespace."""

    namespace: Namespace
    family: str
    hook: str
    priority: int
    defrag: bool


def places(hook: Hook, target: Target) -> tuple[Place, ...]:
    """The hook that gadget.yaml names, for both families where it names none. AttachError, MetadataError."""
    where = option(hook, HOOK, HOOKS)
    if not where:
        known = ", ".join(HOOKS)
        raise MetadataError(f"programs.{hook.program}.{HOOK}", "it must say where to attach", hint=f"one of {known}")
    family = option(hook, FAMILY, FAMILIES)
    try:
        priority = int(hook.options.get(PRIORITY, "0"), 0)
    except ValueError:
        priority = HIGHEST + 1
    if not LOWEST <= priority <= HIGHEST:
        problem = f"{hook.options[PRIORITY]!r} is no number of {LOWEST} to {HIGHEST}"
        raise MetadataError(f"programs.{hook.program}.{PRIORITY}", problem)
    defrag = option(hook, DEFRAG, {"true": 1, "false": 0}) == "true"
    namespace = of(target, hook)
    return tuple(Place(namespace, one, where, priority, defrag) for one in ([family] if family else FAMILIES))


def option(hook: Hook, key: str, known: Mapping[str, int]) -> str:
    """What gadget.yaml says under `programs.<name>.<key>`, "" if nothing. MetadataError: it is not known."""
    text = str(hook.options.get(key, "")).lower().removeprefix("nf_inet_").removeprefix("nfproto_")
    text = OTHER_NAMES.get(text, text)
    if text and text not in known:
        hint = nearest(text, known) or f"one of {', '.join(known)}"
        raise MetadataError(f"programs.{hook.program}.{key}", f"{hook.options[key]!r} is not known", hint=hint)
    return text


def attach(hook: Hook, place: Place) -> BpfLink:
    """Attach the program. AttachError; UnsupportedError: the kernel has no such links."""
    extra = netfilter(FAMILIES[place.family], HOOKS[place.hook], place.priority, int(place.defrag))
    program = handle_of(hook).fd
    try:
        return BpfLink.of_fd(inside(place.namespace, lambda: link_create(program, 0, NETFILTER, extra)))
    except KernelError as error:
        number = error.errno or EINVAL
        name = f"{place.family} {place.hook} of network namespace {place.namespace.inode}"
        hint = {
            EPERM: "CAP_NET_ADMIN in that namespace is needed",
            EBUSY: f"another program has priority {place.priority} there: set programs.{hook.program}.{PRIORITY}",
        }.get(number, "")
        if number == EINVAL and place.defrag:
            lacks = "this kernel does not put fragments together for programs"
            raise UnsupportedError(feature(hook), lacks, since="6.6", hint=f"leave out {DEFRAG}") from None
        raise AttachError(number, hook.program, hook.section, name, hint=hint) from None
