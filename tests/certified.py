"""A private Sigstore: an authority that issues certificates for identities, and logs that tell about them."""

import base64
import json
import struct
from datetime import UTC, datetime, timedelta
from hashlib import sha256

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

ISSUER_OID = ObjectIdentifier("1.3.6.1.4.1.57264.1.8")
SCT_OID = ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2")
IDENTITY, ISSUER = "https://example.com/build.yaml@refs/heads/main", "https://accounts.example.com"
SHA256 = ec.ECDSA(hashes.SHA256())
NOW = datetime.now(UTC).replace(microsecond=0)


def new() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def der(key) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def name(text: str) -> x509.Name:
    return x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "tests"), x509.NameAttribute(NameOID.COMMON_NAME, text)]
    )


USAGE = dict.fromkeys(
    "digital_signature content_commitment key_encipherment data_encipherment key_agreement key_cert_sign crl_sign "
    "encipher_only decipher_only".split(),
    False,
)


class Sigstore:
    """The authority and the logs, each with a key of its own."""

    def __init__(self) -> None:
        self.authority, self.certificates, self.log = new(), new(), new()
        builder = self._builder(name("authority"), self.authority, NOW - timedelta(days=1), NOW + timedelta(days=1))
        builder = builder.add_extension(x509.BasicConstraints(True, 0), True)
        builder = builder.add_extension(x509.KeyUsage(**{**USAGE, "key_cert_sign": True, "crl_sign": True}), True)
        self.root = builder.sign(self.authority, hashes.SHA256())

    def _builder(self, subject, key, start, end) -> x509.CertificateBuilder:
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(name("authority"))
        builder = builder.serial_number(x509.random_serial_number()).public_key(key.public_key())
        builder = builder.not_valid_before(start).not_valid_after(end)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        above = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.authority.public_key())
        return builder.add_extension(above, False)

    def issue(self, key, identity=IDENTITY, issuer=ISSUER, logged=True, use=ExtendedKeyUsageOID.CODE_SIGNING):
        """A certificate that was valid for ten minutes, an hour ago."""
        start = NOW - timedelta(hours=1)
        builder = self._builder(x509.Name([]), key, start, start + timedelta(minutes=10))
        builder = builder.add_extension(x509.KeyUsage(**{**USAGE, "digital_signature": True}), True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([use]), False)
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity)]), True)
        said = issuer.encode()
        builder = builder.add_extension(
            x509.UnrecognizedExtension(ISSUER_OID, b"\x0c" + bytes((len(said),)) + said), False
        )
        if not logged:
            return builder.sign(self.authority, hashes.SHA256())
        body = builder.sign(self.authority, hashes.SHA256()).tbs_certificate_bytes
        at = struct.pack("!Q", int(start.timestamp() * 1000))
        data = (
            b"\0\0"
            + at
            + b"\0\1"
            + sha256(der(self.authority)).digest()
            + len(body).to_bytes(3, "big")
            + body
            + b"\0\0"
        )
        signature = self.certificates.sign(data, SHA256)
        one = b"\0" + sha256(der(self.certificates)).digest() + at + b"\0\0" + b"\4\3"
        one += struct.pack("!H", len(signature)) + signature
        all_of_them = struct.pack("!HH", len(one) + 2, len(one)) + one
        wrapped = b"\x04" + (b"\x81" if len(all_of_them) > 127 else b"") + bytes((len(all_of_them),)) + all_of_them
        builder = builder.add_extension(x509.UnrecognizedExtension(SCT_OID, wrapped), False)
        return builder.sign(self.authority, hashes.SHA256())

    # ------------------------------------------------------------------------------------------ the log

    def promised(self, body: dict) -> tuple[dict, bytes]:
        """An entry of the log, five minutes after the certificate was issued, and its signed promise."""
        entry = {
            "body": b64(json.dumps(body, separators=(",", ":")).encode()),
            "integratedTime": int((NOW - timedelta(minutes=55)).timestamp()),
            "logID": sha256(der(self.log)).hexdigest(),
            "logIndex": 0,
        }
        return entry, self.log.sign(json.dumps(entry, separators=(",", ":"), sort_keys=True).encode(), SHA256)

    def proven(self, body: dict) -> dict:
        """The entry of a log that has no other, as bundles hold it."""
        entry, promise = self.promised(body)
        leaf = sha256(b"\0" + base64.b64decode(entry["body"])).digest()
        note = f"log.example.com\n1\n{b64(leaf)}\n"
        signed = sha256(der(self.log)).digest()[:4] + self.log.sign(note.encode(), SHA256)
        return {
            "logIndex": "0",
            "logId": {"keyId": b64(sha256(der(self.log)).digest())},
            "kindVersion": {"kind": body["kind"], "version": body["apiVersion"]},
            "integratedTime": str(entry["integratedTime"]),
            "inclusionPromise": {"signedEntryTimestamp": b64(promise)},
            "inclusionProof": {
                "logIndex": "0",
                "rootHash": b64(leaf),
                "treeSize": "1",
                "hashes": [],
                "checkpoint": {"envelope": f"{note}\n— log.example.com {b64(signed)}\n"},
            },
            "canonicalizedBody": entry["body"],
        }

    def trusted_root(self) -> dict:
        """What trusted_root.json says of all this."""
        period = {"start": "2020-01-01T00:00:00Z"}

        def log(key) -> dict:
            return {
                "baseUrl": "https://log.example.com",
                "hashAlgorithm": "SHA2_256",
                "publicKey": {"rawBytes": b64(der(key)), "keyDetails": "PKIX_ECDSA_P256_SHA_256", "validFor": period},
                "logId": {"keyId": b64(sha256(der(key)).digest())},
            }

        authority = {
            "subject": {"organization": "tests", "commonName": "authority"},
            "uri": "https://ca.example.com",
            "certChain": {"certificates": [{"rawBytes": b64(self.root.public_bytes(Encoding.DER))}]},
            "validFor": period,
        }
        return {
            "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
            "tlogs": [log(self.log)],
            "certificateAuthorities": [authority],
            "ctlogs": [log(self.certificates)],
            "timestampAuthorities": [],
        }


def pem(certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()


def hashed_record(data: bytes, signature: bytes, certificate) -> dict:
    """What the log tells about a signature."""
    return {
        "apiVersion": "0.0.1",
        "kind": "hashedrekord",
        "spec": {
            "data": {"hash": {"algorithm": "sha256", "value": sha256(data).hexdigest()}},
            "signature": {"content": b64(signature), "publicKey": {"content": b64(pem(certificate).encode())}},
        },
    }


def envelope_record(payload: bytes, signature: bytes, certificate) -> dict:
    """What the log tells about a DSSE envelope."""
    return {
        "apiVersion": "0.0.1",
        "kind": "dsse",
        "spec": {
            "envelopeHash": {"algorithm": "sha256", "value": "0" * 64},
            "payloadHash": {"algorithm": "sha256", "value": sha256(payload).hexdigest()},
            "signatures": [{"signature": b64(signature), "verifier": b64(pem(certificate).encode())}],
        },
    }
