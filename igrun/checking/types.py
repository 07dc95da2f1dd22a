"""Whether the kernel takes programs of a type: it is asked with a minimal one, or its BTF is."""

from __future__ import annotations

from errno import E2BIG, EINVAL, EPERM
from typing import TYPE_CHECKING, NamedTuple

from igrun.bpfcall import has_attach_type
from igrun.btf import TypeKind
from igrun.checking.probe import Kind, Told, load
from igrun.checking.table import FAILS, MISSING, UNKNOWN, WORKS, Answer
from igrun.choosing import EXTENSION, SINCE, SYSCALL, refused_hint
from igrun.libbpf import SLEEPABLE, XDP_FRAGS
from igrun.requirements.sections import OPTIONAL, kind_of
from igrun.requirements.versions import ATTACH_TYPES, shown
from igrun.sections import ProgramType, program_type, sleeps

if TYPE_CHECKING:
    from igrun.checking.kernel import Kernel
    from igrun.checking.uses import Member
    from igrun.program import Hook

# First word of a section -> how the kernel's BTF calls its target, and some that every kernel with the type has
IN_BTF = {
    "tp_btf": ("btf_trace_", ("sys_enter", "sched_switch")),
    "fentry": ("", ("bpf_fentry_test1", "vfs_read")),
    "fexit": ("", ("bpf_fentry_test1", "vfs_read")),
    "fmod_ret": ("", ("bpf_modify_return_test", "security_file_open")),
    "lsm": ("bpf_lsm_", ("file_open",)),
    "lsm_cgroup": ("bpf_lsm_", ("socket_post_create",)),
    "iter": ("bpf_iter_", ("task", "bpf_map")),
}
TRACED = ("fentry", "fexit", "fmod_ret")
NOT_SLEEPABLE = "can be sleepable"
NO_BTF = Answer(MISSING, "this kernel has no BTF of its own", "run a kernel with CONFIG_DEBUG_INFO_BTF")


class Seen(NamedTuple):
    """What was found out of a program.

    type, target: the answers; target None: it is looked for elsewhere
    kind:         as what a minimal program with the same rights is loaded; None: none can be
    """

    type: Answer
    target: Answer | None
    kind: Kind | None


def word_of(hook: Hook) -> str:
    """The first word of its section, without `.s`."""
    return hook.section.removeprefix("?").partition("/")[0].removesuffix(".s")


def see(hook: Hook, kernel: Kernel, license_: str, member: Member | None = None) -> Seen:
    """Whether the kernel takes such a program, and its target where that is fixed at load.

    member: what it is in a struct of functions
    """
    row = program_type(hook.section)
    if row is None:
        return Seen(
            Answer(MISSING, "no such type of program is known", "see the SEC() names in the README"), None, None
        )
    flags = SLEEPABLE if sleeps(hook.section) or row.type == SYSCALL else 0
    flags |= XDP_FRAGS if row.section == "xdp.frags" else 0
    if not kernel.asks:
        target = struct(kernel, member) if word_of(hook) == "struct_ops" else listed(hook, kernel)
        return Seen(by_btf(hook, row, kernel), target, None)
    attach = row.attach or 0
    if attach in SINCE and not has_attach_type(attach):
        if SINCE[attach]:
            return Seen(Answer(MISSING, f"this kernel has no such sessions, Linux {SINCE[attach]} has"), None, None)
        attach = 0
    kind = Kind(row.type, attach, flags, license=license_)
    word = word_of(hook)
    if word == EXTENSION:
        return Seen(extension(kernel, kind), None, None)
    if word in IN_BTF:
        return with_target(hook, kernel, kind)
    if word == "struct_ops":
        return of_struct(hook, kernel, kind, member)
    answer = answered(load(kind), hook, kernel)
    if answer.verdict is WORKS and unknown_attach(row, kernel):
        # Of some types the kernel asks where they go only when they are attached.
        answer = Answer(MISSING, "this kernel does not know how to attach it, as its BTF tells", since(hook))
    return Seen(answer, None, kind if answer.verdict is WORKS else None)


