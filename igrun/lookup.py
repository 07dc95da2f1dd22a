"""Where the name of an image leads: this machine's store, the gadgets that come with igrun, registries.

A name is resolved to a digest once. From then on only the digest counts: the allow-list, the signature and every blob
are checked against it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from os import environ
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from igrun import data
from igrun.config import (
    ALLOWED,
    BUNDLED,
    DEFAULT_SEARCH,
    DISALLOW_PULLING,
    IDENTITY,
    ISSUER,
    LOCAL,
    NOTATION_CERTIFICATES,
    NOTATION_POLICY,
    PREFIXES,
    PUBLIC_KEYS,
    PULL,
    TRUSTED_ROOT,
    VERIFY,
    Settings,
)
from igrun.dataclass import replace
from igrun.errors import GadgetError, InvalidReferenceError, NotFoundError, RegistryError
from igrun.image import GadgetImage, unpack
from igrun.logs import Logger
from igrun.metadata.params import Param, from_file
from igrun.oci.model import DEFAULT_PREFIX, DEFAULT_REGISTRY, Descriptor, Reference
from igrun.oci.store import Store, user_store

if TYPE_CHECKING:
    from igrun.oci.access import Access
    from igrun.oci.copy import Progress
    from igrun.oci.registry import Repository
    from igrun.oci.trust import Trust

ALWAYS, NEVER = "always", "never"
PULLED = "pulled"
LIKENESS = 0.8  # names of gadgets begin alike
UNVERIFIED = "gadget signature verification is disabled due to using corresponding option"
AGAIN = "signature not found, will pull signing information and try verification again"


class Policy(NamedTuple):  # and no dataclass, as these here take time to make, in each run
    """Which images may be used, and how they are asked for.

    given:    texts by the keys of `config.IMAGES`; what is not there is asked of the settings
    settings: what the config file and the environment say
    progress: is told what a pull transfers
    looking:  nothing of the image will run, so no signature is asked for
    """

    given: Mapping[str, str] = MappingProxyType({})
    settings: Settings = Settings()
    progress: Progress | None = None
    looking: bool = False

    def value(self, param: Param[Any]) -> Any:
        """The typed value of a param. ParamError: its text is wrong."""
        text = self.given.get(param.key)
        return self.settings.value(param) if text is None else param.parse(text)

    @property
    def pull(self) -> str:
        """When to pull: always, missing or never."""
        return str(self.value(PULL))

    @property
    def verify(self) -> bool:
        """Whether an image needs a signature."""
        return bool(self.value(VERIFY)) and not self.looking

    @property
    def limited(self) -> bool:
        """Whether only some gadgets are allowed."""
        return bool(self.value(ALLOWED))

    def trust(self) -> Trust:
        """What is trusted. ParamError: it does not fit together."""
        from igrun.oci.keys import BUILT_IN
        from igrun.oci.trust import Trust

        keys = self.given.get(PUBLIC_KEYS.key, self.settings.get(PUBLIC_KEYS.full_name))
        return Trust(
            verify_image=self.verify,
            public_keys=(BUILT_IN,) if keys is None else self.contents(PUBLIC_KEYS),
            notation_certificates=self.contents(NOTATION_CERTIFICATES),
            notation_policy=from_file(self.value(NOTATION_POLICY), NOTATION_POLICY.key),
            identity=self.value(IDENTITY),
            issuer=self.value(ISSUER),
            trusted_root=self.value(TRUSTED_ROOT),
            allowed=self.value(ALLOWED),
            disallow_pulling=self.value(DISALLOW_PULLING),
        )

    def access(self) -> Access:
        """How registries are asked."""
        from igrun.oci.access import Access

        # Python code that names no settings is not to be ruled by them, but the machine's proxies and logins hold.
        others = {name: text for name, text in environ.items() if not name.startswith(PREFIXES)}
        return Access.of(replace(self.settings, env=self.settings.env or others), self.given)

    def contents(self, param: Param[tuple[str, ...]]) -> tuple[str, ...]:
        """The parts of a list, `@path` standing for what that file holds."""
        return tuple(from_file(part, param.key) for part in self.value(param) if part)


class Located(NamedTuple):
    """An image. store: holds it, open; name: its name there; origin: `local`, `bundled` or `pulled`."""

    store: Store
    name: str
    descriptor: Descriptor
    origin: str


def find(
    name: str,
    architecture: str,
    *,
    search: Sequence[str] = DEFAULT_SEARCH,
    of_user: bool = False,
    env: Mapping[str, str] = environ,
    policy: Policy | None = None,
) -> GadgetImage:
    """The image of that name, trusted and unpacked for one architecture.

    search:  where to look for a short name (one without `/`): `local`, `bundled`, and prefixes of registries; any
             other name is looked for in the store and in its registry
    of_user: in the store of the user who called sudo; nothing is pulled
    policy:  when to pull, and whom to trust

    InvalidReferenceError; NotFoundError: nowhere; SignatureError: nobody trusted has signed it; RegistryError: it
    cannot be pulled; ImageError: it is not allowed, damaged, or no gadget
    """
    with ExitStack() as stack:
        found = locate(stack, name, search=search, of_user=of_user, env=env, policy=policy)
        return unpack(found.store, found.descriptor, architecture)


def locate(
    stack: ExitStack,
    name: str,
    *,
    search: Sequence[str] = DEFAULT_SEARCH,
    of_user: bool = False,
    env: Mapping[str, str] = environ,
    policy: Policy | None = None,
) -> Located:
    """The image of that name, in a store that the stack closes (see `find`)."""
    reference = Reference.parse(name)  # refuses what cannot be a name at all
    policy = policy or Policy()
    local = stack.enter_context(user_store(env) if of_user else Store.open(writable=False))
    seeker = Seeker(stack, local, policy, NEVER if of_user else policy.pull)
    try:
        found = seeker.full(str(reference)) if "/" in name else seeker.short(name, search)
    except (NotFoundError, RegistryError) as error:
        here = "pulling it" if seeker.pull == ALWAYS else "not found on this machine; pulling it"
        error.message = f"image {name!r}: {here}: {error}"
        error.hint = better(reference, of_user, env) or error.hint
        raise
    if found is None:
        raise NotFoundError(f"image {name!r} not found", hint=advice(reference, of_user, env))
    return found


class Seeker(NamedTuple):
    """Looks for one image. pull: always, missing or never, of what comes from registries."""

    stack: ExitStack
    local: Store
    policy: Policy
    pull: str

    def full(self, name: str) -> Located | None:
        """The image of a full name: of the store, or of its registry."""
        return self.stored(name) or self.pulled(name)

    def short(self, name: str, search: Sequence[str]) -> Located | None:
        """The image of a short name, at the first place that has one."""
        absent: NotFoundError | None = None
        for place in search:
            found = None
            if place == LOCAL:
                found = next(filter(None, map(self.stored, prefixed(name, search))), None)
            elif place == BUNDLED:
                found = self.bundled(name)
            elif place:
                try:
                    found = self.full(prefixed(name, [place])[0])
                except NotFoundError as error:
                    absent = absent or error
            if found:
                return found
        if absent:
            raise absent
        return None

    def stored(self, name: str) -> Located | None:
        """What the store has of that name, pulled anew if it must be."""
        try:
            descriptor = self.local.resolve(name)
        except NotFoundError:
            return None
        reference = Reference.parse(name)
        if self.pull == ALWAYS and not reference.digest:
            return self.pulled(name)
        self.check_allowed(reference, descriptor)
        self.check_signature(reference, descriptor)
        return Located(self.local, name, descriptor, LOCAL)

    def bundled(self, name: str) -> Located | None:
        """What comes with igrun. It is as trusted as igrun is."""
        root = data.gadgets()
        if root is None:
            return None
        bundle = self.stack.enter_context(Store.open(root, writable=False))
        try:
            descriptor = bundle.resolve(bundled_name(name))
        except NotFoundError:
            return None
        self.check_allowed(Reference.parse(name), descriptor)
        return Located(bundle, bundled_name(name), descriptor, BUNDLED)

    def pulled(self, name: str) -> Located | None:
        """What the registry has of that name, pulled into the store."""
        if self.pull == NEVER:
            return None
        store = self.stack.enter_context(Store.open())
        return Located(store, name, fetch(Reference.parse(name), store, self.policy), PULLED)

    def check_allowed(self, reference: Reference, descriptor: Descriptor) -> None:
        """Refuse what the allow-list does not have."""
        if self.policy.limited:
            trust = self.policy.trust()
            trust.check_name(reference)
            trust.check_digest(reference, descriptor.digest)

    def check_signature(self, reference: Reference, descriptor: Descriptor) -> None:
        """SignatureError unless somebody trusted has signed an image of the store, or it was made here."""
        if self.policy.looking or vouched(self.local, descriptor) or not verifies(self.policy):
            return
        trust = self.policy.trust()
        if self.pull != NEVER and not trust.disallow_pulling and not self.local.referrers(descriptor):
            # Whoever put it there took the image alone, or its signature came later.
            with suppress(NotFoundError, RegistryError), Store.open() as store:
                tell(AGAIN)
                with repository(reference, self.policy) as remote:
                    bring(remote, store, descriptor, reference, self.policy)
        trust.verify(self.local, descriptor, reference)


def fetch(reference: Reference, store: Store, policy: Policy) -> Descriptor:
    """Pull an image and what is about it into a store, where it has the same name.

    Nothing is asked for before the name is allowed, and no layer before the digest is, and is signed.
    """
    trust = policy.trust()
    trust.check_name(reference)
    if trust.disallow_pulling:
        raise GadgetError(f"{reference}: pulling is disallowed", hint="the flag or setting disallow-pulling says so")
    with repository(reference, policy) as remote:
        descriptor = remote.resolve(reference)
        trust.check_digest(reference, descriptor.digest)
        if not policy.looking and verifies(policy):
            trust.verify(remote, descriptor, reference)
        bring(remote, store, descriptor, reference, policy)
    return descriptor


def repository(reference: Reference, policy: Policy) -> Repository:
    """The repository of an image in its registry, open."""
    from igrun.oci.registry import Repository

    return Repository.open(reference, policy.access())


def bring(remote: Repository, store: Store, descriptor: Descriptor, reference: Reference, policy: Policy) -> None:
    """Copy an image and what is about it into a store, by its digest."""
    from igrun.oci.copy import copy

    copy(remote, store, descriptor, reference, progress=policy.progress)


def verifies(policy: Policy) -> bool:
    """Whether signatures are asked for; if not, the user is told."""
    if not policy.verify:
        tell(UNVERIFIED, warning=True)
    return policy.verify


def vouched(store: Store, descriptor: Descriptor) -> bool:
    """Whether an image of this store was made here, so that it needs no signature."""
    from igrun.oci import provenance

    made = provenance.Provenance.open(provenance.PLACE)
    if made.problem:
        tell(made.problem, warning=True)
    return made.trusts(descriptor.digest, store.root)


def tell(text: str, *, warning: bool = False) -> None:
    """Log a line for the user."""
    logger = Logger(__name__)
    (logger.warning if warning else logger.info)(text)


# ---------------------------------------------------------------------------------------------- names


def prefixed(name: str, search: Sequence[str]) -> list[str]:
    """The full names that a short one may have, by the prefixes of the search list, in order."""
    prefixes = [place for place in search if place not in (LOCAL, BUNDLED)]
    full = [str(Reference.parse(prefix.rstrip("/") + "/" + name)) for prefix in prefixes if prefix]
    return list(dict.fromkeys(full)) or [str(Reference.parse(name))]


def bundled_name(name: str) -> str:
    """The name of a gadget in the bundle: short, with its tag."""
    last = name.partition("@")[0]
    return name if "@" in name else last if ":" in last else f"{last}:latest"


def bundled() -> list[str]:
    """Short names of the gadgets that come with igrun."""
    root = data.gadgets()
    if root is None:
        return []
    with Store.open(root, writable=False) as bundle:
        return [one.name.removesuffix(":latest") for one in bundle.list()]


def adopted(name: str, store: Store, reference: Reference) -> Descriptor | None:
    """Copy a gadget that comes with igrun into a store, under another name. None: there is none of that name."""
    from igrun.oci import provenance
    from igrun.oci.copy import copy

    root = data.gadgets()
    if root is None:
        return None
    with Store.open(root, writable=False) as bundle:
        try:
            descriptor = bundle.resolve(bundled_name(name))
        except NotFoundError:
            return None
        copy(bundle, store, descriptor, reference)
    provenance.Provenance.open(provenance.PLACE).record(descriptor.digest, "comes with igrun", store.root)
    return descriptor


def better(reference: Reference, of_user: bool, env: Mapping[str, str]) -> str:
    """Who has such an image, or what may have been meant; "" if nobody and nothing."""
    if not of_user and env.get("SUDO_USER"):
        with suppress(NotFoundError, InvalidReferenceError), user_store(env) as other:
            other.resolve(reference)
            return f"{env['SUDO_USER']} has it: add --oci-store-user"
    if reference.registry != DEFAULT_REGISTRY or not reference.repository.startswith(DEFAULT_PREFIX):
        return ""
    from difflib import get_close_matches

    last = reference.repository.removeprefix(DEFAULT_PREFIX)
    near = next(iter(get_close_matches(last, bundled(), 1, LIKENESS)), last)
    return "" if near == last else f"did you mean {near}?"


def advice(reference: Reference, of_user: bool, env: Mapping[str, str]) -> str:
    """What to do about a name that leads nowhere."""
    listed = f"`ig image list` shows what is in the store; these come with ig: {', '.join(bundled()) or 'none'}"
    return better(reference, of_user, env) or listed
