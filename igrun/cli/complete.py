"""What a shell offers to complete."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from igrun.errors import GadgetError

if TYPE_CHECKING:
    from igrun.cli.flags import Flags

OFFICIAL = "ghcr.io/inspektor-gadget/gadget/"


def images(incomplete: str = "", *, bundled: bool = True) -> list[str]:
    """Names of the images in the store, and of those that come with igrun, short where they can be."""
    from igrun.lookup import bundled as known
    from igrun.oci.store import Store

    try:
        with Store.open(writable=False) as store:
            names = [short(one.name) for one in store.list() if "/" in one.name]
        names += known() if bundled else []
    except GadgetError:
        return []  # a shell that completes is no place for messages
    return sorted({name for name in names if name.startswith(incomplete)})


def short(name: str) -> str:
    """The shortest text that leads to an image of the store."""
    return name.removeprefix(OFFICIAL).removesuffix(":latest")


def run(args: Sequence[str], incomplete: str, flags: Flags) -> list[str]:
    """Words for `ig run ARGS INCOMPLETE`: image names, flags, and the values of flags that have few."""
    from igrun.cli.flags import Flags, glance, is_bool

    line = glance(args, flags)
    known = flags
    modes: Iterable[str] = ()
    if line.image:
        from igrun.cli.running import keyed
        from igrun.outputs.modes import supported
        from igrun.runtime import Gadget

        try:
            gadget = Gadget.open(line.image, looking=True, pull="never")
            known = Flags.of([*keyed(gadget), *((name, param) for name, param in flags.by_name.items())])
            modes = {mode for source in gadget.sources.values() for mode in supported(source)}
        except GadgetError:
            pass
    last = args[-1] if args else ""
    waiting = known.by_name.get(last[2:]) if last.startswith("--") else known.by_letter.get(last[1:])
    if last.startswith("-") and waiting and not is_bool(waiting):
        offered = modes if waiting.key == "output" else waiting.choices
    elif incomplete.startswith("-"):
        offered = [f"--{name}" for name in known.by_name]
    elif not line.image:
        offered = images()
    else:
        offered = ()
    return sorted(word for word in offered if word.startswith(incomplete))
