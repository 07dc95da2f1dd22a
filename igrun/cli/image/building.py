"""`ig image build`."""

from __future__ import annotations

import click

from igrun.cli.face import Command, Face, say
from igrun.cli.image.names import full_name

FORMATS = ["spdx", "cyclonedx"]


class Build(Command):
    """`--sbom` without a format is SPDX."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        plain = args.index("--") if "--" in args else len(args)
        words = [
            "--sbom=spdx" if word == "--sbom" and at < plain and following not in FORMATS else word
            for at, (word, following) in enumerate(zip(args, [*args[1:], ""], strict=True))
        ]
        return super().parse_args(ctx, words)


@click.command("build", cls=Build)
@click.argument("path", type=click.Path())
@click.option("-f", "--file", "file", metavar="FILE", help="What to build from (default PATH/build.yaml).")
@click.option("-t", "--tag", "tag", metavar="NAME", default="", help="Name of the image.")
@click.option("-o", "--output", "output", metavar="DIR", help="Existing folder for the compiled objects.")
@click.option("-l", "--local", is_flag=True, help="Only with the tools of this machine, never in a container.")
@click.option(
    "--builder-image",
    "builder_image",
    metavar="IMAGE",
    default="",
    help="Build in a container of this image. Without it, in one of Dockerfile.builder where clang is missing here.",
)
@click.option(
    "--builder-image-pull",
    "builder_image_pull",
    type=click.Choice(["always", "missing", "never"]),
    default="always",
    help="When to pull that image (default always).",
)
@click.option("--btfgen", is_flag=True, help="Add what it needs of the BTF of kernels that have none themselves.")
@click.option(
    "--btfhub-archive",
    "btfhub_archive",
    metavar="DIR",
    help="Folder with the BTF of those kernels, a clone of BTFHub's.",
)
@click.option("--sbom", type=click.Choice(FORMATS), help="Attach a bill of materials; without a format it is spdx.")
@click.option("--provenance", is_flag=True, help="Attach a statement of how it was built (SLSA).")
@click.option(
    "--update-metadata", is_flag=True, help="Write what the program has and gadget.yaml does not say into it."
)
@click.option("--validate-metadata", type=bool, default=True, metavar="", help="Check gadget.yaml (default true).")
@click.pass_obj
def build_(
    face: Face,
    path: str,
    file: str | None,
    tag: str,
    output: str | None,
    local: bool,
    builder_image: str,
    builder_image_pull: str,
    btfgen: bool,
    btfhub_archive: str | None,
    sbom: str | None,
    provenance: bool,
    update_metadata: bool,
    validate_metadata: bool,
) -> None:
    """Build the gadget in folder PATH and put its image into the local store."""
    settings = face.settings()
    if btfgen and not btfhub_archive:
        raise click.UsageError("btfgen requires --btfhub-archive")
    if btfhub_archive and not btfgen:
        raise click.UsageError("--btfhub-archive is for --btfgen")
    from igrun.build import build as build_image

    built = build_image(
        path,
        file=file,
        output=output,
        local=local,
        builder_image=builder_image,
        builder_image_pull=builder_image_pull,
        sbom=sbom or "",
        provenance=provenance,
        btfhub_archive=btfhub_archive,
        update_metadata=update_metadata,
        validate_metadata=validate_metadata,
        tag=tag,
        reference=lambda text: full_name(text, settings),
        tell=say,
    )
    if built.output:
        say(built.output.rstrip("\n"))
    for one in built.attached:
        say(f"Attached {one.artifact_type} {one.digest}")
    for warning in built.warnings:
        say(f"Warning: {warning}")
    say(f"Successfully built {built}")
