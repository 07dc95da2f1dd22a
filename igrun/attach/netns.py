"""Programs of a network namespace: sk_lookup, which chooses sockets, and flow_dissector."""

from __future__ import annotations

import os
from errno import EBUSY, EEXIST, EINVAL, EPERM
from typing import TYPE_CHECKING

from igrun.attach.common import feature, handle_of, linked
from igrun.attach.namespaces import Namespace, of, opened
from igrun.errors import AttachError, KernelError, UnsupportedError

if TYPE_CHECKING:
    from igrun.host import Target
    from igrun.libbpf import BpfLink
    from igrun.program import Hook

FLOW_DISSECTOR, SK_LOOKUP = 17, 36  # enum bpf_attach_type
HELD = (EBUSY, EEXIST)


def places(hook: Hook, target: Target) -> tuple[Namespace, ...]:
    """The target's network namespace."""
    return (of(target, hook),)


def attach(hook: Hook, place: Namespace) -> BpfLink:
    """Attach the program. AttachError; UnsupportedError: the kernel has no links of namespaces."""
    kind = SK_LOOKUP if handle_of(hook).type == 30 else FLOW_DISSECTOR
    target = f"network namespace {place.inode}"
    try:
        fd = opened(place)
    except KernelError as error:
        number = error.errno or EINVAL
        raise AttachError(number, hook.program, hook.section, target, reason="it is gone") from None
    try:
        return linked(hook, fd, kind)
    except KernelError as error:
        number = error.errno or EINVAL
        if number == EINVAL and kind == FLOW_DISSECTOR:
            # Before Linux 5.8 (7f045a49fee0, "bpf: Add link-based BPF program attachment to network namespace").
            raise UnsupportedError(feature(hook), "this kernel has no links of namespaces", since="5.8") from None
        hint = "CAP_NET_ADMIN in that namespace is needed" if number == EPERM else ""
        if kind == FLOW_DISSECTOR and number in HELD:
            hint = "a flow dissector is there already: one namespace has one, and that of the host stands for all"
        raise AttachError(number, hook.program, hook.section, target, hint=hint) from None
    finally:
        os.close(fd)
