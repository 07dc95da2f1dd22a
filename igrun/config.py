"""The settings behind the flags: config file and environment.

Precedence: flag, then environment, then config file, then the gadget's or the param's default.

    ~/.ig/config.yaml                          environment
    verbose: true                              INSPEKTOR_GADGET_VERBOSE=true
    operator:
      oci:
        verify-image: false                    INSPEKTOR_GADGET_OPERATOR_OCI_VERIFY_IMAGE=false
    search: [local, bundled, example.org/g/]   INSPEKTOR_GADGET_SEARCH=local,bundled
    registries:
      ghcr.io:
        mirrors: [mirror.example.org/ghcr]

Every variable may be written with `IG_` for `INSPEKTOR_GADGET_`; where both are set, the long name wins. An empty
variable counts as not set. Keys do not depend on the case of their letters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from igrun.dataclass import dataclass, field
from igrun.errors import GadgetError, MetadataError
from igrun.metadata.document import as_text, flattened, load
from igrun.metadata.params import BOOL, LIST, TEXT, Param, read_list

PREFIXES = ("INSPEKTOR_GADGET_", "IG_")
LOCAL, BUNDLED = "local", "bundled"
DEFAULT_SEARCH = (LOCAL, BUNDLED, "ghcr.io/inspektor-gadget/gadget/")
REGISTRIES = "registries"
LARGEST = 1 << 20  # bytes of a config file

VERBOSE = Param("verbose", BOOL, "false", "Print debug output", alias="v")
AUTO_MOUNT = Param("auto-mount-filesystems", BOOL, "false", "Mount bpffs, debugfs and tracefs where they are missing")
SEARCH = Param("search", LIST, ",".join(DEFAULT_SEARCH), "Where to look for an image's short name")
PLUGINS = Param("plugins", LIST, "", "Modules of more operators, by their dotted names")
ROOT: tuple[Param[Any], ...] = (VERBOSE, AUTO_MOUNT, SEARCH, PLUGINS)

# ---------------------------------------------------------------------------------------------- images

OCI = "operator.oci"
POLICIES = ("always", "missing", "never")
PULL = Param("pull", TEXT, "missing", "When to pull the image: always, missing or never", group=OCI, choices=POLICIES)
VERIFY = Param("verify-image", BOOL, "true", "Verify the signature of an image that is pulled or imported", group=OCI)
VALIDATE = Param("validate-metadata", BOOL, "true", "Check gadget.yaml against the program", group=OCI)
ANNOTATE = Param("annotate", LIST, "", "Add annotations: source:key=value or source.field:key=value", group=OCI)
RUNNING: tuple[Param[Any], ...] = (PULL, VERIFY, VALIDATE, ANNOTATE)

AUTHFILE = Param(
    "authfile", TEXT, "/var/lib/ig/config.json", "File with the credentials of registries", group=OCI, hint="FILE"
)
INSECURE = Param(
    "insecure-registries", LIST, "", "Registries to ask without TLS or with a certificate of their own", group=OCI
)
PLAIN_HTTP = Param("plain-http", BOOL, "false", "Ask every registry without TLS", group=OCI)
CA_FILE = Param("ca-file", TEXT, "", "Certificates of authorities to trust beside the system's", group=OCI, hint="FILE")
CERT_FILE = Param("cert-file", TEXT, "", "Certificate to show to registries", group=OCI, hint="FILE")
KEY_FILE = Param("key-file", TEXT, "", "Private key of that certificate", group=OCI, hint="FILE")
ACCESS: tuple[Param[Any], ...] = (AUTHFILE, INSECURE, PLAIN_HTTP, CA_FILE, CERT_FILE, KEY_FILE)

PUBLIC_KEYS = Param(
    "public-keys",
    LIST,
    "",
    "Keys that images may be signed with, PEM or @FILE; default: the key of the ecosystem",
    group=OCI,
)
NOTATION_CERTIFICATES = Param(
    "notation-certificates", LIST, "", "Certificates that Notation signatures may be of, PEM or @FILE", group=OCI
)
NOTATION_POLICY = Param(
    "notation-policy-document", TEXT, "", "Trust policy of Notation signatures, JSON or @FILE", group=OCI
)
IDENTITY = Param(
    "certificate-identity", TEXT, "", "Who may have signed without a key: an e-mail address or a URL", group=OCI
)
ISSUER = Param("certificate-oidc-issuer", TEXT, "", "Who vouches for that identity: a URL", group=OCI)
TRUSTED_ROOT = Param(
    "trusted-root",
    TEXT,
    "",
    "Authorities of signatures without a key (default: those of Sigstore)",
    group=OCI,
    hint="FILE",
)
KEYS: tuple[Param[Any], ...] = (*(PUBLIC_KEYS, NOTATION_CERTIFICATES, NOTATION_POLICY, IDENTITY, ISSUER, TRUSTED_ROOT),)
ALLOWED = Param(
    "allowed-gadgets", LIST, "", "Gadgets that may run: name:tag, name@digest or prefix*; default: all", group=OCI
)
DISALLOW_PULLING = Param("disallow-pulling", BOOL, "false", "Pull nothing from registries", group=OCI)
LIMITS: tuple[Param[Any], ...] = (ALLOWED, DISALLOW_PULLING)

BTFHUB = Param(
    "btfhub",
    LIST,
    "auto",
    "Where to get BTF for kernels without it: auto, never (so is --pull never), or addresses of archives like BTFHub's",
    group="btf",
)
BTFHUB_INDEX = Param(
    "btfhub-index", TEXT, "", "SHA-256 digests of what is there; anything else is refused", group="btf", hint="FILE"
)
BTF: tuple[Param[Any], ...] = (BTFHUB, BTFHUB_INDEX)

IMAGES: tuple[Param[Any], ...] = (*RUNNING, *ACCESS, *KEYS, *LIMITS, *BTF)
"""Which images run, where they come from, and what they are run with."""


@dataclass(frozen=True)
class Settings:
    """What the config file and the environment say.

    file:   full param name (`operator.oci.pull`) in lower case -> text, from the config file
    env:    environment variables
    source: the config file; None if there is none
    registries: host of a registry -> what the config file says about it
    """

    file: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    source: Path | None = None
    registries: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str = "", env: Mapping[str, str] = MappingProxyType({}), home: Path | None = None) -> Settings:
        """Read the config file, if there is one. GadgetError: it is wrong, or `path` names none.

        path: as `--config` says; "": INSPEKTOR_GADGET_CONFIG, else `~/.ig/config.yaml`, which need not exist
        home: the user's home directory; None: the one that `env` names
        """
        wanted = path or variable(env, "config") or ""
        place = Path(wanted) if wanted else (home or home_of(env)) / ".ig" / "config.yaml"
        try:
            with place.open("rb") as file:
                text = file.read(LARGEST + 1)
        except OSError as error:
            if not wanted and isinstance(error, FileNotFoundError | NotADirectoryError | PermissionError):
                return cls(env=env)
            raise GadgetError(f"reading config: {place}: {error.strerror}") from None
        try:
            whole = load(text, strict=True)
            table = registries(whole)
            return cls(flat(whole), env, place, table)
        except MetadataError as error:
            where = f"{error.path}: " if error.path else ""
            raise GadgetError(f"reading config: {place}: {where}{error.problem}") from None

    def get(self, name: str) -> str | None:
        """The text set for a full param name (`operator.oci.pull`, `verbose`); None if it is not set."""
        found = variable(self.env, name)
        return self.file.get(name.lower()) if found is None else found

    def value(self, param: Param[Any]) -> Any:
        """The typed value of a param, its default if it is not set. ParamError: the text set is wrong."""
        text = self.get(param.full_name)
        return param.parse(param.default if text is None else text, key=param.full_name)

    def values(self, params: Iterable[Param[Any]]) -> dict[str, str]:
        """Param key -> text, for those of the params that are set."""
        found = {param.key: self.get(param.full_name) for param in params}
        return {key: text for key, text in found.items() if text is not None}

    @property
    def search(self) -> tuple[str, ...]:
        """Where to look for a short name, in order: `local`, `bundled`, or the prefix of a registry."""
        return self._list(SEARCH)

    @property
    def plugins(self) -> tuple[str, ...]:
        """Dotted names of third-party plug-ins."""
        return self._list(PLUGINS)

    def _list(self, param: Param[tuple[str, ...]]) -> tuple[str, ...]:
        text = self.get(param.full_name)
        return tuple(part for part in read_list(param.default if text is None else text) if part)


def parse(text: bytes) -> dict[str, str]:
    """The config file's text -> full param name in lower case -> text; a list's parts joined by commas.

    MetadataError: it is no YAML mapping, or a key is there twice.
    """
    return flat(load(text, strict=True))


def flat(whole: Mapping[str, Any]) -> dict[str, str]:
    return {
        name.lower(): ",".join(as_text(one).replace(",", "\\,") for one in value)
        if isinstance(value, list)
        else as_text(value)
        for name, value in flattened(whole)
        if value is not None
    }


def registries(whole: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Take the table of registries out of a config file's tree. MetadataError: it is none."""
    found: dict[str, dict[str, Any]] = {}
    for name in [key for key in whole if key.lower() == REGISTRIES]:
        table = whole.pop(name)
        if table is None:
            continue
        if not isinstance(table, dict):
            raise MetadataError(name, "not a mapping of registries")
        for host, entry in table.items():
            if not isinstance(entry, dict):
                raise MetadataError(f"{name}.{host}", "not a mapping")
            found[host] = {key.lower(): value for key, value in entry.items()}
    return found


