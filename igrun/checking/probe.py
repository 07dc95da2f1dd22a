"""The kernel is asked: minimal programs and maps are loaded, and closed again. Nothing is attached, nothing runs."""

from __future__ import annotations

import os
import re
from ctypes import addressof, create_string_buffer
from errno import EINVAL, EPERM
from struct import pack

from igrun.bpfcall import PROG_LOAD, call
from igrun.checking.table import FAILS, MISSING, UNKNOWN, WORKS, Answer
from igrun.dataclass import dataclass
from igrun.errors import KernelError
from igrun.objects import MapSpec
from igrun.requirements.memory import RINGBUF

MAP_CREATE, BTF_LOAD = 0, 18
LOG_BYTES = 1 << 16
EXIT = bytes.fromhex("9500000000000000")
STRUCT_OPS_MAP, NO_PREALLOC = 26, 1
MAPS_OF_MAPS = (12, 13)  # ARRAY_OF_MAPS, HASH_OF_MAPS
STORAGES = (24, 28, 29, 32)  # SK_, INODE_, TASK_, CGRP_STORAGE: their BTF says what is in them
# Returns that the verifier insists on: recvmsg, getpeername, getsockname for IPv4, IPv6 and unix
MUST_RETURN_1 = frozenset((19, 20, 29, 30, 31, 32, 51, 52, 53))
NO_HELPER = re.compile(
    r"invalid func |unknown func |program of this type cannot use helper |func \S+ not supported for program type |"
    r"func \S+ supported only for "
)
NO_KFUNC = re.compile(
    r"calling kernel functions? .*is not allowed|calling invalid kernel function|calling kernel function is not "
    r"supported|JIT does not support calling kernel function|BPF_CALL uses reserved fields|kernel btf_id \d+ is not a"
)
REFUSALS = (
    ("helper call is not allowed in probe", "programs at this target may not call it", ""),
    ("cannot call GPL-restricted function", "it is for programs under the GPL", "declare such a LICENSE"),
    ("cannot call kernel function from non-GPL", "it is for programs under the GPL", "declare such a LICENSE"),
    ("might sleep in a non-sleepable", "it may sleep, and the program may not", "end the section's first word with .s"),
    ("sleepable helper ", "it may sleep, and the program may not", "end the section's first word with .s"),
    (
        "program must be sleepable to call",
        "it may sleep, and the program may not",
        "end the section's first word with .s",
    ),
)


@dataclass(frozen=True, slots=True)
class Kind:
    """As what a program is loaded. btf_id, target_fd: what it is for; module_fd: of the BTF that `btf_id` is in"""

    type: int
    attach: int = 0
    flags: int = 0
    btf_id: int = 0
    target_fd: int = 0
    license: str = "GPL"


@dataclass(frozen=True, slots=True)
class Told:
    """What the kernel said. errno: 0 if it took it; log: of the verifier, "" if it did not come so far."""

    errno: int
    log: str = ""

    @property
    def reason(self) -> str:
        """The last line of the log that says something."""
        lines = [line for line in self.log.splitlines() if line.strip() and not line.startswith(("processed ", "0: "))]
        return lines[-1].strip() if lines else ""


