"""The certificates of a signer, up to the root, by Notation's rules for signing code."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, TypeVar

from igrun.errors import ImageError

if TYPE_CHECKING:
    from cryptography.x509 import Certificate, ExtensionType, KeyUsage

T = TypeVar("T", bound="ExtensionType")


def check_chain(chain: Sequence[Certificate]) -> None:
    """ImageError: a certificate is not issued by the next one, or may not sign what it signs."""
    last = len(chain) - 1
    for place, certificate in enumerate(chain):
        name = certificate.subject.rfc4514_string()
        issuer = chain[min(place + 1, last)]
        if place == last and certificate.issuer != certificate.subject:
            raise ImageError(f"the certificate chain does not end with a root: {name!r} is not self-signed")
        check_issued(certificate, issuer)
        if place == 0:
            check_leaf(certificate, name)
        else:
            check_authority(certificate, name, place - 1)


def check_issued(certificate: Certificate, issuer: Certificate) -> None:
    """ImageError: a certificate is not issued by that other one."""
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives import hashes

    name = certificate.subject.rfc4514_string()
    try:
        if isinstance(certificate.signature_hash_algorithm, hashes.MD5 | hashes.SHA1):
            raise ImageError(f"certificate {name!r} is signed with a hash that is broken")
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm):
        raise ImageError(f"certificate {name!r} is not issued by {issuer.subject.rfc4514_string()!r}") from None


def check_leaf(certificate: Certificate, name: str) -> None:
    """ImageError: that certificate is not for signing code."""
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID as Use

    basic = extension(certificate, x509.BasicConstraints)
    if basic is not None and basic.ca:
        raise ImageError(f"certificate {name!r} of the signer is one of an authority")
    usage = key_usage(certificate, name)
    others = (usage.key_encipherment, usage.data_encipherment, usage.key_agreement, usage.key_cert_sign, usage.crl_sign)
    if not usage.digital_signature or any(others):
        raise ImageError(f"certificate {name!r} is not for digital signatures alone")
    extended = extension(certificate, x509.ExtendedKeyUsage)
    forbidden = (Use.SERVER_AUTH, Use.CLIENT_AUTH, Use.EMAIL_PROTECTION, Use.TIME_STAMPING, Use.OCSP_SIGNING)
    if extended is not None and any(one in forbidden for one in extended):
        raise ImageError(f"certificate {name!r} is for other things than signing code")


def check_authority(certificate: Certificate, name: str, below: int) -> None:
    """ImageError: that certificate may not issue others. below: authorities between it and the signer"""
    from cryptography import x509

    basic = extension(certificate, x509.BasicConstraints)
    if basic is None or not basic.ca:
        raise ImageError(f"certificate {name!r} is not one of an authority")
    if basic.path_length is not None and basic.path_length < below:
        raise ImageError(f"certificate {name!r} may not issue to authorities")
    if not key_usage(certificate, name).key_cert_sign:
        raise ImageError(f"certificate {name!r} may not issue certificates")


def key_usage(certificate: Certificate, name: str) -> KeyUsage:
    """What the key is for; Notation wants it told, and critical."""
    from cryptography import x509

    try:
        found = certificate.extensions.get_extension_for_class(x509.KeyUsage)
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        raise ImageError(f"certificate {name!r} does not say what its key is for") from None
    if not found.critical:
        raise ImageError(f"certificate {name!r}: its key usage is not critical")
    return found.value


def extension(certificate: Certificate, kind: type[T]) -> T | None:
    """An extension of a certificate, None if it has none of that kind."""
    from cryptography import x509

    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None
    except (x509.DuplicateExtension, ValueError):
        raise ImageError(f"certificate {certificate.subject.rfc4514_string()!r} has wrong extensions") from None


def check_time(chain: Iterable[Certificate], at: datetime, what: str) -> None:
    """ImageError: a certificate is not valid then. what: of the time, for the error"""
    for one in chain:
        if not one.not_valid_before_utc <= at <= one.not_valid_after_utc:
            name = one.subject.rfc4514_string()
            raise ImageError(f"certificate {name!r} is not valid {what} ({at:%Y-%m-%dT%H:%M:%SZ})")


def revocable(chain: Sequence[Certificate]) -> bool:
    """Whether a certificate says where its authority tells that it was revoked."""
    from cryptography import x509
    from cryptography.x509.oid import AuthorityInformationAccessOID

    for one in chain[:-1] or chain:
        if extension(one, x509.CRLDistributionPoints) is not None:
            return True
        access = extension(one, x509.AuthorityInformationAccess)
        if access and any(entry.access_method == AuthorityInformationAccessOID.OCSP for entry in access):
            return True
    return False
