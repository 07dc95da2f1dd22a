"""Repositories of registries that fail, lie, or do things in their own way."""

import gzip
import json
import logging
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from igrun.errors import GadgetError, ImageError, NotFoundError, RegistryError
from igrun.oci import registry, source, uploads
from igrun.oci.access import Access
from igrun.oci.copy import copy
from igrun.oci.model import INDEX, MANIFEST, Descriptor, Index, Reference, Referrer
from igrun.oci.registry import Repository
from igrun.oci.source import following
from igrun.oci.store import Store
from igrun.oci.uploads import Sending, SourceFailed
from tests.images import about, image, legacy
from tests.registry.stub import Stub, answer, cut, gone, moved, sends, swallow

BLOB = bytes(range(256)) * 4096  # 1 MiB


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> list[float]:
    """No pause is waited for; the pauses."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    pauses: list[float] = []
    monkeypatch.setattr("igrun.oci.transport.time.sleep", pauses.append)
    return pauses


@pytest.fixture
def stub() -> Iterator[Stub]:
    with Stub() as running:
        yield running


@pytest.fixture
def mirror() -> Iterator[Stub]:
    with Stub() as running:
        yield running


@pytest.fixture
def store(tmp_path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as opened:
        yield opened


def open_(stub: Stub, name: str = "g", *mirrors: str) -> Repository:
    table = {stub.address: {"mirrors": list(mirrors), "insecure": True}}
    access = Access(authfile="/nonexistent", plain_http=True, registries=table, env={"HOME": "/nonexistent"})
    return Repository.open(Reference.parse(f"{stub.address}/{name}:v1"), access)


def fetched(stub: Stub, descriptor: Descriptor, start: int = 0, *mirrors: str) -> bytes:
    with open_(stub, "g", *mirrors) as one:
        return b"".join(one.stream(descriptor, start))


def sent(stub: Stub, data: bytes = BLOB) -> Descriptor:
    descriptor = Descriptor.of("application/layer", data)
    with open_(stub) as one:
        one.receive(descriptor, lambda start: (data[at : at + 100_000] for at in range(start, len(data), 100_000)))
    return descriptor


# ---------------------------------------------------------------------------------------------- downloads


@settings(max_examples=20, deadline=None)
@given(breaks=some.lists(some.integers(1, len(BLOB)), max_size=3), start=some.integers(0, len(BLOB)))
def test_a_download_goes_on_where_it_broke(breaks, start):
    with Stub() as stub:
        blob = stub.blob(BLOB)
        for at in breaks:
            stub.on("GET", "/blobs/", cut(at), times=1)

        assert fetched(stub, blob, start) == BLOB[start:]


def test_only_what_is_missing_is_asked_for(stub):
    blob = stub.blob(BLOB)
    stub.on("GET", "/blobs/", cut(1000), times=2)

    assert fetched(stub, blob) == BLOB
    asked = [one.headers.get("Range") for one in stub.asked("GET", "/blobs/")]
    assert asked == [None, f"bytes=1000-{len(BLOB) - 1}", f"bytes=2000-{len(BLOB) - 1}"]


def test_a_registry_without_ranges_sends_all_of_it_again(stub):
    blob = stub.blob(BLOB)
    stub.on("GET", "/blobs/", cut(1000), times=1)
    stub.on("GET", "/blobs/", answer(200, BLOB), times=1)

    assert fetched(stub, blob) == BLOB


def test_another_part_than_was_asked_for_is_refused(stub):
    blob = stub.blob(BLOB)
    stub.on("GET", "/blobs/", cut(1000), times=1)
    stub.on("GET", "/blobs/", answer(206, BLOB[500:], Content_Range=f"bytes 500-{len(BLOB) - 1}/{len(BLOB)}"), times=1)

    with pytest.raises(RegistryError, match="another part"):
        fetched(stub, blob)


def test_a_download_that_breaks_again_and_again_without_coming_on_is_given_up(stub):
    blob = stub.blob(BLOB)
    stub.on("GET", "/blobs/", cut(0))

    with pytest.raises(RegistryError, match="blob sha256"):
        fetched(stub, blob)
    assert len(stub.asked("GET", "/blobs/")) == 5


def test_a_download_that_comes_drop_by_drop_is_given_up(stub, monkeypatch):
    blob = stub.blob(BLOB)
    stub.on("GET", "/blobs/", cut(1))
    now = iter(range(0, 10**9, 7))
    monkeypatch.setattr(source.time, "monotonic", lambda: next(now))

    with pytest.raises(RegistryError, match="too slowly"):
        fetched(stub, blob)


def test_a_blob_without_an_end_is_cut(stub, store):
    blob = stub.blob(BLOB)
    stub.on("GET", "/blobs/", sends(lambda: (b"x" * 65536 for _ in range(10_000))))

    with pytest.raises(ImageError, match="larger than the 1048576 bytes it has"):
        fetched(stub, blob)


@pytest.mark.parametrize("by", [1, -1, -len(BLOB)])
def test_a_blob_of_another_size_is_told(stub, by):
    blob = stub.blob(BLOB)
    stub.on("GET", "/blobs/", answer(200, (BLOB + b"x")[: len(BLOB) + by]))

    with pytest.raises(ImageError, match="larger than" if by > 0 else "ends after"):
        fetched(stub, blob)


def test_an_empty_blob_is_one(stub):
    assert fetched(stub, stub.blob(b"")) == b""


def test_other_bytes_never_reach_the_store(stub, store):
    root = stub.put("v1", BLOB)
    stub.on("GET", Descriptor.of("", BLOB).digest, answer(200, BLOB[::-1]))

    with open_(stub) as one, pytest.raises(ImageError, match="not what it should be"):
        copy(one, store, f"{stub.address}/g:v1")
    with pytest.raises(NotFoundError):
        store.resolve(f"{stub.address}/g:v1")
    assert not store.has(Descriptor.of("", BLOB))
    assert not store.has(root)


def test_a_blob_that_is_called_packed_comes_as_it_is(stub):
    packed = gzip.compress(BLOB)
    blob = stub.blob(packed)
    stub.on("GET", "/blobs/", answer(200, packed, Content_Encoding="gzip"))

    assert fetched(stub, blob) == packed


def test_a_blob_may_come_from_another_host_without_our_name(stub, mirror):
    blob = stub.blob(BLOB)
    mirror.blob(BLOB)
    stub.on("GET", "/blobs/", moved(f"{mirror.url}{{path}}"))

    assert fetched(stub, blob) == BLOB
    assert "Authorization" not in mirror.requests[0].headers


def test_what_is_not_there_is_not_found(stub):
    with open_(stub) as one:
        for ask in (one.resolve, one.read, lambda blob: b"".join(one.stream(blob))):
            with pytest.raises(NotFoundError, match="is not in registry") as caught:
                ask("v1" if ask == one.resolve else Descriptor.of("application/layer", b"x"))
            assert caught.value.hint
        assert not one.has(Descriptor.of("application/layer", b"x"))


def test_a_token_may_expire_between_two_parts_of_a_blob(stub):
    stub.bearer = True
    blob = stub.blob(BLOB)
    stub.on("GET", "/blobs/", lambda h: h.allowed() and (stub.dead.update(stub.tokens), cut(1000)(h))[1], times=2)

    assert fetched(stub, blob) == BLOB
    assert len(stub.tokens) == 2


def test_memory_stays_flat(stub, store):
    big = 64 << 20
    blob = Descriptor("application/layer", f"sha256:{'0' * 64}", big)
    stub.on("GET", "/blobs/", answer(200, bytes(big)))
    tracemalloc.start()
    try:
        with open_(stub) as one:
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            assert sum(len(chunk) for chunk in one.stream(blob)) == big
            assert tracemalloc.get_traced_memory()[1] - before < 8 << 20
    finally:
        tracemalloc.stop()


def test_a_disk_that_is_full_is_not_the_registry_s_fault(stub, store, monkeypatch):
    stub.put("v1", BLOB * 2)

    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("igrun.oci.ingest.os.statvfs", full)

    with open_(stub) as one, pytest.raises(GadgetError) as caught:
        copy(one, store, f"{stub.address}/g:v1")

    assert "No space left" in str(caught.value)
    assert not isinstance(caught.value, RegistryError)
    assert len(stub.asked("GET", Descriptor.of("", BLOB * 2).digest)) <= 1


# ---------------------------------------------------------------------------------------------- manifests


def test_a_manifest_of_another_digest_is_refused(stub):
    root = stub.put("v1", b"x")
    stub.on("GET", root.digest, answer(200, b'{"manifests":[]}', Content_Type=INDEX))

    with open_(stub) as one, pytest.raises(ImageError, match="its digest is"):
        one.read(root)


def test_a_huge_manifest_is_refused(stub):
    stub.on("GET", "/manifests/", sends(lambda: (b" " * 65536 for _ in range(1000)), Content_Type=INDEX))

    with open_(stub) as one, pytest.raises(RegistryError, match="larger than 4194304"):
        one.resolve("v1")


@pytest.mark.parametrize("size", [0, 10, 1 << 40])
def test_a_manifest_whose_size_is_a_lie_is_refused(stub, size):
    root = stub.put("v1", b"x")
    lie = Descriptor(root.media_type, root.digest, size)

    with open_(stub) as one, pytest.raises(ImageError):
        one.read(lie)


def test_a_blob_that_claims_to_be_huge_is_not_read_into_memory(stub):
    with open_(stub) as one, pytest.raises(ImageError, match="too large"):
        one.read(Descriptor("application/note", f"sha256:{'0' * 64}", 1 << 50))
    assert stub.requests == []


@pytest.mark.parametrize(
    ("header", "body", "kind"),
    [
        ("text/html", b'{"mediaType":"%s","manifests":[]}' % INDEX.encode(), INDEX),
        (INDEX, b'{"mediaType":"%s","config":{}}' % MANIFEST.encode(), MANIFEST),
        ("application/json", b'{"manifests":[]}', INDEX),
        ("", b'{"config":{}}', MANIFEST),
        (MANIFEST + "; charset=utf-8", b'{"config":{}}', MANIFEST),
    ],
)
def test_what_a_manifest_says_it_is_counts_more_than_what_the_registry_says(stub, header, body, kind):
    stub.on("GET", "/manifests/", answer(200, body, Content_Type=header))

    with open_(stub) as one:
        assert one.resolve("v1").media_type == kind


@pytest.mark.parametrize("body", [b"", b"<html>", b"[" * 100_000, b"7", b'{"mediaType":5}', b"\xff\xfe", b"9" * 5000])
def test_what_is_no_manifest_is_an_error(stub, body):
    stub.on("GET", "/manifests/", answer(200, body, Content_Type=INDEX))

    with open_(stub) as one, pytest.raises(ImageError):
        one.resolve("v1")


def test_a_lie_about_the_media_type_does_not_copy(stub, store):
    inner = stub.manifest(Index(()).to_bytes(), INDEX)
    stub.manifest(Index((Descriptor(MANIFEST, inner.digest, inner.size),)).to_bytes(), INDEX, "v1")

    with open_(stub) as one, pytest.raises(ImageError, match="listed as"):
        copy(one, store, f"{stub.address}/g:v1")


def test_the_name_is_asked_for_once(stub, store):
    stub.put("v1", BLOB)
    with open_(stub) as one:
        copy(one, store, f"{stub.address}/g:v1")

    assert len(stub.asked("GET", "/manifests/v1$")) == 1


# ---------------------------------------------------------------------------------------------- uploads


def test_a_blob_is_sent_in_one_piece(stub):
    blob = sent(stub)

    assert stub.blobs[blob.digest] == BLOB
    assert [one.method for one in stub.requests] == ["POST", "PUT"]


@pytest.mark.parametrize("size", [0, 1, 99, 100, 250])
def test_a_registry_may_want_pieces(stub, monkeypatch, size):
    monkeypatch.setattr(uploads, "PIECE", 100)
    stub.uploads = "pieces"
    blob = sent(stub, BLOB[:size])

    assert stub.blobs[blob.digest] == BLOB[:size]
    pieces = [one.headers["Content-Range"] for one in stub.asked("PATCH")]
    assert pieces == [f"{at}-{min(at + 100, size) - 1}" for at in range(0, size, 100)]


def test_a_registry_may_want_larger_pieces(stub, monkeypatch):
    monkeypatch.setattr(uploads, "PIECE", 100)
    stub.uploads, stub.smallest = "pieces", "700000"

    assert sent(stub).digest in stub.blobs
    assert [len(one.headers["Content-Range"]) for one in stub.asked("PATCH")] == [
        len("0-699999"),
        len("700000-1048575"),
    ]


@pytest.mark.parametrize("smallest", ["", "-1", "many", "9" * 5000, "²", "0x10", "1e3"])
def test_a_senseless_smallest_piece_is_none(stub, smallest):
    stub.uploads, stub.smallest = "pieces", smallest

    assert sent(stub).digest in stub.blobs


@pytest.mark.parametrize("form", ["relative", "whole", "with a query", "another scheme"])
def test_the_place_of_an_upload_may_be_told_in_every_way(stub, form):
    ways = {
        "relative": lambda path: path,
        "whole": lambda path: stub.url + path,
        "with a query": lambda path: f"{path}?_state=a%2Bb%3D&x=%20",
        "another scheme": lambda path: f"https://{stub.address}{path}",
    }
    stub.where = ways[form]

    assert sent(stub).digest in stub.blobs
    if form == "with a query":
        assert stub.asked("PUT")[0].path.partition("?")[2].startswith("_state=a%2Bb%3D&x=%20&digest=sha256%3A")


def test_an_upload_may_go_to_another_host_without_our_name(stub, mirror):
    stub.user, stub.password = "somebody", "s3cret-word"
    stub.where = lambda path: f"{mirror.url}{path}"
    mirror.parts["0"] = b""
    access = Access(authfile="/nonexistent", plain_http=True, env={"HOME": "/nonexistent"})
    reference = Reference.parse(f"{stub.address}/g:v1")
    from igrun.oci.credentials import Credential
    from igrun.oci.transport import Client

    with Repository.open(reference, access) as one:
        one._home.client = Client(one._endpoint, access, Credential("somebody", "s3cret-word"))
        one.receive(Descriptor.of("", BLOB), lambda start: iter((BLOB[start:],)))

    assert Descriptor.of("", BLOB).digest in mirror.blobs
    assert "Authorization" in stub.requests[-1].headers
    assert all("Authorization" not in request.headers for request in mirror.requests)


@pytest.mark.parametrize("where", ["", "ftp://x/", "http://[", "http://a\\@b/"])
def test_an_upload_without_a_place_is_an_error(stub, where):
    stub.where = lambda path: where

    with pytest.raises(RegistryError, match="where the blob is to be sent"):
        sent(stub)


def test_an_upload_that_breaks_begins_anew(stub):
    stub.on("PUT", "/uploads/", swallow(5000), times=2)

    assert sent(stub).digest in stub.blobs
    assert len(stub.asked("POST")) == 3
    assert len({one.path for one in stub.asked("PUT")}) == 3


def test_a_large_upload_that_breaks_goes_in_pieces(stub, monkeypatch):
    monkeypatch.setattr(uploads, "PIECE", 500_000)
    stub.on("PUT", "/uploads/", swallow(5000), times=1)

    assert sent(stub).digest in stub.blobs
    assert len(stub.asked("PATCH")) == 3


def test_a_piece_that_breaks_is_not_sent_twice_to_the_same_upload(stub, monkeypatch):
    monkeypatch.setattr(uploads, "PIECE", 500_000)
    stub.uploads = "pieces"
    stub.on("PATCH", "", gone, times=1)

    assert sent(stub).digest in stub.blobs
    assert len({(one.path, one.headers["Content-Range"]) for one in stub.asked("PATCH")}) == len(stub.asked("PATCH"))


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_tired_registry_gets_the_upload_later(stub, quick, status):
    stub.on("PUT", "/uploads/", answer(status, Retry_After="7"), times=2)

    assert sent(stub).digest in stub.blobs
    assert quick == [7, 7]


def test_an_upload_is_not_sent_for_ever(stub):
    stub.on("PUT", "/uploads/", gone)

    with pytest.raises(RegistryError, match="cannot reach"):
        sent(stub)
    assert len(stub.asked("PUT")) == 5


def test_a_registry_that_takes_it_in_no_way_is_told(stub):
    stub.on("PUT", "/uploads/", answer(405, b'{"errors":[{"code":"UNSUPPORTED","message":"not here"}]}'))

    with pytest.raises(RegistryError, match=r"refused \(not here\) \[405\]"):
        sent(stub)


def test_a_refused_upload_is_told(stub):
    stub.on("POST", "/uploads/", answer(403, b'{"errors":[{"code":"DENIED","message":"read only"}]}'))

    with pytest.raises(RegistryError, match="forbidden") as caught:
        sent(stub)
    assert (caught.value.status, caught.value.code, caught.value.detail) == (403, "DENIED", "read only")


def test_a_forgotten_upload_begins_anew(stub):
    stub.on("PUT", "/uploads/", answer(400, b'{"errors":[{"code":"BLOB_UPLOAD_INVALID"}]}'), times=1)

    assert sent(stub).digest in stub.blobs


def test_a_token_may_expire_before_the_upload(stub):
    stub.bearer = True
    stub.on("PUT", "/uploads/", lambda handler: stub.dead.update(stub.tokens) or False, times=1)

    assert sent(stub).digest in stub.blobs
    assert len(stub.tokens) == 2


@pytest.mark.parametrize("chunks", [[b"a"], [b"a", b"bcd"], [b"abc", b"d"], [], [b"", b"a"], [b"abcd"]])
@pytest.mark.parametrize("way", ["any", "pieces"])
def test_a_source_with_more_or_less_than_it_says_is_told(stub, chunks, way):
    stub.uploads = way
    blob = Descriptor.of("application/layer", b"abc")

    with open_(stub) as one, pytest.raises(ImageError, match="than it says"):
        one.receive(blob, lambda start: iter(chunks))
    assert stub.blobs == {}


@pytest.mark.parametrize(
    "error", [OSError(5, "I/O error"), BrokenPipeError(32, "pipe"), RegistryError("x", code="BROKEN")]
)
def test_an_error_of_the_source_is_its_own_and_sent_once(stub, error):
    asked = []

    def stream(start: int) -> Iterator[bytes]:
        asked.append(start)
        yield b"a"
        raise error

    with open_(stub) as one, pytest.raises(type(error)) as caught:
        one.receive(Descriptor.of("", b"abc"), stream)

    assert caught.value is error
    assert asked == [0]


@given(data=some.binary(max_size=300), sizes=some.lists(some.integers(0, 50), max_size=9), block=some.integers(1, 99))
def test_a_stream_is_read_like_a_file(data, sizes, block):
    def stream(start: int) -> Iterator[bytes]:
        at = start
        for size in [*sizes, len(data)]:
            yield data[at : at + size]
            at += size

    body = Sending(stream, len(data))
    read = []
    while part := body.read(block):
        assert len(part) <= block
        read.append(part)

    assert b"".join(read) == data
    with pytest.raises(SourceFailed):
        Sending(stream, len(data) + 1).exactly(len(data) + 1)


def test_what_is_there_is_not_sent(stub, store):
    root = image(store, BLOB)
    with open_(stub) as one:
        copy(store, one, root, f"{stub.address}/g:v1")
    before = len(stub.asked("POST"))
    with open_(stub) as one:
        copy(store, one, root, f"{stub.address}/g:v1")

    assert (before, len(stub.asked("POST"))) == (2, 2)


@pytest.mark.parametrize("status", [403, 405])
def test_who_may_write_but_not_look_sends_all(stub, store, status):
    root = image(store, BLOB)
    stub.on("HEAD", "", answer(status))

    with open_(stub) as one:
        copy(store, one, root, f"{stub.address}/g:v1", referrers=False)
    assert stub.manifests["v1"][1] == store.read(root)


def test_a_large_upload_takes_little_memory(stub):
    size = 64 << 20
    stub.on("PUT", "/uploads/", lambda h: all(h.rfile.read(1 << 16) for _ in range(size >> 16)) and h.answer(201))
    tracemalloc.start()
    try:
        with open_(stub) as one:
            one.receive(
                Descriptor("", f"sha256:{'0' * 64}", size), lambda start: (bytes(1 << 20) for _ in range(size >> 20))
            )
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


# ---------------------------------------------------------------------------------------------- mounts


@pytest.mark.parametrize(("status", "mounted"), [(201, True), (202, False), (400, False), (405, False), (404, False)])
def test_a_mount_may_be_taken_or_not(stub, status, mounted):
    stub.mounts = status
    blob = stub.blob(BLOB)
    with open_(stub, "a") as one, open_(stub, "b/c") as two:
        assert two.mount(blob, one) is mounted

    assert stub.requests[0].path == f"/v2/b/c/blobs/uploads/?mount={blob.digest.replace(':', '%3A')}&from=a"
    assert len(stub.parts) == 0, "an upload that nobody ends is taken back"


def test_a_mount_asks_for_both_repositories(stub):
    stub.bearer, stub.mounts = True, 201
    with open_(stub, "a") as one, open_(stub, "b") as two:
        assert two.mount(stub.blob(BLOB), one)

    assert next(iter(stub.tokens.values()))[:2] == ["repository:b:pull,push", "repository:a:pull"]


def test_nothing_is_mounted_from_elsewhere(stub, mirror, store):
    with open_(stub) as one, open_(mirror) as two:
        assert not one.mount(stub.blob(BLOB), two)
        assert not one.mount(stub.blob(BLOB), store)
        assert not one.mount(stub.blob(BLOB), one)
    assert stub.requests == []


# ---------------------------------------------------------------------------------------------- referrers


@pytest.mark.parametrize("lists", [0, 1, 2])
def test_the_api_lists_what_is_about_an_image_page_by_page(stub, lists):
    root = stub.put("v1", b"x")
    found = {stub.about(root, text).digest for text in (b"1", b"2", b"3", b"4", b"5")}
    stub.lists = lists

    with open_(stub) as one:
        assert {referrer.descriptor.digest for referrer in one.referrers(root)} == found


def test_without_the_api_a_tag_lists_it_and_the_api_is_asked_once(stub, store):
    root = image(store, b"x")
    one_, two = about(store, root, b"1"), about(store, root, b"2")
    with open_(stub) as one:
        copy(store, one, root, f"{stub.address}/g:v1")
        assert {found.descriptor.digest for found in one.referrers(root)} == {one_.digest, two.digest}

    kind, data = stub.manifests[f"sha256-{root.digest[7:]}"]
    assert kind == INDEX
    assert [entry["artifactType"] for entry in json.loads(data)["manifests"]] == [
        "application/vnd.dev.cosign.artifact.sig.v1+json"
    ] * 2
    assert len(stub.asked("GET", "/referrers/")) == 1


def test_a_registry_that_takes_note_of_subjects_gets_no_tag(stub, store):
    root = image(store, b"x")
    about(store, root, b"1")
    stub.subjects = True
    with open_(stub) as one:
        copy(store, one, root, f"{stub.address}/g:v1")

    assert f"sha256-{root.digest[7:]}" not in stub.manifests
    assert not stub.asked("GET", "/referrers/")


def test_signatures_of_cosign_are_found_by_their_tags(stub, store):
    root = image(store, b"x")
    legacy(store, root)
    with open_(stub) as one:
        copy(store, one, root, f"{stub.address}/g:v1")
        found = one.referrers(root)

    assert [referrer.tag for referrer in found] == [f"sha256-{root.digest[7:]}.sig"]


def test_what_is_about_a_referrer_is_not_looked_for_by_cosign_s_tags(stub, store):
    root = stub.put("v1", b"x")
    stub.about(root, b"1")
    stub.lists = 0
    with open_(stub) as one:
        copy(one, store, f"{stub.address}/g:v1")

    # an index and its manifest, three tags each
    assert len(stub.asked("GET", r"/manifests/sha256-.*\.")) == 6
    assert len(stub.asked("GET", "/referrers/")) == 3


@pytest.mark.parametrize("link", ['<{path}>; rel="next"', '</v2/other?x=1>; rel="next"', '<?n=1>; rel = "next"'])
def test_a_list_that_leads_in_circles_ends(stub, link):
    root = stub.put("v1", b"x")
    stub.on(
        "GET",
        "/referrers/|/other",
        lambda h: answer(200, Index(()).to_bytes(), Content_Type=INDEX, Link=link.replace("{path}", h.path))(h),
    )

    with open_(stub) as one:
        assert one.referrers(root) == ()


def test_a_list_without_an_end_is_an_error(stub):
    root = stub.put("v1", b"x")
    stub.on(
        "GET",
        "/referrers/",
        lambda h: answer(200, Index(()).to_bytes(), Content_Type=INDEX, Link=f'<?n={len(stub.requests)}>; rel="next"')(
            h
        ),
    )

    with open_(stub) as one, pytest.raises(ImageError, match="no end"):
        one.referrers(root)


@pytest.mark.parametrize(
    "link", ["", "<", "<>", '<http://[>; rel="next"', "x" * 99_999, '<a b>; rel="next"', '<x>;rel="prev"']
)
def test_a_senseless_link_is_none(link):
    assert following(link, "/v2/g/referrers/x") in ("", "/v2/g/referrers/x")


def test_a_link_stays_at_the_registry():
    assert following('<https://evil.example/v2/x?n=1>; rel="next"', "/v2/g") == "/v2/x?n=1"


@pytest.mark.parametrize("kind", ["text/html", "", "application/vnd.docker.distribution.manifest.v2+json"])
def test_a_page_of_something_else_is_no_list(stub, kind):
    root = stub.put("v1", b"x")
    stub.on("GET", "/referrers/", answer(200, b"<html>sign in", Content_Type=kind))

    with open_(stub) as one:
        assert one.referrers(root) == ()


def test_a_list_that_is_none_is_an_error(stub):
    root = stub.put("v1", b"x")
    stub.on("GET", "/referrers/", answer(200, b'{"manifests":[{"digest":"x"}]}', Content_Type=INDEX))

    with open_(stub) as one, pytest.raises(ImageError):
        one.referrers(root)


def test_a_referrer_s_tag_cannot_be_a_path(stub):
    root = stub.put("v1", b"x")

    with open_(stub) as one, pytest.raises(ImageError, match="no tag"):
        one.refer(root, Referrer(root, "../../x"))


# ---------------------------------------------------------------------------------------------- mirrors


def test_a_mirror_is_asked_first_and_the_registry_not_at_all(stub, mirror, store):
    mirror.put("v1", BLOB)
    with open_(stub, "g", f"{mirror.address}/cache") as one:
        copy(one, store, f"{stub.address}/g:v1", referrers=False)

    assert stub.requests == []
    assert mirror.asked("GET", "/v2/cache/g/manifests/v1")


@pytest.mark.parametrize("fault", ["404", "403", "500", "down", "cut", "lies", "too much", "too little", "html"])
def test_a_mirror_that_is_of_no_use_is_passed_over(stub, mirror, store, fault, caplog):
    caplog.set_level(logging.INFO)
    caplog.set_level(logging.INFO, "igrun")  # which `ig` may have set
    root = stub.put("v1", BLOB)
    other = mirror.put("v1", BLOB)
    assert other == root
    faults = {
        "403": answer(403),
        "500": answer(500),
        "cut": gone,
        "lies": answer(200, BLOB[::-1]),
        "too much": answer(200, BLOB + b"x"),
        "too little": answer(200, BLOB[:-1]),
        "html": answer(200, b"<html>"),
    }
    if fault == "404":
        mirror.blobs.clear()
    if fault in faults:
        mirror.on("GET", "/blobs/", faults[fault])
    address = "127.0.0.1:9" if fault == "down" else mirror.address
    with open_(stub, "g", address) as one:
        assert copy(one, store, f"{stub.address}/g:v1").digest == root.digest

    assert b"".join(store.stream(Descriptor.of("", BLOB))) == BLOB
    assert f"mirror {address} passed over" in caplog.text


def test_a_mirror_that_lies_about_a_manifest_is_passed_over(stub, mirror):
    root = stub.put("v1", BLOB)
    mirror.on("GET", "/manifests/", answer(200, b'{"manifests":[]}', Content_Type=INDEX))

    with open_(stub, "g", mirror.address) as one:
        assert one.read(root) == stub.manifests["v1"][1]


def test_a_mirror_that_is_down_is_asked_once(stub):
    root = stub.put("v1", BLOB, b"2", b"3")
    with open_(stub, "g", "127.0.0.1:9") as one:
        asked = []
        one._passed_over = lambda source, error, was=one._passed_over: asked.append(source) or was(source, error)
        for blob in (root, Descriptor.of("", BLOB), Descriptor.of("", b"2")):
            one.read(blob)

    assert len(asked) == 1


def test_nothing_is_written_to_a_mirror(stub, mirror, store):
    root = image(store, BLOB)
    about(store, root)
    with open_(stub, "g", mirror.address) as one:
        copy(store, one, root, f"{stub.address}/g:v1")

    assert stub.manifests["v1"]
    assert mirror.requests == []


def test_a_mirror_without_signatures_does_not_hide_those_of_the_registry(stub, mirror):
    root = stub.put("v1", b"x")
    mirror.put("v1", b"x")
    signature = stub.about(root, b"1")
    stub.lists = 0

    with open_(stub, "g", mirror.address) as one:
        assert [found.descriptor.digest for found in one.referrers(root)] == [signature.digest]


def test_behind_mirrors_the_registry_need_not_be_reached(mirror, store):
    mirror.put("v1", b"x")
    table = {"127.0.0.1:9": {"mirrors": [mirror.address], "insecure": True}}
    access = Access(authfile="/nonexistent", plain_http=True, registries=table, env={"HOME": "/nonexistent"})

    with Repository.open(Reference.parse("127.0.0.1:9/g:v1"), access) as one:
        copy(one, store, "127.0.0.1:9/g:v1")
        with pytest.raises(NotFoundError) as caught:
            one.resolve("v2")
    assert "cannot reach registry 127.0.0.1:9" in caught.value.hint


# ---------------------------------------------------------------------------------------------- together


def test_blobs_come_at_once_with_one_token(stub, store):
    stub.bearer = True
    stub.put("v1", *(BLOB + bytes([one]) for one in range(8)))
    # the name is asked for with a token, which all threads use then
    with open_(stub) as one:
        copy(one, store, f"{stub.address}/g:v1", referrers=False)

    assert len(stub.tokens) == 1


def test_threads_open_one_connection_pool(stub, monkeypatch):
    made = []
    real = registry.Source
    monkeypatch.setattr(registry, "Source", lambda *given: made.append(given) or real(*given))
    with open_(stub) as one:
        threads = [threading.Thread(target=lambda: one._home) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert len(made) == 1


def test_a_name_of_another_repository_is_not_here(stub):
    with open_(stub) as one, pytest.raises(NotFoundError, match="is not in"):
        one.resolve("ghcr.io/other/thing:v1")


def test_a_name_with_another_digest_is_refused(stub):
    root = stub.put("v1", b"x")
    with open_(stub) as one, pytest.raises(ImageError, match="cannot be a name of"):
        one.tag(root, f"{stub.address}/g:v2@sha256:{'0' * 64}")


def test_folders_with_dots_and_colons_stay_in_their_place(stub, tmp_path: Path):
    stub.put("v1", b"x")
    with open_(stub, "my.org/a_b/c-d") as one:
        one.resolve("v1")

    assert stub.requests[-1].path == "/v2/my.org/a_b/c-d/manifests/v1"
