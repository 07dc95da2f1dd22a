"""Names of users and groups, from the host's /etc/passwd and /etc/group."""

from __future__ import annotations

from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from igrun.operators import Added, Given, Stage, Step, added, beside, free, visible
from igrun.record import DataSource, Derived, Field, Key, Lookup, Value

if TYPE_CHECKING:
    from igrun.metadata import GadgetMetadata
    from igrun.program import Plan

NAME = "UidGidResolver"
STAGE = Stage.FORMAT
PARAMS = ()

# C type, table, name of a text field that nothing else names
KINDS = (("gadget_uid", "uid", "user"), ("gadget_gid", "gid", "group"))
FILES = {"uid": "etc/passwd", "gid": "etc/group"}
INTEGERS = ("<u4", "<i4")
ONCE_PER_S = 1.0
MOST_BYTES = 16 << 20


def bind(given: Given) -> tuple[Step, ...]:
    sources = {name: named(source, given.metadata) for name, source in given.sources.items()}

    def prepare(plan: Plan) -> None:
        for table, path in FILES.items():
            plan.tables[table] = Names(plan.host.root / path, table)

    return (Step(sources=sources, prepare=prepare),)


def named(source: DataSource, metadata: GadgetMetadata) -> DataSource:
    """The source with a name for every user and group id. Both are hidden unless gadget.yaml says otherwise."""
    for rank, (typedef, table, usual) in enumerate(KINDS):
        for raw in source.fields:
            if not raw.has_type(typedef) or raw.dtype not in INTEGERS:
                continue
            target = name_of(raw, source, usual)
            if target is None:
                continue
            shown = visible(raw, hidden=True)
            order = Added.USERS.order(target, rank)
            new = Field(target, "T", Derived((shown,), Lookup(table)), hidden=True, order=order)
            source = added(source.having(shown), metadata, new)
    return source


def name_of(raw: Field, source: DataSource, usual: str) -> str | None:
    """The full name of the text field: annotated, else without `_raw`, else `user` or `group`.

    The second id under one parent, whose usual name is taken, is named after its field: `euid` -> `euid_name`. None if
    that is taken too.
    """
    plain = raw.short.removesuffix("_raw")
    short = raw.annotations.get("uidgidresolver.target") or plain
    wished = beside(raw, short if short != raw.short else usual)
    return next((name for name in (wished, beside(raw, f"{plain}_name")) if free(source, name)), None)


class Names:
    """A table: id -> (name,), `uid:N` or `gid:N` where it has none. The file is read again when it has changed."""

    def __init__(self, path: Path, kind: str) -> None:
        self._path, self._kind = path, kind
        self._names: dict[int, str] = {}
        self._seen: tuple[int, ...] = ()
        self._looked_s = -ONCE_PER_S

    def __call__(self, key: Key) -> tuple[Value, ...]:
        number = key & 0xFFFFFFFF if isinstance(key, int) else -1
        if monotonic() - self._looked_s >= ONCE_PER_S:
            self._looked_s = monotonic()
            self._refresh()
        return (self._names.get(number) or f"{self._kind}:{number}",)

    def _refresh(self) -> None:
        try:
            about = self._path.stat()
            seen = about.st_mtime_ns, about.st_size, about.st_ino
            if seen != self._seen:
                with self._path.open("rb") as file:
                    self._names = parsed(file.read(MOST_BYTES))
                self._seen = seen
        except OSError:
            # An image without users, or the file is being replaced: numbers are shown, and it is looked at again.
            self._names, self._seen = {}, ()


def parsed(text: bytes) -> dict[int, str]:
    """Id -> name of the lines `name:password:id:...`; the first line of an id counts, bad lines do not."""
    names: dict[int, str] = {}
    for line in text.splitlines():
        name, _, rest = line.partition(b":")
        number = rest.split(b":", 2)[1] if rest.count(b":") else b""
        if name and number.isdigit():
            names.setdefault(int(number), name.decode("utf-8", "surrogateescape"))
    return names
