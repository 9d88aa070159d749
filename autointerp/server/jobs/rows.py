"""The rows of jobs: every change of a job's state is one short transaction here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from sqlalchemy import func, insert, select, update
from sqlalchemy.exc import IntegrityError

from autointerp.store import LabelStore
from autointerp.store.column_types import utc_now
from autointerp.store.models import JobRow
from sae_core.errors import StoreError, UnknownNameError

JobKind = Literal["run", "export"]
OPEN = ("queued", "running")
"""States in which the server has something to do."""


def add_job(store: LabelStore, row: JobRow) -> JobRow:
    """Add a job; where its key was used before by the same asker, for the same request, that job. Errors: StoreError for another request."""
    if row.key is not None and (before := _of_key(store, row)) is not None:
        return before
    values = {column.name: getattr(row, column.name) for column in JobRow.__table__.columns}
    given = {name: value for name, value in values.items() if value is not None}
    try:
        with store.writing() as connection:
            connection.execute(insert(JobRow).values(**given))
    except IntegrityError:
        before = _of_key(store, row)
        if before is None:
            raise
        return before
    return job(store, row.id)


def _of_key(store: LabelStore, row: JobRow) -> JobRow | None:
    found = jobs(store, JobRow.asked_by == row.asked_by, JobRow.key == row.key)
    if found and found[0].digest != row.digest:
        raise StoreError(
            f"the key {row.key!r} was given with another request before, which became the job {found[0].id}: give this one another key."
        )
    return found[0] if found else None


def job(store: LabelStore, job_id: str) -> JobRow:
    """Errors: UnknownNameError."""
    found = jobs(store, JobRow.id == job_id)
    if not found:
        raise UnknownNameError("there is no such job: the first page lists those there are.")
    return found[0]


def jobs(store: LabelStore, *where: Any, limit: int | None = None) -> list[JobRow]:
    """Jobs that fit, the latest first."""
    query = select(JobRow.__table__).where(*where).order_by(JobRow.created_at.desc(), JobRow.id.desc()).limit(limit)
    with store.reading() as connection:
        return [JobRow(**row._mapping) for row in connection.execute(query)]


def job_of_run(store: LabelStore, run_id: str, kind: JobKind = "run") -> JobRow | None:
    """The latest job of a kind for a run; None for a run that others began."""
    found = jobs(store, JobRow.run_id == run_id, JobRow.kind == kind, limit=1)
    return found[0] if found else None


def num_open(store: LabelStore, asked_by: str) -> int:
    """Jobs of one asker that wait or are under way."""
    with store.reading() as connection:
        query = select(func.count()).where(JobRow.asked_by == asked_by, JobRow.state.in_(OPEN))
        return int(connection.execute(query).scalar_one())


def claim_next(store: LabelStore, kind: JobKind, below: str, process: str) -> JobRow | None:
    """Make the oldest queued job of a kind whose folder is ``below`` the running one, unless one is running there."""
    mine = (JobRow.kind == kind, JobRow.folder.startswith(below, autoescape=True))
    with store.writing() as connection:
        if connection.execute(select(JobRow.id).where(*mine, JobRow.state == "running")).first() is not None:
            return None
        oldest = select(JobRow.id).where(*mine, JobRow.state == "queued").order_by(JobRow.created_at, JobRow.id)
        job_id = connection.execute(oldest.limit(1)).scalar()
        if job_id is None:
            return None
        values = {"state": "running", "process": process, "started_at": utc_now(), "error": None, "error_kind": None}
        changed = connection.execute(
            update(JobRow).where(JobRow.id == job_id, JobRow.state == "queued").values(**values)
        )
    return job(store, job_id) if changed.rowcount == 1 else None


def change(store: LabelStore, job_id: str, *, was: Sequence[str], **values: Any) -> bool:
    """Change a job that is in one of the states ``was``; False where it is in none."""
    if values.get("state") in ("done", "failed", "cancelled"):
        values["finished_at"] = utc_now()
    elif "state" in values:
        values["finished_at"] = None
    with store.writing() as connection:
        changed = connection.execute(update(JobRow).where(JobRow.id == job_id, JobRow.state.in_(was)).values(**values))
    return changed.rowcount == 1
