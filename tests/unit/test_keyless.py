"""Signatures known by a certificate: bundles, and the annotations of older versions of cosign."""

import json
import re
import sys
from hashlib import sha256

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from igrun.errors import ParamError, SignatureError
from igrun.oci.annotated import BUNDLE as ENTRY
from igrun.oci.model import EMPTY, MANIFEST, Descriptor, Manifest, Referrer
from igrun.oci.sign import payload, statement
from igrun.oci.signature import BUNDLE, CERTIFICATE, IN_TOTO, SIGNATURE, SIMPLE_SIGNING, authenticated
from igrun.oci.trust import Trust
from tests.certified import (
    IDENTITY,
    ISSUER,
    SHA256,
    Sigstore,
    b64,
    envelope_record,
    hashed_record,
    new,
    pem,
)
from tests.memory import Memory

SIGSTORE = Sigstore()
KEY = new()
FORMATS = ("statement", "message", "annotations")


@pytest.fixture
def root(tmp_path):
    path = tmp_path / "trusted_root.json"
    path.write_text(json.dumps(SIGSTORE.trusted_root()))
    return str(path)


@pytest.fixture
def trust(root):
    return Trust(public_keys=(), identity=IDENTITY, issuer=ISSUER, trusted_root=root)


@pytest.fixture
def content():
    return Memory()


def attach(content, image, layer, artifact_type, tag=""):
    manifest = Manifest(content.write(EMPTY, b"{}"), (layer,), artifact_type=artifact_type, subject=image)
    written = content.write(MANIFEST, manifest.to_bytes())
    content.refer(image, Referrer(Descriptor(MANIFEST, written.digest, written.size, artifact_type=artifact_type), tag))


def attach_bundle(content, image, certificate, entry, more) -> None:
    material = {"certificate": {"rawBytes": b64(certificate.public_bytes(Encoding.DER))}, "tlogEntries": [entry]}
    data = json.dumps({"mediaType": BUNDLE, "verificationMaterial": material, **more}).encode()
    attach(content, image, content.write(BUNDLE, data), BUNDLE)


def signed(content, image, format, certificate, key=KEY, sigstore=SIGSTORE, record=None):
    """Sign an image by a certificate. record: what the log tells instead"""
    if format == "annotations":
        data = payload(image.digest, "example.com/trace")
        signature = key.sign(data, SHA256)
        entry, promise = sigstore.promised(record or hashed_record(data, signature, certificate))
        said = {
            SIGNATURE: b64(signature),
            CERTIFICATE: pem(certificate),
            ENTRY: json.dumps({"SignedEntryTimestamp": b64(promise), "Payload": entry}),
        }
        attach(content, image, content.write(SIMPLE_SIGNING, data, said), "", f"sha256-{image.digest[7:]}.sig")
    elif format == "message":
        data = content.read(image)
        signature = key.sign(data, SHA256)
        entry = sigstore.proven(record or hashed_record(data, signature, certificate))
        digest = {"algorithm": "SHA2_256", "digest": b64(sha256(data).digest())}
        more = {"messageSignature": {"messageDigest": digest, "signature": b64(signature)}}
        attach_bundle(content, image, certificate, entry, more)
    else:
        data = statement(image.digest)
        signature = key.sign(authenticated(IN_TOTO, data), SHA256)
        entry = sigstore.proven(record or envelope_record(data, signature, certificate))
        envelope = {"payload": b64(data), "payloadType": IN_TOTO, "signatures": [{"sig": b64(signature)}]}
        attach_bundle(content, image, certificate, entry, {"dsseEnvelope": envelope})


def refused(trust, content, image) -> str:
    with pytest.raises(SignatureError) as caught:
        trust.verify(content, image)
    return str(caught.value)


# ---------------------------------------------------------------------------------------------- good ones


@pytest.mark.parametrize("format", FORMATS)
def test_a_signature_of_the_identity_is_good_long_after_its_certificate_has_expired(content, trust, format):
    image = content.image()
    signed(content, image, format, SIGSTORE.issue(KEY))

    found = trust.verify(content, image)

    assert found.by == f"{IDENTITY} ({ISSUER})"
    assert found.format == ("cosign tag" if format == "annotations" else "sigstore bundle")


