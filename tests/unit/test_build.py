"""Building gadgets with the real clang."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import wasmtime

from igrun.build import Built, build
from igrun.build.recipe import Recipe
from igrun.build.toolchain import Clang
from igrun.build.when import created, source_time
from igrun.errors import BuildError, MetadataError
from igrun.image import unpack
from igrun.metadata.document import load
from igrun.oci.model import CREATED
from igrun.oci.store import Store

HEADERS = Path(__file__).parents[2] / "sdk/include"
ENV = {"PATH": os.environ["PATH"], "SOURCE_DATE_EPOCH": "1700000000"}
SOURCE = """\
// SPDX-License-Identifier: GPL-2.0
#include <vmlinux.h>
#include <bpf/bpf_helpers.h>
#include <gadget/buffer.h>
#include <gadget/macros.h>
#include <gadget/types.h>
#include "local.h"

struct event {
	gadget_timestamp timestamp_raw;
	gadget_comm comm[16];
	__u32 number;
};

GADGET_TRACER_MAP(events, 4096);
GADGET_TRACER(things, events, event);
const volatile __u32 limit = LIMIT;
GADGET_PARAM(limit);

SEC("tracepoint/syscalls/sys_enter_getpid")
int on_getpid(void *ctx)
{
	struct event *event = gadget_reserve_buf(&events, sizeof(*event));
	if (!event)
		return 0;
	event->timestamp_raw = bpf_ktime_get_boot_ns();
	event->number = limit;
	gadget_submit_buf(ctx, &events, event, sizeof(*event));
	return 0;
}

char _license[] SEC("license") = "GPL";
"""
YAML = """\
name: things
datasources:
  things:
    fields:
      number:
        annotations:
          description: A number
params:
  ebpf:
    limit:
      key: limit
      defaultValue: 5
