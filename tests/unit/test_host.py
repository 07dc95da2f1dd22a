import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from igrun.errors import GadgetError
from igrun.host import HOST_TARGET, Host, capabilities, numbers, os_release


def a_host(root: Path, **files: str) -> Host:
    """The host below `root`. files: path with `__` for `/` and `_` for `-` -> text."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/status").write_text("Name:\tig\nCapEff:\t000000c000000000\n")
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_", "-")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Host.current({"HOST_ROOT": str(root)})


def test_this_machine_has_its_facts():
    host = Host.current({})

    assert host.root == Path("/")
    assert host.proc == Path("/proc")
    assert host.release == os.uname().release
    assert host.arch in ("amd64", "arm64")
    assert host.online_cpus and set(host.online_cpus) <= set(host.possible_cpus)
    assert host.page_size == os.sysconf("SC_PAGE_SIZE")
    assert host.namespace("net").stat().st_ino


def test_wall_time_is_boot_time_plus_the_offset():
    host = Host.current({})

    wall = time.clock_gettime_ns(time.CLOCK_BOOTTIME) + host.wall_minus_boot_ns
    assert abs(wall - time.time_ns()) < 50_000_000


def test_capabilities_are_told_by_name(tmp_path):
    host = a_host(tmp_path)

    assert host.capabilities == {"CAP_PERFMON", "CAP_BPF"}
    assert host.missing_capabilities("CAP_BPF", "CAP_NET_ADMIN") == ("CAP_NET_ADMIN",)


def test_a_capability_newer_than_this_program_keeps_its_number(tmp_path):
    status = tmp_path / "status"
    status.write_text(f"CapEff:\t{1 << 45 | 1:016x}\n")

    assert capabilities(status) == {"CAP_CHOWN", "CAP_45"}


def test_lockdown_is_the_marked_word(tmp_path):
    host = a_host(tmp_path, sys__kernel__security__lockdown="none [integrity] confidentiality\n")

    assert host.lockdown == "integrity"


def test_what_a_kernel_does_not_have_is_empty(tmp_path):
    host = a_host(tmp_path)

    assert (host.lockdown, host.os_release, host.tracefs) == ("", {}, None)
    assert host.possible_cpus == tuple(range(os.cpu_count() or 1))
    assert host.namespace("net") == tmp_path / "proc/self/ns/net"


def test_os_release_is_read_without_its_quotes(tmp_path):
    host = a_host(tmp_path, etc__os_release="# c\nID=debian\nPRETTY_NAME=\"Debian GNU/Linux 12\"\nX='y'\nEMPTY=\n")

    assert host.os_release == {"ID": "debian", "PRETTY_NAME": "Debian GNU/Linux 12", "X": "y", "EMPTY": ""}
    assert os_release('BROKEN="\nNOTHING\n') == {"BROKEN": '"'}


def test_cpu_lists_have_ranges_and_single_numbers(tmp_path):
    host = a_host(tmp_path, sys__devices__system__cpu__possible="0-2,5\n", sys__devices__system__cpu__online="0,2\n")

    assert (host.possible_cpus, host.online_cpus) == ((0, 1, 2, 5), (0, 2))
    assert numbers("\n") == ()


def test_a_host_root_without_proc_is_an_error(tmp_path):
    with pytest.raises(GadgetError, match="proc/self/status") as error:
        Host.current({"HOST_ROOT": str(tmp_path)})

    assert "HOST_ROOT" in error.value.hint


def test_tracefs_is_where_the_kernel_says_it_is_mounted():
    host = Host.current({})

    assert host.tracefs is None or (host.tracefs / "events").is_dir()


def test_the_host_target_is_this_machine():
    assert (HOST_TARGET.root, HOST_TARGET.netns, HOST_TARGET.interface) == (Path("/"), None, "")


def test_the_host_module_imports_nothing_heavy():
    code = "import sys, igrun.host; print(*sys.modules)"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )

    assert not loaded & {"subprocess", "platform", "ctypes", "logging", "numpy", "yaml"}
