"""`ig login REGISTRY`."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

import click

from igrun.cli.face import Command, Face, say
from igrun.cli.options import taking
from igrun.config import AUTHFILE, CA_FILE, CERT_FILE, INSECURE, KEY_FILE, PLAIN_HTTP

LONGEST_PASSWORD = 100 << 10


@click.command("login", cls=Command)
@click.argument("registry")
@click.option("-u", "--username", metavar="TEXT", default="", help="Username.")
@click.option("-p", "--password", metavar="TEXT", default="", help="Password; others can see it, so rather give none.")
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input.")
@click.option(
    "--tls-verify", type=bool, default=True, metavar="", help="Verify the registry's certificate (default true)."
)
@taking((AUTHFILE, INSECURE, PLAIN_HTTP, CA_FILE, CERT_FILE, KEY_FILE))
@click.pass_obj
def command(
    face: Face,
    registry: str,
    username: str,
    password: str,
    password_stdin: bool,
    tls_verify: bool,
    given: Mapping[str, str],
) -> None:
    """Log in to a registry, and keep what it wants to know for the next time.

    It is kept in the file of --authfile, or with the credential helper that the file names. What is not given is asked
    for on a terminal.
    """
    settings = face.settings()
    from igrun.errors import GadgetError

    if password and password_stdin:
        raise GadgetError("--password and --password-stdin are mutually exclusive")
    if password:
        say("WARNING! Using --password via the CLI is insecure. Use --password-stdin.")
    if password_stdin:
        password = piped()
    elif os.isatty(0):
        username, password = asked(username, password)
    if not username or not password:
        raise GadgetError("username and password are required", hint="give --username and --password-stdin")
    from igrun.oci.access import Access
    from igrun.oci.credentials import login

    login(registry, username, password, Access.of(settings, {**given, "tls-verify": str(tls_verify).lower()}))
    say("Login Succeeded")


def piped() -> str:
    """The password on standard input, without the end of its line."""
    from igrun.errors import GadgetError

    data = sys.stdin.buffer.read(LONGEST_PASSWORD + 1)
    if len(data) > LONGEST_PASSWORD:
        raise GadgetError(f"the password is longer than {LONGEST_PASSWORD >> 10} KiB")
    return data.decode("utf-8", "surrogateescape").rstrip("\r\n")


def asked(username: str, password: str) -> tuple[str, str]:
    """What was not given, from the user at the terminal."""
    from getpass import getpass

    try:
        if not username:
            print("Username: ", end="", file=sys.stderr, flush=True)
            username = sys.stdin.readline().strip()
        if username and not password:
            password = getpass("Password: ", stream=sys.stderr)
    except EOFError:
        pass
    return username, password
