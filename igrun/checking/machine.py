"""Rows about the machine: its maps, BTF, security modules, capabilities, lockdown and memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from igrun.attach.common import active_lsms
from igrun.bpfmap import PERF_EVENT_ARRAY, RINGBUF
from igrun.checking.probe import NO_PREALLOC, STRUCT_OPS_MAP, makes
from igrun.checking.table import FAILS, HERE, IMAGE, MISSING, UNKNOWN, WORKS, Answer, Row
from igrun.checking.types import not_asked, word_of
from igrun.load import DEFAULT_ENTRIES, LOST_SUFFIX, SIZELESS, ring_size
from igrun.objects import MapSpec
from igrun.requirements import READS_KERNEL, WRITES_USER
from igrun.requirements.memory import PAGE, USER_RINGBUF, memory
from igrun.requirements.versions import MAP_SINCE, helper_name, shown, since

if TYPE_CHECKING:
    from igrun.checking.kernel import Kernel
    from igrun.checking.programs import One
    from igrun.host import Host
    from igrun.kernel_btf import KernelBtf
    from igrun.program import Hook, Program
    from igrun.requirements import Requirements

MEMCG = 160  # bpf_ktime_get_coarse_ns: it came with Linux 5.11, as did maps that count as memory of their cgroup
UNLIMITED = (1 << 64) - 1
# Types of maps that every kernel of their time has, whatever it was built with (include/linux/bpf_types.h)
ALWAYS = frozenset((1, 2, 3, 4, 5, 6, 9, 10, 11, 12, 13, 22, 23, 27, 30, 31))
LSM_WORDS = ("lsm", "lsm_cgroup")


# ------------------------------------------------------------------------------------------------ maps


def entries(program: Program, constants: Mapping[str, bytes], ring_bytes: int) -> dict[str, int]:
    """The entries that each map gets in a run."""
    sizes = program.map_sizes(constants)
    found = {}
    for spec in program.maps.values():
        number = sizes.get(spec.name, spec.max_entries)
        if spec.type == RINGBUF:
            number = ring_size(number, ring_bytes)
        elif number == 0 and spec.type not in SIZELESS:
            number = DEFAULT_ENTRIES
        if spec.type in (RINGBUF, USER_RINGBUF):
            number = whole_pages(number)
        found[spec.name] = number
    return found


def whole_pages(size: int) -> int:
    """As libbpf makes the size of a ring buffer one that the kernel takes: a power of two pages."""
    pages = -(-size // PAGE)
    return PAGE << (pages - 1).bit_length() if pages else 0


def maps(program: Program, sizes: Mapping[str, int], kernel: Kernel) -> Iterator[Row]:
    """A row for each map."""
    perf = all(f"{one.name}{LOST_SUFFIX}" in program.maps for one in program.maps.values() if one.type == RINGBUF)
    for spec in program.maps.values():
        answer = map_(spec, sizes[spec.name], kernel)
        name = f"{spec.name}: {spec.type_name}"
        if spec.type == RINGBUF and answer.verdict is MISSING and perf:
            yield Row("map", name, MISSING, f"{answer.why}: a perf buffer is used", needed=False, of=kernel.of)
            spec = MapSpec(spec.name, PERF_EVENT_ARRAY, 4, 4, 0)
            answer, name = map_(spec, 0, kernel), f"{spec.name}: {spec.type_name}"
        if answer.verdict is MISSING and not answer.hint:
            version = since(MAP_SINCE, spec.type)
            answer = answer._replace(hint=f"Linux {shown(version)} has it" if version else "")
        yield Row("map", name, *answer, of=kernel.of)


def map_(spec: MapSpec, size: int, kernel: Kernel) -> Answer:
    """Whether the kernel makes such a map."""
    if spec.type == STRUCT_OPS_MAP:
        return Answer(UNKNOWN, "it is made for its struct of functions")
    if kernel.asks:
        if spec.type == PERF_EVENT_ARRAY and not size:
            size = len(kernel.host.possible_cpus)
        return makes(spec, size)
    known = kernel.knows("bpf_map_type", spec.type)
    if known is False:
        return Answer(MISSING, "this kernel does not know the type, as its BTF tells")
    if known and spec.type in ALWAYS and spec.flags in (0, NO_PREALLOC):
        return Answer(WORKS, "this kernel has the type, as its BTF tells")
    why = "nothing tells whether this kernel knows the type" if known is None else "this kernel knows the type"
    return Answer(UNKNOWN, f"{why}; no such map was made to see", not_asked(kernel))


def uses_perf_buffers(rows: Iterable[Row]) -> bool:
    """Whether ring buffers are missing, and perf buffers in their place."""
    return any(row.kind == "map" and row.verdict is MISSING and not row.needed for row in rows)


# ------------------------------------------------------------------------------------------------ BTF


def btf(kernel: Kernel, found: KernelBtf | None, program: Program, relocated: Iterable[str]) -> Iterator[Row]:
    """A row for each place where BTF was looked for. found: None: it is given. relocated: programs that need some"""
    if kernel.other:
        yield Row("BTF", kernel.other, WORKS, "given by --btf", of=kernel.of)
        return
    if found is None or not program.needs_kernel_btf:
        yield Row("BTF", "of the kernel", WORKS, "none is needed", of=IMAGE)
        return
    for one in found.searched:
        verdict = WORKS if one.used and found.checked else UNKNOWN if one.used else MISSING
        yield Row("BTF", f"{one.source}: {one.place}", verdict, one.why, needed=False)
    if found.missing is not None:
        why, hint = "there is none for this kernel", found.missing.hint
        yield Row("BTF", "of the kernel", MISSING, why, hint, tuple(relocated))


# ------------------------------------------------------------------------------------------------ security


def lsm(kernel: Kernel, hooks: Iterable[Hook]) -> Iterator[Row]:
    """Whether `bpf` is among the security modules, if a program is one."""
    programs = tuple(hook.program for hook in hooks if word_of(hook) in LSM_WORDS)
    if not programs:
        return
    config, hint = kernel.config, "boot with lsm=...,bpf"
    if config.of != HERE:
        told = (config.values or {}).get("LSM")
        if told is None:
            answer = Answer(UNKNOWN, "the config file does not tell (CONFIG_LSM)")
        elif "bpf" in told.split(","):
            answer = Answer(WORKS, f"CONFIG_LSM is {told}, if the command line says nothing else")
        else:
            answer = Answer(MISSING, f"CONFIG_LSM is {told}, without bpf", hint)
        yield Row("config", "lsm=", *answer, programs, of=config.of)
        return
    if kernel.other:
        yield Row("config", "lsm=", UNKNOWN, "its BTF does not tell", "", programs, of=kernel.of)
        return
    active = active_lsms()
    if not active:
        answer = Answer(UNKNOWN, "which security modules are active cannot be seen", not_asked(kernel))
    elif "bpf" in active:
        answer = Answer(WORKS, f"active security modules: {', '.join(active)}")
    else:
        hint = f"boot with lsm={','.join([*active, 'bpf'])}"
        answer = Answer(MISSING, f"bpf is not among the active security modules: {', '.join(active)}", hint)
    yield Row("config", "lsm=", *answer, programs)


def capabilities(host: Host, needed: Requirements, kernel: Kernel, *, is_root: bool) -> Iterator[Row]:
    """A row for each capability."""
    has = set(host.capabilities)
    if "CAP_SYS_ADMIN" in has:  # which includes these (include/linux/capability.h)
        has |= {"CAP_BPF", "CAP_PERFMON"}
    for name, why in needed.capabilities.items():
        if name in has:
            answer = Answer(WORKS, f"for: {why}")
        elif is_root:
            answer = Answer(MISSING, f"this process does not have it; for: {why}", f"give {name}")
        else:
            answer = Answer(UNKNOWN, f"this process does not have it; for: {why}", f"run as root, or give {name}")
        yield Row("capability", name, *answer)
    if kernel.asking is not None:
        yield Row("capability", "bpf(2)", *kernel.asking)


def lockdown(kernel: Kernel, found: Iterable[One]) -> Row:
    """What the kernel's lockdown forbids."""
    level = kernel.lockdown
    if not level:
        return Row("lockdown", "?", UNKNOWN, "whether there is one cannot be seen", "run `ig check` as root")
    used = {number: one.hook.program for one in found for number in one.found.helpers}
    forbidden = READS_KERNEL if level == "confidentiality" else frozenset()
    if level in ("integrity", "confidentiality"):
        forbidden |= {WRITES_USER}
    bad = sorted(forbidden & used.keys())
    if bad:
        why = f"it forbids {', '.join(map(helper_name, bad))}"
        programs = tuple(dict.fromkeys(one.hook.program for one in found if forbidden & one.found.helpers.keys()))
        return Row("lockdown", level, FAILS, why, "boot without lockdown=, or leave Secure Boot", programs)
    return Row("lockdown", level, WORKS, "it forbids nothing that the image does")


