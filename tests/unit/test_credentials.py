"""Names and passwords in the files and helpers that container engines share."""

import base64
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from igrun.config import Settings
from igrun.errors import GadgetError, RegistryError
from igrun.oci.access import Access
from igrun.oci.credentials import Credential, find, known, login, logout
from tests.registry.stub import Stub, answer

HOST = "registry.example:5000"
SECRET = "s3cret-word"
HELPER = """#!/bin/sh
echo "$1" >> {folder}/verbs
case $1 in
get)
    IFS= read -r server
    [ -f {folder}/entry ] && [ "$server" = "$(cat {folder}/server)" ] || exit 1
    cat {folder}/entry ;;
store) cat > {folder}/stored ;;
erase) rm -f {folder}/entry ;;
list) echo '{{"https://listed.example":"somebody"}}' ;;
esac
"""


@pytest.fixture(autouse=True)
def apart(monkeypatch, tmp_path) -> None:
    for name in ("DOCKER_CONFIG", "REGISTRY_AUTH_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("igrun.oci.transport.time.sleep", lambda seconds: None)


def access(tmp_path: Path, config: object = None, **values: str) -> Access:
    """With a file of credentials that somebody names."""
    place = tmp_path / "auth.json"
    if config is not None:
        place.write_text(config if isinstance(config, str) else json.dumps(config))
    return Access.of(
        Settings(env={"HOME": str(tmp_path), "PATH": os.environ["PATH"]}), {"authfile": str(place), **values}
    )


def auth(username: str, password: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{username}:{password}".encode()).decode()}


# ---------------------------------------------------------------------------------------------- which file


def test_the_file_that_is_named_counts_more_than_the_environment_and_that_more_than_docker_s(tmp_path):
    for name in ("flag", "variable", "docker/config", ".docker/config"):
        path = tmp_path / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"auths": {HOST: auth(name, "x")}}))
    env = {"HOME": str(tmp_path)}

    def user(env: dict[str, str], **values: str) -> str:
        made = Access.of(Settings(env=env), {key: str(value) for key, value in values.items()})
        return found.username if (found := find(HOST, made)) else ""

    assert user(env) == ".docker/config"
    env["DOCKER_CONFIG"] = str(tmp_path / "docker")
    assert user(env) == "docker/config"
    env["REGISTRY_AUTH_FILE"] = str(tmp_path / "variable.json")
    assert user(env) == "variable"
    assert user(env, authfile=tmp_path / "flag.json") == "flag"


def test_a_file_that_is_named_must_be_there(tmp_path):
    with pytest.raises(GadgetError, match="No such file"):
        find(HOST, access(tmp_path))


@pytest.mark.parametrize("text", ["", "[]", "7", "{", "[" * 100_000, "9" * 5000, '"' + "x" * (2 << 20) + '"'])
def test_a_file_that_is_none_is_an_error(tmp_path, text):
    with pytest.raises(GadgetError, match="is no JSON object"):
        find(HOST, access(tmp_path, text))


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"auths": None},
        {"auths": []},
        {"auths": {HOST: 5}},
        {"auths": {HOST: {}}},
        {"auths": {HOST: {"auth": 5}}},
        {"auths": {HOST: {"auth": "%%%"}}},
        {"auths": {HOST: {"auth": "é"}}},
        {"auths": {HOST: {"registrytoken": "a\r\nX-Header: y"}}},
        {"credHelpers": 5},
    ],
)
def test_an_entry_that_says_nothing_is_none(tmp_path, config):
    assert find(HOST, access(tmp_path, config)) is None


# ---------------------------------------------------------------------------------------------- entries


@pytest.mark.parametrize(
    "entry",
    [auth("somebody", SECRET), {"username": "somebody", "password": SECRET}],
)
@pytest.mark.parametrize(
    "name", [HOST, f"https://{HOST}", f"http://{HOST}", f"https://{HOST}/v1/", f"https://{HOST}/v2/"]
)
def test_a_registry_may_be_called_in_many_ways(tmp_path, entry, name):
    assert find(HOST, access(tmp_path, {"auths": {name: entry}})) == Credential("somebody", SECRET)


