"""Run a command on another kernel: a guest under QEMU whose root is this machine's, read-only under a writable layer.

A guest of another machine (arm64) has a root of its own, in which `keep` names what it sees of this one.

    with Guest(kernel, ["/usr/bin/uname", "-r"]) as guest:
        for event in guest.events():
            ...

Nothing is left behind. There are no files: the initramfs is in memory, the sockets have no name in a file system. QEMU
and virtiofsd are killed with this process whatever ends it.
"""

import collections
import ctypes
import functools
import json
import os
import resource
import selectors
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.vm import initramfs
from tests.vm.kernels import MACHINES_PLACE, Kernel
from tests.vm.machines import MACHINES, Machine

VIRTIOFSD = ("/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd")
CONSOLE_LINES = 60  # of the console's tail
# One CPU: with several, TCG can fail at the moment a tracepoint is switched on.
QEMU = "-accel tcg,thread=single -smp 1 -nodefaults -no-user-config -display none -no-reboot"
# 5.10 does not list bpf among its security modules.
COMMAND_LINE = "panic=-1 oops=panic quiet mitigations=off lsm=lockdown,capability,yama,bpf"

PR_SET_PDEATHSIG = 1
CLONE_NEWNS = 0x20000
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000
SYS_MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE, MOUNT_ATTR_RDONLY = 442, -100, 0x8000, 1


class GuestError(Exception):
    """The guest did not come to its end. `reason`: one line; `console`: the last lines of its console."""

    def __init__(self, reason: str, console: str = "") -> None:
        super().__init__(f"{reason}\n--- console ---\n{console}" if console else reason)
        self.reason, self.console = reason, console


@dataclass(frozen=True)
class Output:
    """What the command wrote to its standard output and error."""

    data: bytes


@dataclass(frozen=True)
class Message:
    """One JSON object, a line of what the command wrote to the control port: descriptor $IGRUN_CONTROL_FD."""

    body: Mapping[str, Any]


