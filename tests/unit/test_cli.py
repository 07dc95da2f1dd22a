"""The command `ig`, as far as it needs no kernel."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import NamedTuple, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

import igrun
from igrun.cli import COMMANDS, call
from igrun.cli.face import Face
from igrun.cli.flags import Flags, glance, parse
from igrun.cli.image.listing import ago
from igrun.cli.terminal import Usage
from igrun.errors import RegistryError
from igrun.metadata import BOOL, LIST, TEXT, UINT32, Param

GADGETS = Path(__file__).parent.parent.parent / "gadgets"
IG = [sys.executable, "-m", "igrun"]


class Said(NamedTuple):
    code: int
    out: str
    err: str


Ig = Callable[..., Said]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with trace_open (short name) and top_syscall (`example.org/t:v1`)."""
    from igrun.build import build
    from igrun.oci.store import Store

    root = tmp_path_factory.mktemp("store")
    with Store.open(root) as store:
        build(GADGETS / "trace_open", store=store, tag="trace_open")
        build(GADGETS / "top_syscall", store=store, tag="example.org/t:v1")
    return root


def no_network(reference, policy) -> NoReturn:
    raise RegistryError(f"{reference.registry} does not answer")


@pytest.fixture
def ig(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Ig:
    """Call `ig` in this process, with that store of images built here, no bundled gadgets and no network."""
    monkeypatch.setattr("igrun.oci.store.default_root", lambda: images)
    monkeypatch.setattr("igrun.data.gadgets", lambda: None)
    monkeypatch.setattr("igrun.lookup.vouched", lambda store, descriptor: True)
    monkeypatch.setattr("igrun.lookup.repository", no_network)
    monkeypatch.setenv("HOME", str(tmp_path))

    def run(*args: str) -> Said:
        capfd.readouterr()
        code = call(Face(), list(args))
        return Said(code, *capfd.readouterr())

    return run


# ---------------------------------------------------------------------------------------------- the command


def test_help_lists_every_command_and_imports_click_alone():
    script = (
        "import sys\ntry:\n    from igrun.cli import main\n    main(['--help'])\nexcept SystemExit as end:\n"
        "    assert not end.code\nprint(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert all(f"\n  {name} " in done.stdout for name in COMMANDS)
    bare = subprocess.run([sys.executable, "-c", "import sys; print(*sys.modules)"], capture_output=True, text=True)
    modules = set(done.stderr.split()) - set(bare.stdout.split())
    standard = set(sys.stdlib_module_names)
    others = {name for name in modules if name.split(".")[0] not in standard and not name.startswith("_")}
    assert {name.split(".")[0] for name in others} == {"click", "igrun"}
    light = {"igrun.cli", "igrun.cli.face", "igrun.cli.terminal", "igrun.dataclass", "igrun.errors", "igrun.sink"}
    assert {name for name in others if name.startswith("igrun.")} <= light
    assert not modules & {"logging", "subprocess", "tempfile", "json", "difflib", "pathlib"}


def test_every_command_is_a_module_and_says_the_same_about_itself():
    from importlib import import_module

    for name, about in COMMANDS.items():
        command = import_module(f"igrun.cli.{name}").command
        assert command.name == name
        assert command.get_short_help_str(100).removesuffix(".").startswith(about[:20])


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(("command", "code"), [("version", 0), ("verzion", 2)])
def test_standard_files_that_are_closed_are_as_dev_null(closed, command, code):
    script = f'exec "$0" -m igrun {command} {closed}'
    done = subprocess.run(["sh", "-c", script, sys.executable], capture_output=True, text=True)

    assert done.returncode == code
    assert "Traceback" not in done.stderr


def test_a_signal_in_a_callback_from_c_prints_nothing_and_is_kept():
    code = (
        "import ctypes, signal\n"
        "from igrun.cli.terminal import Face, signals\n"
        "signals(face := Face())\n"
        "ctypes.CFUNCTYPE(None)(lambda: signal.raise_signal(signal.SIGINT))()\n"
        "print(face.signals)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert (done.stdout, done.stderr) == ("1\n", "")


def test_a_signal_does_not_kill_an_interpreter_that_takes_its_time_to_end():
    code = (
        "import signal, time\n"
        "from igrun import cli\n"
        "from igrun.cli import terminal\n"
        "class Slow:\n"
        "    def __del__(self, sleep=time.sleep):\n"
        "        sleep(0.2)\n"
        "def call(face, args):\n"
        "    face.stop = lambda: None\n"
        "    signal.raise_signal(signal.SIGTERM)\n"
        "    return 0\n"
        "terminal.PATIENCE_S, cli.call, slow = 0.05, call, Slow()\n"
        "cli.main([])"
    )

    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_without_a_command_the_help_is_printed(ig):
    assert ig() == ig("--help") == ig("help")
    assert ig("image") == ig("image", "--help") == ig("help", "image")


def test_the_version_is_printed_with_a_v(ig):
    assert ig("version") == Said(0, f"v{igrun.__version__}\n", "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(ig, shell):
    said = ig("completion", shell)

    assert said.code == 0
    assert f"_IG_COMPLETE={shell}_complete" in said.out


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (["verzion"], 'unknown command "verzion" for "ig"; did you mean version?'),
        (["image", "lits"], 'unknown command "lits" for "ig image"; did you mean list?'),
        (["version", "x"], "got unexpected extra argument (x)"),
        (["image", "tag", "x"], "missing argument 'DST'"),
        (["run", "trace_open", "--falied"], "unknown flag: --falied; did you mean --failed?"),
        (["run", "trace_open", "-X"], "unknown flag: -X"),
        (["run", "trace_open", "--runtimes", "docker"], "unknown flag: --runtimes"),
        (["run", "trace_open", "--sort", "fd"], "unknown flag: --sort"),
        (["run", "trace_open", "--pid"], "flag needs an argument: --pid"),
        (["run", "trace_open", "other"], "unexpected argument: other"),
        (["run", "trace_open", "--failed", "false"], "unexpected argument: false"),
        (["run", "trace_open", "--timeout", "soon"], 'invalid value "soon" as "timeout"'),
        (["run", "trace_open", "--timeout=-1"], 'invalid value "-1" as "timeout"'),
        (["run", "trace_open", "--pid", "x"], 'invalid value "x" as "pid"'),
        (["run", "trace_open", "--failed=perhaps"], 'invalid argument "perhaps" for "--failed" flag'),
        (["run", "trace_open", "--pull", "soon"], "valid values are: always, missing, never"),
        (["run", "trace_open", "-f", "x.yaml"], "please only specify an image OR manifest"),
    ],
)
def test_a_wrong_command_line_is_told_with_exit_code_2(ig, args, problem):
    said = ig(*args)

    assert said.code == 2
    assert problem in said.err.splitlines()[0]
    assert said.err.splitlines()[1].startswith("Hint: ")
    assert said.out == ""


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (["run", "trace_opne", "--pull=never"], "image 'trace_opne' not found"),
        (["run", "trace_opne"], "image 'trace_opne': not found on this machine; pulling it: ghcr.io does not answer"),
        (["run", "UPPER/x:y z"], "invalid reference format"),
        (["run", "trace_open", "--pid", "@/nowhere"], "/nowhere: No such file or directory"),
        (["run", "--config", "/nowhere", "trace_open"], "reading config: /nowhere: No such file or directory"),
        (["run", "trace_open", "--oci-store-user", "--pull=always"], "--oci-store-user requires --pull=never"),
        (["image", "rm", "nothing"], "image 'ghcr.io/inspektor-gadget/gadget/nothing:latest' not found"),
        (["image", "inspect", "trace_open", "--jsonpath", ".a"], 'jsonpath ".a" can only be used with extra info or'),
        (["image", "inspect", "trace_open", "--extra-info", "x"], 'extra info "x" not found'),
        (["image", "build", "/nowhere"], "'/nowhere' is no folder"),
    ],
)
def test_an_error_is_one_line_and_a_hint_with_exit_code_1(ig, args, problem):
    said = ig(*args)

    assert said.code == 1
    assert said.err.startswith("Error: ")
    assert problem in said.err.splitlines()[0]
    assert len(said.err.splitlines()) <= 2
    assert said.out == ""


