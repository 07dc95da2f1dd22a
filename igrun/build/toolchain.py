"""Compilers: clang for eBPF, go and cargo for WASM modules. They run in a place: here or in a container."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from igrun.build.places import HEADERS_AS, PACKAGES, Here, Place, quiet, which
from igrun.build.recipe import Recipe
from igrun.build.strip import strip
from igrun.dataclass import dataclass
from igrun.errors import BuildError

OLDEST_CLANG = 14
TARGETS = {"amd64": "x86", "arm64": "arm64"}
# Zig's own copies of the kernel's headers, for machines without any
ZIG_LINUX = {"x86_64": "x86-linux-any", "aarch64": "aarch64-linux-any"}
ZIG_AS = "/usr/lib/zig"


@dataclass(frozen=True, slots=True)
class Clang:
    """A clang that can compile for BPF.

    path:    how it is called
    version: the first number of its version
    full:    what it says about its version
    zig:     the folder of zig's library, None if it is a plain clang
    """

    path: str
    version: int
    full: str = ""
    zig: Path | None = None

    @classmethod
    def find(cls, env: Mapping[str, str]) -> Clang:
        """$CLANG, else the `clang` of PATH if it is new enough, else the newest `clang-NN`."""
        wish = env.get("CLANG", "")
        too_old = ""
        for candidate in [wish] if wish else ["clang", *numbered("clang", env)]:
            path = which(candidate, env)
            found = cls.asked([path], quiet(env)) if path else None
            if found and found.version >= OLDEST_CLANG:
                return found
            if path and not too_old:
                too_old = f"{path} is version {found.version}" if found else f"{path} is no clang"
        problem = too_old or (f"$CLANG is {wish!r}, which is not there" if wish else "there is none on this machine")
        raise BuildError(f"clang {OLDEST_CLANG} or newer is needed to build a gadget: {problem}", hint=PACKAGES)

    @classmethod
    def of_zig(cls, env: Mapping[str, str]) -> Clang | None:
        """The clang in PyPI's `ziglang`, where that is installed beside igrun."""
        from importlib.util import find_spec
        from tempfile import TemporaryDirectory

        spec = find_spec("ziglang")
        for folder in (spec and spec.submodule_search_locations) or ():
            zig = Path(folder) / "zig"
            if not zig.is_file():
                continue
            with TemporaryDirectory(prefix="gadget-build-") as cache:
                found = cls.asked([str(zig), "cc"], {**quiet(env), **zig_cache(cache)}, Path(folder) / "lib")
            if found and found.version >= OLDEST_CLANG:
                return found
        return None

    @classmethod
    def asked(cls, command: Sequence[str], env: Mapping[str, str], zig: Path | None = None) -> Clang | None:
        """What a clang of this machine says about itself, in just that environment; None: it is no clang."""
        import subprocess

        try:
            done = subprocess.run(
                [*command, "--version"], capture_output=True, stdin=subprocess.DEVNULL, env=env, errors="replace"
            )
        except OSError:
            return None
        return cls.said(command[0], done.stdout, zig)

    @classmethod
    def said(cls, path: str, text: str, zig: Path | None = None) -> Clang | None:
        found = re.search(r"clang version ((\d+)\S*)", text)
        return cls(path, int(found[2]), found[1], zig) if found else None

    @classmethod
    def there(cls, place: Place, name: str) -> Clang:
        """The clang of a builder image. BuildError: it has none that is new enough."""
        try:
            text = place.run({"clang --version": ["clang", "--version"]}, {})
        except BuildError as error:
            raise BuildError(
                f"builder image {name}: {error}", output=error.output, hint="any image with clang and libbpf's headers"
            ) from None
        found = cls.said("clang", text)
        if found is None or found.version < OLDEST_CLANG:
            has = f"clang {found.full}" if found else "no clang"
            raise BuildError(
                f"clang {OLDEST_CLANG} or newer is needed to build a gadget: builder image {name} has {has}"
            )
        return found

    def command(self, place: Place, recipe: Recipe, architecture: str) -> list[str]:
        """The command line for one architecture; it runs in the gadget's folder, so that no path of ours gets into it.

        Beside the object it writes what that depends on, `<architecture>.d`.
        """
        multiarch = place.multiarch()
        target = ["-target", "bpf", *(f"-I{folder}" for folder in multiarch)]
        if self.zig:
            machine = os.uname().machine
            linux = [
                f"{self.zig}/libc/include/{name}" for name in (ZIG_LINUX.get(machine, ""), "any-linux-any") if name
            ]
            target = [
                *("-target", "bpfel-freestanding", f"-ffile-prefix-map={self.zig}={ZIG_AS}"),
                # without these it adds a section that libbpf warns of
                *("-fno-unwind-tables", "-fno-asynchronous-unwind-tables"),
                # it does not look there by itself
                *(f"-idirafter{folder}" for folder in ("/usr/local/include", "/usr/include", *multiarch, *linux)),
            ]
        return [
            *((self.path, "cc") if self.zig else (self.path,)),
            *("-Wall", "-g", "-O2", f"-D__TARGET_ARCH_{TARGETS[architecture]}"),
            # it means BPF_CORE_READ of libbpf before 1.6, which does initialize what it reads into
            *(("-Wno-default-const-init-var-unsafe",) if self.version >= 21 else ()),
            f"-ffile-prefix-map={place.folder}=.",
            f"-ffile-prefix-map={place.headers}={HEADERS_AS}",
            "-fdebug-compilation-dir=.",
            *(f"-I{place.headers}/vmlinux/{architecture}", f"-I{place.headers}"),
            *target,
            *(f"-I{folder}" for folder in recipe.includes),
            *recipe.cflags,
            *("-MD", "-MF", f"{place.out}/{architecture}.d"),
            *("-c", recipe.ebpf, "-o", f"{place.out}/{architecture}.bpf.o"),
        ]


