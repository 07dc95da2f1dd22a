"""Every kind of registry: what is pushed comes back, with what is about it, and nothing is sent twice."""

import base64
import json
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from igrun.config import Settings
from igrun.errors import GadgetError, NotFoundError, RegistryError
from igrun.oci import credentials
from igrun.oci.access import Access
from igrun.oci.copy import copy
from igrun.oci.model import INDEX, Descriptor, Index, Platform, Reference
from igrun.oci.registry import Repository
from igrun.oci.store import Store
from tests.registry import servers
from tests.registry.machine import attach, put
from tests.registry.servers import Registry

OTHER = "example.org/g/one:v1"
Reach = Callable[..., AbstractContextManager[Repository]]


@pytest.fixture(autouse=True)
def apart(monkeypatch, tmp_path) -> None:
    """No settings of this user's."""
    for name in ("DOCKER_CONFIG", "REGISTRY_AUTH_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def here(tmp_path) -> Iterator[Store]:
    with Store.open(tmp_path / "here") as store:
        yield store


@pytest.fixture
def there(tmp_path) -> Iterator[Store]:
    with Store.open(tmp_path / "there") as store:
        yield store


def authfile(folder: Path, registry: Registry, password: str | None = None) -> str:
    """A file with the registry's password, or this one; "" if it wants none."""
    if not registry.user:
        return ""
    path = folder / "auth.json"
    text = f"{registry.user}:{registry.password if password is None else password}"
    path.write_text(json.dumps({"auths": {registry.address: {"auth": base64.b64encode(text.encode()).decode()}}}))
    return str(path)


def access(registry: Registry, **values: str) -> Access:
    """How to reach a registry: what the params say."""
    found = {key.replace("_", "-"): text for key, text in values.items() if text}
    if registry.certificates:
        found.setdefault("ca-file", str(registry.certificates.ca))
        if registry.wants_client:
            found["cert-file"] = str(registry.certificates.client)
            found["key-file"] = str(registry.certificates.client_key)
    else:
        found["insecure-registries"] = registry.address
    return Access.of(Settings(env=dict(os.environ)), found)


@pytest.fixture
def reach(tmp_path) -> Reach:
    """Opens a repository of a registry with all that it wants of us."""

    def open_(registry: Registry, name: str, **values: str) -> Repository:
        if "authfile" not in values:
            values["authfile"] = authfile(tmp_path, registry)
        return Repository.open(Reference.parse(name), access(registry, **values))

    return open_


def uploads(registry: Registry, before: str) -> int:
    """How many uploads of blobs began since the log was `before`."""
    more = registry.requests()[len(before) :]
    return sum(1 for line in more.splitlines() if '"POST ' in line or " POST " in line)


# ---------------------------------------------------------------------------------------------- images


def test_what_is_pushed_comes_back_with_the_same_digest(registry, reach, here, there, repository, exchanged):
    exchanged(registry.kind, "igrun", "push and pull of an index")
    name = registry.named(repository)
    root = put(here, name)

    with reach(registry, name) as remote:
        assert copy(here, remote, name).digest == root.digest
        assert registry.digest(repository) == root.digest
        assert copy(remote, there, name).digest == root.digest

    assert there.resolve(name).digest == root.digest
    for one in Index.parse(there.read(root)).manifests:
        assert there.read(one) == here.read(one)


def test_an_index_may_be_in_an_index(registry, reach, here, there, repository, exchanged):
    exchanged(registry.kind, "igrun", "index in an index")
    name = registry.named(repository)
    inner = put(here, OTHER)
    entry = Descriptor(INDEX, inner.digest, inner.size, {}, Platform("amd64"))
    root = here.write(INDEX, Index((entry,)).to_bytes())
    here.tag(root, name)

    with reach(registry, name) as remote:
        copy(here, remote, name)
        copy(remote, there, name)

    assert there.resolve(name).digest == root.digest
    assert there.read(inner) == here.read(inner)


def test_what_is_about_an_image_travels_both_ways(registry, reach, here, there, repository, exchanged):
    exchanged(registry.kind, "igrun", "referrers both ways")
    name = registry.named(repository)
    root = put(here, name)
    sbom = attach(here, root, "application/vnd.example.sbom")
    about_sbom = attach(here, sbom, "application/vnd.example.note")
    legacy = attach(here, root, "application/vnd.example.signature", tag=f"sha256-{root.digest[7:]}.sig")

    with reach(registry, name) as remote:
        copy(here, remote, name)
        assert {one.descriptor.digest for one in remote.referrers(root)} == {sbom.digest, legacy.digest}
        copy(remote, there, name)

    assert {one.descriptor.digest for one in there.referrers(root)} == {sbom.digest, legacy.digest}
    assert [one.descriptor.digest for one in there.referrers(sbom)] == [about_sbom.digest]
    assert there.read(about_sbom) == here.read(about_sbom)
    answer = registry.get(f"{repository}/referrers/{root.digest}")
    if registry.referrers:
        assert sbom.digest in answer.body.decode()
    else:
        assert answer.status == 404
        assert sbom.digest in registry.get(f"{repository}/manifests/sha256-{root.digest[7:]}").body.decode()


def test_a_second_referrer_does_not_drive_out_the_first(registry, reach, here, repository, exchanged):
    exchanged(registry.kind, "igrun", "referrers pushed one after the other")
    name = registry.named(repository)
    root = put(here, name)
    one = attach(here, root, "application/vnd.example.one")
    with reach(registry, name) as remote:
        copy(here, remote, name)
    two = attach(here, root, "application/vnd.example.two")

    with reach(registry, name) as remote:
        copy(here, remote, name)
        assert {found.descriptor.digest for found in remote.referrers(root)} == {one.digest, two.digest}


def test_what_is_there_is_not_sent_again(registry, reach, here, repository, exchanged):
    exchanged(registry.kind, "igrun", "second push sends nothing")
    name = registry.named(repository)
    root = put(here, name)
    with reach(registry, name) as remote:
        copy(here, remote, name)
    before = registry.requests()

    with reach(registry, name) as remote:
        copy(here, remote, name)

    assert uploads(registry, before) == 0
    assert registry.digest(repository) == root.digest


def test_blobs_go_from_repository_to_repository_without_passing_here(registry, reach, here, repository, exchanged):
    exchanged(registry.kind, "igrun", "copy within, by mount")
    name, other = registry.named(repository), registry.named(f"{repository}/other", "v2")
    root = put(here, name)
    with reach(registry, name) as remote:
        copy(here, remote, name)
    before = registry.requests()

    with reach(registry, name) as source, reach(registry, other) as target:
        copy(source, target, name, other)

    assert registry.digest(f"{repository}/other", "v2") == root.digest
    more = registry.requests()[len(before) :]
    if "docker-registry" in registry.kind:
        assert "mount=sha256" in more
        assert '"PATCH ' not in more
        assert '"PUT /v2/' + repository + "/other/blobs" not in more


def test_a_second_tag_needs_no_blobs(registry, reach, here, repository, exchanged):
    exchanged(registry.kind, "igrun", "tag")
    name = registry.named(repository)
    root = put(here, name)
    with reach(registry, name) as remote:
        copy(here, remote, name)
        remote.tag(root, registry.named(repository, "v2"))

    assert registry.tags(repository)[-2:] == ["latest", "v2"]
    assert registry.digest(repository, "v2") == root.digest


def test_an_image_goes_from_registry_to_registry(registry, plain, reach, here, repository, exchanged):
    exchanged(registry.kind, "igrun", "copy to docker-registry and back")
    name, between = registry.named(repository), plain.named(f"{repository}/between")
    back = registry.named(f"{repository}/back")
    root = put(here, name)
    sbom = attach(here, root, "application/vnd.example.sbom")

    with reach(registry, name) as first, reach(plain, between) as second, reach(registry, back) as third:
        copy(here, first, name)
        copy(first, second, name, between)
        copy(second, third, between, back)
        assert [one.descriptor.digest for one in third.referrers(root)] == [sbom.digest]

    assert plain.digest(f"{repository}/between") == registry.digest(f"{repository}/back") == root.digest


def test_a_digest_is_a_name(registry, reach, here, there, repository, exchanged):
    exchanged(registry.kind, "igrun", "pull by digest")
    name = registry.named(repository)
    root = put(here, name)
    with reach(registry, name) as remote:
        copy(here, remote, name)

    by_digest = f"{registry.address}/{repository}@{root.digest}"
    with reach(registry, by_digest) as remote:
        copy(remote, there, Reference.parse(by_digest))

    assert there.resolve(by_digest).digest == root.digest


def test_what_is_not_there_is_not_found(registry, reach, repository, exchanged):
    exchanged(registry.kind, "igrun", "a name that is not there")
    name = registry.named(repository)

    with reach(registry, name) as remote, pytest.raises(NotFoundError):
        remote.resolve(Reference.parse(name))


# ---------------------------------------------------------------------------------------------- credentials


def pushed(remote: Repository, here: Store, name: str) -> None:
    put(here, name)
    copy(here, remote, name)


def test_a_wrong_password_is_told_and_never_shown(secured, reach, here, repository, exchanged, tmp_path):
    exchanged(secured.kind, "igrun", "wrong password")
    name = secured.named(repository)

    with (
        pytest.raises(GadgetError) as caught,
        reach(secured, name, authfile=authfile(tmp_path, secured, "wr0ng-word")) as remote,
    ):
        pushed(remote, here, name)

    assert isinstance(caught.value, RegistryError)
    assert caught.value.status == 401
    assert "wr0ng-word" not in f"{caught.value} {caught.value.hint} {caught.value!r} {caught.value.detail}"
    assert "wr0ng-word" not in secured.requests()


def test_without_a_password_the_advice_is_to_log_in(secured, here, repository, exchanged):
    exchanged(secured.kind, "igrun", "no password")
    name = secured.named(repository)

    with pytest.raises(RegistryError) as caught, Repository.open(Reference.parse(name), access(secured)) as remote:
        pushed(remote, here, name)

    assert caught.value.status == 401
    assert "ig login" in caught.value.hint


def test_a_login_is_kept_in_a_file_for_its_owner_alone(secured, reach, here, repository, exchanged, tmp_path):
    exchanged(secured.kind, "igrun", "login, push, logout")
    name, place = secured.named(repository), tmp_path / "login.json"
    place.write_text('{"auths":{}}')

    credentials.login(secured.address, secured.user, secured.password, access(secured, authfile=str(place)))
    with reach(secured, name, authfile=str(place)) as remote:
        pushed(remote, here, name)
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    assert secured.address in json.loads(place.read_text())["auths"]

    credentials.logout(secured.address, access(secured, authfile=str(place)))
    assert secured.address not in place.read_text()
    with pytest.raises(RegistryError), reach(secured, name, authfile=str(place)) as remote:
        remote.resolve(Reference.parse(name))


def test_a_wrong_password_is_not_kept(secured, exchanged, tmp_path):
    exchanged(secured.kind, "igrun", "login with a wrong password")
    place = tmp_path / "login.json"
    place.write_text('{"auths":{}}')

    with pytest.raises(RegistryError):
        credentials.login(secured.address, secured.user, "wr0ng-word", access(secured, authfile=str(place)))

    assert json.loads(place.read_text()) == {"auths": {}}


HELPER = """#!{python} -I
import json, sys
from pathlib import Path
place = Path({place!r})
known = json.loads(place.read_text()) if place.exists() else {{}}
given = sys.stdin.read()
match sys.argv[1]:
    case "store":
        entry = json.loads(given)
        known[entry["ServerURL"]] = entry
    case "erase":
        known.pop(given.strip(), None)
    case "get":
        if given.strip() not in known:
            print("credentials not found in native keychain")
            sys.exit(1)
        print(json.dumps(known[given.strip()]))
    case "list":
        print(json.dumps({{server: entry["Username"] for server, entry in known.items()}}))
if sys.argv[1] in ("store", "erase"):
    place.write_text(json.dumps(known))
"""


@pytest.fixture
def helper(tmp_path, monkeypatch) -> Path:
    """A credential helper called `tests`; the file where it keeps things."""
    folder, place = tmp_path / "helpers", tmp_path / "keychain.json"
    folder.mkdir()
    program = folder / "docker-credential-tests"
    program.write_text(HELPER.format(python=sys.executable, place=str(place)))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return place


@pytest.mark.parametrize("config", ["store", "per registry"])
def test_a_credential_helper_keeps_the_password(config, secured, helper, reach, here, repository, exchanged, tmp_path):
    exchanged(secured.kind, "igrun", f"credential helper ({config})")
    name, place = secured.named(repository), tmp_path / "login.json"
    one = {"credsStore": "tests"} if config == "store" else {"credHelpers": {secured.address: "tests"}}
    place.write_text(json.dumps(one))

    credentials.login(secured.address, secured.user, secured.password, access(secured, authfile=str(place)))
    assert secured.password in helper.read_text()
    encoded = base64.b64encode(f"{secured.user}:{secured.password}".encode()).decode()
    assert secured.password not in place.read_text()
    assert encoded not in place.read_text()
    with reach(secured, name, authfile=str(place)) as remote:
        pushed(remote, here, name)

    credentials.logout(secured.address, access(secured, authfile=str(place)))
    assert secured.password not in helper.read_text()


def test_docker_s_own_config_is_used_where_there_is_no_other(
    secured, here, repository, exchanged, monkeypatch, tmp_path
):
    exchanged(secured.kind, "igrun", "DOCKER_CONFIG and REGISTRY_AUTH_FILE")
    name = secured.named(repository)
    (tmp_path / "docker").mkdir()
    written = Path(authfile(tmp_path, secured))
    written.rename(tmp_path / "docker/config.json")

    with monkeypatch.context() as changed:
        changed.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
        with Repository.open(Reference.parse(name), access(secured)) as remote:
            pushed(remote, here, name)
    with monkeypatch.context() as changed:
        changed.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "docker/config.json"))
        with Repository.open(Reference.parse(name), access(secured)) as remote:
            assert remote.resolve(Reference.parse(name))


