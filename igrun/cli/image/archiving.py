"""`ig image export` and `import`: images in one file, for machines without a network."""

from __future__ import annotations

import click

from igrun.cli.face import Command, Face, say, show
from igrun.cli.image.listing import OUTPUT, as_json
from igrun.cli.image.moving import REFERRERS
from igrun.cli.image.names import present, split, stored
from igrun.cli.progress import shown


@click.command("export", cls=Command)
@click.argument("images", metavar="SRC...", nargs=-1, required=True, shell_complete=stored)
@click.argument("file", metavar="DST_FILE", type=click.Path())
@REFERRERS
@click.option("--btf", is_flag=True, help="Add the BTF that `ig btf` has got, for kernels without it.")
@click.pass_obj
def export_(face: Face, images: tuple[str, ...], file: str, referrers: bool, btf: bool) -> None:
    """Write images of the local store, with their signatures, into one tar of an OCI image layout.

    The same images give the same bytes. DST_FILE `-` is standard output.
    """
    settings = face.settings()
    from igrun.oci.export import export
    from igrun.oci.store import Store

    more = {}
    if btf:
        from igrun.kernel_btf.bundle import members
        from igrun.kernel_btf.policy import cache

        more = members(cache())
    with shown() as progress, Store.open(writable=False) as store:
        names = [present(store, image, settings) for image in images]
        export(store, names, file, referrers=referrers, progress=progress, more=more)
    say(f"Successfully exported images to {file}")


@click.command("import", cls=Command)
@click.argument("file", type=click.Path())
@OUTPUT
@click.pass_obj
def import_(face: Face, file: str, output: str) -> None:
    """Take all images of FILE, with their signatures, into the local store; and the BTF in it for `ig btf`.

    FILE is a tar of an OCI image layout, or such a layout in a folder. Signatures are verified when an image runs;
    `ig image verify` does it now.
    """
    face.settings()
    from igrun.oci.archive import Archive, restore
    from igrun.oci.store import Store

    with shown() as progress, Archive.open(file) as archive, Store.open() as store:
        done = restore(archive, store, progress=progress)
    from igrun.kernel_btf.bundle import take
    from igrun.kernel_btf.policy import cache

    kernels = take(file, cache())
    if output == "columns":
        say("Successfully imported images:")
        for name, _ in done:
            say(f"  {name}")
        for kernel in kernels:
            say(f"  BTF of {kernel.name}")
        return
    rows = [(*split(name), descriptor.digest) for name, descriptor in done]
    show(as_json([dict(zip(("Repository", "Tag", "Digest"), row, strict=True)) for row in rows], output))
