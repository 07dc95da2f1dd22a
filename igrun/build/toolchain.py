"""Compilers of this machine: clang for eBPF, go and cargo for WASM modules."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from igrun import data
from igrun.build.recipe import Recipe
from igrun.errors import BuildError

if TYPE_CHECKING:
    from subprocess import Popen

OLDEST_CLANG = 14
PACKAGES = "Debian, Ubuntu: apt install clang llvm libbpf-dev; Fedora: dnf install clang llvm libbpf-devel"
TARGETS = {"amd64": "x86", "arm64": "arm64"}
HEADERS_AS = "/usr/include/igrun"
"""What the SDK's folder is called inside objects, wherever it is on this machine."""


@dataclass(frozen=True, slots=True)
class Clang:
    """A clang that can compile for BPF, and the llvm-strip that goes with it."""

    path: str
    version: int
    strip: str

    @classmethod
    def find(cls, env: Mapping[str, str]) -> Clang:
        """$CLANG and $LLVM_STRIP, else the `clang` of PATH if it is new enough, else the newest `clang-NN`."""
        wish = env.get("CLANG", "")
        too_old = ""
        for candidate in [wish] if wish else ["clang", *numbered("clang", env)]:
            path = which(candidate, env)
            version = clang_version(path, env) if path else 0
            if version >= OLDEST_CLANG:
                return cls(path, version, cls.find_strip(path, version, env))
            if path and not too_old:
                too_old = f"{path} is version {version}" if version else f"{path} is no clang"
        problem = too_old or (f"$CLANG is {wish!r}, which is not there" if wish else "there is none on this machine")
        raise BuildError(f"clang {OLDEST_CLANG} or newer is needed to build a gadget: {problem}", hint=PACKAGES)

    @staticmethod
    def find_strip(clang: str, version: int, env: Mapping[str, str]) -> str:
        """The llvm-strip for a clang."""
        wish = env.get("LLVM_STRIP", "")
        beside = str(Path(clang).resolve().parent / "llvm-strip")
        others = [f"llvm-strip-{version}", beside, "llvm-strip", *numbered("llvm-strip", env)]
        for candidate in [wish] if wish else others:
            path = which(candidate, env)
            if path:
                return path
        problem = f"$LLVM_STRIP is {wish!r}, which is not there" if wish else "there is none on this machine"
        raise BuildError(f"llvm-strip is needed to build a gadget: {problem}", hint=PACKAGES)


def which(name: str, env: Mapping[str, str]) -> str:
    """The whole path of a program, "" if it is not there."""
    from shutil import which

    found = which(name, path=env.get("PATH", os.defpath))
    return str(Path(found).absolute()) if found else ""


def numbered(name: str, env: Mapping[str, str]) -> list[str]:
    """`name-NN` in PATH, the highest number first."""
    found: set[int] = set()
    for folder in env.get("PATH", os.defpath).split(os.pathsep):
        with contextlib.suppress(OSError):
            for file in Path(folder or ".").glob(f"{name}-*"):
                number = file.name.removeprefix(f"{name}-")
                if number.isdigit():
                    found.add(int(number))
    return [f"{name}-{number}" for number in sorted(found, reverse=True)]


def clang_version(path: str, env: Mapping[str, str]) -> int:
    """The first number of its version, 0 if it does not say."""
    import subprocess

    try:
        done = subprocess.run(
            [path, "--version"], capture_output=True, stdin=subprocess.DEVNULL, env=quiet(env), errors="replace"
        )
    except OSError:
        return 0
    found = re.search(r"clang version (\d+)", done.stdout)
    return int(found[1]) if found else 0


def quiet(env: Mapping[str, str]) -> dict[str, str]:
    """The few variables that a compiler needs: the others could change what it makes."""
    kept = ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH")
    return {**{name: env[name] for name in kept if name in env}, "LC_ALL": "C"}


# ---------------------------------------------------------------------------------------------- eBPF


def compile_bpf(
    recipe: Recipe,
    scratch: Path,
    env: Mapping[str, str],
    architectures: Sequence[str],
    epoch_s: int,
    headers: Path | None = None,
) -> tuple[dict[str, bytes], str]:
    """Compile and strip the eBPF source. Returns architecture -> object, and what the compiler said.

    scratch: an empty folder for what comes between
    epoch_s: what __DATE__ and __TIME__ are
    headers: folder with gadget/*.h and vmlinux/<arch>/vmlinux.h; None: igrun's own
    """
    clang = Clang.find(env)
    headers = headers or data.headers()
    if headers is None:
        raise BuildError("the headers for gadgets are missing from this installation", hint="install igrun again")
    surroundings = {**quiet(env), "SOURCE_DATE_EPOCH": str(epoch_s)}
    objects = {one: scratch / f"{one}.bpf.o" for one in architectures}
    said = together(
        {
            f"clang compile for {one}": clang_command(clang, recipe, headers.resolve(), one, path)
            for one, path in objects.items()
        },
        recipe.folder,
        surroundings,
    )
    together(
        {f"llvm-strip for {one}": [clang.strip, "-g", str(path)] for one, path in objects.items()},
        recipe.folder,
        surroundings,
    )
    return {one: path.read_bytes() for one, path in objects.items()}, said


