"""bpf(2) itself: the commands, or members of them, that libbpf 1.1 has no function for."""

from __future__ import annotations

import ctypes as C
import os
from collections.abc import Iterable, Sequence
from errno import E2BIG, EINVAL, ENOENT, EOPNOTSUPP, EPERM
from functools import cache
from struct import pack, unpack_from

from igrun.clib import syscall
from igrun.errors import KernelError

ENOTSUPP = 524  # the kernel's own number, which no errno of user space has

# enum bpf_cmd
PROG_LOAD, PROG_ATTACH, PROG_DETACH, TEST_RUN, PROG_NEXT_ID, MAP_NEXT_ID, PROG_FD_BY_ID = 5, 8, 9, 10, 11, 12, 13
INFO_BY_FD, PROG_QUERY, RAW_TRACEPOINT, BTF_FD_BY_ID, LINK_CREATE, LINK_UPDATE = 15, 16, 17, 19, 28, 29
LINK_FD_BY_ID, LINK_NEXT_ID, LINK_DETACH = 30, 31, 34
# Flags of what is attached beside others
F_OVERRIDE, F_MULTI, F_REPLACE, F_BEFORE, F_AFTER, F_ID = 1, 2, 4, 8, 16, 32
KPROBE_MULTI, UPROBE_MULTI, KPROBE_SESSION, UPROBE_SESSION = 42, 48, 56, 57  # BPF_TRACE_*
KPROBE = 2  # BPF_PROG_TYPE_KPROBE
ATTR_BYTES = 152  # room of our union bpf_attr; the kernel takes zeros behind what it knows


class Extra:
    """The member of `link_create`'s union for one type of link. kept: memory that it points to."""

    def __init__(self, data: bytes, *kept: object) -> None:
        self.data, self.kept = data, kept


NOTHING = Extra(b"")


def target_btf(number: int) -> Extra:
    """A function by its BTF id, in the program behind `target_fd`."""
    return Extra(pack("=I", number))


def tracing(number: int, cookie: int) -> Extra:
    """fentry, fexit, fmod_ret, tp_btf, lsm. number: as in `target_btf`, 0: what it was loaded for."""
    return Extra(pack("=I4xQ", number, cookie))


def perf_event(cookie: int) -> Extra:
    """kprobe, uprobe, tracepoint: `target_fd` is the perf event."""
    return Extra(pack("=Q", cookie))


def iter_info(data: bytes) -> Extra:
    """An iterator. data: union bpf_iter_link_info."""
    buffer = C.create_string_buffer(data, max(len(data), 1))
    return Extra(pack("=QI", C.addressof(buffer), len(data)), buffer)


def kprobe_multi(
    *, symbols: Sequence[str] = (), addresses: Sequence[int] = (), cookies: Sequence[int] = (), flags: int = 0
) -> Extra:
    """Functions by name or address. flags: 1 at their return."""
    names, keep = texts(symbols)
    places, marks = numbers(addresses), numbers(cookies)
    count = len(symbols) or len(addresses)
    return Extra(pack("=IIQQQ", flags, count, address(names), address(places), address(marks)), keep, places, marks)


def uprobe_multi(
    path: str,
    offsets: Sequence[int],
    *,
    counters: Sequence[int] = (),
    cookies: Sequence[int] = (),
    pid: int = 0,
    flags: int = 0,
) -> Extra:
    """Places in a file. counters: file offsets of USDT semaphores; pid: 0 is every process; flags: 1 at the return."""
    name = C.create_string_buffer(os.fsencode(path))
    arrays = [numbers(offsets), numbers(counters), numbers(cookies)]
    data = pack("=QQQQIII", address(name), *map(address, arrays), len(offsets), flags, pid)
    return Extra(data, name, arrays)


def netfilter(family: int, hook: int, priority: int, flags: int = 0) -> Extra:
    """family: NFPROTO_*; hook: NF_INET_*; flags: 1 puts fragments together first."""
    return Extra(pack("=IIiI", family, hook, priority, flags))


def beside(relative: int = 0, revision: int = 0) -> Extra:
    """tcx, netkit, cgroup: where among the others. relative: a program's or link's descriptor (or id with F_ID)."""
    return Extra(pack("=I4xQ", relative, revision))


