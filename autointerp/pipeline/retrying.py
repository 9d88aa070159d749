"""Takes poisoned chunks up again, and with them everything that was worked out without them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, delete, select, update

from autointerp.pipeline.stage import ChunkSpec, Stage, decode_latents
from autointerp.store import ChunkState, LabelStore
from autointerp.store.models import Artefact, Chunk


def retry_poisoned_chunks(store: LabelStore, run_id: str, stages: Sequence[Stage]) -> int:
    """Ready a run's poisoned chunks with all their attempts; returns how many there were.

    Chunks that follow one of them are done again too, and barriers behind them are planned anew; the rows that those had
    written go, in the same transaction. A process that is at such a chunk right now is fenced off.
    """
    poisoned = store.chunks(run_id, ChunkState.POISONED)
    if not poisoned:
        return 0
    again: dict[str, set[tuple[str, int]]] = {}
    for chunk in poisoned:
        again.setdefault(chunk.stage, set()).add((chunk.source, chunk.ordinal))
    anew: list[Stage] = []
    for stage in stages:  # in the order of the work, so that one pass reaches everything
        if set(stage.after_all) & (again.keys() | {before.name for before in anew}):
            anew.append(stage)
            continue
        for before in stage.after_same:
            if before in again:
                again.setdefault(stage.name, set()).update(again[before])
    # a chunk that follows waits for the one before it; the reconciler releases it
    with store.writing() as connection:
        for stage in stages:
            if stage in anew:
                _clear(connection, run_id, stage)
                continue
            first = {(c.source, c.ordinal) for c in poisoned if c.stage == stage.name}
            for source, ordinal in sorted(again.get(stage.name, ())):
                follows = set(stage.after_same) & again.keys()
                waits = any((source, ordinal) in again[before] for before in follows)
                _reset(connection, run_id, stage, source, ordinal, waits=waits, had_rows=(source, ordinal) not in first)
    return len(poisoned)


def _clear(connection: Connection, run_id: str, stage: Stage) -> None:
    """Forget a barrier stage: its plan, its chunks, its rows."""
    connection.execute(delete(Chunk).where(Chunk.run_id == run_id, Chunk.stage == stage.name))
    connection.execute(delete(Artefact).where(Artefact.run_id == run_id, Artefact.kind == f"plan/{stage.name}"))
    for table in stage.writes:
        rows: Any = table
        connection.execute(delete(table).where(rows.run_id == run_id))


def _reset(
    connection: Connection, run_id: str, stage: Stage, source: str, ordinal: int, *, waits: bool, had_rows: bool
) -> None:
    """Make one chunk undone, and remove the rows of its latents if it had been done."""

    place = (
        Chunk.run_id == run_id,
        Chunk.stage == stage.name,
        Chunk.source == source,
        Chunk.ordinal == ordinal,
    )
    spec = connection.execute(select(Chunk.spec).where(*place)).scalar_one()
    connection.execute(
        update(Chunk)
        .where(*place)
        .values(
            state=ChunkState.WAITING if waits else ChunkState.READY,
            attempts=0,
            owner="",
            lease_until=0.0,
            fence=Chunk.fence + 1,
            error=None,
        )
    )
    if not (had_rows and stage.writes):
        return
    latents = decode_latents(ChunkSpec(ordinal, source, spec))
    for table in stage.writes:
        rows: Any = table
        for start in range(0, len(latents), 500):  # databases limit the number of parameters
            part = latents[start : start + 500]
            connection.execute(delete(table).where(rows.run_id == run_id, rows.source == source, rows.latent.in_(part)))
