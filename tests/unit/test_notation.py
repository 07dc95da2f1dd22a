"""Signatures of Notation: envelopes, certificates, trust policies."""

import json
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st

from igrun.errors import ImageError, ParamError, SignatureError
from igrun.oci import cbor
from igrun.oci.cbor import Tagged
from igrun.oci.envelope import AUTHORITY, COSE, EXPIRY, JWS, PLUGIN, SCHEME, SIGNING_TIME, opened
from igrun.oci.model import Reference
from igrun.oci.policy import applicable, read_policies
from igrun.oci.sign import sign as sign_by_key
from igrun.oci.trust import Trust
from tests.memory import Memory
from tests.notarized import HOUR, NOW, Holder, attach, dumps, envelope, payload

NAME = Reference.parse("example.com/gadgets/trace:v1")
ROOT = Holder("root", ca=True)
SIGNER = Holder("signer", ROOT)
BOTH = pytest.mark.parametrize("kind", [JWS, COSE], ids=["JWS", "COSE"])
MIDDLE = Holder("middle", ROOT, ca=True, path=0)


def statement(level="strict", **change) -> dict:
    skipped = level == "skip"
    found = {
        "name": "acme",
        "registryScopes": ["*"],
        "signatureVerification": {"level": level},
        "trustStores": [] if skipped else ["ca:acme", "signingAuthority:acme"],
        "trustedIdentities": [] if skipped else ["*"],
    }
    return {**found, **change}


def document(*statements) -> str:
    return json.dumps({"version": "1.0", "trustPolicies": list(statements)})


def trust(*statements, roots=(ROOT,)) -> Trust:
    certificates = tuple(one if isinstance(one, str) else one.pem for one in roots)
    policy = document(*(statements or (statement(),)))
    return Trust(public_keys=(), notation_certificates=certificates, notation_policy=policy)


@pytest.fixture
def content():
    return Memory()


@pytest.fixture
def image(content):
    return content.image()


def refused(trust, content, image) -> str:
    with pytest.raises(SignatureError) as caught:
        trust.verify(content, image, NAME)
    return str(caught.value)


# ---------------------------------------------------------------------------------------------- good ones


@BOTH
@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP384R1()),
        ec.generate_private_key(ec.SECP521R1()),
        rsa.generate_private_key(65537, 2048),
        rsa.generate_private_key(65537, 3072),
    ],
    ids=["P-256", "P-384", "P-521", "RSA-2048", "RSA-3072"],
)
def test_a_signature_of_a_trusted_certificate_is_good(content, image, kind, key):
    attach(content, image, envelope(kind, Holder("signer", ROOT, key=key), payload(image)), kind)

    found = trust().verify(content, image, NAME)

    assert (found.format, found.by, found.warnings) == ("notation", "CN=signer,O=acme,ST=WA,C=US", ())


@BOTH
def test_there_may_be_authorities_between_root_and_signer(content, image, kind):
    attach(content, image, envelope(kind, Holder("signer", MIDDLE), payload(image)), kind)

    assert trust().verify(content, image, NAME)
    assert trust(roots=(MIDDLE,)).verify(content, image, NAME)


@BOTH
def test_a_certificate_may_be_its_own_root(content, image, kind):
    own = Holder("own")
    attach(content, image, envelope(kind, own, payload(image)), kind)

    assert trust(roots=(ROOT, own)).verify(content, image, NAME)


@BOTH
def test_the_time_of_a_signing_authority_is_believed(content, image, kind):
    old = Holder("signer", ROOT, start=NOW - HOUR, end=NOW - HOUR / 2)
    attach(content, image, envelope(kind, old, payload(image), scheme=AUTHORITY, signed_at=NOW - HOUR * 3 / 4), kind)

    assert trust().verify(content, image, NAME)


