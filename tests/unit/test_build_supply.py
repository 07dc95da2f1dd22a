"""What is attached to an image that was built: the bill of materials and the provenance."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from igrun.build import build
from igrun.build.materials import Material, modules, prerequisites
from igrun.errors import ParamError
from igrun.image import unpack
from igrun.oci.model import CREATED, Index, Manifest
from igrun.oci.store import Store

HEADERS = Path(__file__).parents[2] / "sdk/include"
ENV = {"PATH": os.environ["PATH"], "SOURCE_DATE_EPOCH": "1700000000"}
KINDS = {"spdx": "application/spdx+json", "cyclonedx": "application/vnd.cyclonedx+json"}
SOURCE = """\
// SPDX-License-Identifier: GPL-2.0
#include <vmlinux.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>
#include "local.h"
#include <shared.h>

SEC("tracepoint/syscalls/sys_enter_getpid")
int on_getpid(void *ctx)
{
	return NUMBER;
}

char _license[] SEC("license") = "GPL";
"""


@pytest.fixture
def gadget(tmp_path):
    return written(tmp_path / "somebody" / "gadget")


def written(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "program.bpf.c").write_text(SOURCE)
    (folder / "local.h").write_text("/* SPDX-License-Identifier: MIT OR Apache-2.0 */\n#define NUMBER SHARED\n")
    (folder.parent / "common").mkdir()
    (folder.parent / "common/shared.h").write_text("#define SHARED 0\n")
    (folder / "gadget.yaml").write_text("name: Things\nsourceURL: https://example.org/things\n")
    (folder / "build.yaml").write_text("includes: [../common]\nwasm: go/guest.wasm\ncflags: -DX=1\n")
    (folder / "go").mkdir()
    (folder / "go/guest.wasm").write_bytes(b"\0asm\1\0\0\0")
    return folder


def documents(folder: Path, store: Path, **options: object) -> tuple[str, dict[str, bytes]]:
    """The image's digest, and what is attached to it by its type."""
    with Store.open(store) as place:
        built = build(folder, store=place, **{"env": ENV, "headers": HEADERS, **options})
        found = {}
        for referrer in place.referrers(built.descriptor):
            manifest = Manifest.parse(place.read(referrer.descriptor))
            assert manifest.subject.digest == built.descriptor.digest
            assert manifest.annotations[CREATED] == "2023-11-14T22:13:20Z"
            assert [layer.media_type for layer in manifest.layers] == [manifest.artifact_type]
            found[manifest.artifact_type] = place.read(manifest.layers[0])
        assert sorted(one.artifact_type for one in built.attached) == sorted(found)
        return built.descriptor.digest, found


@pytest.mark.parametrize("form", KINDS)
def test_two_builds_from_two_folders_attach_the_same_bytes(gadget, tmp_path, form):
    other = written(tmp_path / "far away" / "deep" / "other name")
    headers = tmp_path / "copied headers"
    shutil.copytree(HEADERS, headers)

    first = documents(gadget, tmp_path / "one", sbom=form, provenance=True)
    assert first == documents(other, tmp_path / "two", sbom=form, provenance=True, headers=headers)
    assert sorted(first[1]) == sorted([KINDS[form], "application/vnd.in-toto+json"])


def test_nothing_is_attached_that_was_not_asked_for(gadget, tmp_path):
    assert documents(gadget, tmp_path / "store")[1] == {}
    with pytest.raises(ParamError, match=r"invalid value for --sbom: x\. Valid values are spdx,cyclonedx"):
        documents(gadget, tmp_path / "store", sbom="x")


def test_an_image_is_the_same_with_and_without_what_is_attached(gadget, tmp_path):
    assert documents(gadget, tmp_path / "a")[0] == documents(gadget, tmp_path / "b", sbom="spdx", provenance=True)[0]


def test_no_document_tells_of_this_machine(gadget, tmp_path):
    host = f'"{os.uname().nodename}"'
    for form in KINDS:
        for text in documents(gadget, tmp_path / form, sbom=form, provenance=True)[1].values():
            for word in (str(tmp_path), "somebody", str(HEADERS), host, str(Path.home()) + "/"):
                assert word.encode() not in text


def sums(document: dict) -> dict[str, str]:
    """Name -> SHA-256 of each source, whatever the form."""
    if "spdxVersion" in document:
        return {
            one["fileName"].removeprefix("./"): one["checksums"][1]["checksumValue"]
            for one in document["files"]
            if one["fileTypes"] == ["SOURCE"]
        }
    return {
        one["name"].lstrip("/"): one["hashes"][1]["content"] for one in document["components"] if one["type"] == "file"
    }