def test_verbose_shows_the_traceback(ig):
    assert "Traceback" in ig("run", "nothing_like_it", "-v").err
    assert "Traceback" not in ig("run", "nothing_like_it").err


def test_a_closed_standard_output_is_quiet_success_and_a_full_one_an_error():
    shell = "{} --help | true; exit ${{PIPESTATUS[0]}}".format(" ".join(IG))
    closed = subprocess.run(["bash", "-c", shell], capture_output=True, text=True)
    with Path("/dev/full").open("w") as full:
        lost = subprocess.run([*IG, "--help"], stdout=full, stderr=subprocess.PIPE, text=True)

    assert (closed.returncode, closed.stderr) == (0, "")
    assert (lost.returncode, lost.stderr) == (1, "Error: writing to standard output: No space left on device\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_a_gadget_runs_ends_with_130(tmp_path, number):
    fifo = tmp_path / "manifest"
    os.mkfifo(fifo)
    with subprocess.Popen([*IG, "run", "-f", str(fifo)], stderr=subprocess.PIPE) as process:
        wait_until(lambda: waits(process.pid))
        process.send_signal(number)

        assert process.wait(timeout=20) == 130
        assert process.stderr
        assert process.stderr.read() == b""


def waits(pid: int) -> bool:
    """True if the process sleeps in the opening of a FIFO."""
    return Path(f"/proc/{pid}/wchan").read_text() in ("wait_for_partner", "fifo_open")


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)


