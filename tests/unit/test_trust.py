"""What may run: allowed gadgets, images made here, private keys."""

import base64
import json
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from igrun.errors import ImageError, ParamError, PluginError
from igrun.oci import private, provenance
from igrun.oci.keys import load_one
from igrun.oci.model import Reference
from igrun.oci.provenance import Provenance
from igrun.oci.sign import sign
from igrun.oci.trust import Trust
from tests.memory import Memory

DIGEST = "sha256:" + "a" * 64
OTHER = "sha256:" + "b" * 64
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of root")


# ---------------------------------------------------------------------------------------------- allowed gadgets


@pytest.mark.parametrize(
    ("entry", "name", "good"),
    [
        ("ghcr.io/inspektor-gadget/gadget/trace_open:latest", "trace_open", True),
        ("ghcr.io/inspektor-gadget/gadget/trace_open:latest", "trace_open:v1", False),
        ("ghcr.io/inspektor-gadget/gadget/trace_open", "trace_open", False),
        ("ghcr.io/inspektor-gadget/*", "trace_open:v1", True),
        ("ghcr.io/inspektor-gadget/*", "example.com/trace_open:v1", False),
        ("*", "example.com/trace_open:v1", True),
        (f"example.com/a/b@{DIGEST}", "example.com/a/b:v1", True),
        (f"example.com/a/b@{OTHER}", "example.com/a/b:v1", False),
        (f"example.com/a/b@{DIGEST}", f"example.com/a/b@{DIGEST}", True),
        (f"example.com/a/b@{DIGEST}", "example.com/a/c:v1", False),
        ("example.com/a/*", f"example.com/a/b@{DIGEST}", True),
        (" example.com/a/b:v1 ", "example.com/a/b:v1", True),
        # a digest decides what runs, so a tag before it says nothing
        ("example.com/a/b:v1", f"example.com/a/b:v1@{DIGEST}", False),
        ("example.com/a/b:v1*", f"example.com/a/b:v1@{DIGEST}", False),
    ],
)
def test_entries_are_names_digests_and_prefixes(entry, name, good):
    trust, reference = Trust(allowed=("example.com/none:v1", entry)), Reference.parse(name)

    def check():
        trust.check_name(reference)
        trust.check_digest(reference, DIGEST)

    if good:
        check()
    else:
        with pytest.raises(ImageError):
            check()


def test_a_name_is_refused_before_its_digest_is_known_unless_the_digest_may_allow_it():
    trust = Trust(allowed=(f"example.com/a/b@{OTHER}",))

    trust.check_name(Reference.parse("example.com/a/b:v1"))
    with pytest.raises(ImageError):
        trust.check_name(Reference.parse("example.com/a/c:v1"))
    with pytest.raises(ImageError):
        trust.check_name(Reference.parse(f"example.com/a/b@{DIGEST}"))


def test_the_refusal_has_the_words_of_the_ecosystem():
    with pytest.raises(ImageError) as caught:
        Trust(allowed=("a/b:v1", "c/*")).check_name(Reference.parse("trace_open"))

    name = "ghcr.io/inspektor-gadget/gadget/trace_open:latest"
    assert str(caught.value) == f"{name} is not part of allowed gadgets: a/b:v1, c/*"


def test_without_entries_everything_is_allowed():
    Trust().check_name(Reference.parse("trace_open"))
    Trust().check_digest(Reference.parse("trace_open"), DIGEST)


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({"allowed": ("a/b:v1", "")}, "allowed-gadgets"),
        ({"allowed": (" ",)}, "allowed-gadgets"),
        ({"identity": "me"}, "certificate-identity"),
        ({"issuer": "them"}, "certificate-oidc-issuer"),
        ({"notation_certificates": ("x",)}, "notation-policy-document"),
    ],
)
def test_what_does_not_go_together_is_refused_at_once(given, key):
    with pytest.raises(ParamError) as caught:
        Trust(**given)

    assert caught.value.key == key


def test_trust_needs_no_cryptography_before_something_is_verified():
    code = (
        "import sys; from igrun.oci.trust import Trust; from igrun.oci.model import Reference;"
        "from igrun.oci import provenance; provenance.Provenance.open();"
        "Trust(allowed=('*',)).check_name(Reference.parse('x'));"
        "print([one for one in sys.modules if one.split('.')[0] in ('cryptography', 'sigstore', 'oras', 'requests')])"
    )

    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"


# ---------------------------------------------------------------------------------------------- images made here


@pytest.fixture
def place(tmp_path):
    folder = tmp_path / "ig"
    folder.mkdir(mode=0o755)
    return folder / "trusted.json"


@pytest.fixture
def store(tmp_path):
    folder = tmp_path / "store"
    folder.mkdir(mode=0o755)
    return folder


