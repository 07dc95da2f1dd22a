"""`ig image pull|push|copy|sign|verify`, `ig login|logout`, and the line that shows how far a copy is."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import click
import pytest

import igrun
from igrun.cli import call
from igrun.cli.face import Face
from igrun.cli.options import taking
from igrun.cli.progress import Line, size
from igrun.config import ACCESS, KEYS
from igrun.errors import RegistryError
from igrun.image import Objects, pack
from igrun.oci.model import Descriptor
from igrun.oci.store import Store
from tests.unit.test_cli import Ig, Said

HOME = Path(igrun.__file__).parent.parent  # where other processes find igrun
NAME = "registry.example.org/team/g:v1"


def put(root: Path, name: str, gadget: str = "g") -> Descriptor:
    objects = {architecture: Objects(ebpf=b"elf") for architecture in ("amd64", "arm64")}
    with Store.open(root) as store:
        image = pack(store, f"name: {gadget}\n".encode(), objects, created="2026-01-01T00:00:00Z", builder_version="1")
        store.tag(image, name)
    return image


@pytest.fixture
def ig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Ig:
    """Call `ig` in this process, with a store of its own, and with one that stands for all registries."""

    @contextmanager
    def repository(reference, policy):
        if reference.registry == "away.example.org":
            raise RegistryError("away.example.org does not answer")
        with Store.open(tmp_path / "remote") as store:
            yield store

    monkeypatch.setattr("igrun.oci.store.default_root", lambda: tmp_path / "local")
    monkeypatch.setattr("igrun.data.gadgets", lambda: None)
    monkeypatch.setattr("igrun.lookup.repository", repository)
    monkeypatch.setattr("igrun.oci.provenance.PLACE", tmp_path / "trusted.json")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("COSIGN_PASSWORD", "")
    monkeypatch.chdir(tmp_path)

    def run(*args: str) -> Said:
        capfd.readouterr()
        code = call(Face(), list(args))
        return Said(code, *capfd.readouterr())

    return run


# ---------------------------------------------------------------------------------------------- moving


def test_an_image_is_pulled_and_pushed(ig, tmp_path):
    digest = put(tmp_path / "remote", NAME).digest

    assert ig("image", "pull", NAME) == (0, "", f"Pulling {NAME}...\nSuccessfully pulled {NAME}@{digest}\n")
    assert NAME.replace(":v1", "") in ig("image", "list").out
    ig("image", "tag", NAME, "other.example.org/g")
    said = ig("image", "push", "other.example.org/g")
    assert said.err == (f"Pushing other.example.org/g...\nSuccessfully pushed other.example.org/g:latest@{digest}\n")


def test_a_gadget_that_comes_with_igrun_gets_a_name_to_be_pushed_under(ig, tmp_path, monkeypatch):
    digest = put(tmp_path / "bundle", "trace_it:latest").digest
    assert ig("image", "tag", "trace_it", NAME).code == 1
    monkeypatch.setattr("igrun.data.gadgets", lambda: tmp_path / "bundle")

    assert ig("image", "tag", "trace_it", NAME).err == f"Successfully tagged with {NAME}@{digest}\n"
    assert ig("image", "push", NAME).code == 0
    assert ig("image", "tag", "trace_that", NAME).code == 1


def test_an_image_that_is_not_there_is_an_error(ig, tmp_path):
    assert ig("image", "pull", NAME).code == 1
    assert ig("image", "push", NAME).code == 1
    assert not (tmp_path / "local" / "index.json").exists()
    assert "Error: away.example.org does not answer" in ig("image", "pull", "away.example.org/g").err


def test_an_image_is_copied_past_the_store(ig, tmp_path):
    digest = put(tmp_path / "remote", NAME).digest

    said = ig("image", "copy", NAME, "mirror.example.org/g:v1")

    assert said.err.splitlines()[-1] == f"Successfully copied to mirror.example.org/g:v1@{digest}"
    assert not (tmp_path / "local").exists()


def test_images_are_exported_and_imported(ig, tmp_path):
    digest = put(tmp_path / "local", NAME).digest

    assert ig("image", "export", NAME, "g.tar") == (0, "", "Successfully exported images to g.tar\n")
    ig("image", "remove", NAME)
    assert ig("image", "import", "g.tar") == (0, "", f"Successfully imported images:\n  {NAME}\n")
    assert json.loads(ig("image", "import", "g.tar", "-o", "json").out) == [
        {"Repository": NAME.removesuffix(":v1"), "Tag": "v1", "Digest": digest}
    ]
    assert ig("image", "import", "/nowhere").code == 1


def test_what_may_not_be_pulled_is_not(ig, tmp_path, monkeypatch):
    put(tmp_path / "remote", NAME)
    monkeypatch.setenv("IG_OPERATOR_OCI_ALLOWED_GADGETS", "example.org/*")
    assert "is not part of allowed gadgets" in ig("image", "pull", NAME).err

    monkeypatch.setenv("IG_OPERATOR_OCI_ALLOWED_GADGETS", "registry.example.org/team/*")
    monkeypatch.setenv("IG_OPERATOR_OCI_DISALLOW_PULLING", "true")
    assert "pulling is disallowed" in ig("image", "pull", NAME).err
    assert not (tmp_path / "local").exists()


SLOW = """
import sys, time
from contextlib import contextmanager
from pathlib import Path
from igrun import lookup
from igrun.oci import store
from igrun.oci.store import Store

