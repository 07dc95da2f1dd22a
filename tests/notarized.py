"""Signatures of Notation, made here: certificates for signing code, JWS and COSE envelopes."""

import base64
import json
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID, NameOID

from igrun.oci.cbor import ARRAY, BYTES, MAP, NEGATIVE, TAG, TEXT, UNSIGNED, Tagged, head
from igrun.oci.envelope import (
    ALGORITHM,
    AUTHENTIC_TIME,
    AUTHORITY,
    CHAIN,
    CONTENT_TYPE,
    COSE,
    COSE_ALGORITHMS,
    CRITICAL,
    EXPIRY,
    JWS,
    PAYLOAD,
    SCHEME,
    SIGNING_TIME,
    X509,
)
from igrun.oci.model import MANIFEST, Descriptor, Manifest, Referrer
from igrun.oci.signature import NOTATION

NOW = datetime.now(UTC).replace(microsecond=0)
HOUR = timedelta(hours=1)
USAGES = (
    "digital_signature content_commitment key_encipherment data_encipherment key_agreement key_cert_sign crl_sign "
    "encipher_only decipher_only"
).split()


def new() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def name(common: str) -> x509.Name:
    parts = {
        NameOID.COUNTRY_NAME: "US",
        NameOID.STATE_OR_PROVINCE_NAME: "WA",
        NameOID.ORGANIZATION_NAME: "acme",
        NameOID.COMMON_NAME: common,
    }
    return x509.Name([x509.NameAttribute(oid, value) for oid, value in parts.items()])


class Holder:
    """A key and its certificate, with those above it."""

    def __init__(self, common: str, above: "Holder | None" = None, **how) -> None:
        """how: key, ca, path, usage, critical, use, start, end, ocsp: of the certificate"""
        self.key = how.get("key") or new()
        signer, issuer = (above.key, above.certificate.subject) if above else (self.key, name(common))
        ca = how.get("ca", False)
        builder = x509.CertificateBuilder().subject_name(name(common)).issuer_name(issuer)
        builder = builder.serial_number(x509.random_serial_number()).public_key(self.key.public_key())
        builder = builder.not_valid_before(how.get("start", NOW - HOUR)).not_valid_after(how.get("end", NOW + HOUR))
        if ca:
            builder = builder.add_extension(x509.BasicConstraints(True, how.get("path")), True)
        usage = how.get("usage", "key_cert_sign" if ca else "digital_signature")
        if usage:
            flags = {**dict.fromkeys(USAGES, False), **dict.fromkeys(usage.split(), True)}
            builder = builder.add_extension(x509.KeyUsage(**flags), how.get("critical", True))
        if use := how.get("use", None if ca else ExtendedKeyUsageOID.CODE_SIGNING):
            builder = builder.add_extension(x509.ExtendedKeyUsage([use]), False)
        if how.get("ocsp"):
            place = x509.UniformResourceIdentifier("http://ocsp.example.com")
            access = x509.AccessDescription(AuthorityInformationAccessOID.OCSP, place)
            builder = builder.add_extension(x509.AuthorityInformationAccess([access]), False)
        self.certificate = builder.sign(signer, hashes.SHA256())
        self.chain = [self.certificate, *(above.chain if above else [])]

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(Encoding.PEM).decode()


def algorithm(key) -> str:
    if isinstance(key, rsa.RSAPrivateKey):
        return {2048: "PS256", 3072: "PS384", 4096: "PS512"}[key.key_size]
    return {256: "ES256", 384: "ES384", 521: "ES512"}[key.key_size]


def sign(key, data: bytes) -> bytes:
    digest = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}[algorithm(key)[2:]]
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(data, padding.PSS(padding.MGF1(digest), digest.digest_size), digest)
    half = (key.key_size + 7) // 8
    return b"".join(part.to_bytes(half, "big") for part in decode_dss_signature(key.sign(data, ec.ECDSA(digest))))


def dumps(value) -> bytes:
    """CBOR."""
    match value:
        case int():
            return head(UNSIGNED, value) if value >= 0 else head(NEGATIVE, -1 - value)
        case bytes():
            return head(BYTES, len(value)) + value
        case str():
            return head(TEXT, len(value.encode())) + value.encode()
        case Tagged():
            return head(TAG, value.tag) + dumps(value.value)
        case list():
            return head(ARRAY, len(value)) + b"".join(map(dumps, value))
        case dict():
            return head(MAP, len(value)) + b"".join(dumps(part) for pair in value.items() for part in pair)
    raise TypeError(value)


def header(scheme: str, time, expires: datetime | None, signed_at: datetime, more: dict) -> tuple[dict, list]:
    """Protected attributes, and those that are critical."""
    found = {SCHEME: scheme, AUTHENTIC_TIME if scheme == AUTHORITY else SIGNING_TIME: time(signed_at)}
    critical = [SCHEME] + ([AUTHENTIC_TIME] if scheme == AUTHORITY else [])
    if expires:
        found[EXPIRY] = time(expires)
        critical.append(EXPIRY)
    found |= more
    return found, critical


def envelope(
    media_type: str,
    holder: Holder,
    payload: bytes,
    *,
    scheme: str = X509,
    expires: datetime | None = None,
    signed_at: datetime = NOW,
    more: dict | None = None,
    critical: list | None = None,
    kind: str = PAYLOAD,
    alg: str = "",
) -> bytes:
    """An envelope. more: attributes over the usual ones; critical, kind, alg: others than the right ones"""
    alg = alg or algorithm(holder.key)
    chain = [one.public_bytes(Encoding.DER) for one in holder.chain]
    if media_type == JWS:
        protected, right = header(
            scheme, lambda at: at.isoformat().replace("+00:00", "Z"), expires, signed_at, more or {}
        )
        protected |= {"alg": alg, "cty": kind, "crit": right if critical is None else critical}
        parts = [url(json.dumps(protected).encode()), url(payload)]
        return json.dumps(
            {
                "payload": parts[1],
                "protected": parts[0],
                "header": {"x5c": [base64.b64encode(one).decode() for one in chain]},
                "signature": url(sign(holder.key, ".".join(parts).encode())),
            }
        ).encode()
    protected, right = header(scheme, lambda at: Tagged(1, int(at.timestamp())), expires, signed_at, more or {})
    numbers = {name: number for number, name in COSE_ALGORITHMS.items()}
    protected |= {ALGORITHM: numbers[alg], CRITICAL: right if critical is None else critical, CONTENT_TYPE: kind}
    encoded = dumps(protected)
    signature = sign(holder.key, dumps(["Signature1", encoded, b"", payload]))
    return dumps(Tagged(18, [encoded, {CHAIN: chain}, payload, signature]))


def url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def payload(image: Descriptor, **change) -> bytes:
    about = {"mediaType": image.media_type, "digest": image.digest, "size": image.size, **change}
    return json.dumps({"targetArtifact": about}).encode()


def attach(content, image: Descriptor, data: bytes, media_type: str = COSE) -> None:
    """Put an envelope beside an image."""
    layer = content.write(media_type, data)
    manifest = Manifest(content.write(NOTATION, b"{}"), (layer,), subject=image)
    written = content.write(MANIFEST, manifest.to_bytes())
    content.refer(image, Referrer(Descriptor(MANIFEST, written.digest, written.size, artifact_type=NOTATION)))
