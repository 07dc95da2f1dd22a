"""`ig image pull|push|copy` and `ig login|logout` at a registry: exit codes, and one clear line."""

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from igrun.cli import call
from igrun.cli.face import Face
from igrun.oci.model import Descriptor
from igrun.oci.store import Store
from tests.images import image
from tests.registry.stub import Stub, answer, cut, gone
from tests.unit.test_cli import Ig, Said

SECRET = "s3cret-word"


@pytest.fixture
def stub() -> Iterator[Stub]:
    with Stub() as running:
        yield running


@pytest.fixture
def ig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Ig:
    """Call `ig` in this process, with a store and a home of its own."""
    for name in ("DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("igrun.oci.store.default_root", lambda: tmp_path / "store")
    monkeypatch.setattr("igrun.data.gadgets", lambda: None)
    monkeypatch.setattr("igrun.oci.provenance.PLACE", tmp_path / "trusted.json")
    monkeypatch.setattr("igrun.oci.transport.time.sleep", lambda seconds: None)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "auth.json").write_text("{}")

    def run(*args: str) -> Said:
        capfd.readouterr()
        code = call(Face(), list(args))
        return Said(code, *capfd.readouterr())

    return run


def way(stub: Stub, tmp_path: Path) -> tuple[str, ...]:
    return "--insecure-registries", stub.address, "--authfile", str(tmp_path / "auth.json")


def test_an_image_is_pulled(ig, stub, tmp_path):
    root = stub.put("v1", b"layer")
    name = f"{stub.address}/g:v1"

    said = ig("image", "pull", name, *way(stub, tmp_path))

    assert said == (0, "", f"Pulling {name}...\nSuccessfully pulled {name}@{root.digest}\n")
    with Store.open(tmp_path / "store") as store:
        assert store.resolve(name).digest == root.digest


def test_an_image_is_pushed_with_the_password_of_the_login(ig, stub, tmp_path, monkeypatch):
    stub.user, stub.password = "somebody", SECRET
    name = f"{stub.address}/team/g:v1"
    with Store.open(tmp_path / "store") as store:
        root = image(store, b"layer")
        store.tag(root, name)
    at = way(stub, tmp_path)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(SECRET.encode() + b"\n")))

    assert ig("login", "-u", "somebody", "--password-stdin", stub.address, *at) == (0, "", "Login Succeeded\n")
    assert ig("image", "push", name, *at).code == 0
    assert Descriptor.of("", stub.manifests["v1"][1]).digest == root.digest
    assert ig("logout", stub.address, "--authfile", at[3]) == (0, "", "Logout Succeeded\n")
    assert json.loads((tmp_path / "auth.json").read_text()) == {"auths": {}}
    said = ig("image", "push", name, *at)
    assert said.code == 1
    assert "unauthorized [401]" in said.err
    assert f"ig login {stub.address}" in said.err


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (answer(401), "unauthorized [401]"),
        (answer(403, b'{"errors":[{"code":"DENIED","message":"no\\u001b[31m way"}]}'), "forbidden (no [31m way) [403]"),
        (answer(404), "is not in registry"),
        (answer(429, Retry_After="9999"), "too many requests [429]"),
        (answer(500), "the registry failed [500]"),
        (answer(307, Location="/v2/g/manifests/v1"), "from place to place"),
        (answer(200, b"<html>"), "no JSON"),
        (gone, "cannot reach registry"),
    ],
)
def test_what_goes_wrong_is_one_clear_line(ig, stub, tmp_path, fault, words):
    stub.put("v1", b"layer")
    stub.on("GET", "/manifests/", fault)

    said = ig("image", "pull", f"{stub.address}/g:v1", *way(stub, tmp_path))

    assert (said.code, said.out) == (1, "")
    errors = said.err.splitlines()[1:]
    assert words in errors[0]
    assert len(errors) <= 2, "and a hint"
    assert "Traceback" not in said.err
    assert "\x1b" not in said.err


def test_a_broken_pull_goes_on_with_what_is_there(ig, stub, tmp_path):
    layer = bytes(range(256)) * 12_000
    stub.put("v1", layer)
    blob = Descriptor.of("", layer)
    stub.on("GET", blob.digest, cut(2 << 20), times=1)
    stub.on("GET", blob.digest, answer(403), times=1)
    name = f"{stub.address}/g:v1"

    assert ig("image", "pull", name, *way(stub, tmp_path)).code == 1
    assert ig("image", "pull", name, *way(stub, tmp_path)).code == 0
    ranges = [one.headers.get("Range") for one in stub.asked("GET", blob.digest)]
    assert ranges == [None, *[f"bytes={2 << 20}-{len(layer) - 1}"] * 2]


def test_a_wrong_password_is_one_line_without_it(ig, stub, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, "igrun")  # which `ig` may have set
    stub.user, stub.password = "somebody", "another"

    said = ig("login", "-u", "somebody", "-p", SECRET, stub.address, *way(stub, tmp_path))

    assert said.code == 1
    assert f"unauthorized: {stub.address} does not take this username and password" in said.err
    assert SECRET not in said.err + said.out + caplog.text


def test_an_image_is_copied_past_the_store(ig, stub, tmp_path):
    root = stub.put("v1", b"layer")
    with Stub() as other:
        said = ig(
            "image", "copy", f"{stub.address}/g:v1", f"{other.address}/h/g:v2",
            "--insecure-registries", f"{stub.address},{other.address}", "--authfile", str(tmp_path / "auth.json"),
        )  # fmt: skip

        assert said.code == 0
        assert Descriptor.of("", other.manifests["v2"][1]).digest == root.digest
    assert not (tmp_path / "store").exists()
