"""What a BPF object needs: the oldest kernel and why, capabilities, helpers, kfuncs, memory."""

import struct
import time
from contextlib import suppress
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igrun.errors import ImageError
from igrun.objects import MapSpec
from igrun.requirements import Requirements, requirements
from igrun.requirements import versions as v
from igrun.requirements.code import Code, Instruction
from igrun.requirements.features import instruction_needs
from igrun.requirements.flow import reached
from igrun.requirements.memory import Memory, memory
from igrun.requirements.sections import kind_of
from igrun.sections import TYPES
from tests.compiled import compiled


def of(source: str, *flags: str) -> Requirements:
    return requirements(compiled(source, *flags))


def needed(found: Requirements) -> set[str]:
    return {one.what for one in found.needs if not one.instead}


TRACEPOINT = 'SEC("tracepoint/sched/sched_switch") int p(void *ctx) { %s return 0; }'

# ---------------------------------------------------------------------------------------------- one program


def test_the_minimum_is_the_newest_of_all_reasons():
    found = of(TRACEPOINT % "return bpf_ktime_get_boot_ns() & 1;")

    assert found.minimum_kernel == (5, 8)
    assert found.reasons == ("helper bpf_ktime_get_boot_ns",)
    assert [str(one) for one in found.needs] == ["5.8: helper bpf_ktime_get_boot_ns", "4.7: program type tracepoint"]


def test_a_helper_behind_a_question_of_core_does_not_raise_the_minimum():
    body = (
        "if (bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_ktime_get_boot_ns)) return bpf_ktime_get_boot_ns();"
    )

    found = of("#include <bpf/bpf_core_read.h>\n" + TRACEPOINT % (body + "return bpf_ktime_get_ns();"))

    assert found.minimum_kernel == (4, 7)
    assert "5.8: helper bpf_ktime_get_boot_ns (else CO-RE leaves it out)" in map(str, found.needs)
    assert found.programs[0].helpers == ("bpf_ktime_get_boot_ns", "bpf_ktime_get_ns")


def test_a_helper_is_needed_if_only_one_program_asks_before():
    asks = "if (bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_jiffies64)) return bpf_jiffies64();"
    source = "#include <bpf/bpf_core_read.h>\n" + TRACEPOINT % asks
    source += 'SEC("tracepoint/a/b") int q(void *ctx) { return bpf_jiffies64(); }'

    found = of(source)

    assert found.minimum_kernel == (5, 6)
    assert [one.what for one in found.needs].count("helper bpf_jiffies64") == 1


RING = """
#include <gadget/buffer.h>
struct event { int pid; };
GADGET_TRACER_MAP(events, 4096);
SEC("tracepoint/sched/sched_switch") int p(void *ctx)
{
    struct event *event = gadget_reserve_buf(&events, sizeof(*event));
    if (!event)
        return 0;
    event->pid = 1;
    gadget_submit_buf(ctx, &events, event, sizeof(*event));
    return 0;
}
"""


def test_ring_buffers_that_may_be_perf_buffers_do_not_raise_the_minimum():
    found = of(RING)

    assert found.minimum_kernel < (5, 8)
    assert "5.8: map type ringbuf (else a perf buffer)" in map(str, found.needs)
    assert ("events", "EventReserve") in found.programs[0].maps
    assert ("events", "EventOutput") in found.programs[0].maps


def test_ring_buffers_without_another_way_raise_the_minimum():
    source = 'struct { __uint(type, BPF_MAP_TYPE_RINGBUF); __uint(max_entries, 4096); } r SEC(".maps");'

    found = of(source + TRACEPOINT % "bpf_ringbuf_output(&r, &ctx, 8, 0);")

    assert found.minimum_kernel == (5, 8)
    assert set(found.reasons) == {"map type ringbuf", "helper bpf_ringbuf_output"}


