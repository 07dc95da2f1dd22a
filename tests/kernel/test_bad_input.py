"""Whatever is wrong, `ig` says it in one clear line, exits with 1 and leaves nothing behind."""

import subprocess
import sys
from pathlib import Path

import pytest

IG = f"{sys.executable} -m igrun"
GADGET = """
#include <vmlinux.h>
#include <bpf/bpf_helpers.h>
#include <gadget/buffer.h>
#include <gadget/macros.h>
struct event { __u32 pid; };
GADGET_TRACER_MAP(events, 4096);
GADGET_TRACER(t, events, event);
SEC("%s") int program(void *ctx) { return 0; }
char _license[] SEC("license") = "GPL";
"""


CHATTER = ("Note:", "Successfully", "Warning: gadget signature verification is disabled")


def alone(script: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script whose mounts nobody else sees, with an empty image store."""
    prepared = f"set -e; mkdir -p /var/lib/ig; mount -t tmpfs -o mode=755 store /var/lib/ig\n{script}"
    return subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", prepared],
        capture_output=True,
        text=True,
        timeout=60,
    )


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """What `ig` said: one line `Error: ...`, and a hint or none."""
    assert done.returncode == 1, done
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if not line.startswith(CHATTER)]
    assert lines and lines[0].startswith("Error: "), done.stderr
    assert all(line.startswith("Hint: ") for line in lines[1:]), done.stderr
    return done.stderr


def gadget_in(folder: Path, source: str, yaml: str = "name: mine\n") -> Path:
    (folder / "program.bpf.c").write_text(source)
    (folder / "gadget.yaml").write_text(yaml)
    return folder


@pytest.mark.kernel
def test_a_kernel_without_btf_is_named():
    said = refusal(alone(f"mount -t tmpfs none /sys/kernel/btf; {IG} run trace_open --host --timeout 2"))

    assert f"no BTF for kernel {Path('/proc/sys/kernel/osrelease').read_text().strip()}" in said


@pytest.mark.kernel
def test_without_tracefs_tracepoints_are_found_by_a_mount_that_nobody_sees():
    hidden = "for at in $(awk '$3==\"tracefs\" {print $2}' /proc/mounts | tac); do umount -l $at; done"
    done = alone(f"{hidden}; {IG} run trace_open --host --timeout 1 -o none; grep -c tracefs /proc/mounts || true")

    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "0"


@pytest.mark.kernel
@pytest.mark.parametrize("missing", ["bpf", "perfmon"])
def test_missing_capabilities_are_named(missing):
    drop = f"setpriv --bounding-set=-sys_admin,-{missing} --inh-caps=-sys_admin,-{missing}"
    done = subprocess.run(f"{drop} {IG} run trace_open --host --timeout 2", shell=True, capture_output=True, text=True)

    assert f"CAP_{missing.upper()}" in refusal(done)


@pytest.mark.kernel
@pytest.mark.parametrize("most", [8, 26, 28, 30])
def test_a_run_that_gets_no_more_descriptors_ends_with_one_line(most):
    limited = f"ulimit -n {most}; exec {IG} run trace_open --host --timeout 1"
    done = subprocess.run(limited, shell=True, capture_output=True, text=True, timeout=60)

    assert refusal(done)


@pytest.mark.root
@pytest.mark.parametrize(
    ("blob", "problem"),
    [("printf garbage", "ELF"), ('head -c 1000 "$OBJECT"', "ELF"), ("head -c 900 /dev/urandom", "ELF")],
)
def test_an_image_with_a_broken_object_is_refused(blob, problem, tmp_path):
    code = (
        "import sys\n"
        "from igrun.image import Objects, pack\n"
        "from igrun.oci.store import Store\n"
        "objects = {arch: Objects(ebpf=sys.stdin.buffer.read()) for arch in ['amd64']} \n"
        "objects['arm64'] = objects['amd64']\n"
        "with Store.open() as store:\n"
        "    index = pack(store, b'name: broken\\n', objects, created='2026-01-01T00:00:00Z', builder_version='1')\n"
        "    store.tag(index, 'ghcr.io/inspektor-gadget/gadget/broken:latest')\n"
    )
    (tmp_path / "pack.py").write_text(code)
    gadget_in(tmp_path, GADGET % "raw_tp/sys_enter")
    done = alone(
        f"{IG} image build {tmp_path} -o {tmp_path} 2>/dev/null; OBJECT={tmp_path}/amd64.bpf.o\n"
        f'{blob} | {sys.executable} -c "$(cat {tmp_path}/pack.py)"; '
        f"{IG} run broken --host --timeout 2 --verify-image=false"
    )

    assert problem in refusal(done)


@pytest.mark.root
@pytest.mark.parametrize(
    ("source", "yaml", "problem"),
    [
        ("not C at all", "name: mine\n", "program.bpf.c"),
        (GADGET % "raw_tp/sys_enter", "name: mine\ndatasource:\n", "datasources"),
        (GADGET % "raw_tp/sys_enter", "name: [mine\n", "gadget.yaml"),
        (GADGET % "raw_tp/sys_enter", "name: mine\ndatasources: {t: {fields: {pit: {}}}}\n", "pid"),
        (GADGET.replace("GADGET_TRACER(t, events, event)", "GADGET_TRACER(t, nomap, event)"), "name: m\n", "nomap"),
        (GADGET.replace("GADGET_TRACER(t, events, event)", "GADGET_TRACER(t, events, task)"), "name: m\n", "task"),
    ],
)
def test_what_cannot_be_built_is_refused_with_the_place(source, yaml, problem, tmp_path):
    done = alone(f"{IG} image build {gadget_in(tmp_path, source, yaml)} -t mine; ls /var/lib/ig")

    assert done.returncode == 1
    assert problem in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.kernel
def test_a_section_that_nobody_knows_is_named(tmp_path):
    folder = gadget_in(tmp_path, GADGET % "nosuch/thing")
    done = alone(f"{IG} image build {folder} -t mine --validate-metadata=false; {IG} run mine --host --timeout 2")

    assert "nosuch/thing" in refusal(done)


@pytest.mark.kernel
def test_a_tracepoint_that_is_not_there_is_named_with_its_neighbour(tmp_path):
    folder = gadget_in(tmp_path, GADGET % "tracepoint/syscalls/sys_enter_opanat")
    said = refusal(alone(f"{IG} image build {folder} -t mine; {IG} run mine --host --timeout 2"))

    assert "sys_enter_opanat" in said
    assert "sys_enter_openat" in said


@pytest.mark.root
def test_two_builds_at_once_both_succeed(tmp_path):
    folder = gadget_in(tmp_path, GADGET % "raw_tp/sys_enter")
    done = alone(
        f"{IG} image build {folder} -t one & {IG} image build {folder} -t two; wait $!; {IG} image list -o json"
    )

    assert '"one"' in done.stdout and '"two"' in done.stdout, done
