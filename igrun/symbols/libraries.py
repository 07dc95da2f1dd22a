"""Which files a name stands for: a library's as the dynamic linkers of glibc and musl find it, an executable's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from igrun.errors import ImageError
from igrun.symbols.binary import Binary
from igrun.symbols.ldcache import ABI, CACHE, MOST_BYTES, NATIVE, Entry, entries
from igrun.symbols.rooted import Root

MOST_FOUND = 64
MOST_LINKED = 512
MOST_PATHS = 1 << 16  # bytes of musl's list of directories
PROGRAMS = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
TRIPLETS = {"x86_64": "x86_64-linux-gnu", "aarch64": "aarch64-linux-gnu"}
MUSL = re.compile(r"ld-musl-([\w.-]+)\.so\.1")
MUSL_FOLDERS = ("/lib", "/usr/local/lib", "/usr/lib")
# What musl's one file is for whoever asks (ldso/dynlink.c)
MUSL_ITSELF = ("libc", "libpthread", "librt", "libm", "libdl", "libutil", "libxnet")
LIBRARY = re.compile(r".+\.so(\.\w+)*")
LOADS = "!"


def fits(name: str, soname: str) -> bool:
    """Whether a name stands for that library: `libssl` for any version, `libssl.so.3` for that one."""
    if ".so" in name:
        return soname == name or soname.startswith(f"{name}.")
    return soname.startswith(f"{name}.so")


def folders(machine: str) -> tuple[str, ...]:
    """Where glibc's dynamic linker looks at last."""
    triplet = TRIPLETS.get(machine, machine)
    return (f"/lib/{triplet}", f"/usr/lib/{triplet}", "/lib64", "/usr/lib64", "/lib", "/usr/lib", "/usr/local/lib")


def paths_of(root: Root, file: str, machine: str) -> list[str]:
    """What a gadget's FILE stands for, this machine's libraries first; empty: nothing.

    FILE is an absolute path, the name of a library or of an executable, or `EXECUTABLE!LIBRARY`: the library that this
    executable loads. Nothing says that the paths are there.
    """
    program, loads, library = file.partition(LOADS)
    if loads:
        found = [path for one in paths_of(root, program, machine) for path in loaded_by(root, one, library, machine)]
    elif file.startswith("/"):
        return [file]
    else:
        found = of_name(root, file, machine) or [
            f"{folder}/{file}" for folder in PROGRAMS if file in listed(root, folder)
        ]
    # What a container calls its files may hold signs for the terminal.
    return [path for path in dict.fromkeys(found) if path.isprintable()][:MOST_FOUND]


def of_name(root: Root, name: str, machine: str) -> list[str]:
    """Where a library is that nobody in particular loads."""
    native = NATIVE.get(machine, -1)
    fitting = [one for one in cached(root) if fits(name, one.name)]
    fitting.sort(key=lambda one: one.flags & ABI != native)
    found = [one.path for one in fitting]
    for linker, directories in musl(root):
        if name.removesuffix(".so") in MUSL_ITSELF:
            found.append(linker)
        found += in_folders(root, directories, name)
    # Small images have a glibc without its cache.
    return found or in_folders(root, folders(machine), name)


def names(root: Root, machine: str) -> set[str]:
    """The libraries that can be named, for messages."""
    found = {one.name for one in cached(root)}
    directories = [folder for _, some in musl(root) for folder in some] or ([] if found else folders(machine))
    for folder in directories:
        found |= {name for name in listed(root, folder) if LIBRARY.fullmatch(name)}
    return found


def cached(root: Root) -> list[Entry]:
    """What ld.so.cache says; nothing where there is none that can be read."""
    try:
        return entries(root.read(CACHE, MOST_BYTES))
    except (OSError, ImageError):
        return []


def musl(root: Root) -> Iterator[tuple[str, list[str]]]:
    """musl's dynamic linkers, and the directories that each one looks into."""
    for name in listed(root, "/lib"):
        match = MUSL.fullmatch(name)
        if match:
            try:
                told = root.read(f"/etc/ld-musl-{match[1]}.path", MOST_PATHS).decode(errors="surrogateescape")
                directories = [one for one in re.split(r"[:\n]", told) if one.startswith("/")]
            except OSError:
                directories = list(MUSL_FOLDERS)
            yield f"/lib/{name}", directories


