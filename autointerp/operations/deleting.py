"""Deleting a run: nobody works on it any more, then its rows go, some at a time, and then its folder."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import Table, delete, func, inspect, select

from autointerp.operations.run_users import users_of
from autointerp.pipeline.faults import fault_point
from autointerp.pipeline.finding import open_of_note
from autointerp.pipeline.folder import DATABASE, NOTE, RunFolder
from autointerp.pipeline.owner import is_dead
from autointerp.shown_url import shown_url
from autointerp.store.chunks import ChunkState
from autointerp.store.dialects import database_time
from autointerp.store.models import Base, Chunk, Run
from autointerp.store.store import LabelStore
from sae_core.errors import StoreError

ROWS_A_BATCH = 5_000
MARK = ".deleting"
"""File in a run's folder from before its rows go until all is gone: the id of the run."""
_MOST_NAMED = 3
_POLL_S = 0.5


def check_folder_is_its_own(store: LabelStore, run_id: str, given: Path | None = None) -> Path | None:
    """The folder that goes with the run, None where it has gone already. ``given``: the folder by which a person named the run.

    Errors: StoreError for a folder that is not the run's own, or holds what others need.
    """
    root = _place(store, run_id, given)
    if root.is_symlink():
        raise StoreError(
            f"the folder {str(root)!r} of run {run_id} is a link: give --keep-files and remove by hand what it leads to."
        )
    if not root.exists():
        return None
    note = RunFolder(root).read_note() if root.is_dir() else None
    if note is None or note.run_id != run_id:
        whose = (
            f"belongs to run {note.run_id}" if note is not None else "is no output folder of a run (it has no run.json)"
        )
        raise StoreError(
            f"the folder {str(root)!r} of run {run_id} {whose}: give --keep-files to delete the rows alone."
        )
    database = store.engine.url.database if store.engine.dialect.name == "sqlite" else None
    if database is not None and root.resolve() in Path(database).resolve().parents:
        others = [run.id for run in store.runs() if run.id != run_id]
        if others:
            raise StoreError(
                f"the folder {str(root)!r} holds the store of {len(others)} other runs ({others[0]}, ...): give --keep-files to "
                "delete the rows alone."
            )
    return root


def _place(store: LabelStore, run_id: str, given: Path | None) -> Path:
    """Where the run's folder lies: a moved or copied one with a store of its own is itself, whatever its store remembers."""
    root = Path(store.run(run_id).folder)
    if store.engine.dialect.name == "sqlite" and (database := store.engine.url.database) is not None:
        around = Path(database).resolve().parent
        note = RunFolder(around).read_note()
        if note is not None and note.run_id == run_id and note.store is None:
            return root if root.exists() and root.samefile(around) else around
    if given is None or (root.exists() and root.samefile(given)):
        return root
    if root.exists():
        raise StoreError(
            f"{str(given)!r} is a copy of the run {run_id}, whose own folder is {str(root)!r}: give that one to delete the run, or "
            "remove the copy by hand."
        )
    return given


def check_nobody_needs_it(store: LabelStore, run_id: str, given: Path | None = None) -> None:
    """Errors: StoreError where another run or a schedule needs the run."""
    users = users_of(store, run_id, given or Path(store.run(run_id).folder))
    if users:
        more = f", and {len(users) - _MOST_NAMED} more" if len(users) > _MOST_NAMED else ""
        raise StoreError(
            f"the run {run_id} is needed: {'; '.join(users[:_MOST_NAMED])}{more}: delete these first, or add --force to delete it all the same."
        )


def left_behind(given: Path) -> str | None:
    """Id of a run that was deleted by halves: its rows are gone, and its folder ``given`` is marked for removal; None for all else.

    A database that is not there is no proof: it may have been moved. Errors: StoreError where it cannot be told, since the store at hand is
    not the one that the folder names.
    """
    try:
        marked = (given / MARK).read_text(encoding="utf-8").strip() if not given.is_symlink() else ""
    except (FileNotFoundError, NotADirectoryError):
        return None
    note = RunFolder(given).read_note()
    if note is None or note.run_id != marked:
        return marked if note is None and marked else None
    if note.store is None and not (given / DATABASE).is_file():
        return note.run_id
    store = open_of_note(given, note)
    try:
        if store.has_run(note.run_id):
            return None
        if note.store is not None and note.shown_store != shown_url(store.engine.url):
            raise StoreError(
                f"the folder {str(given)!r} is of the run {note.run_id} in the store {note.shown_store!r}, and the one at hand is "
                f"{shown_url(store.engine.url)!r}: set AUTOINTERP_STORE__URL to the first, or remove the folder by hand."
            )
        others = [run.id for run in store.runs()] if note.store is None else []
        if others:
            raise StoreError(
                f"the folder {str(given)!r} of the deleted run {note.run_id} holds the store of {len(others)} other runs "
                f"({others[0]}, ...): delete these first."
            )
        return note.run_id
    finally:
        store.close()