def zig_cache(folder: str) -> dict[str, str]:
    """The variables that say where zig keeps what it made, so that a build leaves nothing behind."""
    return {f"ZIG_{one}_CACHE_DIR": folder for one in ("GLOBAL", "LOCAL")}


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


# ---------------------------------------------------------------------------------------------- eBPF


def compile_bpf(
    clang: Clang, place: Place, recipe: Recipe, architectures: Sequence[str], epoch_s: int
) -> tuple[dict[str, bytes], str]:
    """Compile and strip the eBPF source. Returns architecture -> object, and what the compiler said.

    epoch_s: what __DATE__ and __TIME__ are
    """
    variables = {"SOURCE_DATE_EPOCH": str(epoch_s)}
    if clang.zig:
        variables |= zig_cache(f"{place.out}/zig")
    commands = {f"clang compile for {one}": clang.command(place, recipe, one) for one in architectures}
    said = place.run(commands, variables)
    return {one: strip(product(place, f"{one}.bpf.o")) for one in architectures}, said


def product(place: Place, name: str) -> bytes:
    """What a compiler made."""
    try:
        return (place.made / name).read_bytes()
    except OSError as error:
        raise BuildError(f"the compiler made no {name}: {error.strerror}") from None


# ---------------------------------------------------------------------------------------------- WASM


def compile_go(place: Place, recipe: Recipe) -> tuple[bytes, str]:
    """Compile the Go source. Returns the module, and what the compiler said."""
    go = place.which("go")
    if not go:
        raise BuildError(f"go is needed to build {recipe.wasm}", hint="install Go 1.24 or newer, or give a .wasm file")
    source = Path(recipe.wasm)
    command = [
        *(go, "build", "-C", os.path.normpath(f"{place.folder}/{source.parent}"), "-o", f"{place.out}/program.wasm"),
        *("-buildmode=c-shared", "-trimpath", "-buildvcs=false", "-ldflags", "-w -s", source.name),
    ]
    variables = {"CGO_ENABLED": "0", "GOOS": "wasip1", "GOARCH": "wasm", "LC_ALL": "C"}
    said = place.run({f"go build of {recipe.wasm}": command}, variables, settings=True, network=needs_modules(recipe))
    return product(place, "program.wasm"), said


def needs_modules(recipe: Recipe) -> bool:
    """Whether a Go guest is made of modules that are not beside it."""
    package = (recipe.folder / recipe.wasm).parent
    for folder in (package, *package.parents):
        if (folder / "go.mod").is_file():
            text = (folder / "go.mod").read_text(errors="replace")
            return re.search(r"^require\b", text, re.MULTILINE) is not None and not (folder / "vendor").is_dir()
    return False


def compile_rust(place: Place, recipe: Recipe) -> tuple[bytes, str]:
    """Compile the Rust source. Returns the module, and what the compiler said."""
    cargo = place.which("cargo")
    if not cargo:
        raise BuildError(f"cargo is needed to build {recipe.wasm}", hint="install Rust, or give a .wasm file")
    crate = os.path.normpath(Path(recipe.wasm).parent.parent)
    package = package_name(recipe.folder / crate / "Cargo.toml")
    folder = os.path.normpath(f"{place.folder}/{crate}")
    own = place.env.get("RUSTFLAGS", "") if isinstance(place, Here) else ""
    remap = " ".join(f"--remap-path-prefix={path}={name}" for path, name in ((folder, "."), (place.out, "target")))
    said = place.run(
        {
            f"cargo build of {recipe.wasm}": [
                *(cargo, "build", "--target", "wasm32-wasip1", "--release", "--manifest-path", f"{folder}/Cargo.toml"),
            ]
        },
        {"CARGO_TARGET_DIR": place.out, "RUSTFLAGS": f"{own} {remap}".strip()},
        settings=True,
        network=True,
    )
    release = place.made / "wasm32-wasip1" / "release"
    for name in (package, package.replace("-", "_")):
        if (release / f"{name}.wasm").is_file():
            return (release / f"{name}.wasm").read_bytes(), said
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
