"""Programs of cgroups: what processes in them do with sockets, socket options, sysctls and devices; lsm_cgroup.

They go beside those of other tools, as links do (Linux 5.7), and see what happens in the cgroup and all below it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from errno import E2BIG, EINVAL, ENODEV, ENOENT, EPERM
from pathlib import Path
from typing import TYPE_CHECKING

from igrun.attach.common import Links, feature, linked, named, refuse_without_bpf_lsm
from igrun.bpfcall import F_MULTI, attached
from igrun.choosing import kind_of
from igrun.dataclass import dataclass, field
from igrun.errors import AttachError, KernelError, UnsupportedError
from igrun.mounts import magic
from igrun.sections import program_type

if TYPE_CHECKING:
    from igrun.host import Target
    from igrun.program import Hook

CGROUP2 = 0x63677270  # CGROUP2_SUPER_MAGIC, include/uapi/linux/magic.h
PLACES = ("sys/fs/cgroup", "sys/fs/cgroup/unified")
MOUNTS = Path("/proc/self/mountinfo")
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
        reason = f"its cgroup {path} cannot be found ({error.strerror})"
        raise failed(hook, target.name, error.errno, reason) from None
    if magic(path) != CGROUP2 or not path.is_dir():
        hint = "programs are only for those; see `mount -t cgroup2`"
        raise failed(hook, target.name, EINVAL, f"{path} is no cgroup of version 2", hint)
    return (Cgroup(found.st_dev, found.st_ino, path),)


def root(below: Path, hook: Hook) -> Path:
    """The root of the cgroup v2 hierarchy, where machines have it or wherever else it is mounted. UnsupportedError."""
    for path in (*(below / place for place in PLACES), *mounted()):
        if magic(path) == CGROUP2:
            return path
    lacks = "no cgroup file system of version 2 is mounted"
    hint = "mount -t cgroup2 none /sys/fs/cgroup (on a machine with version 1: /sys/fs/cgroup/unified)"
    raise UnsupportedError(feature(hook), lacks, hint=hint)


def mounted() -> list[Path]:
    """Where the hierarchy is mounted; the last are places where a part of it is (see proc_pid_mountinfo(5))."""
    whole: list[Path] = []
    parts: list[Path] = []
    for line in MOUNTS.read_text(errors="surrogateescape").splitlines():
        mount, _, system = line.partition(" - ")
        if system.startswith("cgroup2 "):
            _, _, _, top, where, *_ = mount.split(" ")
            path = re.sub(rb"\\([0-7]{3})", lambda code: bytes([int(code[1], 8)]), os.fsencode(where))
            (whole if top == "/" else parts).append(Path(os.fsdecode(path)))
    return whole + parts


def attach(hook: Hook, place: Cgroup) -> Links:
    """Attach the program. AttachError; UnsupportedError: this kernel has no links of cgroups, or never runs it."""
    if kind_of(hook) == "lsm_cgroup":
        refuse_without_bpf_lsm(hook)
    fd = opened(hook, place)
    links = Links()
    try:
        for kind in attach_types(hook):
            try:
                links.add(linked(hook, fd, kind))
            except KernelError as error:
                raise refused(error, hook, place, kind) from None
    except BaseException:
        links.close()
        raise
    finally:
        os.close(fd)
    return links


def opened(hook: Hook, place: Cgroup) -> int:
    """A descriptor of the cgroup. AttachError: it is gone, or another one of that name is there by now."""
    try:
        fd = os.open(place.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        reason = "the cgroup is gone" if error.errno == ENOENT else ""
        raise failed(hook, str(place.path), error.errno, reason) from None
    if os.fstat(fd).st_ino != place.inode:
        os.close(fd)
        raise failed(hook, str(place.path), ENOENT, "the cgroup is gone, and another one has its name")
    return fd


def attach_types(hook: Hook) -> tuple[int, ...]:
    """Where in the cgroup it goes: one attach type; `cgroup/skb`, which names no direction, sees both."""
    row = program_type(hook.section)
    if row is None or row.attach is None:
        return (INGRESS, EGRESS)
    return (row.attach,)


# ------------------------------------------------------------------------------------------------ refusals


def refused(error: KernelError, hook: Hook, place: Cgroup, kind: int) -> AttachError | UnsupportedError:
    """The kernel's refusal, with who holds the cgroup or what is missing."""
    number, target = error.errno or EINVAL, str(place.path)
    if number == EINVAL:
        # Before af6eea57437a, "bpf: Implement bpf_link-based cgroup BPF program attachment"
        return UnsupportedError(feature(hook), "this kernel has no links of cgroups for it", since="5.7")
    if number == ENODEV:
        return failed(hook, target, ENOENT, "the cgroup is gone")
    if number == EPERM and (holder := exclusive(place.path, kind)):
        hint = "end what attached it, or have it let others in (BPF_F_ALLOW_MULTI)"
        return failed(hook, target, number, f"{holder} for itself", hint)
    hint = {
        EPERM: "CAP_NET_ADMIN and CAP_BPF (or CAP_SYS_ADMIN) are needed",
        E2BIG: "a cgroup takes 64 programs of one type, and a machine 10 LSM hooks of cgroups",
    }.get(number, "")
    return failed(hook, target, number, "", hint)


def exclusive(path: Path, kind: int) -> str:
    """Which programs let no other one in, and where: at the cgroup or the nearest one above it. "": none."""
    for cgroup in above(path):
        try:
            fd = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                ids, flags = attached(fd, kind)
            finally:
                os.close(fd)
        except OSError:  # gone, or the kernel does not tell
            return ""
        if ids:
            return "" if flags & F_MULTI else f"{named(ids)} holds cgroup {cgroup}"
    return ""


def above(path: Path) -> Iterator[Path]:
    """A cgroup and all that it is in, up to where the hierarchy is mounted."""
    path = path.resolve()
    for one in (path, *path.parents):
        if magic(one) != CGROUP2:
            return
        yield one


def failed(hook: Hook, target: str, number: int | None, reason: str, hint: str = "") -> AttachError:
    return AttachError(number or EINVAL, hook.program, hook.section, target, reason=reason, hint=hint)
