"""Which programs of an object are loaded, as what, and why one is not."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from errno import EINVAL, ENOENT, EPERM, ESRCH
from pathlib import Path
from typing import TYPE_CHECKING

from igrun.bpfcall import KPROBE_MULTI, KPROBE_SESSION, UPROBE_MULTI, UPROBE_SESSION, has_attach_type
from igrun.bpflib import library
from igrun.dataclass import dataclass, field, replace
from igrun.errors import (
    AttachError,
    BtfNotFoundError,
    GadgetError,
    KernelError,
    UnsupportedError,
    VerifierError,
)
from igrun.host import HOST_TARGET
from igrun.kernel_btf import OWN, has_own, resolved_in_kernel
from igrun.libbpf import SLEEPABLE, XDP_FRAGS, BpfObject, BpfProgram
from igrun.logs import DEBUG, INFO, Logger
from igrun.regex import regex
from igrun.sections import TYPES, ProgramType, program_type, sleeps

if TYPE_CHECKING:
    from igrun.host import Host
    from igrun.program import Hook, Plan

DISABLED = "gadget_program_disabled"
OPTIONAL, ANY_OF = "optional", "any_of"
# enum bpf_prog_type
XDP, STRUCT_OPS, EXT, SYSCALL = 6, 27, 28, 31
# What the kernel wants more than CAP_BPF for (is_perfmon_prog_type and is_net_admin_prog_type in its
# kernel/bpf/syscall.c), or wants when it is attached (CGROUP_SKB, LIRC_MODE2 and SK_LOOKUP)
TRACING = frozenset((2, 5, 7, 17, 24, 26, STRUCT_OPS, EXT, 29))
NETWORK = frozenset((3, 4, XDP, 8, 9, 10, 11, 12, 13, 14, 15, 16, 18, 19, 20, 22, 23, 25, EXT, 30, 32))
# Attach type that not every kernel has -> the first one that does; without it, programs of the first two are attached
# to one place at a time
SINCE = {KPROBE_MULTI: "", UPROBE_MULTI: "", KPROBE_SESSION: "6.10", UPROBE_SESSION: "6.13"}
# Their target is fixed at load: the section's first word
TARGETED = ("fentry", "fexit", "fmod_ret", "tp_btf", "lsm", "lsm_cgroup", "iter")
EXTENSION = "freplace"
VMLINUX = "/sys/kernel/btf/vmlinux"


def kind_of(hook: Hook) -> str:
    """The first word of its section, without `.s`."""
    return hook.section.removeprefix("?").partition("/")[0].removesuffix(".s")


# ------------------------------------------------------------------------------------------------ what a run may lack


class RefusedError(GadgetError):
    """`program` cannot be loaded because of `error`. Only between here and `load`."""

    def __init__(self, program: str, error: GadgetError) -> None:
        super().__init__(str(error))
        self.program, self.error = program, error


@dataclass(slots=True)
class Here:
    """One of the targets. left_out: program -> why it is not used here, though it may be at others"""

    name: str
    left_out: dict[str, GadgetError] = field(default_factory=dict)


class Choices:
    """The programs that a run can do without: optional ones, and all but one of a group of alternatives.

    A group is settled once in a run: what the program that was chosen sees of one target is not to be compared with
    what another one sees of the next.

    left_out: program -> why it is not used
    """

    def __init__(self, hooks: Iterable[Hook]) -> None:
        """hooks: of all programs that are wanted, in the object's order."""
        self.left_out: dict[str, GadgetError] = {}
        self._hooks = {hook.program: hook for hook in hooks}
        self._chosen: dict[str, str] = {}
        self._first: dict[str, str] = {}  # program -> the target where it was attached first

    def group(self, program: str) -> str:
        """The name of its group of alternatives, "" if it has none."""
        hook = self._hooks.get(program)
        return str(hook.options.get(ANY_OF, "")) if hook else ""

    def optional(self, program: str) -> bool:
        return str(self._hooks[program].options.get(OPTIONAL, "")).lower() == "true"

    def choose(self, program: str, target: str = "") -> None:
        """It works, at that target: the other alternatives are not needed."""
        self._first.setdefault(program, target)
        if group := self.group(program):
            self._chosen.setdefault(group, program)

    def needed(self, program: str) -> bool:
        """False if another alternative was chosen."""
        return self._chosen.get(self.group(program), program) == program

    def leave_out(self, program: str, error: GadgetError, here: Here | None = None) -> None:
        """Do without it, and tell. Raises the error if the run cannot: of a group's last one, why none works.

        here: the target that it cannot be attached to, which may be the only one
        """
        group = self.group(program)
        free = program in self._hooks and (group or self.optional(program))
        if not free or not isinstance(error, KernelError | UnsupportedError | BtfNotFoundError):
            raise error
        if isinstance(error, BtfNotFoundError):  # which is about the whole gadget
            error = UnsupportedError(f"program {program!r}", str(error), hint=error.hint)
        # What a container lacks, another one may have.
        where = f" at {here.name!r}" if here and here.name != HOST_TARGET.name else ""
        alone = here and (program in self._first or (where and isinstance(error, AttachError)))
        (here.left_out if here and alone else self.left_out)[program] = error
        everyone = [name for name in self._hooks if group and self.group(name) == group]
        if not any(map(self.optional, everyone)):
            self._refuse_all(group, everyone, here, where)
        # Of alternatives one works, which is what the user wants.
        level = DEBUG if group and program not in self._first else INFO
        Logger(__name__).log(level, "left out%s: %s", where if alone else "", error)

    def _refuse_all(self, group: str, everyone: list[str], here: Here | None, where: str) -> None:
        """UnsupportedError: a group's program cannot be used that was chosen, or none of them can."""
        out = {**self.left_out, **(here.left_out if here else {})}
        chosen = self._chosen.get(group, "")
        if chosen in out:
            first = self._first[chosen]
            when = f"which was chosen at {first!r}" if first else "which was chosen"
            lacks = f"program {chosen!r}, {when}, does not work{where}: {out[chosen]}"
            hint = "alternatives are for all targets of a run: give this one a run of its own" if first else ""
            raise UnsupportedError(f"alternatives {group!r}", lacks, hint=out[chosen].hint or hint) from None
        if everyone and all(name in out for name in everyone):
            reasons = "; ".join(str(out[name]) for name in everyone)
            hints = dict.fromkeys(out[name].hint for name in everyone)
            hint = "; ".join(one for one in hints if one)
            raise UnsupportedError(f"none of the alternatives {group!r} works{where}", reasons, hint=hint) from None


