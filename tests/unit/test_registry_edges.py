"""Uploads that are begun anew, mounts that are refused, referrers from several threads, registries without TLS."""

import json
import os
import ssl
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from igrun.errors import RegistryError
from igrun.oci import transport
from igrun.oci.access import Access
from igrun.oci.model import Descriptor, Reference, Referrer
from igrun.oci.registry import Repository
from tests.registry.stub import Stub, answer, basic

DATA = os.urandom(3 << 20)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(transport, "FIRST_PAUSE_S", 0.001)


def repository(stub, tmp_path, name="g", *, insecure=True):
    file = tmp_path / "auth.json"
    entry = {"auth": basic(stub.user, stub.password).removeprefix("Basic ")} if stub.user else {}
    file.write_text(json.dumps({"auths": {stub.address: entry}}))
    hosts = frozenset([stub.address] if insecure else [])
    access = Access(authfile=str(file), given=True, insecure=hosts)
    return Repository.open(Reference.parse(f"{stub.address}/{name}:v1"), access)


@pytest.mark.parametrize(
    "said",
    [answer(404, b'{"errors":[{"code":"BLOB_UPLOAD_UNKNOWN"}]}'), answer(416), answer(503)],
    ids=["forgotten", "out of step", "tired"],
)
def test_an_upload_whose_piece_is_refused_is_begun_anew(tmp_path, said):
    with Stub(uploads="pieces") as stub, repository(stub, tmp_path) as home:
        stub.on("PATCH", "/uploads/", said, times=1)

        sent = home.write("application/layer", DATA)

        assert stub.blobs[sent.digest] == DATA


def test_a_piece_that_is_forbidden_is_not_sent_again(tmp_path):
    with Stub(uploads="pieces") as stub, repository(stub, tmp_path) as home:
        stub.on("PATCH", "/uploads/", answer(403))

        with pytest.raises(RegistryError) as caught:
            home.write("application/layer", DATA)

        assert caught.value.status == 403
        assert len(stub.asked("PATCH")) == 1


def test_a_registry_that_calls_whole_blobs_unsupported_gets_pieces(tmp_path):
    with Stub(uploads="pieces") as stub, repository(stub, tmp_path) as home:
        stub.on("PUT", "/uploads/", answer(400, b'{"errors":[{"code":"UNSUPPORTED"}]}'), times=1)

        sent = home.write("application/layer", DATA)

        assert stub.blobs[sent.digest] == DATA


def test_a_blob_of_a_repository_that_no_token_is_given_for_is_not_mounted(tmp_path):
    with Stub(user="bob", password="s3cr3t", bearer=True) as stub:
        stub.on("GET", "/token.*other", answer(403))
        with repository(stub, tmp_path) as home, repository(stub, tmp_path, "other") as other:
            assert not home.mount(Descriptor.of("application/layer", DATA), other)
            assert home.write("application/layer", DATA).digest in stub.blobs


def test_threads_that_refer_at_once_lose_nothing_of_the_fallback_list(tmp_path):
    with Stub() as stub, repository(stub, tmp_path) as home:
        image = stub.put("v1", b"layer")
        found = [stub.about(image, bytes([number])) for number in range(8)]

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda one: home.refer(image, Referrer(one)), found))

        assert {one.descriptor.digest for one in home.referrers(image)} == {one.digest for one in found}


def test_the_error_of_a_registry_without_tls_names_the_flag_that_does_without(tmp_path):
    with Stub() as stub, repository(stub, tmp_path, insecure=False) as home:
        with pytest.raises(RegistryError) as caught:
            home.resolve("v1")

        assert f"--insecure-registries {stub.address}" in caught.value.hint


def test_the_error_of_a_registry_that_wants_a_certificate_of_ours_names_the_flags(tmp_path):
    alert = "cannot be: [SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED] tlsv13 alert certificate required"
    inner = ssl.SSLError(1, alert)
    inner.reason = "TLSV13_ALERT_CERTIFICATE_REQUIRED"
    with Stub() as stub, repository(stub, tmp_path) as home:
        error = home._home.client._failure(requests.exceptions.SSLError(inner), stub.url)

    assert "--cert-file" in error.hint
