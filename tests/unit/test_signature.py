"""Signatures of cosign's formats: which are good, and what is said about those that are not."""

import base64
import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from igrun.errors import ImageError, ParamError, SignatureError
from igrun.oci import keys
from igrun.oci.model import EMPTY, MANIFEST, Descriptor, Manifest, Reference, Referrer
from igrun.oci.sign import FORMATS, sign
from igrun.oci.signature import (
    BUNDLE,
    IN_TOTO,
    MOST_SIGNATURES,
    SIGNATURE,
    SIGNED,
    SIMPLE_SIGNING,
    authenticated,
    decoded,
    enveloped,
)
from igrun.oci.trust import Trust
from tests.memory import Memory

NAME = Reference.parse("example.com/gadgets/trace:v1")


def pem(key) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def public(key) -> str:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


KEY = ec.generate_private_key(ec.SECP256R1())
OTHER = ec.generate_private_key(ec.SECP256R1())
TRUST = Trust(public_keys=(public(KEY),))


@pytest.fixture
def content():
    return Memory()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def refused(content, image, trust=TRUST) -> str:
    with pytest.raises(SignatureError) as caught:
        trust.verify(content, image, NAME)
    return str(caught.value)


def attach(content, image, layer, artifact_type, tag="") -> Referrer:
    """A referrer of one layer."""
    manifest = Manifest(content.write(EMPTY, b"{}"), (layer,), artifact_type=artifact_type, subject=image)
    written = content.write(MANIFEST, manifest.to_bytes())
    referrer = Referrer(Descriptor(MANIFEST, written.digest, written.size, artifact_type=artifact_type), tag)
    content.refer(image, referrer)
    return referrer


def attach_bundle(content, image, bundle: dict) -> Referrer:
    return attach(content, image, content.write(BUNDLE, json.dumps(bundle).encode()), BUNDLE)


def attach_payload(content, image, payload: bytes, key=KEY) -> Referrer:
    from igrun.oci.private import PrivateKey

    layer = content.write(SIMPLE_SIGNING, payload, {SIGNATURE: b64(PrivateKey(key).sign(payload))})
    return attach(content, image, layer, "", f"sha256-{image.digest[7:]}.sig")


def signed_bundle(statement: dict, *signers, kind=IN_TOTO) -> dict:
    """A bundle with this statement, signed by each."""
    from igrun.oci.private import PrivateKey

    payload = json.dumps(statement).encode()
    signatures = [{"sig": b64(PrivateKey(one).sign(authenticated(kind, payload)))} for one in signers]
    return {
        "mediaType": BUNDLE,
        "verificationMaterial": {"publicKey": {"hint": "any"}},
        "dsseEnvelope": {"payload": b64(payload), "payloadType": kind, "signatures": signatures},
    }


def about(image, predicate=SIGNED, **more) -> dict:
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"digest": {"sha256": image.digest[7:]}}],
        "predicateType": predicate,
        "predicate": {},
        **more,
    }


# ---------------------------------------------------------------------------------------------- good ones


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    "key",
    [
        KEY,
        ec.generate_private_key(ec.SECP384R1()),
        ec.generate_private_key(ec.SECP521R1()),
        rsa.generate_private_key(65537, 2048),
        ed25519.Ed25519PrivateKey.generate(),
    ],
    ids=["P-256", "P-384", "P-521", "RSA", "Ed25519"],
)
def test_an_image_that_was_signed_is_verified(content, format, key):
    image = content.image()
    (written,) = sign(content, image, pem(key), formats=(format,), reference=NAME)

    found = Trust(public_keys=(public(key),)).verify(content, image, NAME)

    assert found.format == {"tag": "cosign tag", "referrer": "cosign referrer", "bundle": "sigstore bundle"}[format]
    assert found.by == f"key sha256:{keys.load_one(public(key), '').fingerprint}"
    assert (found.digest, found.signature) == (image.digest, written.descriptor.digest)