"""


@pytest.fixture
def gadget(tmp_path):
    """The folder of a small gadget."""
    return written(tmp_path / "gadget")


def written(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "program.bpf.c").write_text(SOURCE)
    (folder / "local.h").write_text("#define LIMIT 3\nstatic __always_inline int unused(void) { return 1; }\n")
    (folder / "gadget.yaml").write_text(YAML)
    return folder


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "store") as opened:
        yield opened


def built(folder: Path, store: Store, **more: object) -> Built:
    return build(folder, store=store, **{"env": ENV, "headers": HEADERS, **more})


# ---------------------------------------------------------------------------------------------- the image


def test_a_gadget_is_built_for_both_architectures_and_tagged(gadget, store):
    made = built(gadget, store, tag="things:v1")

    assert str(made) == f"ghcr.io/inspektor-gadget/gadget/things:v1@{made.descriptor.digest}"
    assert made.warnings == ()
    assert store.resolve(made.reference).digest == made.descriptor.digest
    amd64, arm64 = (unpack(store, made.descriptor, one) for one in ("amd64", "arm64"))
    for image in (amd64, arm64):
        assert image.ebpf.startswith(b"\x7fELF")
        assert b".BTF" in image.ebpf
        assert b".debug_info" not in image.ebpf
        assert image.metadata_text == YAML.encode()
    assert amd64.annotations[CREATED] == "2023-11-14T22:13:20Z"


def test_without_a_tag_the_image_is_kept_by_its_digest(gadget, store):
    made = built(gadget, store)

    assert str(made) == f"@{made.descriptor.digest}"
    assert store.resolve(made.descriptor.digest)
    assert store.list() == []


def test_the_same_source_gives_the_same_digest_from_any_folder_and_headers(gadget, store, tmp_path):
    other = written(tmp_path / "far" / "away" / "other name")
    headers = tmp_path / "headers"
    shutil.copytree(HEADERS, headers)
    link = tmp_path / "link"
    link.symlink_to(gadget)

    digests = {
        built(gadget, store).descriptor.digest,
        built(
            other, store, headers=headers, env={**ENV, "LC_ALL": "tr_TR.UTF-8", "CPATH": "/nonsense"}
        ).descriptor.digest,
        built(link, store).descriptor.digest,
        built(gadget, store, validate_metadata=False).descriptor.digest,
    }
    assert len(digests) == 1


def test_no_path_of_this_machine_gets_into_an_object(gadget, store, tmp_path):
    image = unpack(store, built(gadget, store).descriptor, "amd64")

    assert str(tmp_path).encode() not in image.ebpf
    assert str(HEADERS).encode() not in image.ebpf
    assert b"program.bpf.c" in image.ebpf


def test_a_build_from_elsewhere_by_another_process_gives_the_same_digest(gadget, store, tmp_path):
    script = (
        "import sys; from pathlib import Path; from igrun.build import build; from igrun.oci.store import Store;"
        "print(build('gadget', store=Store.open(sys.argv[1]), headers=Path(sys.argv[2])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "their store"), str(HEADERS)],
        cwd=tmp_path,
        env={**ENV, "PYTHONPATH": str(HEADERS.parents[1]), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout.strip() == str(built(gadget, store))


def test_two_builds_at_once_both_succeed(gadget, store):
    script = (
        "import sys; from pathlib import Path; from igrun.build import build; from igrun.oci.store import Store;"
        "print(build(sys.argv[1], tag=sys.argv[2], store=Store.open(sys.argv[3]), headers=Path(sys.argv[4])))"
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(gadget), f"things:{n}", str(store.root), str(HEADERS)],
            env={**ENV, "PYTHONPATH": str(HEADERS.parents[1])},
            stdout=subprocess.PIPE,
            text=True,
        )
        for n in range(2)
    ]
    said = [process.communicate(timeout=60)[0] for process in running]

    assert [process.returncode for process in running] == [0, 0]
    assert len({text.partition("@")[2] for text in said}) == 1
    assert len(store.list()) == 2


def test_the_objects_can_be_kept_in_a_relative_folder(gadget, store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    made = built(gadget, store, output="out")

    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["amd64.bpf.o", "arm64.bpf.o"]
    assert (tmp_path / "out/arm64.bpf.o").read_bytes() == unpack(store, made.descriptor, "arm64").ebpf
    assert Path.cwd() == tmp_path
    with pytest.raises(BuildError, match="output folder 'none' does not exist"):
        built(gadget, store, output="none")


def test_nothing_temporary_stays(gadget, store, tmp_path, monkeypatch):
    import tempfile

    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    built(gadget, store)
    (gadget / "program.bpf.c").write_text("int x = ;")
    with pytest.raises(BuildError):
        built(gadget, store)

    assert list(scratch.iterdir()) == []


@pytest.mark.root
def test_what_root_builds_into_the_systems_store_needs_no_signature_here(gadget, store, tmp_path, monkeypatch):
    from igrun.oci.provenance import Provenance

    trusted = tmp_path / "trusted.json"
    monkeypatch.setattr("igrun.oci.provenance.PLACE", trusted)
    built(gadget, store)
    assert not trusted.exists()

    monkeypatch.setattr("igrun.build.SYSTEM_ROOT", store.root)
    made = built(gadget, store)
    assert Provenance.open(trusted).trusts(made.descriptor.digest, store.root)


def test_a_wasm_module_is_taken_as_it_is(gadget, store):
    (gadget / "guest.wasm").write_bytes(b"\0asm\1\0\0\0")
    (gadget / "build.yaml").write_text("wasm: guest.wasm")
    made = built(gadget, store)

    for one in ("amd64", "arm64"):
        assert unpack(store, made.descriptor, one).wasm == b"\0asm\1\0\0\0"
    (gadget / "guest.wasm").write_bytes(b"text")
    with pytest.raises(BuildError, match=r"guest\.wasm is no WASM module"):
        built(gadget, store)


def test_a_gadget_may_be_only_metadata(store, tmp_path):
    (tmp_path / "gadget.yaml").write_text("name: only words\noperator: {process: {emitstats: true}}")
    image = unpack(store, built(tmp_path, store).descriptor, "arm64")

    assert (image.metadata.name, image.ebpf) == ("only words", None)


def test_a_gadget_may_lack_metadata(gadget, store):
    (gadget / "gadget.yaml").unlink()
    image = unpack(store, built(gadget, store).descriptor, "amd64")

    assert image.metadata_text == b""


# ---------------------------------------------------------------------------------------------- build.yaml


def test_build_yaml_names_the_sources_and_flags(gadget, store):
    (gadget / "program.bpf.c").rename(gadget / "other.c")
    (gadget / "gadget.yaml").rename(gadget / "other.yaml")
    (gadget / "other.c").write_text(SOURCE.replace('#include "local.h"\n', ""))
    (gadget / "recipe.yaml").write_text("ebpfsource: other.c\nmetadata: other.yaml\ncflags: -DLIMIT=7 -Wextra\nwams: x")
    made = built(gadget, store, file=gadget / "recipe.yaml")

    assert unpack(store, made.descriptor, "amd64").metadata.name == "things"
    assert made.warnings == ("build.yaml: unknown key 'wams' (did you mean wasm?)",)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("ebpfsource: none.c", 'source file "none.c" not found'),
        ("wasm: a.txt", "unsupported wasm file type: a.txt"),
        ("wasm: a.wasm", 'source file "a.wasm" not found'),
        ("ebpfsource: -x.c", 'wrong build option detected: flags are not accepted: "-x.c"'),
        ("wasm: '@x.wasm'", 'wrong build option detected: response file are not accepted: "@x.wasm"'),
        ("cflags: -fplugin=x.so", 'wrong build option detected: flags are not accepted: "-fplugin=x.so"'),
        ("cflags: [-DX, -o, /etc/x]", 'wrong build option detected: flags are not accepted: "-o"'),
        ("cflags: [-include, '@x']", 'wrong build option detected: flags are not accepted: "@x"'),
        ("cflags: {a: b}", "build.yaml: cflags: expected text or a list"),
        ('cflags: "\'"', "build.yaml: cflags: No closing quotation"),
        ("ebpfsource: [a]", "build.yaml: ebpfsource: expected text"),
        ("a: [", "build.yaml: "),
    ],
)
def test_a_wrong_build_yaml_is_one_clear_error(gadget, text, problem):
    (gadget / "build.yaml").write_text(text)

    with pytest.raises(BuildError) as caught:
        Recipe.read(gadget)
    assert str(caught.value).startswith(problem)


def test_an_empty_folder_is_no_gadget(tmp_path, store):
    with pytest.raises(BuildError, match=r"at least one of ebpf source \(program\.bpf\.c\), metadata \(gadget\.yaml\)"):
        built(tmp_path, store)
    with pytest.raises(BuildError, match="is no folder"):
        built(tmp_path / "none", store)
    with pytest.raises(BuildError, match=r"build file 'none\.yaml' does not exist"):
        built(tmp_path, store, file="none.yaml")


# ---------------------------------------------------------------------------------------------- compilers


def test_what_does_not_compile_is_an_error_with_the_compilers_words(gadget, store):
    (gadget / "program.bpf.c").write_text(SOURCE.replace("return 0;", "return zero;"))

    with pytest.raises(BuildError) as caught:
        built(gadget, store)
    assert str(caught.value).startswith("clang compile for amd64: program.bpf.c:")
    assert "use of undeclared identifier 'zero'" in caught.value.output
    assert store.list() == []


def test_a_missing_header_brings_a_hint(gadget, store):
    (gadget / "program.bpf.c").write_text("#include <bpf/no_such.h>\n")

    with pytest.raises(BuildError, match=r"'bpf/no_such\.h' file not found") as caught:
        built(gadget, store)
    assert "libbpf-dev" in caught.value.hint


def test_what_the_compiler_warns_of_is_told_once(gadget, store):
    (gadget / "program.bpf.c").write_text(SOURCE.replace("\treturn 0;\n}", "\tint unused;\n\treturn 0;\n}"))

    assert built(gadget, store).output.count("unused variable 'unused'") == 1


def program(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_the_newest_clang_is_taken_where_the_plain_one_is_too_old(tmp_path):
    for name, version in (("clang", 11), ("clang-9", 9), ("clang-15", 15), ("clang-16", 16)):
        program(tmp_path, name, f"echo 'Some clang version {version}.0.1 (x)'")

    found = Clang.find({"PATH": str(tmp_path)})
    assert (found.path, found.version, found.full) == (str(tmp_path / "clang-16"), 16, "16.0.1")


def test_clang_may_be_named(tmp_path):
    clang = program(tmp_path, "mine", "echo 'clang version 19.1.0'")

    found = Clang.find({"PATH": "", "CLANG": str(clang)})
    assert (found.path, found.version) == (str(clang), 19)


def test_without_a_clang_the_error_names_the_package(gadget, store, tmp_path, monkeypatch):
    monkeypatch.setattr(Clang, "of_zig", classmethod(lambda cls, env: None))
    for env in ({"PATH": str(tmp_path)}, {"PATH": str(tmp_path), "CLANG": "nothing"}):
        with pytest.raises(BuildError, match="clang 14 or newer is needed to build a gadget") as caught:
            built(gadget, store, env=env)
        assert "apt install clang libbpf-dev" in caught.value.hint
    program(tmp_path, "clang", "echo 'clang version 11.0.1'")
    with pytest.raises(BuildError, match=r"clang is version 11"):
        Clang.find({"PATH": str(tmp_path)})


@pytest.mark.parametrize(("source", "tool"), [("go/program.go", "go"), ("src/lib.rs", "cargo")])
def test_a_missing_compiler_for_wasm_is_named(gadget, store, tmp_path, source, tool):
    (gadget / source).parent.mkdir()
    (gadget / source).write_text("")
    (gadget / "program.bpf.c").unlink()
    (gadget / "build.yaml").write_text(f"wasm: {source}")

    with pytest.raises(BuildError, match=f"{tool} is needed to build {source}"):
        built(gadget, store, env={"PATH": str(tmp_path)})


def test_the_real_go_makes_the_same_module_from_every_folder(gadget, store, tmp_path):
    if not shutil.which("go"):
        pytest.skip("no go on this machine: install Go 1.24 or later")
    env = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000"}
    modules = set()
    for folder in (gadget, written(tmp_path / "else where" / "other")):
        (folder / "go").mkdir()
        (folder / "go/go.mod").write_text("module example.org/guest\n\ngo 1.24\n")
        (folder / "go/program.go").write_text(
            "package main\n\n//go:wasmexport gadgetInit\nfunc gadgetInit() int32 { return 7 }\n\nfunc main() {}\n"
        )
        (folder / "build.yaml").write_text("wasm: go/program.go")
        modules.add(unpack(store, built(folder, store, env=env).descriptor, "arm64").wasm)

    (module,) = modules
    assert b"gadgetInit" in module
    assert str(tmp_path).encode() not in module
    engine = wasmtime.Engine()
    instance = started(engine, module)
    assert instance["gadgetInit"]() == 7


def started(engine, module: bytes):
    """The functions of a module that is a reactor."""
    linker, store = wasmtime.Linker(engine), wasmtime.Store(engine)
    linker.define_wasi()
    store.set_wasi(wasmtime.WasiConfig())
    exports = linker.instantiate(store, wasmtime.Module(engine, module)).exports(store)
    exports["_initialize"](store)
    return {"gadgetInit": lambda: exports["gadgetInit"](store)}


def test_go_is_compiled_to_a_wasm_module(gadget, store, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (gadget / "go").mkdir()
    (gadget / "go/program.go").write_text("package main")
    (gadget / "build.yaml").write_text("wasm: go/program.go")
    program(
        tmp_path,
        "go",
        'test "$GOOS $GOARCH $CGO_ENABLED" = "wasip1 wasm 0" || exit 3\n'
        'printf "\\0asm\\1\\0\\0\\0" > "$5"; echo "$@" > "$3/../args"',
    )
    built(gadget, store, output=out, env={**ENV, "PATH": f"{tmp_path}:{ENV['PATH']}"})

    assert (out / "program.wasm").read_bytes() == b"\0asm\1\0\0\0"
    args = (gadget / "args").read_text()
    assert args.startswith(f"build -C {gadget}/go -o ")
    assert args.endswith("-buildmode=c-shared -trimpath -buildvcs=false -ldflags -w -s program.go\n")


def test_rust_is_compiled_to_a_wasm_module(gadget, store, tmp_path):
    (gadget / "src").mkdir()
    (gadget / "src/lib.rs").write_text("")
    (gadget / "Cargo.toml").write_text('[package]\nname = "my-guest"\n')
    (gadget / "build.yaml").write_text("wasm: src/lib.rs")
    program(
        tmp_path,
        "cargo",
        'd="$CARGO_TARGET_DIR/wasm32-wasip1/release"; mkdir -p "$d"; printf "\\0asm\\1\\0\\0\\0" > "$d/my_guest.wasm"',
    )
    made = built(gadget, store, env={**ENV, "PATH": f"{tmp_path}:{ENV['PATH']}"})

    assert unpack(store, made.descriptor, "amd64").wasm == b"\0asm\1\0\0\0"


def test_a_build_that_is_interrupted_ends_its_compilers(gadget, tmp_path):
    (tmp_path / "bin").mkdir()
    program(
        tmp_path / "bin",
        "clang",
        f'case "$1" in --version) echo clang version 14.0.0;; *) echo $$ >> {tmp_path}/pids; exec sleep 60;; esac',
    )
    program(tmp_path / "bin", "llvm-strip", "")
    script = (
        "import sys; from pathlib import Path; from igrun.build import build; from igrun.oci.store import Store;"
        "build(sys.argv[1], store=Store.open(sys.argv[2]), headers=Path(sys.argv[3]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(gadget), str(tmp_path / "store"), str(HEADERS)],
        env={
            "PATH": f"{tmp_path / 'bin'}:{ENV['PATH']}",
            "PYTHONPATH": str(HEADERS.parents[1]),
            "TMPDIR": str(tmp_path),
        },
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 20
    pids = tmp_path / "pids"
    while not (pids.exists() and len(pids.read_text().split()) == 2):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.3)  # they run; now whoever started them knows that, too
    process.send_signal(signal.SIGINT)
    process.wait(timeout=10)

    for pid in pids.read_text().split():
        assert not Path(f"/proc/{pid}").exists()
    assert not list(tmp_path.glob("gadget-build-*"))


# ---------------------------------------------------------------------------------------------- gadget.yaml


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("number:", "numbr:", "datasources.things.fields"),
        ("  things:", "  thngs:", "datasources.thngs"),
        ("    limit:", "    limt:", "params.ebpf.limt"),
        ("key: limit", "key: ''", "params.ebpf.limit"),
        ("description:", "descripton:", "datasources.things.fields.number.annotations"),
        ("name:", "nam:", "top level"),
    ],
)
def test_a_gadget_yaml_that_does_not_fit_is_refused(gadget, store, old, new, problem):
    (gadget / "gadget.yaml").write_text(YAML.replace(old, new, 1))

    with pytest.raises(MetadataError) as caught:
        built(gadget, store)
    assert caught.value.path.startswith(problem)
    assert caught.value.hint
    built(gadget, store, validate_metadata=False)


def test_what_is_wrong_on_one_architecture_only_is_found(gadget, store):
    (gadget / "program.bpf.c").write_text(
        SOURCE.replace("GADGET_PARAM(limit);", "#ifdef __TARGET_ARCH_x86\nGADGET_PARAM(limit);\n#endif")
    )

    with pytest.raises(BuildError, match=r"\(only on arm64\)"):
        built(gadget, store)


def test_gadget_yaml_can_be_made_from_the_object(gadget, store):
    (gadget / "gadget.yaml").unlink()
    built(gadget, store, update_metadata=True)

    made = load((gadget / "gadget.yaml").read_bytes(), strict=True)
    assert made["name"] == "TODO: Fill the gadget name"
    assert made["sourceURL"] == "TODO: Fill the gadget source code URL"
    fields = made["datasources"]["things"]["fields"]
    assert {name: entry["annotations"]["description"] for name, entry in fields.items()} == {
        "timestamp_raw": "Microseconds since Unix epoch",
        "comm": "Process name",
        "number": "TODO: Fill field description",
    }
    assert made["params"] == {"ebpf": {"limit": {"key": "limit", "description": "TODO: Fill parameter description"}}}


def test_updating_gadget_yaml_adds_what_is_missing_and_nothing_twice(gadget, store):
    built(gadget, store, update_metadata=True)
    once = (gadget / "gadget.yaml").read_text()
    built(gadget, store, update_metadata=True)

    made = load(once.encode(), strict=True)
    assert (gadget / "gadget.yaml").read_text() == once
    assert made["datasources"]["things"]["fields"]["number"] == {"annotations": {"description": "A number"}}
    assert made["params"]["ebpf"]["limit"] == {"key": "limit", "defaultValue": 5}
    assert list(made) == [
        "name",
        "description",
        "homepageURL",
        "documentationURL",
        "sourceURL",
        "datasources",
        "params",
    ]


# ---------------------------------------------------------------------------------------------- when


def git(folder: Path, *args: str, when: str = "1600000000 +0000") -> None:
    env = {**os.environ, "GIT_COMMITTER_DATE": when, "GIT_AUTHOR_DATE": when, "GIT_CONFIG_GLOBAL": "/dev/null"}
    identity = ("-c", "user.name=x", "-c", "user.email=x@example.org")
    subprocess.run(["git", "-C", str(folder), *identity, *args], check=True, capture_output=True, env=env)


def test_the_time_is_that_of_the_variable_then_of_the_commit_then_of_the_files(gadget, tmp_path):
    plain = {"PATH": ENV["PATH"], "GIT_CEILING_DIRECTORIES": str(tmp_path.parent)}
    for path in gadget.iterdir():
        os.utime(path, (1_500_000_000, 1_500_000_000))
    assert source_time(gadget, None, plain) == 1_500_000_000

    git(tmp_path, "init")
    assert source_time(gadget, None, plain) == 1_500_000_000
    git(tmp_path, "add", "gadget")
    git(tmp_path, "commit", "-m", "x")
    (tmp_path / "elsewhere").write_text("")
    git(tmp_path, "add", "elsewhere")
    git(tmp_path, "commit", "-m", "y", when="1650000000 +0000")
    assert source_time(gadget, None, plain) == 1_600_000_000
    assert source_time(gadget, None, {**plain, "SOURCE_DATE_EPOCH": "7"}) == 7


def test_objects_kept_in_the_gadgets_folder_do_not_change_its_time(gadget, tmp_path):
    plain = {"PATH": ENV["PATH"], "GIT_CEILING_DIRECTORIES": str(tmp_path.parent)}
    (gadget / "out").mkdir()
    (gadget / "out/amd64.bpf.o").write_text("")
    os.utime(gadget / "out/amd64.bpf.o", (4e9, 4e9))

    assert source_time(gadget, gadget / "out", plain) < 4e9
    assert source_time(gadget, None, plain) == 4e9


@pytest.mark.parametrize("wrong", ["x", "-1", "1.5", "1" * 30])
def test_a_wrong_source_date_epoch_is_an_error(gadget, wrong):
    with pytest.raises(BuildError, match="SOURCE_DATE_EPOCH"):
        source_time(gadget, None, {"SOURCE_DATE_EPOCH": wrong})


def test_times_are_written_in_utc():
    assert created(0) == "1970-01-01T00:00:00Z"
