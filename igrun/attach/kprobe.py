"""kprobes: programs at functions and system calls of the kernel, one by one or many at once."""

from __future__ import annotations

import os
from collections.abc import Iterable
from errno import EINVAL, ENOENT
from pathlib import Path
from typing import TYPE_CHECKING

from igrun.attach.common import Links, cookie_of, feature, handle_of, linked, nearest, refused
from igrun.attach.functions import functions, has_function, is_pattern, matching, words
from igrun.bpfcall import kprobe_multi
from igrun.choosing import kind_of
from igrun.errors import AttachError, KernelError, UnsupportedError

if TYPE_CHECKING:
    from igrun.host import Target
    from igrun.libbpf import BpfLink
    from igrun.load import Closable
    from igrun.program import Hook

KPROBE_PMU = Path("/sys/bus/event_source/devices/kprobe")
SYSCALL_PREFIX = {"x86_64": "__x64_", "aarch64": "__arm64_"}
# So many functions are probed one by one where the kernel has no kprobe.multi; each takes a moment and some memory.
MOST_ONE_BY_ONE = 100
AT_RETURN = ("kretprobe", "kretsyscall", "kretprobe.multi")


def places(hook: Hook, target: Target) -> tuple[str, ...]:
    """One."""
    return (hook.attach_to,)


def attach(hook: Hook, place: str) -> Closable:
    """Attach the program. UnsupportedError: the kernel has no such thing; AttachError; MetadataError: an option."""
    kind = kind_of(hook)
    at_return = kind in AT_RETURN
    if kind in ("ksyscall", "kretsyscall"):
        return at_syscall(hook, place, at_return=at_return)
    if kind in ("kprobe.multi", "kretprobe.multi", "kprobe.session"):
        return at_many(hook, place, at_return=at_return)
    function, plus, text = place.partition("+")
    try:
        offset = int(text, 0) if plus else 0
    except ValueError:
        offset = -1
    if offset < 0:
        raise AttachError(EINVAL, hook.program, hook.section, place, reason=f"{text!r} is no offset")
    if offset and at_return:
        raise AttachError(EINVAL, hook.program, hook.section, place, reason="a return has no offset")
    names = [function]
    if function.startswith("sys_"):  # what the architecture calls it
        names.append(SYSCALL_PREFIX.get(os.uname().machine, "__") + function)
    return first_of(hook, names, offset, at_return=at_return)


# ------------------------------------------------------------------------------------------------ one function


def first_of(hook: Hook, names: Iterable[str], offset: int = 0, *, at_return: bool) -> Closable:
    """At the first of these functions that there is. AttachError: there is none."""
    need_kprobes(hook)
    failure: KernelError | None = None
    for name in names:
        try:
            return probe(hook, name, offset, at_return=at_return)
        except KernelError as error:
            failure = error
            if error.errno not in (ENOENT, EINVAL) or cookie_of(hook):
                break
    assert failure is not None
    if failure.errno not in (ENOENT, EINVAL):
        raise refused(failure, hook) from None
    place, like = hook.attach_to, hook.attach_to.partition("+")[0]
    near = functions(like)
    if like in near and cookie_of(hook):
        raise refused(failure, hook) from None
    if like in near:
        reason, hint = "the function is there, but may not be probed at this place", "see kprobes/blacklist in debugfs"
    else:
        reason, hint = "this kernel has no such function", nearest(like, near)
        hint = hint or "it may be inlined, or of another kernel version"
    raise AttachError(failure.errno or EINVAL, hook.program, hook.section, place, reason=reason, hint=hint) from None


def probe(hook: Hook, function: str, offset: int = 0, *, at_return: bool) -> BpfLink:
    """At one function. KernelError."""
    return handle_of(hook).attach_kprobe(function, offset, at_return=at_return, cookie=cookie_of(hook))


def need_kprobes(hook: Hook) -> None:
    """UnsupportedError: this kernel has none."""
    if not KPROBE_PMU.exists():
        # Before Linux 4.17 (e12f03d7031a, "perf/core: Implement the 'perf_kprobe' PMU") there were other ways to
        # attach one; everything that can run igrun is newer.
        raise UnsupportedError(feature(hook), "this kernel was built without kprobes (CONFIG_KPROBES)")


