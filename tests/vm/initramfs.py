"""The first root file system of a guest, built in memory: busybox, the modules of the virtual devices, two scripts."""

import lzma
import shutil
import stat
import subprocess
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

APPLETS = ("cat", "cp", "insmod", "mkdir", "mount", "reboot", "sh", "switch_root")
# The host's root comes by virtiofs, becomes writable by overlay, and output leaves by virtio_console.
MODULES = ("virtio_pci", "virtiofs", "virtio_console", "overlay")

INIT = """#!/bin/sh
export PATH=/bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
for module in /modules/*; do [ -e "$module" ] && insmod "$module"; done
mkdir /lower /rw /new
fail() { echo "guest: $1"; reboot -f; }
mount -t virtiofs -o ro host /lower || fail "no root file system"
mount -t tmpfs -o mode=755,size=75% rw /rw
mkdir /rw/upper /rw/work
mount -t overlay -o lowerdir=/lower,upperdir=/rw/upper,workdir=/rw/work root /new || fail "no overlay"
# /tmp and /run are empty in a guest, but for what it needs to start at all (a virtual environment, say).
mkdir /keep
mount --bind "/new$(cat /guest/machine)" /keep
mount -t tmpfs -o mode=1777,size=50% tmp /new/tmp
mount -t tmpfs -o mode=755 run /new/run
for path in $(cat /guest/keep); do
    mkdir -p "/new$path" && mount --bind "/keep$path" "/new$path"
done
cp -R /guest /new/run/guest
cp /bin/busybox /new/run/guest/busybox
mount --move /dev /new/dev
mount --move /proc /new/proc
mount --move /sys /new/sys
exec switch_root /new /run/guest/busybox sh /run/guest/start
"""

START = """
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
b=/run/guest/busybox
$b mkdir -p /dev/pts /dev/shm
$b mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
$b mount -t tmpfs -o mode=1777 shm /dev/shm
$b mount -t tracefs tracefs /sys/kernel/tracing
$b mount -t securityfs securityfs /sys/kernel/security
$b mount -t bpf bpf /sys/fs/bpf
$b mount -t cgroup2 cgroup2 /sys/fs/cgroup
for controller in cpu io memory pids; do echo +$controller 2>/dev/null >/sys/fs/cgroup/cgroup.subtree_control; done
$b ip link set lo up
$b hostname guest
# The kernel loads what programs ask for (veth, clsact, ...) by this program; the machine may have no modprobe.
modules=$($b cat /run/guest/modules)
release=$($b uname -r)
$b mkdir -p "/lib/modules/$release" && $b mount --bind "$modules" "/lib/modules/$release"
printf '#!%s sh\\nexec %s modprobe "$@"\\n' $b $b >/run/guest/modprobe
$b chmod +x /run/guest/modprobe
echo /run/guest/modprobe >/proc/sys/kernel/modprobe
for port in /sys/class/virtio-ports/*; do
    case $($b cat $port/name) in
        output) exec 8>/dev/${port##*/} ;;
        control) exec 9<>/dev/${port##*/} ;;
    esac
done
echo '{"up": true}' >&9
(. /run/guest/command) </dev/null >&8 2>&1
echo "{\\"status\\": $?}" >&9
exec 8>&- 9>&-
$b reboot -f
"""


def build(
    modules: Path,
    files: Mapping[str, bytes],
    keep: Iterable[str],
    command: str,
    extra: Sequence[str] = (),
    *,
    root: Path = Path("/"),
    machine: str = "",
) -> bytes:
    """The archive. `modules`: lib/modules/<release>; `files`: go to /run/guest; `keep`: paths that an empty /tmp and
    /run would hide, or that are this machine's; `command`: shell text; `extra`: names of more modules to load;
    `root`: the guest's root file system, here; `machine`: where it holds this machine's."""
    busybox = shutil.which("busybox", path=f"{root}/bin:{root}/usr/bin:{root}/usr/local/bin")
    if busybox is None:
        raise FileNotFoundError("busybox is missing: apt-get install busybox-static")
    archive = Cpio()
    for folder in ("bin", "dev", "proc", "sys", "modules", "guest"):
        archive.folder(folder)
    archive.device("dev/console", 5, 1)
    archive.file("bin/busybox", Path(busybox).read_bytes(), executable=True)
    for applet in APPLETS:
        archive.link(f"bin/{applet}", "busybox")
    archive.file("init", INIT.encode(), executable=True)
    for number, path in enumerate(needed(modules, (*MODULES, *extra))):
        archive.file(f"modules/{number:03}", unpacked(path))
    texts = {"start": START, "command": command, "keep": "\n".join(keep), "modules": str(modules), "machine": machine}
    for name, data in {**files, **{name: text.encode() for name, text in texts.items()}}.items():
        archive.file(f"guest/{name}", data)
    return archive.done()


def needed(modules: Path, names: Iterable[str]) -> list[Path]:
    """The files of these modules and of all they depend on, in the order to load them. What has none is built in."""
    depends: dict[str, tuple[Path, list[str]]] = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        path, _, rest = line.partition(":")
        depends[_name(path)] = (modules / path, [_name(other) for other in rest.split()])
    order: dict[str, Path] = {}

    def visit(name: str) -> None:
        if name in depends and name not in order:
            path, before = depends[name]
            for other in before:
                visit(other)
            order[name] = path

    for name in names:
        visit(name)
    return list(order.values())


def _name(path: str) -> str:
    return path.rsplit("/", 1)[-1].split(".ko")[0].replace("-", "_")


def unpacked(module: Path) -> bytes:
    data = module.read_bytes()
    match module.suffix:
        case ".xz":
            return lzma.decompress(data)
        case ".gz":
            return zlib.decompress(data, wbits=31)
        case ".zst":
            return subprocess.run(["zstd", "-dc"], input=data, capture_output=True, check=True).stdout
    return data


class Cpio:
    """An archive in the "newc" form that the kernel unpacks (Documentation/driver-api/early-userspace)."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._inode = 0

    def folder(self, name: str) -> None:
        self._add(name, stat.S_IFDIR | 0o755)

    def file(self, name: str, data: bytes, *, executable: bool = False) -> None:
        self._add(name, stat.S_IFREG | (0o755 if executable else 0o644), data)

    def link(self, name: str, target: str) -> None:
        self._add(name, stat.S_IFLNK | 0o777, target.encode())

    def device(self, name: str, major: int, minor: int) -> None:
        self._add(name, stat.S_IFCHR | 0o600, device=(major, minor))

    def done(self) -> bytes:
        self._add("TRAILER!!!", 0)
        return b"".join(self._parts)

    def _add(self, name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        self._inode += 1
        encoded = name.encode() + b"\0"
        numbers = (self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(encoded), 0)
        head = b"070701" + b"".join(b"%08X" % number for number in numbers) + encoded
        for part in (head, data):
            self._parts += [part, b"\0" * (-len(part) % 4)]
