"""What the runner of guests promises."""

import ctypes
import gzip
import lzma
import os
import re
import struct
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tests.compiled import CLANG
from tests.vm import bzimage, errand, initramfs, kernels, matrix, mirror
from tests.vm.batch import started_in
from tests.vm.guest import Guest, GuestError, Output

REPOSITORY = Path(__file__).parents[2]
SERIES = os.environ.get("IGRUN_GUEST_KERNELS", "6.12").split(",")[0]
REPORTED = """
    import os, pytest, time
    from igrun.errors import UnsupportedError

    pytestmark = pytest.mark.guest

    @pytest.mark.parametrize("release", ["Linux"])
    def test_passes(release, tmp_path):
        print("seen by nobody")
        assert os.uname().sysname == release

    def test_fails():
        print("captured in the guest")
        wrong = 6 * 9
        assert wrong == 42, "the question was wrong"

    def test_lacks():
        raise UnsupportedError("time travel", "no flux capacitor", since="9.9")

    @pytest.mark.timeout(1)
    def test_hangs():
        time.sleep(1000)

    @pytest.mark.xfail(reason="known")
    def test_is_expected_to_fail():
        assert False
"""


def pytest_command(folder: Path, text: str, *arguments: str) -> list[str]:
    """A session of its own over one file of tests, with the repository's settings."""
    (folder / "test_inner.py").write_text(textwrap.dedent(text))
    settings = ["-c", str(REPOSITORY / "pyproject.toml"), "--rootdir", str(REPOSITORY), "-p", "tests.vm.plugin"]
    return [
        sys.executable,
        "-c",
        started_in(REPOSITORY),
        *settings,
        "-p",
        "no:cacheprovider",
        "-v",
        *arguments,
        str(folder / "test_inner.py"),
    ]


def run_pytest(folder: Path, text: str, *arguments: str) -> str:
    command = pytest_command(folder, text, *arguments)
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    return done.stdout + done.stderr


