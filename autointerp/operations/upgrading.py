"""Which revision a store's tables have, asked without upgrading them as opening the store would."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.exc import DatabaseError

from autointerp.operations.environment import given_store
from autointerp.pipeline.folder import DATABASE, RunFolder
from autointerp.shown_url import shown_url, without_password
from autointerp.store.dialects import READ_ONLY, make_engine, parse_url
from autointerp.store.failures import own_errors
from autointerp.store.opening import HEAD, current_revision, sqlite_url
from sae_core.errors import StoreError


@dataclass(frozen=True, slots=True)
class Revisions:
    """What the tables have and what is needed."""

    found: str | None
    """None for a database without tables."""
    needed: str = HEAD

    @property
    def fit(self) -> bool:
        """Whether this version can work with them as they are."""
        return self.found == self.needed

    @property
    def sentence(self) -> str:
        """How it stands, and what to do."""
        if self.fit:
            return f"the tables have revision {self.found}, which this version needs."
        if self.found is None:
            return f"the database has no tables yet: `autointerp db upgrade` makes them, of revision {self.needed}."
        if self.found > self.needed:
            return (
                f"the tables have revision {self.found}, newer than {self.needed}, the newest that this version knows: upgrade "
                "autointerp."
            )
        return (
            f"the tables have revision {self.found} and this version needs {self.needed}: stop the workers, make a backup and run "
            "`autointerp db upgrade`."
        )


def revisions(url: str) -> Revisions:
    """The revision of the tables at ``url``. Errors: StoreError."""
    parsed = parse_url(url)
    shown = shown_url(parsed)
    if parsed.get_backend_name() == "sqlite" and not Path(parsed.database or "").is_file():
        return Revisions(None)
    engine = make_engine(parsed)
    try:
        with own_errors(), engine.connect().execution_options(**{READ_ONLY: True}) as connection, connection.begin():
            return Revisions(current_revision(connection))
    except DatabaseError as error:
        said = without_password(str(error.orig))[:200]
        raise StoreError(f"the store {shown!r} is not a database that can be read: {said}.") from error
    finally:
        engine.dispose()


def url_of(given: str) -> str:
    """URL of the store that an output folder, a database file or a URL names; nothing is opened. Errors: StoreError."""
    if "://" in given:
        return given
    path = Path(given)
    if path.is_dir():
        note = RunFolder(path).read_note()
        if note is not None and note.store is not None:
            # the note has no password; whoever needs one gives the URL in the environment, as for the run
            return given_store() or note.store
        path = path / DATABASE
    if not path.is_file():
        raise StoreError(f"there is no store at {given!r}: give an output folder, a database file, or a store's URL.")
    return sqlite_url(path)