class Slow(Store):
    def stream(self, descriptor, start=0):
        for byte in super().read(descriptor)[start:]:
            time.sleep(0.2)
            yield bytes([byte])

@contextmanager
def repository(reference, policy):
    with Slow.open(root / "remote", writable=False) as remote:
        yield remote

root = Path(sys.argv.pop(1))
store.default_root = lambda: root / "local"
lookup.repository = repository
from igrun.cli import main
main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_a_pull_ends_with_130_and_leaves_a_store_that_lists_what_it_had(ig, tmp_path, number):
    put(tmp_path / "local", "example.org/old:v1", "old")
    put(tmp_path / "remote", NAME)

    with subprocess.Popen(
        [sys.executable, "-c", SLOW, tmp_path, "image", "pull", NAME], stderr=subprocess.PIPE, text=True, cwd=HOME
    ) as pull:
        assert pull.stderr.readline() == f"Pulling {NAME}...\n"
        time.sleep(0.3)
        pull.send_signal(number)
        assert pull.wait(10) == 130
        assert pull.stderr.read() == ""

    assert [entry["Repository"] for entry in json.loads(ig("image", "list", "-o", "json").out)] == ["example.org/old"]
    assert ig("image", "pull", NAME).code == 0


# ---------------------------------------------------------------------------------------------- trusting


def test_an_image_is_signed_pushed_and_verified(ig, tmp_path):
    pytest.importorskip("nacl", reason="PyNaCl, which encrypts private keys, is not installed")
    digest = put(tmp_path / "local", NAME).digest

    said = ig("image", "sign", NAME, "--generate-key", "mine")
    assert said.code == 0
    assert said.err.splitlines()[-1] == f"Successfully signed {NAME}@{digest}"
    assert (tmp_path / "mine.key").stat().st_mode & 0o077 == 0
    assert ig("image", "push", NAME).code == 0
    ig("image", "remove", NAME)
    said = ig("image", "verify", NAME, "--public-keys", "@mine.pub")
    assert said.err.splitlines()[:2] == [f"Verifying image: {NAME}", "Image verified successfully!"]
    ig("image", "pull", NAME)
    assert json.loads(ig("image", "verify", NAME, "--public-keys", "@mine.pub", "-o", "json").out)["digest"] == digest
    assert ig("image", "verify", NAME).code == 1


