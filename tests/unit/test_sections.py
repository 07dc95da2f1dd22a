"""The table of program types."""

import re
from pathlib import Path

import pytest

from igrun.choosing import NETWORK, TRACING
from igrun.sections import TYPES, program_type, sleeps

VMLINUX = Path(__file__).parents[2] / "sdk" / "include" / "vmlinux" / "amd64" / "vmlinux.h"


@pytest.mark.parametrize(
    ("section", "row"),
    [
        ("tracepoint/syscalls/sys_enter_openat", "tracepoint/"),
        ("kprobe/vfs_read", "kprobe/"),
        ("kprobe.multi/vfs_*", "kprobe.multi/"),
        ("fentry.s/bpf_fentry_test1", "fentry/"),
        ("socket1", "socket"),
        ("classifier/ingress/drop", "classifier/"),
        ("cgroup/connect4", "cgroup/connect4"),
        ("cgroup/sock_create", "cgroup/sock_create"),
        ("sk_skb/stream_verdict/one", "sk_skb/stream_verdict"),
        ("xdp.frags", "xdp.frags"),
        ("struct_ops.s/init", "struct_ops/"),
        ("usdt.s//usr/lib/libc.so.6:libc:setjmp", "usdt/"),
    ],
)
def test_a_section_is_of_the_longest_row_that_fits(section, row):
    found = program_type(section)

    assert found is not None and found.section == row


@pytest.mark.parametrize(
    "section", ["", "kprobe", "tracepoint/", "kprobe.s/x", "tcp/x", "program1", "maps", "uprobe.x/f:g"]
)
def test_another_section_is_of_no_row(section):
    assert program_type(section) is None


def test_a_section_says_if_its_program_sleeps():
    assert sleeps("lsm.s/file_open") and not sleeps("lsm/file_open")


def test_no_section_is_listed_twice():
    assert len({row.section for row in TYPES}) == len(TYPES)


def test_every_number_is_one_of_the_kernels():
    text = VMLINUX.read_text()
    kinds = {int(number) for number in re.findall(r"\tBPF_PROG_TYPE_\w+ = (\d+),", text)}
    places = {
        int(n)
        for n in re.findall(
            r"\tBPF_(?:CGROUP|SK|XDP|TRACE|LSM|STRUCT|TCX|NETKIT|FLOW|NETFILTER|MODIFY)_?\w* = (\d+),", text
        )
    }
    newer = {57}  # BPF_TRACE_UPROBE_SESSION, Linux 6.13

    assert {row.type for row in TYPES} <= kinds
    assert {row.attach for row in TYPES if row.attach is not None} <= places | newer


def test_every_type_that_needs_more_than_cap_bpf_asks_for_it():
    alone = {1, 21, 31}  # SOCKET_FILTER, SK_REUSEPORT, SYSCALL

    assert {row.type for row in TYPES} - alone == (TRACING | NETWORK) & {row.type for row in TYPES}
