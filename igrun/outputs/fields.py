"""Which fields of a source an output shows, as `--fields` says."""

from __future__ import annotations

from collections.abc import Iterable

from igrun.errors import MetadataError, ParamError
from igrun.record import DataSource, Field


def picked(source: DataSource, fields: str | None, wanted: Iterable[Field]) -> tuple[Field, ...]:
    """The fields to show, in order.

    fields: `f1,f2` instead of those wanted else, `+f` and `-f` beside them; names or aliases in any case

    ParamError: there is no such field, or it has no value to show.
    """
    explicit: list[Field] = []
    more: list[Field] = []
    less: set[str] = set()
    for token in (token.strip() for token in (fields or "").split(",")):
        if not token:
            continue
        field = _named(source, token.lstrip("+-").strip() if token[0] in "+-" else token, fields or "")
        if token[0] == "-":
            less.add(field.name)
        else:
            (more if token[0] == "+" else explicit).append(field)
    kept = {field.name: field for field in [*(explicit or wanted), *more] if field.name not in less}
    if not kept and fields:
        raise ParamError("fields", fields, f'invalid value "{fields}" as "fields": no column is left of {source.name}')
    return tuple(kept.values())


def visible(source: DataSource) -> tuple[Field, ...]:
    """The fields that are shown where none are asked for, in order."""
    ordered = sorted(source.fields, key=lambda field: field.order)
    return tuple(field for field in ordered if not field.hidden and has_column(source, field))


def stand_in(source: DataSource, field: Field) -> Field:
    """The field whose value is shown in place of this one (`columns.replace`). MetadataError: there is none."""
    name = field.annotations.get("columns.replace", "")
    if not name:
        return field
    other = source.get(name)
    if other is None or other.dtype is None or other.place is None:
        path = f"datasources.{source.name}.fields.{field.name}.annotations.columns.replace"
        raise MetadataError(path, f'field "{name}" not found or without a value')
    return other


def has_column(source: DataSource, field: Field) -> bool:
    """Whether it can be shown as a column of text."""
    return bool(field.annotations.get("columns.replace")) or (field.dtype is not None and field.place is not None)


def _named(source: DataSource, name: str, fields: str) -> Field:
    parents = {field.parent for field in source.fields}
    known = [one for one in source.fields if has_column(source, one) and not (one.hidden and one.name in parents)]
    field = source.get(name)
    if field is not None and any(one is field for one in known):
        return field
    import difflib

    names = [one.name for one in known]
    aliases = {one.annotations.get("columns.alias", one.name).lower() for one in known}
    near = difflib.get_close_matches(name.lower(), [*map(str.lower, names), *aliases], 1)
    raise ParamError(
        "fields",
        fields,
        f'invalid value "{fields}" as "fields": column "{name}" is invalid',
        hint=f"did you mean {near[0]}?" if near else f"columns: {', '.join(names)}",
    )