def variable(env: Mapping[str, str], name: str) -> str | None:
    """What the environment says for a full param name; None: nothing."""
    key = name.upper().replace("-", "_").replace(".", "_")
    return next((env[prefix + key] for prefix in PREFIXES if env.get(prefix + key)), None)


def home_of(env: Mapping[str, str]) -> Path:
    """The user's home directory."""
    return Path(env.get("HOME") or "~").expanduser()


def tree(settings: Settings, params: Iterable[Param[Any]]) -> dict[str, Any]:
    """Every param's text, as a config file is structured; lists as lists, bools as bools."""
    whole: dict[str, Any] = {}
    for param in sorted((*ROOT, *params), key=lambda param: param.full_name.lower()):
        *groups, key = param.full_name.lower().rsplit(".", 1)
        inner = whole
        for group in groups[0].split(".") if groups else ():
            inner = inner.setdefault(group, {})
        text = settings.get(param.full_name)
        inner[key] = written(param, param.default if text is None else text)
    whole[REGISTRIES] = {host: dict(entry) for host, entry in settings.registries.items()}
    return whole


def written(param: Param[Any], text: str) -> str | bool | list[str]:
    """A value as the config file has it."""
    if param.type.name == BOOL.name and text.lower() in ("true", "false"):
        return text.lower() == "true"
    return [part for part in read_list(text) if part] if param.type.name == LIST.name else text
