"""Where the package's own data is: in a wheel below `igrun/_data`, in a checkout also at its top."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parent


def find(name: str, package: Path = PACKAGE) -> Path | None:
    """The file or folder of that name (`gadgets`, `sdk/include`, `bpf`), None if it was not packaged.

    A checkout has its sources at its top; what packaging compiles (`gadgets`, `bpf`) is only below `_data`.
    """
    packaged = package / "_data" / name
    if packaged.exists():
        return packaged
    if name.split("/")[0] in ("gadgets", "bpf"):
        return None
    checkout = package.parent
    source = checkout / name
    return source if (checkout / "hatch_build.py").exists() and source.exists() else None


def gadgets() -> Path | None:
    """The OCI layout of the bundled gadgets."""
    return find("gadgets")


def headers() -> Path | None:
    """The folder that holds `gadget/*.h` and `vmlinux/<arch>/vmlinux.h`."""
    return find("sdk/include")
