"""Gadgets are built in containers of the real docker and podman, by an image made of Dockerfile.builder."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from igrun.build import build
from igrun.build.toolchain import Clang
from igrun.host import GOARCH
from igrun.image import unpack
from igrun.oci.model import Manifest
from igrun.oci.store import Store
from igrun.runtime import Gadget
from tests.containers.conftest import EPOCH

pytestmark = [pytest.mark.containers, pytest.mark.root]

SLOW_CLANG = r"""
FROM {base}
RUN mv /usr/bin/clang /usr/bin/the-clang && chmod 755 /usr/bin/the-clang && printf '%s\n' '#!/bin/sh' \
    '[ "$1" = --version ] || sleep 100' 'exec the-clang "$@"' > /usr/bin/clang && chmod 755 /usr/bin/clang
"""


def local_digest(folder: Path, store: Path, clang: str = "clang-14") -> str:
    """What this machine's clang of that version makes of it."""
    if not shutil.which(clang):
        pytest.skip(f"no {clang} on this machine to compare with (apt install {clang})")
    env = {"PATH": os.environ["PATH"], "CLANG": clang, "SOURCE_DATE_EPOCH": EPOCH}
    assert Clang.find(env).full == "14.0.6"
    with Store.open(store) as place:
        return build(folder, local=True, store=place, env=env).descriptor.digest


def test_where_there_is_no_clang_a_builder_image_is_made_once_and_gives_what_the_same_clang_gives_here(
    engine, builds, gadget, tmp_path
):
    folder = gadget()
    first = builds.run(engine, folder, sbom="spdx", provenance=True)
    again = builds.run(engine, folder)

    assert first.get("digest"), first
    engine_name = "docker" if engine.name == "docker" else "podman"
    assert again["told"] == [f"No clang on this machine: building with {engine_name}"]
    assert first["digest"] == again["digest"] == local_digest(folder, tmp_path / "store")
    assert first["attached"] == ["application/spdx+json", "application/vnd.in-toto+json"]
    assert engine.left() == []
    assert [path.name for path in builds.scratch(engine).iterdir()] == ["store"]


def builder(engine, builds, gadget) -> str:
    """The name of igrun's own builder image, which is there after this."""
    made = builds.run(engine, gadget(to="for-the-builder"))
    assert made.get("digest"), made
    names = engine.call("images", "--format", "{{.Repository}}:{{.Tag}}").split()
    return next(name for name in names if "igrun-builder:" in name)


def test_an_image_that_is_named_is_pulled_as_asked(engine, builds, gadget):
    name = builder(engine, builds, gadget)
    folder = gadget()

    for pull in ("missing", "never"):
        made = builds.run(engine, folder, builder_image=name, builder_image_pull=pull)
        assert (made["told"], bool(made["digest"])) == ([], True)
    missing = builds.run(engine, folder, builder_image="localhost/none:1", builder_image_pull="never")
    assert missing["error"].startswith("builder image localhost/none:1 is not there for ")
    pulled = builds.run(engine, folder, builder_image="localhost:1/none:1")
    assert pulled["told"] == [f"Pulling builder image localhost:1/none:1 with {Path(engine.program).name}"]
    assert f"builder image localhost:1/none:1: {Path(engine.program).name} pull: " in pulled["error"]


def test_an_image_without_a_clang_is_refused_by_name(engine, builds, gadget):
    from tests.containers.engines import BASE

    said = builds.run(engine, gadget(), builder_image=BASE, builder_image_pull="never")

    assert said["error"].startswith(f"builder image {BASE}: clang --version: ")
    assert "not found" in said["error"]
    assert engine.left() == []


def test_what_does_not_compile_is_told_in_the_compilers_words(engine, builds, gadget):
    name = builder(engine, builds, gadget)
    folder = gadget()
    (folder / "program.bpf.c").write_text("int x = ;\n")

    said = builds.run(engine, folder, builder_image=name, builder_image_pull="never")
    assert said["error"].startswith("clang compile for amd64: program.bpf.c:1:9: error: expected expression")
    assert engine.left() == []


def test_include_folders_beside_the_gadget_are_there_in_a_container(engine, builds, gadget, tmp_path):
    folder = gadget(to="gadgets/one/gadget")
    (builds.folder / "gadgets/common").mkdir()
    (builds.folder / "gadgets/common/mine.h").write_text("#define MINE 1\n")
    source = folder / "program.bpf.c"
    source.write_text(source.read_text().replace("#include <gadget/b", "#include <mine.h>\n#include <gadget/b", 1))
    (folder / "build.yaml").write_text("includes: [../../common]\ncflags: -DX=MINE\n")

    made = builds.run(engine, folder, provenance=True)
    assert made.get("digest") == local_digest(folder, tmp_path / "store"), made


