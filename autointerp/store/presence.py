"""Which processes of a cluster are there, what one of them does at a time, and what happened that no other row tells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import Connection, delete, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from autointerp.store.column_types import utc_now
from autointerp.store.dialects import database_time
from autointerp.store.models import Duty, EventCount, WorkerRow

GONE_S = 60.0
"""Silence after which a process counts as gone."""


class LiveWorker(NamedTuple):
    """A process that was heard of lately."""

    owner: str
    name: str
    queues: list[str]
    code_version: str
    silent_s: float
    """Seconds since it was heard of last."""
    rss_bytes: int


def appear(connection: Connection, owner: str, name: str, queues: Sequence[str], code_version: str, rss: int) -> None:
    """Say that a process is there, and forget those that have been silent for a day."""
    now = database_time(connection)
    row = {
        "owner": owner,
        "name": name,
        "queues": list(queues),
        "code_version": code_version,
        "started_at": utc_now(),
        "seen_at": now,
        "rss_bytes": rss,
    }
    statement = _insert(connection, WorkerRow).values(row)
    connection.execute(
        statement.on_conflict_do_update(index_elements=["owner"], set_={"seen_at": now, "rss_bytes": rss})
    )
    connection.execute(delete(WorkerRow).where(WorkerRow.seen_at < now - 86_400))


def disappear(connection: Connection, owner: str) -> None:
    """Say that a process is gone."""
    connection.execute(delete(WorkerRow).where(WorkerRow.owner == owner))


def live_workers(connection: Connection, within_s: float = GONE_S) -> list[LiveWorker]:
    """The processes heard of within the last seconds, by name."""
    now = database_time(connection)
    rows = connection.execute(
        select(
            WorkerRow.owner,
            WorkerRow.name,
            WorkerRow.queues,
            WorkerRow.code_version,
            WorkerRow.seen_at,
            WorkerRow.rss_bytes,
        )
        .where(WorkerRow.seen_at >= now - within_s)
        .order_by(WorkerRow.name, WorkerRow.owner)
    ).all()
    return [LiveWorker(r[0], r[1], list(r[2]), r[3], max(0.0, now - r[4]), int(r[5])) for r in rows]


def take_duty(connection: Connection, name: str, owner: str, for_s: float) -> bool:
    """Whether ``owner`` is the one that does the duty for the next ``for_s`` seconds: nobody else does, or it was its own."""
    now = database_time(connection)
    begun = connection.execute(
        _insert(connection, Duty)
        .values(name=name, owner=owner, until=now + for_s)
        .on_conflict_do_nothing(index_elements=["name"])
    )
    if begun.rowcount == 1:
        return True
    taken = connection.execute(
        update(Duty)
        .where(Duty.name == name, or_(Duty.until < now, Duty.owner == owner))
        .values(owner=owner, until=now + for_s)
    )
    return taken.rowcount == 1


def end_duty(connection: Connection, name: str, owner: str) -> None:
    """Leave the duty to others. The row stays: when it was last done is worth knowing."""
    connection.execute(
        update(Duty).where(Duty.name == name, Duty.owner == owner).values(until=database_time(connection))
    )


def count_event(connection: Connection, run_id: str, name: str, more: int = 1) -> None:
    """Count that something happened in a run."""
    statement = _insert(connection, EventCount).values(run_id=run_id, name=name, count=more)
    connection.execute(
        statement.on_conflict_do_update(index_elements=["run_id", "name"], set_={"count": EventCount.count + more})
    )


def event_counts(connection: Connection, run_id: str) -> dict[str, int]:
    """How often what happened in a run."""
    rows = connection.execute(select(EventCount.name, EventCount.count).where(EventCount.run_id == run_id)).all()
    return {str(name): int(count) for name, count in rows}


def _insert(connection: Connection, table: type[WorkerRow] | type[Duty] | type[EventCount]) -> postgresql.Insert:
    """INSERT that may say what to do on a conflict; SQLite's and PostgreSQL's agree in the parts used here."""
    if connection.dialect.name == "postgresql":
        return postgresql.insert(table)
    return sqlite.insert(table)  # type: ignore[return-value]