def wanted(plan: Plan) -> list[Hook]:
    """The hooks of the programs that are not disabled, each with its target in this run."""
    found = []
    for hook in plan.program.hooks:
        target = plan.attach_to.get(hook.program, hook.attach_to)
        # `?` before a section: not loaded, unless gadget.yaml or somebody else says where to attach it
        off = hook.section.startswith("?") and target == hook.section.partition("/")[2]
        if target != DISABLED and hook.program not in plan.disabled and not off:
            found.append(replace(hook, attach_to=target))
    return found


# ------------------------------------------------------------------------------------------------ types and targets


def chosen(plan: Plan, object_: BpfObject, choices: Choices) -> list[Hook]:
    """The hooks to attach, each with its handle, type and target; the programs of the others are left out."""
    hooks = {hook.program: hook for hook in wanted(plan) if hook.program not in choices.left_out}
    types = (*TYPES, *(row for family in plan.families for row in family.SECTIONS))
    relocated = relocated_programs(object_.elf) if plan.missing_btf else frozenset()
    found = []
    for name, handle in object_.programs.items():
        if name not in hooks:
            handle.leave_out()
            continue
        hook = replace(hooks[name], handle=handle)
        try:
            refuse_without_btf(plan, hook, relocated)
            set_type(handle, types)
            if sleeps(hook.section):  # struct_ops.s may have another name by now
                handle.set_flags(SLEEPABLE)
            if kind_of(hook) in TARGETED:
                set_target(hook, handle)
        except (AttachError, UnsupportedError, BtfNotFoundError) as error:
            choices.leave_out(name, error)
            handle.leave_out()
            continue
        if hook.section.startswith("?"):
            handle.leave_out(False)
        found.append(hook)
    order = {hook.program: place for place, hook in enumerate(plan.program.hooks)}
    return sorted(found, key=lambda hook: order[hook.program])


def refuse_without_btf(plan: Plan, hook: Hook, relocated: Collection[str]) -> None:
    """UnsupportedError, BtfNotFoundError: this program needs BTF of the kernel, and there is none.

    relocated: programs with CO-RE relocations
    """
    own = plan.host.root / OWN
    if resolved_in_kernel(hook) and not has_own(own):
        raise UnsupportedError(
            f"program {hook.program!r} ({hook.section})",
            f"programs of this type need BTF in the kernel itself, and this one has none ({own}); "
            "BTF of an image, a file or BTFHub is no help",
            hint="run a kernel with CONFIG_DEBUG_INFO_BTF (Debian 11, Ubuntu 20.10, Fedora 31, RHEL 8.2 or later)",
        )
    if plan.missing_btf and hook.program in relocated:
        raise plan.missing_btf


