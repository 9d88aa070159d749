"""Copies of a store that are whole while others write to it, and a store made of such a copy.

A backup is a folder: ``store.db`` (SQLite) or ``store.dump`` (pg_dump's own format), and ``manifest.json``, which is written last.
Run folders are not in it: the manifest says where they are.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, create_engine, func, inspect, select, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

from autointerp.pipeline.code_version import code_version
from autointerp.pipeline.folder import usable_folder
from autointerp.shown_url import shown_url, without_password
from autointerp.store.dialects import BUSY_TIMEOUT_S, make_engine, parse_url
from autointerp.store.models import Base, Run
from autointerp.store.opening import HEAD, current_revision
from sae_core.errors import StoreError

MANIFEST = "manifest.json"
_FORMAT = 1
_FILES = {"sqlite": "store.db", "postgresql": "store.dump"}


@dataclass(frozen=True, slots=True)
class BackedUpRun:
    """One run of a backup."""

    id: str
    name: str
    state: str
    folder: str
    """Where its files are, which are not part of the backup."""


@dataclass(frozen=True, slots=True)
class BackupManifest:
    """What a backup holds."""

    database: str
    """``sqlite`` or ``postgresql``."""
    revision: str
    """Of the tables."""
    code_version: str
    made_at: str
    """UTC, ISO 8601."""
    num_bytes: int
    sha256: str
    """Of the file."""
    rows: dict[str, int]
    """Rows of each table."""
    runs: list[BackedUpRun]
    format: int = _FORMAT


def back_up(url: str, target: Path) -> BackupManifest:
    """Copy the store at ``url`` as it is at one moment into the new folder ``target``; others go on writing.

    Its tables are copied as they are, of whatever revision. Errors: StoreError.
    """
    if target.exists():
        raise StoreError(f"the backup's folder {str(target)!r} is there already: give one that is not.")
    building = target.with_name(f".{target.name}.{os.getpid()}.building")
    with usable_folder(building, "the backup's folder"):
        building.mkdir(parents=True)
    try:
        parsed = parse_url(url)
        kind = parsed.get_backend_name()
        path = building / _FILES[kind]
        rows, runs, revision = _copy_sqlite(parsed, path) if kind == "sqlite" else _dump_postgres(parsed, path)
        manifest = BackupManifest(
            kind,
            revision,
            code_version(),
            datetime.now(UTC).isoformat(timespec="seconds"),
            path.stat().st_size,
            _sha256(path),
            rows,
            runs,
        )
        _write_synced(building / MANIFEST, json.dumps(asdict(manifest), indent=1) + "\n")
        os.rename(building, target)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    return manifest


def read_manifest(backup: Path) -> BackupManifest:
    """The manifest of a backup, whose file is compared with it. Errors: StoreError."""
    try:
        data: dict[str, Any] = json.loads((backup / MANIFEST).read_text(encoding="utf-8"))
        if data.get("format") != _FORMAT:
            raise StoreError(
                f"{str(backup)!r} is a backup of format {data.get('format')!r} and this version reads {_FORMAT}: use the version that "
                f"made it ({data.get('code_version')})."
            )
        data["runs"] = [BackedUpRun(**run) for run in data["runs"]]
        manifest = BackupManifest(**data)
        path = backup / _FILES[manifest.database]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise StoreError(
            f"{str(backup)!r} is no backup (its {MANIFEST} cannot be read): give a folder that `autointerp backup` made."
        ) from error
    if not path.is_file() or path.stat().st_size != manifest.num_bytes or _sha256(path) != manifest.sha256:
        raise StoreError(f"{str(path)!r} is not what was backed up (its sha256 differs): take another backup.")
    return manifest


def restore(backup: Path, url: str) -> BackupManifest:
    """Make the store at ``url``, which must not be there (SQLite) or be empty (PostgreSQL), out of a backup.

    Its tables keep the revision they had; opening the store upgrades them. Errors: StoreError.
    """
    manifest = read_manifest(backup)
    parsed = parse_url(url)
    kind = parsed.get_backend_name()
    if kind != manifest.database:
        raise StoreError(
            f"{str(backup)!r} is a backup of {_called(manifest.database)} and {shown_url(parsed)!r} is {_called(kind)}: "
            f"give a URL of {_called(manifest.database)}."
        )
    if manifest.revision.isdecimal() and manifest.revision > HEAD:
        raise StoreError(
            f"{str(backup)!r} was made by a newer autointerp (revision {manifest.revision}, this version knows up to {HEAD}): "
            f"upgrade autointerp to {manifest.code_version} or newer."
        )
    source = backup / _FILES[kind]
    if kind == "sqlite":
        _restore_sqlite(source, Path(parsed.database or ""))
    else:
        _restore_postgres(source, parsed)
    with _plain(parsed) as connection:
        found = _rows(connection)
    different = sorted(
        name for name in manifest.rows.keys() | found.keys() if manifest.rows.get(name) != found.get(name)
    )
    if different:
        raise StoreError(
            f"what was restored at {shown_url(parsed)!r} has other rows than the backup (table {different[0]!r}): remove it "
            "and restore again."
        )
    return manifest


def _copy_sqlite(url: URL, path: Path) -> tuple[dict[str, int], list[BackedUpRun], str]:
    # in one step, under one read lock: a copy in steps begins anew whenever somebody writes, and may never end
    if not Path(url.database or "").is_file():
        raise StoreError(f"there is no store at {url.database!r}: give the output folder of a run, or its store's URL.")
    with _plain(url) as connection:
        driver = connection.connection.dbapi_connection
        assert isinstance(driver, sqlite3.Connection)
        copy = sqlite3.connect(path)
        try:
            driver.backup(copy, pages=-1)
            broken = copy.execute("PRAGMA quick_check").fetchone()[0]
            if broken != "ok":
                raise StoreError(f"the store is damaged ({str(broken)[:120]}): restore the last good backup.")
            copy.execute("PRAGMA journal_mode=DELETE")  # one file, whatever the store has beside it
        finally:
            copy.close()
    with _plain(URL.create("sqlite", database=str(path))) as connection:
        return _contents(connection)


def _dump_postgres(url: URL, path: Path) -> tuple[dict[str, int], list[BackedUpRun], str]:
    with _plain(url) as plain:
        connection = plain.execution_options(isolation_level="REPEATABLE READ")
        # rows are counted and dumped at the same moment; the transaction must stay open as long as pg_dump runs
        connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        snapshot = connection.execute(text("SELECT pg_export_snapshot()")).scalar_one()
        contents = _contents(connection)
        command = [
            "pg_dump",
            "--format=custom",
            f"--snapshot={snapshot}",
            "--no-owner",
            "--no-privileges",
            f"--file={path}",
        ]
        _run_tool(command, url)
    return contents


def _restore_sqlite(source: Path, path: Path) -> None:
    if path.exists():
        raise StoreError(f"there is a database at {str(path)!r} already: move it away, or give another path.")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.restoring")
    with usable_folder(path.parent, "the store's folder"):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(source, temporary)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            os.rename(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def _restore_postgres(source: Path, url: URL) -> None:
    with _plain(url) as connection:
        names = inspect(connection).get_table_names()
    if names:
        raise StoreError(
            f"the database {shown_url(url)!r} is not empty (it has a table {sorted(names)[0]!r}): make a new one (createdb) "
            "and give its URL."
        )
    options = ["--no-owner", "--no-privileges", "--exit-on-error", "--single-transaction"]
    _run_tool(["pg_restore", *options, f"--dbname={_conninfo(url)}", str(source)], url, named=True)


def _run_tool(command: list[str], url: URL, *, named: bool = False) -> None:
    """Run one of PostgreSQL's tools on a database; its password goes by the environment, where no list of processes shows it."""
    tool = shutil.which(command[0])
    if tool is None:
        raise StoreError(
            f"{command[0]} is not on the PATH: install PostgreSQL's client programs (package postgresql-client) of the server's "
            "version or newer."
        )
    if not named:
        command = [*command, f"--dbname={_conninfo(url)}"]
    environment = {**os.environ, **({"PGPASSWORD": str(url.password)} if url.password else {})}
    done = subprocess.run(
        [tool, *command[1:]], env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
    )
    if done.returncode != 0:
        said = without_password(" ".join(done.stderr.split()))[:400].rstrip(".")
        raise StoreError(f"{command[0]} could not do it ({said}): see to that and run the same command again.")