def link_create(
    prog_fd: int, target_fd: int, attach_type: int, extra: Extra = NOTHING, *, flags: int = 0, what: str = "attach"
) -> int:
    """The descriptor of a new link; closing it detaches. KernelError.

    target_fd: what to attach to: interface index, cgroup, namespace, perf event, ...; of a struct_ops link `prog_fd`
               is the map
    """
    return call(LINK_CREATE, pack("=IIII", prog_fd, target_fd, attach_type, flags) + extra.data, what)


def link_update(link_fd: int, prog_fd: int, old_fd: int = 0, *, what: str = "update a link") -> None:
    """Put a program in the place of a link's, if that is `old_fd` (0: whatever it is). KernelError."""
    call(LINK_UPDATE, pack("=IIII", link_fd, prog_fd, F_REPLACE if old_fd else 0, old_fd), what)


def raw_tracepoint(prog_fd: int, name: str = "", cookie: int = 0, *, what: str = "attach") -> int:
    """The descriptor of a raw tracepoint's link. name: "" for what the program was loaded for. KernelError."""
    text = C.create_string_buffer(name.encode())
    # The cookie came with Linux 6.10 (68ca5d4eebb8): an older kernel refuses one that is not 0.
    return call(RAW_TRACEPOINT, pack("=QI4xQ", C.addressof(text) if name else 0, prog_fd, cookie), what)


def prog_attach(
    prog_fd: int,
    target_fd: int,
    attach_type: int,
    *,
    flags: int = 0,
    replace_fd: int = 0,
    relative: int = 0,
    revision: int = 0,
    what: str = "attach",
) -> None:
    """Attach without a link: it stays until `prog_detach`, or until the target is gone. KernelError."""
    attr = pack("=IIIIIIQ", target_fd, prog_fd, attach_type, flags, replace_fd, relative, revision)
    call(PROG_ATTACH, attr, what)


def prog_detach(
    prog_fd: int, target_fd: int, attach_type: int, *, flags: int = 0, relative: int = 0, what: str = "detach"
) -> None:
    """Undo `prog_attach`. KernelError."""
    call(PROG_DETACH, pack("=IIIIIIQ", target_fd, prog_fd, attach_type, flags, 0, relative, 0), what)


def prog_query(target_fd: int, attach_type: int, *, flags: int = 0, most: int = 64, what: str = "query") -> list[int]:
    """Ids of the programs that are attached there. flags: 1 with those of the parents. KernelError."""
    return attached(target_fd, attach_type, flags=flags, most=most, what=what)[0]


def attached(
    target_fd: int, attach_type: int, *, flags: int = 0, most: int = 64, what: str = "query"
) -> tuple[list[int], int]:
    """As `prog_query`, and the flags that they were attached with, where the target keeps some (F_MULTI)."""
    ids = (C.c_uint32 * most)()
    attr = pack("=IIIIQI4x", target_fd, attach_type, flags, 0, C.addressof(ids), most)
    buffer = C.create_string_buffer(attr, ATTR_BYTES)
    command(PROG_QUERY, buffer, what)
    (count,) = unpack_from("=I", buffer, 24)
    return list(ids[:count]), int(unpack_from("=I", buffer, 12)[0])


RETURN_0 = bytes.fromhex("b700000000000000 9500000000000000")


