"""Which night is due at an instant, and when its window ends: from the schedule and the clock alone."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

from autointerp.nightly.schedule import Schedule


def begins_at(schedule: Schedule, day: date) -> datetime:
    """The one instant at which the night of a local date begins, UTC.

    A time that a change of the clock skips is as long after midnight as it would have been (02:30 becomes 03:30); of one that
    comes twice it is the first.
    """
    return datetime.combine(day, schedule.time, schedule.place).replace(fold=0).astimezone(UTC)


def last_due(schedule: Schedule, now: datetime) -> date:
    """The local date of the last night that has begun."""
    day = now.astimezone(schedule.place).date() + timedelta(days=1)
    while begins_at(schedule, day) > now:
        day -= timedelta(days=1)
    return day


def ends_at(schedule: Schedule, day: date, now: datetime) -> datetime:
    """When the window of a night that is begun ``now`` ends, UTC.

    A night whose window has passed (the machine was off) gets one of full length from now on, up to the next night.
    """
    window = timedelta(hours=schedule.window_h)
    planned = begins_at(schedule, day) + window
    if planned > now:
        return planned
    return min(now + window, begins_at(schedule, day + timedelta(days=1)))
