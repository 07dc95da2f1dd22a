"""Columns that hold an environment variable of this process: source annotation `env.fields.<FIELD>: <VARIABLE>`."""

from __future__ import annotations

from igrun.errors import MetadataError, ParamError
from igrun.metadata import TEXT, Param
from igrun.operators import Added, Given, Stage, Step, added, free, quoted
from igrun.record import Constant, DataSource, Derived, Field

NAME = "env"
STAGE = Stage.ENRICH
VARIABLES = Param(
    "env-vars",
    TEXT,
    "",
    "Environment variables that gadgets may show, separated by commas",
    group="operator.env",
    title="Allowed Environment Variables",
)
PARAMS = (VARIABLES,)
PREFIX = "env.fields."


def bind(given: Given) -> tuple[Step, ...]:
    sources = {name: with_variables(source, given) for name, source in given.sources.items()}
    return (Step(sources=sources),)


def with_variables(source: DataSource, given: Given) -> DataSource:
    """The source with a field for each of its annotations.

    ParamError: a variable is not allowed. MetadataError: the field exists already.
    """
    for key, variable in source.annotations.items():
        if not key.startswith(PREFIX):
            continue
        text = given.value(VARIABLES)
        allowed = text.split(",") if text else []
        if variable not in allowed:
            raise ParamError(
                VARIABLES.key,
                text,
                f"environment var {quoted(variable)} not in allowed vars: [{' '.join(allowed)}]",
                hint=f"allow it with --{VARIABLES.key} {','.join([*allowed, variable])}",
            )
        name = key.removeprefix(PREFIX)
        if not free(source, name):
            raise MetadataError(f"datasources.{source.name}.annotations.{key}", f"field {name} exists already")
        place = Derived((), Constant(given.env.get(variable, "")))
        source = added(source, given.metadata, Field(name, "T", place, order=Added.ENV.order(name)))
    return source
