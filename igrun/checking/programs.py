"""Rows about programs: their types, targets, helpers, and the functions and values of the kernel that they use."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

from igrun.attach import module_for
from igrun.btf import TypeKind
from igrun.checking.probe import may_call, may_call_kernel
from igrun.checking.table import FAILS, HERE, IMAGE, MISSING, UNKNOWN, WORKS, Answer, Row
from igrun.checking.targets import Where, target
from igrun.checking.types import Seen, names, not_asked, see
from igrun.checking.uses import Uses
from igrun.errors import UnsupportedError
from igrun.load import BOOT_CLOCK
from igrun.requirements.features import Found
from igrun.requirements.versions import HELPER_SINCE, helper_name, kfunc_since, kfunc_table, shown, since
from igrun.sections import TYPES, program_type, sleeps

if TYPE_CHECKING:
    from igrun.checking.kernel import Kernel
    from igrun.program import Hook

# Helpers that every program may call (bpf_base_func_proto, and what older kernels had in its place for tracing)
FOR_ALL = frozenset((1, 2, 3, 5, 7, 8, 12, 87, 88, 89, 130, 131, 132, 133, 134))
# Values of the configuration that libbpf knows by itself
OF_LIBBPF = ("LINUX_KERNEL_VERSION", "LINUX_HAS_BPF_COOKIE", "LINUX_HAS_SYSCALL_WRAPPER")


class One(NamedTuple):
    """A program, what was found out of it, and what it uses."""

    hook: Hook
    seen: Seen
    found: Found


class Merged:
    """Rows that differ only in whom they concern are one."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, Answer, bool, str], dict[str, None]] = {}

    def add(self, name: str, answer: Answer, program: str, of: str, *, needed: bool = True) -> None:
        self._rows.setdefault((name, answer, needed, of), {})[program] = None

    def rows(self, kind: str) -> Iterator[Row]:
        for (name, answer, needed, of), programs in self._rows.items():
            yield Row(kind, name, *answer, tuple(programs), needed, of)


def looked_at(
    hooks: Iterable[Hook], kernel: Kernel, uses: Uses, license_: str, families: tuple[ModuleType, ...]
) -> list[One]:
    """Each program with what the kernel says of it."""
    hooks = list(hooks)
    kernel.learn(name for hook in hooks for name in names(hook))
    members = uses.members()
    ours = [row for family in families for row in family.SECTIONS]
    found = []
    for hook in hooks:
        foreign = program_type(hook.section) is None and program_type(hook.section, (*TYPES, *ours)) is not None
        if foreign:
            answer = Answer(UNKNOWN, "a plug-in attaches it")
            seen = Seen(answer, answer, None)
        else:
            seen = see(hook, kernel, license_, members.get(hook.program))
        found.append(One(hook, seen, uses.of(hook.program, hook.section)))
    return found


def types(found: Iterable[One], kernel: Kernel) -> Iterator[Row]:
    """A row for each type of program."""
    merged = Merged()
    for hook, seen, _ in found:
        merged.add(type_name(hook), seen.type, hook.program, kernel.of)
    return merged.rows("type")


def type_name(hook: Hook) -> str:
    """As the README calls it: the section without its target."""
    row = program_type(hook.section)
    if row is None:
        return hook.section.removeprefix("?")
    return row.section.removesuffix("/") + (".s" if sleeps(hook.section) else "")


def targets(found: Iterable[One], kernel: Kernel, where: Where, families: tuple[ModuleType, ...]) -> Iterator[Row]:
    """A row for each program."""
    for hook, seen, _ in found:
        if seen.target is None and seen.type.verdict.bad:
            continue
        answer = unattachable(hook, families) or seen.target or target(hook, kernel, where)
        # Files, interfaces and namespaces are those of this machine, whatever kernel is meant.
        row = program_type(hook.section)
        here = seen.target is None and row is not None and row.family not in ("tracing", "kprobe", "struct_ops")
        of = "this machine" if here else kernel.of
        place = f" at {hook.attach_to}" if hook.attach_to and hook.attach_to not in hook.section else ""
        yield Row("target", f"{hook.program}: {hook.section}{place}", *answer, (hook.program,), of=of)


def unattachable(hook: Hook, families: tuple[ModuleType, ...]) -> Answer | None:
    """The answer where no code of igrun's attaches such programs."""
    try:
        module_for(hook, families)
    except UnsupportedError as error:
        return Answer(MISSING, error.lacks, error.hint)
    return None


# ------------------------------------------------------------------------------------------------ helpers


def helpers(found: Iterable[One], kernel: Kernel, uses: Uses, *, perf_buffers: bool) -> Iterator[Row]:
    """A row for each helper, or several where types of programs differ. perf_buffers: in the place of ring buffers"""
    merged = Merged()
    answers: dict[tuple[object, int], Answer] = {}
    for hook, seen, used in found:
        if seen.kind is None and (seen.type.verdict.bad or (seen.target and seen.target.verdict.bad)):
            continue
        for number in used.helpers:
            key = (seen.kind, number)
            if key not in answers:
                answers[key] = helper(number, seen, kernel)
            answer = answers[key]
            needed = True
            if answer.verdict.bad and number == BOOT_CLOCK and perf_buffers:
                answer, needed = answer._replace(why=f"{answer.why}: its time is that of reading"), False
            elif answer.verdict.bad and not uses.settled:
                answer = Answer(UNKNOWN, f"{answer.why}; whether the program does without is decided with BTF")
            merged.add(helper_name(number), answer, hook.program, kernel.of, needed=needed)
    return merged.rows("helper")