def leftovers() -> list[str]:
    """The guests' programs that this process or a child of it has left running."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if re.search(rb"qemu-system|virtiofsd", words[0]) and parent in (os.getpid(), 1):
            found.append(words[0].decode())
    return found


@pytest.mark.guest
def test_a_guest_test_sees_the_kernel_of_its_series():
    release = os.uname().release

    assert os.environ["IGRUN_IN_GUEST"] == "1"
    assert re.fullmatch(r"\d+\.\d+\.\d+.*-cloud-amd64", release)


@pytest.mark.guest
def test_a_guest_has_the_file_systems_that_tracing_needs():
    mounts = {line.split()[1]: line.split()[2] for line in Path("/proc/mounts").read_text().splitlines()}

    assert mounts["/sys/kernel/tracing"] == "tracefs"
    assert mounts["/sys/kernel/security"] == "securityfs"
    assert mounts["/sys/fs/bpf"] == "bpf"
    assert mounts["/sys/fs/cgroup"] == "cgroup2"
    assert Path("/sys/kernel/tracing/kprobe_events").exists()
    assert Path("/sys/kernel/btf/vmlinux").exists()


@pytest.mark.guest
def test_a_guest_may_write_anywhere_and_the_machine_does_not_see_it(tmp_path):
    for folder in (Path("/var/lib"), Path("/etc"), Path(__file__).parent, tmp_path):
        (folder / "igrun-guest-was-here").write_text("x")

    assert Path("/var/lib/igrun-guest-was-here").read_text() == "x"


@pytest.mark.root
def test_what_a_guest_wrote_is_gone(tmp_path):
    kernel = kernel_or_skip()
    mark = tmp_path / "mark"

    with Guest(
        kernel, ["/bin/sh", "-c", f"echo x >{mark}; echo x >/etc/igrun-mark; cat {mark}"], keep=[tmp_path]
    ) as guest:
        text = b"".join(event.data for event in guest.events() if isinstance(event, Output))

    assert (text, guest.status) == (b"x\n", 0)
    assert not mark.exists()
    assert not Path("/etc/igrun-mark").exists()


@pytest.mark.guest
def test_a_kprobe_fires_in_a_guest():
    libc = ctypes.CDLL(None, use_errno=True)
    tracing = Path("/sys/kernel/tracing")
    (tracing / "kprobe_events").write_text("p:igrun/probe do_sys_openat2\n")
    (tracing / "events/igrun/probe/enable").write_text("1")
    libc.open(b"/dev/null", 0)
    (tracing / "events/igrun/probe/enable").write_text("0")

    lines = (tracing / "trace").read_text().splitlines()
    assert any(f"-{os.getpid()} " in line and "probe: (do_sys_openat2" in line for line in lines)


@pytest.mark.guest
def test_a_guest_has_the_machine_compile_for_it():
    assert CLANG, "install clang"
    done = errand.run([CLANG, "-target", "bpf", "-O2", "-c", "-xc", "-", "-o", "-"], "int number = 7;")
    wrong = errand.run([CLANG, "-xc", "-", "-o", "-"], "int number = ;")
    other = errand.run(["id"], "")

    assert (done.returncode, done.stdout[:4]) == (0, b"\x7fELF")
    assert wrong.returncode != 0 and b"expected expression" in wrong.stderr
    assert b"compilers only" in other.stderr


@pytest.mark.root
def test_reports_come_home_as_if_made_here(tmp_path):
    kernel_or_skip()
    text = run_pytest(tmp_path, REPORTED, "--guest-kernels", SERIES)

    assert "test_passes[Linux] PASSED" in text
    assert "test_fails FAILED" in text
    assert "test_lacks SKIPPED" in text and "time travel: no flux capacitor (Linux 9.9" in text
    assert "test_is_expected_to_fail XFAIL" in text
    assert ">       assert wrong == 42" in text and "the question was wrong" in text
    assert "captured in the guest" in text and "seen by nobody" not in text
    assert "Timeout (>1.0s)" in text
    assert "2 failed, 1 passed, 1 skipped, 1 xfailed" in text


@pytest.mark.root
def test_every_kernel_reports_each_test_on_its_own(tmp_path):
    kernel_or_skip()
    text = """
        import os, pytest

        @pytest.mark.kernel
        @pytest.mark.parametrize("number", [7])
        def test_anywhere(number):
            assert number == 7

        @pytest.mark.kernel
        def test_is_in_no_guest():
            assert "IGRUN_IN_GUEST" not in os.environ
    """
    said = run_pytest(tmp_path, text, "--guest-kernels", SERIES, "--guest-all")

    assert f"test_anywhere[7-{SERIES}] PASSED" in said
    assert "test_anywhere[7-host] PASSED" in said
    assert "test_is_in_no_guest[host] PASSED" in said
    assert f"test_is_in_no_guest[{SERIES}] FAILED" in said
    assert re.search(r"^total +2/0/0 +1/1/0$", said, re.M)


@pytest.mark.root
def test_what_cannot_run_is_skipped_loudly(tmp_path, monkeypatch):
    monkeypatch.setenv("IGRUN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(mirror.MIRROR, "http://127.0.0.1:9/debian")
    text = """
        import pytest
        @pytest.mark.guest
        def test_one(): pass
        @pytest.mark.guest
        def test_two(): pass
    """

    assert "NOT RUN (2): kernel 6.1: the Debian mirror is out of reach" in run_pytest(
        tmp_path, text, "--guest-kernels", "6.1"
    )


@pytest.mark.root
def test_without_root_nothing_that_needs_it_runs(tmp_path):
    text = """
        import os, pytest
        os.geteuid = lambda: 1000
        @pytest.mark.kernel
        def test_here(): assert False
        @pytest.mark.guest
        def test_there(): assert False
    """

    said = run_pytest(tmp_path, text)
    assert "2 skipped" in said
    assert "NOT RUN (1): needs root" in said
    assert "NOT RUN (1): a guest needs root" in said


@pytest.mark.root
def test_a_panic_fails_what_is_left_and_shows_the_console(tmp_path):
    kernel_or_skip()
    text = run_pytest(
        tmp_path,
        """
        import pathlib, pytest
        pytestmark = pytest.mark.guest

        def test_before():
            pass

        def test_panics():
            pathlib.Path("/proc/sys/kernel/sysrq").write_text("1")
            pathlib.Path("/proc/sysrq-trigger").write_text("c")

        def test_after():
            pass
        """,
        "--guest-kernels",
        SERIES,
    )

    assert "test_before PASSED" in text
    assert "test_panics FAILED" in text
    assert "test_after FAILED" in text
    assert "it panicked" in text and "Kernel panic" in text
    assert "2 failed, 1 passed" in text


@pytest.mark.root
def test_a_silent_guest_is_given_up():
    kernel = kernel_or_skip()

    with (
        Guest(kernel, ["/bin/sleep", "100"]) as guest,
        pytest.raises(GuestError, match=r"nothing was heard from it for 4 s"),
    ):
        list(guest.events(idle_s=4))

    assert leftovers() == []


@pytest.mark.root
@pytest.mark.parametrize("way", ["INT", "TERM", "KILL"])
def test_nothing_is_left_when_the_session_is_ended(tmp_path, way):
    kernel_or_skip()
    text = "import pytest, time\n@pytest.mark.guest\ndef test_sleeps():\n    time.sleep(100)\n"
    session = subprocess.Popen(pytest_command(tmp_path, text), stdout=subprocess.DEVNULL, cwd=REPOSITORY)
    children = Path(f"/proc/{session.pid}/task/{session.pid}/children")
    deadline = time.monotonic() + 60
    while len(pids := children.read_text().split()) < 2:
        assert session.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(0.5)
    subprocess.run(["kill", f"-{way}", str(session.pid)], check=True)
    session.wait(20)

    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def alive(pid: str) -> bool:
    """Still running; a zombie that init has not buried yet is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def kernel_or_skip() -> kernels.Kernel:
    try:
        return kernels.fetch(SERIES)
    except kernels.KernelUnavailableError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("way", ["xz", "gzip", "lz4", "zstd", "lzma"])
