"""The machine: its facts, found once and passed on; and where on it a gadget looks."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

from igrun.dataclass import dataclass
from igrun.errors import GadgetError

# linux/capability.h, by number
CAPABILITIES = """
CAP_CHOWN CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_FOWNER CAP_FSETID CAP_KILL CAP_SETGID CAP_SETUID CAP_SETPCAP
CAP_LINUX_IMMUTABLE CAP_NET_BIND_SERVICE CAP_NET_BROADCAST CAP_NET_ADMIN CAP_NET_RAW CAP_IPC_LOCK CAP_IPC_OWNER
CAP_SYS_MODULE CAP_SYS_RAWIO CAP_SYS_CHROOT CAP_SYS_PTRACE CAP_SYS_PACCT CAP_SYS_ADMIN CAP_SYS_BOOT CAP_SYS_NICE
CAP_SYS_RESOURCE CAP_SYS_TIME CAP_SYS_TTY_CONFIG CAP_MKNOD CAP_LEASE CAP_AUDIT_WRITE CAP_AUDIT_CONTROL CAP_SETFCAP
CAP_MAC_OVERRIDE CAP_MAC_ADMIN CAP_SYSLOG CAP_WAKE_ALARM CAP_BLOCK_SUSPEND CAP_AUDIT_READ CAP_PERFMON CAP_BPF
CAP_CHECKPOINT_RESTORE
"""
GOARCH = {"x86_64": "amd64", "aarch64": "arm64"}
TRACEFS = ("sys/kernel/tracing", "sys/kernel/debug/tracing")


@dataclass(frozen=True, slots=True)
class Host:
    """Facts about this machine.

    root:               its root directory as seen from here: HOST_ROOT in a container, else /
    arch:               as images say it (amd64, arm64); machine: as `uname -m` does (x86_64, aarch64)
    os_release:         the keys of /etc/os-release, empty if there is none
    wall_minus_boot_ns: CLOCK_REALTIME minus CLOCK_BOOTTIME
    capabilities:       the effective ones of this process (CAP_BPF, ...)
    lockdown:           none, integrity or confidentiality; "" if the kernel does not say
    tracefs:            where it is mounted, None if nowhere
    """

    root: Path
    machine: str
    release: str
    os_release: Mapping[str, str]
    wall_minus_boot_ns: int
    capabilities: frozenset[str]
    lockdown: str
    page_size: int
    possible_cpus: tuple[int, ...]
    online_cpus: tuple[int, ...]
    tracefs: Path | None

    @classmethod
    def current(cls, env: Mapping[str, str] = os.environ) -> Host:
        """The machine this runs on. GadgetError: there is no /proc below HOST_ROOT."""
        root = Path(env.get("HOST_ROOT") or "/")
        cpus = root / "sys/devices/system/cpu"
        uname = os.uname()
        everyone = tuple(range(os.cpu_count() or 1))
        return cls(
            root=root,
            machine=uname.machine,
            release=uname.release,
            os_release=os_release(text_of(root / "etc/os-release") or text_of(root / "usr/lib/os-release")),
            wall_minus_boot_ns=wall_minus_boot_ns(),
            capabilities=capabilities(root / "proc/self/status"),
            lockdown=text_of(root / "sys/kernel/security/lockdown").partition("[")[2].partition("]")[0],
            page_size=os.sysconf("SC_PAGE_SIZE"),
            possible_cpus=numbers(text_of(cpus / "possible")) or everyone,
            online_cpus=numbers(text_of(cpus / "online")) or everyone,
            tracefs=mounted_tracefs(root),
        )

    @property
    def proc(self) -> Path:
        """Its /proc."""
        return self.root / "proc"

    @property
    def arch(self) -> str:
        """The architecture's name in images."""
        return GOARCH.get(self.machine, self.machine)

    def missing_capabilities(self, *needed: str) -> tuple[str, ...]:
        """Those of `needed` that this process does not have."""
        return tuple(name for name in needed if name not in self.capabilities)

    def namespace(self, kind: str) -> Path:
        """The host's own namespace (`net`, `pid`, `mnt`, ...): that of process 1, else of this one.

        Some machines refuse to show process 1's, to root too.
        """
        first = self.proc / "1/ns" / kind
        try:
            first.stat()
        except OSError:
            return self.proc / "self/ns" / kind
        return first


def text_of(path: Path) -> str:
    """The file's text, "" if it cannot be read."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def capabilities(status: Path) -> frozenset[str]:
    """Names of the effective capabilities in a /proc/PID/status; one too new for us has its number: CAP_41."""
    try:
        text = status.read_text()
    except OSError as error:
        hint = "HOST_ROOT must name the host's root directory, with its /proc"
        raise GadgetError(f"{status}: {error.strerror}", hint=hint) from None
    line = next((line for line in text.splitlines() if line.startswith("CapEff:")), "CapEff: 0")
    bits = int(line.split()[1], 16)
    known = dict(enumerate(CAPABILITIES.split()))
    return frozenset(known.get(bit, f"CAP_{bit}") for bit in range(bits.bit_length()) if bits >> bit & 1)


def os_release(text: str) -> dict[str, str]:
    """The keys and values of an os-release file, quotes removed."""
    found = {}
    for line in text.splitlines():
        key, equals, value = line.strip().partition("=")
        if equals and not key.startswith("#"):
            quote = value[:1]
            quoted = len(value) > 1 and quote in "\"'" and value.endswith(quote)
            found[key] = value[1:-1] if quoted else value
    return found


def numbers(text: str) -> tuple[int, ...]:
    """The numbers of a kernel list: "0-2,5" -> (0, 1, 2, 5)."""
    found: list[int] = []
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first:
            found += range(int(first), int(last or first) + 1)
    return tuple(found)


def wall_minus_boot_ns() -> int:
    """Wall clock minus boot clock, from the closest of a few readings."""
    best = None
    for _ in range(3):
        before = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        wall = time.clock_gettime_ns(time.CLOCK_REALTIME)
        after = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        reading = (after - before, wall - (before + after) // 2)
        best = min(best or reading, reading)
    assert best
    return best[1]


def mounted_tracefs(root: Path) -> Path | None:
    """Where tracefs is mounted below `root`."""
    for place in TRACEFS:
        path = root / place
        # Under debugfs it is mounted when somebody looks into it.
        if (path / "trace_pipe").exists() and f" {path} tracefs " in text_of(Path("/proc/self/mounts")):
            return path
    return None


# ---------------------------------------------------------------------------------------------- where a gadget looks


@dataclass(frozen=True, slots=True)
class Target:
    """A place that programs are attached to: the host or a container.

    name:      for messages
    root:      its root directory as seen from here
    netns:     a path of its network namespace, None: that of this process
    cgroup:    its directory in the cgroup v2 hierarchy, None: the root of it
    interface: the one to attach to, "" : all that are its own
    """

    name: str
    root: Path = Path("/")
    netns: Path | None = None
    cgroup: Path | None = None
    interface: str = ""


HOST_TARGET = Target("host")


class Scope(Protocol):
    """Where a gadget looks in this run."""

    def targets(self) -> Iterable[Target]:
        """Every place to attach to now."""
        ...

    def selects(self, mntns_id: int) -> bool:
        """True if what happens in that mount namespace is to be shown."""
        ...