def test_signatures_of_notation_and_of_cosign_may_both_be_there(content, image):
    from tests.unit.test_signature import KEY, pem, public

    attach(content, image, envelope(COSE, Holder("stranger"), payload(image)))
    sign_by_key(content, image, pem(KEY))

    both = Trust(public_keys=(public(KEY),), notation_certificates=(ROOT.pem,), notation_policy=document(statement()))
    assert both.verify(content, image, NAME).format == "sigstore bundle"


def test_without_a_policy_signatures_of_notation_are_told(content, image):
    attach(content, image, envelope(COSE, SIGNER, payload(image)))

    assert "notation-policy-document are not given" in refused(Trust(), content, image)


# ---------------------------------------------------------------------------------------------- bad ones


@BOTH
def test_a_signature_of_another_image_is_refused(content, image, kind):
    another = content.image(b"another")
    attach(content, image, envelope(kind, SIGNER, payload(another)), kind)

    assert f"it is about {another.digest}" in refused(trust(), content, image)


@pytest.mark.parametrize("change", [{"size": 1}, {"mediaType": "x"}])
def test_size_and_type_are_signed_too(content, image, change):
    attach(content, image, envelope(COSE, SIGNER, payload(image, **change)))

    assert "another size or type" in refused(trust(), content, image)


@BOTH
def test_a_changed_envelope_is_refused(content, image, kind):
    another = content.image(b"another")
    good, other = envelope(kind, SIGNER, payload(image)), envelope(kind, SIGNER, payload(another))
    if kind == JWS:
        changed = json.dumps({**json.loads(good), "payload": json.loads(other)["payload"]}).encode()
    else:
        changed = good.replace(image.digest.encode(), another.digest.encode())
    attach(content, another, changed, kind)

    assert "its signature is invalid" in refused(trust(), content, another)


@BOTH
@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"critical": []}, f"{SCHEME} must be critical"),
        ({"critical": [SCHEME, "x"]}, "unknown critical attribute 'x'"),
        ({"critical": [SCHEME, "x"], "more": {"x": "y"}}, "unknown critical attribute 'x'"),
        ({"critical": [SCHEME, PLUGIN], "more": {PLUGIN: "y"}}, "needs a plug-in"),
        ({"critical": [SCHEME], "expires": NOW + HOUR}, f"{EXPIRY} must be critical"),
        ({"critical": "x"}, "wrong list of critical"),
        ({"scheme": "other"}, "unknown signing scheme 'other'"),
        ({"scheme": AUTHORITY, "more": {SIGNING_TIME: "x"}}, "does not go with"),
        ({"more": {SIGNING_TIME: "x"}}, "wrong time"),
        ({"more": {SIGNING_TIME: 10**30}}, "wrong time"),
        ({"kind": "text/plain"}, "no payload of Notation"),
        ({"alg": "ES384"}, "algorithm 'ES384' does not go with the signer's key"),
        ({"expires": NOW - HOUR, "signed_at": NOW}, "expires before it was signed"),
    ],
)
def test_the_rules_of_envelopes_hold(content, image, kind, how, says):
    if kind == COSE and 10**30 in how.get("more", {}).values():
        how = {"more": {SIGNING_TIME: Tagged(1, 1 << 62)}}
    attach(content, image, envelope(kind, SIGNER, payload(image), **how), kind)

    assert says in refused(trust(), content, image)


