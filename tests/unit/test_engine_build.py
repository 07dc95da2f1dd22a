"""The compiled record engine is what its sources say, and starts from a cache that nobody else can write."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from igrun import caches, engine
from igrun.engine import machine

ROOT = Path(__file__).parents[2]


def test_the_compiled_engine_is_what_its_sources_compile_to(tmp_path):
    done = subprocess.run([ROOT / ".ci/records", tmp_path / "records.wasm"], capture_output=True, text=True)
    if done.returncode == 3:
        pytest.skip(done.stderr.strip())

    assert done.returncode == 0, done.stderr
    assert (tmp_path / "records.wasm").read_bytes() == (ROOT / "igrun/engine/records.wasm").read_bytes()


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setattr(caches, "home", lambda: tmp_path)
    return tmp_path


def entries(home):
    return sorted((home / "engine").iterdir())


def test_compiled_code_is_kept_and_only_its_owner_can_read_it(home):
    machine.Machine()
    (kept,) = entries(home)

    assert kept.stat().st_mode & 0o777 == 0o600
    assert kept.parent.stat().st_mode & 0o777 == 0o700


def test_kept_code_is_used(home, monkeypatch):
    machine.Machine()
    monkeypatch.setattr(caches, "write", lambda path, data: pytest.fail("it was compiled again"))

    machine.Machine()


@pytest.mark.parametrize("spoil", [b"", b"\x7fELF", None])
def test_damaged_code_is_compiled_again(home, spoil):
    machine.Machine()
    (kept,) = entries(home)
    good = kept.read_bytes()
    kept.write_bytes(good[:-4096] if spoil is None else spoil)

    machine.Machine()

    assert len(kept.read_bytes()) == len(good)


@pytest.mark.parametrize("spoilt", ["file", "folder"])
def test_code_that_others_could_have_written_is_not_run(home, monkeypatch, spoilt):
    machine.Machine()
    (kept,) = entries(home)
    (kept if spoilt == "file" else kept.parent).chmod(0o777)
    compiled = []
    monkeypatch.setattr(caches, "write", lambda path, data: compiled.append(path))

    machine.Machine()

    assert compiled == [kept]


def test_another_processor_or_library_or_engine_has_code_of_its_own(tmp_path, monkeypatch):
    library = machine.found()
    one = machine.digest(library, b"wasm")
    other = tmp_path / "library"
    other.write_bytes(b"")

    assert machine.digest(library, b"other") != one
    assert machine.digest(other, b"wasm") != one
    monkeypatch.setattr(machine, "cpu", lambda: [b"flags: none"])
    assert machine.digest(library, b"wasm") != one


def test_without_wasmtime_the_reference_prints_and_says_so(monkeypatch, caplog):
    def none():
        raise machine.NoEngineError("the package wasmtime is not installed")

    monkeypatch.setattr(machine, "found", none)

    assert type(engine.open()).__name__ == "Reference"
    assert "the package wasmtime is not installed" in caplog.text


def test_where_memory_is_limited_the_reference_prints():
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30)); "
        "from igrun import engine; print(type(engine.open()).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert done.stdout == "Reference\n", done.stderr
    assert "events are printed by the slow engine" in done.stderr


def test_a_wasmtime_without_a_function_is_told(monkeypatch):
    monkeypatch.setattr(machine, "WASMTIME", machine.WASMTIME + "void wasmtime_other(void *store);\n")

    with pytest.raises(machine.NoEngineError, match="no wasmtime_other"):
        machine.Machine()


def test_the_reference_can_be_asked_for(monkeypatch):
    monkeypatch.setenv("IGRUN_ENGINE", "reference")

    assert type(engine.open()).__name__ == "Reference"


def test_the_engine_imports_neither_wasmtime_nor_numpy():
    code = (
        "import sys; from igrun import engine; engine.open(); print(sorted({'wasmtime', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ})

    assert done.stdout == "[]\n", done.stderr
