"""`ig image verify` and `sign`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from igrun.cli.face import Command, Face, say, show
from igrun.cli.image.names import full_name, present, stored, with_digest
from igrun.cli.options import policy, taking
from igrun.config import ACCESS, KEYS

if TYPE_CHECKING:
    from igrun.lookup import Policy
    from igrun.oci.model import Content, Descriptor, Reference

FORMATS = {"bundle": "bundle", "referrer": "referrer", "tag": "tag", "legacy": "tag"}
REMOTE = click.option("--remote", is_flag=True, help="The image of the registry, even if the local store has one.")


@contextmanager
def held(image: str, how: Policy, remote: bool, *, writable: bool) -> Iterator[tuple[Content, Reference, Descriptor]]:
    """The image where it is: in the local store, else in its registry."""
    from igrun.errors import NotFoundError
    from igrun.lookup import repository
    from igrun.oci.model import Reference
    from igrun.oci.store import Store

    if not remote:
        with Store.open(writable=writable) as store:
            try:
                name = present(store, image, how.settings)
            except NotFoundError:
                name = ""
            if name:
                yield store, Reference.parse(name), store.resolve(name)
                return
    reference = full_name(image, how.settings)
    with repository(reference, how) as place:
        yield place, reference, place.resolve(reference)


@click.command("verify", cls=Command)
@click.argument("image", metavar="GADGET", shell_complete=stored)
@REMOTE
@click.option("-o", "--output", "output", type=click.Choice(["columns", "json", "jsonpretty"]), default="columns")
@taking((*KEYS, *ACCESS))
@click.pass_obj
def verify_(face: Face, image: str, remote: bool, output: str, given: Mapping[str, str]) -> None:
    """Verify the signature of an image in the local store, or else in its registry.

    Trusted are the keys of --public-keys (without it, the key of the ecosystem), and what the other flags say.
    """
    how = policy(face, given)
    trust = how.trust()
    say(f"Verifying image: {image}")
    with held(image, how, remote, writable=False) as (place, reference, descriptor):
        found = trust.verify(place, descriptor, reference)
    for warning in found.warnings:
        say(f"Warning: {warning}")
    say("Image verified successfully!")
    if output == "columns":
        say(f"{with_digest(reference, found.digest)}: {found.format}, by {found.by}")
        return
    from igrun.cli.image.listing import as_json

    show(
        as_json(
            {
                "image": str(reference),
                "digest": found.digest,
                "format": found.format,
                "by": found.by,
                "signature": found.signature,
            },
            output,
        )
    )


@click.command("sign", cls=Command)
@click.argument("image", required=False, shell_complete=stored)
@click.option("--key", "key", metavar="FILE", default="", help="Private key: cosign's, or another in PEM.")
@click.option(
    "--format",
    "formats",
    type=click.Choice(list(FORMATS)),
    multiple=True,
    help="How to write it: bundle (the default; cosign 3), referrer, or tag or legacy (older ones).",
)
@click.option(
    "--generate-key", "prefix", metavar="PREFIX", default="", help="First make a key: PREFIX.key, PREFIX.pub."
)
@REMOTE
@taking(ACCESS, short=False)
@click.pass_obj
def sign_(
    face: Face,
    image: str | None,
    key: str,
    formats: tuple[str, ...],
    prefix: str,
    remote: bool,
    given: Mapping[str, str],
) -> None:
    """Sign an image in the local store, or else in its registry.

    The password of the key is the environment variable COSIGN_PASSWORD, or is asked for on a terminal. What signs an
    image of the store is pushed along with it.
    """
    if not (key or prefix):
        raise click.UsageError("give --key, or make one with --generate-key")
    if key and prefix:
        raise click.UsageError("give --key or --generate-key, not both")
    if not (image or prefix):
        raise click.UsageError("Missing argument 'IMAGE'.")
    from igrun.metadata.params import from_file
    from igrun.oci import private

    how = policy(face, given)
    if prefix:
        password = asked(twice=True)
        secret, public = private.generate(prefix, password)
        say(f"Private key written to {secret}")
        say(f"Public key written to {public}")
        key = str(secret)
    pem = from_file(f"@{key}", "key")
    if not prefix:
        password = asked(twice=False) if private.needs_password(pem) else ""
    if not image:
        return
    from igrun.oci.sign import sign

    with held(image, how, remote, writable=True) as (place, reference, descriptor):
        done = sign(
            place,
            descriptor,
            pem,
            password,
            formats=[FORMATS[one] for one in formats] or ["bundle"],
            reference=reference,
        )
    for one in done:
        say(f"Wrote signature {one.descriptor.digest}")
    say(f"Successfully signed {with_digest(reference, descriptor.digest)}")


def asked(*, twice: bool) -> str:
    """The password of a private key."""
    from igrun.errors import GadgetError

    given = os.environ.get("COSIGN_PASSWORD")
    if given is not None:
        return given
    if not os.isatty(0):
        raise GadgetError("the private key has a password", hint="COSIGN_PASSWORD gives it; it may be empty")
    import sys
    from getpass import getpass

    try:
        password = getpass("Password for the private key: ", stream=sys.stderr)
        again = getpass("Once more: ", stream=sys.stderr) if twice else password
    except EOFError:
        raise GadgetError("the private key has a password") from None
    if again != password:
        raise GadgetError("the passwords are not the same")
    return password
