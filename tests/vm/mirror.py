"""The Debian mirror of this machine, through an apt of our own: its sources, lists, state and cache in one folder."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

KEYRING = Path("usr/share/keyrings/debian-archive-keyring.gpg")
TRUSTED = Path("etc/apt/trusted.gpg.d")
MIRROR = "IGRUN_DEBIAN_MIRROR"  # environment: the mirror, for machines whose own sources have none

CONFIG = """
Dir::Etc::sourcelist "{root}/sources.list";
Dir::Etc::sourceparts "{root}/none";
Dir::Etc::preferences "{root}/none.pref";
Dir::Etc::preferencesparts "{root}/none";
Dir::State "{root}/state";
Dir::State::lists "{root}/state/lists";
Dir::State::status "{root}/state/status";
Dir::Cache "{root}/cache";
Dir::Cache::pkgcache "pkgcache.bin";
Dir::Cache::srcpkgcache "srcpkgcache.bin";
Dir::Log "{root}/log";
APT::Architecture "{architecture}";
APT::Sandbox::User "";
Acquire::Retries "2";
Acquire::http::Timeout "20";
Acquire::https::Timeout "20";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Post-Invoke;
"""


class UnreachableError(Exception):
    """The mirror, its address or its key is not to be had; the text says which."""


class PrivateApt:
    """apt for some suites, all of its files under `root`. Making one reads the package lists."""

    def __init__(
        self, root: Path, suites: Sequence[str], machine: Path = Path("/"), architecture: str = "amd64"
    ) -> None:
        if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
            raise UnreachableError("this machine has no apt-get and dpkg-deb")
        main, security = addresses(machine)
        option = f"arch={architecture} target=Packages{signed_by(machine)}"
        lines = {s: security if s.endswith("-security") else main for s in suites}
        self.suites = tuple(suite for suite, address in lines.items() if address)
        if not self.suites:
            raise UnreachableError(f"the apt sources of this machine name no Debian mirror; set {MIRROR}")
        self.root, self.trouble = root, ""
        for folder in ("none", "state/lists/partial", "cache/archives/partial", "log", "debs"):
            (root / folder).mkdir(parents=True)
        (root / "state/status").touch()
        (root / "apt.conf").write_text(CONFIG.format(root=root, architecture=architecture))
        text = "".join(f"deb [{option}] {lines[suite]} {suite} main\n" for suite in self.suites)
        (root / "sources.list").write_text(text)
        done = self._run("apt-get", "update", check=False)
        # A suite may be gone from the mirror while the others are there: go on with what came.
        problems = [line for line in done.stderr.splitlines() if line.startswith(("E:", "W:"))]
        if problems:
            self.trouble = f" ({problems[0][2:].strip()})"
        if not any((root / "state/lists").glob("*_Packages*")):
            raise UnreachableError(f"the Debian mirror is out of reach{self.trouble}")

    def names(self, prefix: str) -> set[str]:
        return set(self._run("apt-cache", "pkgnames", prefix).stdout.split())

    def versions(self, names: Sequence[str]) -> dict[str, str]:
        """Package -> its newest version."""
        text = self._run("apt-cache", "show", "--no-all-versions", *names).stdout
        stanzas = (dict(re.findall(r"^(Package|Version): (.+)$", part, re.M)) for part in text.split("\n\n"))
        return {stanza["Package"]: stanza["Version"] for stanza in stanzas if stanza}

    def unpack(self, names: Sequence[str]) -> Path:
        """Download packages and unpack them over each other into a folder."""
        self._run("apt-get", "download", "-q", *names, cwd=self.root / "debs")
        return self._unpacked("debs", "tree")

    def unpack_all(self, names: Sequence[str]) -> Path:
        """As `unpack`, with all that they depend on; none of their scripts is run."""
        self._run("apt-get", "install", "-q", "-y", "--no-install-recommends", "--download-only", *names)
        return self._unpacked("cache/archives", "root")

    def _unpacked(self, packages: str, folder: str) -> Path:
        tree = self.root / folder
        tree.mkdir()
        for package in sorted((self.root / packages).glob("*.deb")):
            subprocess.run(["dpkg-deb", "-x", str(package), str(tree)], check=True)
            package.unlink()
        return tree

    def _run(
        self, program: str, *arguments: str, cwd: Path | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        command = [program, "-c", str(self.root / "apt.conf"), *arguments]
        env = {**os.environ, "LC_ALL": "C"}
        done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env)
        if check and done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise UnreachableError(f"{program} {arguments[0]}: {last}")
        return done


def compare_versions(left: str, right: str) -> int:
    """Debian's order of package versions: negative, 0 or positive."""
    for sign, relation in ((-1, "lt"), (1, "gt")):
        if subprocess.run(["dpkg", "--compare-versions", left, relation, right]).returncode == 0:
            return sign
    return 0


def addresses(machine: Path = Path("/")) -> tuple[str, str]:
    """The mirror's address, and that of its security suites; "" for what is not known."""
    chosen = os.environ.get(MIRROR, "").rstrip("/")
    if chosen:
        return chosen, f"{chosen}-security"
    if _os_release(machine, "ID") == "debian":
        codename = _os_release(machine, "VERSION_CODENAME") or "sid"
        by_suite = {suite: address.rstrip("/") for address, suites in _sources(machine) for suite in suites}
        if codename in by_suite:
            return by_suite[codename], by_suite.get(f"{codename}-security", "")
    # Other distributions ship Debian's address with python-apt.
    template = machine / "usr/share/python-apt/templates/Debian.info"
    if template.exists():
        found = re.findall(r"^BaseURI: (\S+/debian)/?$", template.read_text(), re.M)
        if found:
            return found[-1], f"{found[-1]}-security"
    return "", ""


def signed_by(machine: Path = Path("/")) -> str:
    """The option of a source line that names the key; empty where apt trusts Debian's key anyway."""
    if (machine / KEYRING).exists():
        return f" signed-by={machine / KEYRING}"
    if any((machine / TRUSTED).glob("debian-archive-*")):
        return ""
    raise UnreachableError("no key to check a Debian mirror with: apt-get install debian-archive-keyring")


def _os_release(machine: Path, key: str) -> str:
    try:
        text = (machine / "etc/os-release").read_text()
    except FileNotFoundError:
        return ""
    found = re.search(rf'^{key}="?([^"\n]+)', text, re.M)
    return found[1] if found else ""


def _sources(machine: Path) -> Iterator[tuple[str, list[str]]]:
    """Every binary source of the machine's apt: address, suites (both file formats of sources.list(5))."""
    folder = machine / "etc/apt"
    lists = [folder / "sources.list", *sorted((folder / "sources.list.d").glob("*.list"))]
    for path in lists:
        if path.exists():
            for line in re.finditer(r"^deb\s+(?:\[[^]]*\]\s+)?(\S+)\s+(\S+)", path.read_text(), re.M):
                yield line[1], [line[2]]
    for path in sorted((folder / "sources.list.d").glob("*.sources")):
        for stanza in re.split(r"\n\s*\n", path.read_text()):
            text = "".join(line for line in stanza.splitlines(keepends=True) if not line.startswith("#"))
            # A value goes on in lines that start with a space.
            found = re.findall(r"^([\w-]+):((?:.|\n[ \t])*)", text, re.M)
            fields = {name.lower(): value.split() for name, value in found}
            if "deb" in fields.get("types", []) and fields.get("enabled") != ["no"]:
                for address in fields.get("uris", []):
                    yield address, fields.get("suites", [])
