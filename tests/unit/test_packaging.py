"""What a wheel holds, and that it does not depend on where it is built."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from igrun import data

ROOT = Path(__file__).parent.parent.parent
EPOCH = "1700000000"


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source distribution, unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    hatchling(ROOT, "sdist", folder)
    subprocess.run(["tar", "-xzf", next(folder.glob("*.tar.gz"))], cwd=folder, check=True)
    return next(path for path in folder.iterdir() if path.is_dir())


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel that is built from it."""
    folder = tmp_path_factory.mktemp("wheel")
    hatchling(sdist, "wheel", folder)
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def hatchling(source: Path, target: str, folder: Path) -> None:
    pytest.importorskip("hatchling", reason="hatchling, which builds the packages, is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(folder)],
        cwd=source,
        env={**os.environ, "SOURCE_DATE_EPOCH": EPOCH},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_source_distribution_holds_the_sources(sdist):
    for name in ("gadgets/trace_open/program.bpf.c", "sdk/include/gadget/macros.h", "hatch_build.py", "Makefile"):
        assert (sdist / name).exists()
    assert not (sdist / "igrun/_data").exists()


def test_a_wheel_is_for_every_machine_and_holds_all_that_a_run_and_a_build_need(wheel):
    names = wheel.namelist()

    assert Path(wheel.filename or "").name.endswith("-py3-none-any.whl")
    assert "igrun/_data/gadgets/index.json" in names
    assert "igrun/_data/sdk/include/gadget/macros.h" in names
    assert {f"igrun/_data/sdk/include/vmlinux/{one}/vmlinux.h" for one in ("amd64", "arm64")} <= set(names)
    assert {"igrun/py.typed", "igrun/_data/Dockerfile.builder", "igrun/engine/records.wasm"} <= set(names)
    assert {f"igrun/_data/bpf/{one}/btf_probe.bpf.o" for one in ("amd64", "arm64")} <= set(names)
    assert {"LICENSE", "LICENSE-bpf"} <= {Path(name).name for name in names if "/licenses/" in name}
    assert not [name for name in names if name.endswith(".lock") or "/ingest/" in name]


def test_the_gadgets_of_a_wheel_are_byte_for_byte_those_of_another_folder(wheel, tmp_path):
    script = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]); from hatch_build import compile_into; "
        "compile_into(Path(sys.argv[2]), Path(sys.argv[1]))"
    )
    command = [sys.executable, "-c", script, str(ROOT), str(tmp_path)]
    subprocess.run(command, env={**os.environ, "SOURCE_DATE_EPOCH": EPOCH}, check=True)

    there = {
        name.removeprefix("igrun/_data/"): wheel.read(name)
        for name in wheel.namelist()
        if name.startswith(("igrun/_data/gadgets/", "igrun/_data/bpf/"))
    }
    here = {str(path.relative_to(tmp_path)): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert sorted(here) == sorted(there)
    assert here == there


def test_every_gadget_of_the_checkout_is_bundled_under_its_short_name(wheel, tmp_path):
    from igrun.oci.store import Store

    for name in wheel.namelist():
        if name.startswith("igrun/_data/gadgets/"):
            wheel.extract(name, tmp_path)
    with Store.open(tmp_path / "igrun/_data/gadgets", writable=False) as store:
        found = {one.name for one in store.list()}

    assert found == {f"{path.parent.name}:latest" for path in ROOT.glob("gadgets/*/gadget.yaml")}


def test_data_is_found_in_a_wheel_and_in_a_checkout(tmp_path):
    package = tmp_path / "igrun"
    (tmp_path / "sdk/include").mkdir(parents=True)
    package.mkdir()
    assert data.find("sdk/include", package) is None  # some folder beside an installed package is not ours

    (tmp_path / "hatch_build.py").touch()
    assert data.find("sdk/include", package) == tmp_path / "sdk/include"

    (package / "_data/sdk/include").mkdir(parents=True)
    assert data.find("sdk/include", package) == package / "_data/sdk/include"
    assert data.find("gadgets", package) is None
