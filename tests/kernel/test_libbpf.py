"""libbpf through ctypes: objects, maps, its log and its errors."""

import itertools
import logging
import os
import subprocess
import sys
import textwrap
from errno import EBADF, EINVAL, EPERM
from types import SimpleNamespace

import pytest

from igrun import bpflib, clib, mounts
from igrun.bpflib import library, reason
from igrun.bpfmap import HASH, LRU_HASH, LRU_PERCPU_HASH, PERCPU_ARRAY, PERCPU_HASH, BpfMap, possible_cpus
from igrun.choosing import refuse_without_capabilities
from igrun.dataclass import replace
from igrun.errors import KernelError, UnsupportedError, VerifierError
from igrun.host import Host
from igrun.libbpf import BpfObject

pytestmark = pytest.mark.kernel

COUNTER = """
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16);
	__type(key, __u32);
	__type(value, __u64);
} hits SEC(".maps");

const volatile __u64 step = 1;

SEC("raw_tracepoint/sys_enter")
int count(void *ctx)
{
	__u32 zero = 0;
	__u64 *hit = bpf_map_lookup_elem(&hits, &zero);

	if (hit)
		__sync_fetch_and_add(hit, step);
	else
		bpf_map_update_elem(&hits, &zero, (const void *)&step, 0);
	return 0;
}
"""
# The verifier says the most about what it walks through many times.
REFUSED = """
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16);
	__type(key, __u32);
	__type(value, __u64);
} hits SEC(".maps");

SEC("raw_tracepoint/sys_enter")
int careless(void *ctx)
{
	__u32 key = 0;
	__u64 sum = 0;

#pragma unroll
	for (int i = 0; i < 100; i++) {
		__u64 *hit = bpf_map_lookup_elem(&hits, &key);

		if (hit)
			sum += *hit;
		key += sum;
	}
	return *(__u64 *)bpf_map_lookup_elem(&hits, &key);
}
"""


def run_python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **env})


def test_importing_does_not_look_for_libbpf():
    done = run_python("import igrun.libbpf, igrun.load, igrun.events; print('fine')", IGRUN_LIBBPF="/nowhere.so")

    assert done.stdout == "fine\n", done.stderr


@pytest.mark.parametrize("place", ["/nowhere/libbpf.so.1", "libc.so.6"])
def test_without_libbpf_the_error_names_the_package(place):
    done = run_python(
        """
        from igrun.bpflib import library
        from igrun.errors import GadgetError
        try:
            library()
        except GadgetError as error:
            print(error, "|", error.hint)
        """,
        IGRUN_LIBBPF=place,
    )

    assert place in done.stdout, done.stderr
    assert "apt install libbpf1" in done.stdout


def test_every_declared_function_is_there():
    missing = [name for name in library()._lines if not library().has(name)]

    assert not missing


def test_a_function_has_the_types_of_its_prototype():
    import ctypes as C

    returns, takes = clib.types_of("const char *name_of(const void *buf, size_t size, enum kind k, const char *s);")

    assert returns is C.c_char_p
    assert takes == [C.c_void_p, C.c_size_t, C.c_int, C.c_char_p]


def test_a_program_runs_while_its_link_is_open(compiled):
    object_ = BpfObject.open(compiled(COUNTER))
    assert object_.programs["count"].section == "raw_tracepoint/sys_enter"
    section = object_.section(".rodata")
    assert section is not None
    section.write(0, (5).to_bytes(8, "little"))
    object_.load()
    link = object_.programs["count"].attach_raw_tracepoint("sys_enter")
    hits = object_.maps["hits"].loaded()
    os.getppid()

    link.close()
    link.close()
    clib.wait_for_running_programs()
    seen = hits.lookup(bytes(4))
    os.getppid()

    assert seen is not None
    assert int.from_bytes(seen, "little") % 5 == 0
    assert hits.lookup(bytes(4)) == seen
    object_.close()


def test_writing_past_a_section_is_refused(compiled):
    object_ = BpfObject.open(compiled(COUNTER))
    section = object_.section(".rodata")
    assert section is not None

    with pytest.raises(ValueError, match="bytes at 4"):
        section.write(4, bytes(8))
    object_.close()


