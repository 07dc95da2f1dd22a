"""Whether what a program is attached to is there: the running kernel and this host's files are asked."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from ctypes import addressof, create_string_buffer
from errno import EACCES, EPERM
from typing import TYPE_CHECKING, NamedTuple

from igrun.attach import kprobe as at_kprobe
from igrun.attach import module_for
from igrun.attach import perf as at_perf
from igrun.attach import sockmap as at_sockmap
from igrun.attach import tc as at_tc
from igrun.attach import xdp as at_xdp
from igrun.attach.common import nearest
from igrun.attach.functions import functions, has_function, is_pattern, matching, words
from igrun.attach.namespaces import inside
from igrun.checking.table import FAILS, MISSING, UNKNOWN, WORKS, Answer
from igrun.checking.types import not_asked, word_of
from igrun.clib import perf_event_open
from igrun.errors import AttachError, GadgetError, KernelError, MetadataError, UnsupportedError
from igrun.sections import program_type

if TYPE_CHECKING:
    from igrun.checking.kernel import Kernel
    from igrun.host import Target
    from igrun.objects import MapSpec
    from igrun.program import Hook

DISABLED = 1  # a bit of the flags of struct perf_event_attr
CLOSED = (EACCES, EPERM)
INTERFACES = "it is attached to the interfaces that there are then, or to that of --iface"


class Where(NamedTuple):
    """Where programs are attached in a run. maps: those of the object"""

    target: Target
    maps: Mapping[str, MapSpec]


def target(hook: Hook, kernel: Kernel, where: Where) -> Answer:
    """Whether the target of a program is there, where it is not fixed at load."""
    row = program_type(hook.section)
    if row is None:
        return Answer(UNKNOWN, "nobody knows what it is attached to")
    word = word_of(hook)
    look = LOOKS.get(word) or LOOKS.get(row.family)
    if look is not None:
        return look(hook, kernel, where)
    return found_places(hook, kernel, where)


def found_places(hook: Hook, kernel: Kernel, where: Where, works: str = "it is there") -> Answer:
    """As attaching looks for it."""
    try:
        module_for(hook).places(hook, where.target)
    except UnsupportedError as error:
        return Answer(MISSING, str(error), error.hint)
    except MetadataError as error:
        return Answer(FAILS, str(error), error.hint)
    except (KernelError, OSError) as error:
        return closed(error, kernel) or Answer(MISSING, reason_of(error), getattr(error, "hint", ""))
    except GadgetError as error:
        return Answer(FAILS, str(error), error.hint)
    return Answer(WORKS, works)


def closed(error: OSError, kernel: Kernel) -> Answer | None:
    """The answer where this process is not let see it; None: it was."""
    if error.errno in CLOSED or "ermission denied" in str(error):
        if os.geteuid():
            return Answer(UNKNOWN, "it cannot be seen without root", not_asked(kernel))
        return Answer(FAILS, str(error), getattr(error, "hint", ""))
    return None


def reason_of(error: OSError) -> str:
    """Without the words around it that the row has already."""
    text = str(error)
    if isinstance(error, AttachError):
        return text.partition(": ")[2] or text
    return text


# ------------------------------------------------------------------------------------------------ tracepoints


def tracepoint(hook: Hook, kernel: Kernel, where: Where) -> Answer:
    """In tracefs; where that is closed, or the kernel is another one, in its BTF."""
    group, _, name = hook.attach_to.partition("/")
    if not kernel.other:
        found = found_places(hook, kernel, where, "it is in tracefs")
        if found.verdict is not UNKNOWN:
            return found
    if group == "syscalls":
        for prefix in ("sys_enter_", "sys_exit_"):
            if name.startswith(prefix):
                return by_syscall(name.removeprefix(prefix), kernel)
    known = kernel.has_tracepoint(name)
    if known is None:
        return Answer(UNKNOWN, "nothing tells whether it is there", not_asked(kernel))
    if known:
        return Answer(UNKNOWN, f"the kernel has a tracepoint {name}; its group cannot be seen", not_asked(kernel))
    return no_tracepoint(name, kernel)


def no_tracepoint(name: str, kernel: Kernel) -> Answer:
    """The answer for one that is not in the kernel's BTF."""
    if kernel.module_with(f"btf_trace_{name}"):
        return Answer(UNKNOWN, f"module {kernel.module_with(f'btf_trace_{name}')} has a tracepoint {name}")
    hint = kernel.near(name, "btf_trace_")
    if kernel.other:
        return Answer(UNKNOWN, "its BTF has no such tracepoint; a module may have", hint)
    return Answer(MISSING, "there is no such tracepoint", hint)