def load(kind: Kind, code: bytes = b"") -> Told:
    """Load a program that does `code`, and returns."""
    value = int(kind.type == 18 and kind.attach in MUST_RETURN_1)
    whole = code + pack("=BBhi", 0xB7, 0, 0, value) + EXIT
    insns, license_ = create_string_buffer(whole, len(whole)), create_string_buffer(kind.license.encode())
    log = create_string_buffer(LOG_BYTES)
    attr = pack(
        "=IIQQIIQII16sIIIIQIIQIII",
        *(kind.type, len(whole) // 8, addressof(insns), addressof(license_), 1, LOG_BYTES, addressof(log), 0),
        *(kind.flags, b"ig_check", 0, kind.attach, 0, 0, 0, 0, 0, 0, 0, kind.btf_id, kind.target_fd),
    )
    try:
        os.close(call(PROG_LOAD, attr, "load a probe"))
    except KernelError as error:
        return Told(error.errno or EINVAL, log.value.decode(errors="replace"))
    return Told(0)


def may_call(kind: Kind, number: int) -> Answer:
    """Whether such programs may call a helper: the verifier says so before it looks at the arguments."""
    told = load(kind, pack("=BBhi", 0x85, 0, 0, number))
    if told.errno == 0:
        return Answer(WORKS, "such a program was loaded")
    if not told.log.strip():
        return Answer(UNKNOWN, "no program of this type can be loaded to see it")
    if NO_HELPER.search(told.log):
        unknown = "invalid func " in told.log
        why = "this kernel does not have it" if unknown else "this kernel does not have it for programs of this type"
        return Answer(MISSING, why)
    return refused(told) or Answer(WORKS, "the verifier knows it for programs of this type")


def may_call_kernel(kind: Kind, number: int) -> Answer:
    """Whether such programs may call a function of the kernel. number: its BTF id."""
    told = load(kind, pack("=BBhi", 0x85, 2 << 4, 0, number))
    if told.errno == 0:
        return Answer(WORKS, "such a program was loaded")
    if not told.log.strip():
        return Answer(UNKNOWN, "no program of this type can be loaded to see it")
    if NO_KFUNC.search(told.log):
        return Answer(FAILS, "the kernel has the function, but not for programs of this type")
    return refused(told) or Answer(WORKS, "the verifier knows it for programs of this type")


def refused(told: Told) -> Answer | None:
    """What no arguments would change."""
    for text, why, hint in REFUSALS:
        if text in told.log:
            return Answer(FAILS, why, hint)
    return None


# ------------------------------------------------------------------------------------------------ maps


def makes(spec: MapSpec, entries: int) -> Answer:
    """Whether the kernel makes such a map, of this size."""
    inner = btf = -1
    try:
        size = spec.value_size
        if spec.type in MAPS_OF_MAPS:
            inner, size = created(2, 4, 4, 1), 4
        key = value = 0
        if spec.type in STORAGES:
            btf, (key, value) = load_btf(spec.value_size), (1, 3)
        os.close(created(spec.type, spec.key_size, size, entries, spec.flags, inner, btf, key, value))
    except KernelError as error:
        return map_refused(error.errno or EINVAL, spec)
    finally:
        for fd in (inner, btf):
            if fd >= 0:
                os.close(fd)
    return Answer(WORKS, "such a map was made")


def map_refused(number: int, spec: MapSpec) -> Answer:
    """The words for a map that the kernel does not make."""
    if number == EPERM:
        return Answer(FAILS, "the kernel refuses it: Operation not permitted")
    if number == EINVAL and spec.type != RINGBUF:
        # Is it the type, or the sizes and flags?
        plain = MapSpec(spec.name, spec.type, spec.key_size, spec.value_size, 1, spec.flags & NO_PREALLOC)
        if spec.flags & ~NO_PREALLOC and makes(plain, 1).verdict is WORKS:
            return Answer(MISSING, f"this kernel does not know one of its flags ({spec.flags:#x})")
    if number == EINVAL:
        return Answer(MISSING, "this kernel does not have this type of map, or not with these sizes")
    return Answer(FAILS, f"the kernel does not make it: {os.strerror(number)}")


def created(
    kind: int, key: int, value: int, entries: int, flags: int = 0, inner: int = -1, btf: int = -1, *types: int
) -> int:
    """The descriptor of a new map. KernelError."""
    key_type, value_type = types or (0, 0)
    attr = pack(
        "=IIIIIII16sIIII",
        *(kind, key, value, entries, flags, max(inner, 0), 0, b"ig_check", 0, max(btf, 0), key_type, value_type),
    )
    return call(MAP_CREATE, attr, "make a map")


def load_btf(size: int) -> int:
    """BTF with an int (1) and an array of so many bytes (3). KernelError."""
    strings = b"\0int\0char\0"
    types = pack("=IIII", 1, 1 << 24, 4, 1 << 24 | 32) + pack("=IIII", 5, 1 << 24, 1, 8)
    types += pack("=IIIIII", 0, 3 << 24, 0, 2, 1, size)
    whole = pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(strings)) + types + strings
    data = create_string_buffer(whole, len(whole))
    return call(BTF_LOAD, pack("=QQIII", addressof(data), 0, len(whole), 0, 0), "load BTF")


def can_ask() -> Answer:
    """Whether this process may make maps and load programs; the limit on locked memory is lifted as for a run."""
    from igrun.bpfmap import BpfMap

    try:
        # by libbpf, which sees whether the kernel counts memory by that limit (before Linux 5.11), and lifts it
        BpfMap.create(2, "ig_check", 4, 4, 1).close()
    except KernelError as error:
        return Answer(FAILS, f"bpf(2) is refused: {os.strerror(error.errno or EPERM)}")
    told = load(Kind(1))
    if told.errno:
        return Answer(FAILS, f"bpf(2) is refused: {os.strerror(told.errno)}")
    return Answer(WORKS, "a map was made, and a program was loaded")
