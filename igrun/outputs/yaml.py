"""One YAML document per record; a table's rows too."""

from __future__ import annotations

from collections.abc import Iterator

from igrun.engine import Out, Slot, Template, Yaml
from igrun.engine.shapes import shape
from igrun.engine.yamls import natural, yaml_text
from igrun.outputs import Shown, Writer
from igrun.outputs.tree import Tree, tree
from igrun.record import Batch, DataSource, Field

NAME = "yaml"
MODES = ("yaml",)


class YamlWriter:
    """Writes batches of one source as YAML."""

    def __init__(self, shown: Shown, out: Out) -> None:
        self._out = out
        self._print = shown.engine.printer(template(shown.source), shown.keep, shown.facts)

    def write(self, batch: Batch) -> int:
        printed = self._print(batch, self._out)
        if printed.text:
            self._out(printed.text)
        return printed.rows

    def close(self) -> None:
        """Nothing stands at the end."""


def open(shown: Shown, out: Out) -> Writer:
    return YamlWriter(shown, out)


def template(source: DataSource) -> Template:
    """A record as a document with every field, nested by the dots in the names."""
    at = tree(source, natural)
    return Template((b"---\n", *(_mapping(at, 0) if at else (b"{}\n",))))


def _mapping(at: Tree, indent: int) -> Iterator[bytes | Slot]:
    margin = " " * indent
    for name, value in at.items():
        key = f"{margin}{yaml_text(name)}:"
        if isinstance(value, Field):
            array = value.dtype is not None and shape(value.dtype).items is not None
            yield (key if array else key + " ").encode()
            yield Slot(value, Yaml(indent, len(key) + 1))
            yield b"\n"
        elif value:
            yield key.encode() + b"\n"
            yield from _mapping(value, indent + 2)
        else:
            yield key.encode() + b" {}\n"
