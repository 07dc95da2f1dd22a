"""How registries are reached: settings, certificates, mirrors, and what is insecure."""

import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from igrun.config import Settings
from igrun.errors import GadgetError, ParamError, RegistryError
from igrun.oci import access as module
from igrun.oci.access import Access, Endpoint
from igrun.oci.answers import down
from igrun.oci.credentials import Credential
from igrun.oci.transport import Client
from tests.registry import servers
from tests.registry.servers import Certificates
from tests.registry.stub import Stub, moved


@pytest.fixture(autouse=True)
def apart(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(module, "CERTIFICATES", (tmp_path / "docker", tmp_path / "containers"))
    monkeypatch.setattr("igrun.oci.transport.time.sleep", lambda seconds: None)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture(scope="module")
def pem(tmp_path_factory) -> Certificates:
    if not shutil.which("openssl"):
        pytest.skip("needs openssl (Debian package openssl) to make certificates")
    return servers.certificates(tmp_path_factory.mktemp("pem"))


def of(values: dict[str, str] | None = None, registries: dict | None = None, **env: str) -> Access:
    return Access.of(Settings(env=env, registries=registries or {}), values or {})


def tls(pem: Certificates, *, wants_client: bool = False) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(pem.server, pem.server_key)
    if wants_client:
        made.load_verify_locations(pem.ca)
        made.verify_mode = ssl.CERT_REQUIRED
    return made


@pytest.fixture
def secured(pem) -> Iterator[Stub]:
    with Stub(tls=tls(pem)) as running:
        yield running


def ping(stub: Stub, access: Access, credential: Credential | None = None) -> None:
    with Client(access.endpoint(stub.address), access, credential) as one:
        one.ping()


# ---------------------------------------------------------------------------------------------- settings


def test_flags_count_more_than_the_environment():
    env = {"INSPEKTOR_GADGET_OPERATOR_OCI_INSECURE_REGISTRIES": "a,b", "IG_OPERATOR_OCI_PLAIN_HTTP": "true"}

    assert of(**env).insecure == {"a", "b"}
    assert of({"insecure-registries": "c"}, **env).insecure == {"c"}
    assert of(**env).endpoint("x").schemes == ("http",)
    assert of({"plain-http": "false"}, **env).endpoint("x").schemes == ("https",)


def test_every_registry_has_tls_unless_somebody_says_otherwise():
    made = of({"insecure-registries": "a.example,b:5000"}, {"c": {"insecure": True}})

    for host in ("ghcr.io", "localhost", "localhost:5000", "127.0.0.1:5000"):
        assert (made.endpoint(host).schemes, made.endpoint(host).verify) == (("https",), True)
    for host in ("a.example", "b:5000", "c"):
        assert (made.endpoint(host).schemes, made.endpoint(host).verify) == (("https", "http"), False)
    assert of({"tls-verify": "false"}).endpoint("x") == Endpoint("x", "x", ("https",), verify=False)


def test_docker_hub_is_elsewhere():
    assert of().endpoint("docker.io").address == "registry-1.docker.io"


def test_mirrors_have_folders_and_settings_of_their_own():
    made = of({}, {"ghcr.io": {"mirrors": ["https://m.example:5000/a/b/", "n"]}, "n": {"insecure": "true"}})

    assert made.mirrors("ghcr.io") == (
        Endpoint("m.example:5000", "m.example:5000", prefix="a/b/"),
        Endpoint("n", "n", ("https", "http"), verify=False),
    )
    assert made.mirrors("quay.io") == ()


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ({"mirror": []}, "unknown key 'mirror'"),
        ({"mirrors": 5}, "not a list"),
        ({"mirrors": [5]}, "not a list"),
        ({"mirrors": [""]}, "not a list"),
        ({"mirrors": ["http://m"]}, "without http://"),
        ({"mirrors": ["m?x"]}, "no name like"),
        ({"mirrors": ["a@m"]}, "no name like"),
        ({"mirrors": ["m/../x"]}, "no name like"),
        ({"mirrors": ["m/A"]}, "no name like"),
        ({"insecure": "perhaps"}, "neither true nor false"),
    ],
)
def test_a_wrong_table_is_an_error_that_names_the_place(entry, why):
    with pytest.raises(GadgetError, match=why) as caught:
        of({}, {"ghcr.io": entry})
    assert str(caught.value).startswith("config: registries.ghcr.io")


@pytest.mark.parametrize("key", ["ca-file", "cert-file"])
def test_a_file_that_is_not_there_is_told_before_anything_is_asked(key):
    values = {key: "/nonexistent", **({"key-file": "/nonexistent"} if key == "cert-file" else {})}

    with pytest.raises(ParamError, match="does not exist"):
        of(values).endpoint("x")


@pytest.mark.parametrize("key", ["cert-file", "key-file"])
def test_a_certificate_and_its_key_come_together(key):
    with pytest.raises(ParamError, match="needs"):
        of({key: "/x"})


# ---------------------------------------------------------------------------------------------- certificates


@pytest.fixture
def nobody(tmp_path) -> dict[str, str]:
    """A file without credentials."""
    place = tmp_path / "auth.json"
    place.write_text("{}")
    return {"authfile": str(place)}


