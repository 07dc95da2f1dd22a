"""What registries want to know before they answer: names, passwords and tokens."""

import json
import re
import threading
import time
from collections.abc import Iterator

import pytest

from igrun.errors import RegistryError
from igrun.oci.auth import LIFE_S, challenges, parsed
from igrun.oci.credentials import Credential
from igrun.oci.transport import Client
from tests.registry.stub import Stub, answer, moved, sends
from tests.unit.test_registry_transport import BASIC, SECRET, access, client

SCOPES = ("repository:g:pull",)


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)


@pytest.fixture
def stub() -> Iterator[Stub]:
    with Stub(bearer=True) as running:
        running.put("v1", b"layer")
        yield running


def pull(stub: Stub, credential: Credential | None = None) -> int:
    with client(stub, credential) as one:
        return one.call("GET", "/v2/g/manifests/v1", "it", scopes=SCOPES).status


def refused(stub: Stub, credential: Credential | None = None) -> RegistryError:
    with pytest.raises(RegistryError) as caught:
        pull(stub, credential)
    return caught.value


# ---------------------------------------------------------------------------------------------- Basic


def test_a_password_is_sent_once_it_is_asked_for(stub):
    stub.bearer, stub.user, stub.password = False, "somebody", SECRET
    with client(stub, BASIC) as one:
        for _ in range(3):
            one.call("GET", "/v2/", "it")

    assert ["Authorization" in request.headers for request in stub.requests] == [False, True, True, True]


def test_a_wrong_password_is_sent_once(stub):
    stub.bearer, stub.user, stub.password = False, "somebody", "another"

    assert refused(stub, BASIC).status == 401
    assert len(stub.requests) == 2


def test_without_a_password_the_advice_is_to_log_in(stub):
    stub.bearer, stub.user, stub.password = False, "somebody", SECRET

    assert refused(stub).hint == f"`ig login {stub.address}`"


def test_a_password_may_have_any_bytes(stub):
    odd = Credential("jörg", "p\udcffä:ss")
    stub.bearer, stub.user = False, "x"
    stub.on("GET", "/v2/", answer(401, WWW_Authenticate='Basic realm="x"'), times=1)
    stub.on("GET", "/v2/", answer(200))

    assert pull(stub, odd) == 200
    assert stub.requests[-1].headers["Authorization"] == f"Basic {odd.basic}"


# ---------------------------------------------------------------------------------------------- tokens


def test_a_token_is_got_by_nobody(stub):
    assert pull(stub) == 200
    assert stub.asked(path="/token")[0].path == "/token?service=stub&scope=repository%3Ag%3Apull"
    assert "Authorization" not in stub.asked(path="/token")[0].headers


def test_a_token_is_got_with_a_password(stub):
    stub.user, stub.password = "somebody", SECRET

    assert pull(stub, BASIC) == 200
    assert "account=somebody" in stub.asked(path="/token")[0].path
    # the password goes to the token service alone
    assert stub.requests[-1].headers["Authorization"] == "Bearer t0ken-0"
    assert refused(stub).status == 401


def test_a_token_is_got_with_an_identity_token(stub):
    stub.identity = "1dent+ity/&="

    assert pull(stub, Credential(identity=stub.identity)) == 200
    asked = stub.asked("POST", "/token")[0]
    assert asked.path == "/token"
    assert b"grant_type=refresh_token&refresh_token=1dent%2Bity%2F%26%3D&client_id=igrun" in asked.body
    assert "Authorization" not in asked.headers


def test_a_registry_token_is_sent_at_once(stub):
    stub.tokens["mine"] = list(SCOPES)

    assert pull(stub, Credential(token="mine")) == 200
    assert len(stub.requests) == 1


def test_a_token_is_used_until_it_expires(stub, monkeypatch):
    with client(stub) as one:
        for _ in range(3):
            one.call("GET", "/v2/g/manifests/v1", "it", scopes=SCOPES)
        assert len(stub.tokens) == 1
        now = time.monotonic()
        monkeypatch.setattr("igrun.oci.auth.time.monotonic", lambda: now + 290)
        one.call("GET", "/v2/g/manifests/v1", "it", scopes=SCOPES)

    assert len(stub.tokens) == 2


def test_a_token_that_is_refused_early_is_replaced(stub):
    with client(stub) as one:
        one.call("GET", "/v2/g/manifests/v1", "it", scopes=SCOPES)
        stub.dead |= set(stub.tokens)
        one.call("GET", "/v2/g/manifests/v1", "it", scopes=SCOPES)

    assert len(stub.tokens) == 2


