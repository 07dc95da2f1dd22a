"""Which images may run: those that are allowed by name or digest, and signed by somebody trusted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from igrun.dataclass import dataclass
from igrun.errors import GadgetError, ImageError, ParamError, PluginError, SignatureError
from igrun.oci.keys import BUILT_IN, PublicKey, load
from igrun.oci.model import LARGEST_MANIFEST, Content, Descriptor, Manifest, Reference, Referrer
from igrun.oci.signature import MOST_SIGNATURES, NOTATION, Claim, Verified, claims, kind, read, signs

if TYPE_CHECKING:
    from igrun.oci.policy import Policy, TrustStore

__all__ = ["Trust", "Verified"]
MOST_REFERRERS = 1000


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
        if self.notation_certificates and not self.notation_policy:
            raise ParamError(
                "notation-policy-document",
                "",
                "notation-certificates without notation-policy-document",
                hint="the trust policy says for which images the certificates are",
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
            # What is in signatures is anybody's text, and this goes to a terminal.
            told = "".join(character if character.isprintable() else "?" for character in one)
            if told not in problems:
                problems.append(told)
        raise SignatureError(
            f'verifying gadget signature "{name}": {"; ".join(problems) or "signature not found"}',
            hint="--public-keys says whom you trust; --verify-image=false runs it without a signature",
        )

    def _judged(self, content: Content, image: Descriptor, reference: Reference | None) -> Iterator[Verified | str]:
        """Each signature of an image: what is good about it, or why it is refused."""
        keys = load(self.public_keys)
        by_notation = Notation.read(self.notation_certificates, self.notation_policy, reference)
        if by_notation and by_notation.policy and by_notation.policy.level == "skip":
            why = f"trust policy {by_notation.policy.name!r} skips verification"
            yield Verified("notation", why, image.digest, "", (why,))
            return
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
                notation = of == NOTATION
                for claim in (None,) if notation else claims(content, image, manifest, referrer, of):
                    if tried >= MOST_SIGNATURES:
                        yield f"there are more than {MOST_SIGNATURES} signatures, the others were not tried"
                        return
                    tried += 1
                    if claim is None:
                        yield judged_notation(content, image, manifest, referrer, by_notation)
                    else:
                        yield self._judge(claim, image, keys)
            except ParamError:
                raise
            except GadgetError as error:
                yield f"{referrer.descriptor.digest} cannot be read: {error}"

    def _judge(self, claim: Claim, image: Descriptor, keys: tuple[PublicKey, ...]) -> Verified | str:
        """One signature of cosign."""
        if claim.problem:
            return f"{claim.format}: {claim.problem}"
        for key in keys:
            if any(key.signed(claim.data, signature) for signature in claim.signatures):
                return Verified(claim.format, f"key sha256:{key.fingerprint}", image.digest, claim.manifest)
        if claim.certificate and self.identity:
            from igrun.oci.keyless import judge

            try:
                by = judge(claim, self.identity, self.issuer, self.trusted_root)
                return Verified(claim.format, by, image.digest, claim.manifest)
            except (ImageError, PluginError) as error:
                return f"{claim.format}: {error}" + (f" ({error.hint})" if error.hint else "")
        if claim.certificate:
            return f"{claim.format}: it is known by a certificate, and certificate-identity is not given"
        refused = "the image was not signed by the provided keys" if keys else "there are no public keys"
        return f"{claim.format}: {refused}"


@dataclass(frozen=True, slots=True)
class Notation:
    """What Notation trusts for one image. policy: None if no statement is for its name"""

    store: TrustStore
    policy: Policy | None

    @classmethod
    def read(cls, certificates: tuple[str, ...], document: str, reference: Reference | None) -> Notation | None:
        """None: nothing is given. ParamError: it is wrong."""
        if not document:
            return None
        from igrun.oci.policy import applicable, read_certificates, read_policies

        return cls(read_certificates(certificates), applicable(read_policies(document), reference))


def judged_notation(
    content: Content, image: Descriptor, manifest: Manifest, referrer: Referrer, trusted: Notation | None
) -> Verified | str:
    """One signature of Notation: what is good about it, or why it is refused."""
    if trusted is None:
        return "notation: notation-certificates and notation-policy-document are not given"
    if trusted.policy is None:
        return "notation: no trust policy is for this image (registryScopes)"
    from igrun.oci.notation import judge

    try:
        return judge(content, image, manifest, referrer.descriptor.digest, trusted.policy, trusted.store)
    except ImageError as error:
        return f"notation: {error}"


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