def test_nothing_is_asked_over_the_network(content, trust, monkeypatch):
    import socket

    def refuse(*arguments):
        raise AssertionError("a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    image = content.image()
    signed(content, image, "statement", SIGSTORE.issue(KEY))

    assert trust.verify(content, image)


# ---------------------------------------------------------------------------------------------- bad ones


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("who", [{"identity": "https://example.com/other"}, {"issuer": "https://evil.example.com"}])
def test_a_signature_of_somebody_else_is_refused(content, trust, format, who):
    image = content.image()
    signed(content, image, format, SIGSTORE.issue(KEY, **who))

    assert re.search("SANs do not match|its identity was not told by", refused(trust, content, image))


@pytest.mark.parametrize("format", FORMATS)
def test_a_certificate_of_another_authority_is_refused(content, trust, format):
    other = Sigstore()
    other.log, other.certificates = SIGSTORE.log, SIGSTORE.certificates
    image = content.image()
    signed(content, image, format, other.issue(KEY))

    assert re.search("certificate chain: validation failed|no trusted authority issued", refused(trust, content, image))


@pytest.mark.parametrize("format", FORMATS)
def test_an_entry_of_another_log_is_refused(content, trust, format):
    other = Sigstore()
    image = content.image()
    signed(content, image, format, SIGSTORE.issue(KEY), sigstore=other)

    assert re.search("checkpoint: invalid signature|no trusted log promised", refused(trust, content, image))


@pytest.mark.parametrize("format", FORMATS)
def test_an_entry_about_something_else_is_refused(content, trust, format):
    image = content.image()
    certificate = SIGSTORE.issue(KEY)
    kind = envelope_record if format == "statement" else hashed_record
    signed(content, image, format, certificate, record=kind(b"other", b"signature", certificate))

    assert re.search(
        "payload hash does not match|is inconsistent|is about another signature", refused(trust, content, image)
    )


@pytest.mark.parametrize("format", FORMATS)
def test_a_certificate_that_no_log_has_is_refused(content, trust, format):
    image = content.image()
    signed(content, image, format, SIGSTORE.issue(KEY, logged=False))

    assert re.search("verify SCT|SCT list", refused(trust, content, image))


@pytest.mark.parametrize("format", FORMATS)
def test_a_certificate_for_other_things_is_refused(content, trust, format):
    image = content.image()
    signed(content, image, format, SIGSTORE.issue(KEY, use=ExtendedKeyUsageOID.CLIENT_AUTH))

    assert re.search("code signing|for signing code", refused(trust, content, image))


@pytest.mark.parametrize("format", FORMATS)
def test_a_signature_of_another_key_is_refused(content, trust, format):
    image = content.image()
    signed(content, image, format, SIGSTORE.issue(KEY), key=new())

    assert re.search(
        "invalid signature|Signature is invalid|is not that of the certificate", refused(trust, content, image)
    )


@pytest.mark.parametrize("time", ["99999999999999999", "-1", "x", None])
@pytest.mark.parametrize("format", ["statement", "message"])
def test_an_impossible_time_is_refused(content, trust, format, time):
    image = content.image()
    signed(content, image, format, SIGSTORE.issue(KEY))
    (referrer,) = content.about.pop(image.digest)
    bundle = json.loads(content.read(Manifest.parse(content.read(referrer.descriptor)).layers[0]))
    bundle["verificationMaterial"]["tlogEntries"][0]["integratedTime"] = time
    attach(content, image, content.write(BUNDLE, json.dumps(bundle).encode()), BUNDLE)

    assert "the certificate's signature is refused" in refused(trust, content, image)


@pytest.mark.parametrize("change", [{ENTRY: "{}"}, {ENTRY: "x"}, {ENTRY: ""}, {CERTIFICATE: "x"}])
def test_wrong_annotations_are_refused(content, trust, change):
    image = content.image()
    signed(content, image, "annotations", SIGSTORE.issue(KEY))
    (referrer,) = content.about.pop(image.digest)
    layer = Manifest.parse(content.read(referrer.descriptor)).layers[0]
    attach(content, image, layer.with_annotations(change), "", referrer.tag)

    assert "cosign tag: " in refused(trust, content, image)


def test_without_an_identity_a_certificate_is_not_looked_at(content, trust):
    image = content.image()
    signed(content, image, "statement", SIGSTORE.issue(KEY))

    assert "certificate-identity is not given" in refused(Trust(), content, image)


def test_the_public_root_does_not_trust_a_private_authority(content):
    image = content.image()
    signed(content, image, "statement", SIGSTORE.issue(KEY))

    assert "refused" in refused(Trust(public_keys=(), identity=IDENTITY, issuer=ISSUER), content, image)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"mediaType": "x"}', None])
def test_a_wrong_trusted_root_is_told(content, tmp_path, text):
    path = tmp_path / "root.json"
    if text is not None:
        path.write_text(text)
    image = content.image()
    signed(content, image, "statement", SIGSTORE.issue(KEY))

    with pytest.raises(ParamError, match="trusted-root: ") as caught:
        Trust(public_keys=(), identity=IDENTITY, issuer=ISSUER, trusted_root=str(path)).verify(content, image)

    assert caught.value.key == "trusted-root"


def test_without_the_library_the_error_names_the_extra(content, trust, monkeypatch):
    monkeypatch.setitem(sys.modules, "sigstore.errors", None)
    image = content.image()
    signed(content, image, "statement", SIGSTORE.issue(KEY))

    assert "pip install 'igrun[sign]'" in refused(trust, content, image)


def test_a_key_of_another_kind_in_a_certificate_is_refused_without_a_crash(content, trust):
    for format in FORMATS:
        image = content.image(format.encode())
        signed(content, image, format, SIGSTORE.issue(ed25519.Ed25519PrivateKey.generate()))

        assert "the certificate's signature is refused" in refused(trust, content, image)
