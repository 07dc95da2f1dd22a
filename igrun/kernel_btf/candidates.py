"""The places beside the kernel itself where its BTF may be, in the order in which they are looked at."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from igrun import data
from igrun.btf import Btf
from igrun.errors import GadgetError, ImageError
from igrun.kernel_btf import Searched, cache, layer, vmlinux
from igrun.kernel_btf.names import Kernel

if TYPE_CHECKING:
    from igrun.host import Host
    from igrun.kernel_btf.policy import Policy


class Candidate(NamedTuple):
    """BTF that may be the kernel's."""

    source: str
    place: str
    data: bytes


def candidates(
    host: Host, btfs: bytes | None, policy: Policy, *, packaged: bool = False
) -> Iterator[Candidate | Searched]:
    """BTF from each place that has some, and why the others have none; what comes later is looked for when asked."""
    kernel = Kernel.of(host)
    for found in (
        on_disk(host.root, kernel.release),
        in_package(kernel) if packaged else in_image(btfs, kernel),
        in_cache(policy, kernel),
        from_hubs(policy, kernel),
    ):
        for one in found:
            try:
                if isinstance(one, Candidate):
                    Btf.parse(one.data)
                yield one
            except ImageError as error:
                yield Searched(one.source, one.place, False, str(error))


def on_disk(root: Path, release: str) -> Iterator[Candidate | Searched]:
    """Kernels that hold it."""
    places = vmlinux.places(root, release)
    there = [path for path in places if path.exists()]
    for path in there:
        try:
            yield Candidate("vmlinux", str(path), vmlinux.btf_of(path))
        except ImageError as error:
            yield Searched("vmlinux", str(path), False, str(error))
        except OSError as error:
            yield Searched("vmlinux", str(path), False, error.strerror or str(error))
    if not there:
        yield Searched("vmlinux", f"{places[0]} and {len(places) - 1} other places", False, "no such file")


def in_image(btfs: bytes | None, kernel: Kernel) -> Iterator[Candidate | Searched]:
    """The image's BTFGen layer."""
    if btfs is None:
        yield Searched("image", "its BTFGen layer", False, "the image has none")
        return
    try:
        path, found = layer.find(btfs, kernel)
    except ImageError as error:
        yield Searched("image", "its BTFGen layer", False, str(error))
        return
    yield Candidate("image", path, found)


def in_package(kernel: Kernel) -> Iterator[Candidate | Searched]:
    """`btfs/`, for programs of igrun's own."""
    folder = data.find("btfs")
    for name in kernel.names() if folder else ():
        path = Path(folder or "", f"{name}.btf")
        if path.is_file():
            yield Candidate("package", str(path), path.read_bytes())
            return
    yield Searched("package", f"btfs/{kernel.name}.btf", False, "no such file")


def in_cache(policy: Policy, kernel: Kernel) -> Iterator[Candidate | Searched]:
    """What was fetched or imported."""
    for name in kernel.names():
        path = policy.cache / f"{name}.btf"
        try:
            found = cache.read(path)
        except FileNotFoundError:
            continue
        except (ImageError, OSError) as error:
            yield Searched("cache", str(path), False, getattr(error, "strerror", None) or str(error))
        else:
            yield Candidate("cache", str(path), found)
            return
    yield Searched("cache", str(policy.cache / f"{kernel.name}.btf"), False, "no such file")


def from_hubs(policy: Policy, kernel: Kernel) -> Iterator[Candidate | Searched]:
    """BTFHub and its mirrors."""
    if not policy.hubs:
        yield Searched("BTFHub", "any archive", False, policy.why_none)
        return
    try:
        kernel.check()
    except GadgetError as error:
        yield Searched("BTFHub", "any archive", False, f"not asked: {error}")
        return
    from igrun.kernel_btf import hub

    with hub.Client(policy) as client:
        for place in policy.hubs:
            try:
                found = client.fetch(place, kernel)
            except hub.HubError as error:
                yield Searched("BTFHub", hub.shown(place), False, str(error))
            else:
                yield Candidate("BTFHub", f"{hub.shown(place)}/{kernel.name}.btf.tar.xz", found)