def prog_load(
    kind: int,
    attach_type: int = 0,
    *,
    code: bytes = RETURN_0,
    flags: int = 0,
    btf_id: int = 0,
    target_fd: int = 0,
    name: str = "probe",
    what: str = "load",
) -> int:
    """The descriptor of a program that was loaded without libbpf. KernelError.

    kind, attach_type: BPF_PROG_TYPE_*, BPF_*; btf_id, target_fd: the function that it is for
    """
    insns, license_ = C.create_string_buffer(code, len(code)), C.create_string_buffer(b"GPL")
    attr = pack(
        "=IIQQIIQII16sIIIIQIIQIII",
        *(kind, len(code) // 8, C.addressof(insns), C.addressof(license_), 0, 0, 0, 0, flags),
        *(name.encode()[:15], 0, attach_type, 0, 0, 0, 0, 0, 0, 0, btf_id, target_fd),
    )
    return call(PROG_LOAD, attr, what)


@cache
def has_attach_type(kind: int) -> bool:
    """Whether this kernel has links of this type (KPROBE_MULTI, UPROBE_MULTI, or a session).

    True too if it does not let us ask: then loading tells why.
    """
    try:
        program = prog_load(KPROBE, kind, what="load a probe")
    except KernelError as error:
        return error.errno == EPERM
    try:
        # An address that cannot be read: only a kernel that knows the type comes so far.
        places = pack("=IIQQQ", 0, 1, 1, 0, 0) if kind in (KPROBE_MULTI, KPROBE_SESSION) else uprobes_nowhere()
        os.close(link_create(program, 0, kind, Extra(places)))
    except KernelError as error:
        # EBADF, ENOENT, EISDIR, ...: the path of the uprobes is no file
        return error.errno not in (EINVAL, EOPNOTSUPP, E2BIG, ENOTSUPP)
    finally:
        os.close(program)
    return True


def uprobes_nowhere() -> bytes:
    """Uprobes in a directory, of which the kernel says EBADF (as libbpf asks)."""
    return pack("=QQQQIII", C.addressof(ROOT), C.addressof(PLACE), 0, 0, 1, 0, 0)


ROOT, PLACE = C.create_string_buffer(b"/"), (C.c_uint64 * 1)()


def run_once(prog_fd: int, data: bytes = b"", context: bytes = b"", *, what: str = "run") -> int:
    """What the program returns when the kernel runs it once. data: a packet; KernelError."""
    packet, ctx = C.create_string_buffer(data, max(len(data), 1)), C.create_string_buffer(context, max(len(context), 1))
    attr = pack(
        "=IIIIQQIIIIQQ",
        *(prog_fd, 0, len(data), 0, C.addressof(packet) if data else 0, 0, 0, 0),
        *(len(context), 0, C.addressof(ctx) if context else 0, 0),
    )
    buffer = C.create_string_buffer(attr, ATTR_BYTES)
    command(TEST_RUN, buffer, what)
    found: int = C.c_int32.from_buffer(buffer, 4).value
    return found


def program_of_id(number: int) -> int:
    """The descriptor of a loaded program. KernelError: there is none."""
    return call(PROG_FD_BY_ID, pack("=I", number), f"open program {number}")


def program_name(fd: int) -> str:
    """The name of the program behind a descriptor, cut to 15 characters. KernelError."""
    info = C.create_string_buffer(80)  # the head of struct bpf_prog_info; the name stands at 64
    call(INFO_BY_FD, pack("=IIQ", fd, len(info), C.addressof(info)), "ask about a program")
    return info.raw[64:].partition(b"\0")[0].decode(errors="replace")


def id_of(fd: int) -> int:
    """The kernel's number for the program, map or link behind a descriptor. KernelError."""
    info = C.create_string_buffer(8)  # type and id stand first in all three
    call(INFO_BY_FD, pack("=IIQ", fd, len(info), C.addressof(info)), "ask for an id")
    return int(unpack_from("=I", info, 4)[0])


def program_ids() -> list[int]:
    """Ids of all loaded programs. KernelError: that is not for this process."""
    return ids_of(PROG_NEXT_ID)


def ids_of(following: int) -> list[int]:
    """All ids that the command `following` (…_NEXT_ID) gives."""
    found: list[int] = []
    while True:
        buffer = C.create_string_buffer(pack("=I", found[-1] if found else 0), ATTR_BYTES)
        try:
            command(following, buffer, "list what is loaded")
        except KernelError as error:
            if error.errno != ENOENT:
                raise
            return found
        found.append(unpack_from("=I", buffer, 4)[0])


# ------------------------------------------------------------------------------------------------ the call


def call(number: int, attr: bytes, what: str) -> int:
    """Make the call with this union bpf_attr. KernelError, which says what could not be done."""
    return command(number, C.create_string_buffer(attr, ATTR_BYTES), what)


def command(number: int, attr: C.Array[C.c_char], what: str) -> int:
    """As `call`; the kernel writes into the buffer too."""
    return syscall("bpf", number, attr, len(attr), what=what)


def numbers(values: Iterable[int]) -> C.Array[C.c_uint64] | None:
    """An array of u64; None: a null pointer."""
    values = list(values)
    return (C.c_uint64 * len(values))(*values) if values else None


def texts(values: Sequence[str]) -> tuple[C.Array[C.c_char_p] | None, object]:
    """An array of C strings, and what must live as long as it."""
    array = (C.c_char_p * len(values))(*(one.encode() for one in values)) if values else None
    return array, array


def address(memory: C.Array[C.c_uint64] | C.Array[C.c_char_p] | C.Array[C.c_char] | None) -> int:
    """Where it is, 0 for None."""
    return C.addressof(memory) if memory is not None else 0