@as_root
def test_what_root_built_is_trusted_in_its_own_store(place, store):
    assert Provenance.open(place).record(DIGEST, 'built "here": {', store)

    found = Provenance.open(place)
    assert (found.trusts(DIGEST, store), found.trusts(OTHER, store), found.problem) == (True, False, "")
    assert stat.S_IMODE(place.stat().st_mode) & 0o022 == 0
    assert json.loads(place.read_text())["images"][DIGEST]["why"] == 'built "here": {'


@as_root
def test_nothing_of_another_users_store_is_trusted(place, store):
    Provenance.open(place).record(DIGEST, "built", store)
    os.chown(store, 1000, 1000)

    assert not Provenance.open(place).trusts(DIGEST, store)
    assert not Provenance.open(place).record(OTHER, "built", store)
    assert not Provenance.open(place).trusts(OTHER, Path("/"))


@as_root
def test_a_store_that_others_may_write_is_not_trusted(place, store):
    Provenance.open(place).record(DIGEST, "built", store)
    store.chmod(0o775)

    assert not Provenance.open(place).trusts(DIGEST, store)


@as_root
@pytest.mark.parametrize("what", ["file", "folder"])
@pytest.mark.parametrize("how", ["owner", "group", "others"])
def test_a_file_that_others_can_write_tells_nothing(place, store, what, how):
    Provenance.open(place).record(DIGEST, "built", store)
    spoilt = place if what == "file" else place.parent
    if how == "owner":
        os.chown(spoilt, 1000, 0)
    else:
        spoilt.chmod(spoilt.stat().st_mode | (0o020 if how == "group" else 0o002))

    found = Provenance.open(place)
    assert not found.trusts(DIGEST, store)
    assert f"{spoilt} can be written by others than root" in found.problem
    with pytest.raises(ImageError, match="can be written by others"):
        found.record(OTHER, "built", store)


@as_root
def test_a_link_or_a_pipe_instead_of_the_file_tells_nothing(place, store):
    Provenance.open(place).record(DIGEST, "built", store)
    place.rename(place.with_name("other.json"))
    place.symlink_to("other.json")
    assert not Provenance.open(place).trusts(DIGEST, store)

    place.unlink()
    os.mkfifo(place, 0o644)
    found = Provenance.open(place)
    assert not found.trusts(DIGEST, store)
    assert found.problem


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"images": []}', b"\xff"])
@as_root
def test_a_damaged_file_tells_nothing_and_is_written_anew(place, store, data):
    place.write_bytes(data)

    assert not Provenance.open(place).trusts(DIGEST, store)
    Provenance.open(place).record(DIGEST, "built", store)
    assert Provenance.open(place).trusts(DIGEST, store)


@as_root
def test_builds_at_the_same_time_all_count(place, store):
    digests = [f"sha256:{number:064x}" for number in range(24)]
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda one: Provenance.open(place).record(one, "built", store), digests))

    found = Provenance.open(place)
    assert all(found.trusts(one, store) for one in digests)


@as_root
def test_only_so_many_images_are_remembered(place, store, monkeypatch):
    monkeypatch.setattr(provenance, "MOST", 3)
    for number in range(5):
        Provenance.open(place).record(f"sha256:{number:064x}", "built", store)

    found = Provenance.open(place)
    assert [found.trusts(f"sha256:{number:064x}", store) for number in range(5)] == [False, False, True, True, True]


def test_without_a_file_nothing_is_trusted(place, store):
    found = Provenance.open(place)

    assert (found.trusts(DIGEST, store), found.problem) == (False, "")