def test_garbage_is_no_object():
    with pytest.raises(KernelError, match="open the BPF object"):
        BpfObject.open(b"\x7fELF and then nothing")


def test_a_refused_program_says_why_in_its_last_useful_line_and_keeps_the_whole_log(compiled):
    object_ = BpfObject.open(compiled(REFUSED))

    with pytest.raises(VerifierError) as refused:
        object_.load()

    object_.close()
    assert refused.value.program == "careless"
    assert "map_value_or_null" in str(refused.value)
    assert "processed" not in str(refused.value)
    assert len(refused.value.log) > 4096
    assert "processed" in refused.value.log


def test_statistics_are_no_reason():
    log = (
        "0: (79) r1 = *(u64 *)(r1 +0)\nR1 invalid mem access 'scalar'\nprocessed 1 insns (limit 1)\nstack depth 8+0\n\n"
    )

    assert reason(log) == "R1 invalid mem access 'scalar'"
    assert reason("") == ""


def test_what_libbpf_says_is_logged(compiled, caplog):
    with caplog.at_level(logging.DEBUG, logger="igrun.libbpf"):
        BpfObject.open(compiled(COUNTER)).close()

    assert any("raw_tracepoint/sys_enter" in record.message for record in caplog.records)
    assert {record.levelno for record in caplog.records} == {logging.DEBUG}


def test_a_negative_result_is_an_error_with_its_number():
    nobody = BpfMap(-1, "nobody", HASH, 4, 4, 1)

    with pytest.raises(KernelError, match="nobody") as error:
        nobody.update(bytes(4), bytes(4))

    assert error.value.errno == EBADF


def test_missing_capabilities_are_named():
    host = replace(Host.current(), capabilities=frozenset({"CAP_NET_ADMIN"}))

    hook = SimpleNamespace(handle=SimpleNamespace(type=5))  # BPF_PROG_TYPE_TRACEPOINT

    with pytest.raises(KernelError, match="missing CAP_BPF, CAP_PERFMON") as error:
        refuse_without_capabilities(host, [hook])

    assert error.value.errno == EPERM


HASHES = {"hash": HASH, "lru": LRU_HASH, "percpu": PERCPU_HASH, "lru_percpu": LRU_PERCPU_HASH}


@pytest.fixture(params=HASHES)
def table(request):
    # an LRU table gives entries up before it is full
    made = BpfMap.create(HASHES[request.param], "table", 4, 12, 4096 if "lru" not in request.param else 65536)
    for number in range(3000):
        made.update(number.to_bytes(4, "little"), number.to_bytes(12, "little").ljust(16, b"\0") * possible_cpus())
    yield made
    made.close()


def entries(keys: bytes, values: bytes) -> dict[int, int]:
    count = len(keys) // 4
    size = len(values) // count
    assert size in (12, 16 * possible_cpus())
    found = {
        int.from_bytes(keys[4 * i : 4 * i + 4], "little"): int.from_bytes(values[size * i : size * i + 12], "little")
        for i in range(count)
    }
    assert len(found) == count
    return found


ALL = {number: number for number in range(3000)}


@pytest.mark.parametrize("room", [0, 1, 7, 100])
def test_draining_takes_every_entry_once_even_if_a_bucket_has_more_than_the_room(table, room):
    assert entries(*table.drain(room)) == ALL
    assert list(table.keys()) == []


def test_draining_works_without_batch_operations(table, monkeypatch):
    without_batches(monkeypatch)

    assert entries(*table.drain()) == ALL
    assert list(table.keys()) == []


def without_batches(monkeypatch) -> None:
    """As before Linux 5.6."""
    for name in ("bpf_map_lookup_batch", "bpf_map_lookup_and_delete_batch"):
        monkeypatch.setattr(library(), name, lambda *_: -EINVAL)


@pytest.mark.parametrize("room", [0, 1, 7, 100])
def test_looking_up_a_batch_leaves_the_entries(table, room):
    assert entries(*table.lookup_batch(room)) == ALL
    assert len(list(table.keys())) == 3000