def test_functions_that_a_program_calls_count_for_it():
    source = (
        "static __noinline int f(int a) { return bpf_jiffies64() + a; }"
        + TRACEPOINT % "return f(bpf_get_numa_node_id());"
    )

    found = of(source)

    assert found.programs[0].helpers == ("bpf_get_numa_node_id", "bpf_jiffies64")
    assert "functions that programs call" in needed(found)


def test_kfuncs_are_told_by_their_symbols():
    source = "extern struct task_struct *bpf_task_from_pid(int pid) __ksym;\n"
    source += "extern void bpf_task_release(struct task_struct *p) __ksym;\n"
    source += "extern void bpf_never_heard(void) __ksym __weak;\n"
    body = "struct task_struct *t = bpf_task_from_pid(1); if (t) bpf_task_release(t); bpf_never_heard();"

    found = of(source + f'SEC("tp_btf/sched_switch") int p(void *ctx) {{ {body} return 0; }}')

    assert found.programs[0].kfuncs == ("bpf_task_from_pid", "bpf_task_release", "bpf_never_heard")
    assert found.minimum_kernel == (6, 2)
    assert found.unknown == ()
    assert found.kernel_btf


def test_a_kfunc_that_nobody_knows_is_told_as_unknown():
    source = "extern void bpf_never_heard(void) __ksym;\n"

    found = of(source + 'SEC("tp_btf/sched_switch") int p(void *ctx) { bpf_never_heard(); return 0; }')

    assert found.unknown == ("kfunc bpf_never_heard",)


def test_loops_and_new_instructions_are_told():
    body = 'int n = 0; for (int i = 0; i < 100; i++) { asm volatile("" : "+r"(n)); n += i; } return n;'
    assert "loops" in needed(of(TRACEPOINT % body))

    body = "static long n; return __sync_fetch_and_or(&n, 1);"
    assert "atomic operations that fetch, or other than add" in needed(of(TRACEPOINT % body, "-mcpu=v3"))


def test_a_trap_is_no_helper():
    found = of(TRACEPOINT % "((void (*)(void))0xbad2310)();")

    assert found.programs[0].helpers == ()
    assert found.unknown == ()


@pytest.mark.parametrize(
    ("section", "capabilities"),
    [
        ("tracepoint/a/b", {"CAP_BPF", "CAP_PERFMON"}),
        ("xdp", {"CAP_BPF", "CAP_NET_ADMIN"}),
        ("socket1", {"CAP_BPF", "CAP_NET_RAW"}),
        ("cgroup/connect4", {"CAP_BPF", "CAP_NET_ADMIN"}),
        ("sk_reuseport", {"CAP_BPF"}),
        ("freplace/f", {"CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN"}),
    ],
)
def test_capabilities_follow_from_the_type(section, capabilities):
    assert set(of(f'SEC("{section}") int p(void *ctx) {{ return 0; }}').capabilities) == capabilities


def test_helpers_that_read_the_kernel_want_perfmon_in_every_program():
    found = of('SEC("xdp") int p(void *ctx) { return bpf_get_current_task() & 1; }')

    assert found.capabilities["CAP_PERFMON"] == "helpers bpf_get_current_task"


@pytest.mark.parametrize(
    ("section", "version"),
    [
        ("kprobe/do_sys_open", (4, 1)),
        ("tracepoint/a/b", (4, 7)),
        ("fentry/vfs_read", (5, 5)),
        ("fentry.s/vfs_read", (5, 10)),
        ("kprobe.multi/vfs_*", (5, 18)),
        ("uprobe.multi/libc:malloc", (6, 6)),
        ("iter/task", (5, 8)),
        ("iter/ksym", (6, 0)),
        ("iter.s/task", (5, 18)),
        ("xdp", (4, 8)),
        ("tc", (4, 1)),
        ("tcx/ingress", (6, 6)),
        ("netkit/primary", (6, 7)),
        ("lsm_cgroup/socket_bind", (6, 0)),
        ("cgroup/connect4", (4, 17)),
        ("cgroup/connect_unix", (6, 7)),
        ("netfilter", (6, 4)),
    ],
)
def test_a_section_tells_the_first_kernel_that_has_it(section, version):
    kind = kind_of(section)

    assert kind is not None
    assert max(since for since, _ in kind.needs) == version


