"""Schedules, nights and newest scores in the store."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from itertools import islice
from typing import Any, NamedTuple

from sqlalchemy import Connection, delete, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from autointerp.nightly.schedule import Schedule, parse_schedule
from autointerp.store import LabelStore
from autointerp.store.models import LatestScore, NightRow, ScheduleRow
from sae_core.errors import UnknownNameError, did_you_mean

_ROWS_AT_ONCE = 2_000
"""Rows that are handed over at once."""


class Kept(NamedTuple):
    """A schedule as it is kept, and when it was first set."""

    name: str
    config: dict[str, Any]
    created_at: datetime

    @property
    def schedule(self) -> Schedule:
        """Read when it is needed, so that one that cannot be (an older version's) holds up no other. Errors: ConfigError."""
        return parse_schedule(self.config, f"the stored schedule {self.name!r}")


def set_schedule(store: LabelStore, schedule: Schedule, now: datetime) -> None:
    """Add a schedule, or change the one of its name; its first night is the next one after ``now``."""
    row = {"name": schedule.name, "config": schedule.model_dump(mode="json"), "created_at": now}
    with store.writing() as connection:
        statement = inserting(connection, ScheduleRow).values(row)
        connection.execute(statement.on_conflict_do_update(index_elements=["name"], set_={"config": row["config"]}))


def schedules(store: LabelStore) -> list[Kept]:
    """All schedules by name."""
    with store.reading() as connection:
        rows = connection.execute(select(ScheduleRow.name, ScheduleRow.config, ScheduleRow.created_at)).all()
    return sorted((Kept(row.name, row.config, row.created_at) for row in rows), key=lambda one: one.name)


def find_schedule(store: LabelStore, name: str) -> Kept:
    """A schedule by its name. Errors: UnknownNameError."""
    known = {kept.name: kept for kept in schedules(store)}
    if not known:
        raise UnknownNameError(
            f"the store has no schedule {name!r}, and no other: `autointerp nightly set FILE` adds one."
        )
    if name not in known:
        raise UnknownNameError(f"the store has no schedule {name!r}: {did_you_mean(name, known)}")
    return known[name]


def remove_schedule(store: LabelStore, name: str) -> None:
    """Remove a schedule with its nights and newest scores; runs, snapshots and reports stay. Errors: UnknownNameError."""
    find_schedule(store, name)
    with store.writing() as connection:
        connection.execute(delete(ScheduleRow).where(ScheduleRow.name == name))


def begin_night(store: LabelStore, schedule: str, date: str, ends: datetime, now: datetime) -> bool:
    """Note that a night is due, once; False where it was noted before."""
    row = {
        "schedule": schedule,
        "date": date,
        "state": "due",
        "ends_at": ends,
        "counts": {},
        "anchors": {},
        "report": {},
        "created_at": now,
    }
    with store.writing() as connection:
        statement = (
            inserting(connection, NightRow).values(row).on_conflict_do_nothing(index_elements=["schedule", "date"])
        )
        return bool(connection.execute(statement).rowcount == 1)


def nights(store: LabelStore, schedule: str, *states: str, newest: int | None = None) -> list[NightRow]:
    """Nights of a schedule (in some states), the newest first."""
    query = select(NightRow).where(NightRow.schedule == schedule).order_by(NightRow.date.desc())
    query = query.where(NightRow.state.in_(states)) if states else query
    with store.reading() as connection, Session(bind=connection, expire_on_commit=False) as session:
        rows = list(session.scalars(query.limit(newest) if newest is not None else query))
        session.expunge_all()
    return rows


def night_report(connection: Connection, night: NightRow, *, lock: bool = False) -> dict[str, Any]:
    """What a night's row says of it now, empty before it has been reported on; ``lock``: nobody changes the row until the transaction ends."""
    query = select(NightRow.report).where(NightRow.id == night.id)
    found: dict[str, Any] | None = connection.execute(query.with_for_update() if lock else query).scalar()
    return found or {}


def last_compared(store: LabelStore, schedule: str, before: str) -> NightRow | None:
    """The newest settled night before a date that has values of anchors, None where there is none."""
    query = select(NightRow).where(NightRow.schedule == schedule, NightRow.state == "settled", NightRow.date < before)
    with store.reading() as connection, Session(bind=connection, expire_on_commit=False) as session:
        found = session.scalars(query.order_by(NightRow.date.desc()), execution_options={"yield_per": 1})
        last = next((night for night in found if night.anchors.get("values")), None)
        session.expunge_all()
    return last


def settled_dates(store: LabelStore, schedule: str) -> list[str]:
    """Dates of the settled nights, ascending."""
    query = select(NightRow.date).where(NightRow.schedule == schedule, NightRow.state == "settled")
    with store.reading() as connection:
        return [str(date) for date in connection.execute(query.order_by(NightRow.date)).scalars()]


def settled_report(store: LabelStore, schedule: str, date: str) -> dict[str, Any]:
    """The report of one settled night."""
    query = select(NightRow.report).where(NightRow.schedule == schedule, NightRow.date == date)
    with store.reading() as connection:
        found: dict[str, Any] = connection.execute(query).scalar_one()
    return found


def settled_reports(store: LabelStore, schedule: str, before: str) -> Iterator[dict[str, Any]]:
    """Reports of the settled nights before a date, the oldest first, a few in memory at a time."""
    query = select(NightRow.report).where(
        NightRow.schedule == schedule, NightRow.state == "settled", NightRow.date < before
    )
    with store.reading() as connection:
        yield from connection.execute(query.order_by(NightRow.date), execution_options={"yield_per": 8}).scalars()


def change_night(connection: Connection, night: NightRow, was: Sequence[str], **values: Any) -> bool:
    """Change a night that is in one of the states ``was``; False where it is not any more."""
    changed = connection.execute(
        update(NightRow).where(NightRow.id == night.id, NightRow.state.in_(was)).values(**values)
    )
    return bool(changed.rowcount == 1)


def newest_scores(
    connection: Connection, schedule: str, source: str, latents: range
) -> Iterator[tuple[int, list[LatestScore]]]:
    """The newest scores of a range of latents, by latent, ascending."""
    query = select(LatestScore).where(
        LatestScore.schedule == schedule,
        LatestScore.source == source,
        LatestScore.latent >= latents.start,
        LatestScore.latent < latents.stop,
    )
    with Session(bind=connection, expire_on_commit=False) as session:
        rows = list(session.scalars(query.order_by(LatestScore.latent, LatestScore.scorer)))
        session.expunge_all()
    found: dict[int, list[LatestScore]] = {}
    for row in rows:
        found.setdefault(row.latent, []).append(row)
    yield from found.items()


def scored_sources(connection: Connection, schedule: str) -> list[tuple[str, int]]:
    """Sources that have scores, and one more than their last latent."""
    from sqlalchemy import func

    rows = connection.execute(
        select(LatestScore.source, func.max(LatestScore.latent))
        .where(LatestScore.schedule == schedule)
        .group_by(LatestScore.source)
        .order_by(LatestScore.source)
    ).all()
    return [(str(row[0]), int(row[1]) + 1) for row in rows]


def keep_scores(connection: Connection, rows: Iterable[dict[str, Any]]) -> None:
    """Put scores in the place of older ones; those of a later night stay."""
    keys = ["schedule", "source", "latent", "scorer"]
    waiting = iter(rows)
    statement = None
    while some := list(islice(waiting, _ROWS_AT_ONCE)):
        if statement is None:  # compiled once: with the rows as parameters, not in its text
            statement = inserting(connection, LatestScore)
            given = {name: statement.excluded[name] for name in some[0] if name not in keys}
            later = LatestScore.night <= statement.excluded.night
            statement = statement.on_conflict_do_update(index_elements=keys, set_=given, where=later)
        connection.execute(statement, some)


def inserting(connection: Connection, table: Any) -> Any:
    """An insert that knows of conflicts, in the database's own dialect."""
    kind = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    return kind(table)