# ---------------------------------------------------------------------------------------------- ig run --help


def test_help_without_an_image_says_how_to_learn_more(ig):
    said = ig("run", "--help")

    assert "Specify the gadget image to get more information about it" in said.out
    assert "--timeout SECONDS" in said.out
    assert "--failed" not in said.out
    assert ig("run") == said


def test_help_with_an_image_lists_its_params_with_types_and_defaults(ig):
    said = ig("run", "trace_open", "--help")

    assert said.code == 0
    lines = said.out.splitlines()
    assert any(line.startswith("      --failed ") for line in lines)
    assert any(line.startswith("      --pid uint32 ") and line.endswith("(default 0)") for line in lines)
    assert any(line.startswith("  -F, --filter string ") for line in lines)
    assert any(line.startswith("  * fname  string ") for line in lines)
    assert "--sort" not in said.out
    assert "--max-entries" not in said.out


def test_a_table_can_be_sorted_and_cut(ig):
    said = ig("run", "example.org/t:v1", "-h")

    assert "--sort string" in said.out
    assert "--max-entries string" in said.out
    assert "--map-fetch-interval" in said.out


def test_help_needs_no_rights_and_no_kernel(ig, monkeypatch):
    monkeypatch.setattr("igrun.host.Host.current", lambda *args: pytest.fail("looked at the machine"))

    assert ig("run", "trace_open", "--help").code == 0