def test_one_good_signature_is_enough_whatever_its_format(content):
    image = content.image()
    sign(content, image, pem(OTHER), formats=("tag", "referrer"))
    attach_bundle(content, image, {"mediaType": "nonsense"})
    sign(content, image, pem(KEY), formats=("bundle",))

    assert TRUST.verify(content, image).format == "sigstore bundle"


def test_any_of_several_keys_may_have_signed(content):
    image = content.image()
    sign(content, image, pem(KEY))

    found = Trust(public_keys=(public(OTHER), public(OTHER) + public(KEY))).verify(content, image)

    assert found.by.endswith(keys.load_one(public(KEY), "").fingerprint)


def test_signing_again_keeps_the_first_signature(content):
    image = content.image()
    sign(content, image, pem(KEY), formats=("tag",))
    sign(content, image, pem(OTHER), formats=("tag",))

    for key in (KEY, OTHER):
        assert Trust(public_keys=(public(key),)).verify(content, image)


def test_one_of_several_signatures_of_an_envelope_is_enough(content):
    image = content.image()
    attach_bundle(content, image, signed_bundle(about(image), OTHER, KEY))

    assert TRUST.verify(content, image)


def test_a_bundle_may_sign_the_index_itself(content):
    from igrun.oci.private import PrivateKey

    image = content.image()
    message = {"messageDigest": {"algorithm": "SHA2_256", "digest": "ignored"}}
    message["signature"] = b64(PrivateKey(KEY).sign(content.read(image)))
    material = {"publicKey": {"hint": "any"}}
    attach_bundle(content, image, {"mediaType": BUNDLE, "verificationMaterial": material, "messageSignature": message})

    assert TRUST.verify(content, image)
    assert "was not signed" in refused(content, image, Trust(public_keys=(public(OTHER),)))


def test_a_bundle_may_have_the_names_of_its_protobuf(content):
    image = content.image()
    bundle = signed_bundle(about(image), KEY)
    envelope = bundle.pop("dsseEnvelope")
    envelope["payload_type"] = envelope.pop("payloadType")
    bundle["verification_material"] = bundle.pop("verificationMaterial")
    attach_bundle(content, image, {**bundle, "dsse_envelope": envelope})

    assert TRUST.verify(content, image)


def test_a_larger_curve_may_have_the_hash_of_older_versions(content):
    from cryptography.hazmat.primitives import hashes

    key = ec.generate_private_key(ec.SECP384R1())

    assert keys.load_one(public(key), "").signed(b"data", key.sign(b"data", ec.ECDSA(hashes.SHA256())))


def test_a_referrer_may_tell_its_type_only_in_its_manifest(content):
    image = content.image()
    sign(content, image, pem(KEY))
    content.about[image.digest] = [
        Referrer(Descriptor(MANIFEST, one.descriptor.digest, one.descriptor.size))
        for one in content.about[image.digest]
    ]

    assert TRUST.verify(content, image)


# ---------------------------------------------------------------------------------------------- bad ones


def test_an_image_without_a_signature_is_refused_with_the_next_step(content):
    with pytest.raises(SignatureError) as caught:
        TRUST.verify(content, content.image(), NAME)

    assert str(caught.value) == f'verifying gadget signature "{NAME}": signature not found'
    assert "--verify-image=false" in caught.value.hint
    assert "--public-keys" in caught.value.hint


def test_every_refusal_is_told(content):
    image = content.image()
    sign(content, image, pem(OTHER), formats=FORMATS)

    message = refused(content, image)

    for name in ("cosign tag", "cosign referrer", "sigstore bundle"):
        assert f"{name}: the image was not signed by the provided keys" in message


@pytest.mark.parametrize("format", FORMATS)
def test_the_signature_of_another_image_is_refused(content, format):
    image, another = content.image(b"one"), content.image(b"two")
    (referrer,) = sign(content, another, pem(KEY), formats=(format,))
    content.refer(image, referrer)

    assert f"it is about {another.digest}" in refused(content, image)


