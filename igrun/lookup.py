"""Where the name of an image leads: this machine's store, then the gadgets that come with igrun."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from os import environ

from igrun import data
from igrun.config import BUNDLED, DEFAULT_SEARCH, LOCAL
from igrun.errors import InvalidReferenceError, NotFoundError
from igrun.image import GadgetImage, unpack
from igrun.oci.model import Reference
from igrun.oci.store import Store, user_store


def find(
    name: str,
    architecture: str,
    *,
    search: Sequence[str] = DEFAULT_SEARCH,
    of_user: bool = False,
    env: Mapping[str, str] = environ,
) -> GadgetImage:
    """The image of that name, verified and unpacked for one architecture.

    search:  where to look for a short name (one without `/`): `local`, `bundled`, and prefixes of registries; any
             other name is looked for in the store alone
    of_user: in the store of the user who called sudo

    InvalidReferenceError; NotFoundError: nowhere; ImageError: it is damaged, or no gadget
    """
    reference = Reference.parse(name)  # refuses what cannot be a name at all
    with user_store(env) if of_user else Store.open(writable=False) as local:
        for store, full in places(name, reference, local, search):
            try:
                found = store.resolve(full)
            except NotFoundError:
                continue
            return unpack(store, found, architecture)
    raise NotFoundError(f"image {name!r} not found", hint=advice(reference, of_user, env))


def places(name: str, reference: Reference, local: Store, search: Sequence[str]) -> Iterator[tuple[Store, str]]:
    """Each store to look in, with the full name there."""
    if "/" in name:
        yield local, str(reference)
        return
    for place in search:
        if place == LOCAL:
            yield from ((local, full) for full in prefixed(name, search))
        elif place == BUNDLED and (root := data.gadgets()):
            with Store.open(root, writable=False) as bundle:
                yield bundle, bundled_name(name)


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


def advice(reference: Reference, of_user: bool, env: Mapping[str, str]) -> str:
    """What to do about a name that leads nowhere."""
    if not of_user and env.get("SUDO_USER"):
        try:
            with user_store(env) as other:
                other.resolve(reference)
            return f"{env['SUDO_USER']} has it: add --oci-store-user"
        except (NotFoundError, InvalidReferenceError):
            pass
    from difflib import get_close_matches

    known = bundled()
    near = get_close_matches(reference.repository.rpartition("/")[2], known, 1)
    if near:
        return f"did you mean {near[0]}?"
    return f"`ig image list` shows what is in the store; these come with ig: {', '.join(known) or 'none'}"