def test_a_plug_in_of_the_config_adds_its_flags(ig, tmp_path, monkeypatch):
    (tmp_path / "shouting.py").write_text(
        "from igrun.metadata import BOOL, Param\n"
        'NAME, STAGE = "shouting", 2\nPARAMS = (Param("shout", BOOL, "false", "In capitals"),)\n'
        "def bind(given):\n    return ()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("IG_PLUGINS", "shouting")

    assert "      --shout " in ig("run", "trace_open", "--help").out
    monkeypatch.setenv("IG_PLUGINS", "shouting.quietly")
    assert "Error: plug-in 'shouting.quietly': " in ig("run", "trace_open", "--help").err


# ---------------------------------------------------------------------------------------------- flags

FLAGS = Flags.of(
    (param.key, param)
    for param in (
        Param("failed", BOOL, "false"),
        Param("verbose", BOOL, "false", alias="v"),
        Param("pid", UINT32, "0"),
        Param("output", TEXT, "", alias="o"),
        Param("sort", TEXT, ""),
        Param("annotate", LIST, ""),
    )
)


@pytest.mark.parametrize(
    ("args", "values"),
    [
        (["--failed"], {"failed": "true"}),
        (["--failed=false"], {"failed": "false"}),
        (["--pid", "5"], {"pid": "5"}),
        (["--pid=5"], {"pid": "5"}),
        (["-o", "json"], {"output": "json"}),
        (["-ojson"], {"output": "json"}),
        (["-o=json"], {"output": "json"}),
        (["-vo", "json"], {"verbose": "true", "output": "json"}),
        (["--sort", "-fd"], {"sort": "-fd"}),
        (["--pid", "1", "--pid", "2"], {"pid": "2"}),
        (["--annotate", "a:b=c", "--annotate=d:e=f"], {"annotate": "a:b=c,d:e=f"}),
        (["-v=false"], {"verbose": "false"}),
        (["--output", ""], {"output": ""}),
    ],
)
def test_flags_are_read_in_every_usual_form(args, values):
    assert parse(["image", *args], FLAGS).values == values
    assert parse([*args, "image"], FLAGS).words == ["image"]


def test_behind_two_dashes_nothing_is_a_flag():
    assert parse(["--failed", "--", "--pid"], FLAGS).words == ["--pid"]


def test_a_list_may_have_several_files(tmp_path):
    for name in "ab":
        (tmp_path / name).write_text(f"content of {name}")

    line = parse(["g", "--annotate", f"@{tmp_path}/a,@{tmp_path}/b,x\\,y", "--annotate", f"@{tmp_path}/a"], FLAGS)

    assert LIST.read(line.values["annotate"]) == ("content of a", "content of b", "x,y", "content of a")


def test_a_value_with_an_at_sign_is_read_from_a_file(tmp_path):
    path = tmp_path / "pid"
    path.write_text("7")

    assert parse(["--pid", f"@{path}"], FLAGS).values == {"pid": "7"}


@pytest.mark.parametrize(
    ("args", "image"),
    [
        (["trace_open", "--unknown"], "trace_open"),
        (["--unknown", "5", "trace_open"], "trace_open"),
        (["--unknown=5", "trace_open"], "trace_open"),
        (["--unknown", "trace_open"], "trace_open"),
        (["--failed", "trace_open", "--pid", "5"], "trace_open"),
        (["-o", "json", "trace_open"], "trace_open"),
        (["--sort", "-v", "trace_open"], "trace_open"),
        (["--pid"], ""),
    ],
)
def test_the_image_is_found_before_its_flags_are_known(args, image):
    assert glance(args, FLAGS).image == image


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="@"), max_size=8)


@given(st.lists(st.tuples(st.sampled_from(["output", "sort"]), TEXTS, st.booleans())))
def test_whatever_value_is_given_arrives(given_values):
    args = [arg for name, text, one in given_values for arg in ([f"--{name}={text}"] if one else [f"--{name}", text])]

    assert parse(args, FLAGS).values == {name: text for name, text, _ in given_values}


@given(st.lists(st.text(max_size=6), max_size=6))
def test_no_command_line_does_anything_but_parse_or_be_refused(args):
    glance(args, FLAGS)
    try:
        parse([arg for arg in args if "@" not in arg], FLAGS)
    except Usage as error:
        assert error.message


# ---------------------------------------------------------------------------------------------- manifests

HEAD = "apiVersion: 1\nkind: instance-spec\n"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no gadget instance spec found in manifest"),
        ("---\n---\n", "no gadget instance spec found in manifest"),
        ("kind: x\n", 'expected kind "instance-spec" for entry 1 in manifest, got kind "x"'),
        ("kind: instance-spec\n", "expected apiVersion 1 for entry 1 in manifest, got apiVersion 0"),
        ("apiVersion: 2\nkind: instance-spec\n", "expected apiVersion 1 for entry 1 in manifest, got apiVersion 2"),
        (HEAD, "no image specified in entry 1"),
        (HEAD + "image: t\nid: 7\n", 'invalid instance id "7" in entry 1'),
        (HEAD + "image: t\nname: 'A b'\n", 'invalid instance name "A b" in entry 1'),
        (HEAD + "image: t\ntags: ['a,b']\n", 'invalid character "," in tag "a,b" of entry 1'),
        (HEAD + "image: t\ntags: x\n", "parsing gadget spec (entry 1): tags is no list"),
        (HEAD + "image: t\nparamValues: [1]\n", "parsing gadget spec (entry 1): paramValues is no mapping"),
        (HEAD + "image: t\nimages: x\n", 'parsing gadget spec (entry 1): unknown key "images"'),
        ("- 1\n", "parsing gadget spec (entry 1): not a mapping"),
        (HEAD + "image: t\n---\nkind: x\n", 'expected kind "instance-spec" for entry 2'),
        (HEAD + "image: t\n---\n" + HEAD + "image: t\n", "multiple gadget instance specs found in manifest"),
        ("a: [1\n", "parsing gadget spec (entry 1): "),
        ("a: *b\n", "parsing gadget spec (entry 1): "),
        (HEAD + "image: t\nimage: u\n", "parsing gadget spec (entry 1): "),
    ],
)
def test_a_wrong_manifest_is_an_error(ig, tmp_path, text, problem):
    path = tmp_path / "m.yaml"
    path.write_text(text)

    said = ig("run", "-f", str(path))

    assert said.code == 1
    assert problem in said.err