def test_looking_up_works_without_batch_operations(table, monkeypatch):
    without_batches(monkeypatch)

    assert entries(*table.lookup_batch()) == ALL
    assert len(list(table.keys())) == 3000


def test_keys_that_come_again_without_end_are_read_once(table, monkeypatch):
    without_batches(monkeypatch)
    monkeypatch.setattr(BpfMap, "keys", lambda self: itertools.cycle([bytes(4), b"\1\0\0\0"]))

    assert entries(*table.lookup_batch()) == {0: 0, 1: 1}
    assert entries(*table.drain()) == {0: 0, 1: 1}


def test_an_absent_key_has_no_value(table):
    assert table.lookup(b"\xff" * 4) is None
    assert not table.delete(b"\xff" * 4)
    assert table.delete(bytes(4))
    assert table.lookup(bytes(4)) is None


def test_a_per_cpu_value_has_one_part_for_each_cpu():
    counts = BpfMap.create(PERCPU_ARRAY, "counts", 4, 4, 1)

    value = counts.lookup(bytes(4))

    assert value == bytes(8 * possible_cpus())
    counts.close()


def test_a_map_is_told_by_its_descriptor(table):
    again = BpfMap.of_fd(table.fd, "again")

    assert (again.type, again.key_size, again.value_size, again.max_entries) == (
        table.type,
        4,
        12,
        table.max_entries,
    )


# ------------------------------------------------------------------------------------------------ tracefs


def test_tracefs_is_read_where_nobody_mounted_it_and_nobody_sees_it():
    before = mounts.Path("/proc/self/mounts").read_text()
    fd = mounts.detached("tracefs")
    try:
        assert int(mounts.read(fd, "events/sched/sched_switch/id")) > 0
        assert mounts.Path("/proc/self/mounts").read_text() == before
    finally:
        os.close(fd)


def test_before_linux_5_2_the_error_says_how_to_mount(monkeypatch):
    def unknown(*_: object) -> int:
        raise KernelError(38, "fsopen")  # ENOSYS

    monkeypatch.setattr(mounts, "syscall", unknown)

    with pytest.raises(UnsupportedError, match=r"Linux 5\.2") as error:
        mounts.detached("tracefs")

    assert "mount -t tracefs tracefs /sys/kernel/tracing" in error.value.hint


def test_missing_file_systems_are_mounted_on_request_and_only_once():
    code = """
    import subprocess
    from igrun import mounts
    for kind in ("tracefs", "debugfs", "bpf"):
        subprocess.run(["umount", "-a", "-t", kind], check=False)
    before = open("/proc/self/mounts").read()
    first = mounts.mount_missing()
    print(*sorted(map(str, first)))
    print(*mounts.mount_missing())
    mounts.unmount(first)
    print(open("/proc/self/mounts").read() == before)
    """
    command = ["unshare", "--mount", sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True)

    first, second, as_before = done.stdout.split("\n")[:3]
    assert set(first.split()) >= {"/sys/kernel/tracing", "/sys/fs/bpf"}, done.stderr
    assert second == ""
    assert as_before == "True"


def test_nothing_can_be_mounted_below_a_directory_that_is_no_root(tmp_path):
    with pytest.raises(KernelError, match="No such file or directory") as error:
        mounts.mount_missing(tmp_path)

    assert error.value.hint == f"HOST_ROOT must name the host's root directory, not {tmp_path}"


def test_waiting_for_programs_works_without_membarrier(monkeypatch):
    def unknown(*_: object) -> int:
        raise KernelError(38, "membarrier")

    monkeypatch.setattr(clib, "syscall", unknown)

    clib.wait_for_running_programs()


def test_the_last_warning_of_libbpf_is_told(compiled):
    bpflib.said.clear()
    bpflib.said.extend(["map 'm': failed to create: Invalid argument(-22)", "failed to load object 'gadget'"])

    assert bpflib.last_said() == "map 'm': failed to create: Invalid argument(-22)"
