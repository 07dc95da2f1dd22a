"""Loading and attaching: every tracing program type, and what is said where one cannot be."""

import re
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from igrun import attach, plugins
from igrun.attach import kprobe
from igrun.bpfmap import HASH, BpfMap
from igrun.choosing import set_type
from igrun.errors import AttachError, GadgetError, ImageError, MetadataError, UnsupportedError
from igrun.libbpf import BpfObject
from igrun.load import has_boot_clock, has_ring_buffers, without_boot_clock
from igrun.sections import TYPES
from tests.counting import counting, hits, mine

pytestmark = pytest.mark.kernel


def open_something() -> None:
    Path("/dev/null").open("rb").close()


FIRES = [
    ("tracepoint/syscalls/sys_enter_openat", "void *ctx"),
    ("tp/syscalls/sys_enter_openat", "void *ctx"),
    ("raw_tracepoint/sys_enter", "void *ctx"),
    ("raw_tp/sys_enter", "void *ctx"),
    ("tp_btf/sys_enter", "__u64 *ctx"),
]
FIRES_IN_GUEST = [
    ("kprobe/do_sys_openat2", "struct pt_regs *ctx"),
    ("kretprobe/do_sys_openat2", "struct pt_regs *ctx"),
    ("kprobe/do_sys_openat2+0x0", "struct pt_regs *ctx"),
    ("kprobe/sys_openat", "struct pt_regs *ctx"),
    ("fentry/do_sys_openat2", "__u64 *ctx"),
    ("fexit/do_sys_openat2", "__u64 *ctx"),
    ("lsm/file_open", "__u64 *ctx"),
]


@pytest.mark.fires
@pytest.mark.parametrize(("section", "arguments"), FIRES)
def test_a_program_runs_when_what_it_is_attached_to_happens(start, section, arguments):
    started = start(counting(section, arguments), constants=mine())

    open_something()

    assert hits(started) > 0


@pytest.mark.fires
@pytest.mark.guest
@pytest.mark.parametrize(("section", "arguments"), FIRES_IN_GUEST)
def test_a_program_that_this_machine_may_refuse_runs_in_a_guest(start, section, arguments):
    started = start(counting(section, arguments), constants=mine())

    open_something()

    assert hits(started) > 0


def test_nothing_runs_after_detaching(start):
    started = start(counting("raw_tp/sys_enter"), constants=mine())
    started.loaded.detach()
    before = hits(started)

    open_something()

    assert hits(started) == before


SAMPLES = """
name: test
programs:
  cpu:
    perf.type: software
    perf.config: count_sw_cpu_clock
    perf.sampleType: sample_raw
    sampler.frequency: 99
"""


@pytest.mark.fires
def test_a_perf_event_program_runs_as_often_as_asked_on_each_cpu(start):
    started = start(counting("perf_event/cpu"), constants=mine(), yaml=SAMPLES)
    assert len(started.loaded.links) == len(started.plan.host.online_cpus)

    end = time.process_time() + 0.5
    while time.process_time() < end:
        pass

    assert 25 < hits(started) < 80


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("perf.type: software", "perf.type not specified for program 'cpu'"),
        ("perf.config: count_sw_cpu_clock", "perf.config not specified for program 'cpu'"),
        ("sampler.frequency: 99", "sampler.frequency not specified for program 'cpu'"),
    ],
)
def test_every_option_of_a_perf_event_program_is_needed(start, line, message):
    with pytest.raises(MetadataError, match=re.escape(message)):
        start(counting("perf_event/cpu"), yaml=SAMPLES.replace(f"    {line}\n", ""))


# ------------------------------------------------------------------------------------------------ refusals


def test_an_unknown_tracepoint_is_answered_with_its_neighbours(start):
    with pytest.raises(AttachError, match="there is no such tracepoint") as error:
        start(counting("tracepoint/syscalls/sys_enter_opena"))

    assert "syscalls/sys_enter_openat" in error.value.hint
    assert error.value.program == "count"
    assert error.value.section == "tracepoint/syscalls/sys_enter_opena"