def relocated_programs(elf: bytes) -> frozenset[str]:
    """The programs that have CO-RE relocations, or call a function that has some."""
    from igrun.requirements.code import Code  # only kernels without BTF need it

    return Code.of(elf).relocated()


def set_type(handle: BpfProgram, types: tuple[ProgramType, ...] = TYPES) -> None:
    """Give a program the type, attach type and flags that its section means.

    UnsupportedError: nobody knows the section; this kernel has no such attach type
    """
    row = program_type(handle.section, types)
    if row is None:
        raise UnsupportedError(
            f"section {handle.section!r} of program {handle.name!r}",
            "no such type of program is known",
            hint="see the documentation for the SEC() names that can be used",
        )
    flags = SLEEPABLE if sleeps(handle.section) or row.type == SYSCALL else 0
    if row.type == STRUCT_OPS:
        # libbpf has found out which member of which struct it is, and keeps that in the attach type.
        handle.set_flags(flags)
        return
    if row.section == "xdp.frags":
        flags |= XDP_FRAGS
    attach_type = row.attach or 0
    if attach_type in SINCE and not has_attach_type(attach_type):
        if SINCE[attach_type]:
            feature = f"program {handle.name!r} ({handle.section})"
            raise UnsupportedError(feature, "this kernel has no such sessions", since=SINCE[attach_type])
        attach_type = 0
    handle.set_type(row.type, attach_type, flags)


def set_target(hook: Hook, handle: BpfProgram) -> None:
    """Tell what it is for. AttachError, UnsupportedError: this kernel does not have it."""
    try:
        handle.set_target(hook.attach_to)
    except KernelError as error:
        if error.errno not in (ENOENT, ESRCH, EINVAL):
            raise
        raise missing_target(hook) from None


def refuse_without_capabilities(host: Host, hooks: Iterable[Hook]) -> None:
    """KernelError that names what is missing, if these programs cannot be loaded with what this process may do."""
    kinds = {hook.handle.type for hook in hooks if hook.handle}
    needed = ["CAP_BPF"]
    if kinds & TRACING:
        needed.append("CAP_PERFMON")
    if kinds & NETWORK:
        needed.append("CAP_NET_ADMIN")
    missing = host.missing_capabilities(*needed)
    if "CAP_SYS_ADMIN" in host.capabilities:  # which includes the first two (include/linux/capability.h)
        missing = tuple(name for name in missing if name == "CAP_NET_ADMIN")
    if missing:
        names = ", ".join(missing)
        raise KernelError(EPERM, f"load the gadget: missing {names}", hint=f"run as root, or give {names}")


# ------------------------------------------------------------------------------------------------ refusals


def explained(error: KernelError, plan: Plan, hooks: Iterable[Hook]) -> GadgetError:
    """The error that says most about why the object was not loaded: a RefusedError if it is about one program."""
    told = told_of(error, plan, {hook.program: hook for hook in hooks})
    return RefusedError(error.program, told) if isinstance(error, VerifierError) else told


def told_of(error: KernelError, plan: Plan, by_name: dict[str, Hook]) -> GadgetError:
    """The error that says most."""
    if not isinstance(error, VerifierError):
        if error.errno == EPERM:
            error.hint = refused_hint(plan.host)
        if struct := NO_STRUCT.search(str(error)):
            lacks = "this kernel has no such struct of functions"
            return UnsupportedError(f"struct {struct[1]}", lacks, hint="a newer kernel may, or another configuration")
        return error
    hook = by_name.get(error.program)
    if hook is None:
        return error
    feature, reason = f"program {error.program!r} ({hook.section})", str(error)
    if reason.endswith("is not sleepable"):
        lacks = f"this kernel lets no program sleep in {hook.attach_to}"
        hint = "leave out the `.s`; or use a kernel with CONFIG_FUNCTION_ERROR_INJECTION"
        return UnsupportedError(feature, lacks, hint=hint)
    if reason.endswith("can be sleepable"):
        return UnsupportedError(feature, "this kernel lets no program of this type sleep", hint="leave out the `.s`")
    if helper := HELPER.search(reason):
        return missing_helper(error, feature, int(helper[2]), known=helper[1] != "unknown")
    first = later(plan.host.release, hook)
    if error.errno == EINVAL and first:
        return UnsupportedError(feature, "this kernel does not know where and how this one is attached", since=first)
    if error.log.strip():
        return error
    # Without a log the verifier has not even begun: the kernel does not take this type of program.
    if error.errno == EPERM:
        lacks = "it refuses programs of this type, though no capability is missing: a policy of this machine"
        return UnsupportedError(feature, lacks, hint=refused_hint(plan.host))
    if error.errno == EINVAL:
        kind = hook.handle.type if hook.handle else 0
        known = library().libbpf_probe_bpf_prog_type(kind, None) != 0
        if not known:
            first = first_with("PROGRAM_SINCE", kind)
            return UnsupportedError(feature, "this kernel does not know programs of this type", since=first)
        return UnsupportedError(feature, "this kernel does not know where and how this one is attached")
    return error


