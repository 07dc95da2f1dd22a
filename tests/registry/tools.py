"""The foreign clients and registries that igrun is tested against, where they are and how they get there.

    python -m tests.registry.tools     fetches what is missing, says what there is

Some are Debian packages (tests/packages.txt). The others are built or unpacked once into a cache:

    $IGRUN_CACHE or ~/.cache/igrun
        tools/
            lock              held while one process fetches
            bin/crane         by `go install`, newest version
            bin/cosign        the same; takes some minutes
            bin/referrers-*   the program in tests/registry/referrers; its name changes with its source
            bin/oras          out of a Debian package of a newer suite
            go/               Debian's newest Go, where this machine has none that is new enough
"""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.vm import mirror
from tests.vm.kernels import cache_root

PACKAGED = {
    "docker-registry": "docker-registry",
    "htpasswd": "apache2-utils",
    "openssl": "openssl",
    "skopeo": "skopeo",
    "strace": "strace",
    "umoci": "umoci",
}
GO_TOOLS = {
    "crane": "github.com/google/go-containerregistry/cmd/crane@latest",
    "cosign": "github.com/sigstore/cosign/v3/cmd/cosign@latest",
}
REFERRERS = Path(__file__).parent / "referrers"
ORAS_SUITES = ("trixie", "sid")
GO_SUITES = ("trixie", "sid")
CACHE = cache_root()  # of the user who started the tests; a test may set another HOME
OLDEST_GO = (1, 21)  # from here on it fetches the version that a module wants by itself
VERSION = {
    "cosign": ("version",),
    "crane": ("version",),
    "docker-registry": ("--version",),
    "oras": ("version",),
    "skopeo": ("--version",),
    "umoci": ("--version",),
}


class MissingToolError(Exception):
    """A tool is not there and cannot be had; the text says why, in one line."""


@dataclass(frozen=True)
class Tool:
    """A program to call."""

    name: str
    path: Path

    def __call__(self, *arguments: str | Path, **how: object) -> str:
        """Its standard output; a failure is an AssertionError with what it said."""
        done = self.run(*arguments, **how)
        assert done.returncode == 0, f"{self.name} {' '.join(map(str, arguments))}: {done.stderr}{done.stdout}"
        return done.stdout

    def run(
        self, *arguments: str | Path, env: dict[str, str] | None = None, cwd: Path | None = None, text: str = ""
    ) -> "subprocess.CompletedProcess[str]":
        """Call it. env: added to this process's; text: its standard input."""
        command = [str(self.path), *map(str, arguments)]
        environ = {**os.environ, **(env or {})}
        return subprocess.run(command, input=text, capture_output=True, text=True, env=environ, cwd=cwd, timeout=120)


def find(name: str) -> Tool:
    """A tool that is there. MissingToolError."""
    found = shutil.which(name) if name in PACKAGED else str(place(name)) if place(name).exists() else None
    if found is None:
        way = f"apt-get install {PACKAGED[name]}" if name in PACKAGED else "`make test-oci` gets it"
        raise MissingToolError(f"no {name} here: {way}")
    return Tool(name, Path(found))


def version(name: str) -> str:
    """What a tool says of its version, "" if it is not there or does not say."""
    try:
        said = find(name).run(*VERSION[name])
    except (KeyError, MissingToolError):
        return ""
    found = re.search(r"\d+\.\d+\.\d+", said.stdout + said.stderr)
    return found[0] if found else ""


def home() -> Path:
    return CACHE / "tools"


def place(name: str) -> Path:
    """Where a tool that is no package of this machine belongs."""
    if name == "referrers":
        sources = b"".join((REFERRERS / file).read_bytes() for file in ("main.go", "go.mod", "go.sum"))
        name += "-" + hashlib.sha256(sources).hexdigest()[:12]
    return home() / "bin" / name


# ---------------------------------------------------------------------------------------------- getting them


