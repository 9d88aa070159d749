"""One beat: looks at the store and the clock, and at nothing else, to begin nights, end them and settle them.

Any number of processes may beat at any time: what one of them did, the others find done.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date as day_of
from datetime import datetime, timedelta
from typing import Literal

from sqlalchemy import update

from autointerp.nightly.book import Kept, begin_night, change_night, nights, schedules
from autointerp.nightly.making import make_night
from autointerp.nightly.report import write_report
from autointerp.nightly.schedule import Schedule
from autointerp.nightly.settling import settle_night
from autointerp.nightly.snapshot import write_snapshot
from autointerp.nightly.times import begins_at, ends_at, last_due
from autointerp.pipeline.faults import fault_point
from autointerp.store import ChunkState, LabelStore
from autointerp.store.models import NightRow
from sae_core.errors import AutointerpError

SETTLE_WAIT = timedelta(minutes=10)
"""How long chunks that are still worked on after the window's end are waited for: what they asked is paid, and may count."""
_ENDED = ("done", "failed", "cancelled")
BY_HAND = "paused by hand"
"""Note of a run that somebody paused (``cluster.controlling``): it goes on when somebody says so."""
_BUDGET = "the budget"
"""Beginning of the note of a run that is paused because its budget is used up (``sae_core.errors.BudgetError``)."""


@dataclass(frozen=True, slots=True)
class NightEvent:
    """Something that a beat did, or could not do."""

    schedule: str
    date: str
    what: Literal["begun", "empty", "resumed", "cancelled", "settled", "snapshot", "error"]
    run_id: str | None = None
    message: str = ""
    """Of an error one sentence; it is tried again at the next beat."""
    drift: bool = False
    """Of a settled night: whether the judge drifted."""


def tick(store: LabelStore, now: datetime, *, submitted: bool = True) -> list[NightEvent]:
    """Do what is due at an instant (with its time zone), for every schedule; what goes wrong with one does not hold up others.

    ``submitted``: whether a cluster's workers do the runs that are made.
    """
    events: list[NightEvent] = []
    for kept in schedules(store):
        events += _beat(store, kept, now, submitted)
    return events


def _beat(store: LabelStore, kept: Kept, now: datetime, submitted: bool) -> Iterator[NightEvent]:
    try:
        schedule = kept.schedule
    except AutointerpError as error:
        yield NightEvent(kept.name, "", "error", message=str(error))
        return
    # a night that cannot be settled holds up no later one
    for night in reversed(nights(store, schedule.name, "due", "running")):
        yield from _told(kept.name, night.date, _go_on(store, schedule, night, now, submitted))
    day = last_due(schedule, now)
    yield from _told(kept.name, day.isoformat(), _newest(store, kept, schedule, day, now, submitted))
    for night in nights(store, schedule.name, "settled", newest=1):
        if night.counts.get("snapshot") is None:
            yield from _told(kept.name, night.date, _snapshot(store, schedule, night))


def _told(schedule: str, date: str, events: Iterator[NightEvent]) -> Iterator[NightEvent]:
    """The events, and what stopped them: a cause that a user can mend, or a disk that does not do as told."""
    try:
        yield from events
    except (AutointerpError, OSError) as error:
        yield NightEvent(schedule, date, "error", message=str(error))


def _newest(
    store: LabelStore, kept: Kept, schedule: Schedule, day: day_of, now: datetime, submitted: bool
) -> Iterator[NightEvent]:
    date = day.isoformat()
    known = nights(store, schedule.name, newest=1)
    # a night that a clock set back would bring again, or one before the schedule was there, is none
    if begins_at(schedule, day) < kept.created_at or (known and known[0].date >= date):
        return
    begin_night(store, schedule.name, date, ends_at(schedule, day, now), now)
    night = nights(store, schedule.name, newest=1)[0]
    if night.state == "due":
        yield from _begin(store, schedule, night, submitted)


def _begin(store: LabelStore, schedule: Schedule, night: NightRow, submitted: bool) -> Iterator[NightEvent]:
    run_id = make_night(store, schedule, night, submitted=submitted)
    yield NightEvent(schedule.name, night.date, "empty" if run_id is None else "begun", run_id)


def _go_on(
    store: LabelStore, schedule: Schedule, night: NightRow, now: datetime, submitted: bool
) -> Iterator[NightEvent]:
    if night.state == "due":
        if now < night.ends_at:
            yield from _begin(store, schedule, night, submitted)  # whoever noted it did not get so far
            return
        with store.writing() as connection:
            counts = night.counts | {"missed": True}
            change_night(connection, night, ["due"], state="empty", counts=counts, settled_at=now)
        return
    assert night.run_id is not None, "a night that runs has a run"
    if not store.has_run(night.run_id):
        with store.writing() as connection:
            counts = night.counts | {"deleted": True}
            change_night(connection, night, ["running"], state="empty", counts=counts, settled_at=now)
        return
    run = store.run(night.run_id)
    if run.state not in _ENDED:
        used_up = run.state == "paused" and (run.state_note or "").startswith(_BUDGET)
        if not used_up and now < night.ends_at:
            if run.submitted and run.state == "paused" and run.state_note != BY_HAND:
                # a server was away, or is still: whoever works on it finds out
                store.revive(run.id, [ChunkState.FAILED])
                if store.set_run_state(run.id, "running", unless=(*_ENDED, "running")):
                    yield NightEvent(schedule.name, night.date, "resumed", run.id)
            return
        note = run.state_note if used_up else f"the night's window ended at {night.ends_at:%Y-%m-%d %H:%M} UTC"
        if store.set_run_state(run.id, "cancelled", note, unless=_ENDED):
            yield NightEvent(schedule.name, night.date, "cancelled", run.id, note or "")
    if run.state != "done" and now < night.ends_at + SETTLE_WAIT and store.chunks(run.id, ChunkState.RUNNING):
        return
    report = settle_night(store, schedule, night, now)
    if report is not None:
        write_report(schedule, report)
        fault_point("night", "reported")
        yield NightEvent(schedule.name, night.date, "settled", run.id, drift=bool(report["drift"]))


def _snapshot(store: LabelStore, schedule: Schedule, night: NightRow) -> Iterator[NightEvent]:
    """Write the snapshot of the newest settled night, and note that it is there."""
    write_report(schedule, night.report)  # a kill may have come between the store and the files
    place = write_snapshot(store, schedule, night)
    fault_point("night", "snapshot")
    with store.writing() as connection:
        connection.execute(
            update(NightRow).where(NightRow.id == night.id).values(counts=night.counts | {"snapshot": place.name})
        )
    yield NightEvent(schedule.name, night.date, "snapshot", night.run_id)