def later(release: str, hook: Hook) -> str:
    """The first Linux that knows the program's attach type, if that is later than this one; else ""."""
    kind = hook.handle.attach_type if hook.handle else 0
    first = first_with("ATTACH_SINCE", kind) if kind else ""
    numbers = re.match(r"(\d+)\.(\d+)", release)
    if not first or numbers is None:
        return ""
    major, minor = map(int, first.split("."))
    return first if (int(numbers[1]), int(numbers[2])) < (major, minor) else ""


HELPER = regex(r"(?:invalid func|unknown func|program of this type cannot use helper) (\w+)#(\d+)$")
NO_STRUCT = regex(r"struct_ops init_kern: struct (?:bpf_struct_ops_)?(\w+) is not found in kernel BTF")
GET_ATTACH_COOKIE = 174


def missing_helper(error: VerifierError, feature: str, number: int, *, known: bool) -> GadgetError:
    """The error for a helper that the kernel does not have. known: it has it, but for other types of programs."""
    if number == GET_ATTACH_COOKIE:
        return UnsupportedError(feature, "this kernel has no cookies for programs of this type")
    if known:
        return error
    from igrun.requirements.versions import HELPERS

    names = HELPERS.split()
    name = f"bpf_{names[number]}" if number < len(names) else f"number {number}"
    return UnsupportedError(feature, f"this kernel has no helper {name}", since=first_with("HELPER_SINCE", number))


def first_with(table: str, key: int | str) -> str:
    """The first Linux that has what one of the tables of `requirements.versions` lists, "" if nobody knows."""
    from igrun.requirements import versions  # it takes its time, and only an error needs it

    found = versions.ITERATORS.get(str(key)) if table == "ITERATORS" else None
    if isinstance(key, int):
        found = versions.since(getattr(versions, table), key)
    return ".".join(map(str, found)) if found else ""


# First word of a section -> what its target is, and how that is called in the kernel's BTF
TARGETS = {
    "tp_btf": ("tracepoint", "btf_trace_"),
    "lsm": ("LSM hook", "bpf_lsm_"),
    "lsm_cgroup": ("LSM hook", "bpf_lsm_"),
    "iter": ("iterator", "bpf_iter_"),
}


def missing_target(hook: Hook) -> GadgetError:
    """The error for a target that the kernel's BTF does not have."""
    name = hook.attach_to
    kind = kind_of(hook)
    what, prefix = TARGETS.get(kind, ("function", ""))
    feature = f"program {hook.program!r} ({hook.section})"
    if not Path(VMLINUX).exists():
        return UnsupportedError(feature, "this kernel has no BTF of its own")
    if kind == "iter":
        first = first_with("ITERATORS", name)
        return UnsupportedError(feature, f"this kernel has no iterator {name!r}", since=first)
    near = near_types(prefix, name)
    hint = f"did you mean {', '.join(near)}?" if near else "it may be inlined, or of another kernel version"
    reason = f"this kernel has no such {what}"
    return AttachError(ENOENT, hook.program, hook.section, hook.attach_to, reason=reason, hint=hint)


def near_types(prefix: str, name: str) -> list[str]:
    """Up to three names like it among those in the kernel's BTF that begin with the prefix, which is left out."""
    from difflib import get_close_matches

    text = Path(VMLINUX).read_bytes().decode("latin-1")
    like = re.findall(rf"\0{prefix}({re.escape(name[:3])}\w*)(?=\0)", text)
    return get_close_matches(name, like, 3)


def refused_hint(host: Host) -> str:
    """What may be behind an EPERM that no missing capability explains."""
    if host.lockdown == "confidentiality":
        return "kernel lockdown is at `confidentiality`, which forbids BPF programs that read memory"
    uid_map = (host.proc / "self" / "uid_map").read_text().split()
    if uid_map[2:3] != [str((1 << 32) - 1)]:
        return "this process is in a user namespace, whose capabilities do not count here; run it outside"
    return "ask whoever set up this machine, or use another type of program"
