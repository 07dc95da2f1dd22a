"""Which compiler a build takes, how it is called in a container, and what becomes of its object."""

import io
import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import given
from hypothesis import strategies as st

from igrun.build import build
from igrun.build.container import Builder, Container, Engine, shared
from igrun.build.recipe import Recipe
from igrun.build.strip import strip
from igrun.build.toolchain import Clang, needs_modules
from igrun.errors import BuildError, ParamError
from igrun.oci.store import Store
from tests.compiled import compiled

HEADERS = Path(__file__).parents[2] / "sdk/include"
SOURCE = 'int x;\nSEC("socket") int f(void *ctx) { return x++; }\n'


@pytest.fixture
def gadget(tmp_path):
    folder = tmp_path / "gadgets" / "one"
    folder.mkdir(parents=True)
    (folder / "program.bpf.c").write_text(
        f'#include <vmlinux.h>\n#include <bpf/bpf_helpers.h>\n{SOURCE}char _license[] SEC("license") = "GPL";\n'
    )
    (folder / "gadget.yaml").write_text("name: one\n")
    return folder


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """An empty PATH; `machine(name, script)` puts a program into it."""
    monkeypatch.setattr(Clang, "of_zig", classmethod(lambda cls, env: None))
    folder = tmp_path / "bin"
    folder.mkdir()

    def add(name: str, text: str) -> dict[str, str]:
        path = folder / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return env

    env = {"PATH": str(folder), "SOURCE_DATE_EPOCH": "1700000000"}
    add.env = env
    return add


# An engine that does the work here: what is mounted, the command knows by its place on this machine.
ENGINE = r"""
import json, os, re, subprocess, sys
from pathlib import Path
home = Path(os.environ["FAKE"])
words = sys.argv[1:]
with (home / "log").open("a") as log:
    log.write(json.dumps(words) + "\n")
if words[0] == "--version":
    print(os.environ.get("FAKE_VERSION", "Docker version 99"))
elif words[0] == "info":
    if os.environ.get("FAKE_DOWN"):
        sys.exit("error: cannot connect")
    print(os.environ.get("FAKE_INFO", '["name=seccomp"]'))
elif words[:2] == ["image", "inspect"]:
    if words[-1] not in (home / "images").read_text().split():
        sys.exit("Error: No such image: " + words[-1])
    print("sha256:" + "ab" * 32 if "Id" in words[3] else "")
elif words[0] in ("pull", "build"):
    with (home / "images").open("a") as images:
        name = words[1] if words[0] == "pull" else words[words.index("--tag") + 1]
        images.write(" sha256:" + "ab" * 32 + " " + name)
elif words[0] == "create":
    (home / words[words.index("--name") + 1]).write_text(json.dumps(words))
elif words[0] == "rm":
    (home / words[-1]).unlink(missing_ok=True)
elif words[0] == "start":
    made = json.loads((home / words[-1]).read_text())
    at = made.index("--entrypoint")
    mounts = dict(re.search("source=(.*),target=([^,]*)", one).groups()[::-1] for one in made if "type=bind" in one)
    def here(word):
        places = "|".join(sorted(mounts, key=len, reverse=True))
        return re.sub(rf"(?<![\w/])(-I)?({places})(?=/|$|=)", lambda at: (at[1] or "") + mounts[at[2]], word)
    command = [made[at + 1], *made[at + 3:]]
    if os.environ.get("FAKE_SLOW") and command[1] != "--version":
        subprocess.run(["sleep", "100"])
    result = subprocess.run([here(word) for word in command], cwd=here(made[made.index("--workdir") + 1]),
                            env={"PATH": os.environ["REAL_PATH"]})
    (home / words[-1]).unlink()
    sys.exit(result.returncode)
else:
    sys.exit("unknown " + words[0])
"""