def test_the_objects_are_the_callers(engine, builds, gadget):
    name = builder(engine, builds, gadget)
    out = builds.scratch(engine) / "out"
    out.mkdir()
    if engine.user:
        os.chown(out, engine.user.pw_uid, engine.user.pw_gid)
    made = builds.run(engine, gadget(), output=str(out), builder_image=name, builder_image_pull="never")

    assert made.get("digest"), made
    owner = engine.user.pw_uid if engine.user else os.getuid()
    assert {path.name: path.stat().st_uid for path in out.iterdir()} == {"amd64.bpf.o": owner, "arm64.bpf.o": owner}


def test_a_build_that_is_interrupted_leaves_nothing_behind(engine, builds, gadget):
    name = builder(engine, builds, gadget)
    context = builds.scratch(engine) / "context"
    context.mkdir()
    (context / "Dockerfile").write_text(SLOW_CLANG.format(base=name))
    context.chmod(0o755)
    engine.call("build", "--network", "host", "--tag", "localhost/slow:1", str(context))
    command, env = builds.command(engine, gadget(), builder_image="localhost/slow:1", builder_image_pull="never")
    process = subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL, cwd="/")
    deadline = time.monotonic() + 60
    while len([one for one in engine.left() if one.startswith("igrun-build-")]) < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    process.wait(timeout=60)

    assert engine.left() == []
    assert not list(builds.scratch(engine).glob("gadget-build-*"))


def test_a_go_guest_is_built_by_an_image_that_has_go(podman, builds, gadget, tmp_path):
    go = shutil.which("go")
    root = Path(subprocess.run([go, "env", "GOROOT"], capture_output=True, text=True).stdout.strip()) if go else None
    if root is None or not (root / "bin/go").exists():
        pytest.skip("no Go on this machine to put into an image")
    name = builder(podman, builds, gadget)
    dockerfile = builds.scratch(podman) / "Dockerfile"
    dockerfile.write_text(f"FROM {name}\nCOPY . /usr/local/go\nENV PATH=/usr/local/go/bin:/usr/bin:/bin\n")
    podman.call("build", "--tag", "localhost/go:1", "--file", str(dockerfile), str(root))
    folder = gadget()
    guest(folder)

    made = builds.run(podman, folder, builder_image="localhost/go:1", builder_image_pull="never", sbom="cyclonedx")
    assert made.get("digest"), made
    env = {**os.environ, "CLANG": "clang-14", "SOURCE_DATE_EPOCH": EPOCH}
    with Store.open(tmp_path / "store") as place:
        assert build(folder, local=True, store=place, env=env).descriptor.digest == made["digest"]


def guest(folder: Path) -> None:
    (folder / "go").mkdir()
    (folder / "go/go.mod").write_text("module example.org/guest\n\ngo 1.24\n")
    (folder / "go/program.go").write_text(
        "package main\n\n//go:wasmexport gadgetInit\nfunc gadgetInit() int32 { return 0 }\n\nfunc main() {}\n"
    )
    (folder / "build.yaml").write_text("wasm: go/program.go\n")


@pytest.fixture
def ziglang(monkeypatch) -> None:
    """The package from PyPI: installed, or in the folder $IGRUN_TEST_ZIGLANG."""
    from importlib.util import find_spec

    folder = os.environ.get("IGRUN_TEST_ZIGLANG", "")
    if folder:
        monkeypatch.syspath_prepend(folder)
    if find_spec("ziglang") is None:
        pytest.skip("ziglang is not installed: pip install ziglang (411 MB)")


@pytest.mark.kernel
def test_the_clang_of_ziglang_builds_where_there_is_no_other_and_what_it_makes_runs(ziglang, builds, gadget, tmp_path):
    (tmp_path / "none").mkdir()
    env = {"PATH": str(tmp_path / "none"), "SOURCE_DATE_EPOCH": EPOCH}
    digests = set()
    for number in range(2):
        with Store.open(tmp_path / f"store-{number}") as place:
            built = build(gadget(to=f"{number}/gadget"), local=True, store=place, env=env, sbom="spdx")
            digests.add(built.descriptor.digest)
            assert b"ziglang" not in place.read(Manifest.parse(place.read(built.attached[0])).layers[0])
            image = unpack(place, built.descriptor, GOARCH[os.uname().machine])
    assert len(digests) == 1
    assert not built.output

    with Gadget.of(image).run(timeout_s=1, comm="cat", filter="fname~hostname") as run:
        subprocess.run(["cat", "/etc/hostname"], check=True, capture_output=True)
        names = [row["fname"] for batch in run for row in batch.rows()]
    assert names == ["/etc/hostname"]
