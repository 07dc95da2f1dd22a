"""What says that an image is signed: cosign's formats as they lie in stores and registries.

    cosign tag        image `sha256-<hex>.sig`: each layer is a payload, its signature is an annotation of the layer
    cosign referrer   the same as an OCI 1.1 referrer
    sigstore bundle   referrer whose layer is a bundle: a DSSE envelope (or the index itself) with its signatures

Nothing here is believed: a claim says what its signature must be over, and whose word that has to be is not known here.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from typing import Any

from igrun.dataclass import dataclass, field
from igrun.errors import ImageError
from igrun.oci.model import DIGEST, EMPTY, Content, Descriptor, Json, Manifest, Referrer, mapping, parsed, text

SIMPLE_SIGNING = "application/vnd.dev.cosign.simplesigning.v1+json"
COSIGN_REFERRER = "application/vnd.dev.cosign.artifact.sig.v1+json"
BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
BUNDLES = re.compile(r"application/vnd\.dev\.sigstore\.bundle(\.v0\.[0-9]+\+json|\+json;version=0\.[0-9]+)")
NOTATION = "application/vnd.cncf.notary.signature"

SIGNATURE = "dev.cosignproject.cosign/signature"
CERTIFICATE = "dev.sigstore.cosign/certificate"
PAYLOAD_TYPE = "cosign container image signature"
IN_TOTO = "application/vnd.in-toto+json"
STATEMENTS = ("https://in-toto.io/Statement/v1", "https://in-toto.io/Statement/v0.1")
SIGNED = "https://sigstore.dev/cosign/sign/v1"  # other predicates tell something about an image, and approve nothing

LARGEST_CLAIM = 1 << 20
LARGEST_SIGNATURE = 16 << 10
MOST_SIGNATURES = 50
MOST_SUBJECTS = 1000
MOST_SIGNERS = 10  # of one envelope


@dataclass(frozen=True, slots=True)
class Verified:
    """A good signature.

    format:    cosign tag, cosign referrer, sigstore bundle or notation
    by:        whose it is: `key sha256:<fingerprint>`, or an identity
    digest:    of the image
    signature: digest of the manifest that holds the signature
    warnings:  what a trust policy only wants told
    """

    format: str
    by: str
    digest: str
    signature: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Claim:
    """Somebody's claim to have signed the image.

    format:      cosign tag, cosign referrer or sigstore bundle
    manifest:    digest of the manifest that holds it
    data:        what must be signed
    signatures:  one good one is enough
    problem:     why it cannot be about the image at all, "" if it can
    certificate: whether it comes with one, by which a signer without a lasting key is known
    bundle:      JSON of a Sigstore bundle, None if it is none; annotations: of cosign's layer
    message:     whether the bundle signs the index itself
    """

    format: str
    manifest: str
    data: bytes = b""
    signatures: tuple[bytes, ...] = ()
    problem: str = ""
    certificate: bool = False
    bundle: bytes | None = None
    annotations: Mapping[str, str] = field(default_factory=dict)
    message: bool = False


def kind(referrer: Referrer, manifest: Manifest | None = None) -> str:
    """The artifact type by which a referrer is known; "" if only its manifest can tell."""
    if referrer.tag.endswith(".sig"):
        return SIMPLE_SIGNING
    if manifest is None:
        # go-containerregistry's registry lists the type of the config instead, which is the empty one in bundles.
        listed = referrer.descriptor.artifact_type
        return "" if listed == EMPTY else listed
    return manifest.artifact_type or manifest.config.media_type


def signs(artifact_type: str) -> bool:
    """Whether referrers of that type are signatures."""
    return artifact_type in (SIMPLE_SIGNING, COSIGN_REFERRER, NOTATION) or bool(BUNDLES.fullmatch(artifact_type))


def claims(content: Content, subject: Descriptor, manifest: Manifest, referrer: Referrer, kind: str) -> Iterator[Claim]:
    """The claims in one referrer of an image. ImageError, NotFoundError, RegistryError: it cannot be read."""
    digest = referrer.descriptor.digest
    if kind in (SIMPLE_SIGNING, COSIGN_REFERRER):
        name = "cosign tag" if kind == SIMPLE_SIGNING else "cosign referrer"
        layers = [layer for layer in manifest.layers if layer.media_type == SIMPLE_SIGNING]
        if not layers:
            yield Claim(name, digest, problem="it has no layer with a signature")
        for layer in layers:
            yield simple(content, subject, layer, name, digest)
    else:
        layers = [layer for layer in manifest.layers if BUNDLES.fullmatch(layer.media_type)]
        if not layers:
            yield Claim("sigstore bundle", digest, problem="it has no layer with a bundle")
        for layer in layers:
            yield bundle(content, subject, read(content, layer), digest)


def read(content: Content, descriptor: Descriptor, largest: int = LARGEST_CLAIM) -> bytes:
    """A small blob. ImageError: it is a large one."""
    if descriptor.size > largest:
        raise ImageError(f"{descriptor.digest} has {descriptor.size} bytes, a signature at most {largest}")
    return content.read(descriptor)


# ---------------------------------------------------------------------------------------------- cosign


def simple(content: Content, subject: Descriptor, layer: Descriptor, name: str, manifest: str) -> Claim:
    """The claim of one layer of cosign's own format."""
    data = read(content, layer)
    try:
        signature = decoded(layer.annotations.get(SIGNATURE, ""), "signature")
        problem = wrong_payload(data, subject.digest)
    except ImageError as error:
        return Claim(name, manifest, problem=str(error))
    certificate = bool(layer.annotations.get(CERTIFICATE))
    return Claim(name, manifest, data, (signature,), problem, certificate, annotations=layer.annotations)


