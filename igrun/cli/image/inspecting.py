"""`ig image inspect`."""

from __future__ import annotations

from collections.abc import Mapping

import click

from igrun.cli.face import Command, Face, write
from igrun.cli.image.names import anywhere
from igrun.cli.options import taking
from igrun.config import ACCESS, KEYS, PULL


@click.command("inspect", cls=Command)
@click.argument("image", shell_complete=anywhere)
@click.option(
    "-o", "--output", "output", type=click.Choice(["json", "jsonpretty", "yaml"]), help="Everything, for programs."
)
@click.option("--extra-info", "key", metavar="KEY", default="", help="Only this part of it, as `oci.manifest`.")
@click.option("--jsonpath", "path", metavar="EXPR", default="", help="Only what stands there: .a.b[0]['c'].")
@click.option("--show-datasources", "sources", is_flag=True, help="Only the data sources.")
@taking((PULL, *KEYS, *ACCESS))
@click.pass_obj
def inspect_(
    face: Face, image: str, output: str | None, key: str, path: str, sources: bool, given: Mapping[str, str]
) -> None:
    """Show what an image is for, who signed it, what it needs, what it holds and what it prints.

    It is looked for as `ig run` does; nothing of it runs.
    """
    settings = face.settings()
    from igrun.cli import inspect as parts
    from igrun.errors import ParamError

    if path and not (key or sources):
        raise ParamError("jsonpath", path, f'jsonpath "{path}" can only be used with extra info or show-datasources')
    if key and sources:
        raise ParamError("extra-info", key, f'extra-info "{key}" and show-datasources cannot be used together')
    found = parts.find(image, settings, given)
    if not (output or key or sources):
        write(parts.overview(found).encode("utf-8", "surrogateescape"))
        return
    value = parts.selected(found, key, path, sources)
    write(parts.written(value, output or "jsonpretty").encode("utf-8", "surrogateescape"))
