"""Notation's trust policy: which certificates and which signers are trusted for which images, and how strictly."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from igrun.dataclass import dataclass, field
from igrun.errors import ImageError, ParamError
from igrun.oci.keys import BLOCK, first_line
from igrun.oci.model import Json, Reference, mapping, parsed, text

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

PARAM, CERTIFICATES = "notation-policy-document", "notation-certificates"
INTEGRITY, AUTHENTICITY, TIMESTAMP, EXPIRY, REVOCATION = (
    "integrity",
    "authenticity",
    "authenticTimestamp",
    "expiry",
    "revocation",
)
CHECKS = (INTEGRITY, AUTHENTICITY, TIMESTAMP, EXPIRY, REVOCATION)
ENFORCE, LOG, SKIP = "enforce", "log", "skip"
LEVELS: Mapping[str, Mapping[str, str]] = {
    "strict": dict.fromkeys(CHECKS, ENFORCE),
    "permissive": {**dict.fromkeys(CHECKS, LOG), INTEGRITY: ENFORCE, AUTHENTICITY: ENFORCE},
    "audit": {**dict.fromkeys(CHECKS, LOG), INTEGRITY: ENFORCE},
    "skip": dict.fromkeys(CHECKS, SKIP),
}
STORE = re.compile(r"(ca|signingAuthority|tsa):([a-zA-Z0-9_.-]+)")
STORE_LINE = re.compile(rf"^#?\s*({STORE.pattern})\s*$", re.MULTILINE)
TIMES = ("", "always", "afterCertExpiry")
EVERY = "*"
SUBJECT = "x509.subject:"
NEEDED = ("C", "ST", "O")
MOST_POLICIES = 1000
MOST_CERTIFICATES = 100


@dataclass(frozen=True, slots=True)
class Policy:
    """One statement of the document.

    scopes:      `registry/repository`, or `*`
    actions:     check -> enforce, log or skip
    stores:      `ca:name`, `signingAuthority:name`, `tsa:name`
    identities:  what the subject of a signer must have, attribute by attribute; {} is anybody
    """

    name: str
    scopes: tuple[str, ...]
    level: str
    actions: Mapping[str, str]
    stores: tuple[str, ...] = ()
    identities: tuple[Mapping[str, str], ...] = ()
    timestamp: str = ""


@dataclass(frozen=True, slots=True)
class TrustStore:
    """Certificates that are trusted. named: those of certain stores; others: those of every store"""

    named: Mapping[str, tuple[Certificate, ...]] = field(default_factory=dict)
    others: tuple[Certificate, ...] = ()

    def of(self, stores: Iterable[str]) -> tuple[Certificate, ...]:
        """The certificates of these stores."""
        return (*(one for store in stores for one in self.named.get(store, ())), *self.others)


def read_policies(document: str) -> tuple[Policy, ...]:
    """The statements of a trust policy document. ParamError: it is wrong."""
    try:
        entry = parsed(document.encode(), "trust policy")
        version = text(entry, "version", "trust policy", "")
        if version != "1.0":
            raise ImageError(f"trust policy: unknown version {version[:20]!r}")
        found = entry.get("trustPolicies")
        if not isinstance(found, list) or not 0 < len(found) <= MOST_POLICIES:
            raise ImageError("trust policy: no trustPolicies")
        policies = tuple(read_policy(mapping(one, "trust policy: a statement")) for one in found)
        for what, names in (
            ("name", [one.name for one in policies]),
            ("registry scope", [scope for one in policies for scope in one.scopes]),
        ):
            for name in names:
                if names.count(name) > 1:
                    raise ImageError(f"trust policy: {what} {name!r} is in several statements")
    except ImageError as error:
        raise ParamError(PARAM, document, f"{PARAM}: {error}") from None
    return policies


def read_policy(entry: Json) -> Policy:
    """One statement. ImageError: it is wrong."""
    name = text(entry, "name", "trust policy: a statement")
    where = f"trust policy {name!r}"
    if not name:
        raise ImageError("trust policy: a statement has no name")
    scopes = texts(entry, "registryScopes", where)
    if not scopes or (EVERY in scopes and len(scopes) > 1) or any(EVERY in one and one != EVERY for one in scopes):
        raise ImageError(f"{where}: registryScopes are one `*`, or registry/repository ...")
    for scope in scopes:
        if scope != EVERY and not re.fullmatch(r"[^/@\s]+/[^@:\s]+", scope):
            raise ImageError(f"{where}: registry scope {scope!r} is no registry/repository")
    how = mapping(entry.get("signatureVerification"), f"{where}: signatureVerification")
    level = text(how, "level", where, "")
    if level not in LEVELS:
        raise ImageError(f"{where}: unknown level {level[:50]!r}; one of {', '.join(LEVELS)}")
    stores, identities = texts(entry, "trustStores", where), texts(entry, "trustedIdentities", where)
    if level == "skip":
        if stores or identities or how.get("override"):
            raise ImageError(f"{where}: level skip goes with no trust stores, trusted identities and override")
    elif not stores or not identities:
        raise ImageError(f"{where}: needs trustStores and trustedIdentities")
    for store in stores:
        if not STORE.fullmatch(store):
            raise ImageError(f"{where}: {store!r} is no trust store, which is ca:NAME or signingAuthority:NAME")
    if EVERY in identities and len(identities) > 1:
        raise ImageError(f"{where}: trusted identity `*` goes with no other")
    timestamp = text(how, "verifyTimestamp", where, "")
    if timestamp not in TIMES:
        raise ImageError(f"{where}: verifyTimestamp is always or afterCertExpiry")
    return Policy(
        name,
        scopes,
        level,
        actions(level, how.get("override"), where),
        stores,
        tuple(one for text in identities for one in identity(text, where)),
        timestamp,
    )


def actions(level: str, override: Any, where: str) -> dict[str, str]:
    """What is done about each check."""
    found = dict(LEVELS[level])
    for check, action in mapping(override or {}, f"{where}: override").items():
        if check not in CHECKS or action not in (ENFORCE, LOG, SKIP):
            raise ImageError(f"{where}: unknown override {check[:50]}: {str(action)[:50]}")
        if check == INTEGRITY or (check != REVOCATION and action == SKIP):
            raise ImageError(f"{where}: {check} cannot be overridden so")
        found[check] = action
    return found


def identity(wanted: str, where: str) -> list[Mapping[str, str]]:
    """What a trusted identity asks of a subject; [] for a kind that only plug-ins know."""
    if wanted == EVERY:
        return [{}]
    if not wanted.startswith(SUBJECT):
        if ":" in wanted:
            return []
        raise ImageError(f"{where}: {wanted!r} is no trusted identity, which is `x509.subject: C=..., ST=..., O=...`")
    found = attributes(wanted.removeprefix(SUBJECT), where)
    missing = [name for name in NEEDED if name not in found]
    if missing:
        raise ImageError(f"{where}: trusted identity {wanted!r} has no {', '.join(missing)}")
    return [found]


def attributes(name: str, where: str) -> dict[str, str]:
    """The attributes of a distinguished name (RFC 4514), by their short names."""
    from cryptography.x509 import Name

    # The specification has blanks after commas, and some tools write S for ST.
    compact = re.sub(r"(?<!\\),\s+", ",", name.strip())
    compact = re.sub(r"(^|(?<!\\),)S=", r"\1ST=", compact)
    try:
        return subject(Name.from_rfc4514_string(compact))
    except (ValueError, ImageError):
        raise ImageError(f"{where}: {name.strip()!r} is no distinguished name") from None


def subject(name: Any) -> dict[str, str]:
    """The attributes of a parsed name. ImageError: one is there twice, so that it is not clear which one counts."""
    found: dict[str, str] = {}
    for one in name:
        if one.rfc4514_attribute_name in found:
            raise ImageError("an attribute is there twice")
        found[one.rfc4514_attribute_name] = str(one.value)
    return found


def applicable(policies: Sequence[Policy], reference: Reference | None) -> Policy | None:
    """The statement for an image: that of its repository, else that of all."""
    for wanted in (reference.name if reference else EVERY, EVERY):
        for one in policies:
            if wanted in one.scopes:
                return one
    return None


def read_certificates(given: Iterable[str]) -> TrustStore:
    """The certificates in PEM texts. ParamError: one of them is none.

    A text is for all trust stores, or for one that a line before its certificates names: `# ca:acme`.
    """
    from cryptography.x509 import load_pem_x509_certificate

    named: dict[str, tuple[Certificate, ...]] = {}
    others: list[Certificate] = []
    for one in given:
        blocks = list(BLOCK.finditer(one))
        try:
            found = tuple(load_pem_x509_certificate(block[0].encode("ascii", "replace")) for block in blocks)
        except ValueError:
            found = ()
        if not found:
            raise ParamError(
                CERTIFICATES,
                first_line(one),
                f"{CERTIFICATES}: {first_line(one)!r} is no certificate in PEM",
                hint="@FILE reads it from a file",
            )
        store = STORE_LINE.search(one[: blocks[0].start()])
        if store:
            named[store[1]] = named.get(store[1], ()) + found
        else:
            others.extend(found)
    if len(others) + sum(map(len, named.values())) > MOST_CERTIFICATES:
        raise ParamError(CERTIFICATES, "", f"{CERTIFICATES}: more than {MOST_CERTIFICATES} certificates")
    return TrustStore(named, tuple(others))


def texts(entry: Json, member: str, where: str) -> tuple[str, ...]:
    """A list of texts, empty if it is not there."""
    found = entry.get(member) or []
    if not isinstance(found, list) or not all(isinstance(one, str) and one for one in found):
        raise ImageError(f"{where}: wrong {member}")
    return tuple(dict.fromkeys(found))