def test_only_root_records(place, store, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    assert not Provenance.open(place).record(DIGEST, "built", store)
    assert not place.exists()


# ---------------------------------------------------------------------------------------------- private keys


def plain(key) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def test_a_key_pair_is_written_for_its_owner_alone(tmp_path):
    secret, public = private.generate(tmp_path / "mine", "a password")

    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert secret.read_text().startswith("-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----\n")
    key = private.load(secret.read_text(), "a password")
    assert key.pem == public.read_text()
    assert key.fingerprint == load_one(public.read_text(), "").fingerprint


def test_a_key_pair_is_not_written_over_another(tmp_path):
    private.generate(tmp_path / "mine")
    before = (tmp_path / "mine.key").read_text()

    with pytest.raises(ParamError, match=r"mine\.key: is there already"):
        private.generate(tmp_path / "mine")
    assert (tmp_path / "mine.key").read_text() == before

    (tmp_path / "mine.key").unlink()
    with pytest.raises(ParamError, match=r"mine\.pub: is there already"):
        private.generate(tmp_path / "mine")
    assert not (tmp_path / "mine.key").exists()


# Made by `COSIGN_PASSWORD=secret cosign generate-key-pair`, cosign 3.1.3; a key of this test alone.
THEIRS = """\
-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----
eyJrZGYiOnsibmFtZSI6InNjcnlwdCIsInBhcmFtcyI6eyJOIjo2NTUzNiwiciI6
OCwicCI6MX0sInNhbHQiOiJIYWw1NDlDSWNaaDRTVHJzRitDMmVHbUc5ckRsMzkr
b3dFR2dxZUVad284PSJ9LCJjaXBoZXIiOnsibmFtZSI6Im5hY2wvc2VjcmV0Ym94
Iiwibm9uY2UiOiJRZE13OUtUTjlPclh1bGkzZmFzeEpXRzRJOC8yS2ZCZCJ9LCJj
aXBoZXJ0ZXh0IjoieXZ5SGRTTWdpOUNYVytSTUVDT0cvSWYrdGIwKzN2am44K2dz
bWNESTFteUp3N2dVSGxpcHJGZStzUTl2eWRMR09IalF2Qm9aMGlxbzRvRkJuKzhX
UXNpai9qaTdQV3o5SGloWndwSThoLytqWjNjdXB5TlRhbmZaQ1FQaWJ3N2FvUzNu
T0RZTC85cjdBdmo4NzFHNGFJdXN4SXlRRjF4dVRGQnVPUmozOFpFdCsyYitKWHRz
S0Nsbzl6NkZuMC83VVRqL3ZSYVRCTEgwZHc9PSJ9
-----END ENCRYPTED SIGSTORE PRIVATE KEY-----
"""
THEIRS_PUBLIC = """\
-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEPH5i40Iiq4Wk0qAnreJHH/JbOsKb
FUE2sn2kspBZobvGPC702OnVtCK5G83CoFN7towSoZcmdjdPNuqpNxpTLQ==
-----END PUBLIC KEY-----
"""


def test_a_key_of_cosign_is_read():
    key = private.load(THEIRS, "secret")

    assert key.pem == THEIRS_PUBLIC
    content = Memory()
    image = content.image()
    sign(content, image, THEIRS, "secret")
    assert Trust(public_keys=(THEIRS_PUBLIC,)).verify(content, image)


def test_an_older_key_of_cosign_is_read():
    assert private.load(THEIRS.replace("SIGSTORE", "COSIGN"), "secret").pem == THEIRS_PUBLIC


@pytest.mark.parametrize("password", [None, b"p"])
@pytest.mark.parametrize("format", [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL])
def test_other_private_keys_are_read(password, format):
    for key in (ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048)):
        how = BestAvailableEncryption(password) if password else NoEncryption()
        pem = key.private_bytes(Encoding.PEM, format, how).decode()

        assert private.needs_password(pem) == bool(password)
        assert private.load(pem, "p").fingerprint


def changed(**members) -> str:
    """Cosign's key with other members in its box."""
    body = "".join(THEIRS.split("-----")[2].split())
    box = {**json.loads(base64.b64decode(body)), **members}
    return THEIRS.replace(THEIRS.split("-----")[2], f"\n{base64.b64encode(json.dumps(box).encode()).decode()}\n")


@pytest.mark.parametrize(
    ("pem", "password", "says"),
    [
        (THEIRS, "wrong", "the password is wrong"),
        (THEIRS, "", "the password is wrong"),
        (THEIRS.replace(THEIRS.splitlines()[4], ""), "secret", "it is damaged"),
        (
            changed(kdf={"name": "scrypt", "params": {"N": 1 << 30, "r": 8, "p": 1}, "salt": "AAAA"}),
            "secret",
            "unknown way",
        ),
        (changed(cipher={"name": "nacl/secretbox", "nonce": "AAAA"}), "secret", "the password is wrong"),
        (changed(ciphertext=5), "secret", "it is damaged"),
        ("", "", "no private key in PEM"),
        ("x" * 100_000, "", "larger than 64 KiB"),
        (plain(ec.generate_private_key(ec.SECP256K1())), "", "curve secp256k1"),
        (plain(rsa.generate_private_key(65537, 1024)), "", "1024 bits is too weak"),
    ],
)
def test_a_wrong_key_is_told_without_its_bytes(pem, password, says):
    with pytest.raises(ParamError, match=says) as caught:
        private.load(pem, password)

    told = f"{caught.value} {caught.value.hint} {caught.value.value} {caught.value!r}"
    assert not any(line in told for line in pem.splitlines()[1:-1] if line)
    assert "secret" not in told


def test_without_the_library_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "nacl.secret", None)

    with pytest.raises(PluginError) as caught:
        private.load(THEIRS, "secret")

    assert caught.value.hint == "pip install 'igrun[sign]'"


def test_an_unknown_format_is_refused_before_anything_is_written():
    content = Memory()
    image = content.image()
    before = dict(content.blobs)

    with pytest.raises(ParamError, match="unknown format of signatures 'x'") as caught:
        sign(content, image, plain(ec.generate_private_key(ec.SECP256R1())), formats=("bundle", "x"))

    assert caught.value.hint == "one of bundle, referrer, tag"
    assert content.blobs == before