def wrong_payload(data: bytes, digest: str) -> str:
    """Why a payload is not about that image, "" if it is. ImageError: it is no payload."""
    critical = mapping(parsed(data, "payload").get("critical"), "payload: critical")
    if text(critical, "type", "payload") != PAYLOAD_TYPE:
        return f"the payload is no {PAYLOAD_TYPE}"
    image = mapping(critical.get("image"), "payload: critical.image")
    signed = text(image, "docker-manifest-digest", "payload")
    return "" if signed == digest else about_another(signed)


def about_another(digest: str) -> str:
    """The text for a signature of another image."""
    return f"it is about {digest}" if DIGEST.fullmatch(digest) else "it is about another image"


# ---------------------------------------------------------------------------------------------- bundle


def bundle(content: Content, subject: Descriptor, data: bytes, manifest: str) -> Claim:
    """The claim of a Sigstore bundle."""
    name = "sigstore bundle"
    try:
        entry = parsed(data, "bundle")
        media_type = text(entry, "mediaType", "bundle", "")
        if not BUNDLES.fullmatch(media_type):
            raise ImageError(f"bundle of unknown type {media_type[:100]!r}")
        material = mapping(member(entry, "verificationMaterial"), "bundle: verificationMaterial")
        certificate = bool(member(material, "certificate") or member(material, "x509CertificateChain"))
        envelope, message = member(entry, "dsseEnvelope"), member(entry, "messageSignature")
        if envelope is not None:
            signed, signatures, problem = enveloped(mapping(envelope, "bundle: dsseEnvelope"), subject.digest)
        elif message is not None:
            # The index itself is what is signed; its bytes are those of the digest.
            message = mapping(message, "bundle: messageSignature")
            signed, problem = read(content, subject, subject.size), ""
            signatures = (decoded(member(message, "signature"), "signature"),)
        else:
            raise ImageError("bundle without a signature")
    except ImageError as error:
        return Claim(name, manifest, problem=str(error))
    return Claim(name, manifest, signed, signatures, problem, certificate, data, message=envelope is None)


def enveloped(envelope: Json, digest: str) -> tuple[bytes, tuple[bytes, ...], str]:
    """What is signed in a DSSE envelope, its signatures, and why it is not about that image."""
    kind = text({"payloadType": member(envelope, "payloadType")}, "payloadType", "envelope")
    payload = decoded(envelope.get("payload"), "payload", LARGEST_CLAIM)
    found = envelope.get("signatures")
    if not isinstance(found, list) or not 0 < len(found) <= MOST_SIGNERS:
        raise ImageError("envelope: wrong signatures")
    signatures = tuple(decoded(mapping(one, "envelope: signature").get("sig"), "signature") for one in found)
    problem = wrong_statement(payload, digest) if kind == IN_TOTO else f"envelope of unknown type {kind[:100]!r}"
    return authenticated(kind, payload), signatures, problem


def authenticated(kind: str, payload: bytes) -> bytes:
    """The bytes that DSSE signs (its PAE)."""
    name = kind.encode("utf-8", "replace")
    return b"DSSEv1 %d %s %d %s" % (len(name), name, len(payload), payload)


def wrong_statement(payload: bytes, digest: str) -> str:
    """Why an in-toto statement is no signature of that image, "" if it is. ImageError: it is no statement."""
    statement = parsed(payload, "statement")
    if statement.get("_type") not in STATEMENTS:
        return "the payload is no in-toto statement"
    predicate = text(statement, "predicateType", "statement", "")
    if predicate != SIGNED:
        return f"it is no signature but an attestation, {predicate[:100]!r}"
    subjects = statement.get("subject")
    if not isinstance(subjects, list) or not 0 < len(subjects) <= MOST_SUBJECTS:
        raise ImageError("statement: wrong subject")
    digests = [mapping(mapping(one, "subject").get("digest"), "subject: digest").get("sha256") for one in subjects]
    return "" if digest.removeprefix("sha256:") in digests else about_another(f"sha256:{digests[0]}")


def member(entry: Json, name: str) -> Any:
    """A member of protobuf's JSON, which may also have the name that it has in the protobuf."""
    found = entry.get(name)
    return entry.get(re.sub("[A-Z]", lambda one: f"_{one[0].lower()}", name)) if found is None else found


def decoded(value: Any, what: str, largest: int = LARGEST_SIGNATURE) -> bytes:
    """Base64, of either alphabet, with or without padding. ImageError: it is none."""
    if not isinstance(value, str) or not value or len(value) > largest * 4 // 3 + 4:
        raise ImageError(f"no {what}" if not value else f"wrong {what}")
    plain = value.translate(str.maketrans("-_", "+/")).rstrip("=")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise ImageError(f"{what}: no base64") from None
