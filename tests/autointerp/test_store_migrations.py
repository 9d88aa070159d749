"""Migrations on a live database of each kind, down to the first and up again, with rows in every table."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Connection,
    Engine,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    insert,
    inspect,
    text,
)

from autointerp.store import open_store
from autointerp.store.column_types import FiniteFloat, JsonText, UtcTime, utc_now
from autointerp.store.dialects import make_engine, migrating, parse_url
from autointerp.store.models import Base
from autointerp.store.opening import HEAD, MIGRATIONS, current_revision

SPECIAL = {"text": "t", "status": "labelled", "action": "edit", "outcome": "lost", "key": None, "failure_kind": None}
STATES = {"run": "cancelled", "chunk": "done", "night": "due", "job": "queued"}


def values(table: Table) -> dict[str, Any]:
    """A row that the constraints allow."""
    row: dict[str, Any] = {}
    for column in table.columns:
        if column.foreign_keys:
            row[column.name] = "x"
        elif column.name == "state":
            row[column.name] = STATES[table.name]
        elif column.name in SPECIAL:
            row[column.name] = SPECIAL[column.name]
        elif isinstance(column.type, JsonText):
            row[column.name] = {"a": 1}
        elif isinstance(column.type, UtcTime):
            row[column.name] = utc_now()
        elif isinstance(column.type, FiniteFloat):
            row[column.name] = 1.5
        elif isinstance(column.type, Boolean):
            row[column.name] = True
        elif isinstance(column.type, (BigInteger, Integer)):
            if column is not table.autoincrement_column:
                row[column.name] = 7
        elif isinstance(column.type, LargeBinary):
            row[column.name] = b"x"
        else:
            row[column.name] = "x"
    return row


def counts(connection: Connection) -> dict[str, int]:
    tables = [table.name for table in Base.metadata.sorted_tables]
    return {name: connection.execute(text(f"SELECT count(*) FROM {name}")).scalar_one() for name in tables}


def migrate(engine: Engine, to: str) -> None:
    """With Alembic itself, as ``open_store`` calls it."""
    from alembic import command
    from alembic.config import Config

    settings = Config()
    settings.set_main_option("script_location", str(MIGRATIONS))
    with migrating(engine) as connection:
        settings.attributes["connection"] = connection
        (command.downgrade if to == "0001" else command.upgrade)(settings, to)


def differences(connection: Connection) -> list[Any]:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    return list(compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), Base.metadata))


def test_down_to_the_first_and_up_again_with_rows_in_every_table(store_url: str) -> None:
    store = open_store(store_url)
    with store.writing() as connection:
        assert differences(connection) == []
        for table in Base.metadata.sorted_tables:
            connection.execute(insert(table), [values(table)])
        assert set(counts(connection).values()) == {1}
    store.close()
    engine = make_engine(parse_url(store_url))
    migrate(engine, "0001")
    with engine.begin() as connection:
        assert current_revision(connection) == "0001"
        assert connection.execute(text("SELECT state FROM run")).scalar_one() == "failed", "it knows no other end"
        kept = {name for name in ("run", "source", "chunk", "explanation", "score", "label", "timing")}
        for name in kept:
            assert connection.execute(text(f"SELECT count(*) FROM {name}")).scalar_one() == 1, name
    engine.dispose()
    again = open_store(store_url, upgrade=True)
    with again.reading() as connection:
        assert current_revision(connection) == HEAD
        assert differences(connection) == []
        assert {name: n for name, n in counts(connection).items() if name in kept} == dict.fromkeys(kept, 1)
    add_after = values(Base.metadata.tables["timing"]) | {"name": "after"}
    with again.writing() as connection:  # the numbering goes on
        connection.execute(insert(Base.metadata.tables["timing"]), [add_after])
    again.close()


def described(connection: Connection) -> dict[str, Any]:
    """All that a database says of its tables, in no order of their making."""
    looked = inspect(connection)
    found: dict[str, Any] = {}
    for name in sorted(looked.get_table_names()):
        found[name] = {
            "columns": {
                column["name"]: (str(column["type"]), column["nullable"], column.get("default"))
                for column in looked.get_columns(name)
            },
            "primary key": looked.get_pk_constraint(name),
            "unique": sorted((u["name"], u["column_names"]) for u in looked.get_unique_constraints(name)),
            "foreign": sorted(
                (f["name"], f["constrained_columns"], f["referred_table"], f["referred_columns"], f["options"])
                for f in looked.get_foreign_keys(name)
            ),
            "checks": sorted((c["name"], "".join(c["sqltext"].split())) for c in looked.get_check_constraints(name)),
            "indexes": sorted((i["name"], i["column_names"], bool(i["unique"])) for i in looked.get_indexes(name)),
        }
    if connection.dialect.name == "postgresql":
        asked = (
            "SELECT sequence_name, data_type FROM information_schema.sequences WHERE sequence_schema = current_schema()"
        )
        found["sequences"] = sorted(map(tuple, connection.execute(text(asked)).all()))
        asked = (
            "SELECT table_name, column_name, collation_name FROM information_schema.columns "
            "WHERE table_schema = current_schema() AND data_type IN ('text', 'character varying')"
        )
        found["collations"] = sorted(map(tuple, connection.execute(text(asked)).all()))
    return found


def test_a_new_store_has_the_tables_that_all_migrations_make(store_url: str) -> None:
    engine = make_engine(parse_url(store_url))
    with migrating(engine) as connection:
        connection.exec_driver_sql(
            "CREATE TABLE of_another_program (id INTEGER)"
        )  # not empty: one migration after another
    engine.dispose()
    with open_store(store_url).reading() as connection:
        migrated = described(connection)
    assert migrated.pop("of_another_program")
    engine = make_engine(parse_url(store_url))
    with migrating(engine) as connection:
        everything = MetaData()
        everything.reflect(connection)
        everything.drop_all(connection)
    engine.dispose()
    store = open_store(store_url)
    with store.reading() as connection:
        assert described(connection) == migrated
        assert current_revision(connection) == HEAD
