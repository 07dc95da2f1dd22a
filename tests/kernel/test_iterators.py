"""Iterators of every kind that the kernel has."""

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from igrun.errors import AttachError, MetadataError, UnsupportedError
from igrun.readers import IteratorReader
from tests.counting import close_and_check

pytestmark = pytest.mark.kernel

WALK = """
struct row {
	__u64 number;
	__u64 first;
};
struct walk_context {
	struct bpf_iter_meta *meta;
	%s
};

SEC("%s")
int walk(struct walk_context *ctx)
{
	struct bpf_iter_meta *meta = ctx->meta;
	struct row row = { .number = meta->seq_num };

	%s
	bpf_seq_write(meta->seq, &row, sizeof(row));
	return 0;
}
GADGET_ITER(rows, row, walk);
"""
TABLE = """
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8);
	__type(key, __u32);
	__type(value, __u64);
} table SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, __u64);
} storage SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_SOCKMAP);
	__uint(max_entries, 8);
	__type(key, __u32);
	__type(value, __u32);
} sockets SEC(".maps");
"""
MAPS = {"bpf_map_elem": "table", "bpf_sk_storage_map": "storage", "sockmap": "sockets"}
KINDS = """
task task_file task_vma bpf_map bpf_prog bpf_link ksym cgroup netlink tcp udp unix ipv6_route kmem_cache dmabuf
bpf_map_elem bpf_sk_storage_map sockmap
"""
# There need be none of these; most kinds end with a row for nothing
LEAST = {"bpf_link": 1, "dmabuf": 0}


def walking(section: str, *, member: str = "", body: str = "") -> str:
    target = MAPS.get(section.partition("/")[2])
    end = f"GADGET_ITER_TARGET_MAP(walk, {target});" if target else ""
    return (TABLE if target else "") + WALK % (member, section, body) + end


def rows_of(started) -> list[tuple[int, int]]:
    program = started.plan.program
    (iterator,) = program.iterators
    reader = IteratorReader(iterator, program.sources["rows"], started.loaded)
    try:
        return list(struct.iter_unpack("=QQ", bytes(reader.fetch().memory)))
    finally:
        reader.close()


@contextmanager
def something_to_find(started, kind: str) -> Iterator[None]:
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("::1", 0), family=socket.AF_INET6))
        stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)).bind(("127.0.0.1", 0))
        stack.enter_context(socket.socket(socket.AF_UNIX)).bind(b"\0igrun-iterator")
        client = stack.enter_context(socket.create_connection(server.getsockname()[:2]))
        stack.enter_context(server.accept()[0])
        number = struct.pack("=I", client.fileno())
        if kind == "bpf_map_elem":
            started.loaded.map("table").update(bytes(4), bytes(8))
        elif kind == "bpf_sk_storage_map":
            started.loaded.map("storage").update(number, bytes(8))
        elif kind == "sockmap":
            started.loaded.map("sockets").update(bytes(4), number)
        yield


@pytest.mark.fires
@pytest.mark.parametrize("kind", KINDS.split())
def test_an_iterator_walks_what_there_is_and_leaves_nothing(start, kind):
    started = start(walking(f"iter/{kind}"))

    with something_to_find(started, kind):
        rows = rows_of(started)

    assert len(rows) >= LEAST.get(kind, 2)
    close_and_check(started)


@pytest.mark.fires
def test_an_iterator_that_sleeps(start):
    started = start(walking("iter.s/task"))

    assert len(rows_of(started)) > 1


TASK = {
    "member": "struct task_struct *task;",
    "body": "struct task_struct *t = ctx->task; if (!t) return 0; row.first = t->tgid;",
}


def with_options(**options: object) -> str:
    inside = ", ".join(f"iter.{key}: {value}" for key, value in options.items())
    return f"name: test\nprograms: {{walk: {{{inside}}}}}\n"


@pytest.mark.parametrize("key", ["pid", "tid"])
def test_the_tasks_of_one_process(start, key):
    started = start(walking("iter/task", **TASK), yaml=with_options(**{key: os.getpid()}))

    assert {first for _, first in rows_of(started)} == {os.getpid()}


def test_of_a_process_and_of_a_task_one_is_enough(start):
    with pytest.raises(MetadataError, match=r"there is iter\.pid as well"):
        start(walking("iter/task", **TASK), yaml=with_options(pid=1, tid=1))


def test_the_order_and_the_root_of_a_walk_through_cgroups(start):
    whole = len(rows_of(start(walking("iter/cgroup"))))
    one = len(rows_of(start(walking("iter/cgroup"), yaml=with_options(order="self"))))
    there = len(rows_of(start(walking("iter/cgroup"), yaml=with_options(order="self", cgroup="/"))))

    assert one == there == 2 <= whole  # the last row is the end


def test_a_cgroup_that_is_not_there_is_told(start):
    with pytest.raises(AttachError, match="there is no cgroup '/nowhere/at/all'"):
        start(walking("iter/cgroup"), yaml=with_options(cgroup="/nowhere/at/all"))


def test_an_iterator_over_a_map_needs_its_map(start):
    with pytest.raises(AttachError, match="no map to walk") as error:
        start(WALK % ("", "iter/bpf_map_elem", ""))

    assert "GADGET_ITER_TARGET_MAP(walk" in error.value.hint


def test_an_unknown_kind_is_told(start):
    with pytest.raises(UnsupportedError, match="no iterator 'nothing'"):
        start(walking("iter/nothing"))


def test_this_kernel_has_no_kind_that_is_not_tested():
    text = Path("/sys/kernel/btf/vmlinux").read_bytes().decode("latin-1")
    kinds = {name.removeprefix("bpf_iter__") for name in text.split("\0") if name.startswith("bpf_iter__")}

    assert {name for name in kinds if "__" not in name} <= set(KINDS.split())
