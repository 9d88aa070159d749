"""Who needs a run: others that read its exemplars or its labels, and schedules that score it every night."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from sqlalchemy import select

from autointerp.pipeline.finding import notes_below, open_of_note
from autointerp.store.models import NightRow, Run, ScheduleRow
from autointerp.store.store import LabelStore
from sae_core.errors import StoreError


def users_of(store: LabelStore, run_id: str, folder: Path) -> list[str]:
    """What needs the run, in words, as far as the run's store and the stores of the output folders beside ``folder`` know.

    A store beside it that cannot be read says nothing.
    """
    found = list(_in_store(store, run_id, folder, home=True))
    seen = {store.engine.url}
    for place, note in notes_below(folder.parent) if folder.parent.is_dir() else ():
        with suppress(StoreError):
            other = open_of_note(place, note)
            try:
                if other.engine.url not in seen:
                    seen.add(other.engine.url)
                    found += _in_store(other, run_id, folder, home=False)
            finally:
                other.close()
    return found


def _in_store(store: LabelStore, run_id: str, folder: Path, *, home: bool) -> Iterator[str]:
    """``home``: whether ids and names of this store's schedules can mean the run."""
    with store.reading() as connection:
        runs = connection.execute(
            select(Run.id, Run.name, Run.state, Run.config).order_by(Run.created_at, Run.id)
        ).all()
        schedules = connection.execute(select(ScheduleRow.name, ScheduleRow.config)).all()
        under_way = select(NightRow.schedule, NightRow.date).where(
            NightRow.run_id == run_id, NightRow.state.in_(("due", "running"))
        )
        nights = connection.execute(under_way).all() if home else ()
    for other in runs:
        config: dict[str, Any] = other.config
        # a copy of the run in a store of its own is itself
        if other.id == run_id:
            continue
        if _leads_to((config.get("extraction") or {}).get("reuse"), folder):
            yield f"the run {other.id} reads its exemplars (extraction.reuse)"
        elif _leads_to((config.get("labels") or {}).get("from"), folder):
            yield f"the run {other.id} scores its labels (labels.from)"
    newest = {run.name: run.id for run in runs if run.state == "done"}
    for name, config in schedules:
        named = str(config.get("run") or "")
        if _leads_to(named, folder) or (home and (named == run_id or newest.get(named) == run_id)):
            yield f"the schedule {name!r} scores it every night"
    for name, date in nights:
        yield f"the schedule {name!r} works on it in the night of {date}"


def _leads_to(path: object, folder: Path) -> bool:
    """Whether a configuration's path is the folder, or lies in it."""
    if not isinstance(path, str) or not path.startswith("/"):
        return False
    return Path(path).resolve().is_relative_to(folder.resolve())
