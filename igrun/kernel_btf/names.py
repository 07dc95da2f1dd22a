"""What a kernel's BTF is called: by distribution, its version, machine and release, as BTFHub does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

from igrun.errors import GadgetError

if TYPE_CHECKING:
    from igrun.host import Host

# BTFHub calls machines of arm64 so, `uname -m` and images otherwise
OTHERS = {"aarch64": "arm64", "arm64": "aarch64"}
ARCHITECTURES = {"amd64": "x86_64", "x86_64": "x86_64", "arm64": "arm64", "aarch64": "arm64"}
WORD = re.compile(r"[A-Za-z0-9_.+~:-]{1,200}")


class Kernel(NamedTuple):
    """A kernel of a distribution. id, version_id: of its os-release; machine: x86_64, or for ARM aarch64 or arm64"""

    id: str
    version_id: str
    machine: str
    release: str

    @classmethod
    def of(cls, host: Host) -> Self:
        """The running one."""
        return cls(host.os_release.get("ID", ""), host.os_release.get("VERSION_ID", ""), host.machine, host.release)

    @property
    def hub_machine(self) -> str:
        """The machine as BTFHub and we call it."""
        return ARCHITECTURES.get(self.machine, self.machine)

    @property
    def name(self) -> str:
        """Its name in archives: `debian/10/x86_64/4.19.0-20-amd64`."""
        return "/".join((self.id, self.version_id, self.hub_machine, self.release))

    def check(self) -> None:
        """GadgetError: a part of its name is missing or cannot be part of a path."""
        for what, part in zip(("ID", "VERSION_ID", "architecture", "release"), self, strict=True):
            if not WORD.fullmatch(part) or part in (".", ".."):
                found = f"cannot be {part[:80]!r}" if part else "is not known (os-release does not say it)"
                raise GadgetError(f"the kernel's {what} {found}", hint="`ig btf` takes it with a flag")

    def names(self) -> list[str]:
        """Every name that it may have in an archive or layer, the documented one first.

        BTFHub has the rebuilt distributions by the first number of their version.
        """
        versions = [self.version_id, *([self.version_id.partition(".")[0]] if "." in self.version_id else [])]
        machines = [self.machine, *([OTHERS[self.machine]] if self.machine in OTHERS else [])]
        return [f"{self.id}/{version}/{machine}/{self.release}" for version in versions for machine in machines]


def named(path: Path) -> Kernel | None:
    """The kernel that a file's path tells: `.../<id>/<version>/<machine>/<release>.btf`, `.btf.tar.xz` among them."""
    release = re.sub(r"\.btf(\.tar(\.xz|\.gz)?)?$", "", path.name)
    if release == path.name or len(path.parts) < 4:
        return None
    id_, version, machine = path.parts[-4:-1]
    found = Kernel(id_, version, ARCHITECTURES.get(machine, ""), release)
    return found if all(WORD.fullmatch(part) for part in found) else None
