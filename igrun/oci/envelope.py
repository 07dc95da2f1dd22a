"""Envelopes of Notation's signatures: JWS and COSE. Opened, they are known to be whole, and nothing more."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from igrun.dataclass import dataclass
from igrun.errors import ImageError
from igrun.oci.cbor import ARRAY, BYTES, TEXT, Tagged, head, loads
from igrun.oci.model import Json, mapping, parsed

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

JWS, COSE = "application/jose+json", "application/cose"
PAYLOAD = "application/vnd.cncf.notary.payload.v1+json"
X509, AUTHORITY = "notary.x509", "notary.x509.signingAuthority"
SCHEME = "io.cncf.notary.signingScheme"
EXPIRY = "io.cncf.notary.expiry"
SIGNING_TIME = "io.cncf.notary.signingTime"
AUTHENTIC_TIME = "io.cncf.notary.authenticSigningTime"
PLUGIN = "io.cncf.notary.verificationPlugin"
KNOWN = (SCHEME, EXPIRY, SIGNING_TIME, AUTHENTIC_TIME)
MOST_CERTIFICATES = 10
COSE_SIGN1 = 18
EPOCH_TIME = 1
ALGORITHM, CRITICAL, CONTENT_TYPE, CHAIN = 1, 2, 3, 33
COSE_ALGORITHMS = {-7: "ES256", -35: "ES384", -36: "ES512", -37: "PS256", -38: "PS384", -39: "PS512"}
# The one algorithm for each kind of key; (is RSA, bits).
ALGORITHMS = {
    "ES256": (False, 256),
    "ES384": (False, 384),
    "ES512": (False, 521),
    "PS256": (True, 2048),
    "PS384": (True, 3072),
    "PS512": (True, 4096),
}


@dataclass(frozen=True, slots=True)
class Envelope:
    """What a whole envelope says.

    payload: JSON that is signed
    chain:   the signer's certificate first, the root last; not checked
    scheme:  notary.x509, or notary.x509.signingAuthority, whose time of signing can be believed
    """

    payload: bytes
    chain: tuple[Certificate, ...]
    scheme: str
    signed_at: datetime
    expires_at: datetime | None


def opened(media_type: str, data: bytes) -> Envelope:
    """Open an envelope. ImageError: it is none, has unknown critical attributes, or its signature is wrong."""
    read = {JWS: read_jws, COSE: read_cose}.get(media_type)
    if read is None:
        raise ImageError(f"envelope of unknown type {media_type[:100]!r}")
    return read(data)


def read_jws(data: bytes) -> Envelope:
    """JSON with the signed parts in base64."""
    envelope = parsed(data, "envelope")
    protected = envelope.get("protected")
    body = envelope.get("payload")
    if not isinstance(protected, str) or not isinstance(body, str):
        raise ImageError("envelope: no protected header or no payload")
    header = parsed(url_decoded(protected), "envelope: protected header")
    unprotected = mapping(envelope.get("header"), "envelope: header")
    chain = certificates(unprotected.get("x5c"), lambda one: base64.b64decode(one, validate=True))
    check_algorithm(header.get("alg"), chain[0])
    signature = url_decoded(envelope.get("signature"))
    if not signed(chain[0], f"{protected}.{body}".encode(), signature):
        raise ImageError("its signature is invalid")
    return checked(header, header.get("crit"), header.get("cty"), ("alg", "cty", "crit"), url_decoded(body), chain, iso)


def read_cose(data: bytes) -> Envelope:
    """COSE_Sign1: an array of protected header, header, payload and signature."""
    message = loads(data)
    if not isinstance(message, Tagged) or message.tag != COSE_SIGN1:
        raise ImageError("envelope: no COSE_Sign1")
    match message.value:
        case [bytes() as protected, dict() as unprotected, bytes() as payload, bytes() as signature]:
            pass
        case _:
            raise ImageError("envelope: no COSE_Sign1")
    header = loads(protected)
    if not isinstance(header, dict):
        raise ImageError("envelope: wrong protected header")
    given = unprotected.get(CHAIN)
    chain = certificates([given] if isinstance(given, bytes) else given, bytes)
    algorithm = header.get(ALGORITHM)
    check_algorithm(COSE_ALGORITHMS.get(algorithm) if isinstance(algorithm, int) else None, chain[0])
    context = b"Signature1"
    to_sign = head(ARRAY, 4) + head(TEXT, len(context)) + context
    to_sign += b"".join(head(BYTES, len(part)) + part for part in (protected, b"", payload))
    if not signed(chain[0], to_sign, signature):
        raise ImageError("its signature is invalid")
    labels = (ALGORITHM, CRITICAL, CONTENT_TYPE)
    return checked(header, header.get(CRITICAL), header.get(CONTENT_TYPE), labels, payload, chain, epoch)


def checked(
    header: Mapping[Any, Any],
    critical: Any,
    kind: Any,
    labels: tuple[Any, ...],
    payload: bytes,
    chain: tuple[Certificate, ...],
    time: Any,
) -> Envelope:
    """The envelope with this protected header. ImageError: it breaks Notation's rules.

    labels: of the header itself, which need not be critical
    time:   reads a time
    """
    if kind != PAYLOAD:
        raise ImageError("its payload is no payload of Notation")
    scheme = header.get(SCHEME)
    if scheme not in (X509, AUTHORITY):
        raise ImageError(f"unknown signing scheme {str(scheme)[:100]!r}")
    needed = {SCHEME} | ({EXPIRY} if EXPIRY in header else set()) | ({AUTHENTIC_TIME} if scheme == AUTHORITY else set())
    if not isinstance(critical, list) or not all(isinstance(one, str | int) for one in critical):
        raise ImageError("wrong list of critical attributes")
    if PLUGIN in critical:
        raise ImageError("it needs a plug-in of Notation to be verified")
    unknown = [str(one)[:100] for one in critical if one not in (*KNOWN, *labels) or one not in header]
    if unknown:
        raise ImageError(f"unknown critical attribute {unknown[0]!r}")
    if not needed <= set(critical):
        raise ImageError(f"{', '.join(sorted(needed - set(critical)))} must be critical")
    mine, other = (SIGNING_TIME, AUTHENTIC_TIME) if scheme == X509 else (AUTHENTIC_TIME, SIGNING_TIME)
    if other in header:
        raise ImageError(f"{other} does not go with {scheme}")
    signed_at = time(header.get(mine))
    expires_at = time(header[EXPIRY]) if EXPIRY in header else None
    if expires_at is not None and expires_at <= signed_at:
        raise ImageError("it expires before it was signed")
    return Envelope(payload, chain, scheme, signed_at, expires_at)


def signed(certificate: Certificate, data: bytes, signature: bytes) -> bool:
    """Whether the holder of the certificate signed these bytes, with the algorithm of its key."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

    key = certificate.public_key()
    sizes: dict[int, hashes.HashAlgorithm] = {
        256: hashes.SHA256(),
        384: hashes.SHA384(),
        521: hashes.SHA512(),
        2048: hashes.SHA256(),
        3072: hashes.SHA384(),
        4096: hashes.SHA512(),
    }
    try:
        if isinstance(key, rsa.RSAPublicKey):
            digest = sizes[key.key_size]
            key.verify(signature, data, padding.PSS(padding.MGF1(digest), padding.PSS.AUTO), digest)
        elif isinstance(key, ec.EllipticCurvePublicKey):
            half = (key.key_size + 7) // 8
            if len(signature) != 2 * half:
                return False
            pair = (int.from_bytes(signature[:half], "big"), int.from_bytes(signature[half:], "big"))
            key.verify(encode_dss_signature(*pair), data, ec.ECDSA(sizes[key.key_size]))
        else:
            return False
    except InvalidSignature:
        return False
    return True