@pytest.fixture
def engine(machine, tmp_path):
    """An environment with a docker that has no daemon: it runs the commands of its containers here."""
    home = tmp_path / "engine"
    home.mkdir()
    (home / "images").write_text("")
    (tmp_path / "engine.py").write_text(ENGINE)
    machine("docker", f'exec {sys.executable} {tmp_path}/engine.py "$@"')
    clang = tmp_path / "real"
    clang.mkdir()
    found = Clang.find(os.environ)
    (clang / "clang").symlink_to(found.path)
    return {**machine.env, "FAKE": str(home), "REAL_PATH": f"{clang}:{os.environ['PATH']}"}


def calls(env: dict[str, str], verb: str) -> list[list[str]]:
    lines = (Path(env["FAKE"]) / "log").read_text().splitlines()
    return [words for words in map(json.loads, lines) if words[0] == verb]


def digest(gadget: Path, tmp_path: Path, env: dict[str, str], **options: object) -> str:
    with Store.open(tmp_path / "store") as store:
        return build(gadget, store=store, env=env, headers=HEADERS, **options).descriptor.digest


def here(gadget: Path, tmp_path: Path) -> str:
    env = {"PATH": os.environ["PATH"], "SOURCE_DATE_EPOCH": "1700000000"}
    return digest(gadget, tmp_path, {**env, "CLANG": Clang.find(env).path})


# ---------------------------------------------------------------------------------------------- the choice


def test_without_clang_igruns_own_builder_image_is_made_once_and_gives_the_same_digest(gadget, tmp_path, engine):
    told = []
    first = digest(gadget, tmp_path, engine, tell=told.append)
    second = digest(gadget, tmp_path, engine, tell=told.append)

    assert first == second == here(gadget, tmp_path)
    [made] = calls(engine, "build")
    name = made[made.index("--tag") + 1]
    assert told == [
        "No clang on this machine: building with docker",
        f"Building the builder image {name} with docker; this is done once",
        "No clang on this machine: building with docker",
    ]
    assert name.startswith("localhost/igrun-builder:")


def test_local_forbids_the_container_and_says_what_is_missing(gadget, tmp_path, engine):
    with pytest.raises(
        BuildError, match=r"clang 14 or newer is needed .*; --local forbids a builder container"
    ) as caught:
        digest(gadget, tmp_path, engine, local=True)
    assert "apt install clang libbpf-dev" in caught.value.hint
    assert "pip install ziglang" in caught.value.hint
    assert not (Path(engine["FAKE"]) / "log").exists()


def test_without_any_compiler_or_engine_the_error_tells_all_three_ways(gadget, tmp_path, machine):
    with pytest.raises(BuildError) as caught:
        digest(gadget, tmp_path, machine.env)
    assert str(caught.value).endswith("no container engine: docker: it is not installed; podman: it is not installed")
    for word in ("apt install clang", "pip install ziglang", "podman"):
        assert word in caught.value.hint


def test_a_builder_image_forces_the_container_where_there_is_a_clang(gadget, tmp_path, engine):
    env = {**engine, "PATH": f"{engine['PATH']}:{os.environ['PATH']}"}

    assert digest(gadget, tmp_path, env, builder_image="mine:1") == here(gadget, tmp_path)
    assert calls(engine, "pull") == [["pull", "mine:1"]]


@pytest.mark.parametrize(("pull", "pulls"), [("always", 2), ("missing", 1)])
def test_a_builder_image_is_pulled_by_the_policy(gadget, tmp_path, engine, pull, pulls):
    for _ in range(2):
        digest(gadget, tmp_path, engine, builder_image="mine:1", builder_image_pull=pull)

    assert len(calls(engine, "pull")) == pulls


def test_a_builder_image_that_is_never_pulled_must_be_there(gadget, tmp_path, engine):
    with pytest.raises(BuildError, match="builder image mine:1 is not there for docker"):
        digest(gadget, tmp_path, engine, builder_image="mine:1", builder_image_pull="never")


