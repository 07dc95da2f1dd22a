"""Which images may run: those that are allowed by name or digest, and signed by somebody trusted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from igrun.errors import GadgetError, ImageError, ParamError, SignatureError
from igrun.oci.keys import BUILT_IN, PublicKey, load
from igrun.oci.model import LARGEST_MANIFEST, Content, Descriptor, Manifest, Reference, Referrer
from igrun.oci.signature import MOST_SIGNATURES, NOTATION, Claim, claims, kind, read, signs

MOST_REFERRERS = 1000


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
class Trust:
    """What a user trusts.

    verify_image:          whether images need a signature; who calls `verify` asks this first
    public_keys:           PEM texts
    notation_certificates: PEM texts of Notation's trust stores; notation_policy: its trust policy, JSON
    identity, issuer:      of a signer without a lasting key: what the certificate says
    trusted_root:          path of Sigstore's trusted_root.json; "": the public one
    allowed:               names, digests and prefixes; empty: everything is allowed
    disallow_pulling:      whether nothing may be pulled; who pulls asks

    ParamError: these do not go together.
    """

    verify_image: bool = True
    public_keys: tuple[str, ...] = (BUILT_IN,)
    notation_certificates: tuple[str, ...] = ()
    notation_policy: str = ""
    identity: str = ""
    issuer: str = ""
    trusted_root: str = ""
    allowed: tuple[str, ...] = ()
    disallow_pulling: bool = False

    def __post_init__(self) -> None:
        for entry in self.allowed:
            if not entry.strip():
                raise ParamError("allowed-gadgets", ",".join(self.allowed), "allowed-gadgets: an entry is empty")
        if bool(self.identity) != bool(self.issuer):
            raise ParamError(
                "certificate-identity" if self.identity else "certificate-oidc-issuer",
                self.identity or self.issuer,
                "certificate-identity and certificate-oidc-issuer go together",
                hint="who signed, and who says that it was them",
            )
        if bool(self.notation_certificates) != bool(self.notation_policy):
            raise ParamError(
                "notation-policy-document",
                self.notation_policy,
                "notation-certificates and notation-policy-document go together",
            )

    # ------------------------------------------------------------------------------------------ allowed

    def check_name(self, reference: Reference) -> None:
        """Refuse a name that cannot be allowed, whatever its digest is. Before any request. ImageError."""
        if self.allowed and not any(may_allow(entry, reference) for entry in self.allowed):
            raise self._not_allowed(reference)

    def check_digest(self, reference: Reference, digest: str) -> None:
        """Refuse an image that is not allowed. Before any blob. ImageError."""
        if self.allowed and not any(allows(entry, reference, digest) for entry in self.allowed):
            raise self._not_allowed(reference)

    def _not_allowed(self, reference: Reference) -> ImageError:
        return ImageError(
            f"{reference} is not part of allowed gadgets: {', '.join(self.allowed)}",
            hint="--allowed-gadgets, or `allowed-gadgets` in the config, says what may run here",
        )

    # ------------------------------------------------------------------------------------------ signed

    def verify(self, content: Content, descriptor: Descriptor, reference: Reference | None = None) -> Verified:
        """A good signature of an image.

        content:   where the image and its signatures are
        reference: the name of the image; Notation's policies may be for some names only

        SignatureError: there is none; it says why each that was found is refused. ParamError: a key is wrong.
        """
        name = str(reference or descriptor.digest)
        if not (self.public_keys or self.notation_certificates or self.identity):
            raise SignatureError(
                f'verifying gadget signature "{name}": nothing to verify with',
                hint="--public-keys, --certificate-identity and --notation-certificates say who is trusted",
            )
        problems: list[str] = []
        for one in self._judged(content, descriptor, reference):
            if isinstance(one, Verified):
                return one
            if one not in problems:
                problems.append(one)
        raise SignatureError(
            f'verifying gadget signature "{name}": {"; ".join(problems) or "signature not found"}',
            hint="--public-keys says whom you trust; --verify-image=false runs it without a signature",
        )

    def _judged(self, content: Content, image: Descriptor, reference: Reference | None) -> Iterator[Verified | str]:
        """Each signature of an image: what is good about it, or why it is refused."""
        keys = load(self.public_keys)
        tried = 0
        for place, referrer in enumerate(content.referrers(image)):
            if place >= MOST_REFERRERS:
                yield f"there are more than {MOST_REFERRERS} referrers, the others were not looked at"
                return
            of = kind(referrer)
            if of and not signs(of):
                continue
            try:
                manifest = Manifest.parse(read(content, referrer.descriptor, LARGEST_MANIFEST))
                of = kind(referrer, manifest)
                if not signs(of):
                    continue
                if of == NOTATION:
                    found: Iterator[Claim | None] = iter((None,))
                else:
                    found = iter(claims(content, image, manifest, referrer, of))
                for claim in found:
                    if tried >= MOST_SIGNATURES:
                        yield f"there are more than {MOST_SIGNATURES} signatures, the others were not tried"
                        return
                    tried += 1
                    if claim is None:
                        yield self._notation(content, image, referrer, manifest, reference)
                    else:
                        yield self._judge(claim, image, keys)
            except GadgetError as error:
                if isinstance(error, ParamError):
                    raise
                yield f"{referrer.descriptor.digest} cannot be read: {error}"

    def _judge(self, claim: Claim, image: Descriptor, keys: tuple[PublicKey, ...]) -> Verified | str:
        """One signature of cosign."""
        if claim.problem:
            return f"{claim.format}: {claim.problem}"
        for key in keys:
            if any(key.signed(claim.data, signature) for signature in claim.signatures):
                return Verified(claim.format, f"key sha256:{key.fingerprint}", image.digest, claim.manifest)
        refused = "the image was not signed by the provided keys" if keys else "there are no keys"
        return f"{claim.format}: {refused}"

    def _notation(
        self, content: Content, image: Descriptor, referrer: Referrer, manifest: Manifest, reference: Reference | None
    ) -> Verified | str:
        return "notation: notation-certificates and notation-policy-document are not given"


def comparable(reference: Reference) -> str:
    """A name as allowed-gadgets has it. With a digest the tag says nothing about what runs."""
    return f"{reference.name}@{reference.digest}" if reference.digest else f"{reference.name}:{reference.tag}"


def allows(entry: str, reference: Reference, digest: str) -> bool:
    """Whether an entry of allowed-gadgets allows an image of that name and digest."""
    entry = entry.strip()
    if entry.endswith("*"):
        return comparable(reference).startswith(entry[:-1])
    return entry in (comparable(reference), f"{reference.name}@{digest}")


def may_allow(entry: str, reference: Reference) -> bool:
    """Whether an entry allows that name, or might once its digest is known."""
    entry = entry.strip()
    by_digest = not reference.digest and entry.startswith(f"{reference.name}@sha256:")
    return by_digest or allows(entry, reference, reference.digest)
