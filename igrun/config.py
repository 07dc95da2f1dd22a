"""The settings behind the flags: config file and environment.

Precedence: flag, then environment, then config file, then the gadget's or the param's default.

    ~/.ig/config.yaml                          environment
    verbose: true                              INSPEKTOR_GADGET_VERBOSE=true
    operator:
      oci:
        verify-image: false                    INSPEKTOR_GADGET_OPERATOR_OCI_VERIFY_IMAGE=false
    search: [local, bundled, example.org/g/]   INSPEKTOR_GADGET_SEARCH=local,bundled

Every variable may be written with `IG_` for `INSPEKTOR_GADGET_`; where both are set, the long name wins. An empty
variable counts as not set. Keys do not depend on the case of their letters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from igrun.errors import GadgetError, MetadataError
from igrun.metadata.document import as_text, flattened, load
from igrun.metadata.params import BOOL, LIST, Param, read_list

PREFIXES = ("INSPEKTOR_GADGET_", "IG_")
LOCAL, BUNDLED = "local", "bundled"
DEFAULT_SEARCH = (LOCAL, BUNDLED, "ghcr.io/inspektor-gadget/gadget/")
LARGEST = 1 << 20  # bytes of a config file

VERBOSE = Param("verbose", BOOL, "false", "Print debug output", alias="v")
AUTO_MOUNT = Param("auto-mount-filesystems", BOOL, "false", "Mount bpffs, debugfs and tracefs where they are missing")
SEARCH = Param("search", LIST, ",".join(DEFAULT_SEARCH), "Where to look for an image's short name")
PLUGINS = Param("plugins", LIST, "", "Modules of more operators, by their dotted names")
ROOT: tuple[Param[Any], ...] = (VERBOSE, AUTO_MOUNT, SEARCH, PLUGINS)


@dataclass(frozen=True)
class Settings:
    """What the config file and the environment say.

    file:   full param name (`operator.oci.pull`) in lower case -> text, from the config file
    env:    environment variables
    source: the config file; None if there is none
    """

    file: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    source: Path | None = None

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
            return cls(parse(text), env, place)
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
    return {
        name.lower(): ",".join(as_text(one).replace(",", "\\,") for one in value)
        if isinstance(value, list)
        else as_text(value)
        for name, value in flattened(load(text, strict=True))
        if value is not None
    }


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
    return whole


def written(param: Param[Any], text: str) -> str | bool | list[str]:
    """A value as the config file has it."""
    if param.type.name == BOOL.name and text.lower() in ("true", "false"):
        return text.lower() == "true"
    return [part for part in read_list(text) if part] if param.type.name == LIST.name else text