def test_an_unknown_group_is_answered_with_its_neighbours(start):
    with pytest.raises(AttachError) as error:
        start(counting("tracepoint/syscall/sys_enter_openat"))

    assert "syscalls/sys_enter_openat" in error.value.hint


def test_an_unknown_raw_tracepoint_is_answered_with_its_neighbours(start):
    with pytest.raises(AttachError, match="there is no such tracepoint") as error:
        start(counting("raw_tp/sched_switsh"))

    assert "sched_switch" in error.value.hint


def test_an_unknown_target_of_tp_btf_is_answered_with_its_neighbours(start):
    with pytest.raises(AttachError, match="no such tracepoint") as error:
        start(counting("tp_btf/sched_switsh", "__u64 *ctx"))

    assert "sched_switch" in error.value.hint


def test_an_iterator_that_this_kernel_lacks_is_told(start):
    with pytest.raises(UnsupportedError, match="this kernel has no iterator 'nothing'"):
        start(
            """
SEC("iter/nothing")
int walk(void *ctx)
{
	return 0;
}
"""
        )


def test_an_unknown_section_names_program_and_section():
    hook = SimpleNamespace(program="p", section="kprobe.many/foo*")

    with pytest.raises(UnsupportedError, match=r"program 'p': section 'kprobe\.many/foo\*'") as error:
        attach.module_for(hook)

    assert "kprobe/" in error.value.hint


def test_a_program_of_an_unknown_section_is_not_loaded(start):
    with pytest.raises(UnsupportedError, match="section 'mystery' of program 'count'"):
        start(counting("mystery"))


def test_a_kernel_without_kprobes_is_told(start, monkeypatch):
    monkeypatch.setattr(kprobe, "KPROBE_PMU", Path("/sys/bus/event_source/devices/no_kprobe"))
    with pytest.raises(UnsupportedError, match="CONFIG_KPROBES"):
        start(counting("kprobe/do_sys_openat2", "struct pt_regs *ctx"))


def test_a_kernel_that_refuses_fentry_is_told(start):
    try:
        started = start(counting("fentry/do_sys_openat2", "__u64 *ctx"), constants=mine())
    except UnsupportedError as error:
        assert "refuses programs of this type" in str(error)
        assert "fentry/do_sys_openat2" in str(error)
    else:
        open_something()
        assert hits(started) > 0


@pytest.mark.guest
def test_an_unknown_function_is_answered_with_its_neighbours(start):
    with pytest.raises(AttachError, match="no such function") as error:
        start(counting("kprobe/do_sys_opena2", "struct pt_regs *ctx"))

    assert "do_sys_openat2" in error.value.hint


@pytest.mark.guest
def test_an_unknown_fentry_function_is_answered_with_its_neighbours(start):
    with pytest.raises(AttachError, match="no such function") as error:
        start(counting("fentry/do_sys_opena2", "__u64 *ctx"))

    assert "do_sys_openat2" in error.value.hint


# ------------------------------------------------------------------------------------------------ what a plan says


def test_an_attach_point_of_the_plan_replaces_the_sections(start):
    started = start(
        counting("tracepoint/syscalls/sys_enter_nothing"),
        constants=mine(),
        prepare=lambda plan: plan.attach_to.update(count="syscalls/sys_enter_openat"),
    )

    open_something()

    assert hits(started) > 0


def test_the_target_of_a_btf_program_can_be_replaced_too(start):
    started = start(
        counting("tp_btf/nothing_of_this_name", "__u64 *ctx"),
        constants=mine(),
        prepare=lambda plan: plan.attach_to.update(count="sys_enter"),
    )

    open_something()

    assert hits(started) > 0


UNLOADABLE = """
SEC("tracepoint/nothing/nothing")
int bad(void *ctx)
{
	return *(int *)0;
}
"""