def test_every_section_of_the_table_has_a_version():
    for row in TYPES:
        assert kind_of(row.section + ("x" if row.section.endswith("/") else "")).needs, row.section


# ---------------------------------------------------------------------------------------------- instructions


@pytest.mark.parametrize(
    ("instruction", "version"),
    [
        (Instruction(0, 0x16, 1, 0, 1, 5), (5, 1)),  # if w1 == 5
        (Instruction(0, 0xA5, 1, 0, 1, 5), (4, 14)),  # if r1 < 5
        (Instruction(9, 0x05, 0, 0, -3, 0), (5, 3)),  # goto -3
        (Instruction(0, 0x06, 0, 0, 0, 3), (6, 6)),  # gotol
        (Instruction(0, 0x3F, 1, 2, 1, 0), (6, 6)),  # signed division
        (Instruction(0, 0xBF, 1, 2, 8, 0), (6, 6)),  # r1 = (s8)r2
        (Instruction(0, 0x81, 1, 2, 0, 0), (6, 6)),  # r1 = *(s32 *)
        (Instruction(0, 0xD7, 1, 0, 0, 16), (6, 6)),  # bswap16
        (Instruction(0, 0xDB, 1, 2, 0, 0xE1), (5, 12)),  # xchg
        (Instruction(0, 0xE5, 0, 0, 1, 0), (6, 9)),  # may_goto
    ],
)
def test_instructions_tell_the_first_kernel_that_has_them(instruction, version):
    assert [since for since, _ in instruction_needs(instruction)] == [version]


@pytest.mark.parametrize(
    "instruction",
    [
        Instruction(0, 0xDB, 1, 2, 0, 0),  # lock *(u64 *)(r1) += r2
        Instruction(0, 0xBF, 1, 2, 0, 0),
        Instruction(0, 0x85, 0, 0, 0, 1),
        Instruction(0, 0x95, 0, 0, 0, 0),
        Instruction(0, 0x15, 1, 0, 1, 0),
    ],
)
def test_plain_instructions_need_nothing(instruction):
    assert instruction_needs(instruction) == []


def test_constants_rule_branches_out():
    code = [
        Instruction(0, 0xB7, 1, 0, 0, 1),  # r1 = 1
        Instruction(1, 0xBF, 2, 1, 0, 0),  # r2 = r1
        Instruction(2, 0x15, 2, 0, 1, 0),  # if r2 == 0 goto 4
        Instruction(3, 0x05, 0, 0, 1, 0),  # goto 5
        Instruction(4, 0x85, 0, 0, 0, 1),
        Instruction(5, 0x95, 0, 0, 0, 0),
    ]
    known = dict(enumerate(code))

    assert reached(known, 0, 6, {}) == {0, 1, 2, 3, 5}
    assert reached(known, 0, 6, {0: 0}) == {0, 1, 2, 4, 5}


def walked(code: list[Instruction]) -> set[int]:
    """Reached slots if every branch may go both ways."""
    seen, work = set(), [0]
    while work:
        at = work.pop()
        if at in seen or not 0 <= at < len(code):
            continue
        seen.add(at)
        op = code[at].op
        if op == 0x95:
            continue
        work += [at + 1 + code[at].off] if op == 0x05 else [at + 1, at + 1 + code[at].off] if op == 0x1D else [at + 1]
    return seen


JUMPS = st.lists(st.tuples(st.sampled_from((0x05, 0x1D, 0x95, 0x79)), st.integers(-6, 6)), min_size=1, max_size=30)


@given(JUMPS)
def test_without_constants_every_path_is_walked(rows):
    code = [Instruction(at, op, 1, 2, off if op != 0x79 else 0, 0) for at, (op, off) in enumerate(rows)]

    assert reached(dict(enumerate(code)), 0, len(code), {}) == walked(code)


# ---------------------------------------------------------------------------------------------- hostile objects


