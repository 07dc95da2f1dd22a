"""Symbols of executables and libraries, the host's or a container's: which file, and where in it a function is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from errno import ENOENT, ENOTDIR
from functools import cached_property
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from types import TracebackType

from igrun.errors import ImageError, KernelError, NotFoundError
from igrun.symbols.binary import MACHINES, Binary
from igrun.symbols.debugfiles import companions
from igrun.symbols.golang import GoFunctions, go_functions
from igrun.symbols.libraries import LOADS, names, paths_of
from igrun.symbols.rooted import Root
from igrun.symbols.tables import preferred, tables
from igrun.symbols.usdt import Probe, probes

HOST_ROOT = Path("/")
MOST_COMPARED = 1 << 18  # names
MOST_SIGNS = 256  # of a name that is worth a hint


def paths(root: Root, file: str, machine: str) -> list[str]:
    """The paths that a gadget's FILE stands for (`libraries.paths_of`). NotFoundError, KernelError, ImageError."""
    program, loads, library = file.partition(LOADS)
    if not program or (loads and not library) or ("/" in library) or ("/" in program and not program.startswith("/")):
        raise NotFoundError(
            f"{file!r} is no absolute path, and no name of a library or an executable",
            hint="give /usr/bin/bash, libssl, bash, or /usr/bin/curl!libssl for the libssl that curl loads",
        )
    found = paths_of(root, file, machine)
    if not found:
        what = library or program
        near = close(f"{what}.so", names(root, machine))
        raise NotFoundError(f"there is no library or executable {what!r}", hint=near)
    return found


class Opened:
    """A binary, open. path: in its root directory; every method may raise ImageError: it is broken."""

    def __init__(self, root: Root, path: str, machine: str) -> None:
        """NotFoundError: there is none of that path; KernelError; ImageError: it is none that this machine runs."""
        self._root = root
        try:
            self.file = root.open(path)
        except KernelError as error:
            if error.errno not in (ENOENT, ENOTDIR):
                raise
            there = PurePosixPath(path)
            raise NotFoundError(f"there is no file {path}", hint=close(there.name, neighbours(root, there))) from None
        try:
            self.path = self.file.path
            self.binary = Binary(self.file)
            if self.binary.machine not in MACHINES.get(machine, ()) or not self.binary.segments:
                raise ImageError("it is no program or library of this machine")
        except BaseException:
            self.file.close()
            raise

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.file.close()

    def function(self, name: str) -> list[int]:
        """Offsets in the file of the functions of that name, `name` or `name@VERSION`. NotFoundError, with near ones.

        Several, where source files have functions of their own with one name.
        """
        base, _, version = name.partition("@")
        version = version.removeprefix("@")
        chosen = False
        for binary in self._binaries():
            for table in tables(binary):
                some = preferred(table.named(base), version)
                chosen = chosen or any(one.chosen for one in some)
                offsets = self._offsets(one.address for one in some if not one.chosen)
                if offsets:
                    return offsets
            if binary is self.binary and self._go and not version:
                offsets = self._offsets(self._go.named(base))
                if offsets:
                    return offsets
            if chosen:
                reason = f"{base!r} is not one function: which of several it is, is chosen at start (IFUNC)"
                raise NotFoundError(reason, hint=self._variants(base))
        near = close(name, (one for one, _ in self._all()))
        hint = "" if self._go or len(tables(self.binary)) > 1 else "install its debug symbols, or give an offset: 0x..."
        raise NotFoundError(f"it has no function {name!r}", hint=near or hint)

    def functions(self, fits: Callable[[str], object] = bool) -> dict[str, list[int]]:
        """Offsets of the functions whose name fits, by name, without versions."""
        found: dict[str, set[int]] = {}
        for name, offset in self._all():
            if fits(name):
                found.setdefault(name, set()).add(offset)
        return {name: sorted(offsets) for name, offsets in found.items()}

    def at(self, offset: int) -> list[int]:
        """A place that is known by its offset in the file. NotFoundError: there is no code."""
        address = self.binary.address_of(offset)
        if address is None or self.binary.offset_of(address) != offset:
            raise NotFoundError(f"it has no code at offset {offset:#x}")
        return [offset]

    def is_go(self, offset: int) -> bool:
        """Whether a function of Go begins there."""
        return offset in self._of_go

    def probe(self, provider: str, name: str) -> list[Probe]:
        """All locations of a USDT probe. NotFoundError, with near matches."""
        everyone = probes(self.binary)
        found = {one.offset: one for one in everyone if (one.provider, one.name) == (provider, name)}
        if found:
            return list(found.values())
        wanted = f"{provider}:{name}"
        has = sorted({f"{one.provider}:{one.name}" for one in everyone})
        hint = close(wanted, has) or (f"it has: {', '.join(has[:5])}" if has else "it was built without USDT probes")
        raise NotFoundError(f"it has no probe {wanted!r}", hint=hint)

    def _binaries(self) -> Iterator[Binary]:
        """Itself, then what else has symbols of it."""
        yield self.binary
        with Root(HOST_ROOT) as host:
            yield from companions(self.binary, self.path, self._root, host)

    def _all(self) -> Iterator[tuple[str, int]]:
        """Name and offset of every function; of debug files only the nearest is read."""
        for binary in self._binaries():
            some = False
            pairs = ((one.name, one.address) for table in tables(binary) for one in table.all() if not one.chosen)
            for name, address in chain(pairs, self._go.all() if binary is self.binary and self._go else ()):
                offset = self.binary.offset_of(address)
                if offset is not None:
                    some = True
                    yield name, offset
            if some and binary is not self.binary:
                return

    @cached_property
    def _go(self) -> GoFunctions | None:
        return go_functions(self.binary)

    @cached_property
    def _of_go(self) -> frozenset[int]:
        return frozenset(self._offsets(self._go.addresses)) if self._go else frozenset()

    def _offsets(self, addresses: Iterable[int]) -> list[int]:
        found = (self.binary.offset_of(address) for address in addresses)
        return sorted({offset for offset in found if offset is not None})

    def _variants(self, name: str) -> str:
        """A hint with the functions that an IFUNC may be, which are named after it by custom."""
        names = {one for one, _ in self._all() if name in one and one != name and one.isprintable()}
        like = sorted(sorted(names), key=len)
        return f"attach to one of: {', '.join(like[:6])}" if like else "attach to those that it is chosen from"


def neighbours(root: Root, path: PurePosixPath) -> list[str]:
    """What is in the directory of a path; nothing where there is none."""
    try:
        return root.names(str(path.parent))
    except OSError:
        return []


def close(name: str, everyone: Iterable[str]) -> str:
    """A hint that names what is like it, "" if nothing is."""
    from difflib import get_close_matches

    # Comparing takes its time; what is like it begins, or ends, like it.
    some = {one for one in islice(everyone, MOST_COMPARED) if one[:2] == name[:2] or one[-3:] == name[-3:]}
    near = get_close_matches(name, sorted(one for one in some if len(one) < MOST_SIGNS)[: 1 << 14], 3)
    near = [one for one in near if one.isprintable()]
    return f"did you mean {', '.join(near)}?" if near else ""