def test_a_manifest_that_is_not_there_is_an_error(ig):
    said = ig("run", "-f", "/nowhere.yaml")

    assert said.err.startswith("Error: opening gadget runtime manifest file /nowhere.yaml: No such file or directory")


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, str]]]:
    """What would have been run: gadget and values."""
    runs: list[tuple[str, dict[str, str]]] = []
    monkeypatch.setattr(
        "igrun.cli.running._run", lambda face, gadget, settings, values: runs.append((gadget.metadata.name, values))
    )
    return runs


MANIFEST = (
    HEAD + "image: trace_open\nname: my-open\ntags: [audit]\nparamValues:\n"
    "  operator.LocalManager.host: true\n  operator.oci.ebpf.pid: 5\n  operator.filter.filter: fname~etc\n"
)


def test_a_manifest_gives_params_by_their_full_names(ig, ran, tmp_path):
    path = tmp_path / "m.yaml"
    path.write_text(MANIFEST)

    assert ig("run", "-f", str(path), "--timeout", "1").code == 0
    assert ran == [
        ("trace_open", {"host": "true", "pid": "5", "filter": "fname~etc", "timeout": "1", "file": str(path)})
    ]


def test_flags_of_the_gadget_are_unknown_beside_a_manifest(ig, tmp_path):
    path = tmp_path / "m.yaml"
    path.write_text(MANIFEST)

    assert "unknown flag: --pid" in ig("run", "-f", str(path), "--pid", "1").err


def test_an_unknown_param_in_a_manifest_is_an_error_with_the_nearest_name(ig, tmp_path):
    path = tmp_path / "m.yaml"
    path.write_text(HEAD + "image: trace_open\nparamValues: {operator.oci.ebpf.pidd: 1}\n")

    said = ig("run", "-f", str(path))

    assert said.code == 1
    assert said.err.splitlines() == [
        'Error: unknown param "operator.oci.ebpf.pidd" in the manifest',
        "Hint: did you mean operator.oci.ebpf.pid?",
    ]