def test_what_is_no_object_is_an_image_error():
    for data in (b"", b"\x7fELF", bytes(5000)):
        with pytest.raises(ImageError):
            requirements(data)


@given(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=40))
def test_a_broken_object_is_an_image_error_or_understood(changes):
    data = bytearray(compiled(RING))
    for place, byte in changes:
        data[int(place * len(data))] = byte
    with suppress(ImageError):
        requirements(bytes(data))


def test_an_object_is_read_in_50_ms():
    from igrun import data as packaged
    from igrun.image import unpack
    from igrun.oci.store import Store

    root = packaged.gadgets()
    if root is None:
        pytest.skip("no bundled gadgets: igrun is not installed")
    with Store.open(root, writable=False) as store:
        elf = unpack(store, "trace_open:latest", "amd64").ebpf
    requirements(elf)
    best = min(timed(elf) for _ in range(5))

    assert best < 0.05


def timed(elf: bytes) -> float:
    start = time.process_time()
    requirements(elf)
    return time.process_time() - start


# ---------------------------------------------------------------------------------------------- memory


def spec(type_: int, key: int, value: int, entries: int, flags: int = 0) -> MapSpec:
    return MapSpec("m", type_, key, value, entries, flags)


@pytest.mark.parametrize(
    ("map_", "expected"),
    [
        (spec(2, 4, 8, 10), Memory(80)),
        (spec(2, 4, 5, 10), Memory(80)),
        (spec(2, 4, 8, 10, 1 << 10), Memory(8192)),
        (spec(1, 4, 4, 1000), Memory(1024 * 16 + 1000 * 64, 72)),
        (spec(1, 4, 4, 1000, 1), Memory(1024 * 16 + 1000 * 72, 0, True)),
        (spec(9, 4, 4, 1000), Memory(1024 * 16 + 1000 * 64)),
        (spec(5, 4, 4, 8), Memory(8 * 16 + 8 * 64, 64)),
        (spec(6, 4, 12, 3), Memory(24, 48)),
        (spec(7, 4, 1016, 100), Memory(128 * 8 + 100 * 1032)),
        (spec(27, 0, 0, 8192), Memory(5 * 4096 + 7 * 8)),
        (spec(4, 4, 4, 0), Memory(0, 8)),
        (spec(29, 4, 8, 0), None),
    ],
)
def test_memory_is_that_of_the_kernel(map_, expected):
    assert memory(map_, map_.max_entries) == expected


# ---------------------------------------------------------------------------------------------- real kernels

SERIES = {"5.10": (5, 10), "6.1": (6, 1), "6.12": (6, 12)}


@cache
def kernel_btf(series: str):
    """The BTF of a Debian kernel."""
    from io import BytesIO

    from elftools.elf.elffile import ELFFile

    from igrun.btf import Btf
    from tests.vm import kernels

    try:
        kernel = kernels.fetch(series)
    except kernels.KernelUnavailableError as error:
        pytest.skip(f"no kernel to hold the tables against: {error}")
    section = ELFFile(BytesIO(kernel.vmlinux.read_bytes())).get_section_by_name(".BTF")
    return Btf.parse(section.data())


def enumerators(series: str, name: str, prefix: str) -> dict[int, str]:
    found = max(kernel_btf(series).enumerations(name), key=lambda one: len(one.members))
    return {
        value: text.removeprefix(prefix).lower() for text, value in reversed(found.members) if not text.startswith("__")
    }


LISTS = [
    ("bpf_func_id", "BPF_FUNC_", v.HELPER_SINCE),
    ("bpf_map_type", "BPF_MAP_TYPE_", v.MAP_SINCE),
    ("bpf_prog_type", "BPF_PROG_TYPE_", v.PROGRAM_SINCE),
    ("bpf_attach_type", "BPF_", v.ATTACH_SINCE),
]