@pytest.mark.parametrize("form", KINDS)
def test_a_bill_lists_each_source_and_header_with_its_sum(gadget, tmp_path, form):
    found = sums(json.loads(documents(gadget, tmp_path / "store", sbom=form)[1][KINDS[form]]))

    for name in ("program.bpf.c", "local.h", "gadget.yaml", "build.yaml", "../common/shared.h", "go/guest.wasm"):
        assert found[name] == hashlib.sha256((gadget / name).read_bytes()).hexdigest()
    vmlinux = (HEADERS / "vmlinux/arm64/vmlinux.h").read_bytes()
    assert found["usr/include/igrun/vmlinux/arm64/vmlinux.h"] == hashlib.sha256(vmlinux).hexdigest()
    assert found["usr/include/bpf/bpf_helpers.h"]
    assert found["clang/include/stdbool.h"]


def test_the_spdx_document_is_valid_and_tells_objects_licenses_and_tools(gadget, tmp_path):
    from spdx_tools.spdx.parser.jsonlikedict.json_like_dict_parser import JsonLikeDictParser
    from spdx_tools.spdx.validation.document_validator import validate_full_spdx_document

    digest, found = documents(gadget, tmp_path / "store", sbom="spdx")
    document = json.loads(found[KINDS["spdx"]])
    problems = validate_full_spdx_document(JsonLikeDictParser().parse(document))
    assert [problem.validation_message for problem in problems] == []

    image, *tools = document["packages"]
    assert (image["name"], image["versionInfo"], image["licenseDeclared"]) == ("Things", digest, "GPL-2.0")
    assert [(tool["name"], bool(tool["versionInfo"])) for tool in tools] == [("igrun", True), ("clang", True)]
    licenses = {one["fileName"]: one["licenseInfoInFiles"] for one in document["files"]}
    assert licenses["./local.h"] == ["Apache-2.0", "MIT"]
    assert licenses["./../common/shared.h"] == ["NOASSERTION"]
    with Store.open(tmp_path / "store") as place:
        ebpf = unpack(place, digest, "amd64").ebpf
    made = {one["fileName"]: one for one in document["files"] if one["fileTypes"] == ["BINARY"]}
    assert sorted(made) == ["./amd64.bpf.o", "./arm64.bpf.o", "./program.wasm"]
    assert made["./amd64.bpf.o"]["checksums"][1]["checksumValue"] == hashlib.sha256(ebpf).hexdigest()


def test_the_cyclonedx_document_is_valid(gadget, tmp_path):
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    digest, found = documents(gadget, tmp_path / "store", sbom="cyclonedx")
    text = found[KINDS["cyclonedx"]].decode()
    assert JsonStrictValidator(SchemaVersion.V1_5).validate_str(text) is None

    about = json.loads(text)["metadata"]
    assert about["component"]["purl"] == f"pkg:oci/things@{digest.replace(':', '%3A')}"
    assert about["component"]["licenses"] == [{"expression": "GPL-2.0"}]
    assert [tool["name"] for tool in about["tools"]["components"]] == ["igrun", "clang"]


def test_the_provenance_says_what_was_built_from_what_and_how(gadget, tmp_path):
    digest, found = documents(gadget, tmp_path / "store", provenance=True)
    statement = json.loads(found["application/vnd.in-toto+json"])

    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    assert statement["subject"] == [{"name": "Things", "digest": {"sha256": digest[7:]}}]
    definition, details = statement["predicate"]["buildDefinition"], statement["predicate"]["runDetails"]
    assert sorted(definition) == ["buildType", "externalParameters", "internalParameters", "resolvedDependencies"]
    assert definition["externalParameters"] == {
        "ebpfsource": "program.bpf.c",
        "wasm": "go/guest.wasm",
        "metadata": "gadget.yaml",
        "cflags": ["-DX=1"],
        "includes": ["../common"],
        "validateMetadata": True,
    }
    assert definition["internalParameters"] == {"SOURCE_DATE_EPOCH": 1700000000}
    assert all(set(one["digest"]["sha256"]) <= set("0123456789abcdef") for one in definition["resolvedDependencies"])
    assert {"program.bpf.c", "gadget.yaml"} <= {one["name"] for one in definition["resolvedDependencies"]}
    assert details["builder"]["id"] == "urn:igrun:builder:local"
    assert sorted(details["builder"]["version"]) == ["clang", "igrun"]
    assert details["metadata"] == {"startedOn": "2023-11-14T22:13:20Z", "finishedOn": "2023-11-14T22:13:20Z"}


