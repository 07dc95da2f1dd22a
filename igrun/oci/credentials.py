"""Names and passwords for registries, in the files and helper programs that container engines share.

The file is the one that `--authfile` or $REGISTRY_AUTH_FILE names, else /var/lib/ig/config.json, else Docker's own.
oras reads such files too; it always adds Docker's own to them, and knows neither identity tokens nor bounds.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from igrun.dataclass import dataclass, field
from igrun.errors import GadgetError, RegistryError
from igrun.oci.access import DOCKER, Access

DOCKER_KEY = "https://index.docker.io/v1/"
LARGEST = 1 << 20
PATIENCE_S = 30.0
TOKEN_USER = "<token>"
HELPER = "docker-credential-"
ENDS = ("v1/", "v2/", "v1", "v2", "")
TOKEN = re.compile(r"[\x21-\x7e]+")  # what a header can hold


@dataclass(frozen=True, slots=True)
class Credential:
    """What a registry wants to know. identity: a token to get other tokens with; token: one for the registry itself."""

    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    identity: str = field(default="", repr=False)
    token: str = field(default="", repr=False)

    @property
    def basic(self) -> str:
        """As HTTP's Basic scheme wants it, "" without a username."""
        text = f"{self.username}:{self.password}"
        return base64.b64encode(text.encode("utf-8", "surrogateescape")).decode() if self.username else ""


def key_of(host: str) -> str:
    """What a registry is called in these files."""
    return DOCKER_KEY if host in (DOCKER, "index.docker.io", "registry-1.docker.io") else host


def find(host: str, access: Access, repository: str = "") -> Credential | None:
    """What is known for a registry, or for a folder of it. GadgetError: the file cannot be read."""
    _, config = read(access)
    key = key_of(host)
    helper = helper_for(config, key)
    if helper:
        said = called(helper, "get", key, access.env)
        return None if said is None else of_helper(said)
    auths = config.get("auths")
    if not isinstance(auths, dict):
        return None
    folders = repository.split("/") if repository else []
    below = [f"{host}/{'/'.join(folders[:count])}" for count in range(len(folders), 0, -1)]
    for name in (*below, *names_of(host)):
        if isinstance(auths.get(name), dict) and (found := of_entry(auths[name])):
            return found
    return None


def names_of(host: str) -> tuple[str, ...]:
    """What a registry may be called in these files."""
    bare = (key_of(host), host, f"https://{host}", f"http://{host}")
    return tuple(dict.fromkeys((*bare, *(f"{scheme}://{host}/{end}" for scheme in ("https", "http") for end in ENDS))))


def of_entry(entry: Mapping[str, Any]) -> Credential | None:
    """An entry of `auths`. None: it says nothing."""

    def text(key: str) -> str:
        value = entry.get(key)
        return value if isinstance(value, str) else ""

    username, password = text("username"), text("password")
    with contextlib.suppress(ValueError):
        decoded = base64.b64decode(text("auth")).decode("utf-8", "surrogateescape").rstrip("\0")
        if ":" in decoded:
            username, _, password = decoded.partition(":")
    token = text("registrytoken")
    found = Credential(username, password, text("identitytoken"), token if TOKEN.fullmatch(token) else "")
    return found if found != Credential() else None


def of_helper(said: Mapping[str, Any]) -> Credential | None:
    """What a credential helper said."""
    username, secret = said.get("Username"), said.get("Secret")
    if not isinstance(username, str) or not isinstance(secret, str) or not secret:
        return None
    return Credential(identity=secret) if username == TOKEN_USER else Credential(username, secret)


# ---------------------------------------------------------------------------------------------- keep and forget


def login(registry: str, username: str, password: str, access: Access) -> None:
    """Check a name and a password with the registry, and keep them. RegistryError: it does not take them."""
    from igrun.oci.transport import Client

    host = host_of(registry)
    if ":" in username:
        raise GadgetError("a username has no colon")
    with Client(access.endpoint(host), access, Credential(username, password)) as client:
        try:
            client.ping()
        except RegistryError as error:
            if error.status in (401, 403):
                detail = f" ({error.detail})" if error.detail else ""
                error.message = f"unauthorized: {host} does not take this username and password{detail}"
                error.hint = ""
            raise
    place, config = read(access, writing=True)
    key = key_of(host)
    helper = helper_for(config, key)
    auths = config.get("auths")
    auths = dict(auths) if isinstance(auths, dict) else {}
    if helper:
        entry = json.dumps({"ServerURL": key, "Username": username, "Secret": password})
        called(helper, "store", entry, access.env, must=True)
        auths[key] = {}
    else:
        auths[key] = {"auth": Credential(username, password).basic}
    write(place, {**config, "auths": auths})


