"""BTF that describes the running kernel: where it comes from, in order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from igrun.errors import BtfNotFoundError

if TYPE_CHECKING:
    from igrun.host import Host
    from igrun.program import Program


def find(host: Host, program: Program) -> str | None:
    """The BTF file to resolve the program's CO-RE relocations against; None: libbpf finds the kernel's own.

    BtfNotFoundError: the program needs some and there is none.
    """
    own = host.root / "sys/kernel/btf/vmlinux"
    if own.exists() or not program.needs_kernel_btf:
        return None
    hint = "this kernel was built without CONFIG_DEBUG_INFO_BTF; run one that has it (Debian 11, Ubuntu 20.10 or later)"
    raise BtfNotFoundError(host.release, [(str(own), "no such file")], hint=hint)