def test_a_gadget_of_metadata_alone_has_a_bill_too(tmp_path):
    from spdx_tools.spdx.parser.jsonlikedict.json_like_dict_parser import JsonLikeDictParser
    from spdx_tools.spdx.validation.document_validator import validate_full_spdx_document

    (tmp_path / "gadget").mkdir()
    (tmp_path / "gadget/gadget.yaml").write_text("name: words\n")
    _, found = documents(tmp_path / "gadget", tmp_path / "store", sbom="spdx", provenance=True)

    document = json.loads(found[KINDS["spdx"]])
    assert list(sums(document)) == ["gadget.yaml"]
    assert validate_full_spdx_document(JsonLikeDictParser().parse(document)) == []


def test_the_command_line_gives_the_same_from_two_folders_and_working_directories(gadget, tmp_path):
    """What CI rests on: the same sources, the same digest, through `ig image build` and all."""
    other = written(tmp_path / "else where" / "x" / "gadget copy")
    script = (
        "import sys; from pathlib import Path; import igrun.oci.store as store; root = Path(sys.argv.pop(1));"
        "store.default_root = lambda: root; from igrun.cli import main; main()"
    )
    said = []
    for number, (folder, cwd) in enumerate(((gadget, gadget.parent), (other, tmp_path))):
        command = [sys.executable, "-c", script, str(tmp_path / f"store{number}"), "image", "build", "--local"]
        command += ["--provenance", "-t", "things:v1", "--sbom", os.path.relpath(folder, cwd)]
        done = subprocess.run(
            command,
            cwd=cwd,
            env={**ENV, "PYTHONPATH": str(HEADERS.parents[1]), "HOME": str(tmp_path), "TMPDIR": str(tmp_path)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        said.append([line for line in done.stderr.splitlines() if "sha256:" in line])

    assert len(said[0]) == 3
    assert said[0] == said[1]
    roots = [tmp_path / f"store{number}" for number in range(2)]
    first, second = ({path.name: path.read_bytes() for path in root.glob("blobs/sha256/*")} for root in roots)
    assert first == second
    index = next(line for line in said[0] if "Successfully built" in line).rpartition("@")[2]
    assert len(Index.parse(first[index[7:]]).manifests) == 2


# ---------------------------------------------------------------------------------------------- materials


def test_a_rule_for_make_is_read_with_its_escapes():
    rule = "out/a.o: program.bpf.c \\\n  /usr/include/a\\ b.h \\\n  x\\#y.h c$$d.h\n"

    assert prerequisites(rule) == ["program.bpf.c", "/usr/include/a b.h", "x#y.h", "c$d.h"]


@pytest.mark.parametrize(
    ("text", "license"),
    [
        ("// SPDX-License-Identifier: GPL-2.0\n", "GPL-2.0"),
        ("/* SPDX-License-Identifier: (LGPL-2.1 OR BSD-2-Clause) */\n", "(LGPL-2.1 OR BSD-2-Clause)"),
        ("/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */", "GPL-2.0 WITH Linux-syscall-note"),
        ("int x;\n", ""),
        ("// SPDX-License-Identifier: <script>\n", ""),
    ],
)
def test_a_files_license_is_what_its_first_lines_say(text, license):
    assert Material.of("x", text.encode()).license == license


def test_modules_of_guests_are_read_from_go_mod_and_cargo_lock(tmp_path):
    (tmp_path / "go.mod").write_text(
        "module example.org/me\n\ngo 1.24\n\nrequire github.com/a/b v1.2.3 // indirect\n"
        "require (\n\tgolang.org/x/c v0.1.0\n)\nreplace example.org/z => ../z\n"
    )
    (tmp_path / "Cargo.lock").write_text(
        '[[package]]\nname = "me"\nversion = "0.1.0"\n\n'
        '[[package]]\nname = "serde"\nversion = "1.0.1"\nsource = "registry+x"\n'
    )

    assert [one.purl for one in modules(tmp_path / "go.mod")] == [
        "pkg:golang/github.com/a/b@v1.2.3",
        "pkg:golang/golang.org/x/c@v0.1.0",
    ]
    assert [one.purl for one in modules(tmp_path / "Cargo.lock")] == ["pkg:cargo/serde@1.0.1"]