def test_flags_that_do_not_go_together_are_refused(gadget, tmp_path, engine):
    with pytest.raises(ParamError, match="--local and --builder-image cannot be used at the same time"):
        digest(gadget, tmp_path, engine, local=True, builder_image="x")
    wrong = r"invalid value for --builder-image-pull: x\. Valid values are always,missing,never"
    with pytest.raises(ParamError, match=wrong):
        digest(gadget, tmp_path, engine, builder_image_pull="x")


def test_ziglang_is_taken_where_there_is_no_clang(gadget, tmp_path, monkeypatch):
    package = tmp_path / "site" / "ziglang"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "zig").write_text(
        '#!/bin/sh\n[ -n "$ZIG_GLOBAL_CACHE_DIR" ] || exit 9\n'
        '[ "$2" = --version ] && { echo "clang version 22.1.8"; exit; }\n'
        f'echo "$@" >> {tmp_path}/args; exit 3\n'
    )
    (package / "zig").chmod(0o755)
    monkeypatch.syspath_prepend(tmp_path / "site")

    with pytest.raises(BuildError, match="clang compile for amd64: exit status 3"):
        digest(gadget, tmp_path, {"PATH": str(tmp_path), "SOURCE_DATE_EPOCH": "1"}, local=True)
    words = (tmp_path / "args").read_text().split()
    assert words[0] == "cc"
    assert {"bpfel-freestanding", "-fno-unwind-tables", "-idirafter/usr/include"} <= set(words)


def test_a_clang_that_was_named_is_not_replaced_by_another(gadget, tmp_path, engine):
    with pytest.raises(BuildError, match=r"\$CLANG is 'mine', which is not there"):
        digest(gadget, tmp_path, {**engine, "CLANG": "mine"})


# ---------------------------------------------------------------------------------------------- engines


def test_podman_is_taken_where_docker_does_not_answer(machine):
    machine("docker", '[ "$1" = --version ] && echo Docker && exit; echo "permission denied" >&2; exit 1')
    machine("podman", '[ "$1" = --version ] && echo podman version 4 || echo true')

    found = Engine.find(machine.env)
    assert (found.name, found.rootless) == ("podman", True)
    with pytest.raises(BuildError, match="docker info: permission denied"):
        Engine.find({**machine.env, "CONTAINER_ENGINE": "docker"})


@pytest.mark.parametrize(
    ("version", "info", "rootless"),
    [
        ("Docker version 99", '["name=seccomp,profile=default"]', False),
        ("Docker version 99", '["name=seccomp","name=rootless"]', True),
        ("podman version 5", "true", True),  # podman-docker
        ("podman version 5", "false", False),
    ],
)
def test_an_engine_says_whether_its_root_is_this_user(engine, version, info, rootless):
    assert Engine.find({**engine, "FAKE_VERSION": version, "FAKE_INFO": info}).rootless == rootless


@pytest.mark.parametrize(("info", "user"), [('["name=rootless"]', "0:0"), ("[]", f"{os.getuid()}:{os.getgid()}")])
def test_a_container_is_small_and_the_callers(gadget, tmp_path, engine, info, user):
    digest(gadget, tmp_path, {**engine, "FAKE_INFO": info}, builder_image="mine:1")

    for words in calls(engine, "create"):
        text = " ".join(words)
        assert f"--user {user} " in text
        for isolation in ("--rm ", "--network none ", "--read-only ", "--cap-drop ALL ", "no-new-privileges"):
            assert isolation in text
        assert f"type=bind,source={gadget},target=/work,readonly" in text
        assert f"type=bind,source={HEADERS},target=/igrun/include,readonly" in text
        assert " sha256:" + "ab" * 32 + " " in text
    assert not list(Path(engine["FAKE"]).glob("igrun-build-*"))


def test_what_fails_in_a_container_leaves_none(gadget, tmp_path, engine):
    (gadget / "program.bpf.c").write_text("int x = ;\n")

    with pytest.raises(BuildError, match=r"clang compile for amd64: program\.bpf\.c:1:9: error"):
        digest(gadget, tmp_path, engine, builder_image="mine:1")
    assert {words[-1] for words in calls(engine, "rm")} == {
        words[words.index("--name") + 1] for words in calls(engine, "create")[1:]
    }


