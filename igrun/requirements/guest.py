"""What a WASM module imports and which version of the gadgets' API it has, read from its sections, never run."""

from __future__ import annotations

from igrun.dataclass import dataclass
from igrun.errors import ImageError

MAGIC = b"\0asm\1\0\0\0"
IMPORTS, EXPORTS, CODE = 2, 7, 10
MOST = 100_000
LONGEST_NAME = 1000


@dataclass(frozen=True, slots=True)
class Guest:
    """A module. imports: (module, function), in order; api: what gadgetAPIVersion returns if that is a constant."""

    imports: tuple[tuple[str, str], ...]
    exports: tuple[str, ...]
    api: int | None

    @property
    def upcalls(self) -> tuple[str, ...]:
        """The functions of the host that it may call."""
        return tuple(name for module, name in self.imports if module == "ig")


class Bytes:
    """Reads what stands in a module. ImageError where it ends too early."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, count: int) -> bytes:
        found = self.data[self.at : self.at + count]
        if count < 0 or len(found) != count:
            raise ImageError("WASM: the module is cut off")
        self.at += count
        return found

    def number(self, bits: int = 32) -> int:
        """An unsigned LEB128."""
        value = 0
        for shift in range(0, bits + 6, 7):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if not byte & 0x80:
                return value
        raise ImageError("WASM: a number has no end")

    def signed(self) -> int:
        """A signed LEB128 of 64 bits."""
        value = 0
        for shift in range(0, 70, 7):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if not byte & 0x80:
                return value - (1 << (shift + 7) if byte & 0x40 else 0)
        raise ImageError("WASM: a number has no end")

    def count(self) -> int:
        found = self.number()
        if found > MOST:
            raise ImageError(f"WASM: a section has {found} entries, more than {MOST}")
        return found

    def name(self) -> str:
        length = self.number()
        if length > LONGEST_NAME:
            raise ImageError(f"WASM: a name is longer than {LONGEST_NAME} bytes")
        text = self.take(length).decode("utf-8", "replace")
        if not text.isprintable():
            raise ImageError("WASM: a name is none")
        return text

    def limits(self) -> None:
        flags = self.number()
        for _ in range(2 if flags & 1 else 1):
            self.number(64)


def guest(wasm: bytes) -> Guest:
    """Read a module. ImageError: it is none, or broken."""
    parts = sections(wasm)
    imports = read_imports(Bytes(parts.get(IMPORTS, b"\0")))
    functions = [(module, name) for module, name, kind in imports if kind == 0]
    exports = read_exports(Bytes(parts.get(EXPORTS, b"\0")))
    api = None
    if "gadgetAPIVersion" in exports and CODE in parts:
        api = constant(Bytes(parts[CODE]), exports["gadgetAPIVersion"] - len(functions))
    return Guest(tuple(functions), tuple(exports), api)


def sections(wasm: bytes) -> dict[int, bytes]:
    """The first section of each number."""
    if wasm[:8] != MAGIC:
        raise ImageError("no WASM module: it does not begin with \\0asm and version 1")
    whole = Bytes(wasm)
    whole.at = 8
    found: dict[int, bytes] = {}
    while whole.at < len(wasm):
        number = whole.take(1)[0]
        found.setdefault(number, whole.take(whole.number()))
    return found


def read_imports(part: Bytes) -> list[tuple[str, str, int]]:
    """Module, name and kind (0: function) of each import."""
    found = []
    for _ in range(part.count()):
        module, name, kind = part.name(), part.name(), part.take(1)[0]
        if kind == 0:
            part.number()
        elif kind == 1:
            part.take(1)
            part.limits()
        elif kind == 2:
            part.limits()
        elif kind == 3:
            part.take(2)
        else:
            raise ImageError(f"WASM: an import of unknown kind {kind}")
        found.append((module, name, kind))
    return found


def read_exports(part: Bytes) -> dict[str, int]:
    """Exported function -> its number."""
    found = {}
    for _ in range(part.count()):
        name, kind, number = part.name(), part.take(1)[0], part.number()
        if kind == 0:
            found[name] = number
    return found


def constant(part: Bytes, number: int) -> int | None:
    """What a function returns that does nothing but return a number; None if it does more."""
    for place in range(part.count()):
        body = Bytes(part.take(part.number()))
        if place == number:
            if body.data[:2] == b"\0\x42":  # no locals, i64.const
                body.at = 2
                value = body.signed()
                return value if body.data[body.at :] == b"\x0b" else None  # end
            return None
    return None