class Guest:
    """A running guest. `status` is the command's exit status once `events` is through, `boot_s` what booting took."""

    def __init__(
        self,
        kernel: Kernel,
        command: Sequence[str],
        *,
        cwd: Path = Path("/"),
        env: Mapping[str, str] | None = None,
        files: Mapping[str, bytes] | None = None,
        keep: Iterable[Path] = (),
        memory_mb: int = 2048,
        modules: Sequence[str] = (),
        append: str = "",
    ) -> None:
        """Boot. `files` appear in /run/guest; `keep`: paths that must be seen in the guest even inside /tmp or /run,
        and all that a guest with a root of its own sees of this machine; `modules`: more kernel modules to load;
        `append`: more of the kernel's command line."""
        self.kernel = kernel
        self.status: int | None = None
        self.boot_s = 0.0
        self._console: collections.deque[str] = collections.deque([""], CONSOLE_LINES)
        self._partial = b""
        self._started = time.monotonic()
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._selector = selectors.DefaultSelector()
        variables = {"IGRUN_IN_GUEST": "1", "IGRUN_CONTROL_FD": "9", **(env or {})}
        exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())
        # By its path, or busybox's shell would take its own env, and its own sh, cat, ... for the command.
        text = f"{exports}cd {shlex.quote(str(cwd))} && exec /usr/bin/env {shlex.join(command)}\n"
        folder, given = kernel.modules / kernel.release, files or {}
        if kernel.root is None:
            archive = initramfs.build(folder, given, _hidden(keep), text, modules)
        else:
            shown = [str(path.absolute()) for path in (folder, *keep)]
            place = f"/{MACHINES_PLACE}"
            archive = initramfs.build(folder, given, shown, text, modules, root=kernel.root, machine=place)
        try:
            self._boot(archive, memory_mb, append)
        except BaseException:
            self.close()
            raise

    def _boot(self, archive: bytes, memory_mb: int, append: str) -> None:
        self._children["virtiofsd"], share = _serve_root(self.kernel.root or Path("/"))
        machine = self.kernel.machine
        initrd = os.memfd_create("initramfs")
        with open(initrd, "wb", closefd=False) as file:
            file.write(archive)
        command = [*shlex.split(machine.emulator), *shlex.split(QEMU), "-m", str(memory_mb)]
        command += ["-kernel", str(self.kernel.vmlinux), "-initrd", f"/proc/self/fd/{initrd}"]
        command += ["-append", f"console={machine.console} {COMMAND_LINE} {machine.append} {append}"]
        command += ["-object", f"memory-backend-memfd,id=memory,size={memory_mb}M,share=on"]
        command += ["-numa", "node,memdev=memory"]
        command += ["-chardev", f"socket,id=share,fd={share.fileno()}"]
        command += ["-device", "vhost-user-fs-pci,chardev=share,tag=host,queue-size=1024"]
        command += ["-device", "virtio-serial-pci"]
        theirs = []
        for name in ("console", "output", "control"):  # the last one is kept for `send`
            here, there = socket.socketpair()
            theirs.append(there)
            self._selector.register(here, selectors.EVENT_READ, (name, here))
            self._control = here
            command += ["-chardev", f"socket,id={name},fd={there.fileno()}"]
            if name == "console":
                command += ["-serial", "chardev:console"]
            else:
                command += ["-device", f"virtserialport,chardev={name},name={name}"]
        fds = [initrd, share.fileno(), *(there.fileno() for there in theirs)]
        try:
            self._children["qemu"] = _start(command, fds)
        finally:
            os.close(initrd)
            for their in (share, *theirs):
                their.close()

    def __enter__(self) -> "Guest":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the guest, if it runs, and wait until it is gone."""
        for child in self._children.values():
            child.kill()
        for child in self._children.values():
            child.wait()
            if child.stderr is not None:
                child.stderr.close()
        for key in list((self._selector.get_map() or {}).values()):
            self._hang_up(*key.data)
        self._selector.close()

    def _hang_up(self, _name: str, end: socket.socket) -> None:
        self._selector.unregister(end)
        end.close()

    def send(self, body: Mapping[str, Any]) -> None:
        """Write a JSON object to the control port, one line."""
        self._control.sendall(json.dumps(body).encode() + b"\n")

    def console(self) -> str:
        """The last lines that the guest's kernel printed."""
        return "\n".join(line for line in self._console if line.strip())

    def events(self, idle_s: float = 300.0, total_s: float = 3600.0) -> Iterator[Output | Message]:
        """What the command writes, as it comes, until the guest is off.

        Raises GuestError when no message came for `idle_s`, after `total_s`, or when the guest ends before the command.
        """
        total = self._started + total_s
        idle = time.monotonic() + idle_s
        while self._selector.get_map():
            now = time.monotonic()
            if now >= min(total, idle):
                waited, what = (total_s, "it ran") if now >= total else (idle_s, "nothing was heard from it")
                raise GuestError(f"kernel {self.kernel.release}: {what} for {waited:.0f} s", self.console())
            for key, _ in self._selector.select(min(total, idle) - now):
                name, end = key.data
                data = _receive(end)
                if not data:
                    self._hang_up(name, end)
                elif name == "output":
                    yield Output(data)
                elif name == "control":
                    for message in self._messages(data):
                        idle = time.monotonic() + idle_s
                        yield message
                else:
                    self._read_console(data)
        if self.status is None:
            raise GuestError(self._why_it_ended(), self.console())

    def _messages(self, data: bytes) -> Iterator[Message]:
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            body = json.loads(line)
            if "up" in body:
                self.boot_s = time.monotonic() - self._started
            elif "status" in body:
                self.status = body["status"]
            else:
                yield Message(body)

    def _read_console(self, data: bytes) -> None:
        first, *rest = data.decode(errors="replace").replace("\r", "").split("\n")
        self._console[-1] += first
        self._console.extend(rest)

    def _why_it_ended(self) -> str:
        release = self.kernel.release
        if "Kernel panic" in self.console():
            return f"kernel {release}: it panicked"
        for program, child in self._children.items():
            if child.wait() not in (0, -signal.SIGKILL) and child.stderr is not None:
                said = child.stderr.read().decode(errors="replace").strip().splitlines()
                return f"kernel {release}: {program} ended with {child.returncode}: {' | '.join(said[-3:])}"
        return f"kernel {release}: the guest ended before the command"


def python_paths() -> list[Path]:
    """What this process's Python needs to see of the file system, wherever it was installed."""
    import sys

    return [Path(path) for path in (sys.executable, sys.prefix, sys.base_prefix, *sys.path) if path]


def missing_programs(machine: Machine = MACHINES["amd64"]) -> list[str]:
    """The packages to install before a guest can boot."""
    packages = {machine.emulator.split()[0]: machine.package, "busybox": "busybox-static", "lz4": "lz4", "zstd": "zstd"}
    lacking = [package for program, package in packages.items() if shutil.which(program) is None]
    if not any(Path(path).exists() for path in VIRTIOFSD):
        lacking.append("virtiofsd (where there is none: qemu-system-common)")
    return lacking