def in_folders(root: Root, directories: list[str] | tuple[str, ...], name: str) -> list[str]:
    """The libraries that a name stands for; one in an earlier directory hides those of its name in later ones."""
    found: dict[str, str] = {}
    for folder in directories:
        for one in listed(root, folder):
            if fits(name, one) and LIBRARY.fullmatch(one):
                found.setdefault(one, f"{folder.rstrip('/')}/{one}")
    return list(found.values())


def listed(root: Root, folder: str) -> list[str]:
    """What is in a directory; nothing where there is none."""
    try:
        return root.names(folder)
    except OSError:
        return []


# ------------------------------------------------------------------------------------------------ what a program loads


class Linked:
    """A binary and how it came to be loaded.

    chain:    directories of DT_RPATH of itself and those that loaded it
    searched: where it looks before everywhere else
    """

    def __init__(self, binary: Binary, path: str, chain: tuple[str, ...], machine: str, *, musl: bool) -> None:
        self.machine, self.wide = binary.machine, binary.wide
        self.needed = binary.needed
        here = str(PurePosixPath(path).parent)
        own = [one for folder in binary.rpath for one in expanded(folder, here, machine)]
        runpath = [one for folder in binary.runpath for one in expanded(folder, here, machine)]
        # For glibc one with a DT_RUNPATH has no DT_RPATH, not that of others either. For musl both are the same.
        self.chain = (*(runpath or own), *chain) if musl else (*(() if runpath else own), *chain)
        self.searched = tuple(runpath) if runpath and not musl else self.chain


def expanded(folder: str, origin: str, machine: str) -> list[str]:
    """A directory of DT_RPATH or DT_RUNPATH with `$ORIGIN`, `$LIB` and `$PLATFORM` replaced."""
    triplet = TRIPLETS.get(machine, machine)
    found = []
    for lib in ("lib64", f"lib/{triplet}", "lib") if "LIB" in folder else ("",):
        text = folder
        for word, means in (("ORIGIN", origin), ("LIB", lib), ("PLATFORM", machine)):
            text = text.replace(f"${{{word}}}", means).replace(f"${word}", means)
        if text.startswith("/"):
            found.append(text)
    return found


def loaded_by(root: Root, program: str, name: str, machine: str) -> list[str]:
    """The libraries of that name that an executable is linked to, however far; else those that it finds by itself.

    OSError, ImageError: it cannot be read
    """
    with root.open(program) as file:
        binary = Binary(file)
        is_musl = MUSL.fullmatch(PurePosixPath(binary.interpreter).name) is not None
        first = Linked(binary, file.path, (), machine, musl=is_musl)
    cache: dict[str, list[str]] = {}
    for entry in () if is_musl else cached(root):
        cache.setdefault(entry.name, []).append(entry.path)
    last = tuple(one for _, some in musl(root) for one in some) if is_musl else folders(machine)
    found: list[str] = []
    todo, seen = [first], set[str]()
    while todo and len(seen) < MOST_LINKED:
        one = todo.pop(0)
        for needed in one.needed:
            if needed in seen or len(seen) >= MOST_LINKED:
                continue
            seen.add(needed)
            ways = [needed] if needed.startswith("/") else [f"{folder}/{needed}" for folder in one.searched]
            ways += cache.get(needed, [])
            ways += [f"{folder}/{needed}" for folder in last if "/" not in needed]
            if is_musl and PurePosixPath(needed).name.split(".")[0] in MUSL_ITSELF:
                ways = [binary.interpreter]
            for way in ways:
                try:
                    with root.open(way) as file:
                        linked = Linked(Binary(file), file.path, one.chain, machine, musl=is_musl)
                except (OSError, ImageError):
                    continue
                if (linked.machine, linked.wide) == (first.machine, first.wide):
                    todo.append(linked)
                    if fits(name, PurePosixPath(needed).name):
                        found.append(way)
                    break
    # One that is loaded later, with dlopen(3).
    return found or in_folders(root, first.searched, name) or of_name(root, name, machine)