@pytest.mark.parametrize("how", ["bundle", "referrer", "legacy"])
def test_an_image_of_a_registry_is_signed_there(ig, tmp_path, how):
    pytest.importorskip("nacl", reason="PyNaCl, which encrypts private keys, is not installed")
    put(tmp_path / "local", NAME)
    put(tmp_path / "remote", NAME)
    assert ig("image", "sign", "--generate-key", "mine").code == 0

    said = ig("image", "sign", NAME, "--remote", "--key", "mine.key", "--format", how)

    assert said.code == 0, said.err
    assert ig("image", "verify", NAME, "--public-keys", "@mine.pub").code == 1
    assert ig("image", "verify", NAME, "--public-keys", "@mine.pub", "--remote").code == 0


def test_signing_needs_a_key(ig):
    assert ig("image", "sign", NAME).code == 2
    assert ig("image", "sign", NAME, "--key", "x", "--generate-key", "y").code == 2
    assert ig("image", "sign", "--key", "x").code == 2
    assert ig("image", "sign", NAME, "--key", "/nowhere").code == 1


def test_the_run_of_an_unsigned_image_ends_before_it_is_pulled(ig, tmp_path):
    put(tmp_path / "remote", NAME)

    said = ig("run", NAME)

    assert said.code == 1
    assert "signature not found" in said.err
    assert "--verify-image=false" in said.err
    assert not (tmp_path / "local" / "index.json").exists()


# ---------------------------------------------------------------------------------------------- prune


def test_what_no_name_leads_to_is_deleted(ig, tmp_path):
    digest = put(tmp_path / "local", NAME).digest
    assert ig("image", "prune").err == "Nothing to delete\n"
    with Store.open(tmp_path / "local") as store:
        store.untag(NAME)

    for _ in range(2):
        said = ig("image", "prune", "--dry-run")
        assert said.err.splitlines()[0] == f"Would delete {digest}"
    freed = json.loads(ig("image", "prune", "-o", "json").out)
    assert freed["Images"] == [digest]
    assert freed["Size"] > 0
    assert not list((tmp_path / "local/blobs/sha256").iterdir())


def test_caches_are_deleted_alone(ig, tmp_path, monkeypatch):
    monkeypatch.setattr("igrun.cli.image.pruning.cache", lambda: tmp_path / "cache")
    (tmp_path / "cache/layouts").mkdir(parents=True)
    (tmp_path / "cache/layouts/x").write_bytes(bytes(2048))
    put(tmp_path / "local", NAME)

    assert ig("image", "prune", "--cache", "--dry-run").err == "Would free 2.0 KiB\n"
    assert ig("image", "prune", "--cache").err == "Freed 2.0 KiB\n"
    assert not list((tmp_path / "cache").iterdir())
    assert ig("image", "prune", "--cache").err == "Nothing to delete\n"


# ---------------------------------------------------------------------------------------------- flags


def test_flags_become_texts_by_the_keys_of_their_params():
    seen = {}

    @click.command()
    @taking((*ACCESS, *KEYS))
    def command(given):
        seen.update(given)

    command.main(
        ["--insecure-registries", "a,b", "--insecure-registries=c", "--cert", "x", "--plain-http", "true"],
        "c",
        standalone_mode=False,
    )

    assert seen == {"insecure-registries": "a,b,c", "cert-file": "x", "plain-http": "true"}


