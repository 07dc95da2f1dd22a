"""Images made on this machine run on an arm64 one: through the command, from the tar that carried them to JSON.

`make test-arm64` runs these, and beside them in the guest the tests of all gadgets that come with igrun.
"""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests.vm import kernels
from tests.vm.batch import PACKAGES
from tests.vm.guest import Guest, Output

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(PACKAGES not in os.environ, reason="guests of another machine: run by `make test-arm64`"),
]

GADGET = """\
// SPDX-License-Identifier: GPL-2.0
#include <vmlinux.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>
#include <gadget/buffer.h>
#include <gadget/common.h>
#include <gadget/filter.h>
#include <gadget/macros.h>
#include <gadget/types.h>

struct event {
	gadget_timestamp timestamp_raw;
	struct gadget_process proc;
	__s32 folder;
	__s64 result;
	char fname[64];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, struct event);
} calls SEC(".maps");

GADGET_TRACER_MAP(events, 1024 * 256);
GADGET_TRACER(removed, events, event);

SEC("kprobe/do_unlinkat")
int BPF_KPROBE(called, int folder, struct filename *name)
{
	struct event call = {};
	__u32 tid = bpf_get_current_pid_tgid();

	if (gadget_should_discard_data_current())
		return 0;
	call.folder = folder;
	bpf_probe_read_kernel_str(call.fname, sizeof(call.fname), BPF_CORE_READ(name, name));
	bpf_map_update_elem(&calls, &tid, &call, BPF_ANY);
	return 0;
}

SEC("kretprobe/do_unlinkat")
int BPF_KRETPROBE(returned, int result)
{
	__u32 tid = bpf_get_current_pid_tgid();
	struct event *call = bpf_map_lookup_elem(&calls, &tid);
	struct event *event;

	if (!call)
		return 0;
	event = gadget_reserve_buf(&events, sizeof(*event));
	if (event) {
		__builtin_memcpy(event, call, sizeof(*event));
		event->timestamp_raw = bpf_ktime_get_boot_ns();
		gadget_process_populate(&event->proc);
		event->result = result;
		gadget_submit_buf(ctx, &events, event, sizeof(*event));
	}
	bpf_map_delete_elem(&calls, &tid);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
"""

# Runs a gadget, acts once it is attached, ends it, and prints {"what": ..., "status": ..., "out": ..., "said": ...}.
INSIDE = """
import json, os, subprocess, sys

def ig(*arguments, act=None):
    command = [sys.executable, "-m", "igrun", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        said = ""
        while act and "running..." not in said and (line := process.stderr.readline()):
            said += line
        if act:
            act()
        out, rest = process.communicate()
    told = {"what": " ".join(arguments[:2]), "status": process.returncode, "out": out, "said": said + rest}
    print(json.dumps(told), flush=True)

def act():
    open("/run/opened", "w").close()
    subprocess.run(["cat", "/run/opened", "/run/absent"], stderr=subprocess.DEVNULL)
    os.unlink("/run/opened")
    subprocess.run(["rm", "-f", "/run/never-there"])

def run(name, *flags, seconds="4", act=act):
    ig("run", name, "--host", "-v", "-o", "json", "--timeout", seconds, *flags, act=act)

ig("image", "import", "/run/guest/removed.tar")
ig("image", "list", "-o", "json")
run("removed", "--verify-image=false")
run("trace_open", "--comm", "cat")
run("snapshot_process")
ig("check", "removed", "-o", "json", "--verify-image=false")
print(json.dumps({"what": "left", "status": 0, "out": subprocess.run(
    ["bpftool", "prog", "list", "-j"], capture_output=True, text=True).stdout, "said": os.uname().machine}))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the commands in the guest said, by what they did."""
    folder = tmp_path_factory.mktemp("removed")
    (folder / "program.bpf.c").write_text(GADGET)
    (folder / "gadget.yaml").write_text("name: removed\ndatasources:\n  removed: {}\n")
    script = f"""
        set -e
        mkdir -p /var/lib/ig
        mount -t tmpfs -o mode=755 store /var/lib/ig
        {sys.executable} -m igrun image build {folder} -t removed --local
        {sys.executable} -m igrun image export removed {folder}/removed.tar
    """
    alone = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script]
    subprocess.run(alone, check=True, stdout=subprocess.DEVNULL)
    files = {"removed.tar": (folder / "removed.tar").read_bytes()}
    packages = Path(os.environ[PACKAGES])
    env = {"PATH": "/usr/sbin:/usr/bin", "PYTHONPATH": str(packages), "HOME": "/root"}
    command = ["/usr/bin/python3", "-c", textwrap.dedent(INSIDE)]
    with Guest(kernels.fetch("arm64"), command, env=env, files=files, keep=[packages]) as guest:
        data = b"".join(event.data for event in guest.events() if isinstance(event, Output))
        assert guest.status == 0, data.decode() + guest.console()
    lines = [json.loads(line) for line in data.splitlines()]
    assert all(line["status"] == 0 for line in lines), lines
    return {line["what"]: line for line in lines}


def rows(line: dict[str, Any]) -> list[dict[str, Any]]:
    return [json.loads(row) for row in line["out"].splitlines()]


def test_a_kprobe_sees_the_arguments_and_the_result(told):
    mine = {row["fname"]: row for row in rows(told["run removed"]) if row["fname"].startswith("/run/")}

    assert set(mine) == {"/run/opened", "/run/never-there"}
    assert (mine["/run/opened"]["folder"], mine["/run/opened"]["result"]) == (-100, 0)
    assert (mine["/run/never-there"]["result"], mine["/run/never-there"]["proc"]["comm"]) == (-2, "rm")


def test_trace_open_sees_files_by_their_names(told):
    seen = {row["fname"]: row for row in rows(told["run trace_open"])}

    assert (seen["/run/opened"]["error"], seen["/run/opened"]["fd"]) == ("", 3)
    assert seen["/run/absent"]["error"] == "ENOENT"
    assert {row["proc"]["comm"] for row in seen.values()} == {"cat"}


def test_snapshot_process_lists_process_1(told):
    (shown,) = rows(told["run snapshot_process"])
    first = next(row for row in shown if row["pid"] == 1)

    assert (first["tid"], first["parent"]["pid"]) == (1, 0)


def test_check_says_so_beforehand(told):
    found = json.loads(told["check removed"]["out"])

    assert found["runs"]
    assert {row["result"] for row in found["rows"] if row["needed"]} <= {"works", "not predicted"}
    assert {row["result"] for row in found["rows"] if "do_unlinkat" in row["name"]} == {"works"}


def test_nothing_is_left_in_the_kernel(told):
    assert told["left"]["said"] == "aarch64"
    assert json.loads(told["left"]["out"]) == []