@pytest.mark.parametrize("format", FORMATS)
def test_a_changed_payload_is_refused(content, format):
    """The payload tells the right digest, but is not what was signed."""
    image, another = content.image(b"one"), content.image(b"two")
    (referrer,) = sign(content, another, pem(KEY), formats=(format,))
    manifest = Manifest.parse(content.read(referrer.descriptor))
    data = content.read(manifest.layers[0])
    if format == "bundle":
        bundle = json.loads(data)
        payload = base64.b64decode(bundle["dsseEnvelope"]["payload"])
        payload = payload.replace(another.digest[7:].encode(), image.digest[7:].encode())
        bundle["dsseEnvelope"]["payload"] = b64(payload)
        changed = json.dumps(bundle).encode()
    else:
        changed = data.replace(another.digest.encode(), image.digest.encode())
    layer = content.write(manifest.layers[0].media_type, changed, manifest.layers[0].annotations)
    attach(content, image, layer, manifest.artifact_type, referrer.tag)

    assert "was not signed by the provided keys" in refused(content, image)


def test_an_attestation_is_no_signature(content):
    image = content.image()
    attach_bundle(content, image, signed_bundle(about(image, "https://slsa.dev/provenance/v1"), KEY))

    assert "no signature but an attestation, 'https://slsa.dev/provenance/v1'" in refused(content, image)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"[]",
        b"{",
        b"{}",
        b'{"critical": 5}',
        b'{"critical": {"type": "cosign container image signature"}}',
        b'{"critical": {"type": "other", "image": {"docker-manifest-digest": "%s"}}}',
        b'{"critical": {"type": "cosign container image signature", "image": {"docker-manifest-digest": 1}}}',
        b"[" * 100_000,
    ],
)
def test_a_wrong_payload_is_refused_though_its_signature_is_good(content, payload):
    image = content.image()
    attach_payload(content, image, payload.replace(b"%s", image.digest.encode()))

    assert "cosign tag: " in refused(content, image)


@pytest.mark.parametrize(
    "change",
    [
        {"_type": "https://example.com/Statement"},
        {"subject": []},
        {"subject": "x"},
        {"subject": [{}]},
        {"subject": [{"digest": {"sha512": "00"}}]},
        {"predicateType": 1},
    ],
)
def test_a_wrong_statement_is_refused_though_its_signature_is_good(content, change):
    image = content.image()
    attach_bundle(content, image, signed_bundle({**about(image), **change}, KEY))

    assert "sigstore bundle: " in refused(content, image)


@pytest.mark.parametrize(
    "bundle",
    [
        {},
        {"mediaType": BUNDLE.replace("0.3", "0.3x")},
        {"mediaType": BUNDLE, "verificationMaterial": 1},
        {"mediaType": BUNDLE, "verificationMaterial": {}},
        {"mediaType": BUNDLE, "verificationMaterial": {}, "dsseEnvelope": []},
        {"mediaType": BUNDLE, "verificationMaterial": {}, "dsseEnvelope": {"payloadType": IN_TOTO, "payload": "!"}},
        {"mediaType": BUNDLE, "verificationMaterial": {}, "messageSignature": {"signature": 1}},
    ],
)
def test_a_wrong_bundle_is_refused(content, bundle):
    image = content.image()
    attach_bundle(content, image, bundle)

    assert "sigstore bundle: " in refused(content, image)


@pytest.mark.parametrize("kind", ["text/plain", "\ud800", ""])
def test_an_envelope_of_another_type_is_refused(content, kind):
    image = content.image()
    attach_bundle(content, image, signed_bundle(about(image), KEY, kind=kind))

    assert "sigstore bundle: envelope of unknown type" in refused(content, image)