def test_a_build_that_is_interrupted_removes_its_containers(gadget, tmp_path, engine):
    script = (
        "import sys; from pathlib import Path; from igrun.build import build; from igrun.oci.store import Store;"
        "build(sys.argv[1], store=Store.open(sys.argv[2]), headers=Path(sys.argv[3]), builder_image='mine:1')"
    )
    (tmp_path / "tmp").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(gadget), str(tmp_path / "store"), str(HEADERS)],
        env={
            **engine,
            "FAKE_SLOW": "1",
            "PATH": f"{engine['PATH']}:{os.environ['PATH']}",
            "PYTHONPATH": str(HEADERS.parents[1]),
            "TMPDIR": str(tmp_path / "tmp"),
        },
        stderr=subprocess.DEVNULL,
    )
    log = Path(engine["FAKE"]) / "log"
    deadline = time.monotonic() + 20
    while not (log.exists() and len(calls(engine, "start")) == 3):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.3)  # they run; now whoever started them knows that, too
    process.send_signal(signal.SIGINT)
    process.wait(timeout=20)

    assert not list(Path(engine["FAKE"]).glob("igrun-build-*"))
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_folder_that_cannot_be_told_to_an_engine_is_refused(tmp_path, engine):
    folder = tmp_path / "a,b"
    folder.mkdir()
    (folder / "program.bpf.c").write_text("")

    with pytest.raises(BuildError, match="cannot be given to a container"):
        digest(folder, tmp_path, engine, builder_image="mine:1")


# ---------------------------------------------------------------------------------------------- include folders


def test_include_folders_may_be_beside_the_gadget_here_and_in_a_container(gadget, tmp_path, engine):
    (gadget / "inc").mkdir()
    (tmp_path / "far").mkdir()
    (gadget.parent / "common").symlink_to(tmp_path / "far")
    (tmp_path / "far/far.h").write_text("#define FAR 1\n")
    (gadget / "inc/near.h").write_text("#define NEAR FAR\n")
    source = gadget / "program.bpf.c"
    source.write_text(source.read_text().replace("x++", "NEAR") + "#include <near.h>\n#include <far.h>\n")
    source.write_text("#include <near.h>\n#include <far.h>\n" + source.read_text())
    (gadget / "build.yaml").write_text("includes: [inc, ../common]\n")

    container = digest(gadget, tmp_path, engine, builder_image="mine:1", sbom="spdx")
    assert container == here(gadget, tmp_path)
    words = " ".join(calls(engine, "create")[-1])
    assert f"source={gadget},target=/work/one,readonly" in words
    assert f"source={tmp_path}/far,target=/work/common,readonly" in words
    assert "target=/work/one/inc" not in words


def test_folders_above_the_gadget_are_mounted_once(gadget):
    (gadget / "build.yaml").write_text("includes: [.., .]\n")
    root, folders = shared(Recipe.read(gadget))

    assert (root, folders) == (gadget.parent, [(gadget.parent, ".")])
    place = Container.of(Engine("docker", False, {}), Builder("x", "y"), Recipe.read(gadget), HEADERS, gadget)
    assert place.folder == "/work/one"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("includes: inc", "build.yaml: includes: expected a list of folders"),
        ("includes: [/usr/include]", "build.yaml: includes: /usr/include is not relative to the gadget's folder"),
        ("includes: [none]", "build.yaml: includes: none is no folder"),
        ("includes: [-x]", 'wrong build option detected: flags are not accepted: "-x"'),
        ("includes: [../../../../../../../../../../..]", "build.yaml: includes: "),
    ],
)
def test_wrong_include_folders_are_one_clear_error(gadget, text, problem):
    (gadget / "build.yaml").write_text(text)

    with pytest.raises(BuildError) as caught:
        Recipe.read(gadget)
    assert str(caught.value).startswith(problem)