def check_algorithm(name: Any, certificate: Certificate) -> None:
    """ImageError: the algorithm is not the one for the signer's key."""
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    key = certificate.public_key()
    if isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
        prime = isinstance(key, rsa.RSAPublicKey) or key.curve.name.endswith("r1")
        if prime and ALGORITHMS.get(str(name)) == (isinstance(key, rsa.RSAPublicKey), key.key_size):
            return
    raise ImageError(f"algorithm {str(name)[:20]!r} does not go with the signer's key")


def certificates(given: Any, der: Any) -> tuple[Certificate, ...]:
    """The chain of an envelope. der: the bytes of an entry"""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.x509 import (
        DuplicateExtension,
        InvalidVersion,
        UnsupportedGeneralNameType,
        load_der_x509_certificate,
    )

    if not isinstance(given, list) or not 0 < len(given) <= MOST_CERTIFICATES:
        raise ImageError("envelope: wrong certificate chain")
    broken = (
        ValueError,
        TypeError,
        UnsupportedAlgorithm,
        InvalidVersion,
        DuplicateExtension,
        UnsupportedGeneralNameType,
    )
    try:
        found = tuple(load_der_x509_certificate(der(one)) for one in given)
        for one in found:
            # These are parsed when they are asked for: what is damaged shows here and not somewhere later.
            _ = one.subject, one.issuer, one.extensions, one.public_key(), one.signature_hash_algorithm
            _ = one.not_valid_before_utc, one.not_valid_after_utc, one.subject.rfc4514_string()
    except broken:
        raise ImageError("envelope: a certificate is damaged") from None
    return found


def url_decoded(value: Any) -> bytes:
    """Base64 as JWS has it: for URLs, without padding."""
    if not isinstance(value, str) or not value or "=" in value:
        raise ImageError("envelope: no base64")
    try:
        return base64.b64decode(value + "=" * (-len(value) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise ImageError("envelope: no base64") from None


def iso(value: Any) -> datetime:
    """A time in text, RFC 3339."""
    try:
        found = datetime.fromisoformat(value)
        return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)
    except (ValueError, TypeError, OverflowError):
        raise ImageError("envelope: wrong time") from None


def epoch(value: Any) -> datetime:
    """A time in seconds since 1970, tagged."""
    if not isinstance(value, Tagged) or value.tag != EPOCH_TIME or not isinstance(value.value, int | float):
        raise ImageError("envelope: wrong time")
    try:
        return datetime.fromtimestamp(value.value, UTC)
    except (ValueError, OverflowError, OSError):
        raise ImageError("envelope: wrong time") from None


def target(payload: bytes) -> Json:
    """The image that a payload is about."""
    return mapping(parsed(payload, "payload").get("targetArtifact"), "payload: targetArtifact")