def test_a_ca_of_one_s_own_is_trusted_when_it_is_named(secured, pem, nobody):
    ping(secured, of({"ca-file": str(pem.ca), **nobody}))


def test_an_unknown_ca_is_refused_and_the_way_out_is_told(secured, nobody):
    with pytest.raises(RegistryError, match="its certificate is not trusted") as caught:
        ping(secured, of(nobody))

    assert "--ca-file" in caught.value.hint
    assert down(caught.value)
    assert secured.requests == []


@pytest.mark.parametrize("where", ["docker", "containers"])
def test_a_ca_may_be_installed_for_a_registry(secured, pem, nobody, tmp_path, where):
    folder = tmp_path / where / secured.address
    folder.mkdir(parents=True)
    shutil.copy(pem.ca, folder / "ca.crt")

    ping(secured, of(nobody))


def test_a_client_certificate_is_shown(pem, nobody, tmp_path):
    with Stub(tls=tls(pem, wants_client=True)) as stub:
        with pytest.raises(RegistryError):
            ping(stub, of({**nobody, "ca-file": str(pem.ca)}))
        keys = {"cert-file": str(pem.client), "key-file": str(pem.client_key)}
        ping(stub, of({**nobody, "ca-file": str(pem.ca), **keys}))

        folder = tmp_path / "docker" / stub.address
        folder.mkdir(parents=True)
        shutil.copy(pem.ca, folder / "ca.crt")
        shutil.copy(pem.client, folder / "client.cert")
        shutil.copy(pem.client_key, folder / "client.key")
        ping(stub, of(nobody))


def test_a_client_certificate_is_not_shown_to_others(pem, nobody):
    keys = {"ca-file": str(pem.ca), "cert-file": str(pem.client), "key-file": str(pem.client_key)}
    with Stub(tls=tls(pem, wants_client=True)) as stub, Stub(tls=tls(pem, wants_client=True)) as other:
        stub.on("GET", "/v2/", moved(f"{other.url}/v2/"))
        with pytest.raises(RegistryError):
            ping(stub, of({**nobody, **keys}))

        assert stub.requests
        assert other.requests == []


@pytest.mark.parametrize("key", ["ca-file", "cert-file"])
def test_a_file_that_holds_no_certificate_is_named(secured, nobody, pem, tmp_path, key):
    wrong = tmp_path / "wrong.pem"
    wrong.write_text("nonsense")
    values = {"ca-file": str(pem.ca), key: str(wrong)}
    if key == "cert-file":
        values["key-file"] = str(pem.client_key)

    with pytest.raises(ParamError, match=r"wrong\.pem"):
        ping(secured, of({**nobody, **values}))


def test_a_key_with_a_password_is_an_error_and_no_question(secured, nobody, pem, tmp_path):
    locked = tmp_path / "locked.pem"
    subprocess.run(
        ["openssl", "pkcs8", "-topk8", "-passout", "pass:word", "-in", pem.client_key, "-out", locked],
        check=True,
        capture_output=True,
    )
    values = {"ca-file": str(pem.ca), "cert-file": str(pem.client), "key-file": str(locked)}

    with pytest.raises(ParamError, match="cannot be used"):
        ping(secured, of({**nobody, **values}))


# ---------------------------------------------------------------------------------------------- insecure


def test_an_insecure_registry_is_asked_by_tls_first_then_without(secured, nobody, monkeypatch):
    ping(secured, of({**nobody, "insecure-registries": secured.address}))
    with Stub() as plain:
        ping(plain, of({**nobody, "insecure-registries": plain.address}))
        assert len(plain.requests) == 1

    assert len(secured.requests) == 1


def test_credentials_go_to_an_insecure_registry_all_the_same(pem, nobody):
    with Stub(user="somebody", password="word", tls=tls(pem)) as stub:
        ping(stub, of({**nobody, "insecure-registries": stub.address}), Credential("somebody", "word"))

        assert "Authorization" in stub.requests[-1].headers


def test_a_registry_with_tls_sends_nobody_where_there_is_none(secured, pem, nobody):
    with Stub() as plain:
        secured.on("GET", "/v2/", moved(f"{plain.url}/v2/"))
        with pytest.raises(RegistryError, match="which has no TLS") as caught:
            ping(secured, of({**nobody, "ca-file": str(pem.ca)}), Credential("somebody", "word"))

        assert f"--insecure-registries {secured.address}" in caught.value.hint
        assert plain.requests == []


def test_one_that_answers_by_tls_gets_no_credentials_without(pem, nobody):
    with Stub() as plain, Stub(user="somebody", password="word", tls=tls(pem)) as stub:
        access = of({**nobody, "insecure-registries": stub.address})
        with Client(access.endpoint(stub.address), access, Credential("somebody", "word")) as one:
            one.ping()
            stub.on("GET", "/v2/x", moved(f"{plain.url}/v2/"))
            one.call("GET", "/v2/x", "it")

        assert "Authorization" not in plain.requests[-1].headers


def test_how_a_registry_is_reached_shows_no_environment():
    assert "s3cret" not in repr(of({}, None, HTTPS_PROXY="http://u:s3cret@p"))
    assert Path(of().authfile) == Path("/var/lib/ig/config.json")
