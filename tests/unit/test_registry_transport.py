"""Requests to a registry that is tired, broken, hostile, or behind others: nothing leaks and nothing hangs."""

import contextlib
import email.utils
import gzip
import json
import logging
import socket
import socketserver
import threading
import time
import tracemalloc
from collections.abc import Iterator

import pytest
import requests
import urllib3

from igrun.errors import GadgetError, RegistryError
from igrun.oci import answers, transport
from igrun.oci.access import Access
from igrun.oci.answers import broke, clean, down, place, reason, retry_after, told
from igrun.oci.credentials import Credential
from igrun.oci.transport import Client
from tests.registry.stub import Stub, answer, gone, moved, sends

SECRET = "s3cret-word"
BASIC = Credential("somebody", SECRET)


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path) -> list[float]:
    """No settings of this user's, and no pause is waited for; the pauses."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    pauses: list[float] = []
    monkeypatch.setattr("time.sleep", pauses.append)
    return pauses


@pytest.fixture
def stub() -> Iterator[Stub]:
    with Stub() as running:
        yield running


@pytest.fixture
def other() -> Iterator[Stub]:
    with Stub() as running:
        yield running


def access(*stubs: Stub, **more) -> Access:
    insecure = frozenset(one.address for one in stubs)
    return Access(insecure=insecure, authfile="/nonexistent", env={"HOME": "/nonexistent"}, **more)


def client(stub: Stub, credential: Credential | None = None, **more) -> Client:
    made = access(stub, **more)
    return Client(made.endpoint(stub.address), made, credential)


def get(stub: Stub, credential: Credential | None = None, path: str = "/v2/", **more) -> answers.Said:
    with client(stub, credential) as one:
        return one.call("GET", path, "it", **more)


def refused(stub: Stub, credential: Credential | None = None, **more) -> RegistryError:
    with pytest.raises(RegistryError) as caught:
        get(stub, credential, **more)
    return caught.value


# ---------------------------------------------------------------------------------------------- tired


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_tired_registry_is_asked_again_later_each_time(stub, quick, status):
    stub.on("GET", "/v2/", answer(status), times=3)

    assert get(stub).status == 200
    assert len(quick) == 3
    assert 0.1 <= quick[0] <= 0.2 < 0.4 <= quick[1] <= 0.8 < 1.6 <= quick[2] <= 3.2


def test_it_is_not_asked_for_ever(stub):
    stub.on("GET", "/v2/", answer(500))

    error = refused(stub)

    assert len(stub.requests) == transport.TRIES
    assert (error.status, str(error)) == (500, f"{stub.address}: it: the registry failed [500]")


@pytest.mark.parametrize("status", [400, 403, 404, 405, 501])
def test_a_clear_no_is_not_asked_again(stub, status):
    stub.on("GET", "/v2/", answer(status))

    assert refused(stub).status == status
    assert len(stub.requests) == 1


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_it_says_itself_how_long_it_wants_to_rest(stub, quick, form):
    later = email.utils.formatdate(time.time() + 31, usegmt=True)
    stub.on("GET", "/v2/", answer(429, Retry_After="30" if form == "seconds" else later), times=1)

    assert get(stub).status == 200
    assert len(quick) == 1
    assert 28 < quick[0] < 32


def test_nobody_waits_for_an_hour_and_the_user_is_told(stub, quick):
    stub.on("GET", "/v2/", answer(429, Retry_After="3600"))

    error = refused(stub)

    assert (len(stub.requests), quick) == (1, [])
    assert error.hint == "it wants to be asked again in 3600 s"


@pytest.mark.parametrize(
    "text", ["", "soon", "-5", "nan", "inf", "1e999", "9" * 5000, "²", "Tue, 99 Foo 99999 99:99:99 GMT", "\0"]
)
def test_a_senseless_rest_is_none(text):
    assert retry_after(text, 7.0) == 7.0


def test_a_connection_that_breaks_is_made_again(stub):
    stub.on("GET", "/v2/", gone, times=2)

    assert get(stub).status == 200


def test_an_answer_that_breaks_off_is_asked_for_again(stub):
    stub.on("GET", "/v2/", answer(200, b"short", Content_Length="50", Connection="close"), times=1)

    assert get(stub).body == b"{}"


def test_connections_are_used_again(stub):
    stub.user, stub.password = "somebody", SECRET
    stub.on("GET", "/x", moved("/v2/"))
    with client(stub, BASIC) as one:
        one.call("GET", "/x", "it")
        for _ in range(5):
            one.call("GET", "/v2/", "it")
            one.call("HEAD", "/v2/", "it")
            one.call("GET", "/v2/nothing", "it", fine=(404,))

    # the first is TLS, which this one does not speak
    assert stub.connections == 2


# ---------------------------------------------------------------------------------------------- bounds


def test_an_answer_without_an_end_is_given_up(stub):
    stub.on("GET", "/v2/", sends(lambda: (b"x" * 65536 for _ in range(10_000))))

    assert "the answer is larger than 65536 bytes" in str(refused(stub))


def test_what_is_packed_counts_unpacked(stub):
    bomb = gzip.compress(b"\0" * (64 << 20))
    stub.on("GET", "/v2/", answer(200, bomb, Content_Encoding="gzip"))
    get_ = client(stub)
    tracemalloc.start()
    try:
        with get_, pytest.raises(RegistryError, match="larger than"):
            get_.call("GET", "/v2/", "it", largest=1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_what_is_packed_is_unpacked(stub):
    stub.on("GET", "/v2/", answer(200, gzip.compress(b"hello"), Content_Encoding="gzip"))

    assert get(stub).body == b"hello"


def test_what_is_packed_in_a_wrong_way_is_told(stub):
    stub.on("GET", "/v2/", answer(200, b"hello", Content_Encoding="gzip"))

    assert "packed in a wrong way" in str(refused(stub))


def test_an_answer_that_comes_drop_by_drop_is_given_up(stub, monkeypatch):
    drop = threading.Event()
    stub.on("GET", "/v2/", sends(lambda: (drop.wait(0.02) or b"x" for _ in range(200))))
    monkeypatch.setattr(answers, "LONGEST_ANSWER_S", 0.1)

    assert "too slowly" in str(refused(stub))


def test_a_registry_that_says_nothing_is_given_up(stub, monkeypatch):
    release = threading.Event()
    stub.on("GET", "/v2/", lambda handler: not release.wait(5))
    monkeypatch.setattr(transport, "TRIES", 1)
    with pytest.raises(RegistryError, match="does not answer in time") as caught:
        made = access(stub, plain_http=True)
        with Client(made.endpoint(stub.address), made, tries=1) as one:
            one.call("GET", "/v2/", "it", read_s=0.1)
    release.set()

    assert broke(caught.value)


def test_the_error_of_a_registry_is_one_short_clean_line(stub):
    message = "bad\r\n\x1b[31mred\x07 \u202e" + "x" * 100_000
    body = b'{"errors":[{"code":"NAME\\u001b","message":%s}]}' % json.dumps(message).encode()
    stub.on("GET", "/v2/", answer(400, body))

    error = refused(stub)

    # too large for the 64 KiB that are read, so it is no JSON any more
    assert str(error) == f"{stub.address}: it: refused [400]"
    assert told(body)[0] == "NAME"
    assert told(body)[1].startswith("bad [31mred x")
    assert clean("a\x9b\x85b") == "a b"


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"[]", b"{}", b'{"errors":{}}', b'{"errors":[7]}', b"[" * 60_000, b"\xff"],
)
def test_an_error_without_a_message_is_no_trouble(stub, body):
    stub.on("GET", "/v2/", answer(400, body))

    assert str(refused(stub)) == f"{stub.address}: it: refused [400]"


def test_a_registry_cannot_pretend_to_be_down(stub):
    stub.on("GET", "/v2/", answer(400, b'{"errors":[{"code":"BROKEN","message":"x"}]}'))

    error = refused(stub)

    assert not broke(error)
    assert not down(error)
    assert len(stub.requests) == 1


# ---------------------------------------------------------------------------------------------- redirects


def test_the_credentials_do_not_go_along_to_another_host(stub, other):
    stub.user, stub.password = "somebody", SECRET
    stub.on("GET", "/v2/g/blobs/", lambda handler: moved(f"{other.url}/v2/")(handler) if handler.allowed() else None)

    assert get(stub, BASIC, "/v2/g/blobs/x").status == 200
    assert "Authorization" in stub.requests[-1].headers
    assert other.requests
    for one in other.requests:
        assert set(one.headers) <= {"Host", "User-Agent", "Accept-Encoding", "Connection"}
        assert SECRET not in str(one)


def test_another_host_cannot_ask_who_we_are(stub, other):
    other.user, other.password = "somebody", SECRET
    stub.on("GET", "/v2/g/", moved(f"{other.url}/v2/"))

    assert refused(stub, BASIC, path="/v2/g/x").status == 401
    assert len(other.requests) == 1


def test_another_host_cannot_send_us_to_its_token_service(stub, other):
    stub.on("GET", "/v2/g/", moved(f"{other.url}/v2/"))
    other.on("GET", "/v2/", answer(401, WWW_Authenticate=f'Bearer realm="{other.url}/token"'))

    refused(stub, BASIC, path="/v2/g/x")

    assert not other.asked(path="/token")


def test_credentials_do_not_come_back_from_another_host(stub, other):
    stub.user, stub.password = "somebody", SECRET
    with client(stub, BASIC) as one:
        one.call("GET", "/v2/", "it")
        stub.on("GET", "/v2/g/", moved(f"{other.url}/back"), times=1)
        other.on("GET", "/back", moved(f"{stub.url}/v2/"))
        stub.requests.clear()
        # the registry asks for them itself then
        one.call("GET", "/v2/g/x", "it", fine=(401,))

    assert "Authorization" in stub.requests[0].headers
    assert "Authorization" not in stub.requests[1].headers


def test_credentials_go_along_within_the_registry(stub):
    stub.user, stub.password = "somebody", SECRET
    with client(stub, BASIC) as one:
        one.call("GET", "/v2/", "it")
        stub.on("GET", "/v2/g/", moved("/v2/"), times=1)
        assert one.call("GET", "/v2/g/x", "it").status == 200

    assert "Authorization" in stub.requests[-1].headers


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_loop_of_redirects_ends(stub, status):
    stub.on("GET", "/v2/", moved("/v2/", status))

    assert "from place to place" in str(refused(stub))
    assert len(stub.requests) == transport.MOST_MOVES + 1


@pytest.mark.parametrize(
    "there",
    [
        "ftp://x/",
        "file:///etc/passwd",
        "http://[::1",
        "http://x:99999999/",
        "http://x\\@y/",
        "http://u:p@x/",
        "javascript:1",
        "http://\u00e9/",
        "data:,x",
    ],
)
def test_a_redirect_to_nowhere_is_an_error(stub, there):
    stub.on("GET", "/v2/", answer(307, Location=there))

    error = str(refused(stub))

    assert "no web address" in error or "cannot reach" in error
    assert len(stub.requests) == 1


def test_an_address_is_read_as_the_connection_reads_it():
    assert place("https://evil.example\\@registry.example/") is None
    assert place("https://registry.example@evil.example/") is None
    assert place("HTTPS://Registry.Example/x") == place("https://registry.example:443/y")


def test_what_comes_with_a_redirect_is_not_read_to_its_end(stub):
    stub.on("GET", "/x", lambda handler: redirect_without_end(handler))

    tracemalloc.start()
    try:
        assert get(stub, path="/x").status == 200
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def redirect_without_end(handler) -> None:
    handler.send_response(307)
    handler.send_header("Location", "/v2/")
    handler.send_header("Content-Length", str(64 << 20))
    handler.end_headers()
    handler.close_connection = True
    with contextlib.suppress(OSError):
        for _ in range(1024):
            handler.wfile.write(b"x" * 65536)


@pytest.mark.parametrize("status", [301, 302, 303])
def test_an_upload_is_not_sent_on_in_a_way_that_loses_it(stub, status):
    stub.on("PUT", "/v2/", moved("/v2/x", status))

    with client(stub) as one, pytest.raises(RegistryError, match="loses it"):
        one.call("PUT", "/v2/", "it", body=b"data")


def test_an_upload_is_sent_on_whole(stub, other):
    other.on("PUT", "/there", answer(201))
    stub.on("PUT", "/v2/", moved(f"{other.url}/there", 307))

    with client(stub, BASIC) as one:
        assert one.call("PUT", "/v2/", "it", body=b"data").status == 201

    assert other.requests[0].headers["Content-Length"] == "4"
    assert "Authorization" not in other.requests[0].headers


# ---------------------------------------------------------------------------------------------- secrets


def test_no_secret_is_logged_or_told(stub, other, caplog):
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, "igrun")  # which `ig` may have set
    stub.user, stub.password, stub.bearer = "somebody", SECRET, True
    stub.on("GET", "/v2/g/blobs/", lambda h: h.allowed() and moved(f"{other.url}/v2/?X-Amz-Signature=sIgNaTuRe")(h))
    stub.on("GET", "/v2/g/manifests/", answer(500, b'{"errors":[{"message":"x"}]}'))
    echo = f'{{"errors":[{{"code":"X","message":"you sent {SECRET} and {BASIC.basic} and t0ken-0"}}]}}'.encode()
    stub.on("GET", "/v2/g/echo/", lambda h: h.allowed() and answer(400, echo)(h))
    scopes = ("repository:g:pull",)

    with client(stub, BASIC) as one:
        one.call("GET", "/v2/g/blobs/x", "it", scopes=scopes)
        errors = []
        for path in ("/v2/g/manifests/x", "/v2/g/echo/x"):
            with pytest.raises(RegistryError) as caught:
                one.call("GET", path, "it", scopes=scopes)
            errors.append(caught.value)
        shown = f"{one!r} {one._authenticator!r} {one.endpoint!r} {BASIC!r} {access(stub)!r}"

    text = caplog.text + shown + "".join(f"{one} {one!r} {one.hint} {one.code} {one.detail}" for one in errors)
    assert "answered 500" in caplog.text
    assert "GET /v2/" in caplog.text
    for secret in (SECRET, BASIC.basic, "t0ken-0", "sIgNaTuRe"):
        assert secret not in text
    assert "you sent *** and *** and ***" in str(errors[1])


def test_no_cookie_is_kept(stub):
    stub.on("GET", "/v2/", answer(200, Set_Cookie="who=me; Path=/"), times=1)
    with client(stub) as one:
        one.call("GET", "/v2/", "it")
        one.call("GET", "/v2/", "it")

    assert "Cookie" not in stub.requests[-1].headers


def test_netrc_is_not_looked_into(stub, monkeypatch, tmp_path):
    place_ = tmp_path / ".netrc"
    place_.write_text(f"machine 127.0.0.1 login somebody password {SECRET}\n")
    place_.chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(place_))

    get(stub)

    assert "Authorization" not in stub.requests[-1].headers


# ---------------------------------------------------------------------------------------------- the caller


def test_an_error_of_whoever_takes_an_answer_is_not_the_registry_s(stub):
    with client(stub) as one, pytest.raises(OSError, match="disk full") as caught, one.opened("GET", "/v2/", "it"):
        raise OSError(28, "disk full")

    assert not isinstance(caught.value, GadgetError)


def test_threads_share_a_client(stub):
    failed = []
    with client(stub) as one:

        def work() -> None:
            try:
                for _ in range(10):
                    assert one.call("GET", "/v2/", "it").status == 200
            except (GadgetError, AssertionError) as error:
                failed.append(error)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert failed == []


# ---------------------------------------------------------------------------------------------- proxies


class Proxy(socketserver.BaseRequestHandler):
    """Forwards plain requests and opens tunnels, to wherever it was told."""

    def handle(self) -> None:
        head = b""
        while b"\r\n\r\n" not in head and (more := self.request.recv(4096)):
            head += more
        line, _, rest = head.partition(b"\r\n")
        self.server.asked.append((line.decode(), head.decode()))
        method, target, version = line.split(b" ")
        with socket.create_connection(self.server.there) as far:
            if method == b"CONNECT":
                self.request.sendall(b"HTTP/1.1 200 fine\r\n\r\n")
            else:
                path = b"/" + target.split(b"/", 3)[3]
                far.sendall(b" ".join((method, path, version)) + b"\r\nConnection: close\r\n" + rest)
            back = threading.Thread(target=self.pour, args=(far, self.request), daemon=True)
            back.start()
            if method == b"CONNECT":
                self.pour(self.request, far)
            back.join(5)

    @staticmethod
    def pour(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass


class Proxies(socketserver.ThreadingTCPServer):
    daemon_threads, block_on_close = True, False


@pytest.fixture
def proxy(stub) -> Iterator[socketserver.TCPServer]:
    with Proxies(("127.0.0.1", 0), Proxy) as server:
        server.asked, server.there = [], stub.server.server_address
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_proxy_is_used_and_not_shown_the_credentials_of_others(stub, proxy, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", f"http://pat:pr0xy-word@127.0.0.1:{proxy.server_address[1]}")
    made = Access(plain_http=True, authfile="/nonexistent", env={"HOME": "/nonexistent"})

    with Client(made.endpoint("registry.example:5000"), made) as one:
        assert one.call("GET", "/v2/", "it").status == 200

    assert proxy.asked[0][0] == "GET http://registry.example:5000/v2/ HTTP/1.1"
    assert "Proxy-Authorization: Basic" in proxy.asked[0][1]


def test_a_proxy_opens_a_tunnel_for_tls(stub, proxy, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.server_address[1]}")
    made = Access(authfile="/nonexistent", env={"HOME": "/nonexistent"})

    with Client(made.endpoint("registry.example:5000"), made) as one, pytest.raises(RegistryError, match="TLS"):
        one.call("GET", "/v2/", "it")

    assert proxy.asked[0][0] == "CONNECT registry.example:5000 HTTP/1.0"


def test_some_hosts_are_asked_without_the_proxy(stub, proxy, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.server_address[1]}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,example.org")

    assert get(stub).status == 200
    assert proxy.asked == []


def test_a_proxy_that_is_down_is_named_and_its_password_is_not(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://pat:pr0xy-word@127.0.0.1:9")
    made = Access(authfile="/nonexistent", env={"HOME": "/nonexistent"})

    with Client(made.endpoint("registry.example"), made) as one, pytest.raises(RegistryError) as caught:
        one.call("GET", "/v2/", "it")

    assert str(caught.value) == "cannot reach registry registry.example through the proxy: Connection refused"
    assert "HTTPS_PROXY" in caught.value.hint
    assert "pr0xy-word" not in f"{caught.value!r}{caught.value.__cause__!r}"


# ---------------------------------------------------------------------------------------------- words


def test_nobody_there_is_told_in_few_words():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    made = Access(plain_http=True, authfile="/nonexistent", env={"HOME": "/nonexistent"})

    with Client(made.endpoint(f"127.0.0.1:{port}"), made) as one, pytest.raises(RegistryError) as caught:
        one.call("GET", "/v2/", "it")

    assert str(caught.value) == f"cannot reach registry 127.0.0.1:{port}: Connection refused"
    assert caught.value.hint == "is it running, and is that its address?"
    assert down(caught.value)


def test_one_that_speaks_no_tls_is_told_so(stub):
    made = Access(authfile="/nonexistent", env={"HOME": "/nonexistent"})

    with Client(made.endpoint(stub.address), made) as one, pytest.raises(RegistryError, match="TLS: ") as caught:
        one.call("GET", "/v2/", "it")

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("said", [b"nonsense\r\n\r\n", b"HTTP/1.1 banana\r\n\r\n", b"\x15\x03\x03" * 100, b""])
def test_what_is_no_http_is_an_error(stub, said):
    stub.on("GET", "/v2/", lambda handler: blurt(handler, said))

    assert "cannot reach registry" in str(refused(stub))


def blurt(handler, said: bytes) -> None:
    handler.wfile.write(said)
    handler.cut()


def test_a_reason_is_never_the_address():
    url = "https://registry.example/v2/?token=s3cret"
    pool = urllib3.HTTPSConnectionPool("registry.example")
    inner = urllib3.exceptions.MaxRetryError(pool, url, urllib3.exceptions.ProtocolError("x", OSError(104, "reset")))

    assert reason(requests.ConnectionError(inner)) == "reset"
    assert "s3cret" not in reason(requests.exceptions.InvalidURL(url))