@pytest.mark.parametrize("how", ["attach_to", "disabled"])
def test_a_disabled_program_is_not_even_loaded(start, how):
    def prepare(plan):
        if how == "disabled":
            plan.disabled.add("bad")
        else:
            plan.attach_to["bad"] = "gadget_program_disabled"

    started = start(counting("raw_tp/sys_enter") + UNLOADABLE, constants=mine(), prepare=prepare)

    assert [hook.program for hook in started.loaded.hooks] == ["count"]


def test_programs_are_attached_in_the_objects_order(start):
    started = start(
        """
SEC("raw_tp/sys_enter") int zebra(void *ctx) { return 0; }
SEC("tracepoint/syscalls/sys_enter_openat") int ant(void *ctx) { return 0; }
SEC("raw_tp/sys_exit") int bee(void *ctx) { return 0; }
SEC("raw_tp/sys_exit") int moth(void *ctx) { return 0; }
"""
    )

    assert [hook.program for hook in started.loaded.hooks] == ["zebra", "ant", "bee", "moth"]


def test_sections_that_libbpf_does_not_know_get_their_program_type(compiled):
    object_ = BpfObject.open(
        compiled(
            """
SEC("socket1") int filter(struct __sk_buff *skb) { return 0; }
SEC("classifier/ingress/one") int shaper(struct __sk_buff *skb) { return 0; }
SEC("perf_event/cpu") int sample(void *ctx) { return 0; }
"""
        )
    )
    for program in object_.programs.values():
        set_type(program)
    object_.load()

    assert {name: program.type for name, program in object_.programs.items()} == {"filter": 1, "shaper": 3, "sample": 7}
    object_.close()


TABLES = """
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 0);
	__type(key, __u32);
	__type(value, __u64);
} later SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 7);
	__type(key, __u32);
	__type(value, __u64);
} table SEC(".maps");
const volatile __u32 table_max_entries = 9;

SEC("raw_tp/sys_enter")
int use(void *ctx)
{
	__u32 key = bpf_get_prandom_u32();
	__u64 value = table_max_entries;

	if (bpf_map_lookup_elem(&later, &key))
		bpf_map_update_elem(&table, &key, &value, 0);
	return 0;
}
"""


def test_a_map_gets_the_size_that_a_variable_says(start):
    assert start(TABLES).loaded.map("table").max_entries == 9
    assert start(TABLES, constants={"table_max_entries": 33}).loaded.map("table").max_entries == 33


def test_the_plans_size_wins(start):
    started = start(TABLES, prepare=lambda plan: plan.sizes.update(table=55))

    assert started.loaded.map("table").max_entries == 55


def test_a_map_without_a_size_gets_one(start):
    assert start(TABLES).loaded.map("later").max_entries == 1024


def test_a_map_that_grows_with_its_sockets_gets_no_size(start):
    storage = """
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, __u64);
} of_socket SEC(".maps");
"""

    assert start(TABLES + storage).loaded.map("of_socket").max_entries == 0


def test_a_map_of_ours_takes_the_place_of_the_objects(start):
    ours = BpfMap.create(HASH, "ours", 4, 8, 20)

    started = start(TABLES, prepare=lambda plan: plan.maps.update(table=ours))

    started.loaded.map("table").update(bytes(4), bytes(8))
    assert ours.lookup(bytes(4)) == bytes(8)
    ours.close()


def test_a_map_that_does_not_fit_is_refused(start):
    ours = BpfMap.create(HASH, "ours", 8, 8, 20)

    with pytest.raises(ImageError, match="keys of 4 bytes"):
        start(TABLES, prepare=lambda plan: plan.maps.update(table=ours))
    ours.close()


def test_a_constant_that_is_too_long_is_refused(start):
    with pytest.raises(ImageError, match="has 4 bytes, not 5"):
        start(TABLES, constants={"table_max_entries": b"12345"})


def test_an_unknown_constant_is_refused(start):
    with pytest.raises(ImageError, match="no variable 'nobody'"):
        start(TABLES, constants={"nobody": 1})


def test_this_kernel_has_ring_buffers():
    assert has_ring_buffers()


