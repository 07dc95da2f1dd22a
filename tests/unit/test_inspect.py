"""What `ig image inspect` shows, and the parts it is made of."""

import json
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igrun.btf import Btf
from igrun.cli import call
from igrun.cli.face import Face
from igrun.cli.jsonpath import find
from igrun.elf import Elf
from igrun.errors import ImageError, ParamError
from igrun.image import ARTIFACT
from igrun.oci.model import EMPTY, MANIFEST, Manifest, Referrer
from igrun.oci.store import Store
from igrun.requirements import requirements
from igrun.requirements.code import Code
from igrun.requirements.diagrams import flowchart, sequence
from igrun.requirements.guest import guest
from igrun.requirements.listing import source, source_with_relocation
from tests.compiled import compiled

GADGETS = Path(__file__).parent.parent.parent / "gadgets"

# ---------------------------------------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from igrun.build import build

    root = tmp_path_factory.mktemp("store")
    with Store.open(root) as store:
        build(GADGETS / "trace_signal", store=store, tag="example.org/t:v1")
    return root


@pytest.fixture
def ig(root, tmp_path, monkeypatch, capfd):
    """Call `ig image inspect` on an image that nobody signed; what it prints."""
    monkeypatch.setattr("igrun.oci.store.default_root", lambda: root)
    monkeypatch.setattr("igrun.oci.provenance.PLACE", tmp_path / "trusted.json")
    monkeypatch.setenv("HOME", str(tmp_path))

    def run(*args: str) -> str:
        capfd.readouterr()
        assert call(Face(), ["image", "inspect", "example.org/t:v1", *args]) == 0
        return capfd.readouterr().out

    return run


def test_people_see_what_they_want_to_know_before_they_trust_an_image(ig):
    text = ig()

    assert "\nSignature:      unsigned\n" in text
    assert "\nPlatform:       linux/amd64 (eBPF " in text
    assert "\n  kernel        5.5 (bpf_probe_read_kernel)\n" in text
    assert "\n  can use       5.8: map type ringbuf (else a perf buffer)\n" in text
    assert "\n  CAP_PERFMON   programs of type tracepoint\n" in text
    assert "\n  ig_sig_generate                 tracepoint, section tracepoint/signal/signal_generate, " in text
    assert "\n  calls                           hash, 10240 entries, 4 -> 8 bytes, 896.0 KiB + 72 B per CPU\n" in text
    assert "\n  events                          ringbuf, 256.0 KiB of events, 269.0 KiB\n" in text
    assert "\nHelpers:\n  bpf_get_current_comm, " in text
    assert "\nData source signal (events):\n" in text
    assert "      --failed " in text
    assert all(len(line) <= 130 for line in text.splitlines())


def test_an_image_that_was_built_here_says_so(ig, root):
    from igrun.oci import provenance

    with Store.open(root, writable=False) as store:
        digest = store.resolve("example.org/t:v1").digest
    if not provenance.Provenance.open(provenance.PLACE).record(digest, "built", root):
        pytest.skip("only root's own store is trusted: run as root")

    assert "\nSignature:      built here\n" in ig()


def test_programs_get_everything(ig):
    info = json.loads(ig("-o", "json"))
    keys = {"created", "digest", "manifest", "metadata", "repository", "tag"}

    assert {f"oci.{key}" for key in keys} < set(info)
    assert {f"ebpf.{key}" for key in ("sections", "maps", "programs", "variables", "flowchart", "sequence")} < set(info)
    needs = json.loads(info["igrun.requirements"]["content"])
    assert needs["minimumKernel"] == "5.5"
    assert {"since": "5.8", "what": "map type ringbuf", "users": ["events"], "instead": "a perf buffer"} in needs[
        "needs"
    ]
    programs = json.loads(info["ebpf.programs"]["content"])
    assert programs[0]["Source"].startswith(f"{programs[0]['Name']}:\n")
    image = json.loads(info["igrun.image"]["content"])
    assert image["signature"] == {"state": "unsigned", "why": ""}
    assert [one["architecture"] for one in image["platforms"]] == ["amd64", "arm64"]


def test_paths_lead_to_parts(ig):
    needs = ("--extra-info", "igrun.requirements", "--jsonpath")

    assert ig(*needs, ".minimumKernel") == "5.5\n"
    assert json.loads(ig(*needs, ".maps[?(@.type == 'ringbuf')].name", "-o", "json")) == ["events"]
    assert "ig_sig_generate" in json.loads(ig(*needs, "$..programs[*].name", "-o", "json"))


def test_referrers_are_listed(ig, root):
    with Store.open(root) as store:
        image = store.resolve("example.org/t:v1")
        sbom = store.write("application/spdx+json", b"{}")
        config = store.write(EMPTY, b"{}")
        manifest = Manifest(config, (sbom,), {}, "application/spdx+json", image).to_bytes()
        written = store.write(MANIFEST, manifest)
        store.refer(image, Referrer(written))

    text = ig()

    assert f"\nReferrers:\n  SBOM (SPDX)                         2 B  {written.digest}\n" in text
    assert ARTIFACT not in text


# ---------------------------------------------------------------------------------------------- JSONPath

TREE = {"a": {"b c": 1, "d": [1, 2, 3, 4]}, "l": [{"n": "x", "v": 1}, {"n": "y", "v": 2}, {"n": "z"}]}