def answered(told: Told, hook: Hook, kernel: Kernel) -> Answer:
    """What a refusal, or none, says of the type."""
    if told.errno == 0:
        return Answer(WORKS, "such a program was loaded")
    if told.log.strip():
        if NOT_SLEEPABLE in told.log:
            return Answer(MISSING, "this kernel lets no program of this type sleep", "leave out the `.s`")
        return Answer(FAILS, f"the verifier refuses every such program: {told.reason}")
    if told.errno == EPERM:
        why = "the kernel refuses every such program (EPERM): a policy of this machine"
        return Answer(FAILS, why, refused_hint(kernel.host))
    if told.errno in (EINVAL, E2BIG):
        return Answer(MISSING, "this kernel does not know it", since(hook))
    import os

    return Answer(FAILS, f"no such program can be loaded: {os.strerror(told.errno)}")


def since(hook: Hook) -> str:
    """A hint with the first Linux that has the type of a section."""
    kind = kind_of(hook.section)
    versions = [version for version, what in kind.needs if what.startswith(("program", "attach"))] if kind else []
    return f"Linux {shown(max(versions))} has it" if versions else ""


def by_btf(hook: Hook, row: ProgramType, kernel: Kernel) -> Answer:
    """Without asking the kernel."""
    known = [kernel.knows("bpf_prog_type", row.type)]
    if row.attach:
        known.append(not unknown_attach(row, kernel))
    if False in known:
        return Answer(MISSING, "this kernel does not know it, as its BTF tells", since(hook))
    if word_of(hook) in IN_BTF and kernel.btf is None:
        return NO_BTF
    if None in known:
        return Answer(UNKNOWN, "nothing tells whether this kernel knows it", not_asked(kernel))
    return Answer(UNKNOWN, "this kernel knows it; whether it lets it be loaded was not tried", not_asked(kernel))


def unknown_attach(row: ProgramType, kernel: Kernel) -> bool:
    """Whether its BTF tells that the kernel does not know the attach type of a row, which it has to."""
    if not row.attach or ATTACH_TYPES.split()[row.attach] in OPTIONAL or SINCE.get(row.attach) == "":
        return False
    return kernel.knows("bpf_attach_type", row.attach) is False


def not_asked(kernel: Kernel) -> str:
    """The hint for what only a minimal program would show."""
    return "run `ig check` as root on that machine" if kernel.other else "run `ig check` as root"


# ------------------------------------------------------------------------------------------------ targets in BTF


def full_name(hook: Hook) -> str:
    """What the target is called in the kernel's BTF; "" where it does not stand there."""
    word = word_of(hook)
    return IN_BTF[word][0] + hook.attach_to if word in IN_BTF else ""


def names(hook: Hook) -> list[str]:
    """All that is looked for in BTF for a program's type and target."""
    word = word_of(hook)
    if word not in IN_BTF:
        return []
    prefix, others = IN_BTF[word]
    return [prefix + one for one in (hook.attach_to, *others)]


def absent(hook: Hook, kernel: Kernel) -> Answer:
    """The answer for a target that the kernel's BTF does not have."""
    name = full_name(hook)
    module = kernel.module_with(name)
    if module:
        return Answer(UNKNOWN, f"it is in module {module}")
    what = {"tp_btf": "tracepoint", "lsm": "LSM hook", "lsm_cgroup": "LSM hook", "iter": "iterator"}
    hint = kernel.near(hook.attach_to, IN_BTF[word_of(hook)][0])
    hint = hint or "it may be inlined, in a module that is not loaded, or of another kernel version"
    return Answer(MISSING, f"this kernel has no such {what.get(word_of(hook), 'function')}", hint)


def listed(hook: Hook, kernel: Kernel) -> Answer | None:
    """What BTF says of a target that is fixed at load; None: it says nothing of such."""
    name = full_name(hook)
    if not name or kernel.btf is None:
        return None
    if kernel.type(name) is None:
        return absent(hook, kernel)
    if word_of(hook) in TRACED:
        why = "the kernel has the function; whether programs may be attached to it was not tried"
        return Answer(UNKNOWN, why, not_asked(kernel))
    return Answer(WORKS, "it is in the kernel's BTF")


