"""Is this BTF the running kernel's? A program of ours reads with it what is known already.

A thread gives itself a name that nobody else has and makes a system call; the program, which sees that, reads the
thread's ids, name and mount namespace from the kernel's structs. BTF of another kernel reads something else there.
"""

from __future__ import annotations

import os
import struct
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from igrun import data
from igrun.errors import GadgetError, KernelError
from igrun.host import GOARCH

TGID, PID, COMM, MNTNS = 1, 2, 4, 8
ANSWER = struct.Struct("<16sQIIII16s")  # struct answer in bpf/btf_probe.bpf.c
INITIAL_PIDS = "pid:[4026531836]"
WAIT_S = 5.0
PRCTL = "int prctl(int option, const char *name, unsigned long a, unsigned long b, unsigned long c);"
SET_NAME = 15  # PR_SET_NAME


class WrongBtfError(GadgetError):
    """What was read is not what is there."""


class UncheckedError(GadgetError):
    """Nothing could be read."""


class Answer(NamedTuple):
    """What the program saw. kernel_pid, kernel_tgid: as a helper of the kernel tells them, whatever the BTF says"""

    name: bytes
    kernel_tgid: int
    kernel_pid: int
    has: int
    tgid: int
    pid: int
    mntns: int
    comm: bytes

    @classmethod
    def read(cls, raw: bytes) -> Answer:
        name, pid_tgid, has, tgid, pid, mntns, comm = ANSWER.unpack(raw)
        return cls(name, pid_tgid >> 32, pid_tgid & 0xFFFFFFFF, has, tgid, pid, mntns, comm)


def check(path: str) -> list[str]:
    """What of a thread of ours was read rightly with the BTF in a file.

    WrongBtfError: something differs. UncheckedError: the BTF describes nothing of that, or the program cannot run.
    """
    return compare(*asked(path))


def elf() -> bytes | None:
    """The program, None if it was not packaged."""
    machine = os.uname().machine
    found = data.find(f"bpf/{GOARCH.get(machine, machine)}/btf_probe.bpf.o")
    return found.read_bytes() if found else None


def asked(path: str) -> tuple[Answer, int, int]:
    """What the program saw; the process's id as it knows it, 0 if the kernel's is another one; its mount namespace."""
    from igrun.libbpf import BpfObject

    program = elf()
    if program is None:
        raise UncheckedError("this installation lacks the program for that (install igrun as a package)")
    name = b"ig-" + os.urandom(6).hex().encode()  # 15 letters, the longest name
    with ExitStack() as stack:
        try:
            object_ = BpfObject.open(program, "btf_probe", path)
            stack.callback(object_.close)
            object_.load()
            answers = object_.maps["answers"].loaded()
            answers.update(bytes(4), name.ljust(ANSWER.size, b"\0"))
            stack.callback(object_.programs["btf_probe"].attach_raw_tracepoint("sys_enter").close)
        except KernelError as error:
            raise UncheckedError(f"the program for that does not load: {error}") from None
        call_as(name)
        raw = answers.lookup(bytes(4)) or bytes(ANSWER.size)
    answer = Answer.read(raw)
    if not answer.kernel_pid:
        raise UncheckedError("the program for that saw no system call")
    return answer, own_pid(), own_mount_namespace()


def call_as(name: bytes) -> None:
    """Make a system call in a thread of that name: its id is not the process's, and the process keeps its name."""
    from ctypes import CDLL
    from threading import Thread

    from igrun.clib import Library

    libc = Library(CDLL(None), PRCTL)

    def call() -> None:
        libc.prctl(SET_NAME, name, 0, 0, 0)
        os.getppid()

    thread = Thread(target=call, daemon=True)
    thread.start()
    thread.join(WAIT_S)


def own_pid() -> int:
    """This process's id where that is the kernel's; 0 in another namespace of ids, or where that cannot be known."""
    try:
        initial = str(Path("/proc/self/ns/pid").readlink()) == INITIAL_PIDS
    except OSError:
        return 0
    return os.getpid() if initial else 0


def own_mount_namespace() -> int:
    """Its number, 0 if it cannot be known."""
    try:
        return Path("/proc/self/ns/mnt").stat().st_ino
    except OSError:
        return 0


def compare(answer: Answer, pid: int, mntns: int) -> list[str]:
    """What is right. WrongBtfError: something is not; UncheckedError: nothing was read."""
    right = []
    if answer.has & TGID:
        wanted = pid or answer.kernel_tgid
        if answer.tgid != wanted or answer.tgid != answer.kernel_tgid:
            raise WrongBtfError(f"it is of another kernel: process id {wanted} reads as {answer.tgid}")
        right.append("process id")
    if answer.has & PID:
        if answer.pid != answer.kernel_pid:
            raise WrongBtfError(f"it is of another kernel: thread id {answer.kernel_pid} reads as {answer.pid}")
        right.append("thread id")
    if answer.has & COMM:
        if answer.comm != answer.name:
            wanted_name, name = (
                text.partition(b"\0")[0].decode(errors="replace") for text in (answer.name, answer.comm)
            )
            raise WrongBtfError(f"it is of another kernel: name {wanted_name!r} reads as {name!r}")
        right.append("name")
    if answer.has & MNTNS and mntns:
        if answer.mntns != mntns:
            raise WrongBtfError(f"it is of another kernel: mount namespace {mntns} reads as {answer.mntns}")
        right.append("mount namespace")
    if not right:
        raise UncheckedError("it describes nothing of a process")
    return right
