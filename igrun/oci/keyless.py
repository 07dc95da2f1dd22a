"""Signatures without a lasting key: a certificate says who signed, logs say when and that it was issued in the open.

Everything is verified offline, against a trusted root (Sigstore's trusted_root.json): a file, else the one of the
public Sigstore that the library has. Bundles are verified by sigstore-python. It knows nothing of the annotations that
older versions of cosign write, whose log entry has a signed promise and no proof, so those are verified here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from igrun.dataclass import dataclass
from igrun.errors import ImageError, ParamError, PluginError
from igrun.oci.annotated import verify_annotated
from igrun.oci.signature import Claim, authenticated

if TYPE_CHECKING:
    from cryptography.x509 import Certificate
    from sigstore.models import TrustedRoot

LARGEST_ROOT = 4 << 20
PUBLIC_ROOT = ("_store", "https%3A%2F%2Ftuf-repo-cdn.sigstore.dev", "trusted_root.json")


def judge(claim: Claim, identity: str, issuer: str, trusted_root: str) -> str:
    """Whose signature it is: identity and issuer of the certificate. ImageError: it is not good, or somebody else's.

    trusted_root: path; "": the public Sigstore
    PluginError: the library is not installed. ParamError: the trusted root is wrong.
    """
    try:
        from sigstore.errors import Error
    except ImportError:
        raise PluginError(
            "signatures by certificate-identity need sigstore", hint="pip install 'igrun[sign]'"
        ) from None
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.x509 import DuplicateExtension, ExtensionNotFound, InvalidVersion, UnsupportedGeneralNameType

    root, text = opened_root(trusted_root)
    try:
        if claim.bundle is not None:
            verify_bundle(claim, claim.bundle, Wanted(identity, issuer), root)
        else:
            verify_annotated(claim, Wanted(identity, issuer), root, text)
    except (Error, ValueError, TypeError, AttributeError, LookupError, OverflowError, OSError) as error:
        raise ImageError(f"the certificate's signature is refused: {one_line(error)}") from None
    except (InvalidSignature, UnsupportedAlgorithm, DuplicateExtension, UnsupportedGeneralNameType) as error:
        raise ImageError(f"the certificate's signature is refused: {type(error).__name__} {one_line(error)}") from None
    except (ExtensionNotFound, InvalidVersion) as error:
        raise ImageError(f"the certificate's signature is refused: {one_line(error)}") from None
    return f"{identity} ({issuer})"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a certificate must say (sigstore's VerificationPolicy)."""

    identity: str
    issuer: str

    def verify(self, cert: Certificate) -> None:
        from sigstore.errors import Error
        from sigstore.verify.policy import AnyOf, Identity, OIDCIssuer, OIDCIssuerV2

        Identity(identity=self.identity).verify(cert)
        # An authority tells the issuer in one of two extensions, or in both.
        try:
            AnyOf([OIDCIssuer(self.issuer), OIDCIssuerV2(self.issuer)]).verify(cert)
        except Error:
            raise ValueError(f"its identity was not told by {self.issuer}") from None


def verify_bundle(claim: Claim, bundle: bytes, policy: Wanted, root: TrustedRoot) -> None:
    """Nothing, or one of many errors."""
    from sigstore.models import Bundle
    from sigstore.verify import Verifier

    parsed = Bundle.from_json(bundle)
    verifier = Verifier(trusted_root=root)
    if claim.message:
        verifier.verify_artifact(claim.data, parsed, policy)
    else:
        kind, payload = verifier.verify_dsse(parsed, policy)
        # What was looked at must be what was verified, whatever two readers make of the same JSON.
        if authenticated(kind, payload) != claim.data:
            raise ValueError("the bundle is ambiguous")


def opened_root(path: str) -> tuple[TrustedRoot, bytes]:
    """A trusted root, parsed and as it is. ParamError: it is none."""
    from importlib.resources import as_file, files
    from pathlib import Path

    from sigstore.errors import Error
    from sigstore.models import TrustedRoot

    try:
        if path:
            if Path(path).stat().st_size > LARGEST_ROOT:
                raise ParamError("trusted-root", path, f"trusted-root: {path} is larger than {LARGEST_ROOT >> 20} MiB")
            return TrustedRoot.from_file(path), Path(path).read_bytes()
        with as_file(files("sigstore").joinpath(*PUBLIC_ROOT)) as own:
            return TrustedRoot.from_file(str(own)), own.read_bytes()
    except OSError as error:
        raise ParamError(
            "trusted-root",
            path,
            f"trusted-root: cannot read {error.filename}: {error.strerror}",
            hint="it is Sigstore's trusted_root.json",
        ) from None
    except (Error, ValueError, TypeError, AttributeError, LookupError) as error:
        raise ParamError("trusted-root", path, f"trusted-root: {path or 'the public one'}: {one_line(error)}") from None


def one_line(error: Exception) -> str:
    """What an error says, short."""
    return " ".join(str(error).split())[:300]
