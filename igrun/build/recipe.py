"""build.yaml: what a gadget is built from."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from igrun.dataclass import dataclass
from igrun.errors import BuildError, MetadataError
from igrun.metadata.document import LARGEST, as_text, load

DEFAULT_FILE = "build.yaml"
EBPF_SOURCE = "program.bpf.c"
METADATA = "gadget.yaml"
KEYS = ("ebpfsource", "wasm", "metadata", "cflags", "includes")
# What cflags may begin with: no plug-ins, no other outputs, no files of options.
TAKES_NEXT = ("-D", "-U", "-I", "-iquote", "-isystem", "-idirafter", "-include")
FLAGS = (*TAKES_NEXT, "-W", "-O", "-std=", "-f", "-m", "-g", "-w")
FORBIDDEN = ("-fplugin", "-fpass-plugin", "-Wl,", "-Wp,", "-Wa,", "-fmodule", "-fbuild-session", "-mllvm", "-ftime-tr")


@dataclass(frozen=True, slots=True)
class Recipe:
    """What to build. Paths are relative to the folder.

    ebpf:     "" if there is no eBPF source; wasm: "" if there is no WASM module
    includes: more folders with headers; they may be beside the gadget's
    file:     build.yaml, None if there is none
    """

    folder: Path
    ebpf: str
    wasm: str
    metadata: str
    cflags: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    includes: tuple[str, ...] = ()
    file: Path | None = None

    @classmethod
    def read(cls, folder: Path, file: Path | None = None) -> Self:
        """Read build.yaml. file: None: the one in the folder, if there is one. BuildError: it is wrong."""
        if file is not None and not file.is_file():
            raise BuildError(f"build file {str(file)!r} does not exist")
        path = file or folder / DEFAULT_FILE
        tree = parse(path) if path.exists() else {}
        source, wasm = word(tree, "ebpfsource"), word(tree, "wasm")
        metadata = word(tree, "metadata") or METADATA
        for name in filter(None, (source, wasm, metadata)):
            refuse_options(name)
        if source and source != EBPF_SOURCE and not (folder / source).is_file():
            raise BuildError(f'source file "{source}" not found', hint=f"it is looked for in {folder}")
        source = source or EBPF_SOURCE
        if not (folder / source).is_file():
            source = ""
        if wasm:
            if Path(wasm).suffix not in (".go", ".rs", ".wasm"):
                raise BuildError(f"unsupported wasm file type: {wasm}", hint="give a .go, .rs or .wasm file")
            if not (folder / wasm).is_file():
                raise BuildError(f'source file "{wasm}" not found', hint=f"it is looked for in {folder}")
        if not (source or wasm or (folder / metadata).is_file()):
            raise BuildError(
                f"at least one of ebpf source ({EBPF_SOURCE}), metadata ({METADATA}), .go files (present in go folder)"
                " or wasm module is required",
                hint=f"there is none of them in {folder}",
            )
        return cls(
            folder,
            source,
            wasm,
            metadata,
            flags(tree.get("cflags")),
            odd_keys(tree),
            includes(folder, tree.get("includes")),
            path if path.exists() else None,
        )


def parse(path: Path) -> dict[str, Any]:
    """The document. BuildError: it is none."""
    try:
        with path.open("rb") as file:
            return load(file.read(LARGEST + 1), strict=True)
    except OSError as error:
        raise BuildError(f"cannot read {path}: {error.strerror}") from None
    except MetadataError as error:
        where = f"{error.path}: " if error.path else ""
        raise BuildError(f"{path.name}: {where}{error.problem}") from None


def word(tree: dict[str, Any], key: str) -> str:
    """A text of the document, "" if it is not there."""
    value = tree.get(key)
    if isinstance(value, dict | list):
        raise BuildError(f"{DEFAULT_FILE}: {key}: expected text")
    return as_text(value)


def refuse_options(name: str) -> None:
    """A file name that a compiler would take for an option is none."""
    if name.startswith("-"):
        raise BuildError(f'wrong build option detected: flags are not accepted: "{name}"')
    if name.startswith("@"):
        raise BuildError(f'wrong build option detected: response file are not accepted: "{name}"')


def flags(value: Any) -> tuple[str, ...]:
    """The compiler flags of the document: one text, or a list of them."""
    import shlex

    if isinstance(value, dict):
        raise BuildError(f"{DEFAULT_FILE}: cflags: expected text or a list")
    try:
        words = [as_text(item) for item in value] if isinstance(value, list) else shlex.split(as_text(value))
    except ValueError as error:
        raise BuildError(f"{DEFAULT_FILE}: cflags: {error}") from None
    argument = False
    for one in words:
        wrong = one.startswith("@") if argument else not one.startswith(FLAGS) or one.startswith(FORBIDDEN)
        if wrong:
            raise BuildError(
                f'wrong build option detected: flags are not accepted: "{one}"',
                hint=f"cflags may begin with {' '.join(FLAGS)}",
            )
        argument = not argument and one in TAKES_NEXT
    return tuple(words)


def includes(folder: Path, value: Any) -> tuple[str, ...]:
    """The include folders of the document, relative to the gadget's: another machine has no others."""
    import os

    if value is None:
        return ()
    if not isinstance(value, list):
        raise BuildError(f"{DEFAULT_FILE}: includes: expected a list of folders")
    names = [os.path.normpath(as_text(one)) for one in value]
    for name in names:
        refuse_options(name)
        if name.startswith("/"):
            raise BuildError(f"{DEFAULT_FILE}: includes: {name} is not relative to the gadget's folder")
        if not (folder / name).is_dir():
            raise BuildError(f"{DEFAULT_FILE}: includes: {name} is no folder", hint=f"it is looked for in {folder}")
        if os.path.normpath(folder / name) == "/":
            raise BuildError(f"{DEFAULT_FILE}: includes: {name} is the whole machine")
    return tuple(names)


def odd_keys(tree: dict[str, Any]) -> tuple[str, ...]:
    """A warning for each key that nobody reads."""
    from difflib import get_close_matches

    found = []
    for key in tree:
        if key not in KEYS:
            near = get_close_matches(key.lower(), KEYS, 1)
            found.append(f"{DEFAULT_FILE}: unknown key {key!r}" + (f" (did you mean {near[0]}?)" if near else ""))
    return tuple(found)