def fetch(name: str, say: Callable[[str], None] = lambda text: None) -> Tool:
    """Get a tool that is no package of this machine, if it is not there yet. MissingToolError."""
    if name in PACKAGED:
        return find(name)
    with locked():
        target = place(name)
        if not target.exists():
            say(f"getting {name}{' (takes some minutes)' if name == 'cosign' else ''} ...")
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".fetch-", dir=home()) as scratch:
                if name == "oras":
                    made = unpacked_oras(Path(scratch))
                elif name == "referrers":
                    made = built(name, Path(scratch), "build", "-o", f"{scratch}/referrers", ".")
                else:
                    made = built(name, Path(scratch), "install", GO_TOOLS[name])
                made.replace(target)
    return Tool(name, target)


@contextlib.contextmanager
def locked() -> Iterator[None]:
    home().mkdir(parents=True, exist_ok=True)
    with (home() / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def built(name: str, scratch: Path, *arguments: str) -> Path:
    env = {**os.environ, "GOBIN": str(scratch), "CGO_ENABLED": "0", "GOFLAGS": "-trimpath -buildvcs=false -ldflags=-s"}
    command = ["nice", str(go()), *arguments]
    done = subprocess.run(command, cwd=REFERRERS, env=env, capture_output=True, text=True)
    if done.returncode != 0:
        raise MissingToolError(f"{name} cannot be built: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return scratch / name


def unpacked_oras(scratch: Path) -> Path:
    for suite in ORAS_SUITES:
        with contextlib.suppress(mirror.UnreachableError):
            return mirror.PrivateApt(scratch / suite, (suite,)).unpack(["oras"]) / "usr/bin/oras"
    raise MissingToolError(f"no package oras in {', '.join(ORAS_SUITES)} of the Debian mirror, or it is out of reach")


def go() -> Path:
    """The machine's Go, else Debian's newest, which is fetched. MissingToolError."""
    own = shutil.which("go")
    if own and go_version(Path(own)) >= OLDEST_GO:
        return Path(own)
    kept = home() / "go"
    if not (kept / "bin/go").exists():
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=home()) as scratch:
            tree = unpacked_go(Path(scratch))
            shutil.rmtree(kept, ignore_errors=True)
            tree.rename(kept)
    return kept / "bin/go"


def unpacked_go(scratch: Path) -> Path:
    """Go's root, out of two packages whose links lead from one into the other."""
    try:
        apt = mirror.PrivateApt(scratch / "apt", GO_SUITES)
        there = {int(found[1]): found[0] for name in apt.names("golang-1.") if (found := GO_PACKAGE.fullmatch(name))}
        if not there:
            raise MissingToolError(f"no Go in {', '.join(apt.suites)}{apt.trouble}")
        short = there[max(there)].removesuffix("-go").removeprefix("golang-")
        tree = apt.unpack([f"golang-{short}-go", f"golang-{short}-src"])
    except mirror.UnreachableError as error:
        raise MissingToolError(f"this machine has no Go >= {OLDEST_GO[0]}.{OLDEST_GO[1]}, and {error}") from error
    root = scratch / "root"
    for part in (f"usr/share/go-{short}", f"usr/lib/go-{short}"):
        shutil.copytree(tree / part, root, dirs_exist_ok=True, symlinks=False, ignore_dangling_symlinks=True)
    return root


GO_PACKAGE = re.compile(r"golang-1\.(\d+)-go")


def go_version(path: Path) -> tuple[int, ...]:
    said = subprocess.run([path, "env", "GOVERSION"], capture_output=True, text=True)
    found = re.match(r"go(\d+)\.(\d+)", said.stdout)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def main() -> int:
    """Get everything; 1 if something cannot be had."""
    status = 0
    for name in (*PACKAGED, "referrers", "oras", *GO_TOOLS):
        try:
            tool = fetch(name, lambda text: print(text, flush=True))
            print(f"{name:16} {version(name):10} {tool.path}")
        except MissingToolError as error:
            print(f"{name:16} MISSING: {error}", flush=True)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
