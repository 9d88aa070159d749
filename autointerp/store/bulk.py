"""Many rows at once: COPY on PostgreSQL, one prepared statement on SQLite; the values are those that the ORM would have written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Column, Connection, Table, insert
from sqlalchemy import inspect as mapping_of
from sqlalchemy.exc import DBAPIError

from autointerp.store.models import Base


def insert_rows(connection: Connection, rows: Sequence[Base]) -> None:
    """Insert new rows of any tables, referred-to tables first.

    They stay as they are: ids that the database gives are not put into them, and they can be inserted again where the
    transaction came to nothing. Errors: IntegrityError, and then the caller's transaction can only roll back.
    """
    by_table: dict[type[Base], list[Mapping[str, Any]]] = {}
    for row in rows:
        by_table.setdefault(type(row), []).append(_given(row))
    order = {table: number for number, table in enumerate(Base.metadata.sorted_tables)}
    for kind in sorted(by_table, key=lambda kind: order[_table(kind)]):
        insert_values(connection, kind, by_table[kind])


def insert_values(connection: Connection, kind: type[Base], values: Iterable[Mapping[str, Any]]) -> None:
    """Insert rows of one table, each given by its columns; columns that a row lacks get their defaults.

    Errors: as :func:`insert_rows`.
    """
    table = _table(kind)
    number = table.autoincrement_column
    numbered: list[Mapping[str, Any]] = []
    whole: list[Mapping[str, Any]] = []
    for row in values:
        (numbered if number is not None and row.get(number.name) is None else whole).append(row)
    for group, columns in (
        (whole, list(table.columns)),
        (numbered, [column for column in table.columns if column is not number]),
    ):
        if not group:
            continue
        if connection.dialect.name == "postgresql":
            _copy(connection, table, columns, group)
        else:
            take = [(column.name, _default(column)) for column in columns]
            filled = [{name: row[name] if name in row else default() for name, default in take} for row in group]
            connection.execute(insert(table), filled)


def _copy(
    connection: Connection, table: Table, columns: Sequence[Column[Any]], rows: Sequence[Mapping[str, Any]]
) -> None:
    import psycopg
    from psycopg import sql

    take = [(column.name, _default(column), _processor(connection, column)) for column in columns]
    statement = sql.SQL("COPY {} ({}) FROM STDIN").format(
        sql.Identifier(table.name), sql.SQL(", ").join(sql.Identifier(column.name) for column in columns)
    )
    driver = connection.connection.dbapi_connection
    assert isinstance(driver, psycopg.Connection)
    try:
        with driver.cursor() as cursor, cursor.copy(statement) as copy:
            for row in rows:
                copy.write_row([process(row[name] if name in row else default()) for name, default, process in take])
    except psycopg.Error as error:  # SQLAlchemy, which does not see this statement, would have done the same
        gone = connection.dialect.is_disconnect(error, connection.connection, None)
        if gone:
            connection.invalidate(error)
        raise DBAPIError.instance(
            statement.as_string(),
            None,
            error,
            psycopg.Error,
            hide_parameters=True,
            connection_invalidated=gone,
            dialect=connection.dialect,
        ) from error


def _given(row: Base) -> dict[str, Any]:
    """The values that were given to a row."""
    return {name: value for name, value in vars(row).items() if name != "_sa_instance_state"}


def _table(kind: type[Base]) -> Table:
    table = mapping_of(kind).local_table
    assert isinstance(table, Table)
    return table


def _default(column: Column[Any]) -> Callable[[], Any]:
    """What gives the value of a column that was not given."""
    default = column.default
    if default is None:
        return lambda: None
    if default.is_callable:
        make: Callable[[Any], Any] = default.arg  # type: ignore[attr-defined]
        return lambda: make(None)
    value = default.arg  # type: ignore[attr-defined]
    return lambda: value


def _processor(connection: Connection, column: Column[Any]) -> Callable[[Any], Any]:
    """What the column's type makes of a value before the driver gets it."""
    process = column.type.dialect_impl(connection.dialect).bind_processor(connection.dialect)
    return (lambda value: value) if process is None else process