def test_each_scope_has_a_token(stub):
    with client(stub) as one:
        for actions in ("pull", "pull,push", "pull"):
            one.call("GET", "/v2/g/manifests/v1", "it", scopes=(f"repository:g:{actions}",))

    assert sorted(stub.tokens.values()) == [
        ["repository:g:pull"],
        ["repository:g:pull,push", "repository:g:pull"],
    ]


def test_threads_get_one_token_together(stub):
    with client(stub) as one:
        threads = [
            threading.Thread(target=one.call, args=("GET", "/v2/g/manifests/v1", "it"), kwargs={"scopes": SCOPES})
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert len(stub.tokens) == 1


def test_a_registry_that_takes_no_token_is_not_asked_for_ever(stub):
    stub.on("GET", "/v2/", answer(401, WWW_Authenticate=f'Bearer realm="{stub.url}/token"'))

    error = refused(stub)

    assert error.status == 401
    assert len(stub.requests) < 8


@pytest.mark.parametrize("life", ["soon", -5, 0, None, True, 1e99, [3]])
def test_a_token_without_a_sensible_life_has_the_usual_one(life):
    assert parsed(json.dumps({"access_token": "x", "expires_in": life}).encode()) == ("x", LIFE_S)


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{}", b'{"token":7}', b'{"token":"a b"}', b'{"token":"a\\r\\nX: y"}', b"[" * 99_999, b"9" * 9_999],
)
def test_what_is_no_token_is_an_error(stub, body):
    stub.on("GET", "/token", answer(200, body))

    assert "gave no token" in str(refused(stub))


# ---------------------------------------------------------------------------------------------- the service


def test_a_token_service_that_sends_us_away_gets_us_nowhere(stub):
    stub.user, stub.password = "somebody", SECRET
    with Stub() as other:
        stub.on("GET", "/token", moved(f"{other.url}/token"))

        assert "answered 307" in str(refused(stub, BASIC))
        assert other.requests == []


def test_a_token_service_without_an_end_is_given_up(stub):
    stub.on("GET", "/token", sends(lambda: (b"x" * 65536 for _ in range(10_000))))

    assert "larger than" in str(refused(stub))


def test_a_tired_token_service_is_asked_again(stub):
    stub.on("GET", "/token", answer(503), times=2)

    assert pull(stub) == 200


def test_a_token_service_that_is_down_is_named(stub):
    stub.realm = "http://127.0.0.2:9/token"

    assert "cannot reach 127.0.0.2, where registry 127.0.0.1" in str(refused(stub))


@pytest.mark.parametrize("realm", ["", "x", "ftp://x/", "https://u:p@x/", "http://[", "//x", "https://a b/"])
def test_a_token_service_without_an_address_is_an_error(stub, realm):
    stub.on("GET", "/v2/", answer(401, WWW_Authenticate=f'Bearer realm="{realm}",service="x"'))

    assert refused(stub, BASIC).status in (0, 401)


def test_a_password_goes_to_no_token_service_without_tls_unless_the_registry_may_be_so(stub):
    made = access()
    with Client(made.endpoint("registry.example"), made, BASIC) as one, pytest.raises(RegistryError) as caught:
        one._authenticator.answer(f'Bearer realm="{stub.url}/token"', SCOPES, "")

    assert "has no TLS" in str(caught.value)
    assert stub.requests == []


# ---------------------------------------------------------------------------------------------- challenges


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ('Basic realm="x"', [("basic", {"realm": "x"})]),
        ("Negotiate", [("negotiate", {})]),
        (
            'Bearer realm="a",service=b , scope="c,d \\"e\\""',
            [("bearer", {"realm": "a", "service": "b", "scope": 'c,d "e"'})],
        ),
        ('Negotiate, Basic realm="x", Bearer realm="y"', None),
        ("", []),
        (",,==\x00", []),
    ],
)
def test_challenges_are_read(header, found):
    if found is None:
        assert [scheme for scheme, _ in challenges(header)] == ["negotiate", "basic", "bearer"]
    else:
        assert challenges(header) == found


@pytest.mark.parametrize("piece", ['a a="', "a ", 'x="\\', "a=b ", "a\t", ",a =", 'a="b" '])
def test_a_long_challenge_takes_no_time(piece):
    start = time.perf_counter()
    challenges(piece * 10_000)

    assert time.perf_counter() - start < 1


def test_there_is_no_secret_in_what_is_shown():
    text = repr(Credential("u", "p4ss", "1dent", "t0k"))

    assert not re.search("p4ss|1dent|t0k", text)
