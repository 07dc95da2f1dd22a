"""Where names lead: the store, the gadgets that come with igrun, registries; and what is checked on the way."""

import os
import pwd
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from igrun import data, lookup
from igrun.config import Settings
from igrun.errors import (
    GadgetError,
    ImageError,
    InvalidReferenceError,
    NotFoundError,
    ParamError,
    RegistryError,
    SignatureError,
)
from igrun.image import Objects, pack
from igrun.lookup import Policy
from igrun.oci import provenance
from igrun.oci import store as stores
from igrun.oci.model import Descriptor
from igrun.oci.store import Store
from igrun.runtime import Gadget

DEFAULT = "ghcr.io/inspektor-gadget/gadget/"


def put(root: Path, name: str, description: str) -> Descriptor:
    objects = {architecture: Objects(ebpf=b"elf") for architecture in ("amd64", "arm64")}
    text = f"name: g\ndescription: {description}\n".encode()
    with Store.open(root) as store:
        image = pack(store, text, objects, created="2026-01-01T00:00:00Z", builder_version="1")
        store.tag(image, name)
    return image


class Registries:
    """Registries, as a store on disk. asked: for which images"""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.asked: list[str] = []
        self.away = False

    @contextmanager
    def __call__(self, reference, policy):
        self.asked.append(str(reference))
        if self.away:
            raise RegistryError(f"{reference.registry} does not answer", hint="try again")
        with Store.open(self.root) as store:
            yield store


@pytest.fixture
def local(tmp_path, monkeypatch):
    """This user's store, and the bundle beside it; nothing in the store was built here."""
    monkeypatch.setattr(stores, "default_root", lambda: tmp_path / "local")
    monkeypatch.setattr(data, "gadgets", lambda: tmp_path / "bundle")
    monkeypatch.setattr(provenance, "PLACE", tmp_path / "trusted.json")
    put(tmp_path / "bundle", "other:latest", "of the bundle")
    return tmp_path / "local"


@pytest.fixture
def remote(tmp_path, monkeypatch):
    registries = Registries(tmp_path / "remote")
    monkeypatch.setattr(lookup, "repository", registries)
    return registries


