"""See what a Linux machine, a container or a Kubernetes cluster is really doing.

    with igrun.run("trace_open", host=True, failed=True) as run:
        for batch in run:
            for row in batch.rows():
                print(row["proc.comm"], row["fname"], row["error"])

    igrun.run("registry.example.org/team/trace_unlink:v1", pull="always", public_keys=[PEM])   # an image of a registry

Names are resolved on first use, so that `import igrun` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from igrun.errors import GadgetError
    from igrun.record import Batch, DataSource, Field, Kind, Reason
    from igrun.runtime import Gadget, Run, run

__version__ = "0.1.0"
__all__ = ["Batch", "DataSource", "Field", "Gadget", "GadgetError", "Kind", "Reason", "Run", "run"]

_HOMES = {
    "GadgetError": "igrun.errors",
    **dict.fromkeys(("Batch", "DataSource", "Field", "Kind", "Reason"), "igrun.record"),
    **dict.fromkeys(("Gadget", "Run", "run"), "igrun.runtime"),
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'igrun' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
