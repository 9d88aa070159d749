"""The one module that knows which database it talks to: engines, transactions, clock, migration lock."""

from __future__ import annotations

import hashlib
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Text, create_engine, event, func, select, text, type_coerce
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from autointerp.shown_url import shown_url, without_password
from sae_core.errors import StoreError

BUSY_TIMEOUT_S = 20
_DRIVERS = ("sqlite", "sqlite+pysqlite", "postgresql+psycopg")
READ_ONLY = "autointerp_read"
"""Execution option of a connection that only reads: its transaction takes no write lock."""
_CONNECTION = {
    "application_name": "autointerp",
    "connect_timeout": "10",
    # a server that vanished without a word is noticed in a minute, not in the two hours of the operating system
    "keepalives": "1",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "60000",
}
_SESSION = {
    "lock_timeout": f"{BUSY_TIMEOUT_S}s",
    "statement_timeout": "300s",
    # a process that is stopped in the middle of a transaction would hold its locks for ever
    "idle_in_transaction_session_timeout": "60s",
}
_WAL_SAFE = (3, 51, 3)
"""First SQLite without the WAL-reset bug, which can corrupt a database that two connections write and checkpoint
(sqlite.org/wal.html, "The WAL-Reset Bug")."""


def parse_url(url: str) -> URL:
    """An SQLAlchemy URL. Errors: StoreError."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:  # ValueError: a port that is no number
        raise StoreError(
            f"store.url is {without_password(url).split('@')[-1]!r}, which is no database URL known here: give for instance "
            "'sqlite:////absolute/path/autointerp.db' or 'postgresql+psycopg://user@host/database'."
        ) from error
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername not in _DRIVERS:
        raise StoreError(
            f"store.url names the database {parsed.drivername!r}; allowed are {', '.join(map(repr, _DRIVERS))}: "
            "begin it with one of these and '://'."
        )
    if parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise StoreError("store.url names an SQLite database in memory, which would be lost: give the path of a file.")
    return parsed


def make_engine(url: URL) -> Engine:
    """An engine whose transactions are short and take their locks at the start. Errors: StoreError."""
    if url.get_backend_name() == "sqlite":
        return _sqlite_engine(url)
    try:
        return create_engine(
            url,
            pool_pre_ping=True,
            isolation_level="READ COMMITTED",
            connect_args=_postgres_options(url),
            hide_parameters=True,  # an error shows no prompts and replies
        )
    except ModuleNotFoundError as error:
        raise StoreError(
            f"the store {shown_url(url)!r} needs the package {error.name!r}: pip install 'autointerp[postgres]'."
        ) from error


def _postgres_options(url: URL) -> dict[str, str]:
    """Settings of a connection, each unless the URL gives it."""
    given = {name: value if isinstance(value, str) else " ".join(value) for name, value in url.query.items()}
    options = {**_CONNECTION, **given}
    # later ones win
    options["options"] = " ".join(
        [*(f"-c {name}={value}" for name, value in _SESSION.items()), given.get("options", "")]
    )
    return options


def after_fork(engine: Engine) -> None:
    """To be called in a child process first: the parent's connections are the parent's, and stay open there."""
    engine.dispose(close=False)


def journal_mode() -> str:
    """WAL where this SQLite writes it safely, else a rollback journal."""
    return "WAL" if sqlite3.sqlite_version_info >= _WAL_SAFE else "DELETE"


def _sqlite_engine(url: URL) -> Engine:
    if url.database and url.database != ":memory:":
        folder = Path(url.database).parent
        if not folder.is_dir():
            raise StoreError(
                f"the store's folder {str(folder)!r} does not exist: make it, or choose another store.url."
            )
    engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S}, hide_parameters=True)

    @event.listens_for(engine, "connect")
    def _connect(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves, below
        for pragma in (
            f"journal_mode={journal_mode()}",
            "synchronous=NORMAL" if journal_mode() == "WAL" else "synchronous=FULL",
            "foreign_keys=ON",
            f"busy_timeout={BUSY_TIMEOUT_S * 1000}",
            "journal_size_limit=67108864",
            "cache_size=-8000",  # of 2 MB the upper pages of the indexes are read again and again by an export
        ):
            connection.execute(f"PRAGMA {pragma}").fetchall()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # a deferred transaction that reads and then writes fails at once, whatever the busy timeout, if another wrote
        read_only = connection.get_execution_options().get(READ_ONLY, False)
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    return engine


def insert_new(connection: Connection, table: type[Any]) -> Any:
    """INSERT that passes over a row which is there already; no error, so that the transaction goes on in PostgreSQL too."""
    if connection.dialect.name == "postgresql":
        return postgresql.insert(table).on_conflict_do_nothing()
    return sqlite.insert(table).on_conflict_do_nothing()


def text_digest(connection: Connection, column: Any, where: Any) -> str | None:
    """sha256 of the text that a column holds in one row, None where there is no such row; PostgreSQL reckons it, so that the text stays there."""
    stored = type_coerce(column, Text)
    if connection.dialect.name == "postgresql":
        hashed = func.encode(func.sha256(func.convert_to(stored, "UTF8")), "hex")
        return connection.execute(select(hashed).where(where)).scalar()
    found = connection.execute(select(stored).where(where)).scalar()
    return None if found is None else hashlib.sha256(found.encode()).hexdigest()


def count_anew(connection: Connection, table: str) -> None:
    """Have PostgreSQL look at a table that has just grown by much. Until it has done so of itself, a minute later, it takes the table
    for an empty one, and asks it accordingly: one row after the other."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"ANALYZE {connection.dialect.identifier_preparer.quote(table)}")


