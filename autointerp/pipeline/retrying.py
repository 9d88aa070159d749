"""Takes up again what failed for a cause that may be over, and with it everything that was worked out from it.

That is chunks that ended their process too often, and those with a latent whose explanation or score is missing, or rests on
fewer windows, because a server failed. A chunk is done again whole: replies that were paid are stored, so the others cost
nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Connection, delete, not_, or_, select, update

from autointerp.failure import FailureKind
from autointerp.pipeline.folder import RunFolder
from autointerp.pipeline.stage import ChunkSpec, Stage, decode_latents
from autointerp.store import ChunkState, LabelStore
from autointerp.store.models import Artefact, Base, ChoiceRow, Chunk, ControlRow, ExplanationRow, ScoreRow, ScreenRow

_OF_SERVERS = (FailureKind.SERVER_ERROR.value, FailureKind.TIMEOUT.value)
_ENDS = tuple(f"_failed_{kind}" for kind in _OF_SERVERS)
"""Of the values of a score that count windows without an answer by their failure."""
_TABLES: tuple[type[Base], ...] = (ExplanationRow, ScreenRow, ChoiceRow, ScoreRow, ControlRow)
"""Those with failures in them."""
_A_PART = {"yield_per": 1000}
"""Rows of all latents are never in memory together."""


def anything_to_retry(store: LabelStore, run_id: str) -> bool:
    """Whether there is something that ``retry_failures`` would give back."""
    if store.chunks(run_id, ChunkState.POISONED):
        return True
    with store.reading() as connection:
        return any(True for table in _TABLES for _ in _failed_latents(connection, run_id, table))


def retry_failures(store: LabelStore, run_id: str, stages: Sequence[Stage], folder: RunFolder) -> int:
    """Ready a run's poisoned chunks, and those in which a server failed, with all their attempts; returns how many.

    Chunks that follow one of them are done again too, and barriers behind them are planned anew, as is what follows these; the
    rows and the evidence files that all those had written go. A process that is at such a chunk right now is fenced off.
    """
    poisoned = store.chunks(run_id, ChunkState.POISONED)
    again: dict[str, set[tuple[str, int]]] = {}
    for chunk in poisoned:
        again.setdefault(chunk.stage, set()).add((chunk.source, chunk.ordinal))
    whole: set[str] = set()
    for chunk in _failed_chunks(store, run_id, stages):
        if "latents" in chunk.spec:
            again.setdefault(chunk.stage, set()).add((chunk.source, chunk.ordinal))
        else:  # shuffled labels, which are dealt out over all
            whole.add(chunk.stage)
    if not again and not whole:
        return 0
    count = sum(len(chunks) for chunks in again.values()) + len(whole)
    there = {(chunk.stage, chunk.source, chunk.ordinal) for chunk in store.chunks(run_id)}
    had_chunks = {name for name, _, _ in there}
    anew: list[Stage] = []
    for stage in stages:  # in the order of the work, so that one pass reaches everything
        names = {before.name for before in anew}
        # a chunk may not go on from one that is yet to be planned; stages that nobody asks anything of have none, now as then
        follows_whole = set(stage.after_all) & (again.keys() | names) | set(stage.after_same) & names & had_chunks
        if stage.name in whole or follows_whole:
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
                for kind in stage.leaves:
                    folder.drop_evidence(kind)
                continue
            first = {(c.source, c.ordinal) for c in poisoned if c.stage == stage.name}
            for source, ordinal in sorted(again.get(stage.name, ())):
                if (stage.name, source, ordinal) not in there:  # e.g. rounds that no explainer goes through
                    continue
                follows = set(stage.after_same) & again.keys()
                waits = any((source, ordinal) in again[before] for before in follows)
                _reset(connection, run_id, stage, source, ordinal, waits=waits, had_rows=(source, ordinal) not in first)
                for kind in stage.leaves:
                    folder.drop_evidence(kind, source, ordinal)
    return count


def _failed_chunks(store: LabelStore, run_id: str, stages: Sequence[Stage]) -> Iterator[Chunk]:
    """The settled chunks in which a server failed at a latent."""
    chunks = store.chunks(run_id, ChunkState.DONE)
    with store.reading() as connection:
        failed = [(stage, set(_failed_latents(connection, run_id, table, stage))) for stage, table in _writers(stages)]
    for stage, latents in failed:
        for chunk in chunks if latents else ():
            if chunk.stage == stage.name and not latents.isdisjoint(_latents_of(chunk)):
                yield chunk


def _writers(stages: Sequence[Stage]) -> Iterator[tuple[Stage, type[Base]]]:
    """Each table with failures, and the stage that writes it: every one whose name stands in its rows, else the first one, in
    which texts that are corrected in rounds began. Before it those that it rests on."""
    for table in _TABLES:
        writing = [stage for stage in stages if table in stage.writes]
        preparing = [stage for stage in stages if table in stage.prepares]
        for stage in [*preparing, *(writing if _has_stages(table) else writing[:1])]:
            yield stage, table


def _has_stages(table: type[Base]) -> bool:
    return "stage" in table.__table__.columns


def _latents_of(chunk: Chunk) -> set[tuple[str, int]]:
    if "latents" in chunk.spec:
        return {(chunk.source, latent) for latent in decode_latents(ChunkSpec(chunk.ordinal, chunk.source, chunk.spec))}
    return {(chunk.source, int(latent)) for latent, _ in chunk.spec["pairs"]}


def _failed_latents(
    connection: Connection, run_id: str, table: type[Base], stage: Stage | None = None
) -> Iterator[tuple[str, int]]:
    """Source and latent of the rows that a server's failure stands in, or went into: of the run's own, no person's."""
    rows: Any = table
    mine = [rows.run_id == run_id, *_not_a_persons(table)]
    if stage is not None:
        mine += _of_stage(table, stage)
    query = select(rows.source, rows.latent).where(*mine, rows.failure_kind.in_(_OF_SERVERS))
    for source, latent in connection.execute(query, execution_options=_A_PART):
        yield source, latent
    if table is ScreenRow:
        screened = select(rows.source, rows.latent, rows.items).where(*mine)
        for source, latent, items in connection.execute(screened, execution_options=_A_PART):
            if not items.get("failures", {}).keys().isdisjoint(_OF_SERVERS):
                yield source, latent
        return
    if table is ExplanationRow:
        return
    for source, latent, values in connection.execute(
        select(rows.source, rows.latent, rows.values).where(*mine, rows.failure_kind.is_(None)),
        execution_options=_A_PART,
    ):
        if any(count and name.endswith(_ENDS) for name, count in values.items()):
            yield source, latent