# ---------------------------------------------------------------------------------------------- insecure


def test_an_insecure_registry_gets_the_password_all_the_same(
    secured, tool, reach, here, repository, exchanged, tmp_path
):
    exchanged("docker-registry, htpasswd", "igrun", "--insecure-registries with a password, plain HTTP")
    exchanged(secured.kind, "igrun", "--insecure-registries with a password, unknown CA")
    folder = tmp_path / "r"
    with servers.docker_registry(folder, user=secured.user, password=secured.password) as http:
        name = http.named(repository)
        with reach(http, name) as remote:
            pushed(remote, here, name)
        assert http.digest(repository)

    name = secured.named(repository)
    values = {"insecure-registries": secured.address, "authfile": authfile(tmp_path, secured)}
    given = Access.of(Settings(env=dict(os.environ)), values)
    with Repository.open(Reference.parse(name), given) as remote:
        pushed(remote, here, name)
    assert secured.digest(repository)


def test_an_unknown_authority_is_refused(secured, here, repository, exchanged, tmp_path):
    exchanged(secured.kind, "igrun", "unknown CA")
    name = secured.named(repository)
    given = Access.of(Settings(env=dict(os.environ)), {"authfile": authfile(tmp_path, secured)})

    with (
        pytest.raises(RegistryError, match=r"(?i)certificate"),
        Repository.open(Reference.parse(name), given) as remote,
    ):
        remote.resolve(Reference.parse(name))

    assert repository not in secured.requests()