# ---------------------------------------------------------------------------------------------- objects


def sections(data: bytes) -> dict[str, bytes]:
    return {one.name: one.data() for one in ELFFile(io.BytesIO(data)).iter_sections() if one["sh_type"] != "SHT_NOBITS"}


def relocations(data: bytes) -> dict[str, list[tuple[int, str, int]]]:
    elf = ELFFile(io.BytesIO(data))
    symbols = elf.get_section_by_name(".symtab")
    found = {}
    for one in elf.iter_sections():
        if one["sh_type"] == "SHT_REL" and not one.name.startswith(".rel.debug"):
            found[one.name] = [
                (entry["r_offset"], symbol_of(elf, symbols.get_symbol(entry["r_info_sym"])), entry["r_info_type"])
                for entry in one.iter_relocations()
            ]
    return found


def symbol_of(elf: ELFFile, symbol) -> tuple:
    number = symbol["st_shndx"]
    section = elf.get_section(number).name if isinstance(number, int) else number
    return symbol.name, section, symbol["st_value"], symbol["st_size"], symbol["st_info"]["bind"]


def test_an_object_loses_its_debug_information_and_nothing_else():
    before = compiled(SOURCE)
    after = strip(before)

    kept = [name for name in sections(before) if ".debug_" not in name and name != ".llvm_addrsig"]
    assert list(sections(after)) == kept
    own = (".symtab", ".strtab", ".rel")
    for name in kept:
        if not name.startswith(own):
            assert sections(after)[name] == sections(before)[name]
    assert relocations(after) == relocations(before)
    assert ".BTF.ext" in sections(after)
    assert b".debug_" not in after
    assert len(after) < len(before) / 2


def test_symbols_of_what_stays_stay_and_local_ones_stand_first():
    before, after = (ELFFile(io.BytesIO(data)) for data in (compiled(SOURCE), strip(compiled(SOURCE))))
    tables = [elf.get_section_by_name(".symtab") for elf in (before, after)]
    names = [
        {
            symbol_of(elf, one)
            for one in table.iter_symbols()
            if one["st_info"]["type"] not in ("STT_SECTION", "STT_FILE")
        }
        for elf, table in zip((before, after), tables, strict=True)
    ]

    assert names[0] == names[1]
    local = [one["st_info"]["bind"] == "STB_LOCAL" for one in tables[1].iter_symbols()]
    assert local == sorted(local, reverse=True)
    assert tables[1]["sh_info"] == sum(local)


def test_stripping_twice_changes_nothing():
    once = strip(compiled(SOURCE))

    assert strip(once) == once


@given(st.integers(0, 400), st.integers(0, 1 << 32))
def test_a_broken_object_is_one_clear_error(at, value):
    data = bytearray(compiled(SOURCE))
    struct.pack_into("<Q", data, len(data) - at - 8, value)
    for broken in (bytes(data), bytes(data[:at]), b"\x7fELF"):
        try:
            strip(broken)
        except BuildError as error:
            assert str(error).startswith("the compiler made a broken object: ")


@pytest.mark.parametrize(
    ("mod", "vendored", "network"),
    [
        ("module x\n", False, False),
        ("module x\nrequire example.org/a v1.0.0\n", False, True),
        ("module x\nrequire (\n\texample.org/a v1.0.0\n)\n", True, False),
    ],
)
def test_a_go_guest_gets_the_network_only_for_modules_that_are_not_there(gadget, mod, vendored, network):
    (gadget / "go/cmd").mkdir(parents=True)
    (gadget / "go/cmd/main.go").write_text("package main\n")
    (gadget / "go/go.mod").write_text(mod)
    if vendored:
        (gadget / "go/vendor").mkdir()
    (gadget / "build.yaml").write_text("wasm: go/cmd/main.go\n")

    assert needs_modules(Recipe.read(gadget)) == network