def test_the_password_of_the_deepest_folder_counts(tmp_path):
    table = {HOST: auth("all", "x"), f"{HOST}/a": auth("a", "x"), f"{HOST}/a/b": auth("b", "x")}
    made = access(tmp_path, {"auths": table})

    def user(repository: str) -> str:
        found = find(HOST, made, repository)
        return found.username if found else ""

    assert [user(one) for one in ("", "c", "a", "a/c", "a/b", "a/b/c", "ab")] == [
        "all",
        "all",
        "a",
        "a",
        "b",
        "b",
        "all",
    ]


def test_docker_hub_is_called_by_its_old_address(tmp_path):
    made = access(tmp_path, {"auths": {"https://index.docker.io/v1/": auth("somebody", SECRET)}})

    assert find("docker.io", made) == Credential("somebody", SECRET)


def test_tokens_are_read(tmp_path):
    made = access(tmp_path, {"auths": {HOST: {"identitytoken": "1dent", "registrytoken": "t0k"}}})

    assert find(HOST, made) == Credential(identity="1dent", token="t0k")


def test_a_password_may_have_colons_and_any_bytes(tmp_path):
    text = base64.b64encode(b"somebody:a:b\xff:").decode()
    found = find(HOST, access(tmp_path, {"auths": {HOST: {"auth": text}}}))

    assert found
    assert found.basic == text


# ---------------------------------------------------------------------------------------------- helpers


@pytest.fixture
def helper(tmp_path, monkeypatch) -> Iterator[Path]:
    """The credential helper `tests`, which keeps one entry in a folder."""
    folder = tmp_path / "helper"
    folder.mkdir()
    program = folder / "docker-credential-tests"
    program.write_text(HELPER.format(folder=folder))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    (folder / "server").write_text(HOST)
    (folder / "entry").write_text(json.dumps({"ServerURL": HOST, "Username": "somebody", "Secret": SECRET}))
    yield folder


@pytest.mark.parametrize("config", [{"credsStore": "tests"}, {"credHelpers": {HOST: "tests"}}])
def test_a_helper_is_asked(helper, tmp_path, config):
    made = access(tmp_path, {**config, "auths": {HOST: {}}})

    assert find(HOST, made) == Credential("somebody", SECRET)
    if "credHelpers" in config:
        assert find("other.example", made) is None


def test_a_helper_s_token_user_is_an_identity(helper, tmp_path):
    (helper / "entry").write_text(json.dumps({"Username": "<token>", "Secret": "1dent"}))

    assert find(HOST, access(tmp_path, {"credsStore": "tests"})) == Credential(identity="1dent")


def test_a_helper_that_knows_nothing_is_no_error(helper, tmp_path):
    (helper / "entry").unlink()

    assert find(HOST, access(tmp_path, {"credsStore": "tests"})) is None


@pytest.mark.parametrize("said", ["nonsense", "[]", "[" * 99_999, '{"Username":5}'])
def test_a_helper_that_talks_nonsense_is_told_without_its_words(helper, tmp_path, said):
    (helper / "entry").write_text(said)
    made = access(tmp_path, {"credsStore": "tests"})

    if said.startswith("{"):
        assert find(HOST, made) is None
        return
    with pytest.raises(GadgetError, match="does not speak its protocol") as caught:
        find(HOST, made)
    assert said not in str(caught.value)


def test_a_helper_that_is_missing_is_named(tmp_path):
    with pytest.raises(GadgetError, match="docker-credential-nowhere is not in PATH"):
        find(HOST, access(tmp_path, {"credsStore": "nowhere"}))


@pytest.mark.parametrize("name", ["../x", "a b", "a\0b", 5, ["x"]])
def test_a_helper_with_a_strange_name_is_refused(tmp_path, name):
    with pytest.raises(GadgetError, match="in a wrong way"):
        find(HOST, access(tmp_path, {"credsStore": name}))


# ---------------------------------------------------------------------------------------------- login


@pytest.fixture
def stub() -> Iterator[Stub]:
    with Stub(user="somebody", password=SECRET) as running:
        yield running


