"""gadget.yaml <-> GadgetMetadata; params, templates and annotations (CONTRACT STUB, being written)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from igrun.errors import ParamError
from igrun.record import DataSource, Field

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Type(Generic[T]):
    """How the text of a param is read. name: as `--help` shows it (bool, uint32, duration, ...)."""

    name: str
    read: Callable[[str], T]  # raises ValueError with the problem


def _text(text: str) -> str:
    return text


TEXT = Type("string", _text)


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

    def parse(self, text: str, key: str = "") -> T:
        """The typed value. ParamError: not one of the choices, or not of the type."""
        key = key or self.key
        if self.choices and text not in self.choices:
            raise ParamError(
                key, text, f'invalid value "{text}" as "{key}": valid values are: {", ".join(self.choices)}'
            )
        try:
            return self.type.read(text)
        except ValueError as problem:
            raise ParamError(key, text, f'invalid value "{text}" as "{key}": {problem}') from None


@dataclass(frozen=True, slots=True)
class GadgetMetadata:
    """What gadget.yaml says."""

    name: str = ""
    description: str = ""
    raw: Mapping[str, Any] = field(default_factory=dict)

    def describe(self, source: str, field: Field) -> Field:
        """The field with templates and gadget.yaml's annotations merged in the order of reference 3.2."""
        raise NotImplementedError

    def source(self, source: DataSource) -> DataSource:
        """The source with gadget.yaml's annotations for it."""
        raise NotImplementedError
