"""Opens a store and brings its tables to this version's revision."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Column, Connection, Engine, MetaData, PrimaryKeyConstraint, String, Table, inspect, select
from sqlalchemy.exc import DatabaseError, OperationalError

from autointerp.shown_url import shown_url, without_password
from autointerp.store import dialects
from autointerp.store.dialects import READ_ONLY, make_engine, migrating, parse_url, sort_alike
from autointerp.store.failures import own_errors
from autointerp.store.models import Base
from autointerp.store.store import LabelStore
from sae_core.errors import StoreError

HEAD = "0007"
"""Newest revision in ``migrations/versions``; a store that is there already opens without loading Alembic."""
MIGRATIONS = Path(__file__).parent / "migrations"
_VERSION = Table(
    "alembic_version",
    MetaData(),
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)
"""Alembic's own table, as it would make it."""


def sqlite_url(path: Path) -> str:
    """URL of an SQLite file."""
    return f"sqlite:///{path.absolute()}"


def open_store(url: str, *, create: bool = True, upgrade: bool = False) -> LabelStore:
    """The store at an SQLAlchemy URL, with this version's tables.

    An empty database gets them, and so does an SQLite file of an earlier version. One of PostgreSQL is upgraded with ``upgrade`` only:
    others may be working with it, so that is its operator's decision. With ``create=False`` a store that is not there is an error, not made. Errors: StoreError.
    """
    parsed = parse_url(url)
    if not create and parsed.get_backend_name() == "sqlite" and not Path(parsed.database or "").is_file():
        raise StoreError(
            f"there is no store at {parsed.database!r}: give the output folder of a run, or its store's URL."
        )
    engine = make_engine(parsed)
    shown = shown_url(parsed)
    try:
        with own_errors():
            _upgrade(engine, shown, upgrade or parsed.get_backend_name() == "sqlite")
    except OperationalError as error:
        raise StoreError(f"the store {shown!r} cannot be opened: {without_password(str(error.orig))}.") from error
    except DatabaseError as error:
        raise StoreError(
            f"the store {shown!r} is not a database that can be read: {without_password(str(error.orig))}."
        ) from error
    return LabelStore(engine)


def after_fork(store: LabelStore) -> None:
    """To be called first in a child process that was forked while the store was open: it takes connections of its own."""
    dialects.after_fork(store.engine)


def current_revision(connection: Connection) -> str | None:
    """The revision that a store's tables have, None for an empty database."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(select(_VERSION.c.version_num)).scalar_one_or_none()


def _make_tables(engine: Engine) -> bool:
    """Give an empty database this version's tables at once; False where it has some.

    They are the tables that all migrations make one after another, without loading Alembic.
    """
    with migrating(engine) as connection:
        if inspect(connection).get_table_names():
            return False
        Base.metadata.create_all(connection)
        _VERSION.create(connection)
        connection.execute(_VERSION.insert().values(version_num=HEAD))
        sort_alike(connection)
    return True


def _upgrade(engine: Engine, shown: str, allowed: bool) -> None:
    with engine.connect().execution_options(**{READ_ONLY: True}) as connection, connection.begin():
        if current_revision(connection) == HEAD:
            return

    if _make_tables(engine):
        return

    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    settings = Config()
    settings.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    known = {script.revision for script in ScriptDirectory.from_config(settings).walk_revisions()}
    with migrating(engine) as connection:
        revision = current_revision(connection)
        if revision == HEAD:
            return
        if revision is not None and revision not in known:
            raise StoreError(
                f"the store {shown!r} was written by a newer autointerp (revision {revision!r}, this version knows "
                f"up to {HEAD!r}): upgrade autointerp, or choose another store.url."
            )
        if revision is not None and not allowed:
            raise StoreError(
                f"the tables of the store {shown!r} have revision {revision!r} and this version needs {HEAD!r}: stop the workers, make a "
                "backup and run `autointerp db upgrade`."
            )
        settings.attributes["connection"] = connection
        command.upgrade(settings, "head")
        sort_alike(connection)