PINNED = """
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} shared_by_name SEC(".maps");
"""


def test_maps_are_pinned_by_name_where_the_object_asks(compiled, tmp_path):
    path = tmp_path / "object"
    path.write_bytes(compiled(PINNED))
    code = """
    import sys
    from pathlib import Path
    from igrun import mounts
    from igrun.libbpf import BpfObject
    mounts.mount_missing()
    object_ = BpfObject.open(Path(sys.argv[1]).read_bytes())
    object_.load()
    object_.maps["shared_by_name"].loaded().update(bytes(4), b"12345678")
    again = BpfObject.open(Path(sys.argv[1]).read_bytes())
    again.load()
    print(again.maps["shared_by_name"].loaded().lookup(bytes(4)))
    Path("/sys/fs/bpf/shared_by_name").unlink()
    """
    command = ["unshare", "--mount", sys.executable, "-c", textwrap.dedent(code), path]
    done = subprocess.run(command, capture_output=True, text=True)

    assert done.stdout == "b'12345678'\n", done.stderr


def test_a_failed_load_leaves_nothing_in_the_kernel(start):
    before = programs()

    with pytest.raises(GadgetError):
        start(counting("raw_tp/sys_enter") + UNLOADABLE)

    assert settled(before)


def test_a_killed_process_leaves_nothing_in_the_kernel(compiled, tmp_path):
    before = programs()
    path = tmp_path / "object"
    path.write_bytes(compiled(counting("tracepoint/syscalls/sys_enter_openat")))
    code = """
    import sys, os, signal
    from pathlib import Path
    from types import SimpleNamespace
    from igrun.attach import tracing
    from igrun.libbpf import BpfObject
    object_ = BpfObject.open(Path(sys.argv[1]).read_bytes())
    object_.load()
    at = "syscalls/sys_enter_openat"
    handle = object_.programs["count"]
    hook = SimpleNamespace(program="count", section=f"tp/{at}", attach_to=at, options={}, handle=handle)
    (place,) = tracing.places(hook, None)
    link = tracing.attach(hook, place)
    print("attached", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), path], capture_output=True, text=True)

    assert done.stdout == "attached\n", done.stderr
    assert settled(before)


def programs() -> str:
    return subprocess.run(["bpftool", "prog", "show", "name", "count"], capture_output=True, text=True).stdout


def settled(before: str) -> bool:
    """True once the programs are the same as before; the kernel frees them after a grace period."""
    end = time.monotonic() + 5
    while programs() != before and time.monotonic() < end:
        time.sleep(0.05)
    return programs() == before


def test_a_third_party_family_attaches_its_own_sections(start, tmp_path, monkeypatch):
    (tmp_path / "raw_family.py").write_text(
        "from igrun.attach.tracing import raw_tracepoint\n"
        "from igrun.sections import ProgramType\n"
        "SECTIONS = (ProgramType('own/', 'raw_family', 17, None, 'name'),)\n"
        "def places(hook, target): return (hook.attach_to,)\n"
        "attach = raw_tracepoint\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    families = plugins.families(["raw_family"])
    started = start(
        counting("own/sys_enter"), constants=mine(), prepare=lambda plan: setattr(plan, "families", families)
    )
    open_something()

    assert hits(started) > 0


def test_every_family_of_the_table_is_a_module():
    for row in TYPES:
        module = attach.module_of(row)
        assert callable(module.places) and callable(module.attach)


def test_calls_of_the_boot_clock_become_a_zero_where_the_kernel_has_none(compiled):
    elf = compiled(counting("raw_tp/sys_enter", body="if (!bpf_ktime_get_boot_ns()) return 0;"))
    object_ = BpfObject.open(without_boot_clock(elf))
    object_.load()
    link = object_.programs["count"].attach_raw_tracepoint("sys_enter")
    open_something()
    link.close()

    assert has_boot_clock()
    assert object_.maps["hits"].loaded().lookup(bytes(4)) == bytes(8)
    object_.close()