def _not_a_persons(table: type[Base]) -> list[Any]:
    """Leaves the texts of reviews, and their scores, where they are: they are written once, when a person says them."""
    from autointerp.review.recording import HUMAN

    rows: Any = table
    if "explainer" not in table.__table__.columns or table.__tablename__ == "label":
        return []
    return [not_(or_(rows.explainer == HUMAN, rows.explainer.startswith(f"{HUMAN}.")))]


def _clear(connection: Connection, run_id: str, stage: Stage) -> None:
    """Forget a barrier stage: its plan, its chunks, its rows."""
    connection.execute(delete(Chunk).where(Chunk.run_id == run_id, Chunk.stage == stage.name))
    own = or_(Artefact.kind == f"plan/{stage.name}", Artefact.kind.startswith(f"{stage.name}/"))
    connection.execute(delete(Artefact).where(Artefact.run_id == run_id, own))
    for table in stage.writes:
        rows: Any = table
        mine = (rows.run_id == run_id, *_of_stage(table, stage), *_not_a_persons(table))
        connection.execute(delete(table).where(*mine))


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
            mine = (rows.run_id == run_id, rows.source == source, rows.latent.in_(part))
            connection.execute(delete(table).where(*mine, *_of_stage(table, stage), *_not_a_persons(table)))


def _of_stage(table: type[Base], stage: Stage) -> list[Any]:
    """Of a table that several stages write, with their names in it, the rows of one."""
    rows: Any = table
    return [rows.stage == stage.name] if _has_stages(table) else []