# ------------------------------------------------------------------------------------------------ system calls


def at_syscall(hook: Hook, name: str, *, at_return: bool) -> Closable:
    """At the function of a system call, as BPF_KSYSCALL reads its arguments.

    With syscall wrappers (CONFIG_ARCH_HAS_SYSCALL_WRAPPER) the function has one argument, the registers; libbpf tells
    the program at load which it is, by the same sign as here.
    """
    prefix = SYSCALL_PREFIX.get(os.uname().machine, "__")
    try:
        return first_of(hook, [f"{prefix}sys_{name}"], at_return=at_return)
    except AttachError as error:
        wrapped = has_function(f"{prefix}sys_bpf")
        if error.errno not in (ENOENT, EINVAL) or (cookie_of(hook) and has_function(f"{prefix}sys_{name}")):
            raise
    if not wrapped:
        return first_of(hook, [f"__se_sys_{name}", f"sys_{name}"], at_return=at_return)
    start = f"{prefix}sys_"
    calls = [one.removeprefix(start) for one in functions(start) if one.startswith(start)]
    hint = nearest(name, calls)
    raise AttachError(ENOENT, hook.program, hook.section, name, reason="this kernel has no such system call", hint=hint)


# ------------------------------------------------------------------------------------------------ many functions


def at_many(hook: Hook, pattern: str, *, at_return: bool) -> Closable:
    """At every function that a pattern names, at once where the kernel can do that."""
    try:
        found, _ = matching(pattern)
    except ValueError as error:
        raise AttachError(EINVAL, hook.program, hook.section, pattern, reason=str(error)) from None
    missing = [name for name in words(pattern) if name not in found]
    if missing or not found:
        name = missing[0] if missing else pattern
        reason = "this kernel has no such function" if missing else "no function of this kernel fits"
        hint = "" if is_pattern(name) else nearest(name, functions(name))
        raise AttachError(ENOENT, hook.program, hook.section, name, reason=reason, hint=hint)
    kind = handle_of(hook).attach_type
    if kind:  # as `load` found out
        return at_once(hook, found, kind, at_return=at_return)
    need_kprobes(hook)
    if len(found) > MOST_ONE_BY_ONE:
        few = f"more than the {MOST_ONE_BY_ONE} that can be probed one by one"
        lacks = f"this kernel has no kprobe.multi (CONFIG_FPROBE), and {pattern!r} names {len(found)} functions, {few}"
        raise UnsupportedError(feature(hook), lacks, since="5.18")
    return one_by_one(hook, found, exact=bool(words(pattern)), at_return=at_return)


def at_once(hook: Hook, found: dict[str, list[int]], kind: int, *, at_return: bool) -> BpfLink:
    """One link at all of the functions."""
    addresses = sorted({address for places in found.values() for address in places})
    known = all(found.values())
    number = len(addresses) if known else len(found)
    cookie = cookie_of(hook)
    extra = kprobe_multi(
        addresses=addresses if known else (),
        symbols=() if known else sorted(found),
        cookies=[cookie] * number if cookie else (),
        flags=int(at_return),
    )
    try:
        return linked(hook, 0, kind, extra)
    except KernelError as error:
        raise refused(error, hook, since="5.18") from None


def one_by_one(hook: Hook, names: Iterable[str], *, exact: bool, at_return: bool) -> Closable:
    """A kprobe at each function. exact: none may be left out, as those may that cannot be probed."""
    links = Links()
    done, failure = 0, None
    try:
        for name in names:
            try:
                links.add(probe(hook, name, at_return=at_return))
                done += 1
            except KernelError as error:
                if exact or error.errno not in (ENOENT, EINVAL):
                    raise
                failure = error
        if failure and not done:
            raise failure
    except KernelError as error:
        links.close()
        raise refused(error, hook) from None
    except BaseException:
        links.close()
        raise
    return links