def _hidden(paths: Iterable[Path]) -> list[str]:
    """Those of the paths that a fresh /tmp and /run would hide, shortened to their first directory below it."""
    found = set()
    for path in paths:
        for form in (path.absolute(), path.resolve()):
            if form.parts[1:2] in (("tmp",), ("run",)) and len(form.parts) > 2:
                found.add("/".join(("", *form.parts[1:3])))
    return sorted(found)


def _receive(end: socket.socket) -> bytes:
    try:
        return end.recv(1 << 16)
    except ConnectionResetError:
        return b""


def _serve_root(root: Path) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start virtiofsd on the guest's root; the process and the connection to it."""
    program = next(path for path in VIRTIOFSD if Path(path).exists())
    usage = subprocess.run([program, "--help"], capture_output=True, text=True).stdout
    with socket.socket(socket.AF_UNIX) as listening:
        # An abstract address: no file to clean up.
        listening.bind(b"\0igrun-guest-%d-%d" % (os.getpid(), time.monotonic_ns()))
        listening.listen(1)
        command = [program, f"--fd={listening.fileno()}"]
        if "--shared-dir" in usage:  # the one in Rust
            command += [f"--shared-dir={root}", "--sandbox=chroot", "--cache=always", "--log-level=error"]
            # An overlay refuses layers with announced mounts.
            command += [flag for flag in ("--readonly", "--no-announce-submounts") if flag in usage]
        else:
            command += ["-f", "-o", f"source={root},sandbox=chroot,cache=always,log_level=err"]
        command.append("--rlimit-nofile=0")
        server = _start(command, [listening.fileno()], functools.partial(_read_only, root))
        share = socket.socket(socket.AF_UNIX)
        share.connect(listening.getsockname())
    return server, share


def _start(
    command: Sequence[str], fds: Sequence[int], prepare: Callable[[], None] | None = None
) -> subprocess.Popen[bytes]:
    """Start a program that does not outlive this process. `prepare` runs in the child before the program."""
    libc = ctypes.CDLL(None, use_errno=True)
    parent = os.getpid()

    def in_child() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        # Ctrl-C reaches this process, which stops the children in its own order.
        os.setpgid(0, 0)
        if prepare is not None:
            prepare()

    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        pass_fds=fds,
        preexec_fn=in_child,
    )


def _read_only(root: Path) -> None:
    """Make every mount read-only for this process alone, so that no guest can write to the machine's disks.

    A root of another machine gets this one's, to be seen in it."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS) != 0 or libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None) != 0:
        raise OSError(ctypes.get_errno(), "cannot make a mount namespace")
    inside = os.fsencode(root / MACHINES_PLACE)
    if root != Path("/") and libc.mount(b"/", inside, None, MS_BIND | MS_REC, None) != 0:
        raise OSError(ctypes.get_errno(), "cannot show this machine's files in the guest's root")
    attributes = struct.pack("QQQQ", MOUNT_ATTR_RDONLY, 0, 0, 0)
    # Before Linux 5.12 (2a1867219c7b, "fs: add mount_setattr()") the guest's read-only mount must do.
    libc.syscall(SYS_MOUNT_SETATTR, AT_FDCWD, b"/", AT_RECURSIVE, attributes, len(attributes))
    # virtiofsd holds a descriptor for every file that the guest knows.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main(arguments: Sequence[str]) -> int:
    """Run a command in a guest and show its output: `python -m tests.vm.guest [--console] SERIES COMMAND...`."""
    import sys

    from tests.vm import kernels

    show_console, arguments = arguments[:1] == ["--console"], [a for a in arguments if a != "--console"]
    kernel = kernels.fetch(arguments[0])
    started = time.monotonic()
    keep = [Path.cwd(), *(() if kernel.root else python_paths())]
    with Guest(kernel, arguments[1:], env={"PATH": os.environ["PATH"]}, cwd=Path.cwd(), keep=keep) as guest:
        try:
            for event in guest.events():
                if isinstance(event, Output):
                    sys.stdout.buffer.write(event.data)
                    sys.stdout.buffer.flush()
        finally:
            if show_console:
                print(guest.console(), file=sys.stderr)
    print(
        f"{kernel.release}: up in {guest.boot_s:.1f} s, off after {time.monotonic() - started:.1f} s", file=sys.stderr
    )
    return guest.status or 0


if __name__ == "__main__":
    import sys

    sys.exit(main(sys.argv[1:]))