def remove_folder(folder: Path) -> None:
    """Remove a run's folder, the mark last: as long as anything is left, it says whose it was."""
    for path in folder.iterdir():
        if path.name in (NOTE, MARK):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
        fault_point("delete", "file")
    for name in (NOTE, MARK):
        (folder / name).unlink(missing_ok=True)
    folder.rmdir()


def delete_run(
    store: LabelStore,
    run_id: str,
    *,
    given: Path | None = None,
    keep_files: bool = False,
    force: bool = False,
    wait_s: float = 120.0,
    tell: Callable[[str], None] = lambda said: None,
) -> int:
    """Cancel the run, wait until no process holds a chunk of it, delete its rows and its folder; returns the number of rows.

    ``given``: the folder by which a person named the run. ``force``: also where another run or a schedule needs it. Processes that hold
    a chunk give it back when they hear of it, or lose their lease; either takes no longer than a lease. One that is killed meanwhile
    leaves a run that can be deleted again, or a folder that ``left_behind`` knows.
    Errors: StoreError where somebody needs it or still works on it after ``wait_s`` seconds, and for another's folder, with nothing deleted.
    """
    folder = None if keep_files else check_folder_is_its_own(store, run_id, given)
    if not force:
        check_nobody_needs_it(store, run_id, given)
    store.set_run_state(run_id, "cancelled", "it is being deleted", unless=("done", "failed", "cancelled"))
    _wait_for_leases(store, run_id, wait_s, tell)
    if folder is not None:
        (folder / MARK).write_text(run_id, encoding="utf-8")
    rows = sum(_delete_rows(store, table, run_id) for table in _tables(store))
    with store.writing() as connection:
        rows += connection.execute(delete(Run).where(Run.id == run_id)).rowcount
    if folder is not None:
        store.close()  # its database may lie in there
        fault_point("delete", "rows")
        remove_folder(folder)
    return rows


def _wait_for_leases(store: LabelStore, run_id: str, wait_s: float, tell: Callable[[str], None]) -> None:
    end, told = time.monotonic() + wait_s, False
    while True:
        with store.reading() as connection:
            now = database_time(connection)
            holders = connection.execute(
                select(Chunk.owner).where(
                    Chunk.run_id == run_id, Chunk.state == ChunkState.RUNNING, Chunk.lease_until >= now
                )
            ).scalars()
            held = sum(not is_dead(owner) for owner in holders)
        if not held:
            return
        if time.monotonic() > end:
            raise StoreError(
                f"{held} chunks of run {run_id} are still worked on after {wait_s:g} s; it is cancelled and nothing is deleted yet: run "
                "the same command again, or with a longer --wait."
            )
        if not told:
            tell(f"waiting for {held} chunks that are being worked on")
            told = True
        time.sleep(_POLL_S)


def _tables(store: LabelStore) -> list[Table]:
    """Tables with rows of runs, those that others refer to last."""
    there = set(inspect(store.engine).get_table_names())
    return [
        table
        for table in reversed(Base.metadata.sorted_tables)
        if table.name in there and any(key.target_fullname == "run.id" for key in table.foreign_keys)
    ]


def _delete_rows(store: LabelStore, table: Table, run_id: str) -> int:
    rows = 0
    if "id" not in table.c:
        with store.writing() as connection:
            return connection.execute(delete(table).where(table.c.run_id == run_id)).rowcount
    with store.reading() as connection:
        first, last = connection.execute(
            select(func.min(table.c.id), func.max(table.c.id)).where(table.c.run_id == run_id)
        ).one()
    if first is None:
        return 0
    for start in range(first, last + 1, ROWS_A_BATCH):
        with store.writing() as connection:
            some = table.c.id.between(start, start + ROWS_A_BATCH - 1)
            rows += connection.execute(delete(table).where(some, table.c.run_id == run_id)).rowcount
    return rows
