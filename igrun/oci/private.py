"""Private keys as cosign writes them: made, encrypted, read."""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igrun.errors import ImageError, ParamError, PluginError
from igrun.oci.model import Json, mapping, parsed

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
    from nacl.secret import SecretBox

LARGEST = 64 << 10
COSIGN = ("ENCRYPTED SIGSTORE PRIVATE KEY", "ENCRYPTED COSIGN PRIVATE KEY")
WORK = {"N": 1 << 16, "r": 8, "p": 1}
# More work would let a key file keep this process busy for as long as it likes.
ALLOWED_WORK = ({"N": 1 << 15, "r": 8, "p": 1}, WORK, {"N": 1 << 17, "r": 8, "p": 1})
KEY_BYTES, SALT_BYTES, NONCE_BYTES = 32, 32, 24


class PrivateKey:
    """A key to sign with. pem: of its public key, fingerprint: SHA-256 of that key's DER bytes"""

    def __init__(self, key: PrivateKeyTypes) -> None:
        from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        from igrun.oci.keys import load_one

        if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey):
            raise wrong("keys are ECDSA, RSA or Ed25519")
        self._key = key
        self.pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
        self.fingerprint = load_one(self.pem, "key").fingerprint

    def sign(self, data: bytes) -> bytes:
        """The signature of these bytes. The hash is SHA-256 for each curve: cosign and the ecosystem check no other."""
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

        if isinstance(self._key, ec.EllipticCurvePrivateKey):
            return self._key.sign(data, ec.ECDSA(hashes.SHA256()))
        if isinstance(self._key, rsa.RSAPrivateKey):
            return self._key.sign(data, padding.PKCS1v15(), hashes.SHA256())
        return self._key.sign(data)


def needs_password(pem: str) -> bool:
    """Whether a private key is encrypted."""
    return "-----BEGIN ENCRYPTED " in pem or "Proc-Type: 4,ENCRYPTED" in pem


def load(pem: str, password: str = "") -> PrivateKey:
    """Read a private key: cosign's, or any other in PEM. ParamError: it is none, or the password is wrong."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_der_private_key, load_pem_private_key

    if len(pem) > LARGEST:
        raise wrong(f"the file is larger than {LARGEST >> 10} KiB")
    for kind in COSIGN:
        head, tail = f"-----BEGIN {kind}-----", f"-----END {kind}-----"
        if head in pem and tail in pem:
            body = pem.partition(head)[2].partition(tail)[0]
            try:
                return PrivateKey(load_der_private_key(decrypted(body, password.encode()), None))
            except (ValueError, TypeError, UnsupportedAlgorithm):
                raise wrong("what it encrypts is no private key") from None
    encrypted = needs_password(pem)
    try:
        return PrivateKey(
            load_pem_private_key(pem.encode("ascii", "replace"), password.encode() if encrypted else None)
        )
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise wrong("the password is wrong, or the key is damaged" if encrypted else "no private key in PEM") from None


def decrypted(body: str, password: bytes) -> bytes:
    """The DER bytes in cosign's box: JSON in base64. ParamError."""
    try:
        box = parsed(base64.b64decode("".join(body.split()), validate=True), "key")
        kdf, cipher = mapping(box.get("kdf"), "kdf"), mapping(box.get("cipher"), "cipher")
        if (
            kdf.get("name") != "scrypt"
            or cipher.get("name") != "nacl/secretbox"
            or kdf.get("params") not in ALLOWED_WORK
        ):
            raise wrong("it is encrypted in an unknown way")
        salt, nonce, data = field(kdf, "salt"), field(cipher, "nonce"), field(box, "ciphertext")
    except (ImageError, binascii.Error, ValueError, TypeError):
        raise wrong("it is damaged") from None
    from nacl.exceptions import CryptoError

    try:
        return bytes(secret_box(password, salt, kdf["params"]).decrypt(data, nonce))
    except (CryptoError, ValueError):
        raise wrong("the password is wrong", hint="COSIGN_PASSWORD, or the prompt, gives it") from None


def encrypted(der: bytes, password: bytes) -> str:
    """PEM of a private key as cosign keeps it."""
    salt, nonce = os.urandom(SALT_BYTES), os.urandom(NONCE_BYTES)
    sealed = secret_box(password, salt, WORK).encrypt(der, nonce).ciphertext
    box = {
        "kdf": {"name": "scrypt", "params": WORK, "salt": base64.b64encode(salt).decode()},
        "cipher": {"name": "nacl/secretbox", "nonce": base64.b64encode(nonce).decode()},
        "ciphertext": base64.b64encode(sealed).decode(),
    }
    text = base64.b64encode(json.dumps(box, separators=(",", ":")).encode()).decode()
    lines = "\n".join(text[at : at + 64] for at in range(0, len(text), 64))
    return f"-----BEGIN {COSIGN[0]}-----\n{lines}\n-----END {COSIGN[0]}-----\n"


def generate(prefix: str | os.PathLike[str], password: str = "") -> tuple[Path, Path]:
    """Make a key pair, PREFIX.key (of nobody else to read) and PREFIX.pub. ParamError: a file is there already."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    made = ec.generate_private_key(ec.SECP256R1())
    pem = encrypted(made.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()), password.encode())
    secret, public = Path(f"{os.fspath(prefix)}.key"), Path(f"{os.fspath(prefix)}.pub")
    written: list[Path] = []
    try:
        for path, text, mode in ((secret, pem, 0o600), (public, PrivateKey(made).pem, 0o644)):
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
            written.append(path)
            with os.fdopen(fd, "w") as file:
                file.write(text)
    except OSError as error:
        for path in written:
            with contextlib.suppress(OSError):
                path.unlink()
        problem = "is there already" if isinstance(error, FileExistsError) else error.strerror
        raise ParamError("generate-key", os.fspath(prefix), f"cannot write {error.filename}: {problem}") from None
    return secret, public


def secret_box(password: bytes, salt: bytes, work: Mapping[str, int]) -> SecretBox:
    """The cipher for a password. PluginError: its library is not installed."""
    from hashlib import scrypt

    try:
        from nacl.secret import SecretBox
    except ImportError:
        raise PluginError("cosign's encrypted keys need PyNaCl", hint="pip install 'igrun[sign]'") from None
    most = 2 * 128 * work["N"] * work["r"]
    return SecretBox(scrypt(password, salt=salt, n=work["N"], r=work["r"], p=work["p"], maxmem=most, dklen=KEY_BYTES))


def field(entry: Json, name: str) -> bytes:
    """A member in base64."""
    value: Any = entry.get(name)
    if not isinstance(value, str):
        raise ValueError(name)
    return base64.b64decode(value, validate=True)


def wrong(problem: str, hint: str = "") -> ParamError:
    """The error for a private key; nothing of the key is in it."""
    return ParamError("key", "", f"private key: {problem}", hint=hint)
