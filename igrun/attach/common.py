"""What families of program types share: the loaded program, links on perf events, and words for refusals."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from errno import E2BIG, EACCES, EINVAL, ENODEV, EOPNOTSUPP, EPERM
from typing import TYPE_CHECKING

from igrun import mounts
from igrun.bpfcall import NOTHING, Extra, link_create, program_name, program_of_id
from igrun.errors import AttachError, KernelError, MetadataError, UnsupportedError
from igrun.libbpf import BpfLink

if TYPE_CHECKING:
    from igrun.libbpf import BpfProgram
    from igrun.load import Closable
    from igrun.program import Hook

COOKIE = "cookie"


class Links:
    """Several links that are one: close() closes all of them, the last first."""

    def __init__(self, links: Iterable[Closable] = ()) -> None:
        self._stack = ExitStack()
        for link in links:
            self.add(link)

    def add(self, link: Closable) -> None:
        self._stack.callback(link.close)

    def close(self) -> None:
        """Detach. Again: nothing."""
        self._stack.close()


def handle_of(hook: Hook) -> BpfProgram:
    """The loaded program."""
    if hook.handle is None:
        raise ValueError(f"program {hook.program!r} is not loaded")
    return hook.handle


def linked(hook: Hook, target_fd: int, attach_type: int, extra: Extra = NOTHING, *, flags: int = 0) -> BpfLink:
    """A link of the program to what the kernel takes it for. KernelError."""
    what = f"attach {hook.program!r}"
    return BpfLink.of_fd(link_create(handle_of(hook).fd, target_fd, attach_type, extra, flags=flags, what=what))


def on_perf_event(hook: Hook, open_event: Callable[[], int]) -> BpfLink:
    """Attach to a perf event, which the link then owns. AttachError; UnsupportedError: no cookies."""
    cookie = cookie_of(hook)
    try:
        event = open_event()
        try:
            return handle_of(hook).attach_perf_event(event, cookie)
        except KernelError:
            os.close(event)
            raise
    except AttachError:
        raise
    except KernelError as error:
        raise refused(error, hook) from None


def cookie_of(hook: Hook) -> int:
    """What gadget.yaml says under `programs.<name>.cookie`, which the program gets by bpf_get_attach_cookie(); 0: none.

    MetadataError
    """
    return number_of(hook, COOKIE)


def number_of(hook: Hook, key: str, default: int = 0) -> int:
    """The number that gadget.yaml says under `programs.<name>.<key>`. MetadataError: it is none."""
    text = str(hook.options.get(key, ""))
    try:
        found = int(text, 0) if text else default
    except ValueError:
        found = -1
    if not 0 <= found < 1 << 64:
        raise MetadataError(f"programs.{hook.program}.{key}", f"{text!r} is no number of 0 to 2^64-1")
    return found


def feature(hook: Hook) -> str:
    """The program, for an UnsupportedError."""
    return f"program {hook.program!r} ({hook.section})"


def named(ids: Iterable[int]) -> str:
    """Loaded programs in words, for who wants to find whose they are; those that are gone are left out."""
    found = []
    for number in ids:
        with suppress(KernelError):
            fd = program_of_id(number)
            try:
                found.append(f"program {program_name(fd)!r} ({number})")
            finally:
                os.close(fd)
    return ", ".join(found)


def refuse_without_bpf_lsm(hook: Hook) -> None:
    """UnsupportedError: this kernel would never run an LSM program."""
    active = active_lsms()
    if active and "bpf" not in active:
        raise UnsupportedError(
            feature(hook),
            "`bpf` is not among the active security modules, so it would never run",
            hint=f"boot with lsm={','.join([*active, 'bpf'])}",
        )


def active_lsms() -> list[str]:
    """The kernel's security modules in their order; empty if that cannot be found out."""
    try:
        with mounts.filesystem("securityfs") as directory:
            return mounts.read(directory, "lsm").strip().split(",")
    except (OSError, UnsupportedError):
        return []


def nearest(name: str, names: Iterable[str]) -> str:
    """A hint that names what is like it, "" if nothing is."""
    from difflib import get_close_matches

    near = get_close_matches(name, list(names), 3)
    return f"did you mean {', '.join(near)}?" if near else ""


def refused(error: KernelError, hook: Hook, *, since: str = "5.15") -> AttachError | UnsupportedError:
    """The kernel's refusal, with the program and what can be done. since: Linux that has cookies for this type."""
    number = error.errno or EINVAL
    if number in (EOPNOTSUPP, EINVAL, E2BIG) and cookie_of(hook):
        return UnsupportedError(feature(hook), "this kernel has no cookies for programs of this type", since=since)
    hint = {
        EPERM: "CAP_PERFMON (or CAP_SYS_ADMIN) is needed to attach, and kernel.perf_event_paranoid may forbid it",
        EACCES: "CAP_PERFMON (or CAP_SYS_ADMIN) is needed to attach, and kernel.perf_event_paranoid may forbid it",
        ENODEV: "this machine or kernel has no such event",
    }.get(number, "")
    return AttachError(number, hook.program, hook.section, hook.attach_to, hint=hint)
