"""Registries, clients, and `ig` with a store of its own."""

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.registry import servers, tools
from tests.registry.machine import Ig
from tests.registry.servers import Certificates, Registry

USER, PASSWORD = "gadgeteer", "s3cret-of-tests"


# ---------------------------------------------------------------------------------------------- tools


@pytest.fixture(scope="session")
def tool() -> Callable[[str], tools.Tool]:
    """A foreign client by its name; the test is skipped, and says how to get it, where it is not there."""

    def find(name: str) -> tools.Tool:
        try:
            return tools.find(name)
        except tools.MissingToolError as error:
            pytest.skip(str(error))

    return find


@pytest.fixture
def strange(tmp_path: Path) -> dict[str, str]:
    """An environment for foreign clients that shares no settings with this user's."""
    return {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path), "DOCKER_CONFIG": str(tmp_path / "docker")}


# ---------------------------------------------------------------------------------------------- registries


@pytest.fixture(scope="session")
def certificates(tool, tmp_path_factory) -> Certificates:
    tool("openssl")
    return servers.certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def plain(tool, tmp_path_factory) -> Iterator[Registry]:
    """docker-registry, plain HTTP."""
    tool("docker-registry")
    with servers.docker_registry(tmp_path_factory.mktemp("plain") / "r") as registry:
        yield registry


@pytest.fixture(scope="session")
def secured(tool, certificates, tmp_path_factory) -> Iterator[Registry]:
    """docker-registry with TLS and a password."""
    for name in ("docker-registry", "htpasswd"):
        tool(name)
    folder = tmp_path_factory.mktemp("secured") / "r"
    how = {"certificates": certificates, "user": USER, "password": PASSWORD, "host": "localhost"}
    with servers.docker_registry(folder, **how) as registry:
        yield registry


@pytest.fixture(scope="session")
def mutual(tool, certificates, tmp_path_factory) -> Iterator[Registry]:
    """docker-registry with TLS that wants a certificate of the client."""
    tool("docker-registry")
    folder = tmp_path_factory.mktemp("mutual") / "r"
    with servers.docker_registry(folder, certificates=certificates, wants_client=True) as registry:
        yield registry


@pytest.fixture(scope="session")
def referring(tool, tmp_path_factory) -> Iterator[Registry]:
    """go-containerregistry's registry, with the referrers API."""
    tool("referrers")
    with servers.referrers_registry(tmp_path_factory.mktemp("referring") / "r") as registry:
        yield registry


@pytest.fixture(scope="session")
def referring_tls(tool, certificates, tmp_path_factory) -> Iterator[Registry]:
    """The same with TLS."""
    tool("referrers")
    folder = tmp_path_factory.mktemp("referring-tls") / "r"
    with servers.referrers_registry(folder, certificates=certificates) as registry:
        yield registry


@pytest.fixture(scope="session")
def cranes(tool, tmp_path_factory) -> Iterator[Registry]:
    """`crane registry serve`."""
    tool("crane")
    with servers.crane_registry(tmp_path_factory.mktemp("crane") / "r") as registry:
        yield registry


KINDS = ("plain", "secured", "mutual", "referring", "referring_tls", "cranes")
PACKAGED = KINDS[:3]


@pytest.fixture(
    params=[kind if kind in PACKAGED else pytest.param(kind, marks=pytest.mark.oci) for kind in KINDS],
)
def registry(request) -> Registry:
    """Each kind of registry in turn."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def repository(request) -> str:
    """A repository's name that is this test's alone."""
    return "tests/" + hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:12]


# ---------------------------------------------------------------------------------------------- ig


@pytest.fixture
def ig(tmp_path: Path) -> Ig:
    if os.geteuid() != 0:
        pytest.skip("needs root: ig runs in a mount namespace of its own")
    home = tmp_path / "home"
    home.mkdir()
    return Ig(tmp_path / "var-lib-ig", home)


@pytest.fixture
def another_ig(tmp_path: Path) -> Ig:
    """One of another machine, so to speak."""
    home = tmp_path / "home2"
    home.mkdir()
    return Ig(tmp_path / "var-lib-ig2", home)