@pytest.mark.parametrize(
    ("path", "values", "single"),
    [
        ("", [TREE], True),
        ("$", [TREE], True),
        (".a['b c']", [1], True),
        ('$.a["b c"]', [1], True),
        ("a.d[0]", [1], True),
        (".a.d[-1]", [4], True),
        (".a.d[9]", [], True),
        (".a.d[1:3]", [2, 3], False),
        (".a.d[::-1]", [4, 3, 2, 1], False),
        (".a.d[:-2]", [1, 2], False),
        (".a.d[0,2]", [1, 3], False),
        (".l[*].n", ["x", "y", "z"], False),
        (".l.*.n", ["x", "y", "z"], False),
        ("..n", ["x", "y", "z"], False),
        ("..d[0]", [1], False),
        (".l[?(@.v > 1)].n", ["y"], False),
        (".l[?@.n == 'x' || @.n == \"z\"].n", ["x", "z"], False),
        (".l[?(@.v >= 1 && @.n != 'x')].n", ["y"], False),
        (".l[?(@.v)].n", ["x", "y"], False),
        (".l[?(!@.v)].n", ["z"], False),
        (".l[?(@.n < 3)].n", [], False),
    ],
)
def test_a_path_leads_to_values(path, values, single):
    assert find(TREE, path) == (values, single)


@pytest.mark.parametrize(
    "path", [".", "[", "[]", ".a[", ".a[x]", ".a[?(]", "a b", ".l[::0]", ".l[?(@.v + 1)]", "..", "$$"]
)
def test_a_path_that_is_not_understood_is_an_error(path):
    with pytest.raises(ParamError, match="resolving path"):
        find(TREE, path)


@given(st.text("$.[]*?@()'\"ab01:,-=<>&|! ", max_size=30))
def test_no_path_does_anything_else_than_lead_or_fail(path):
    with suppress(ParamError):
        find(TREE, path)


# ---------------------------------------------------------------------------------------------- listings, diagrams

OBJECT = """
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8);
	__type(key, int);
	__type(value, long);
} m SEC(".maps");
static __noinline int inner(long *value) { return *value + bpf_get_smp_processor_id(); }
const volatile int wanted = 5;
SEC("tracepoint/a/b") int p(struct trace_event_raw_sys_enter *ctx)
{
	int key = wanted;
	long one = __builtin_preserve_access_index(({ ctx->id; }));
	long *value = bpf_map_lookup_elem(&m, &key);
	if (value)
		return inner(value);
	bpf_map_update_elem(&m, &key, &one, 0);
	return 0;
}
"""


@pytest.fixture(scope="module")
def code() -> Code:
    elf = Elf(compiled(OBJECT))
    return Code(elf, Btf.parse(elf.content(elf.by_name[".BTF"])))


def entry(code: Code):
    return next(one for one in code.by_start.values() if one.name == "p")


def test_a_program_is_listed_in_the_words_of_the_ecosystem(code):
    text = source(code, entry(code))

    assert text.startswith("p:\n\t")
    assert "LoadMapValue dst: r2, fd: 0 off: 0 <.rodata>" in text
    assert "LoadMapPtr dst: r1 fd: 0 <m>" in text
    assert "Call FnMapLookupElem\n" in text
    assert "Call -1 <inner>\n" in text
    assert "\ninner:\n" in text


def test_a_listing_has_the_lines_of_c(ig):
    programs = json.loads(ig("--extra-info", "ebpf.programs", "-o", "json"))

    one = next(one for one in programs if one["Name"] == "ig_sig_generate")
    assert "; bool ignored = ctx->result == SIGNAL_IGNORED;\n" in one["Source"]


def test_a_listing_tells_what_core_relocates(code):
    text = source_with_relocation(code, entry(code))

    assert '; CORERelocation(byte_off, Struct:"trace_event_raw_sys_enter"[0:1], local_id=' in text
    assert not text.startswith("p:")


def test_diagrams_tell_what_is_done_with_maps():
    found = requirements(compiled(OBJECT))

    assert flowchart(found) == 'flowchart LR\nm[("m")]\np -- "Lookup+Update" --> m\np["p"]\n'
    assert sequence(found).splitlines() == [
        "sequenceDiagram",
        *("box eBPF Programs", "participant p", "end"),
        *("box eBPF Maps", "participant m", "end"),
        *("p->>m: Lookup", "p->>m: Update"),
    ]


# ---------------------------------------------------------------------------------------------- WASM

WAT = """(module
  (import "ig" "gadgetLog" (func (param i32)))
  (import "env" "memory" (memory 1))
  (import "ig" "newDataSource" (func (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func (param i32)))
  (func (export "gadgetAPIVersion") (result i64) i64.const 1)
  (func (export "gadgetInit") (result i32) i32.const 0))"""


@pytest.fixture(scope="module")
def wasm() -> bytes:
    from wasmtime import wat2wasm

    return bytes(wat2wasm(WAT))


def test_a_module_tells_what_it_calls(wasm):
    found = guest(wasm)

    assert found.upcalls == ("gadgetLog", "newDataSource")
    assert found.exports == ("gadgetAPIVersion", "gadgetInit")
    assert found.api == 1


def test_a_version_that_is_computed_is_not_known(wasm):
    from wasmtime import wat2wasm

    text = WAT.replace("i64.const 1", "i64.const 1 i64.const 2 i64.add")

    assert guest(bytes(wat2wasm(text))).api is None


@given(st.data())
def test_a_broken_module_is_an_image_error_or_understood(wasm, data):
    place = data.draw(st.integers(0, len(wasm) - 1))
    broken = wasm[:place] + bytes((data.draw(st.integers(0, 255)),)) + wasm[place + 1 :]

    with suppress(ImageError):
        guest(broken)
    with suppress(ImageError):
        guest(broken[: data.draw(st.integers(0, len(broken)))])
