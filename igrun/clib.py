"""C libraries through ctypes: each function under its C prototype, and the system calls that Python has no name for."""

from __future__ import annotations

import ctypes as C
import os
from collections.abc import Callable
from functools import cache
from typing import Any

from igrun.errors import KernelError

# The words of a prototype's types; anything with a `*` is a pointer.
TYPES: dict[str, Any] = {
    "int": C.c_int,
    "enum": C.c_int,
    "bool": C.c_bool,
    "long": C.c_long,
    "unsigned long": C.c_ulong,
    "__u32": C.c_uint32,
    "__u64": C.c_uint64,
    "size_t": C.c_size_t,
    "off_t": C.c_long,
    "va_list": C.c_void_p,  # both of our ABIs pass it as an address
    "void": None,
}


class Library:
    """A shared library whose functions have the types of the prototypes, one per line; declared at their first use."""

    def __init__(self, handle: C.CDLL, prototypes: str) -> None:
        self._handle = handle
        self._lines = {name_of(line): line for line in prototypes.splitlines() if line.endswith(");")}

    def __getattr__(self, name: str) -> Callable[..., Any]:
        returns, takes = types_of(self._lines[name])
        function: Any = getattr(self._handle, name)
        function.restype, function.argtypes = returns, takes
        setattr(self, name, function)
        declared: Callable[..., Any] = function
        return declared

    def has(self, name: str) -> bool:
        """True if this version of the library has the function."""
        return hasattr(self._handle, name)


def name_of(prototype: str) -> str:
    """The function's name."""
    return prototype.partition("(")[0].replace("*", " ").split()[-1]


def types_of(prototype: str) -> tuple[Any, list[Any]]:
    """ctypes of what the function returns and takes."""
    head, _, tail = prototype.removesuffix(");").partition("(")
    takes = [] if tail == "void" else [type_of(one) for one in tail.split(",")]
    return type_of(head), takes


def type_of(declaration: str) -> Any:
    """The ctype of `const char *name`, `__u32 name`, ..."""
    words = declaration.replace("const ", "").strip()
    if "*" in words:
        return C.c_char_p if words.startswith("char *") and "const" in declaration else C.c_void_p
    before = words.rpartition(" ")[0]
    return TYPES["enum" if before.startswith("enum ") else before]


LIBC = """
int vsnprintf(char *text, size_t size, const char *format, va_list args);
void *mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset);
int munmap(void *addr, size_t length);
int statfs(const char *path, void *buf);
int fstatfs(int fd, void *buf);
int setns(int fd, int nstype);
int bind(int sockfd, const void *address, __u32 length);
int mount(const char *source, const char *target, const char *type, unsigned long flags, const void *data);
int umount2(const char *target, int flags);
"""
# asm/unistd.h; fsopen and later have the same number everywhere
NUMBERS = {
    "x86_64": {"perf_event_open": 298, "bpf": 321, "membarrier": 324},
    "aarch64": {"perf_event_open": 241, "bpf": 280, "membarrier": 283},
}
COMMON = {"fsopen": 430, "fsconfig": 431, "fsmount": 432, "openat2": 437, "pidfd_getfd": 438}


@cache
def libc() -> Library:
    """The C library of this process."""
    return Library(C.CDLL(None, use_errno=True), LIBC)


def syscall(name: str, *arguments: Any, what: str = "") -> int:
    """Make the system call; int arguments are passed as long. KernelError if it fails: `what` could not be done."""
    number = COMMON.get(name) or NUMBERS[os.uname().machine][name]
    # varargs: without a prototype every integer must be widened by hand
    wide = [C.c_long(one) if isinstance(one, int) else one for one in arguments]
    function = C.CDLL(None, use_errno=True).syscall
    function.restype = C.c_long
    result: int = function(C.c_long(number), *wide)
    if result < 0:
        raise KernelError(C.get_errno(), what or name)
    return result


PROT_READ, PROT_WRITE = 1, 2
MAP_SHARED, MAP_PRIVATE, MAP_FIXED, MAP_ANONYMOUS = 1, 2, 0x10, 0x20


class Mapping:
    """Memory of a descriptor: `address`, `length`; close() unmaps it."""

    def __init__(self, fd: int, length: int, prot: int, offset: int = 0) -> None:
        address = libc().mmap(None, length, prot, MAP_SHARED, fd, offset)
        if address is None or address == C.c_void_p(-1).value:
            raise KernelError(C.get_errno(), f"mmap {length} bytes")
        self.address: int = address
        self.length = length

    def close(self) -> None:
        """Unmap. Nobody may hold a view of it."""
        if self.length:
            libc().munmap(self.address, self.length)
            self.length = 0


class PerfEventAttr(C.Structure):
    """struct perf_event_attr, PERF_ATTR_SIZE_VER5 (include/uapi/linux/perf_event.h)."""

    _fields_ = (
        ("type", C.c_uint32),
        ("size", C.c_uint32),
        ("config", C.c_uint64),
        ("sample", C.c_uint64),  # sample_period or sample_freq
        ("sample_type", C.c_uint64),
        ("read_format", C.c_uint64),
        ("flags", C.c_uint64),
        ("wakeup", C.c_uint32),  # wakeup_events or wakeup_watermark
        ("bp_type", C.c_uint32),
        ("config1", C.c_uint64),
        ("config2", C.c_uint64),
        ("branch_sample_type", C.c_uint64),
        ("sample_regs_user", C.c_uint64),
        ("sample_stack_user", C.c_uint32),
        ("clockid", C.c_int32),
        ("sample_regs_intr", C.c_uint64),
        ("aux_watermark", C.c_uint32),
        ("sample_max_stack", C.c_uint16),
        ("reserved", C.c_uint16),
    )


PERF_TYPE_HARDWARE, PERF_TYPE_SOFTWARE, PERF_TYPE_TRACEPOINT, PERF_TYPE_HW_CACHE, PERF_TYPE_RAW = range(5)
PERF_COUNT_SW_CPU_CLOCK, PERF_COUNT_SW_BPF_OUTPUT = 0, 10
PERF_SAMPLE_RAW = 1 << 10
PERF_FORMAT_LOST = 1 << 4
PERF_ATTR_INHERIT, PERF_ATTR_FREQ, PERF_ATTR_WATERMARK = 1 << 1, 1 << 10, 1 << 14  # bits of flags
PERF_EVENT_IOC_ENABLE = 0x2400
PERF_FLAG_FD_CLOEXEC = 8


def perf_event_open(cpu: int, *, thread: int = -1, **fields: int) -> int:
    """The descriptor of a perf event on `cpu` (-1: every), of `thread` (-1: every). fields: of PerfEventAttr.

    KernelError
    """
    attr = PerfEventAttr(size=C.sizeof(PerfEventAttr), **fields)
    return syscall("perf_event_open", C.byref(attr), thread, cpu, -1, PERF_FLAG_FD_CLOEXEC)


MEMBARRIER_CMD_GLOBAL = 1


def wait_for_running_programs() -> None:
    """Return once every BPF program that runs now has come to its end.

    A detached program may still run on another CPU. The global membarrier is synchronize_rcu()
    (kernel/sched/membarrier.c), and programs run inside an RCU read-side section.
    """
    try:
        syscall("membarrier", MEMBARRIER_CMD_GLOBAL, 0, 0)
    except KernelError:
        # Not there (CONFIG_MEMBARRIER off, nohz_full): a program runs for microseconds, a tick is ample.
        import time

        time.sleep(0.01)
