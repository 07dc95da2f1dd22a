"""`ig check`: will an image run on this machine, or on another one, and if not, why?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import click

from igrun.cli.face import Command, Face, show
from igrun.cli.image.listing import OUTPUT, as_json
from igrun.cli.image.names import anywhere
from igrun.cli.options import taking
from igrun.config import ACCESS, BTF, IMAGES, KEYS, PULL, VERIFY

if TYPE_CHECKING:
    from igrun.checking.table import Report, Row
    from igrun.cli.inspect import Found
    from igrun.host import Host

TITLES = ("What", "Name", "Result", "Why")


@click.command("check", cls=Command)
@click.argument("image", shell_complete=anywhere)
@click.option(
    "--kernel-config",
    "kernel_config",
    metavar="FILE",
    type=click.Path(),
    default="",
    help="Configuration of another kernel: a .config, /boot/config-..., or /proc/config.gz of its machine.",
)
@click.option(
    "--btf",
    "btf",
    metavar="FILE",
    type=click.Path(),
    default="",
    help="BTF of another kernel: its /sys/kernel/btf/vmlinux, an archive of BTFHub, or an ELF kernel.",
)
@OUTPUT
@taking((PULL, VERIFY, *KEYS, *ACCESS, *BTF))
@click.pass_context
def command(
    context: click.Context, image: str, kernel_config: str, btf: str, output: str, given: Mapping[str, str]
) -> None:
    """Tell whether an image will run on this machine, and if not, why and what to do.

    Each thing that it needs either works (it was tried, or is there), is missing, fails, or is not predicted: whether
    the verifier takes a program is only known when it is loaded, and without root much cannot be tried. As root the
    kernel is asked with minimal programs and maps; nothing is attached, and nothing of the image runs.

    With --btf and --kernel-config it tells of another machine: nothing is tried then, and each row says what it is of.

    The exit status is 0 if the image will run, as far as that can be predicted, and 1 if it will not.

    \b
    Examples:
      ig check trace_open
      ig check trace_exec -o jsonpretty
      ig check my_gadget:latest --btf vmlinux.btf --kernel-config config-6.1.0-30-amd64
    """
    face: Face = context.obj
    report = found(face, image, kernel_config, btf, given)
    if output == "columns":
        for line in lines(report, image, given=bool(kernel_config or btf)):
            show(line)
    else:
        show(as_json({"image": image, **report.as_json()}, output))
    if not report.runs:
        context.exit(1)


def found(face: Face, image: str, kernel_config: str, btf: str, given: Mapping[str, str]) -> Report:
    """What there is to tell of an image."""
    settings = face.settings()
    from igrun import plugins
    from igrun.checking import check
    from igrun.checking.kernel import Kernel
    from igrun.cli.inspect import find
    from igrun.errors import ImageError
    from igrun.host import Host
    from igrun.runtime import RING, ring_bytes

    one = find(image, settings, given)
    gadget = one.gadget
    if gadget.program is None:
        raise ImageError("this image has no eBPF program to check")
    values = {**gadget.values, **settings.values([*IMAGES, *gadget.params]), **given}
    host = Host.current()
    return check(
        gadget.program,
        Kernel.of_file(host, btf, config=kernel_config) if btf else Kernel.here(host, config=kernel_config),
        values=values,
        btfs=one.image.btfs,
        ring_bytes=ring_bytes(values.get(RING.key, RING.default)),
        families=plugins.families(settings.plugins),
        more=about(one, host, verify=VERIFY.parse(values.get(VERIFY.key, VERIFY.default))),
    )


def about(one: Found, host: Host, *, verify: bool) -> Iterator[Row]:
    """Rows about the image itself. verify: a signature is asked for when it runs"""
    from igrun.checking.table import FAILS, IMAGE, MISSING, WORKS, Row

    if one.architecture == host.arch:
        yield Row("image", f"architecture {host.arch}", WORKS, "the image is for it", of=IMAGE)
    else:
        why = f"the image is for {', '.join(sorted(one.manifests)) or one.architecture}"
        yield Row("image", f"architecture {host.arch}", MISSING, why, "build it for this one too", of=IMAGE)
    trusted = one.signature.state in ("bundled", "built here", "signed")
    hint = "" if trusted else "have it signed, see --public-keys; or --verify-image=false"
    verdict = WORKS if trusted else FAILS
    yield Row("image", "signature", verdict, str(one.signature), hint, needed=verify, of=IMAGE)


# ---------------------------------------------------------------------------------------------- text


def lines(report: Report, image: str, *, given: bool) -> Iterator[str]:
    """The table, and what follows from it. given: some rows are of another machine"""
    titles = (*TITLES[:3], *(("Of",) if given else ()), TITLES[3])
    rows = [tuple(title.upper() for title in titles)]
    hints = [""]
    for one in report.rows:
        rows.append((one.kind, one.name, str(one.verdict), *((one.of,) if given else ()), reason(one)))
        hints.append(one.hint if one.stops else "")
    widths = [max(len(row[place]) for row in rows) for place in range(len(titles) - 1)]
    for row, hint in zip(rows, hints, strict=True):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        yield "  ".join((*cells, row[-1])).rstrip()
        if hint:
            yield f"{'  '.join(' ' * width for width in widths)}  Hint: {hint}"
    yield ""
    yield from conclusion(report, image)


def reason(one: Row) -> str:
    """Why, and for which programs, where that matters."""
    if not one.verdict.bad:
        return one.why
    if not one.needed:
        return f"{one.why} (not needed)"
    return f"{one.why} (for {', '.join(one.programs)})" if one.programs and one.kind != "target" else one.why


def conclusion(report: Report, image: str) -> Iterator[str]:
    """The answer."""
    for program, why in report.left_out.items():
        if report.runs:
            yield f"{program} will be left out: {why}"
    if report.runs:
        yield f"{image} will run on {report.kernel}, as far as that can be predicted."
        if any("as root" in row.hint for row in report.rows):
            yield "Hint: run `ig check` as root, which can ask the kernel for more."
    else:
        yield f"{image} will not run on {report.kernel}:"
        yield from (f"  {one}" for one in report.refusals)