@pytest.mark.parametrize("series", SERIES)
@pytest.mark.parametrize(("name", "prefix", "table"), LISTS)
def test_a_kernel_has_what_the_table_gives_it_and_nothing_else(series, name, prefix, table):
    there = set(enumerators(series, name, prefix))

    told = {number for number in range(table[-1][0] + 1) if v.since(table, number) <= SERIES[series]}

    assert there - {0} == told - {0}


@pytest.mark.parametrize("series", [*SERIES, "newest"])
def test_helpers_and_types_are_called_as_in_the_kernel(series):
    helpers = enumerators(series, "bpf_func_id", "BPF_FUNC_")
    known = v.HELPERS.split()
    assert {number: known[number] for number in helpers} == helpers

    types = v.PROGRAM_TYPES.split()
    assert {number: types[number] for number in enumerators(series, "bpf_prog_type", "BPF_PROG_TYPE_")} == enumerators(
        series, "bpf_prog_type", "BPF_PROG_TYPE_"
    )
    attach = v.ATTACH_TYPES.split()
    there = enumerators(series, "bpf_attach_type", "BPF_")
    assert {number: attach[number] for number in there if number < len(attach)} == {
        number: name for number, name in there.items() if number < len(attach)
    }


def test_no_helper_is_newer_than_the_table():
    assert max(enumerators("newest", "bpf_func_id", "BPF_FUNC_")) == v.HELPER_SINCE[-1][0]


@pytest.mark.parametrize("series", SERIES)
def test_iterators_are_there_from_their_version_on(series):
    btf = kernel_btf(series)
    there = {name for name in v.ITERATORS if btf.find(f"bpf_iter__{name}") is not None}

    assert there == {name for name, since in v.ITERATORS.items() if since <= SERIES[series]}


# Functions that the kernel had before it let programs call them
OLDER = {"bpf_throw"}


@pytest.mark.parametrize("series", SERIES)
def test_no_kernel_has_a_kfunc_before_its_version(series):
    from igrun.btf import TypeKind

    there = {one.name for one in kernel_btf(series).of_kind(TypeKind.FUNC)}
    early = {name for name, since in v.kfunc_table().items() if since > SERIES[series] and name in there}

    assert early - OLDER == set()


def test_most_kfuncs_are_there_in_the_newest_kernel():
    from igrun.btf import TypeKind

    there = {one.name for one in kernel_btf("newest").of_kind(TypeKind.FUNC)}
    known = [name for name in v.kfunc_table() if not name.endswith("*")]

    assert sum(name in there for name in known) > len(known) * 0.8


def test_a_version_of_an_enumerator():
    assert v.enumerator_since("bpf_func_id", "BPF_FUNC_ringbuf_reserve") == (5, 8)
    assert v.enumerator_since("bpf_attach_type", "BPF_TRACE_KPROBE_MULTI") == (5, 18)
    assert v.enumerator_since("bpf_func_id", "BPF_FUNC_nonsense") is None
    assert v.enumerator_since("other", "X") is None
    assert v.helper_name(999) == "helper 999"
    assert struct.calcsize("<BBhi") == 8


def test_what_a_loader_does_is_told_as_it_does_it():
    from igrun import load
    from igrun import requirements as told

    for name in ("LOST_SUFFIX", "BOOT_CLOCK", "DEFAULT_ENTRIES", "SIZELESS"):
        assert getattr(load, name) == getattr(told, name)


def test_relocations_count_for_every_program_that_gets_to_them():
    source = """
static __attribute__((noinline)) int inner(struct task_struct *task)
{
	return __builtin_preserve_access_index(&task->tgid) != 0;
}

static __attribute__((noinline)) int outer(struct task_struct *task)
{
	return inner(task) + 1;
}

SEC("raw_tp/sys_enter") int calls(void *ctx) { return outer(ctx); }
SEC("raw_tp/sys_enter") int plain(void *ctx) { return 0; }
SEC("raw_tp/sys_enter") int itself(struct task_struct *task)
{
	return __builtin_preserve_access_index(&task->pid) != 0;
}
"""
    programs = {"calls", "plain", "itself"}

    assert Code.of(compiled(source)).relocated() & programs == {"calls", "itself"}