def by_syscall(name: str, kernel: Kernel) -> Answer:
    """The system call, in BTF or kallsyms."""
    prefix = at_kprobe.SYSCALL_PREFIX.get(kernel.host.machine, "__")
    wanted, known = (f"{prefix}sys_{one}" for one in (name, "openat"))
    there = kernel.function(wanted) is not None or wanted in kernel.symbols
    trusted = kernel.function(known) is not None or known in kernel.symbols
    if there:
        return Answer(UNKNOWN, "the kernel has the system call; its tracepoints cannot be seen", not_asked(kernel))
    if trusted:
        return Answer(MISSING, f"this kernel has no system call {name}", kernel.near(name, f"{prefix}sys_"))
    return Answer(UNKNOWN, "nothing tells whether the kernel has the system call", not_asked(kernel))


def raw_tracepoint(hook: Hook, kernel: Kernel, where: Where) -> Answer:
    """In the kernel's BTF, else in kallsyms."""
    name = hook.attach_to
    known = kernel.has_tracepoint(name)
    if known is None:
        if "__tracepoint_sched_switch" in kernel.symbols:
            known = f"__tracepoint_{name}" in kernel.symbols
        else:
            return Answer(UNKNOWN, "nothing tells whether the kernel has it")
    return Answer(WORKS, "it is in the kernel's BTF") if known else no_tracepoint(name, kernel)


# ------------------------------------------------------------------------------------------------ kprobes


def kprobe(hook: Hook, kernel: Kernel, where: Where) -> Answer:
    """A function, or a system call."""
    word, place = word_of(hook), hook.attach_to
    at_return = word in at_kprobe.AT_RETURN
    function, plus, text = place.partition("+")
    try:
        offset = int(text, 0) if plus else 0
    except ValueError:
        return Answer(FAILS, f"{text!r} is no offset")
    prefix = at_kprobe.SYSCALL_PREFIX.get(kernel.host.machine, "__")
    candidates = [function]
    if word in ("ksyscall", "kretsyscall"):
        candidates = [f"{prefix}sys_{place}"]
        if not kernel.other and not has_function(f"{prefix}sys_bpf"):
            candidates += [f"__se_sys_{place}", f"sys_{place}"]
    elif function.startswith("sys_"):
        candidates.append(prefix + function)
    if kernel.other:
        return elsewhere(candidates, kernel)
    if not at_kprobe.KPROBE_PMU.exists():
        return Answer(MISSING, "this kernel was built without kprobes (CONFIG_KPROBES)")
    there = [one for one in candidates if one in kernel.symbols]
    if not kernel.asks:
        if there or not kernel.symbols:
            why = "the kernel has the function" if there else "nothing tells whether the kernel has the function"
            return Answer(UNKNOWN, f"{why}; whether it can be probed was not tried", not_asked(kernel))
        return missing_function(function, kernel)
    refusal: KernelError | None = None
    for one in candidates:
        try:
            os.close(probe_event(one, offset, at_return=at_return))
            return Answer(WORKS, "a probe was put there, which was never switched on")
        except KernelError as error:
            refusal = error
    if there:
        told = os.strerror(refusal.errno or 0) if refusal else ""
        why = f"the function is there, but cannot be probed at this place ({told})"
        return Answer(FAILS, why, "see kprobes/blacklist in debugfs")
    return missing_function(function, kernel)


def elsewhere(candidates: list[str], kernel: Kernel) -> Answer:
    """In another kernel's BTF, which does not tell of every function."""
    if kernel.btf is None:
        return Answer(UNKNOWN, "nothing tells whether it is there")
    if any(kernel.function(one) for one in candidates):
        return Answer(UNKNOWN, "the kernel has the function; whether it can be probed was not tried", not_asked(kernel))
    hint = kernel.near(candidates[-1])
    return Answer(UNKNOWN, "its BTF has no such function, but it may have one all the same", hint)


def missing_function(name: str, kernel: Kernel) -> Answer:
    hint = nearest(name, functions(name)) if not kernel.other else ""
    hint = hint or "it may be inlined, or of another kernel version"
    return Answer(MISSING, "this kernel has no such function", hint)


def probe_event(function: str, offset: int, *, at_return: bool) -> int:
    """A kprobe that is not switched on; it ends with the descriptor. KernelError: there cannot be one."""
    name = create_string_buffer(function.encode())
    kind = int((at_kprobe.KPROBE_PMU / "type").read_text())
    return perf_event_open(0, type=kind, config=int(at_return), config1=addressof(name), config2=offset, flags=DISABLED)


def many(hook: Hook, kernel: Kernel, where: Where) -> Answer:
    """Functions by a pattern."""
    pattern = hook.attach_to
    if kernel.other:
        named = words(pattern)
        return elsewhere(named, kernel) if len(named) == 1 else Answer(UNKNOWN, "patterns are not looked for in BTF")
    if not kernel.asks:
        return Answer(UNKNOWN, "which functions can be probed is not shown without root", not_asked(kernel))
    try:
        found, _ = matching(pattern)
    except ValueError as error:
        return Answer(FAILS, str(error))
    missing = [name for name in words(pattern) if name not in found]
    if missing or not found:
        name = missing[0] if missing else pattern
        hint = "" if is_pattern(name) else nearest(name, functions(name))
        why = f"this kernel has no function {name} that can be probed" if missing else "no function of this kernel fits"
        return Answer(MISSING, why, hint)
    from igrun.bpfcall import KPROBE_MULTI, has_attach_type

    if has_attach_type(KPROBE_MULTI):
        return Answer(WORKS, f"{len(found)} functions")
    if not at_kprobe.KPROBE_PMU.exists():
        return Answer(MISSING, "this kernel was built without kprobes (CONFIG_KPROBES)")
    if len(found) > at_kprobe.MOST_ONE_BY_ONE:
        why = f"{len(found)} functions, too many to probe one by one, and this kernel has no kprobe.multi"
        return Answer(MISSING, why, "a kernel with CONFIG_FPROBE is needed (Linux 5.18)")
    return Answer(WORKS, f"{len(found)} functions, to be probed one by one")