@pytest.mark.parametrize(
    ("holder", "says"),
    [
        (Holder("stranger"), "not produced by a trusted signer"),
        (Holder("signer", ROOT, usage="digital_signature key_cert_sign"), "not for digital signatures alone"),
        (Holder("signer", ROOT, usage=""), "does not say what its key is for"),
        (Holder("signer", ROOT, critical=False), "its key usage is not critical"),
        (Holder("signer", ROOT, use=ExtendedKeyUsageOID.SERVER_AUTH), "for other things than signing code"),
        (Holder("signer", ROOT, ca=True), "of the signer is one of an authority"),
        (Holder("signer", Holder("leaf", ROOT)), "is not one of an authority"),
        (Holder("signer", Holder("deep", MIDDLE, ca=True)), "may not issue to authorities"),
        (Holder("signer", Holder("lame", ROOT, ca=True, usage="crl_sign")), "may not issue certificates"),
        (Holder("signer", ROOT, end=NOW - timedelta(seconds=1)), "is not valid now"),
        (Holder("signer", Holder("old", ca=True, end=NOW - timedelta(seconds=1))), "not produced by a trusted"),
        (Holder("signer", ROOT, key=rsa.generate_private_key(65537, 2048)), ""),
    ],
)
def test_the_rules_of_certificates_hold(content, image, holder, says):
    attach(content, image, envelope(COSE, holder, payload(image)))

    if says:
        assert says in refused(trust(), content, image)
    else:
        assert trust().verify(content, image, NAME)


def test_a_chain_of_strangers_with_the_roots_name_is_refused(content, image):
    fake = Holder("root", ca=True)
    attach(content, image, envelope(COSE, Holder("signer", fake), payload(image)))

    assert "not produced by a trusted signer" in refused(trust(), content, image)


def test_each_certificate_must_be_issued_by_the_next(content, image):
    signer = Holder("signer", Holder("root", ca=True))
    signer.chain = [signer.certificate, ROOT.certificate]
    attach(content, image, envelope(COSE, signer, payload(image)))

    assert "is not issued by" in refused(trust(), content, image)


def test_a_chain_without_its_root_is_refused(content, image):
    signer = Holder("signer", MIDDLE)
    signer.chain = signer.chain[:-1]
    attach(content, image, envelope(COSE, signer, payload(image)))

    assert "does not end with a root" in refused(trust(roots=(MIDDLE,)), content, image)


# ---------------------------------------------------------------------------------------------- policies


@pytest.mark.parametrize(("level", "good"), [("strict", False), ("permissive", True), ("audit", True), ("skip", True)])
def test_levels_tell_what_expiry_means(content, image, level, good):
    expired = envelope(COSE, SIGNER, payload(image), signed_at=NOW - HOUR, expires=NOW - HOUR / 2)
    attach(content, image, expired)

    if good:
        found = trust(statement(level)).verify(content, image, NAME)
        assert len(found.warnings) == 1
    else:
        assert "the signature has expired on" in refused(trust(statement(level)), content, image)


@pytest.mark.parametrize(("level", "good"), [("permissive", False), ("audit", True)])
def test_only_audit_takes_signers_that_are_not_trusted(content, image, level, good):
    attach(content, image, envelope(COSE, Holder("stranger"), payload(image)))

    if good:
        assert "trusted signer" in trust(statement(level)).verify(content, image, NAME).warnings[0]
    else:
        assert "trusted signer" in refused(trust(statement(level)), content, image)


def test_audit_still_wants_a_whole_signature_of_this_image(content, image):
    attach(content, image, envelope(COSE, SIGNER, payload(content.image(b"another"))))

    assert "it is about" in refused(trust(statement("audit")), content, image)


def test_skip_needs_no_signature_at_all(content, image):
    found = trust(statement("skip")).verify(content, image, NAME)

    assert found.warnings == ("trust policy 'acme' skips verification",)


def test_whether_a_certificate_was_revoked_is_not_known(content, image):
    attach(content, image, envelope(COSE, Holder("signer", ROOT, ocsp=True), payload(image)))
    relaxed = {"level": "strict", "override": {"revocation": "skip"}}

    assert "revoked" in refused(trust(), content, image)
    assert "revoked" in trust(statement("permissive")).verify(content, image, NAME).warnings[0]
    assert trust(statement(signatureVerification=relaxed)).verify(content, image, NAME).warnings == ()