@pytest.fixture
def server() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/m.yaml" else 404)
            self.end_headers()
            if self.path == "/m.yaml":
                self.wfile.write(MANIFEST.encode())

        def log_message(self, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


def test_a_manifest_may_come_from_a_url(ig, ran, server):
    assert ig("run", "-f", f"{server}/m.yaml").code == 0
    assert ran[0][1]["pid"] == "5"

    said = ig("run", "-f", f"{server}/other")
    assert said.code == 1
    assert "404" in said.err


def test_a_manifest_may_come_from_standard_input(ig, ran, tmp_path, monkeypatch):
    path = tmp_path / "m.yaml"
    path.write_text(MANIFEST)
    saved = os.dup(0)
    with path.open() as file:
        os.dup2(file.fileno(), 0)
        try:
            said = ig("run", "-f", "-")
        finally:
            os.dup2(saved, 0)
            os.close(saved)

    assert said.code == 0
    assert ran[0][0] == "trace_open"


# ---------------------------------------------------------------------------------------------- ig config


def test_config_default_does_not_look_at_the_environment_and_view_does(ig, monkeypatch):
    monkeypatch.setenv("INSPEKTOR_GADGET_OPERATOR_OCI_VERIFY_IMAGE", "false")

    assert "verify-image: true" in ig("config", "default").out
    assert "verify-image: false" in ig("config", "view").out


def test_what_config_prints_is_a_config_file(ig, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(ig("config", "default").out)

    assert ig("config", "view", "--config", str(path)) == ig("config", "default")
    assert ig("--config", str(path), "config", "view") == ig("config", "default")


# ---------------------------------------------------------------------------------------------- ig image


def test_images_are_listed_in_columns(ig):
    lines = ig("image", "list").out.splitlines()

    assert lines[0].split() == ["REPOSITORY", "TAG", "DIGEST", "CREATED"]
    assert [line.split()[:2] for line in lines[1:]] == [["example.org/t", "v1"], ["trace_open", "latest"]]
    assert all(len(line.split()[2]) == 12 and line.rstrip().endswith("ago") for line in lines[1:])
    assert ig("image", "ls") == ig("image", "list")


def test_images_are_listed_as_json(ig):
    short = json.loads(ig("image", "list", "-o", "json").out)
    whole = json.loads(ig("image", "list", "-o", "jsonpretty", "--no-trunc").out)

    assert list(short[0]) == ["Repository", "Tag", "Digest", "Created"]
    assert [one["Digest"] for one in whole] == [f"sha256:{one['Digest'][7:]}" for one in whole]
    assert [one["Digest"][7:19] for one in whole] == [one["Digest"] for one in short]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "less than a second"),
        (1, "1 second"),
        (59, "59 seconds"),
        (60, "about a minute"),
        (3599, "59 minutes"),
        (3600, "about an hour"),
        (2 * 3600, "2 hours"),
        (2 * 86400, "2 days"),
        (15 * 86400, "2 weeks"),
        (70 * 86400, "2 months"),
        (800 * 86400, "2 years"),
    ],
)
def test_an_age_is_told_as_docker_tells_it(seconds, words):
    assert ago("2026-01-01T00:00:00Z", 1767225600 + seconds) == f"{words} ago"


def test_a_time_that_is_none_is_shown_as_it_is():
    assert ago("yesterday", 0) == "yesterday"


def test_an_image_is_built_tagged_and_removed(ig, tmp_path, monkeypatch):
    monkeypatch.setattr("igrun.oci.store.default_root", lambda: tmp_path / "store")
    full = "ghcr.io/inspektor-gadget/gadget/mine:latest"

    built = ig("image", "build", str(GADGETS / "trace_signal"), "-t", "mine")
    assert built.code == 0, built.err
    assert built.out == ""
    digest = built.err.split("@")[1].strip()
    assert built.err == f"Successfully built {full}@{digest}\n"
    assert ig("image", "tag", "mine", "example.org/x:v1").err == f"Successfully tagged with example.org/x:v1@{digest}\n"
    assert ig("image", "remove", "mine").err == "Successfully removed mine\n"
    assert ig("image", "rm", "example.org/x:v1").err == "Successfully removed example.org/x:v1\n"
    assert ig("image", "list", "-o", "json").out == "[]\n"
    assert not list((tmp_path / "store/blobs/sha256").iterdir())


def test_short_names_have_the_first_prefix_of_the_search_list(ig, tmp_path, monkeypatch):
    monkeypatch.setattr("igrun.oci.store.default_root", lambda: tmp_path / "store")
    monkeypatch.setenv("IG_SEARCH", "local,example.org/g/")

    assert "example.org/g/mine:latest@" in ig("image", "build", str(GADGETS / "trace_signal"), "-t", "mine").err
    assert ig("run", "mine", "--help").code == 0
    assert ig("image", "rm", "mine").code == 0


def test_a_bool_may_stand_alone_or_have_a_value(ig, tmp_path, monkeypatch):
    monkeypatch.setattr("igrun.oci.store.default_root", lambda: tmp_path / "store")
    gadget = tmp_path / "gadget"
    gadget.mkdir()
    (gadget / "gadget.yaml").write_text("name: mine\nnme: mine\n")

    for bare in ("--validate-metadata", "--validate-metadata=true", "--local=true", "--update-metadata=false"):
        assert "unknown key 'nme'" in ig("image", "build", bare, str(gadget)).err
    assert ig("image", "build", "--validate-metadata=false", "-l=false", str(gadget)).code == 0
    wrong = ig("image", "build", "--local=perhaps", str(gadget))
    assert wrong.code == 2
    assert wrong.err == (
        'Error: invalid argument "perhaps" for "--local" flag: it is true or false\nHint: see `ig image build --help`\n'
    )


