"""Container engines of a test session's own: docker with its daemon, podman with root and without, and a base image.

Nothing of the machine's own engines is read or changed.
"""

import contextlib
import os
import pwd
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

BASE = "localhost/igrun-test-base:bookworm"
SUITE, MIRROR = "bookworm", "http://deb.debian.org/debian"
USER = "igrun-test"
# Root without CAP_SYS_RESOURCE cannot raise limits, and crun wants one kind of cgroups alone.
CONTAINERS_CONF = """\
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""
STORAGE_CONF = """\
[storage]
driver = "overlay"
graphroot = "{folder}/graph"
runroot = "{folder}/run"
"""
# What podman starts; compilers are not among it
PROGRAMS = ("conmon", "runc", "newuidmap", "newgidmap", "git")


class MissingError(Exception):
    """A test cannot run here, and why."""


@dataclass(frozen=True)
class Engine:
    """name: docker, podman or rootless; env: to be used with; user: whose it is, None for ours"""

    name: str
    program: str
    env: dict[str, str]
    user: pwd.struct_passwd | None = None

    def call(self, *words: str, stdin: bytes | None = None) -> str:
        """What the engine prints."""
        done = subprocess.run(
            [self.program, *words], env=self.env, input=stdin or b"", capture_output=True, **self.identity, cwd="/"
        )
        assert done.returncode == 0, (words, done.stderr.decode())
        return done.stdout.decode()

    @property
    def identity(self) -> dict[str, object]:
        """For subprocess: who it runs as."""
        if self.user is None:
            return {}
        return {"user": self.user.pw_uid, "group": self.user.pw_gid, "extra_groups": []}

    def left(self) -> list[str]:
        """Containers that are there."""
        return self.call("ps", "--all", "--format", "{{.Names}}").split()


def base(cache: Path) -> Path:
    """A tar of a small Debian, made once."""
    path = cache / f"{SUITE}.tar"
    if path.exists():
        return path
    if not shutil.which("debootstrap"):
        raise MissingError("debootstrap is not installed")
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / "new"
    shutil.rmtree(folder, ignore_errors=True)
    done = subprocess.run(
        ["debootstrap", "--variant=minbase", SUITE, str(folder), MIRROR], capture_output=True, text=True
    )
    if done.returncode:
        raise MissingError(f"debootstrap failed: {done.stdout[-500:]}")
    part = path.with_suffix(".part")
    subprocess.run(["tar", "-C", str(folder), "--numeric-owner", "-cf", str(part), "."], check=True)
    part.replace(path)
    shutil.rmtree(folder)
    return path


def programs(folder: Path, *names: str) -> str:
    """A PATH with these programs alone, so that no compiler is found."""
    folder.mkdir(exist_ok=True)
    for name in (*PROGRAMS, *names):
        found = shutil.which(name)
        if found:
            (folder / name).symlink_to(found)
    folder.chmod(0o755)
    return str(folder)


def needed(name: str) -> str:
    found = shutil.which(name)
    if not found:
        raise MissingError(f"{name} is not installed")
    return found


@contextlib.contextmanager
def docker(folder: Path) -> Iterator[Engine]:
    """dockerd with data of its own."""
    program, daemon = needed("docker"), needed("dockerd")
    folder.mkdir()
    socket = folder / "docker.sock"
    command = [
        *(daemon, "--data-root", str(folder / "data"), "--exec-root", str(folder / "exec")),
        *("--pidfile", str(folder / "pid"), "-H", f"unix://{socket}", "--storage-driver", "overlay2"),
        *("--iptables=false", "--ip6tables=false", "--bridge=none"),
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while not socket.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise MissingError(f"dockerd does not start: {(folder / 'log').read_text()[-500:]}")
            time.sleep(0.1)
        env = {"PATH": programs(folder / "bin", "docker"), "HOME": str(folder), "DOCKER_HOST": f"unix://{socket}"}
        yield Engine("docker", program, env)
    finally:
        process.terminate()
        process.wait(30)
        # it leaves its network namespace mounted
        subprocess.run(["umount", str(folder / "exec/netns/default")], capture_output=True)


@contextlib.contextmanager
def podman(folder: Path, user: pwd.struct_passwd | None = None) -> Iterator[Engine]:
    """podman with storage of its own. user: whose it is, without root"""
    program = needed("podman")
    folder.mkdir()
    (folder / "containers.conf").write_text(CONTAINERS_CONF)
    (folder / "storage.conf").write_text(STORAGE_CONF.format(folder=folder))
    env = {
        "PATH": programs(folder / "bin", "podman"),
        "HOME": str(folder),
        "XDG_RUNTIME_DIR": str(folder / "runtime"),
        "CONTAINERS_CONF": str(folder / "containers.conf"),
        "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"),
        "TMPDIR": str(folder / "tmp"),
    }
    for name in ("runtime", "tmp"):
        (folder / name).mkdir(0o700)
    if user:
        for path in (folder, *folder.iterdir()):
            os.chown(path, user.pw_uid, user.pw_gid)
    engine = Engine("rootless" if user else "podman", program, env, user)
    try:
        yield engine
    finally:
        with contextlib.suppress(AssertionError):
            engine.call("system", "reset", "--force")


@contextlib.contextmanager
def somebody() -> Iterator[pwd.struct_passwd]:
    """A user of this machine for a while, with subordinate user ids."""
    needed("newuidmap")
    try:
        done = subprocess.run(["useradd", "--no-create-home", USER], capture_output=True, text=True)
    except OSError as error:
        raise MissingError(f"useradd: {error.strerror}") from None
    if done.returncode:
        raise MissingError(f"useradd: {done.stderr.strip()}")
    try:
        yield pwd.getpwnam(USER)
    finally:
        subprocess.run(["userdel", "--force", USER], capture_output=True)