def test_a_login_is_kept_for_its_owner_alone_beside_what_was_there(stub, tmp_path):
    made = access(tmp_path, {"auths": {"other.example": auth("a", "b")}, "HttpHeaders": {"x": "y"}}, **insecure(stub))

    login(stub.address, "somebody", SECRET, made)

    place = tmp_path / "auth.json"
    config = json.loads(place.read_text())
    assert config["auths"] == {"other.example": auth("a", "b"), stub.address: auth("somebody", SECRET)}
    assert config["HttpHeaders"] == {"x": "y"}
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    assert find(stub.address, made) == Credential("somebody", SECRET)
    assert known(made) == ("other.example", stub.address)
    assert not list(tmp_path.glob(".auth*"))


def insecure(stub: Stub) -> dict[str, str]:
    return {"insecure-registries": stub.address}


def test_a_file_behind_a_link_is_written_there(stub, tmp_path):
    (tmp_path / "real.json").write_text("{}")
    (tmp_path / "auth.json").symlink_to(tmp_path / "real.json")

    login(stub.address, "somebody", SECRET, access(tmp_path, **insecure(stub)))

    assert (tmp_path / "auth.json").is_symlink()
    assert stub.address in (tmp_path / "real.json").read_text()


@pytest.mark.parametrize("bearer", [False, True])
def test_a_wrong_password_is_told_and_not_kept(stub, tmp_path, bearer):
    stub.bearer = bearer
    made = access(tmp_path, {}, **insecure(stub))

    with pytest.raises(RegistryError) as caught:
        login(stub.address, "somebody", "wr0ng", made)

    assert str(caught.value) == f"unauthorized: {stub.address} does not take this username and password"
    assert (tmp_path / "auth.json").read_text() == "{}"


def test_a_login_gets_a_token_where_the_registry_wants_one(stub, tmp_path):
    stub.bearer = True

    login(stub.address, "somebody", SECRET, access(tmp_path, {}, **insecure(stub)))

    assert stub.tokens == {"t0ken-0": []}


def test_a_place_that_is_no_registry_takes_no_login(stub, tmp_path):
    stub.on("GET", "/v2/", answer(404, b"<html>"))

    with pytest.raises(RegistryError, match="not found"):
        login(stub.address, "somebody", SECRET, access(tmp_path, {}, **insecure(stub)))


def test_a_login_goes_to_the_helper(stub, helper, tmp_path):
    made = access(tmp_path, {"credsStore": "tests"}, **insecure(stub))

    login(f"https://{stub.address}/v2/", "somebody", SECRET, made)

    assert json.loads((helper / "stored").read_text()) == {
        "ServerURL": stub.address,
        "Username": "somebody",
        "Secret": SECRET,
    }
    assert json.loads((tmp_path / "auth.json").read_text())["auths"] == {stub.address: {}}


def test_a_username_with_a_colon_is_refused(stub, tmp_path):
    with pytest.raises(GadgetError, match="no colon"):
        login(stub.address, "some:body", SECRET, access(tmp_path, {}))
    assert stub.requests == []


def test_a_file_that_cannot_be_written_is_named(stub, tmp_path):
    (tmp_path / "file").write_text("")
    made = access(tmp_path, {}, **{**insecure(stub), "authfile": str(tmp_path / "file" / "auth.json")})

    with pytest.raises(GadgetError, match="cannot write") as caught:
        login(stub.address, "somebody", SECRET, made)
    assert "--authfile" in caught.value.hint


def test_a_logout_forgets(tmp_path):
    made = access(tmp_path, {"auths": {f"https://{HOST}/v2/": auth("a", "b"), HOST: auth("a", "b"), "x": {}}})

    logout(HOST, made)

    assert json.loads((tmp_path / "auth.json").read_text()) == {"auths": {"x": {}}}
    with pytest.raises(RegistryError, match=f"not logged in to {HOST}"):
        logout(HOST, made)


def test_a_logout_takes_it_from_the_helper(helper, tmp_path):
    made = access(tmp_path, {"credsStore": "tests", "auths": {HOST: {}}})

    logout(HOST, made)

    assert not (helper / "entry").exists()
    assert known(made) == ("listed.example",)