def test_the_letters_of_igs_own_flags_stay_theirs(ig, tmp_path, monkeypatch):
    monkeypatch.setattr("igrun.oci.store.default_root", lambda: tmp_path / "store")
    gadget = tmp_path / "gadget"
    gadget.mkdir()
    (gadget / "program.bpf.c").write_text((GADGETS / "trace_signal/program.bpf.c").read_text())
    params = "{failed: {key: failed, alias: f}, kill_only: {key: kill-only, alias: k}, target_signal: {alias: o}}"
    (gadget / "gadget.yaml").write_text(f"name: mine\nparams: {{ebpf: {params}}}\n")
    built = ig("image", "build", str(gadget), "-t", "mine", "--validate-metadata=false")
    assert built.code == 0, built.err

    lines = ig("run", "mine", "--help").out.splitlines()

    letters = [line.split()[:2] for line in lines if line.startswith("  -")]
    assert ["-f,", "--file"] in letters and ["-o,", "--output"] in letters and ["-k,", "--kill-only"] in letters
    assert len({letter for letter, _ in letters}) == len(letters)
    assert 'invalid value "bogus"' not in ig("run", "mine", "-o", "bogus").err


def test_what_the_compiler_says_stands_before_the_error(ig, tmp_path):
    (tmp_path / "program.bpf.c").write_text("int x = y;\n")

    said = ig("image", "build", str(tmp_path))

    assert said.code == 1
    assert "undeclared" in said.err
    assert "Error: clang compile for amd64: " in said.err


def test_inspect_shows_an_image_to_people(ig):
    said = ig("image", "inspect", "trace_open").out

    assert "Platform:       linux/amd64 (eBPF " in said
    assert "Platform:       linux/arm64 (eBPF " in said
    assert "tracepoint, section tracepoint/syscalls/sys_enter_openat, " in said
    assert "\nData source open (events):\n" in said
    assert "\n  fname  string " in said
    assert "      --failed " in said


def test_inspect_gives_everything_to_programs(ig):
    info = json.loads(ig("image", "inspect", "trace_open", "-o", "json").out)

    assert {"oci.manifest", "oci.metadata", "oci.tag", "ebpf.maps", "ebpf.sections"} <= set(info)
    assert info["oci.tag"] == {"content": "latest", "contentType": "text/plain"}
    assert {"Name": "events", "Type": "RingBuf"} in json.loads(info["ebpf.maps"]["content"])


def test_inspect_gives_a_part(ig):
    name = ("image", "inspect", "trace_open")

    assert ig(*name, "--extra-info", "oci.repository").out == "ghcr.io/inspektor-gadget/gadget/trace_open\n"
    assert ig(*name, "--extra-info", "oci.metadata", "--jsonpath", ".name").out == "trace_open\n"
    assert ig(*name, "--show-datasources", "--jsonpath", "[0]['name']", "-o", "yaml").out == "open\n"
    assert json.loads(ig(*name, "--show-datasources").out)[0]["type"] == 1
    assert ig(*name, "--extra-info", "oci.metadata", "--jsonpath", ".no").code == 1
    assert "understood are .name" in ig(*name, "--extra-info", "oci.metadata", "--jsonpath", "[x]").err


# ---------------------------------------------------------------------------------------------- completion


def completed(ig: Ig, monkeypatch: pytest.MonkeyPatch, line: str) -> list[str]:
    """What bash is offered at the end of a line."""
    words = line.split(" ")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    monkeypatch.setenv("_IG_COMPLETE", "bash_complete")
    offered = ig().out.splitlines()
    monkeypatch.delenv("_IG_COMPLETE")
    return [one.partition(",")[2] for one in offered]


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("ig ru", ["run"]),
        ("ig run tra", ["trace_open"]),
        ("ig run trace_open --faile", ["--failed"]),
        ("ig run --time", ["--timeout"]),
        ("ig run trace_open -o js", ["json", "jsonpretty"]),
        ("ig run trace_open --pull n", ["never"]),
        ("ig image rm exa", ["example.org/t:v1"]),
        ("ig image ins", ["inspect"]),
    ],
)
def test_names_flags_and_values_are_completed(ig, monkeypatch, line, offered):
    assert completed(ig, monkeypatch, line) == offered