# ------------------------------------------------------------------------------------------------ memory


def memory_rows(program: Program, sizes: Mapping[str, int], kernel: Kernel, made: Iterable[Row]) -> Iterator[Row]:
    """What the maps take."""
    host = kernel.host
    total = 0
    open_ended = []
    for spec in program.maps.values():
        one = memory(spec, sizes[spec.name])
        if one is None:
            open_ended.append(spec.name)
        else:
            total += one.on(len(host.possible_cpus))
    what = f"{size(total)} for maps" + (f", and {', '.join(open_ended)}" if open_ended else "")
    available = free_memory(host.proc / "meminfo")
    verdicts = [row.verdict for row in made if row.kind == "map" and row.needed]
    if kernel.asks and all(one is WORKS for one in verdicts):
        yield Row("memory", what, WORKS, "all maps were made" if verdicts else "there are no maps")
    elif available is not None and total > available:
        hint = "make the maps smaller, or free memory"
        yield Row("memory", what, FAILS, f"only {size(available)} are available", hint)
    else:
        why = f"{size(available)} are available" if available is not None else "what is available is not told"
        yield Row("memory", what, UNKNOWN, why)
    if kernel.knows("bpf_func_id", MEMCG) is False and not kernel.other:
        yield locked(total, host)


def locked(total: int, host: Host) -> Row:
    """Before Linux 5.11 (d5299b67dd59, "bpf: Memcg-based memory accounting for bpf maps") maps are locked memory."""
    import resource

    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    name = "RLIMIT_MEMLOCK"
    if limit in (resource.RLIM_INFINITY, UNLIMITED) or limit >= total * 2:
        return Row("memory", name, WORKS, "it is no limit")
    if "CAP_SYS_RESOURCE" in host.capabilities:
        return Row("memory", name, WORKS, f"it is {size(limit)}, and is lifted (CAP_SYS_RESOURCE)")
    return Row("memory", name, FAILS, f"it is {size(limit)}", "run `ulimit -l unlimited` before")


def free_memory(path: Path) -> int | None:
    """Bytes available, as a meminfo tells."""
    try:
        lines = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
        return int(lines["MemAvailable"].split()[0]) << 10
    except (OSError, KeyError, ValueError, IndexError):
        return None


def size(number: int) -> str:
    """512 bytes, 16 KiB, 1.5 MiB."""
    value = float(number)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{value:.1f}".removesuffix(".0") + f" {unit}"


def searched(
    program: Program, host: Host, btfs: bytes | None, values: Mapping[str, str], stack: ExitStack
) -> KernelBtf:
    """BTF as a run finds it."""
    from igrun.kernel_btf import find

    return find(host, program, stack=stack, btfs=btfs, values=values)
