"""`ig btf ...`: BTF for kernels that were built without it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from igrun.cli.face import Command, Face, Group, say, show
from igrun.cli.image.listing import OUTPUT, as_json
from igrun.cli.options import taking
from igrun.config import BTF

if TYPE_CHECKING:
    from igrun.kernel_btf.names import Kernel

command = Group("btf", help="Get, list and import BTF for kernels that were built without it.")
TITLES = ("Id", "VersionId", "Arch", "Release", "Size")


def of_kernel(required: str) -> list[click.Option]:
    """The flags that say which kernel is meant."""
    return [
        click.Option(["--id", "id_"], metavar="TEXT", default="", help=f"ID of its os-release{required}."),
        click.Option(["--version-id"], metavar="TEXT", default="", help=f"VERSION_ID of its os-release{required}."),
        click.Option(["--arch"], type=click.Choice(["amd64", "x86_64", "arm64", "aarch64"]), help="Its architecture."),
        click.Option(["--release"], metavar="TEXT", default="", help=f"What `uname -r` says there{required}."),
    ]


class OfKernel(Command):
    """A command for one kernel, by default the running one."""

    def __init__(self, name: str | None, **more: object) -> None:
        super().__init__(name, **more)
        self.params = [*of_kernel(" (default: this machine's)"), *self.params]


@command.command("fetch", cls=OfKernel)
@taking(BTF)
@click.pass_obj
def fetch(face: Face, id_: str, version_id: str, arch: str | None, release: str, given: Mapping[str, str]) -> None:
    """Get the BTF of a kernel from BTFHub or a mirror of it, and keep it for gadgets that run here.

    `ig image export --btf` takes what was fetched along to a machine without a network.
    """
    settings = face.settings()
    from igrun.errors import BtfNotFoundError
    from igrun.kernel_btf import hub
    from igrun.kernel_btf.policy import Policy

    policy = Policy.of({**settings.values(BTF), **given})
    kernel = meant(id_, version_id, arch, release)
    kernel.check()
    searched = [] if policy.hubs else [("BTFHub", policy.why_none)]
    with hub.Client(policy) as client:
        for place in policy.hubs:
            try:
                client.fetch(place, kernel)
            except hub.HubError as error:
                searched.append((hub.shown(place), str(error)))
                continue
            show(str(policy.cache / f"{kernel.name}.btf"))
            return
    hint = f"it was looked for as {kernel.name}; BTFHub has kernels that were built without BTF, and no others"
    raise BtfNotFoundError(kernel.release, searched, hint=hint)


@command.command("list", cls=Command)
@OUTPUT
@click.pass_obj
def list_(face: Face, output: str) -> None:
    """List the BTF that was fetched or imported."""
    face.settings()
    from igrun.cli.progress import size
    from igrun.kernel_btf.cache import kept
    from igrun.kernel_btf.policy import cache

    found = list(kept(cache()))
    if output != "columns":
        rows = [dict(zip(TITLES, (*one.kernel, one.size), strict=True)) for one in found]
        show(as_json(rows, output))
        return
    table = [tuple(title.upper() for title in TITLES), *((*one.kernel, size(one.size)) for one in found)]
    widths = [max(len(row[place]) for row in table) for place in range(len(TITLES))]
    for row in table:
        show("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@command.command("import", cls=OfKernel)
@click.argument("path", type=click.Path())
@click.pass_obj
def import_(face: Face, path: str, id_: str, version_id: str, arch: str | None, release: str) -> None:
    """Keep BTF for gadgets that run here: of a file, or of all files below a folder in BTFHub's layout.

    A file is BTF, an archive of BTFHub, or an ELF kernel that holds it. Where it does not stand in
    <id>/<version>/<arch>/<release>.btf, it is taken for the kernel that the flags name.
    """
    face.settings()
    from igrun.errors import GadgetError, ParamError
    from igrun.kernel_btf import cache
    from igrun.kernel_btf.names import named
    from igrun.kernel_btf.policy import cache as folder

    told = bool(id_ or version_id or arch or release)
    whole = Path(path).absolute()
    if whole.is_dir() and told:
        raise ParamError("release", release, "--id, --version-id, --arch and --release are for one file")
    count = 0
    for file in cache.files(whole):
        kernel = None if told else named(file)
        if kernel is None and whole.is_dir():
            say(f"Warning: {file} is left out: it is not in <id>/<version>/<arch>/<release>.btf")
            continue
        kernel = kernel or meant(id_, version_id, arch, release)
        kernel.check()
        data = cache.load(file, kernel.release)
        try:
            show(str(cache.save(folder(), kernel, data)))
        except OSError as error:
            raise GadgetError(f"cannot write {error.filename or folder()}: {error.strerror}") from None
        count += 1
    if not count:
        raise GadgetError(f"nothing below {path} is in <id>/<version>/<arch>/<release>.btf")


def meant(id_: str, version_id: str, arch: str | None, release: str) -> Kernel:
    """The kernel that the flags name; what they leave out is as on this machine."""
    from igrun.host import Host
    from igrun.kernel_btf.names import ARCHITECTURES, Kernel

    here = Kernel.of(Host.current())
    machine = ARCHITECTURES[arch] if arch else here.hub_machine
    return Kernel(id_ or here.id, version_id or here.version_id, machine, release or here.release)
