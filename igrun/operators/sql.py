"""`--sql "select ..."`: a query over what the gadget prints, asked again for each window of time.

A data source is a table of its name, with a column for each field; dots in names are underscores (`proc_comm`). The
answer takes the place of the sources: a table named `sql`. DuckDB answers (`pip install igrun[sql]`).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from igrun.dataclass import replace
from igrun.errors import ParamError, UnsupportedError
from igrun.metadata import DURATION, TEXT, Param
from igrun.operators import Given, Stage, Step
from igrun.record import Batch, Batches, DataSource, Facts, Field, Framing, Kind, Region, Side, Sources

if TYPE_CHECKING:
    from igrun.program import Loaded

NAME = "sql"
STAGE = Stage.GROUP
SQL = Param("sql", TEXT, "", "Show the answer to this query over the data sources", group="operator.sql", hint="QUERY")
WINDOW = Param(
    "sql-window",
    DURATION,
    "1s",
    "Time over which the query is asked, again and again; 0: once at the end, over everything",
    group="operator.sql",
)
PARAMS = (SQL, WINDOW)
HINT = "pip install 'igrun[sql]'"
ANSWER = "sql"
# DuckDB's types that have one here; any other becomes text
DTYPES = {
    "TINYINT": "|i1",
    "SMALLINT": "<i2",
    "INTEGER": "<i4",
    "BIGINT": "<i8",
    "BOOLEAN": "?",
    "UTINYINT": "|u1",
    "USMALLINT": "<u2",
    "UINTEGER": "<u4",
    "UBIGINT": "<u8",
    "FLOAT": "<f4",
    "DOUBLE": "<f8",
    "HUGEINT": "<i8",  # what sum() of integers is
}


def bind(given: Given) -> tuple[Step, ...]:
    query = given.value(SQL)
    if not query:
        return ()
    window_s = given.value(WINDOW) / 1e9
    sources = {name: source for name, source in given.sources.items() if source.referenced}
    database = Database(query, sources)
    answer = database.answer()

    def run(batches: Batches, loaded: Loaded) -> Batches:
        asking = Asking(database, answer, window_s, loaded.host.wall_minus_boot_ns)
        yield from asking.run(batches)

    hidden = {name: replace(source, referenced=False) for name, source in given.sources.items()}
    return (Step(sources={**hidden, answer.name: answer}, run=run),)


class Database:
    """A query, and the tables it is asked over."""

    def __init__(self, query: str, sources: Sources) -> None:
        """UnsupportedError: DuckDB is not installed."""
        from igrun.engine.columnar import columns, schema

        try:
            import duckdb
        except ImportError as error:
            raise UnsupportedError("--sql", f"duckdb cannot be imported: {error}", hint=HINT) from None
        self._error = duckdb.Error
        self._query = query
        # It reads the tables here and nothing else: no file, no network, whatever the query says.
        self._connection = duckdb.connect(config={"enable_external_access": False, "threads": 1})
        self.fields = {name: columns(source) for name, source in sources.items()}
        self._schemas = {name: renamed(schema(fields)) for name, fields in self.fields.items()}

    def answer(self) -> DataSource:
        """The data source of the answers. ParamError: the query is wrong."""
        try:
            statements = self._connection.extract_statements(self._query)
        except self._error as error:
            raise ParamError(SQL.key, self._query, first_line(error)) from None
        if [one.type.name for one in statements] != ["SELECT"]:
            raise ParamError(SQL.key, self._query, "this is no query", hint="give one that begins with select")
        relation = self._asked({})
        fields = tuple(
            Field(name, DTYPES.get(str(kind), "T"), Side(str(at)), order=at, annotations=look(str(kind)))
            for at, (name, kind) in enumerate(zip(relation.columns, relation.types, strict=True))
        )
        return DataSource(ANSWER, Kind.TABLE, fields, size=1)

    def ask(self, tables: dict[str, list[Any]]) -> Any:
        """The answer as an Arrow table. tables: Arrow batches by source."""
        try:
            return self._asked(tables).to_arrow_table()
        except self._error as error:
            raise ParamError(SQL.key, self._query, f"the query failed: {first_line(error)}") from None

    def _asked(self, tables: dict[str, list[Any]]) -> Any:
        from igrun.engine.columnar import arrow

        for name, known in self._schemas.items():
            table = arrow().Table.from_batches(tables.get(name, []), known)
            self._connection.register(name, table)
        try:
            return self._connection.sql(self._query)
        except self._error as error:
            names = ", ".join(f"{name}({', '.join(known.names)})" for name, known in self._schemas.items())
            raise ParamError(SQL.key, self._query, first_line(error), hint=f"tables: {names}") from None


class Asking:
    """One run of a query."""

    def __init__(self, database: Database, answer: DataSource, window_s: float, wall_minus_boot_ns: int) -> None:
        from igrun.engine.columnar import maker

        self._database, self._answer, self._window_s = database, answer, window_s
        facts = Facts({}, wall_minus_boot_ns)
        self._makers = {name: maker(fields, facts) for name, fields in database.fields.items()}
        self._tables: dict[str, list[Any]] = {name: [] for name in self._makers}
        self._columns: Any = None

    def run(self, batches: Batches) -> Batches:
        """The batches, taken in, and the answers."""
        end = time.monotonic() + self._window_s
        for batch in batches:
            self._columns = self._columns or batch.columns
            make = self._makers.get(batch.source.name)
            if make is not None and len(batch):
                made = make(batch)
                held = self._tables[batch.source.name]
                if batch.source.kind is Kind.TABLE:
                    held.clear()  # the newest state stands for those before it
                held.append(made.rename_columns([underscored(name) for name in made.schema.names]))
            yield batch
            if self._window_s and time.monotonic() >= end:
                end = max(end + self._window_s, time.monotonic())
                yield from self._ask()
        yield from self._ask()

    def _ask(self) -> Batches:
        if self._columns is None:
            return  # nothing has ever come
        found = self._database.ask(self._tables)
        for held in self._tables.values():
            held.clear()
        sides = {
            str(at): [shown(value, field) for value in found.column(at).to_pylist()]
            for at, field in enumerate(self._answer.fields)
        }
        yield Batch(self._answer, Region(bytes(found.num_rows), Framing.FIXED, 1), self._columns, sides=sides)


def look(kind: str) -> dict[str, str]:
    """How a column of that type is shown."""
    return {} if DTYPES.get(kind, "T") == "T" else {"columns.alignment": "right"}


def renamed(known: Any) -> Any:
    """A schema with names that SQL takes."""
    from igrun.engine.columnar import arrow

    return arrow().schema([(underscored(one.name), one.type) for one in known])


def underscored(name: str) -> str:
    return name.replace(".", "_")


def shown(value: Any, field: Field) -> Any:
    """A value of an answer; NULL is nothing, or zero."""
    if field.dtype == "T":
        return "" if value is None else str(value)
    return value if value is not None else 0


def first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
