"""Packet filters in the language of tcpdump (pcap-filter(7)), compiled into a gadget's program.

What a filter means is what libpcap makes of it for Ethernet, or for IP where there is no link header. Left out is what
a filter cannot know: names of hosts and networks, `gateway`, `inbound`, `outbound`, `ip broadcast`, and headers of
other links.
A VLAN tag that the kernel or the network card took out of the packet is not seen. `protochain` looks at eight headers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from igrun.elf import Elf
from igrun.errors import ImageError, UnsupportedError
from igrun.markers import FILTER, filter_key
from igrun.packetfilter.code import Access, assemble, reject_all
from igrun.packetfilter.grammar import parse
from igrun.packetfilter.graph import Graph, TooLongError
from igrun.packetfilter.layers import Link
from igrun.packetfilter.meaning import meaning
from igrun.packetfilter.patch import Function, Patch
from igrun.packetfilter.words import Text

__all__ = ["REJECT_ALL", "Access", "Link", "check", "compiled", "inject"]

REJECT_ALL = "__reject_all__"  # the filter that nothing passes
# First word of a program's section -> how it reads packets, and what they begin with (None: as the interface has it)
SECTIONS: dict[str, tuple[Access, Link | None]] = {
    **dict.fromkeys(("classifier", "tc", "tcx", "netkit", "action"), (Access.BOTH, None)),
    **dict.fromkeys(("cgroup_skb", "cgroup", "lwt_in", "lwt_out", "lwt_xmit"), (Access.BOTH, Link.IP)),
    "socket": (Access.HELPER, None),
    "xdp": (Access.DIRECT, None),
}


def check(expression: str, key: str = "pf") -> None:
    """ParamError if it is no filter, for Ethernet or for IP without a link header."""
    compiled(expression, key=key)


def compiled(expression: str, *, key: str = "pf", link: Link = Link.ETHERNET, access: Access = Access.BOTH) -> bytes:
    """The instructions of a filter, see `igrun.packetfilter.code`; none if it is empty.

    key: the flag that an error names

    ParamError: it is no filter, or has no meaning on such a link
    """
    if not expression.strip():
        return b""
    if expression.strip() == REJECT_ALL:
        return reject_all()
    source = Text(expression, key)
    condition = meaning(source, parse(source), link)
    try:
        return assemble(Graph.of(condition), access)
    except TooLongError:
        raise source.error("the filter needs too many instructions", 0, "make it shorter") from None


def inject(elf: bytes, filters: Mapping[str, str], link: Link = Link.ETHERNET) -> bytes:
    """The object with these filters in its programs.

    filters: name of the filter, as in GADGET_PF(name) -> expression
    link:    what packets on the interface begin with

    ParamError: a filter is wrong; ImageError: the object has no such filter, or is broken; UnsupportedError: a program
    that calls it has no packets
    """
    wanted = {name: expression for name, expression in filters.items() if expression.strip()}
    if not wanted:
        return elf
    patch = Patch(Elf(elf))
    for name, expression in wanted.items():
        found = [one for one in patch.functions() if one.name == FILTER + name]
        if len(found) != 1:
            raise ImageError(f"the BPF object has no function {FILTER + name!r} for the packet filter")
        access, begins = reading(patch, found[0], name)
        code = compiled(expression, key=filter_key(name), link=begins or link, access=access)
        patch.prepend(found[0], code)
    return patch.finished()


def reading(patch: Patch, function: Function, name: str) -> tuple[Access, Link | None]:
    """How the programs that call the filter read packets."""
    feature = f"--{filter_key(name)}"
    found = set()
    for section in sorted(patch.callers(function)):
        word = re.split(r"[\d/.]", section, maxsplit=1)[0]
        if word not in SECTIONS:
            raise UnsupportedError(feature, f"programs of section {section!r} have no packet to filter")
        found.add(SECTIONS[word])
    accesses, links = {access for access, _ in found}, {link for _, link in found}
    if len(links) > 1 or {Access.DIRECT, Access.HELPER} <= accesses:
        raise UnsupportedError(feature, "programs of too different types share the filter", hint="give each its own")
    link = links.pop() if links else None
    for access in (Access.HELPER, Access.DIRECT):
        if access in accesses:
            return access, link
    return Access.BOTH, link