def test_a_policy_that_wants_timestamps_refuses(content, image):
    attach(content, image, envelope(COSE, SIGNER, payload(image)))
    stores = ["ca:acme", "tsa:clock"]

    assert "timestamps" in refused(trust(statement(trustStores=stores)), content, image)
    later = {"level": "strict", "verifyTimestamp": "afterCertExpiry"}
    assert trust(statement(trustStores=stores, signatureVerification=later)).verify(content, image, NAME)


@pytest.mark.parametrize(
    ("identity", "good"),
    [
        ("x509.subject: C=US, ST=WA, O=acme", True),
        ("x509.subject:C=US,S=WA,O=acme,CN=signer", True),
        ("x509.subject: C=US, ST=WA, O=acme, CN=other", False),
        ("x509.subject: C=US, ST=WA, O=acme, OU=x", False),
        ("plugin.kind: C=US, ST=WA, O=acme", False),
    ],
)
def test_signers_must_be_trusted_identities(content, image, identity, good):
    attach(content, image, envelope(COSE, SIGNER, payload(image)))
    one = trust(statement(trustedIdentities=[identity]))

    if good:
        assert one.verify(content, image, NAME)
    else:
        assert "is no trusted identity" in refused(one, content, image)


def test_the_statement_of_a_repository_comes_before_that_of_all(content, image):
    attach(content, image, envelope(COSE, SIGNER, payload(image)))
    strangers = statement(name="others", trustedIdentities=["x509.subject: C=DE, ST=BE, O=other"])
    mine = statement(name="mine", registryScopes=["example.com/gadgets/trace", "example.com/gadgets/top"])

    assert trust(strangers, mine).verify(content, image, NAME)
    with pytest.raises(SignatureError, match="no trusted identity"):
        trust(strangers, mine).verify(content, image, Reference.parse("example.com/other/trace:v1"))
    with pytest.raises(SignatureError, match="no trust policy is for this image"):
        trust(mine).verify(content, image)


def test_a_certificate_may_be_for_one_trust_store_only(content, image):
    attach(content, image, envelope(COSE, SIGNER, payload(image)))

    assert trust(roots=(f"# ca:acme\n{ROOT.pem}",)).verify(content, image, NAME)
    other = trust(roots=(f"# ca:other\n{ROOT.pem}", Holder("x").pem))
    assert "not produced by a trusted signer" in refused(other, content, image)


def test_the_scheme_decides_which_trust_stores_count(content, image):
    attach(content, image, envelope(COSE, SIGNER, payload(image), scheme=AUTHORITY))

    assert "no trust store of type signingAuthority" in refused(
        trust(statement(trustStores=["ca:acme"])), content, image
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no JSON"),
        ("{}", "unknown version ''"),
        ('{"version": "1.0"}', "no trustPolicies"),
        (document(statement(name="")), "has no name"),
        (document(statement(), statement()), "name 'acme' is in several"),
        (document(statement(), statement(name="b")), "registry scope '\\*' is in several"),
        (document(statement(registryScopes=[])), "registryScopes are"),
        (document(statement(registryScopes=["*", "a/b"])), "registryScopes are"),
        (document(statement(registryScopes=["example.com/*"])), "registryScopes are"),
        (document(statement(registryScopes=["example.com"])), "is no registry/repository"),
        (document(statement("lax")), "unknown level 'lax'; one of strict"),
        (document(statement("skip", trustStores=["ca:x"])), "level skip goes with no"),
        (document(statement(trustStores=[])), "needs trustStores and trustedIdentities"),
        (document(statement(trustStores=["x"])), "is no trust store"),
        (document(statement(trustedIdentities=["*", "x509.subject: C=US, ST=WA, O=a"])), "goes with no other"),
        (document(statement(trustedIdentities=["x509.subject: CN=a"])), "has no C, ST, O"),
        (document(statement(trustedIdentities=["x509.subject: what"])), "is no distinguished name"),
        (document(statement(trustedIdentities=["acme"])), "is no trusted identity"),
        (
            document(statement(signatureVerification={"level": "strict", "override": {"integrity": "log"}})),
            "overridden",
        ),
        (document(statement(signatureVerification={"level": "strict", "override": {"expiry": "skip"}})), "overridden"),
        (document(statement(signatureVerification={"level": "strict", "override": {"x": "log"}})), "unknown override"),
        (document(statement(signatureVerification={"level": "strict", "verifyTimestamp": "x"})), "verifyTimestamp"),
    ],
)
def test_a_wrong_policy_is_told(text, says):
    with pytest.raises(ParamError, match=f"notation-policy-document: .*{says}") as caught:
        read_policies(text)

    assert caught.value.key == "notation-policy-document"