@pytest.fixture
def key():
    """A private key, and its public one."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    made = ec.generate_private_key(ec.SECP256R1())
    private = made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    return private, made.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def signed(root: Path, image: Descriptor, private: str) -> None:
    from igrun.oci.sign import sign

    with Store.open(root) as store:
        sign(store, image, private)


def found(name: str, search=None, of_user=False, env=None, **given: str) -> str:
    """What the image of that name says about itself. given: `_` for `-`; nothing is verified unless it says so."""
    texts = {"verify-image": "false", **{key.replace("_", "-"): text for key, text in given.items()}}
    how = {} if search is None else {"search": search}
    image = lookup.find(name, "amd64", of_user=of_user, env=env or {}, policy=Policy(texts), **how)
    return image.metadata.description


# ---------------------------------------------------------------------------------------------- short names


def test_the_store_goes_before_the_bundle(local, tmp_path):
    put(tmp_path / "bundle", "g:latest", "of the bundle")

    before = found("g")
    put(local, f"{DEFAULT}g:latest", "of the store")

    assert (before, found("g")) == ("of the bundle", "of the store")


def test_the_search_list_says_where_to_look_and_in_which_order(local, remote, tmp_path):
    put(tmp_path / "bundle", "g:latest", "of the bundle")
    put(local, f"{DEFAULT}g:latest", "of the store")
    put(local, "example.org/mine/g:latest", "mine")

    assert found("g", search=("bundled", "local")) == "of the bundle"
    assert found("g", search=("local", "example.org/mine/", DEFAULT)) == "mine"
    assert found("g", search=("example.org/mine/", "bundled")) == "mine"
    with pytest.raises(NotFoundError):
        found("g", search=())
    assert not remote.asked


def test_a_short_name_that_is_neither_here_nor_bundled_is_pulled_from_the_first_prefix_that_has_it(local, remote):
    put(remote.root, "b.example.org/x/g:latest", "of b")

    search = ("local", "bundled", "a.example.org/", "b.example.org/x", "c.example.org")
    assert found("g", search=search) == "of b"
    assert remote.asked == ["a.example.org/g:latest", "b.example.org/x/g:latest"]
    assert found("g", search=search, pull="never") == "of b"


def test_a_full_name_is_never_one_of_the_bundle(local):
    with pytest.raises(NotFoundError):
        found(f"{DEFAULT}other", pull="never")


def test_a_tag_is_part_of_the_name(local):
    with pytest.raises(NotFoundError):
        found("other:v1", pull="never")

    assert found("other:latest") == found("other")


def test_a_name_that_is_nowhere_is_told_with_its_neighbour(local, remote):
    for policy in ("never", "missing"):
        with pytest.raises(NotFoundError, match="othr") as error:
            found("othr", pull=policy)
        assert error.value.hint == "did you mean other?"
    remote.away = True
    with pytest.raises(RegistryError) as error:
        found("othr")
    assert error.value.hint == "did you mean other?"
    with pytest.raises(RegistryError) as error:
        found("example.org/othr")
    assert error.value.hint == "try again"


def test_what_is_no_name_is_refused(local):
    with pytest.raises(InvalidReferenceError):
        found("../../etc/passwd")


# ---------------------------------------------------------------------------------------------- pulling


def test_what_is_missing_is_pulled_once(local, remote):
    put(remote.root, "example.org/g:latest", "first")

    first = found("example.org/g")
    put(remote.root, "example.org/g:latest", "second")

    assert (first, found("example.org/g")) == ("first", "first")
    assert remote.asked == ["example.org/g:latest"]


def test_always_asks_the_registry_and_is_an_error_without_it(local, remote):
    put(remote.root, "example.org/g:latest", "first")
    found("example.org/g")
    put(remote.root, "example.org/g:latest", "second")

    assert found("example.org/g", pull="always") == "second"
    remote.away = True
    with pytest.raises(RegistryError):
        found("example.org/g", pull="always")


def test_always_leaves_what_comes_with_igrun_alone_and_what_a_digest_names(local, remote):
    image = put(local, f"{DEFAULT}g@sha256:{'0' * 64}", "here")

    assert found("other", pull="always") == "of the bundle"
    assert found(f"g@{image.digest}", pull="always") == "here"
    assert not remote.asked


def test_never_asks_nobody(local, remote):
    put(remote.root, "example.org/g:latest", "there")

    with pytest.raises(NotFoundError):
        found("example.org/g", pull="never")
    assert not remote.asked


def test_pulling_can_be_disallowed(local, remote):
    with pytest.raises(GadgetError, match="pulling is disallowed"):
        found("example.org/g", disallow_pulling="true")
    assert not remote.asked


def test_what_is_not_allowed_is_not_asked_for(local, remote):
    allowed = f"{DEFAULT}*,example.org/good:v1"
    put(remote.root, "example.org/good:v1", "good")

    assert found("other", allowed_gadgets=allowed) == "of the bundle"
    assert found("example.org/good:v1", allowed_gadgets=allowed) == "good"
    del remote.asked[:]
    with pytest.raises(ImageError, match="not part of allowed gadgets"):
        found("example.org/bad", allowed_gadgets=allowed)
    with pytest.raises(ImageError, match="not part of allowed gadgets"):
        found("other", allowed_gadgets="example.org/*")
    assert not remote.asked


def test_another_digest_than_the_allowed_one_is_not_pulled(local, remote):
    put(remote.root, "example.org/g:latest", "there")

    with pytest.raises(ImageError, match="not part of allowed gadgets"):
        found("example.org/g", allowed_gadgets=f"example.org/g@sha256:{'1' * 64}")
    assert not local.exists()


# ---------------------------------------------------------------------------------------------- signatures


def test_an_image_without_a_signature_is_not_even_pulled(local, remote, key):
    put(remote.root, "example.org/g:latest", "there")

    with pytest.raises(SignatureError):
        found("example.org/g", verify_image="true", public_keys=key[1])
    assert not local.exists()


def test_a_signed_image_is_pulled_with_its_signature_and_verified_again_without_a_network(local, remote, key, tmp_path):
    image = put(remote.root, "example.org/g:latest", "there")
    signed(remote.root, image, key[0])
    (tmp_path / "key.pub").write_text(key[1])

    assert found("example.org/g", verify_image="true", public_keys=f"@{tmp_path / 'key.pub'}") == "there"
    assert found("example.org/g", verify_image="true", public_keys=key[1], pull="never") == "there"
    with pytest.raises(SignatureError):
        found("example.org/g", verify_image="true", pull="never")


def test_a_signature_that_came_later_is_pulled_when_it_is_needed(local, remote, key):
    image = put(remote.root, "example.org/g:latest", "there")
    found("example.org/g")
    with pytest.raises(SignatureError):
        found("example.org/g", verify_image="true", public_keys=key[1])
    signed(remote.root, image, key[0])

    with pytest.raises(SignatureError):
        found("example.org/g", verify_image="true", public_keys=key[1], pull="never")
    assert found("example.org/g", verify_image="true", public_keys=key[1]) == "there"


def test_what_is_only_looked_at_needs_no_signature(local):
    put(local, "example.org/g:latest", "here")

    policy = Policy({"pull": "never"}, looking=True)
    assert lookup.find("example.org/g", "amd64", env={}, policy=policy).metadata.description == "here"
    with pytest.raises(SignatureError):
        found("example.org/g", verify_image="true", pull="never")


def test_verification_that_is_off_is_told(local, caplog):
    put(local, "example.org/g:latest", "here")
    found("other")
    assert not caplog.messages

    found("example.org/g")

    assert caplog.messages == ["gadget signature verification is disabled due to using corresponding option"]


def test_the_config_file_says_whom_to_trust(local, remote, key):
    image = put(remote.root, "example.org/g:latest", "there")
    signed(remote.root, image, key[0])
    settings = Settings({"operator.oci.public-keys": key[1]})

    image = lookup.find("example.org/g", "amd64", env={}, policy=Policy(settings=settings))

    assert image.metadata.description == "there"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can vouch for what it built")
def test_what_was_built_here_needs_no_signature_unless_others_can_write_to_the_store(local):
    image = put(local, "example.org/g:latest", "here")
    provenance.Provenance.open(provenance.PLACE).record(image.digest, "built", local)

    assert found("example.org/g", verify_image="true", pull="never") == "here"
    local.chmod(0o777)
    with pytest.raises(SignatureError):
        found("example.org/g", verify_image="true", pull="never")


# ---------------------------------------------------------------------------------------------- from Python


def test_arguments_from_python_say_how_to_come_by_an_image(local, remote, key):
    with Store.open(remote.root) as store:
        objects = {"amd64": Objects(), "arm64": Objects()}
        image = pack(store, b"name: g\n", objects, created="2026-01-01T00:00:00Z", builder_version="1")
        store.tag(image, "example.org/g:latest")
    signed(remote.root, image, key[0])

    with pytest.raises(NotFoundError):
        Gadget.open("example.org/g", pull="never")
    with pytest.raises(ImageError, match="not part of allowed gadgets"):
        Gadget.open("example.org/g", allowed_gadgets=["a.example.org/*", "b.example.org/*"])
    with pytest.raises(SignatureError):
        Gadget.open("example.org/g")
    assert Gadget.open("example.org/g", public_keys=[key[1]]).image.digest == image.digest
    assert Gadget.open("example.org/g", pull="never", verify_image=False).image.digest == image.digest


def test_an_argument_that_is_none_is_told():
    with pytest.raises(ParamError, match='unknown argument "pul"'):
        Gadget.open("example.org/g", pul="never")


# ---------------------------------------------------------------------------------------------- others


def test_root_is_told_of_an_image_that_the_user_who_called_sudo_has(local, remote, tmp_path, monkeypatch):
    user = pwd.struct_passwd(("ann", "x", 1000, 1000, "", str(tmp_path / "home"), "/bin/sh"))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(pwd, "getpwnam", lambda name: user)
    put(tmp_path / "home/.ig/oci-store", f"{DEFAULT}mine:latest", "of ann")
    ann = {"SUDO_USER": "ann"}

    with pytest.raises(NotFoundError) as error:
        found("mine", env=ann)

    assert "--oci-store-user" in error.value.hint
    del remote.asked[:]
    assert found("mine", of_user=True, env=ann) == "of ann"
    with pytest.raises(SignatureError):
        found("mine", of_user=True, env=ann, verify_image="true")
    assert not remote.asked


def test_an_image_that_is_here_needs_neither_network_nor_cryptography(tmp_path):
    put(tmp_path / "bundle", "g:latest", "of the bundle")
    put(tmp_path / "local", f"{DEFAULT}h:latest", "built here")
    code = (
        "import sys\nfrom pathlib import Path\nfrom igrun import data, lookup\nfrom igrun.oci import store\n"
        "root = Path(sys.argv[1])\n"
        "store.default_root = lambda: root / 'local'\ndata.gadgets = lambda: root / 'bundle'\n"
        "assert lookup.find('g', 'amd64').metadata.description == 'of the bundle'\n"
        "from igrun.oci.provenance import Provenance\nProvenance.trusts = lambda *args: True\n"
        "assert lookup.find('h', 'amd64').metadata.description == 'built here'\n"
        "print(*sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)

    roots = {name.split(".")[0] for name in done.stdout.split()}
    heavy = {
        "cryptography",
        "oras",
        "requests",
        "sigstore",
        "socket",
        "ssl",
        "http",
        "urllib3",
        "difflib",
        "logging",
        "_hashlib",
    }
    assert not roots & heavy
    assert not {"igrun.oci.registry", "igrun.oci.trust", "igrun.oci.copy"} & set(done.stdout.split())
