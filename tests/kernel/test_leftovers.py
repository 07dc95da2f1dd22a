"""Every test of the kernel is looked after: what it leaves there fails it."""

import os
import subprocess
import sys
from ctypes import addressof, create_string_buffer
from pathlib import Path
from struct import pack

import pytest

from igrun import bpfcall
from tests.kernel.networks import command, network
from tests.leftovers import PINS, described, left_since, there

pytestmark = pytest.mark.kernel
MAP_CREATE, OBJ_PIN, ARRAY = 0, 6, 2
SOCKET_FILTER = 1
LEAVES = """
import pytest
from igrun import bpfcall
kept = []

@pytest.mark.kernel
def test_leaves_a_program():
    kept.append(bpfcall.prog_load(1, name="forgotten"))

@pytest.mark.kernel
def test_leaves_nothing():
    pass

def test_is_none_of_the_kernel():
    kept.append(bpfcall.prog_load(1, name="forgotten"))
"""


def test_a_program_and_a_map_that_are_left_are_told():
    before = there()
    program = bpfcall.prog_load(SOCKET_FILTER, name="forgotten")
    map_ = bpfcall.call(MAP_CREATE, pack("=IIII", ARRAY, 4, 8, 1), "make a map")

    left = left_since(before, 0.1)
    assert {("program", bpfcall.id_of(program)), ("map", bpfcall.id_of(map_))} <= left
    assert "(forgotten)" in described(left)

    os.close(program)
    os.close(map_)
    assert not left_since(before)


def test_a_pin_that_is_left_is_told():
    before = there()
    path = PINS / f"forgotten-{os.getpid()}"
    name = create_string_buffer(os.fsencode(path))
    program = bpfcall.prog_load(SOCKET_FILTER)
    number = bpfcall.id_of(program)
    bpfcall.call(OBJ_PIN, pack("=QI", addressof(name), program), "pin")
    os.close(program)

    assert {("program", number), ("pin", str(path))} <= left_since(before, 0.1)

    path.unlink()
    assert not left_since(before)


def test_a_place_of_filters_that_is_left_is_told_here_and_in_a_namespace():
    with network() as net:
        before = there()
        command("tc", "qdisc", "add", "dev", net.outer, "clsact")
        command("tc", "-n", net.name, "qdisc", "add", "dev", net.inner, "clsact")
        left = left_since(before, 0.1)
    assert {what for kind, what in left if kind == "clsact"} == {net.outer, f"{net.name}/{net.inner}"}
    assert not left_since(before)


def test_what_another_process_holds_is_its_own():
    before = there()
    script = "from igrun import bpfcall; print(bpfcall.id_of(bpfcall.prog_load(1)), flush=True); input()"
    environment = {name: value for name, value in os.environ.items() if name != "IGRUN_TESTS_OF"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    pipe = subprocess.PIPE
    for env, ours in ((environment, False), ({**environment, "IGRUN_TESTS_OF": str(os.getpid())}, True)):
        with subprocess.Popen([sys.executable, "-c", script], env=env, stdin=pipe, stdout=pipe) as process:
            number = int(process.stdout.readline())
            assert (("program", number) in left_since(before, 1.0)) == ours
            process.communicate(b"\n")


def test_a_test_that_leaves_something_fails(tmp_path):
    (tmp_path / "test_leaving.py").write_text(LEAVES)
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["tests.leftovers"]\n')
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    kernel\n    guest\n")
    root = str(Path(__file__).parents[2])
    program = f"import sys; sys.path.append({root!r}); import pytest; from tests import leftovers;"
    program += "leftovers.PATIENCE_S = 0.3; sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider']))"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)

    assert "3 passed" in done.stdout and "1 error" in done.stdout, done.stdout + done.stderr
    assert "left in the kernel: program" in done.stdout and "(forgotten)" in done.stdout
