"""Where compilers run: this machine, or a container (`igrun.build.container`)."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from igrun.dataclass import dataclass
from igrun.errors import BuildError

if TYPE_CHECKING:
    from subprocess import Popen

PACKAGES = "Debian, Ubuntu: apt install clang libbpf-dev; Fedora: dnf install clang libbpf-devel"
HEADERS_AS = "/usr/include/igrun"
"""What the SDK's folder is called inside objects, wherever it is on this machine."""
Commands = Mapping[str, Sequence[str]]
"""Command lines, by what each one does."""


class Place(Protocol):
    """Where compilers run. Paths are as they are seen there.

    folder:  the gadget's; compilers run in it
    headers: the SDK's, with gadget/*.h and vmlinux/<arch>/vmlinux.h
    out:     an empty folder for what they make
    made:    the same folder, as seen from here
    """

    @property
    def folder(self) -> str: ...
    @property
    def headers(self) -> str: ...
    @property
    def out(self) -> str: ...
    @property
    def made(self) -> Path: ...

    def which(self, name: str) -> str:
        """How a program is called there, "" if it is known not to be there."""
        ...

    def multiarch(self) -> Sequence[str]:
        """Folders of the C library's headers that a clang does not search for BPF."""
        ...

    def run(
        self, commands: Commands, variables: Mapping[str, str], *, settings: bool = False, network: bool = False
    ) -> str:
        """Run commands at the same time in the gadget's folder. Returns what they said. BuildError: one failed.

        variables: of the environment, beside the few that every command gets
        settings:  they get what the user set for them too
        network:   they need it; here everybody has it
        """
        ...

    def read(self, paths: Iterable[str]) -> dict[str, bytes]:
        """The contents of files there. BuildError: one cannot be read."""
        ...


@dataclass(frozen=True, slots=True)
class Here:
    """This machine."""

    gadget: Path
    sdk: Path
    made: Path
    env: Mapping[str, str]

    @property
    def folder(self) -> str:
        return str(self.gadget)

    @property
    def headers(self) -> str:
        return str(self.sdk)

    @property
    def out(self) -> str:
        return str(self.made)

    def which(self, name: str) -> str:
        return which(name, self.env)

    def multiarch(self) -> Sequence[str]:
        folder = Path(f"/usr/include/{os.uname().machine}-linux-gnu")
        return [str(folder)] if folder.is_dir() else []

    def run(
        self, commands: Commands, variables: Mapping[str, str], *, settings: bool = False, network: bool = False
    ) -> str:
        return together(commands, self.gadget, {**(self.env if settings else quiet(self.env)), **variables})

    def read(self, paths: Iterable[str]) -> dict[str, bytes]:
        return read(self.gadget, paths)


def read(folder: Path, paths: Iterable[str]) -> dict[str, bytes]:
    """The contents of files of this machine; what is relative is meant from the folder."""
    try:
        return {path: (folder / path).read_bytes() for path in paths}
    except OSError as error:
        raise BuildError(f"cannot read {error.filename}: {error.strerror}") from None


# ---------------------------------------------------------------------------------------------- programs


def which(name: str, env: Mapping[str, str]) -> str:
    """The whole path of a program, "" if it is not there."""
    from shutil import which

    found = which(name, path=env.get("PATH", os.defpath))
    return str(Path(found).absolute()) if found else ""


def quiet(env: Mapping[str, str]) -> dict[str, str]:
    """The few variables that a compiler needs: the others could change what it makes."""
    kept = ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH")
    return {**{name: env[name] for name in kept if name in env}, "LC_ALL": "C"}


def together(commands: Commands, folder: Path, env: Mapping[str, str]) -> str:
    """Run commands at the same time, named by what each does. Returns what they said. BuildError: one failed."""
    with contextlib.ExitStack() as stack:
        running = [
            (what, stack.enter_context(started(what, command, folder, env))) for what, command in commands.items()
        ]
        said = {}
        for what, process in running:
            said[what] = process.communicate()[0]
        for what, process in running:
            if process.returncode:
                raise failure(what, said[what], process.returncode)
        return "".join(dict.fromkeys(said.values()))


@contextlib.contextmanager
def started(what: str, command: Sequence[str], folder: Path, env: Mapping[str, str]) -> Iterator[Popen[str]]:
    """A running command; it ends with the block, whatever happens."""
    import subprocess

    try:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            errors="replace",
        )
    except OSError as error:
        raise BuildError(f"{what}: cannot start {command[0]}: {error.strerror}") from None
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def failure(what: str, output: str, status: int) -> BuildError:
    """The error for a compiler that failed; its message holds the first line that says why."""
    why = first_problem(output) or f"exit status {status}"
    hint = ""
    missing = re.search(r"'([^']+)' file not found", output)
    if missing:
        ours = missing[1].startswith("bpf/")
        hint = f"{missing[1]} comes with libbpf's headers ({PACKAGES})" if ours else "check the #include line"
    return BuildError(f"{what}: {why}", output=output, hint=hint)


def first_problem(output: str) -> str:
    """The first line that says what went wrong, else the last one; "" if there is none."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return next((line for line in lines if "error" in line.lower()), lines[-1] if lines else "")