def test_a_client_without_a_certificate_is_refused(mutual, repository, exchanged):
    exchanged(mutual.kind, "igrun", "no client certificate")
    name = mutual.named(repository)
    given = Access.of(Settings(env=dict(os.environ)), {"ca-file": str(mutual.certificates.ca)})

    with pytest.raises(RegistryError), Repository.open(Reference.parse(name), given) as remote:
        remote.resolve(Reference.parse(name))


# ---------------------------------------------------------------------------------------------- mirrors


def test_mirrors_are_asked_in_order_until_one_has_it(plain, tool, here, there, repository, exchanged, tmp_path):
    exchanged(plain.kind, "igrun", "mirrors: the first is down, the second lacks it, the third has it")
    asked, down = "registry.example/g/one:v1", "127.0.0.1:9"
    copied = plain.named(f"{repository}/g/one", "v1")
    root = put(here, copied)
    with Repository.open(Reference.parse(copied), access(plain)) as remote:
        copy(here, remote, copied)

    with servers.docker_registry(tmp_path / "empty") as empty:
        mirrors = [down, empty.address, f"{plain.address}/{repository}"]
        table = {
            "registry.example": {"mirrors": mirrors},
            **{host.partition("/")[0]: {"insecure": True} for host in mirrors},
        }
        given = Access.of(Settings(env=dict(os.environ), registries=table))
        with Repository.open(Reference.parse(asked), given) as remote:
            assert copy(remote, there, asked).digest == root.digest
        assert "/v2/g/one/manifests/v1" in empty.requests()

    assert there.resolve(asked).digest == root.digest


def test_nothing_is_written_to_a_mirror(plain, tool, here, repository, exchanged, tmp_path):
    exchanged(plain.kind, "igrun", "push goes past the mirror")
    name = plain.named(repository)
    with servers.docker_registry(tmp_path / "mirror") as mirror:
        table = {plain.address: {"mirrors": [mirror.address], "insecure": True}, mirror.address: {"insecure": True}}
        given = Access.of(Settings(env=dict(os.environ), registries=table))
        with Repository.open(Reference.parse(name), given) as remote:
            pushed(remote, here, name)
        assert plain.digest(repository)
        assert not any(method in mirror.requests() for method in ('"POST', '"PUT', '"PATCH'))


def test_a_registry_that_is_away_is_one_clear_error(exchanged):
    name = "127.0.0.1:9/g/one:v1"
    given = Access.of(Settings(env=dict(os.environ)), {"insecure-registries": "127.0.0.1:9"})

    with pytest.raises(RegistryError, match=r"127\.0\.0\.1:9"), Repository.open(Reference.parse(name), given) as remote:
        remote.resolve(Reference.parse(name))
