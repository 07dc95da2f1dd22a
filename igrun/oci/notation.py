"""Verify signatures of Notation (Notary Project), without the network.

A trust policy says which checks must be good (`enforce`), which only warn (`log`) and which are left out. Two need more
than the image and its signature, so they are made as far as they can be: whether a certificate was revoked is not
known here if it says where to ask, and timestamps of authorities (RFC 3161) are not read, so that a signature is only
good while its certificates are valid.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from igrun.errors import ImageError
from igrun.oci.chain import check_chain, check_time, revocable
from igrun.oci.envelope import AUTHORITY, COSE, JWS, Envelope, opened, target
from igrun.oci.model import Content, Descriptor, Manifest
from igrun.oci.policy import (
    AUTHENTICITY,
    ENFORCE,
    EXPIRY,
    LOG,
    REVOCATION,
    TIMESTAMP,
    Policy,
    TrustStore,
    subject,
)
from igrun.oci.signature import Verified, read

FORMAT = "notation"


def judge(
    content: Content,
    image: Descriptor,
    manifest: Manifest,
    digest: str,
    policy: Policy,
    store: TrustStore,
    now: datetime | None = None,
) -> Verified:
    """A good signature. ImageError: it is not, by that policy.

    manifest, digest: of the referrer that holds the signature
    now:              None: the clock's
    """
    layers = [layer for layer in manifest.layers if layer.media_type in (JWS, COSE)]
    if len(manifest.layers) != 1 or len(layers) != 1:
        raise ImageError("it has not one layer with an envelope")
    envelope = opened(layers[0].media_type, read(content, layers[0]))
    check_chain(envelope.chain)
    about = Descriptor.read(target(envelope.payload), "payload: targetArtifact")
    if (about.digest, about.size, about.media_type) != (image.digest, image.size, image.media_type):
        raise ImageError(
            f"it is about {about.digest}" if about.digest != image.digest else "it has another size or type"
        )
    warnings = []
    for check, problem in problems(envelope, policy, store, now or datetime.now(UTC)):
        action = policy.actions[check]
        if action == ENFORCE:
            raise ImageError(problem)
        if action == LOG:
            warnings.append(problem)
    by = envelope.chain[0].subject.rfc4514_string()
    return Verified(FORMAT, by, image.digest, digest, tuple(warnings))


def problems(envelope: Envelope, policy: Policy, store: TrustStore, now: datetime) -> Iterator[tuple[str, str]]:
    """Each check that is not good, and why."""
    kind = "signingAuthority" if envelope.scheme == AUTHORITY else "ca"
    trusted = store.of(one for one in policy.stores if one.startswith(f"{kind}:"))
    if not any(one.startswith(f"{kind}:") for one in policy.stores):
        yield AUTHENTICITY, f"the trust policy has no trust store of type {kind}"
    elif not any(one in trusted for one in envelope.chain):
        yield AUTHENTICITY, "the signature is not produced by a trusted signer"
    try:
        signer = subject(envelope.chain[0].subject)
    except ImageError:
        signer = {}
    if not any(wanted.items() <= signer.items() for wanted in policy.identities):
        yield AUTHENTICITY, f"signer {envelope.chain[0].subject.rfc4514_string()!r} is no trusted identity"
    if envelope.expires_at is not None and now >= envelope.expires_at:
        yield EXPIRY, f"the signature has expired on {envelope.expires_at:%Y-%m-%dT%H:%M:%SZ}"
    try:
        if envelope.scheme == AUTHORITY:
            check_time(envelope.chain, envelope.signed_at, "when it signed")
        else:
            check_time(envelope.chain, now, "now")
            if any(one.startswith("tsa:") for one in policy.stores) and policy.timestamp != "afterCertExpiry":
                raise ImageError("timestamps of authorities cannot be verified")
    except ImageError as error:
        yield TIMESTAMP, str(error)
    if revocable(envelope.chain):
        yield (
            REVOCATION,
            "whether the signer's certificate was revoked is not asked; override `revocation` to accept that",
        )