def helper(number: int, seen: Seen, kernel: Kernel) -> Answer:
    """Whether a program may call a helper."""
    version = since(HELPER_SINCE, number)
    hint = f"Linux {shown(version)} has it" if version else ""
    if seen.kind is not None:
        answer = may_call(seen.kind, number)
        return answer._replace(hint=hint) if answer.verdict is MISSING and not answer.hint else answer
    known = kernel.knows("bpf_func_id", number)
    if known is False:
        return Answer(MISSING, "this kernel does not have it, as its BTF tells", hint)
    if known and number in FOR_ALL:
        return Answer(WORKS, "this kernel has it, for all programs")
    why = "nothing tells whether this kernel has it" if known is None else "this kernel has it"
    if kernel.asks:
        return Answer(UNKNOWN, f"{why}; it was not tried with this type of program")
    return Answer(UNKNOWN, f"{why}; for which types of programs was not tried", not_asked(kernel))


# ------------------------------------------------------------------------------------------------ kfuncs


def kfuncs(found: Iterable[One], kernel: Kernel, uses: Uses) -> Iterator[Row]:
    """A row for each function of the kernel."""
    found = list(found)
    kernel.learn(name for one in found for name in one.found.kfuncs)
    merged = Merged()
    table = kfunc_table()
    for hook, seen, used in found:
        for name, weak in used.kfuncs.items():
            answer = kfunc(name, weak, seen, kernel, uses)
            version = kfunc_since(name, table)
            if answer.verdict is MISSING and version:
                answer = answer._replace(hint=f"Linux {shown(version)} has it")
            merged.add(name, answer, hook.program, kernel.of)
    for row in merged.rows("kfunc"):
        # libbpf refuses the whole object where one is not there as declared, whatever program it is for.
        function = kernel.function(row.name)
        whole = function is None or kernel.btf is None or not uses.declares(row.name, function, kernel.btf)
        programs = () if row.verdict.bad and whole else row.programs
        yield Row(row.kind, row.name, row.verdict, row.why, row.hint, programs, row.needed, row.of)


def kfunc(name: str, weak: bool, seen: Seen, kernel: Kernel, uses: Uses) -> Answer:
    """Whether a program may call a function of the kernel. weak: it is loaded without too."""
    if kernel.btf is None:
        return Answer(UNKNOWN if weak else MISSING, "this kernel has no BTF of its own")
    function = kernel.function(name)
    if function is None:
        if module := kernel.module_with(name):
            return Answer(UNKNOWN, f"it is in module {module}")
        if weak:
            return Answer(UNKNOWN, "this kernel does not have it; only the verifier knows whether it is done without")
        return Answer(MISSING, "this kernel does not have it")
    if not uses.declares(name, function, kernel.btf):
        why = "the object declares it with other types than this kernel"
        return Answer(UNKNOWN if weak else FAILS, why, "declare it as vmlinux.h of this kernel does")
    if seen.kind is not None:
        return may_call_kernel(seen.kind, function.id)
    hint = "" if kernel.asks else not_asked(kernel)
    return Answer(UNKNOWN, "this kernel has it; for which types of programs was not tried", hint)


# ------------------------------------------------------------------------------------------------ externs


def externs(uses: Uses, kernel: Kernel) -> Iterator[Row]:
    """Values of the configuration, and variables of the kernel, that the object cannot be loaded without."""
    config = kernel.config
    for one in uses.externs():
        if one.kind == "config":
            if one.name not in OF_LIBBPF:
                answer, whole = of_config(one.name, kernel)
                yield Row("config", f"value of {one.name}", *answer, needed=whole or not one.weak, of=config.of)
        elif kernel.btf is not None:
            there = kernel.btf.find(one.name, TypeKind.VAR) is not None if one.typed else one.name in kernel.symbols
            why = "the kernel has it" if there else "this kernel has no such variable"
            told = one.typed or not kernel.other
            module = kernel.module_with(one.name) if one.typed else ""
            verdict = WORKS if there else UNKNOWN if module or not told else MISSING
            yield Row("symbol", one.name, verdict, why, needed=not one.weak, of=kernel.of)


def of_config(name: str, kernel: Kernel) -> tuple[Answer, bool]:
    """Whether libbpf finds a value of the configuration, and whether without it nothing can be loaded."""
    config, option = kernel.config, name.removeprefix("CONFIG_")
    here = not kernel.other and config.of == HERE
    places = (f"/boot/config-{kernel.host.release}", "/proc/config.gz")
    if here and (config.values is None or not config.place.endswith(places)):
        why = "libbpf reads it in /boot/config-<release> and /proc/config.gz alone, and neither is there"
        return Answer(MISSING, why, "put the kernel's configuration there"), True
    if config.values is None:
        return Answer(UNKNOWN, f"the kernel's configuration is not told in {config.place}"), False
    value = config.values.get(option, "n")
    if value == "n":
        return Answer(MISSING, "the kernel's configuration does not have it"), False
    return Answer(WORKS, f"its value is {value}"), False


def verifier(hooks: Iterable[Hook]) -> Row:
    """What is never known before."""
    programs = tuple(hook.program for hook in hooks)
    what = f"{len(programs)} programs" if len(programs) != 1 else "1 program"
    return Row("verifier", what, UNKNOWN, "only loading shows whether the verifier takes them", "", programs, of=IMAGE)
