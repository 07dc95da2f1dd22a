"""Arguments of USDT probes: the maps of libbpf's usdt.bpf.h, in which its bpf_usdt_arg() looks where each one is."""

from __future__ import annotations

from errno import EEXIST, EINVAL
from functools import cache
from struct import pack
from typing import TYPE_CHECKING

from igrun.attach.common import cookie_of, feature, handle_of
from igrun.bpflib import library
from igrun.errors import AttachError, KernelError, UnsupportedError
from igrun.logs import Logger
from igrun.symbols.usdt import SPEC_BYTES, spec

if TYPE_CHECKING:
    from igrun.bpfmap import BpfMap
    from igrun.program import Hook

SPECS, NUMBERS = "__bpf_usdt_specs", "__bpf_usdt_ip_to_spec_id"
KPROBE, GET_ATTACH_COOKIE = 2, 174  # BPF_PROG_TYPE_KPROBE, BPF_FUNC_get_attach_cookie
NOEXIST = 1  # BPF_NOEXIST
# Of bytes that are there for alignment only: this entry is in use, though all else in it may be zero.
USED = SPEC_BYTES - 1


class Arguments:
    """What the maps of a program's object say; they end with the object, and one entry serves all that are like it."""

    def __init__(self, hook: Hook, specs: BpfMap, numbers: BpfMap | None) -> None:
        self._hook, self._specs, self._numbers = hook, specs, numbers

    @classmethod
    def of(cls, hook: Hook) -> Arguments | None:
        """None: the program does not ask for arguments. UnsupportedError: it asks in a way that nobody knows."""
        maps = handle_of(hook).object.maps
        if SPECS not in maps:
            return None
        specs = maps[SPECS].loaded()
        if specs.value_size != SPEC_BYTES:
            lacks = f"its map {SPECS} has values of {specs.value_size} bytes, not {SPEC_BYTES}"
            raise UnsupportedError(feature(hook), lacks, hint="compile it with the usdt.bpf.h of libbpf 1.x")
        return cls(hook, specs, maps[NUMBERS].loaded() if NUMBERS in maps else None)

    def number(self, machine: int, arguments: str) -> int:
        """The entry with these arguments, written if it is new. AttachError: the map is full."""
        packed, cannot = spec(machine, arguments, cookie_of(self._hook))
        if cannot:
            what = "%r: the program cannot read %s of %r"
            Logger(__name__).warning(what, self._hook.program, ", ".join(cannot), self._hook.attach_to)
        wanted = packed[:USED] + b"\1"
        for number in range(self._specs.max_entries):
            key = pack("=I", number)
            there = self._specs.lookup(key) or b""
            if there == wanted:
                return number
            if not any(there):
                self._specs.update(key, wanted)
                return number
        hook, most = self._hook, self._specs.max_entries
        reason = f"its probes have more than {most} different sets of arguments"
        hint = "define BPF_USDT_MAX_SPEC_CNT before usdt.bpf.h is included"
        raise AttachError(EINVAL, hook.program, hook.section, hook.attach_to, reason=reason, hint=hint)

    def at_address(self, address: int, number: int, *, fixed: bool) -> Entry:
        """Let the program know by the address that runs, where the kernel has no cookies.

        UnsupportedError: that address is known only when it runs
        """
        # Before Linux 5.15 (82e6b1eee6a8, "bpf: Allow to specify user-provided bpf_cookie for BPF perf links").
        if not fixed or self._numbers is None:
            lacks = "this kernel has no cookies, by which arguments of probes in libraries are found"
            raise UnsupportedError(feature(self._hook), lacks, since="5.15")
        try:
            return Entry(self._numbers, pack("=Q", address), pack("=I", number))
        except KernelError as error:
            if error.errno != EEXIST:
                raise
            lacks = "this kernel has no cookies, and two programs have probes at the same address"
            raise UnsupportedError(feature(self._hook), lacks, since="5.15") from None


class Entry:
    """An entry of a map, until close()."""

    def __init__(self, map_: BpfMap, key: bytes, value: bytes) -> None:
        map_.update(key, value, NOEXIST)
        self._map, self._key = map_, key

    def close(self) -> None:
        """Again: nothing."""
        self._map.delete(self._key)


@cache
def has_cookies() -> bool:
    """Ask the kernel, as libbpf does for the program. True as well if it does not let us ask."""
    return bool(library().libbpf_probe_bpf_helper(KPROBE, GET_ATTACH_COOKIE, None) != 0)
