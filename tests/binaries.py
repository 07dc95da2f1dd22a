"""Programs and libraries for this machine, built from a few lines of C or Go."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.compiled import CLANG
from tests.vm import errand

# Every Go there is: what its linkers write differs. $IGRUN_TEST_GO: directories of more.
GO_FOLDERS = (
    *os.environ.get("PATH", "").split(":"),
    "/usr/local/go/bin",
    *map(str, sorted(Path("/usr/lib").glob("go*/bin"))),
    *os.environ.get("IGRUN_TEST_GO", "").split(":"),
)
GOS = tuple(
    {str(Path(one).resolve()): one for folder in GO_FOLDERS if (one := shutil.which("go", path=folder))}.values()
)
GO = next(iter(GOS), None)
OBJCOPY = next((name for name in ("llvm-objcopy", "llvm-objcopy-14") if shutil.which(name)), None)
# 3 times each; `hidden` is seen by its own source file alone
PROGRAM = """
#include <sys/sdt.h>
#define NOINLINE __attribute__((noinline))
NOINLINE int once(int n) { __asm__ volatile("" : "+r"(n)); return n + 1; }
NOINLINE int twice(int n) { __asm__ volatile("" : "+r"(n)); return n * 2; }
NOINLINE static int hidden(int n) { __asm__ volatile("" : "+r"(n)); return n - 1; }
int main(int argc, char **argv)
{
	volatile long large = -5;
	int sum = 0;

	for (int i = 0; i < 3; i++)
		sum += once(i) + twice(i) + hidden(i);
	STAP_PROBE(test, bare);
	STAP_PROBE3(test, three, argc, large, 42);
	if (argc > 1)
		STAP_PROBE3(test, three, argc, large, 42);
	return sum != 12;
}
"""
# Ends with 1 if somebody watches its probe
WATCHED = """
#define _SDT_HAS_SEMAPHORES 1
#include <sys/sdt.h>
__extension__ volatile unsigned short test_watched_semaphore __attribute__((section(".probes")));
int main(void)
{
	STAP_PROBE1(test, watched, 7);
	return test_watched_semaphore;
}
"""
GOES = """
package main

import "os"

//go:noinline
func work(n int) int { return n + len(os.Args) }

type thing struct{ n int }

//go:noinline
func (t *thing) Method() int { return t.n }

func main() {
	sum := 0
	for i := 0; i < 3; i++ {
		sum += work(i)
		sum += (&thing{sum}).Method()
	}
	if sum == 4711 {
		os.Exit(1)
	}
}
"""


def build(path: Path, source: str, *flags: str) -> Path:
    """Compile and link."""
    if CLANG is None:
        pytest.skip("no clang: install clang 14 or later (Debian and Ubuntu: apt install clang)")
    position = () if "-no-pie" in flags else ("-fPIC",)
    done = errand.run([CLANG, "-O1", "-g", *position, "-c", "-xc", "-", "-o", "-"], source)
    assert done.returncode == 0, done.stderr.decode()
    object_ = path.with_name(f"{path.name}.o")
    object_.write_bytes(done.stdout)
    subprocess.run(["cc", str(object_), *flags, "-Wl,--build-id", "-o", str(path)], check=True)
    object_.unlink()
    return path


def objcopy(data: bytes, *flags: str) -> bytes:
    """What llvm-objcopy makes of a file."""
    if OBJCOPY is None:
        pytest.skip("no llvm-objcopy: install llvm (Debian and Ubuntu: apt install llvm)")
    done = errand.run([OBJCOPY, *flags, "-", "-"], data)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def with_debug_link(path: Path, debug: Path) -> None:
    """Let a program name its debug file."""
    command = [OBJCOPY or "objcopy", f"--add-gnu-debuglink={debug}", str(path)]
    subprocess.run(command, check=True)  # it reads the debug file, so it runs where that is


def go_environment() -> dict[str, str]:
    """Without what this machine tells its own Go, which another one may not know."""
    return {**os.environ, "GOENV": "off", "GOTOOLCHAIN": "local"}


def build_go(folder: Path, *flags: str, source: str = GOES, go: str | None = GO) -> Path:
    """Compile and link a Go program."""
    if go is None:
        pytest.skip("no Go: install it from go.dev (Debian and Ubuntu: apt install golang-go)")
    (folder / "main.go").write_text(source)
    (folder / "go.mod").write_text("module example.org/test\n\ngo 1.15\n")
    command = [go, "build", "-trimpath", "-o", "goes", *flags]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=go_environment())
    assert done.returncode == 0, done.stderr
    return folder / "goes"
