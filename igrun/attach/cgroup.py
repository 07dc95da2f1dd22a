"""Programs of cgroups: what processes in them do with sockets, socket options, sysctls and devices; lsm_cgroup.

They go beside those of other tools, as links do (Linux 5.7), and see what happens in the cgroup and all below it.
"""

from __future__ import annotations

import os
from contextlib import suppress
from errno import EBUSY, EINVAL, ENODEV, ENOENT, EPERM
from pathlib import Path
from typing import TYPE_CHECKING

from igrun.attach.common import Links, feature, linked
from igrun.bpfcall import prog_query, program_name, program_of_id
from igrun.dataclass import dataclass, field
from igrun.errors import AttachError, KernelError, UnsupportedError
from igrun.mounts import magic
from igrun.sections import program_type

if TYPE_CHECKING:
    from igrun.host import Target
    from igrun.program import Hook

CGROUP2 = 0x63677270  # CGROUP2_SUPER_MAGIC, include/uapi/linux/magic.h
PLACES = ("sys/fs/cgroup", "sys/fs/cgroup/unified")
INGRESS, EGRESS = 0, 1  # BPF_CGROUP_INET_*


@dataclass(frozen=True, slots=True)
class Cgroup:
    """A cgroup: two are the same if device and inode are. path: one of the ways to it."""

    device: int
    inode: int
    path: Path = field(compare=False)


def places(hook: Hook, target: Target) -> tuple[Cgroup, ...]:
    """The target's cgroup, or the root of all. AttachError: it is gone; UnsupportedError: nothing of v2 is mounted."""
    path = target.cgroup or root(target.root, hook)
    try:
        found = path.stat()
    except OSError as error:
        number, reason = error.errno or ENOENT, f"its cgroup {path} cannot be found ({error.strerror})"
        raise AttachError(number, hook.program, hook.section, target.name, reason=reason) from None
    if magic(path) != CGROUP2:
        reason, hint = f"{path} is no cgroup of version 2", "programs are only for those; see `mount -t cgroup2`"
        raise AttachError(EINVAL, hook.program, hook.section, target.name, reason=reason, hint=hint)
    return (Cgroup(found.st_dev, found.st_ino, path),)


def root(below: Path, hook: Hook) -> Path:
    """The root of the cgroup v2 hierarchy, where machines have it or wherever else it is mounted."""
    found = next((below / place for place in PLACES if magic(below / place) == CGROUP2), None)
    if found is None:
        with suppress(OSError):
            for line in Path("/proc/self/mounts").read_text().splitlines():
                _, where, kind, *_ = line.split(" ")
                if kind == "cgroup2" and Path(where).is_relative_to(below):
                    return Path(where.encode().decode("unicode_escape"))
        lacks = "no cgroup file system of version 2 is mounted"
        hint = "mount -t cgroup2 none /sys/fs/cgroup (on a machine with version 1: /sys/fs/cgroup/unified)"
        raise UnsupportedError(feature(hook), lacks, hint=hint)
    return found


def attach(hook: Hook, place: Cgroup) -> Links:
    """Attach the program. AttachError; UnsupportedError: this kernel has no links of cgroups."""
    try:
        fd = os.open(place.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise gone(hook, place, error.errno or ENOENT) from None
    links = Links()
    types = attach_types(hook)
    try:
        for kind in types:
            links.add(linked(hook, fd, kind))
    except KernelError as error:
        links.close()
        raise refused(error, hook, place, fd, types[0]) from None
    finally:
        os.close(fd)
    return links


def attach_types(hook: Hook) -> tuple[int, ...]:
    """Where in the cgroup it goes: one attach type, both directions where the section names none."""
    row = program_type(hook.section)
    if row is None or row.attach is None:
        return (INGRESS, EGRESS)
    return (row.attach,)


def refused(error: KernelError, hook: Hook, place: Cgroup, fd: int, kind: int) -> AttachError | UnsupportedError:
    """The kernel's refusal, with who holds the cgroup or what is missing."""
    number = error.errno or EINVAL
    if number == ENODEV:  # cgroup_bpf_release has begun: it is being removed
        return gone(hook, place, ENOENT)
    if number in (EPERM, EBUSY, EINVAL):
        holders = held(fd, kind)
        if holders and number != EINVAL:
            reason = f"{holders} holds cgroup {place.path} for itself"
            hint = "end what attached it, or have it let others in (BPF_F_ALLOW_MULTI)"
            return AttachError(number, hook.program, hook.section, str(place.path), reason=reason, hint=hint)
    if number == EINVAL:
        # af6eea57437a, "bpf: Implement bpf_link-based cgroup BPF program attachment"
        return UnsupportedError(feature(hook), "this kernel has no links of cgroups for it", since="5.7")
    hint = (
        "CAP_NET_ADMIN (or CAP_SYS_ADMIN) is needed; a cgroup above may also allow no others" if number == EPERM else ""
    )
    return AttachError(number, hook.program, hook.section, str(place.path), hint=hint)


def held(fd: int, kind: int) -> str:
    """The programs that are attached to a cgroup, in words; "" where there are none, or the kernel does not tell."""
    names = []
    with suppress(KernelError):
        for number in prog_query(fd, kind):
            program = program_of_id(number)
            try:
                names.append(f"program {program_name(program)!r} ({number})")
            finally:
                os.close(program)
    return ", ".join(names)


def gone(hook: Hook, place: Cgroup, number: int) -> AttachError:
    """The cgroup was removed meanwhile."""
    return AttachError(number, hook.program, hook.section, str(place.path), reason="the cgroup is gone")