def with_target(hook: Hook, kernel: Kernel, kind: Kind) -> Seen:
    """A type whose programs are loaded for their target."""
    if kernel.btf is None:
        return Seen(NO_BTF, None, None)
    prefix, others = IN_BTF[word_of(hook)]
    found = kernel.type(full_name(hook))
    if found is not None:
        kind = replaced(kind, found.id)
        told = load(kind)
        if told.errno == 0:
            untraced = word_of(hook) in TRACED and kernel.traceable is not None
            if untraced and hook.attach_to not in (kernel.traceable or ()):
                target = Answer(FAILS, "ftrace does not know the function, so nothing can be attached to it")
            else:
                target = Answer(WORKS, "a program was loaded for it")
            return Seen(Answer(WORKS, "such a program was loaded"), target, kind)
        if not told.log.strip() and told.errno == EPERM:
            return Seen(answered(told, hook, kernel), None, None)
    types = (kernel.type(prefix + one) for one in others)
    loads = [load(replaced(kind, one.id)) for one in types if one is not None]
    best = min(loads, key=lambda one: (one.errno != 0, not one.log.strip()), default=Told(EINVAL))
    answer = answered(best, hook, kernel)
    if found is None:
        return Seen(answer, absent(hook, kernel), None)
    if answer.verdict is not WORKS:
        return Seen(answer, None, None)
    reason = told.reason or f"no program can be loaded for it (errno {told.errno})"
    hint = "leave out the `.s`" if "not sleepable" in reason else ""
    return Seen(answer, Answer(FAILS, reason, hint), None)


def replaced(kind: Kind, number: int) -> Kind:
    """The same for another target."""
    return Kind(kind.type, kind.attach, kind.flags, number, license=kind.license)


def extension(kernel: Kernel, kind: Kind) -> Answer:
    """freplace: it is loaded for a function of a program; one that is asked for a kernel's function says what it is."""
    told = load(replaced(kind, 1))
    if told.errno == EPERM and not told.log.strip():
        why = "the kernel refuses every such program (EPERM): a policy of this machine"
        return Answer(FAILS, why, refused_hint(kernel.host))
    if told.log.strip():
        return Answer(WORKS, "the verifier knows it")
    return Answer(MISSING, "this kernel does not know it", "Linux 5.6 has it")


# ------------------------------------------------------------------------------------------------ structs of functions


def struct(kernel: Kernel, member: Member | None) -> Answer:
    """Whether the kernel takes such structs."""
    if kernel.btf is None:
        return NO_BTF
    if member is None:
        return Answer(UNKNOWN, "no struct of the object has it")
    wrapper = f"bpf_struct_ops_{member.struct}"
    if kernel.type(member.struct) is None or kernel.type(wrapper) is None:
        if module := kernel.module_with(wrapper):
            return Answer(UNKNOWN, f"struct {member.struct} is in module {module}")
        return Answer(MISSING, f"this kernel takes no struct {member.struct} from programs")
    return Answer(WORKS, f"the kernel takes a struct {member.struct}, as its BTF tells")


def of_struct(hook: Hook, kernel: Kernel, kind: Kind, member: Member | None) -> Seen:
    """A type whose programs are loaded for a member of a struct."""
    target = struct(kernel, member)
    known = kernel.type("tcp_congestion_ops") if member is None or target.verdict is not WORKS else None
    record = known or (kernel.type(member.struct) if member and target.verdict is WORKS else None)
    if record is None or kernel.btf is None:
        return Seen(by_number(kernel, kind, hook), target, None)
    members = [one.name for one in kernel.btf.members(record) if record.kind is TypeKind.STRUCT]
    if known is None and member and member.member not in members:
        why = f"struct {member.struct} of this kernel has no member {member.member}"
        return Seen(by_number(kernel, kind, hook), Answer(MISSING, why), None)
    index = members.index(member.member if known is None and member else "ssthresh")
    kind = Kind(kind.type, index, kind.flags, record.id, license=kind.license)
    told = load(kind)
    answer = answered(told, hook, kernel)
    if known is not None:
        return Seen(answer, target, None)
    if answer.verdict is WORKS:
        return Seen(answer, Answer(WORKS, "a program was loaded for it"), kind)
    if told.log.strip():
        return Seen(Answer(WORKS, "the verifier knows it"), Answer(FAILS, told.reason), None)
    return Seen(answer, target, None)


def by_number(kernel: Kernel, kind: Kind, hook: Hook) -> Answer:
    """Whether the kernel has the type, where no program of it can be tried."""
    row = program_type(hook.section)
    assert row
    return by_btf(hook, row, kernel)