def _conninfo(url: URL) -> str:
    """libpq's address of the database without its password."""
    from psycopg.conninfo import make_conninfo

    fields: Mapping[str, Any] = {"host": url.host, "port": url.port, "user": url.username, "dbname": url.database}
    given = {name: value for name, value in url.query.items() if isinstance(value, str)}
    return make_conninfo("", **{name: value for name, value in fields.items() if value is not None}, **given)


@contextmanager
def _plain(url: URL) -> Iterator[Connection]:
    """A connection to a database that is not upgraded by it."""
    if url.get_backend_name() == "postgresql":
        engine = make_engine(url)
    else:
        engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S})
    try:
        with engine.connect() as connection:
            yield connection
    except DBAPIError as error:
        said = without_password(" ".join(str(error.orig).split()))[:200]
        raise StoreError(f"the database {shown_url(url)!r} cannot be used ({said}): see to it.") from error
    finally:
        engine.dispose()


def _contents(connection: Connection) -> tuple[dict[str, int], list[BackedUpRun], str]:
    runs = connection.execute(select(Run.id, Run.name, Run.state, Run.folder).order_by(Run.created_at, Run.id)).all()
    return _rows(connection), [BackedUpRun(*map(str, row)) for row in runs], current_revision(connection) or ""


def _rows(connection: Connection) -> dict[str, int]:
    there = set(inspect(connection).get_table_names())
    tables = [table for table in Base.metadata.sorted_tables if table.name in there]
    if not tables:
        raise StoreError("the database has no tables of a store: give the store's URL.")
    return {
        table.name: int(connection.execute(select(func.count()).select_from(table)).scalar_one()) for table in tables
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_synced(path: Path, content: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _called(kind: str) -> str:
    return {"sqlite": "SQLite", "postgresql": "PostgreSQL"}.get(kind, kind)