def test_the_kernel_in_a_bzimage_is_found(way):
    kernel = b"\x7fELF" + bytes(range(256)) * 64
    size = len(kernel).to_bytes(4, "little")
    payload = {
        "xz": lambda: lzma.compress(kernel) + size,
        "lzma": lambda: lzma.compress(kernel, lzma.FORMAT_ALONE) + size,
        "gzip": lambda: gzip.compress(kernel),
        "lz4": lambda: subprocess.run(["lz4", "-lc"], input=kernel, capture_output=True, check=True).stdout + size,
        "zstd": lambda: subprocess.run(["zstd", "-c"], input=kernel, capture_output=True, check=True).stdout + size,
    }[way]()
    setup = bytearray(3 * 512)
    setup[0x1F1], setup[0x202:0x206] = 2, b"HdrS"
    struct.pack_into("<II", setup, 0x248, 0x40, len(payload))

    assert bzimage.vmlinux(bytes(setup) + bytes(0x40) + payload + b"\xcc" * 99) == kernel
    with pytest.raises(ValueError, match="not a bzImage"):
        bzimage.vmlinux(payload)


def test_the_image_of_an_arm64_kernel_is_not_packed():
    image = b"MZ" + bytes(0x36) + b"ARM\x64" + bytes(64)

    assert bzimage.vmlinux(image) == image


def test_modules_come_after_what_they_need(tmp_path):
    lines = "kernel/b/virtio-x.ko.xz: kernel/a/ring.ko.xz kernel/a/base.ko\nkernel/a/ring.ko.xz: kernel/a/base.ko\n"
    (tmp_path / "modules.dep").write_text(lines + "kernel/a/base.ko:\nkernel/c/other.ko:\n")

    found = initramfs.needed(tmp_path, ["virtio_x", "built_in"])

    assert [path.name for path in found] == ["base.ko", "ring.ko.xz", "virtio-x.ko.xz"]


def test_the_mirror_is_the_one_of_the_machine(tmp_path, monkeypatch):
    monkeypatch.delenv(mirror.MIRROR, raising=False)
    (tmp_path / "etc/apt/sources.list.d").mkdir(parents=True)
    (tmp_path / "etc/os-release").write_text('NAME="Debian"\nID=debian\nVERSION_CODENAME=trixie\n')
    (tmp_path / "etc/apt/sources.list").write_text(
        "# deb http://old/ trixie main\ndeb [arch=amd64] http://one trixie main\n"
    )
    sources = "Types: deb\n# no\nURIs: http://two/security/\nSuites: trixie-security\n trixie-x\nComponents: main\n"
    (tmp_path / "etc/apt/sources.list.d/more.sources").write_text(sources)

    assert mirror.addresses(tmp_path) == ("http://one", "http://two/security")


def test_without_a_mirror_the_reason_says_what_to_set(tmp_path, monkeypatch):
    monkeypatch.delenv(mirror.MIRROR, raising=False)
    (tmp_path / "usr/share/keyrings").mkdir(parents=True)
    (tmp_path / mirror.KEYRING).touch()

    with pytest.raises(mirror.UnreachableError, match="set IGRUN_DEBIAN_MIRROR"):
        mirror.PrivateApt(tmp_path / "apt", ["sid"], tmp_path)


def test_a_mirror_out_of_reach_is_a_reason_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv(mirror.MIRROR, "http://127.0.0.1:9/debian")

    with pytest.raises(
        kernels.KernelUnavailableError, match=r"^kernel 6\.1: the Debian mirror is out of reach \(.*\)$"
    ):
        kernels.fetch("6.1", tmp_path)


def test_the_table_counts_each_file_on_each_kernel():
    counts = {
        ("tests/a.py", "5.10"): matrix.Counter(passed=3, skipped=1),
        ("tests/a.py", "6.12"): matrix.Counter(passed=4),
        ("tests/b.py", "6.12"): matrix.Counter(failed=1),
    }

    lines = matrix.table(counts, {"5.10": "5.10.262-1", "6.12": "6.12.117-1"}, {"5.10": "4.2"})

    assert [line for line in lines if not line.startswith("-")] == [
        "                       5.10        6.12",
        "passed/failed/skipped  5.10.262-1  6.12.117-1",
        "tests/a.py             3/0/1       4/0/0",
        "tests/b.py             -           0/1/0",
        "total                  3/0/1       4/1/0",
        "seconds                4.2",
    ]