def clang_command(clang: Clang, recipe: Recipe, headers: Path, architecture: str, output: Path) -> list[str]:
    """The command line for one architecture; it runs in the gadget's folder, so that no path of ours gets into it."""
    multiarch = Path(f"/usr/include/{os.uname().machine}-linux-gnu")
    return [
        *(clang.path, "-target", "bpf", "-Wall", "-g", "-O2"),
        f"-D__TARGET_ARCH_{TARGETS[architecture]}",
        f"-ffile-prefix-map={recipe.folder}=.",
        f"-ffile-prefix-map={headers}={HEADERS_AS}",
        "-fdebug-compilation-dir=.",
        *(f"-I{headers / 'vmlinux' / architecture}", f"-I{headers}"),
        *([f"-I{multiarch}"] if multiarch.is_dir() else []),
        *recipe.cflags,
        *("-c", recipe.ebpf, "-o", str(output)),
    ]


def together(commands: Mapping[str, Sequence[str]], folder: Path, env: Mapping[str, str]) -> str:
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
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    why = next((line for line in lines if "error" in line.lower()), lines[-1] if lines else f"exit status {status}")
    hint = ""
    missing = re.search(r"'([^']+)' file not found", output)
    if missing:
        ours = missing[1].startswith("bpf/")
        hint = f"{missing[1]} comes with libbpf's headers ({PACKAGES})" if ours else "check the #include line"
    return BuildError(f"{what}: {why}", output=output, hint=hint)


# ---------------------------------------------------------------------------------------------- WASM


def compile_go(recipe: Recipe, scratch: Path, env: Mapping[str, str]) -> tuple[Path, str]:
    """Compile the Go source. Returns the module's path and what the compiler said."""
    go = which("go", env)
    if not go:
        raise BuildError(f"go is needed to build {recipe.wasm}", hint="install Go 1.24 or newer, or give a .wasm file")
    source = recipe.folder / recipe.wasm
    product = scratch / "program.wasm"
    command = [
        *(go, "build", "-C", str(source.parent), "-o", str(product)),
        *("-buildmode=c-shared", "-trimpath", "-buildvcs=false", "-ldflags", "-w -s", source.name),
    ]
    said = together(
        {f"go build of {recipe.wasm}": command},
        source.parent,
        {**env, "CGO_ENABLED": "0", "GOOS": "wasip1", "GOARCH": "wasm", "LC_ALL": "C"},
    )
    return product, said


def compile_rust(recipe: Recipe, scratch: Path, env: Mapping[str, str]) -> tuple[Path, str]:
    """Compile the Rust source. Returns the module's path and what the compiler said."""
    cargo = which("cargo", env)
    if not cargo:
        raise BuildError(f"cargo is needed to build {recipe.wasm}", hint="install Rust, or give a .wasm file")
    manifest = (recipe.folder / recipe.wasm).parent.parent / "Cargo.toml"
    package = package_name(manifest)
    remap = " ".join(
        f"--remap-path-prefix={path}={name}" for path, name in ((manifest.parent, "."), (scratch, "target"))
    )
    said = together(
        {
            f"cargo build of {recipe.wasm}": [
                *(cargo, "build", "--target", "wasm32-wasip1", "--release", "--manifest-path", str(manifest)),
            ]
        },
        manifest.parent,
        {**env, "CARGO_TARGET_DIR": str(scratch), "RUSTFLAGS": f"{env.get('RUSTFLAGS', '')} {remap}".strip()},
    )
    release = scratch / "wasm32-wasip1" / "release"
    for name in (package, package.replace("-", "_")):
        if (release / f"{name}.wasm").is_file():
            return release / f"{name}.wasm", said
    raise BuildError(f"cargo built no {package}.wasm", output=said, hint='its crate-type must be ["cdylib"]')


def package_name(manifest: Path) -> str:
    """The name in Cargo.toml."""
    import tomllib

    try:
        name = tomllib.loads(manifest.read_text())["package"]["name"]
    except OSError as error:
        raise BuildError(f"cannot read {manifest}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise BuildError(f"{manifest} names no package") from None
    return str(name)