def test_without_a_name_only_the_statement_of_all_is_applicable():
    policies = read_policies(document(statement(registryScopes=["example.com/a"]), statement(name="all")))

    assert applicable(policies, None).name == "all"
    assert applicable(policies, Reference.parse("example.com/a:v1")).name == "acme"


@pytest.mark.parametrize("text", ["", "x", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"])
def test_a_wrong_certificate_is_told(content, image, text):
    with pytest.raises(ParamError, match=r"notation-certificates: .* is no certificate in PEM"):
        trust(roots=(text,)).verify(content, image, NAME)


# ---------------------------------------------------------------------------------------------- damage


VALUES = st.recursive(
    st.integers(-(1 << 63), (1 << 63) - 1) | st.binary(max_size=300) | st.text(max_size=40),
    lambda inner: (
        st.lists(inner, max_size=30)
        | st.dictionaries(st.integers(-40, 40) | st.text(max_size=5), inner, max_size=5)
        | st.builds(Tagged, st.integers(0, 70_000), inner)
    ),
    max_leaves=40,
)


@given(VALUES)
def test_what_is_written_as_cbor_is_read(value):
    assert cbor.loads(dumps(value)) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("17", 23),
        ("1818", 24),
        ("1b000000e8d4a51000", 1000000000000),
        ("3903e7", -1000),
        ("f93c00", 1.0),
        ("fb3ff199999999999a", 1.1),
        ("f4", False),
        ("f6", None),
        ("c11a514b67b0", Tagged(1, 1363896240)),
        ("4401020304", b"\1\2\3\4"),
        ("62c3bc", "ü"),
        ("83010203", [1, 2, 3]),
        ("a201020304", {1: 2, 3: 4}),
    ],
)
def test_the_examples_of_the_specification_are_read(text, value):
    assert cbor.loads(bytes.fromhex(text)) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "18",
        "5affffffff",
        "9bffffffffffffffff",
        "5f41004100ff",
        "a10102a1",
        "a201010102",
        "a1f401",
        "61ff",
        "0000",
        "f8ff",
    ],
)
def test_damaged_cbor_is_refused(text):
    with pytest.raises(ImageError, match="CBOR: "):
        cbor.loads(bytes.fromhex(text))


def test_deep_cbor_is_refused():
    with pytest.raises(ImageError, match="too deep"):
        cbor.loads(b"\x81" * 100_000 + b"\0")


@given(st.binary(max_size=200))
def test_any_bytes_are_an_envelope_or_a_clear_error(data):
    for kind in (JWS, COSE, "other"):
        with pytest.raises(ImageError):
            opened(kind, data)


@BOTH
@given(at=st.integers(0, 5000), bit=st.integers(0, 7))
def test_an_envelope_with_a_flipped_bit_is_refused_or_says_the_same(kind, at, bit):
    data = GOOD[kind]
    at %= len(data)
    changed = data[:at] + bytes((data[at] ^ 1 << bit,)) + data[at + 1 :]
    try:
        found = opened(kind, changed)
    except ImageError:
        return
    assert found.payload == PAYLOAD
    assert found.signed_at == NOW


PAYLOAD = payload(Memory().image())
GOOD = {kind: envelope(kind, SIGNER, PAYLOAD) for kind in (JWS, COSE)}