def logout(registry: str, access: Access) -> None:
    """Forget what is kept for a registry. RegistryError: nothing is."""
    host = host_of(registry)
    place, config = read(access, writing=True)
    key = key_of(host)
    auths = config.get("auths")
    auths = dict(auths) if isinstance(auths, dict) else {}
    helper = helper_for(config, key)
    kept = bool(helper) and called(helper, "get", key, access.env) is not None
    if kept:
        called(helper, "erase", key, access.env, must=True)
    names = [name for name in names_of(host) if name in auths]
    if not (kept or names):
        raise RegistryError(f"not logged in to {registry}")
    for name in names:
        del auths[name]
    if names:
        write(place, {**config, "auths": auths})


def known(access: Access) -> tuple[str, ...]:
    """The registries that something is kept for."""
    _, config = read(access)
    auths = config.get("auths")
    names = [key for key in auths if isinstance(key, str)] if isinstance(auths, dict) else []
    helpers = config.get("credHelpers")
    names += [key for key in helpers if isinstance(key, str)] if isinstance(helpers, dict) else []
    store = config.get("credsStore")
    if isinstance(store, str) and store:
        said = called(store, "list", "", access.env)
        names += [key for key in said or {} if key not in names]
    return tuple(dict.fromkeys(DOCKER if name == DOCKER_KEY else host_of(name) for name in names))


def host_of(registry: str) -> str:
    """The host of a registry, however somebody wrote it."""
    host = registry.partition("://")[2] or registry
    host = host.partition("/")[0]
    return DOCKER if host in ("index.docker.io", "registry-1.docker.io") else host


# ---------------------------------------------------------------------------------------------- files and helpers


def places(access: Access) -> tuple[Path, Path]:
    """Our file, and Docker's."""
    home = access.env.get("DOCKER_CONFIG") or str(Path(access.env.get("HOME") or "~").expanduser() / ".docker")
    return Path(access.authfile), Path(home) / "config.json"


def read(access: Access, *, writing: bool = False) -> tuple[Path, dict[str, Any]]:
    """The file in use and what it holds. writing: our own, there or not."""
    ours, dockers = places(access)
    for place in (ours,) if access.given or writing else (ours, dockers):
        try:
            with place.open("rb") as file:
                data = file.read(LARGEST + 1)
        except OSError as error:
            missing = isinstance(error, FileNotFoundError | NotADirectoryError)
            if missing and (writing or not access.given):
                continue
            if not access.given and not writing:
                continue  # another user's
            raise GadgetError(f"authfile {place}: {error.strerror}") from None
        try:
            value = json.loads(data) if len(data) <= LARGEST else None
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise GadgetError(f"authfile {place} is no JSON object", hint="it has the form of Docker's config.json")
        return place, value
    return ours, {}


def write(place: Path, config: Mapping[str, Any]) -> None:
    """Write the file, whole or not at all, for its owner alone."""
    try:
        place = place.resolve()  # a link stays one
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd, temporary = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name}.")
        try:
            with open(fd, "w") as file:
                json.dump(config, file, indent="\t")
                file.flush()
                os.fsync(fd)
            Path(temporary).replace(place)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise GadgetError(f"cannot write {place}: {error.strerror}", hint="--authfile names another file") from None


def helper_for(config: Mapping[str, Any], key: str) -> str:
    """The credential helper that keeps a registry's secret, "" if none does."""
    helpers = config.get("credHelpers")
    found = helpers.get(key) if isinstance(helpers, dict) else None
    found = found or config.get("credsStore") or ""
    if not isinstance(found, str) or not re.fullmatch(r"[\w.+-]*", found):
        raise GadgetError("the authfile names a credential helper in a wrong way")
    return found


def called(helper: str, verb: str, given: str, env: Mapping[str, str], *, must: bool = False) -> dict[str, Any] | None:
    """What a credential helper says; None if it knows nothing. GadgetError: it does not work."""
    import subprocess

    name = f"{HELPER}{helper}"
    try:
        done = subprocess.run(
            [name, verb],
            input=given.encode(),
            capture_output=True,
            timeout=PATIENCE_S,
            env={**os.environ, **env},
            check=False,
        )
    except FileNotFoundError:
        raise GadgetError(f"credential helper {name} is not in PATH", hint="the authfile names it") from None
    except OSError as error:
        raise GadgetError(f"credential helper {name}: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise GadgetError(f"credential helper {name} does not answer") from None
    if done.returncode:
        if must:
            raise GadgetError(f"credential helper {name} failed at `{verb}` (exit status {done.returncode})")
        return None
    if not done.stdout.strip() or verb in ("store", "erase"):
        return None
    try:
        value = json.loads(done.stdout[:LARGEST])
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise GadgetError(f"credential helper {name} does not speak its protocol")
    return value
