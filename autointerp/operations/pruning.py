"""Retention: the raw replies of language models go after some time, the ledger and all results stay; so does nothing half-made."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sqlalchemy import func, select

from autointerp.pipeline.folder import RunFolder
from autointerp.store.calls import drop_replies
from autointerp.store.models import LLMCall, Run
from autointerp.store.store import LabelStore

ROWS_A_BATCH = 5_000
"""Ids of one transaction, so that no writer waits long."""
ENDED = ("done", "failed", "cancelled")


@dataclass(frozen=True, slots=True)
class Prunable:
    """What goes of one run."""

    run_id: str
    replies: int
    num_bytes: int
    first_id: int
    last_id: int


def prunable(store: LabelStore, older_than: datetime, run_id: str | None = None) -> list[Prunable]:
    """The replies from before a time, of runs that have ended: one that goes on would have to pay for them again."""
    query = (
        select(
            LLMCall.run_id,
            func.count(),
            func.sum(func.length(LLMCall.reply)),
            func.min(LLMCall.id),
            func.max(LLMCall.id),
        )
        .join(Run, Run.id == LLMCall.run_id)
        .where(Run.state.in_(ENDED), LLMCall.reply.is_not(None), LLMCall.created_at < older_than)
        .group_by(LLMCall.run_id)
        .order_by(LLMCall.run_id)
    )
    if run_id is not None:
        query = query.where(LLMCall.run_id == run_id)
    with store.reading() as connection:
        return [Prunable(str(r[0]), int(r[1]), int(r[2] or 0), int(r[3]), int(r[4])) for r in connection.execute(query)]


def remove_unfinished_exports(store: LabelStore, run_id: str | None = None) -> int:
    """Remove what killed exports left beside the dictionaries of runs that have ended; returns the number of folders.

    A process that was killed after another one had finished its chunk leaves a folder that no further export comes by.
    """
    from autointerp.export.folder_swap import remove_left_behind

    query = select(Run.folder).where(Run.state.in_(ENDED)).distinct()
    if run_id is not None:
        query = query.where(Run.id == run_id)
    with store.reading() as connection:
        folders = connection.execute(query).scalars().all()
    removed = 0
    for folder in folders:
        with suppress(OSError):  # a folder that this host does not reach, or another user's
            removed += remove_left_behind(RunFolder(Path(folder)).dictionary)
    return removed


def prune(
    store: LabelStore, what: Prunable, older_than: datetime, advance: Callable[[int], None] = lambda done: None
) -> int:
    """Forget these replies, some at a time; returns how many. ``advance`` hears the number of each batch."""
    dropped = 0
    for start in range(what.first_id, what.last_id + 1, ROWS_A_BATCH):
        some = drop_replies(store, what.run_id, older_than, range(start, start + ROWS_A_BATCH))
        dropped += some
        advance(some)
    return dropped
