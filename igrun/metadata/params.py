"""Flags: text in, typed value out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from igrun.dataclass import dataclass
from igrun.errors import ParamError

T = TypeVar("T")
LARGEST_FILE = 16 << 20  # bytes of a value read with @path


@dataclass(frozen=True, slots=True)
class Type(Generic[T]):
    """How the text of a param is read. name: as `--help` shows it (bool, uint32, duration, ...)."""

    name: str
    read: Callable[[str], T]  # raises ValueError with the problem


@dataclass(frozen=True, slots=True)
class Param(Generic[T]):
    """A flag: text in, typed value out.

    key:        without dashes; group + "." + key is its full name (`operator.oci.ebpf.pid`)
    per_source: also as `<key>.<source>` for every source
    alias:      one letter; alternative: a hidden second key
    """

    key: str
    type: Type[T]
    default: str = ""
    description: str = ""
    per_source: bool = False
    group: str = ""
    alias: str = ""
    alternative: str = ""
    title: str = ""
    hint: str = ""
    choices: tuple[str, ...] = ()
    mandatory: bool = False
    tags: tuple[str, ...] = ()

    @property
    def full_name(self) -> str:
        """As manifests and `paramDefaults` call it."""
        return f"{self.group}.{self.key}" if self.group else self.key

    def parse(self, text: str, key: str = "") -> T:
        """The typed value. ParamError: not one of the choices, or not of the type."""
        key = key or self.key
        if self.choices and text not in self.choices:
            raise ParamError(
                key, text, f"invalid value {quoted(text)} as {quoted(key)}: valid values are: {', '.join(self.choices)}"
            )
        try:
            return self.type.read(text)
        except ValueError as problem:
            raise ParamError(key, text, f"invalid value {quoted(text)} as {quoted(key)}: {problem}") from None


def quoted(text: str) -> str:
    """The text between double quotes, on one line."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    return f'"{escaped}"'


GROUPS = ("operator.oci.ebpf.", "operator.oci.wasm.", "custom.", "runtime.")


def key_of(full_name: str) -> str:
    """The key in a param's full name: `operator.oci.ebpf.pid` -> `pid`, `operator.sort.sort.x` -> `sort.x`."""
    lower = full_name.lower()
    for group in GROUPS:
        if lower.startswith(group):
            return full_name[len(group) :]
    if lower.startswith("operator."):
        return full_name.split(".", 2)[-1]
    return full_name


def from_file(text: str, key: str) -> str:
    """What a flag's text stands for: `@path` is the content of that file, bytes that are not UTF-8 as surrogates."""
    if not text.startswith("@"):
        return text
    try:
        with open(text[1:], "rb") as file:
            content = file.read(LARGEST_FILE + 1)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise ParamError(key, text, f"invalid value {quoted(text)} as {quoted(key)}: {text[1:]}: {why}") from None
    if len(content) > LARGEST_FILE:
        raise ParamError(key, text, f"{text[1:]} is too large for a value (more than {LARGEST_FILE >> 20} MiB)")
    return content.decode("utf-8", "surrogateescape")


# ---------------------------------------------------------------------------------------------- types


def read_text(text: str) -> str:
    """The text as it is."""
    return text


def read_bytes(text: str) -> bytes:
    """The text's bytes."""
    return text.encode("utf-8", "surrogateescape")


def read_bool(text: str) -> bool:
    """True or false."""
    if text.lower() not in ("true", "false"):
        raise ValueError(f"expected 'true' or 'false', got: {quoted(text)}")
    return text.lower() == "true"


def read_float(text: str) -> float:
    """A floating-point number."""
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"expected numeric value: {quoted(text)} is not a number") from None


def integer(name: str, bits: int, signed: bool) -> Type[int]:
    """The type of decimal integers of that many bits."""
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)

    def read(text: str) -> int:
        digits = text[1:] if text[:1] in ("+", "-") and signed else text
        if not (digits.isascii() and digits.isdigit()):
            what = "a whole number" if signed else "a whole number from 0 on"
            raise ValueError(f"expected numeric value: {quoted(text)} is not {what}")
        if len(digits) > 64 or not low <= int(text) <= high:
            raise ValueError(f"number out of range: {name} is {low} to {high}")
        return int(text)

    return Type(name, read)


UNITS: Mapping[str, int] = MappingProxyType(
    {"ns": 1, "us": 1_000, "µs": 1_000, "μs": 1_000, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
)


def read_duration(text: str) -> int:
    """Nanoseconds of a duration in Go's syntax: `1h30m`, `1.5s`, `250ms`, `0`."""
    import re

    problem = f"time: invalid duration {quoted(text)}"
    body = text[1:] if text[:1] in ("+", "-") else text
    if body == "0":
        return 0
    parts = re.findall(r"([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)", body)
    if len(text) > 100 or not parts or "".join(number + unit for number, unit in parts) != body:
        raise ValueError(problem)
    total = 0
    for number, unit in parts:
        whole, _, fraction = number.partition(".")
        # whole numbers all the way: a float loses nanoseconds of long durations
        total += int(whole or 0) * UNITS[unit] + int(fraction or 0) * UNITS[unit] // 10 ** len(fraction)
    if total >= 1 << 63:
        raise ValueError(problem)
    return -total if text.startswith("-") else total


def read_ip(text: str) -> bytes:
    """The 4 or 16 bytes of an IP address."""
    import socket

    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            return socket.inet_pton(family, text)
        except (OSError, ValueError):
            continue
    raise ValueError(f"{quoted(text)} is not a valid IP address")


def read_list(text: str) -> tuple[str, ...]:
    """The parts between commas; `\\,` is a comma of a part."""
    return tuple(split_commas(text)) if text else ()


def split_commas(text: str) -> list[str]:
    """Split at commas that no backslash stands before; any other backslash is itself."""
    parts, start = [], 0
    while (comma := text.find(",", start)) >= 0:
        if text[comma - 1 : comma] == "\\":
            text = text[: comma - 1] + text[comma:]
            start = comma
            continue
        parts.append(text[:comma])
        text, start = text[comma + 1 :], 0
    return [*parts, text]


TEXT = Type("string", read_text)
BOOL = Type("bool", read_bool)
BYTES = Type("bytes", read_bytes)
DURATION = Type("duration", read_duration)
IP = Type("ip", read_ip)
LIST = Type("[]string", read_list)
INT = integer("int", 64, True)
INT8 = integer("int8", 8, True)
INT16 = integer("int16", 16, True)
INT32 = integer("int32", 32, True)
INT64 = integer("int64", 64, True)
UINT = integer("uint", 64, False)
UINT8 = integer("uint8", 8, False)
UINT16 = integer("uint16", 16, False)
UINT32 = integer("uint32", 32, False)
UINT64 = integer("uint64", 64, False)
FLOAT32 = Type("float32", read_float)
FLOAT64 = Type("float64", read_float)

TYPES: Mapping[str, Type[Any]] = MappingProxyType(
    {
        one.name: one
        for one in (
            *(TEXT, BOOL, BYTES, DURATION, IP, LIST, FLOAT32, FLOAT64),
            *(INT, INT8, INT16, INT32, INT64, UINT, UINT8, UINT16, UINT32, UINT64),
        )
    }
)
