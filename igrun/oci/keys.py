"""Public keys: those that signatures of images are checked with."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from igrun.dataclass import dataclass
from igrun.errors import ParamError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

# The ecosystem's key, with which its own gadgets are signed.
BUILT_IN = """\
-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEoDOC0gYSxZTopenGmX3ZFvQ1DSfh
Ir4EKRt5jC+mXaJ7c7J+oREskYMn/SfZdRHNSOjLTZUMDm60zpXGhkFecg==
-----END PUBLIC KEY-----
"""
BLOCK = re.compile(r"-----BEGIN ([A-Z0-9 ]+)-----.+?-----END \1-----", re.DOTALL)
MOST_KEYS = 100
SMALLEST_RSA_BITS = 2048
CURVES = {"secp256r1": ("SHA256",), "secp384r1": ("SHA384", "SHA256"), "secp521r1": ("SHA512", "SHA256")}


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key. fingerprint: SHA-256 of its DER bytes, hexadecimal"""

    key: PublicKeyTypes
    fingerprint: str

    def signed(self, data: bytes, signature: bytes) -> bool:
        """Whether the signature is this key's over these bytes.

        RSA is PKCS#1 v1.5 with SHA-256. ECDSA has the hash of its curve, with which cosign signs, or SHA-256,
        which is what it checks unless told otherwise. Ed25519 is the plain one: cosign signs with Ed25519ph, which
        neither it nor the ecosystem's tool can verify afterwards.
        """
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

        key = self.key
        tries = CURVES[key.curve.name] if isinstance(key, ec.EllipticCurvePublicKey) else ("SHA256",)
        for name in tries:
            try:
                if isinstance(key, ec.EllipticCurvePublicKey):
                    key.verify(signature, data, ec.ECDSA(getattr(hashes, name)()))
                elif isinstance(key, rsa.RSAPublicKey):
                    key.verify(signature, data, padding.PKCS1v15(), hashes.SHA256())
                elif isinstance(key, ed25519.Ed25519PublicKey):
                    key.verify(signature, data)
                return True
            except InvalidSignature:
                continue
        return False


def load(texts: Iterable[str], param: str = "public-keys") -> tuple[PublicKey, ...]:
    """The keys in PEM texts, each of which may hold several. ParamError: one of them is no public key."""
    found: dict[str, PublicKey] = {}
    for text in texts:
        blocks = [match[0] for match in BLOCK.finditer(text)]
        if not blocks:
            raise ParamError(
                param, text, f"{param}: {first_line(text)!r} is no public key in PEM", hint="@FILE reads it from a file"
            )
        for block in blocks:
            one = load_one(block, param)
            found.setdefault(one.fingerprint, one)
    if len(found) > MOST_KEYS:
        raise ParamError(param, "", f"{param}: more than {MOST_KEYS} keys")
    return tuple(found.values())


def load_one(pem: str, param: str) -> PublicKey:
    """The key of one PEM block."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(pem.encode("ascii", "replace"))
    except (ValueError, UnsupportedAlgorithm):
        kind = pem.partition("\n")[0].strip("- ").removeprefix("BEGIN ")
        raise ParamError(
            param, kind, f"{param}: a PEM block {kind!r} is no public key", hint="the block is called PUBLIC KEY"
        ) from None
    if isinstance(key, rsa.RSAPublicKey):
        if key.key_size < SMALLEST_RSA_BITS:
            raise ParamError(param, "", f"{param}: an RSA key of {key.key_size} bits is too weak")
    elif isinstance(key, ec.EllipticCurvePublicKey):
        if key.curve.name not in CURVES:
            raise ParamError(param, "", f"{param}: a key of curve {key.curve.name} cannot be used")
    elif not isinstance(key, ed25519.Ed25519PublicKey):
        raise ParamError(param, "", f"{param}: keys are ECDSA, RSA or Ed25519")
    return PublicKey(key, fingerprint(key))


def fingerprint(key: PublicKeyTypes) -> str:
    """SHA-256 of a key's DER bytes."""
    from hashlib import sha256

    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def first_line(text: str) -> str:
    """A few characters of a text, for errors; not of a private key."""
    line = text.strip().partition("\n")[0]
    return line[:40]