# ------------------------------------------------------------------------------------------------ others


def file(hook: Hook, kernel: Kernel, where: Where) -> Answer:
    """A file of this host."""
    return found_places(hook, kernel, where, "it is in a file of this machine")


def of_tc(hook: Hook, kernel: Kernel, where: Where) -> Answer:
    """Interfaces; which, --iface may say when it runs."""
    found = found_places(hook, kernel, where)
    if found.verdict is not WORKS:
        return found
    direction = at_tc.direction_of(hook)
    places = at_tc.places(hook, where.target)
    if direction in at_tc.NETKIT or not places:
        return Answer(UNKNOWN, INTERFACES)
    names = ", ".join(dict.fromkeys(one.name for one in places))
    if kernel.asks and (at_tc.has_tcx() or kernel.has_option("NET_CLS_BPF", "NET_SCH_INGRESS")):
        return Answer(WORKS, f"on {names}, if --iface names no other")
    return Answer(UNKNOWN, f"on {names}; whether the kernel has filters of this kind was not tried")


def of_xdp(hook: Hook, kernel: Kernel, where: Where) -> Answer:
    """An interface, which --iface must name."""
    if not where.target.interface:
        return Answer(UNKNOWN, "--iface says where when it runs")
    found = found_places(hook, kernel, where)
    if found.verdict is WORKS:
        (place,) = at_xdp.places(hook, where.target)
        held = inside(place.namespace, lambda: at_xdp.attached(place.index))
        return Answer(UNKNOWN, f"another program is at {where.target.interface}") if held else found
    return found


def route_or_port(hook: Hook, kernel: Kernel, where: Where) -> Answer:
    """What others have on this machine when it runs."""
    found = found_places(hook, kernel, where)
    if found.verdict is WORKS:
        return Answer(UNKNOWN, "it depends on what is there when it runs")
    return found


def samples(hook: Hook, kernel: Kernel, where: Where) -> Answer:
    """A counter of this machine: it is opened as in a run, where nothing is attached to it."""
    found = found_places(hook, kernel, where)
    if found.verdict is not WORKS:
        return found
    if not kernel.asks:
        return Answer(UNKNOWN, "whether this machine has such a counter was not tried", not_asked(kernel))
    try:
        os.close(at_perf.opened(hook, at_perf.places(hook, where.target)[0]))
    except UnsupportedError as error:
        return Answer(MISSING, error.lacks, error.hint)
    except KernelError as error:
        return Answer(FAILS, reason_of(error), error.hint)
    return Answer(WORKS, "the counter was opened")


def of_sockets(hook: Hook, kernel: Kernel, where: Where) -> Answer:
    """A map of the object."""
    try:
        name = at_sockmap.map_of(hook, {one.name: one.type for one in where.maps.values()})
    except MetadataError as error:
        return Answer(FAILS, str(error), error.hint)
    return Answer(WORKS, f"map {name} of the image")


def of_cgroup(hook: Hook, kernel: Kernel, where: Where) -> Answer:
    """A cgroup."""
    return found_places(hook, kernel, where, "the cgroup is there")


def of_program(hook: Hook, kernel: Kernel, where: Where) -> Answer:
    """freplace: only the verifier knows whether one function fits in the place of the other."""
    return Answer(UNKNOWN, "only the verifier knows whether it fits in the place of that function")


def once(hook: Hook, kernel: Kernel, where: Where) -> Answer:
    """A program that needs no place."""
    return Answer(WORKS, "it needs no place")


LOOKS: Mapping[str, Callable[[Hook, Kernel, Where], Answer]] = {
    "tracepoint": tracepoint,
    "tp": tracepoint,
    "raw_tracepoint": raw_tracepoint,
    "raw_tp": raw_tracepoint,
    "raw_tracepoint.w": raw_tracepoint,
    "raw_tp.w": raw_tracepoint,
    "freplace": of_program,
    "kprobe.multi": many,
    "kretprobe.multi": many,
    "kprobe.session": many,
    "kprobe": kprobe,
    "uprobe": file,
    "perf": samples,
    "sockmap": of_sockets,
    "cgroup": of_cgroup,
    "tc": of_tc,
    "xdp": of_xdp,
    "lwt": route_or_port,
    "reuseport": route_or_port,
    "syscall": once,
}