def test_the_config_knows_the_table_of_registries(ig, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("registries:\n  ghcr.io:\n    mirrors: [mirror.example.org:5000]\n")

    assert (
        "registries:\n  ghcr.io:\n    mirrors:\n    - mirror.example.org:5000\n"
        in ig("config", "view", "--config", str(path)).out
    )
    assert "registries: {}\n" in ig("config", "default").out
    path.write_text("registries: [a]\n")
    assert "registries: not a mapping of registries" in ig("config", "view", "--config", str(path)).err


# ---------------------------------------------------------------------------------------------- login


@pytest.fixture
def logins(monkeypatch):
    """What was handed over: (registry, username, password)."""
    import igrun.oci.credentials as credentials

    done = []
    monkeypatch.setattr(credentials, "login", lambda *args: done.append(args[:3]))
    return done


def piped(monkeypatch, data: bytes) -> None:
    read, write = os.pipe()
    os.write(write, data)
    os.close(write)
    monkeypatch.setattr(sys, "stdin", os.fdopen(read))


def test_a_password_comes_from_standard_input_or_a_flag(ig, logins, monkeypatch):
    piped(monkeypatch, b"s3cret\r\n")
    said = ig("login", "example.org", "-u", "ann", "--password-stdin")
    assert said == (0, "", "Login Succeeded\n")

    said = ig("login", "example.org", "-u", "ann", "-p", "s3cret")
    assert "insecure" in said.err.splitlines()[0]
    assert "s3cret" not in said.err
    assert logins == [("example.org", "ann", "s3cret")] * 2


def test_a_login_without_a_password_is_an_error(ig, logins):
    assert "username and password are required" in ig("login", "example.org", "-u", "ann").err
    said = ig("login", "example.org", "-u", "ann", "-p", "x", "--password-stdin")
    assert "--password and --password-stdin are mutually exclusive" in said.err
    assert not logins


def test_on_a_terminal_the_password_is_asked_for_and_not_shown(tmp_path):
    code = (
        "import sys\nimport igrun.oci.credentials as c\n"
        "c.login = lambda registry, user, password, access: print([registry, user, len(password)])\n"
        "from igrun.cli import main\nmain(['login', 'example.org'])"
    )
    master, slave = pty.openpty()
    env = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.Popen(
        [sys.executable, "-c", code], stdin=slave, stdout=slave, stderr=slave, env=env, cwd=HOME, start_new_session=True
    )
    os.close(slave)
    shown = b""
    for question, answer in ((b"Username: ", b"ann\n"), (b"Password: ", b"s3cret\n")):
        while question not in shown:
            shown += os.read(master, 1000)
        time.sleep(0.05)  # getpass empties what was typed before it asked
        os.write(master, answer)
    assert done.wait(20) == 0
    shown += os.read(master, 1000)

    assert b"['example.org', 'ann', 6]" in shown
    assert b"s3cret" not in shown


# ---------------------------------------------------------------------------------------------- progress


def blob(name: str, count: int) -> Descriptor:
    return Descriptor("", f"sha256:{name * 64}", count)


def test_the_line_shows_bytes_and_rate_at_most_ten_times_a_second_and_goes_away():
    now, printed = [0.0], []
    line = Line(printed.append, lambda: 80, lambda: now[0])
    first, second = blob("a", 1 << 20), blob("b", 3 << 20)
    line.expect(first)
    line.expect(second)
    for _ in range(1000):
        now[0] += 0.001
        line.advance(second, 1 << 10)
    line.clear()

    assert 10 <= len(printed) <= 11
    assert printed[-1] == "\r\x1b[K"
    assert " of 4.0 MiB, 1000.0 KiB/s" in printed[-2]


def test_what_was_there_before_is_not_counted_and_what_is_sent_again_is_counted_once():
    now, printed = [0.0], []
    line = Line(printed.append, lambda: 80, lambda: now[0])
    first, second = blob("a", 1000), blob("b", 500)
    line.expect(first)
    line.expect(second)
    line.done(second)
    line.advance(first, 800)
    line.advance(first, -800)
    now[0] = 1.0
    line.advance(first, 1000)

    assert "100% 1000 B of 1000 B" in printed[-1]


def test_nothing_is_cleared_where_nothing_was_shown():
    printed = []
    Line(printed.append, lambda: 80).clear()

    assert not printed


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (100 << 20, "100.0 MiB")])
def test_sizes_are_told_in_binary_units(count, text):
    assert size(count) == text
