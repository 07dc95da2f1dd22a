"""cosign: what it signs ig verifies, and what ig signs it verifies, in each format that it can write."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from igrun.oci.model import Descriptor
from tests.registry.machine import Ig, put
from tests.registry.servers import Registry
from tests.registry.tools import Tool

pytestmark = [pytest.mark.root, pytest.mark.oci]
SECRET = {"COSIGN_PASSWORD": "a password of tests"}
LEGACY = "--new-bundle-format=false"
# format -> flags of `cosign sign`, flags of `cosign verify`, how ig calls it
FORMATS = {
    "bundle": ((), (), "sigstore bundle"),
    "tag": ((LEGACY,), (LEGACY,), "cosign tag"),
    "referrer": (
        (LEGACY, "--registry-referrers-mode=oci-1-1"),
        (LEGACY, "--experimental-oci11"),
        "cosign referrer",
    ),
}


class Cosign:
    """cosign, with a key pair that it made, and nothing of this user."""

    def __init__(self, tool: Tool, folder: Path, registry: Registry) -> None:
        self.tool, self.folder, self.registry = tool, folder, registry
        self.env = {**SECRET, "HOME": str(folder), "DOCKER_CONFIG": str(folder), "COSIGN_EXPERIMENTAL": "1"}
        tool("generate-key-pair", cwd=folder, env=self.env)
        self.key, self.public = folder / "cosign.key", folder / "cosign.pub"

    @property
    def ways(self) -> list[str]:
        """How it reaches the registry."""
        registry = self.registry
        if not registry.certificates:
            return ["--allow-http-registry"]
        how = ["--registry-cacert", str(registry.certificates.ca)]
        return how + (
            ["--registry-username", registry.user, "--registry-password", registry.password] if registry.user else []
        )

    def sign(self, name: str, *flags: str) -> None:
        """Sign offline, by the key."""
        offline = ("--use-signing-config=false", "--tlog-upload=false", "-y")
        self.tool("sign", "--key", self.key, *offline, *self.ways, *flags, name, cwd=self.folder, env=self.env)

    def verify(self, name: str, key: Path, *flags: str) -> bool:
        """Whether it finds a good signature."""
        how = ("--insecure-ignore-tlog", *self.ways, *flags)
        return self.tool.run("verify", "--key", key, *how, name, cwd=self.folder, env=self.env).returncode == 0


@pytest.fixture(params=["plain", "secured", "referring", "referring_tls"])
def there(request) -> Registry:
    return request.getfixturevalue(request.param)


@pytest.fixture
def cosign(tool, there, tmp_path) -> Cosign:
    folder = tmp_path / "cosign"
    folder.mkdir()
    return Cosign(tool("cosign"), folder, there)


def ways(registry: Registry) -> list[str]:
    """How ig reaches a registry."""
    if not registry.certificates:
        return ["--insecure-registries", registry.address]
    return ["--ca-file", str(registry.certificates.ca)]


def enter(ig: Ig, registry: Registry) -> None:
    """Log in, where that is needed."""
    ig.env |= SECRET
    if registry.user:
        ig("login", registry.address, "-u", registry.user, "--password-stdin", *ways(registry), text=registry.password)


@pytest.fixture
def pushed(ig, there, repository) -> Iterator[tuple[str, Descriptor]]:
    """An image in the registry: its name and what it is."""
    name = there.named(repository)
    with ig.store() as store:
        root = put(store, name)
    enter(ig, there)
    ig("image", "push", name, *ways(there))
    ig("image", "remove", name)
    return name, root


def exact(name: str, root: Descriptor) -> str:
    """The name with its digest, as cosign wants it."""
    return f"{name.rpartition(':')[0]}@{root.digest}"


@pytest.mark.parametrize("format", FORMATS)
def test_ig_verifies_what_cosign_signed(ig, there, cosign, pushed, exchanged, format):
    sign, _, called = FORMATS[format]
    exchanged(there.kind, "cosign", f"signs ({format}), ig verifies and pulls")
    name, root = pushed
    cosign.sign(exact(name, root), *sign)
    keys = ("--public-keys", f"@{cosign.public}")

    assert called in ig("image", "verify", name, "--remote", *keys, *ways(there)).err
    assert ig.run("image", "verify", name, "--remote", *ways(there)).code == 1
    ig("image", "pull", name, *ways(there))
    # what was pulled along is as good without the registry
    assert called in ig("image", "verify", name, *keys, network=False).err


@pytest.mark.parametrize("format", FORMATS)
def test_cosign_verifies_what_ig_signed(ig, there, cosign, pushed, exchanged, format):
    _, verify, _ = FORMATS[format]
    exchanged(there.kind, "cosign", f"verifies ({format}) what ig signed there")
    name, root = pushed

    assert not cosign.verify(exact(name, root), cosign.public, *verify)
    ig("image", "sign", name, "--remote", "--key", cosign.key, "--format", format, *ways(there))

    assert cosign.verify(exact(name, root), cosign.public, *verify)


@pytest.mark.parametrize("format", FORMATS)
def test_cosign_verifies_what_ig_signed_at_home_and_pushed(ig, there, cosign, repository, exchanged, format, tmp_path):
    _, verify, _ = FORMATS[format]
    exchanged(there.kind, "cosign", f"verifies ({format}) what ig signed and pushed")
    name = there.named(repository)
    with ig.store() as store:
        root = put(store, name)
    enter(ig, there)
    ig("image", "sign", name, "--generate-key", tmp_path / "mine", "--format", format)
    ig("image", "push", name, *ways(there))

    assert cosign.verify(exact(name, root), tmp_path / "mine.pub", *verify)
    assert not cosign.verify(exact(name, root), cosign.public, *verify)


def test_signatures_of_both_stand_side_by_side(ig, there, cosign, pushed, exchanged, tmp_path):
    exchanged(there.kind, "cosign", "signs beside ig, each verifies both")
    name, root = pushed
    ig("image", "sign", name, "--remote", "--generate-key", tmp_path / "mine", "--format", "tag", *ways(there))
    cosign.sign(exact(name, root), LEGACY)
    ig("image", "sign", name, "--remote", "--key", tmp_path / "mine.key", *ways(there))
    cosign.sign(exact(name, root))

    for key in (tmp_path / "mine.pub", cosign.public):
        assert cosign.verify(exact(name, root), key, LEGACY)
        assert cosign.verify(exact(name, root), key)
        ig("image", "verify", name, "--remote", "--public-keys", f"@{key}", *ways(there))
