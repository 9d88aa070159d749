"""Checks of the database: it is there, lets us in, has this version's tables, the right time and room."""

from __future__ import annotations

import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from sqlalchemy import Connection, Engine, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from autointerp.operations.environment import STORE_VARIABLE
from autointerp.operations.findings import Finding, ok, warning, wrong
from autointerp.pipeline.owner import Owner
from autointerp.shown_url import shown_url, without_password
from autointerp.store.dialects import READ_ONLY, database_time, journal_mode, make_engine, parse_url
from autointerp.store.opening import HEAD, current_revision
from autointerp.store.presence import live_workers
from sae_core.errors import StoreError

MOST_SKEW_S = 10.0
LEAST_FREE_BYTES = 2 * 2**30
_FEW_CONNECTIONS = 10
_CONNECT_S = 5


def check_store(url: str | None, clock: Callable[[], float] = time.time) -> Iterator[Finding]:
    """What is wrong with the store at ``url``; nothing is written or upgraded. ``clock``: this machine's, seconds since 1970."""
    if not url:
        yield ok("database", f"none is given in {STORE_VARIABLE}: each run keeps its own autointerp.db in its folder.")
        return
    try:
        parsed = parse_url(url)
    except StoreError as error:
        yield wrong("database", str(error))
        return
    shown = shown_url(parsed)
    if parsed.get_backend_name() == "sqlite" and not Path(parsed.database or "").is_file():
        folder = Path(parsed.database or "").absolute().parent
        yield (
            ok("database", f"{shown} is not there yet; the first run makes it.")
            if folder.is_dir()
            else wrong("database", f"the folder of {shown} does not exist: make it, or correct {STORE_VARIABLE}.")
        )
        return
    if parsed.get_backend_name() == "postgresql":
        parsed = parsed.update_query_dict({"connect_timeout": str(_CONNECT_S)})
    try:
        engine = make_engine(parsed)
    except StoreError as error:
        yield wrong("database", str(error))
        return
    try:
        yield from _connected(engine, parsed, shown, clock)
    except (SQLAlchemyError, StoreError) as error:
        yield wrong("database", _cannot_connect(error, parsed, shown))
    finally:
        engine.dispose()


def _connected(engine: Engine, url: URL, shown: str, clock: Callable[[], float]) -> Iterator[Finding]:
    with engine.connect().execution_options(**{READ_ONLY: True}) as connection, connection.begin():
        before = clock()
        now = database_time(connection)
        here = (before + clock()) / 2
        revision = current_revision(connection)
        yield ok("database", f"{shown} answers.")
        yield _revision(revision, shown)
        skew = here - now
        if abs(skew) > MOST_SKEW_S and url.get_backend_name() != "sqlite":
            yield warning(
                "database clock",
                f"this machine's clock is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the database's; leases go by the "
                "database's, but logs and dates will not agree: run a time service (NTP) on both.",
            )
        else:
            yield ok("database clock", "it agrees with this machine's.")
        if url.get_backend_name() == "sqlite":
            yield from _sqlite(connection, Path(url.database or ""), revision)
        else:
            yield from _postgres(connection, shown)


def _revision(revision: str | None, shown: str) -> Finding:
    if revision == HEAD:
        return ok("database tables", f"they have this version's revision, {HEAD}.")
    if revision is None:
        return warning(
            "database tables", f"{shown} has none yet: `autointerp db upgrade` makes them, and so does the first run."
        )
    if revision.isdecimal() and HEAD.isdecimal() and revision > HEAD:
        return wrong(
            "database tables",
            f"they have revision {revision}, newer than {HEAD}, the newest that this version knows: upgrade autointerp here.",
        )
    return wrong(
        "database tables",
        f"they have revision {revision} and this version needs {HEAD}: stop the workers of the old version, make a backup and run "
        "`autointerp db upgrade`.",
    )


def _sqlite(connection: Connection, path: Path, revision: str | None) -> Iterator[Finding]:
    if journal_mode() == "WAL":
        yield ok("SQLite version", f"{sqlite3.sqlite_version} writes its log safely.")
    else:
        yield warning(
            "SQLite version",
            f"SQLite {sqlite3.sqlite_version} has a bug that can damage a database with a write-ahead log (fixed in 3.51.3), so "
            "autointerp writes without one, which is safe and slower: use a Python with a newer SQLite, or PostgreSQL.",
        )
    if revision == HEAD:
        owners = [Owner.parse(worker.owner) for worker in live_workers(connection)]
        hosts = sorted({owner.host for owner in owners if owner is not None})
        if len(hosts) > 1:
            yield warning(
                "SQLite hosts",
                f"workers of {len(hosts)} machines ({', '.join(hosts[:5])}) share an SQLite file, whose locks do not hold between "
                "machines: use PostgreSQL as the store.",
            )
    free = shutil.disk_usage(path.absolute().parent).free
    yield _room("database disk", f"the disk of {path}", free)


def _postgres(connection: Connection, shown: str) -> Iterator[Finding]:
    if connection.execute(text("SHOW transaction_read_only")).scalar_one() == "on":
        yield wrong(
            "database writes", f"{shown} only lets itself be read (a standby?): give the address of the primary server."
        )
    else:
        yield ok("database writes", "they are allowed.")
    most, in_use = connection.execute(
        text("SELECT current_setting('max_connections')::int, (SELECT count(*) FROM pg_stat_activity)")
    ).one()
    if most - in_use < _FEW_CONNECTIONS:
        yield warning(
            "database connections",
            f"{in_use} of {most} are in use: raise max_connections (each worker process takes up to 15), or put a pooler before it.",
        )
    else:
        yield ok("database connections", f"{in_use} of {most} are in use.")


def _room(check: str, what: str, free: int) -> Finding:
    said = f"{what} has {free / 2**30:.1f} GiB free"
    if free < LEAST_FREE_BYTES:
        return wrong(check, f"{said}, less than {LEAST_FREE_BYTES / 2**30:.0f}: make room.")
    return ok(check, f"{said}.")


def _cannot_connect(error: Exception, url: URL, shown: str) -> str:
    """One sentence out of what the driver says; libpq gives no code for a connection that was refused, only words."""
    said = without_password(" ".join(str(error.orig if isinstance(error, DBAPIError) else error).split()))
    if "password authentication failed" in said or "no password supplied" in said:
        return (
            f"{shown} does not accept the password of {url.username or 'this user'!r}: correct it in {STORE_VARIABLE} "
            "(signs such as @ or / are written %40 or %2F there)."
        )
    if "does not exist" in said and "database" in said:
        return f"the PostgreSQL of {shown} has no database {url.database!r}: make it (createdb {url.database}), or correct {STORE_VARIABLE}."
    if "does not exist" in said and "role" in said:
        return f"the PostgreSQL of {shown} knows no user {url.username!r}: make it (createuser), or correct {STORE_VARIABLE}."
    if "too many clients" in said or "remaining connection slots" in said:
        return f"{shown} takes no more connections: raise its max_connections, or stop what holds them."
    if any(
        words in said for words in ("refused", "timeout", "timed out", "could not translate", "resolve", "No such file")
    ):
        return f"nobody answers at {shown} ({_short(said)}): start the PostgreSQL, or correct {STORE_VARIABLE}."
    return f"{shown} cannot be used ({_short(said)}): see to it, or correct {STORE_VARIABLE}."


def _short(said: str) -> str:
    return (said if len(said) <= 200 else said[:197] + "...").rstrip(".")