def sort_alike(connection: Connection) -> None:
    """Have text sort by code point on PostgreSQL too, as on SQLite and in Python, whatever the database's language is.

    Rows in another order would be another dictionary, and an index in a language's order is wrong after an update of the
    system's C library. To be called after every change of tables.
    """
    if connection.dialect.name != "postgresql":
        return
    columns = connection.execute(
        text(
            "SELECT table_name, column_name, format_type(atttypid, atttypmod) FROM information_schema.columns "
            "JOIN pg_attribute ON attrelid = quote_ident(table_name)::regclass AND attname = column_name "
            "WHERE table_schema = current_schema() AND collation_name IS DISTINCT FROM 'C' "
            "AND data_type IN ('text', 'character varying') ORDER BY table_name, ordinal_position"
        )
    ).all()
    quote = connection.dialect.identifier_preparer.quote
    changes: dict[str, list[str]] = {}
    for table, column, kind in columns:
        changes.setdefault(table, []).append(f'ALTER COLUMN {quote(column)} TYPE {kind} COLLATE "C"')
    for table, change in changes.items():
        connection.exec_driver_sql(f"ALTER TABLE {quote(table)} {', '.join(change)}")


def database_time(connection: Connection) -> float:
    """Seconds since 1970 by the database's clock (SQLite serves one host, whose clock it is)."""
    if connection.dialect.name == "postgresql":
        return float(connection.execute(text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one())
    return time.time()


@contextmanager
def migrating(engine: Engine) -> Iterator[Connection]:
    """A transaction that changes tables, one process at a time; all of it happens or nothing.

    SQLite changes a constraint by making the table anew, and dropping the old one would delete the rows that refer to
    it, so its foreign keys are off meanwhile, and are checked at the end (sqlite.org/lang_altertable.html, section 7).
    """
    if engine.dialect.name == "postgresql":
        with engine.begin() as connection:
            # changing tables takes as long as it takes, and those who wait for it wait as long
            for setting in ("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout"):
                connection.execute(text(f"SET LOCAL {setting} = 0"))
            connection.execute(text("SELECT pg_advisory_xact_lock(7234171)"))
            yield connection
        return
    with engine.connect() as connection:
        driver = connection.connection.dbapi_connection
        assert isinstance(driver, sqlite3.Connection)
        driver.execute("PRAGMA foreign_keys=OFF")  # does nothing inside a transaction, hence before it
        try:
            with connection.begin():  # IMMEDIATE: takes the write lock
                yield connection
                broken = connection.exec_driver_sql("PRAGMA foreign_key_check").fetchall()
                assert not broken, f"the migration left rows that refer to nothing: {broken[:5]}"
        finally:
            driver.execute("PRAGMA foreign_keys=ON")
