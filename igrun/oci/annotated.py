"""Signatures with a certificate in the annotations that cosign wrote before bundles.

dev.sigstore.cosign/certificate    the signer's, PEM
dev.sigstore.cosign/bundle         the entry of the log (Rekor) and its promise to add it, JSON
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterable
from datetime import UTC, datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from igrun.oci.keys import PublicKey, fingerprint
from igrun.oci.model import mapping, parsed, text
from igrun.oci.signature import CERTIFICATE, Claim

if TYPE_CHECKING:
    from cryptography.x509 import Certificate
    from sigstore.models import TrustedRoot
    from sigstore.verify.policy import VerificationPolicy

BUNDLE = "dev.sigstore.cosign/bundle"
PRECERTIFICATE = 1


def verify_annotated(claim: Claim, policy: VerificationPolicy, root: TrustedRoot, trusted: bytes) -> None:
    """Nothing, or ValueError and others: it is no good signature of an identity.

    policy:        what the certificate must say
    root, trusted: the trusted root, parsed and as it is
    """
    from cryptography.x509 import ExtendedKeyUsage, KeyUsage, load_pem_x509_certificate
    from cryptography.x509.oid import ExtendedKeyUsageOID

    certificate = load_pem_x509_certificate(claim.annotations[CERTIFICATE].encode())
    if BUNDLE not in claim.annotations:
        raise ValueError("there is no entry of a log that says when it was signed")
    logs = parsed(trusted, "trusted root")
    entry = mapping(parsed(claim.annotations[BUNDLE].encode(), "bundle").get("Payload"), "bundle: Payload")
    promise = text(parsed(claim.annotations[BUNDLE].encode(), "bundle"), "SignedEntryTimestamp", "bundle")
    if not any(key.signed(canonical(entry), unbase64(promise)) for key in log_keys(logs, "tlogs")):
        raise ValueError("no trusted log promised its entry")
    check_entry(entry, claim, certificate)
    signed_at = datetime.fromtimestamp(entry["integratedTime"], UTC)
    above = chain(certificate, root.get_fulcio_certs(), signed_at)
    check_transparency(certificate, above[0], log_keys(logs, "ctlogs"))
    extensions = certificate.extensions
    if not extensions.get_extension_for_class(KeyUsage).value.digital_signature:
        raise ValueError("the certificate is not for signatures")
    if ExtendedKeyUsageOID.CODE_SIGNING not in extensions.get_extension_for_class(ExtendedKeyUsage).value:
        raise ValueError("the certificate is not for signing code")
    policy.verify(certificate)
    key = PublicKey(certificate.public_key(), "")
    if not any(key.signed(claim.data, signature) for signature in claim.signatures):
        raise ValueError("the signature is not that of the certificate")


def canonical(entry: dict[str, Any]) -> bytes:
    """The bytes of a log's entry that its promise is over."""
    import json

    members = {name: entry[name] for name in ("body", "integratedTime", "logID", "logIndex")}
    return json.dumps(members, separators=(",", ":"), sort_keys=True).encode()


def check_entry(entry: dict[str, Any], claim: Claim, certificate: Certificate) -> None:
    """ValueError: the log's entry is about another signature, payload or certificate."""
    from cryptography.x509 import load_pem_x509_certificate

    body = parsed(unbase64(entry["body"]), "entry")
    if (body.get("kind"), body.get("apiVersion")) != ("hashedrekord", "0.0.1"):
        raise ValueError("the log's entry is of an unknown kind")
    specified = body["spec"]
    digest, signature = specified["data"]["hash"], specified["signature"]
    logged = load_pem_x509_certificate(unbase64(signature["publicKey"]["content"]))
    if (
        digest["algorithm"] != "sha256"
        or digest["value"] != sha256(claim.data).hexdigest()
        or unbase64(signature["content"]) not in claim.signatures
        or logged != certificate
    ):
        raise ValueError("the log's entry is about another signature")


def chain(certificate: Certificate, trusted: list[Certificate], at: datetime) -> list[Certificate]:
    """The authorities above a certificate at that time."""
    from cryptography.x509 import ExtendedKeyUsage
    from cryptography.x509.verification import Criticality, ExtensionPolicy, PolicyBuilder, Store, VerificationError

    # By default certificates must be for clients of TLS; what these are for is looked at elsewhere.
    authorities, signers = (
        policy.may_be_present(ExtendedKeyUsage, Criticality.NON_CRITICAL, None)
        for policy in (ExtensionPolicy.webpki_defaults_ca(), ExtensionPolicy.webpki_defaults_ee())
    )
    builder = PolicyBuilder().store(Store(trusted)).time(at)
    verifier = builder.extension_policies(ca_policy=authorities, ee_policy=signers).build_client_verifier()
    try:
        return verifier.verify(certificate, []).chain[1:]
    except VerificationError as error:
        raise ValueError(f"no trusted authority issued the certificate, or it was not valid then: {error}") from None


def check_transparency(certificate: Certificate, issuer: Certificate, keys: Iterable[PublicKey]) -> None:
    """ValueError: no trusted log of certificates has this one."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.x509 import PrecertificateSignedCertificateTimestamps

    issued = bytes.fromhex(fingerprint(issuer.public_key()))
    body = certificate.tbs_precertificate_bytes
    known = {bytes.fromhex(key.fingerprint): key for key in keys}
    for one in certificate.extensions.get_extension_for_class(PrecertificateSignedCertificateTimestamps).value:
        milliseconds = int(one.timestamp.replace(tzinfo=UTC).timestamp() * 1000 + 0.5)
        head = struct.pack("!BBQH", one.version.value, 0, milliseconds, PRECERTIFICATE)
        data = head + issued + len(body).to_bytes(3, "big") + body
        data += len(one.extension_bytes).to_bytes(2, "big") + one.extension_bytes
        key = known.get(one.log_id)
        if key and isinstance(one.signature_hash_algorithm, hashes.SHA256) and key.signed(data, one.signature):
            return
    raise ValueError("no trusted log of certificates has the certificate")


def log_keys(trusted: dict[str, Any], member: str) -> list[PublicKey]:
    """The keys of the logs in a trusted root."""
    from cryptography.hazmat.primitives.serialization import load_der_public_key

    found = []
    for log in trusted.get(member) or []:
        key = load_der_public_key(unbase64(log["publicKey"]["rawBytes"]))
        found.append(PublicKey(key, fingerprint(key)))
    return found


def unbase64(value: str) -> bytes:
    """Base64."""
    return base64.b64decode(value, validate=True)