def test_what_a_signature_says_cannot_write_to_the_terminal(content):
    image = content.image()
    evil = Descriptor("x", image.digest, 1, artifact_type=BUNDLE)
    content.refer(image, Referrer(evil, "\x1b[2J"))
    attach_payload(content, image, b'{"critical": {"type": "\\u001b[2J"}}')
    attach_bundle(content, image, signed_bundle(about(image, "\x1b[2J\ud800"), KEY))

    assert refused(content, image).isprintable()


def test_a_signature_that_is_missing_is_told_and_the_others_are_looked_at(content):
    image = content.image()
    (gone,) = sign(content, image, pem(KEY), formats=("tag",))
    del content.blobs[gone.descriptor.digest]

    assert f"{gone.descriptor.digest} cannot be read" in refused(content, image)

    sign(content, image, pem(KEY))
    assert TRUST.verify(content, image)


def test_a_huge_signature_is_not_read(content):
    image = content.image()
    layer = content.write(BUNDLE, b"{" + b" " * (2 << 20) + b"}")
    attach(content, image, layer, BUNDLE)

    assert "a signature at most" in refused(content, image)
    assert layer.digest not in content.read_blobs


def test_at_most_so_many_signatures_are_tried(content):
    image = content.image()
    for _ in range(MOST_SIGNATURES + 5):
        sign(content, image, pem(OTHER))
    sign(content, image, pem(KEY))

    assert f"more than {MOST_SIGNATURES} signatures" in refused(content, image)


def test_other_referrers_are_not_read(content):
    image = content.image()
    sbom = attach(content, image, content.write("application/spdx+json", b"{}"), "application/spdx+json")
    content.read_blobs.clear()

    assert "signature not found" in refused(content, image)
    assert sbom.descriptor.digest not in content.read_blobs


def test_without_anybody_to_trust_nothing_is_verified(content):
    image = content.image()
    sign(content, image, pem(KEY))

    assert "nothing to verify with" in refused(content, image, Trust(public_keys=()))


@given(st.binary(max_size=300))
def test_the_signed_bytes_of_an_envelope_tell_type_and_payload_apart(data):
    digest = "sha256:" + "0" * 64
    body = {"payload": base64.urlsafe_b64encode(data or b"x").decode().rstrip("=")}
    body |= {"payloadType": "t", "signatures": [{"sig": "AA=="}]}

    signed, signatures, problem = enveloped(body, digest)

    payload = data or b"x"
    assert signed == b"DSSEv1 1 t " + str(len(payload)).encode() + b" " + payload
    assert (signatures, problem) == ((b"\0",), "envelope of unknown type 't'")


@pytest.mark.parametrize("text", ["", None, 5, "a", "ä", "AA=A", "AA AA", "A" * 30_000])
def test_what_is_no_base64_is_refused(text):
    with pytest.raises(ImageError):
        decoded(text, "signature")


# ---------------------------------------------------------------------------------------------- keys


def test_the_built_in_key_is_trusted_unless_others_are_named():
    (key,) = keys.load(Trust().public_keys)

    assert isinstance(key.key, ec.EllipticCurvePublicKey)
    assert len(keys.load((keys.BUILT_IN, public(KEY), public(KEY)))) == 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no public key in PEM"),
        ("@cosign.pub", "'@cosign.pub' is no public key in PEM"),
        ("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----", "'PUBLIC KEY' is no public key"),
        (public(rsa.generate_private_key(65537, 1024)), "1024 bits is too weak"),
        (public(ec.generate_private_key(ec.SECP256K1())), "curve secp256k1"),
    ],
)
def test_a_wrong_public_key_is_told(text, says):
    with pytest.raises(ParamError, match=says) as caught:
        keys.load((text,))

    assert caught.value.key == "public-keys"


def test_a_private_key_given_as_public_is_not_told():
    with pytest.raises(ParamError) as caught:
        keys.load((pem(KEY),))

    assert pem(KEY).splitlines()[1] not in f"{caught.value}{caught.value.hint}{caught.value.value}"
