"""``LabelStore``: everything that is read from and written to the database, each call one short transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from types import MappingProxyType
from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from autointerp.explanation import Explanation
from autointerp.score import Score
from autointerp.store import chunks, presence
from autointerp.store.bulk import insert_values
from autointerp.store.chunks import ChunkKey, ChunkState, Lease, NewChunk, Successor
from autointerp.store.column_types import utc_now
from autointerp.store.dialects import READ_ONLY, count_anew, text_digest
from autointerp.store.failures import own_errors
from autointerp.store.models import (
    CALL_OWNER,
    ENDED,
    Artefact,
    Base,
    ChoiceRow,
    Chunk,
    ControlRow,
    EstimateRow,
    ExplanationRow,
    LabelRow,
    LLMReservation,
    Run,
    ScoreRow,
    ScreenRow,
    SourceRow,
    Timing,
    VerdictRow,
)
from autointerp.store.rows import read_explanation, read_score, read_source, source_row
from sae_core.errors import StoreError
from sae_core.records import Source

_MANY = 500
"""Rows of which the database should know at once that there are so many."""


class StageCount(NamedTuple):
    """How far one stage of a run is."""

    stage: str
    state: ChunkState
    chunks: int
    units: int
    """Planned units of these chunks."""
    seconds: float
    """Time spent on them so far."""


class RunHead(NamedTuple):
    """A run without its configuration, which may be tens of kB long: enough to find it among many."""

    id: str
    name: str
    state: str
    folder: str
    created_at: datetime
    owner: str | None
    """Name of the token that asked for it; None for everybody's."""


class LabelStore:
    """A database of runs. Methods are safe to call from several threads and processes."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """One transaction that may write; keep it short."""
        with own_errors(), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """One transaction that only reads."""
        with (
            own_errors(),
            self.engine.connect().execution_options(**{READ_ONLY: True}) as connection,
            connection.begin(),
        ):
            yield connection

    # runs

    def create_run(self, run: Run) -> None:
        """Add a run. Errors: StoreError where its id is taken."""
        try:
            self._add([run])
        except IntegrityError as error:
            raise StoreError(f"the store has a run {run.id!r} already: start again.") from error

    def next_ordinal(self, digest: str) -> int:
        """Ordinal of the next run of a configuration, from 1."""
        with self.reading() as connection:
            last = connection.execute(select(func.max(Run.ordinal)).where(Run.digest == digest)).scalar_one()
        return 1 if last is None else int(last) + 1

    def run(self, run_id: str) -> Run:
        """A run by its id or a unique beginning of it. Errors: StoreError."""
        same: list[Run] = self._all(select(Run).where(Run.id == run_id))
        if same:
            return same[0]
        runs = self.runs()
        found = [run.id for run in runs if run.id.startswith(run_id)]
        if len(found) == 1:
            return self.run(found[0])
        if found:
            raise StoreError(
                f"{run_id!r} is the beginning of {len(found)} runs ({', '.join(found[:5])}): give more of the id."
            )
        known = ", ".join(run.id for run in runs[-5:]) or "none"
        raise StoreError(
            f"the store has no run {run_id!r}; it has {known}: "
            "give one of these, a beginning of one, or an output folder."
        )

    def has_run(self, run_id: str) -> bool:
        """Whether a run of exactly this id is there."""
        with self.reading() as connection:
            return connection.execute(select(Run.id).where(Run.id == run_id)).first() is not None

    def runs(self) -> list[RunHead]:
        """All runs, oldest first, without their configurations."""
        query = select(Run.id, Run.name, Run.state, Run.folder, Run.created_at, Run.owner).order_by(
            Run.created_at, Run.id
        )
        with self.reading() as connection:
            return [RunHead(*row) for row in connection.execute(query)]

    def submitted_and_running(self) -> list[str]:
        """Ids of the runs that a cluster's workers are to do now, oldest first."""
        query = select(Run.id).where(Run.state == "running", Run.submitted).order_by(Run.created_at, Run.id)
        with self.reading() as connection:
            return [str(run_id) for run_id in connection.execute(query).scalars()]

    def set_run_state(self, run_id: str, state: str, note: str | None = None, *, unless: Sequence[str] = ()) -> bool:
        """Set a run's state (running, paused, cancelled, done or failed) and why; False where it is one of ``unless``."""
        finished = None if state in ("running", "paused") else utc_now()
        with self.writing() as connection:
            changed = connection.execute(
                update(Run)
                .where(Run.id == run_id, Run.state.not_in(unless))
                .values(state=state, state_note=note, finished_at=finished)
            )
        return changed.rowcount == 1

    def run_state(self, run_id: str) -> str | None:
        """A run's state, None for a run that is gone."""
        with self.reading() as connection:
            return connection.execute(select(Run.state).where(Run.id == run_id)).scalar()

    def set_run_config(self, run_id: str, config: dict[str, Any]) -> None:
        """Keep the configuration as it was given last; what decides the results is the same."""
        with self.writing() as connection:
            connection.execute(update(Run).where(Run.id == run_id, Run.config != config).values(config=config))

    def config_digest(self, run_id: str) -> str | None:
        """Hash of a run's configuration as it is stored now, None for a run that is gone: whether it has changed, without reading it."""
        with self.reading() as connection:
            return text_digest(connection, Run.config, Run.id == run_id)

    # sources

    def add_sources(self, run_id: str, sources: Sequence[Source]) -> None:
        """Register the run's sources, once. Errors: StoreError where they differ from what is registered."""
        with self.writing() as connection, Session(bind=connection) as session:
            known = {
                row.name: read_source(row)
                for row in session.scalars(select(SourceRow).where(SourceRow.run_id == run_id))
            }
            for source in sources:
                before = known.get(source.name)
                if before is None:
                    session.add(source_row(run_id, source))
                elif before != source:
                    raise StoreError(
                        f"source {source.name!r} of run {run_id!r} has changed since the run began (its coder or "
                        "subject has other weights now): choose another --out, or delete that output folder."
                    )
            session.flush()

    def sources(self, run_id: str) -> list[Source]:
        """The run's sources in the order of registration."""
        rows: list[SourceRow] = self._all(select(SourceRow).where(SourceRow.run_id == run_id).order_by(SourceRow.id))
        return [read_source(row) for row in rows]

    # chunks

    def plan(self, run_id: str, stage: str, new: Sequence[NewChunk]) -> bool:
        """Add a stage's chunks, all or none, once; False where they were planned before."""
        try:
            with self.writing() as connection:
                connection.execute(
                    insert(Artefact).values(
                        run_id=run_id, kind=f"plan/{stage}", version=1, value={"chunks": len(new)}, created_at=utc_now()
                    )
                )
                insert_values(
                    connection,
                    Chunk,
                    (
                        {
                            "run_id": run_id,
                            "stage": chunk.stage,
                            "queue": chunk.queue,
                            "source": chunk.source,
                            "ordinal": chunk.ordinal,
                            "spec": chunk.spec,
                            "planned_units": chunk.planned_units,
                            "priority": chunk.priority,
                            "state": chunk.state,
                        }
                        for chunk in new
                    ),
                )
        except IntegrityError:
            if f"plan/{stage}" in self.planned(run_id):
                return False
            raise
        if len(new) >= _MANY:
            with self.writing() as connection:
                count_anew(connection, Chunk.__tablename__)
        return True

    def planned(self, run_id: str) -> set[str]:
        """Artefact kinds ``plan/<stage>`` of the stages that have been planned."""
        with self.reading() as connection:
            rows = connection.execute(
                select(Artefact.kind).where(
                    Artefact.run_id == run_id, Artefact.kind.startswith("plan/", autoescape=True)
                )
            )
            return set(rows.scalars())

    def claim(self, chunk_id: int, owner: str, lease_s: float, max_attempts: int = chunks.MAX_ATTEMPTS) -> Lease | None:
        """See :func:`autointerp.store.chunks.claim`."""
        with self.writing() as connection:
            return chunks.claim(connection, chunk_id, owner, lease_s, max_attempts)

    def claim_next(
        self,
        queue: str,
        owner: str,
        lease_s: float,
        *,
        prefer: str | None = None,
        served: Mapping[str, int] = MappingProxyType({}),
    ) -> Lease | None:
        """See :func:`autointerp.store.chunks.claim_next`."""
        with self.writing() as connection:
            return chunks.claim_next(connection, queue, owner, lease_s, prefer=prefer, served=served)

    def renew(self, lease: Lease, lease_s: float) -> bool:
        """See :func:`autointerp.store.chunks.renew`."""
        with self.writing() as connection:
            return chunks.renew(connection, lease, lease_s)

    def finish(
        self,
        lease: Lease,
        rows: Sequence[Base] = (),
        successors: Sequence[Successor] = (),
        units: int = 0,
        seconds: float = 0.0,
    ) -> None:
        """Write a chunk's rows and its end in one transaction. Errors: chunks.Fenced, and then nothing is written."""
        with self.writing() as connection:
            chunks.finish(connection, lease, rows, successors, units, seconds)

    def is_finished(self, lease: Lease) -> bool:
        """Whether the chunk was finished by the holder of this very lease."""
        with self.reading() as connection:
            row = connection.execute(select(Chunk.state, Chunk.fence).where(Chunk.id == lease.chunk_id)).first()
        return row is not None and row[0] == ChunkState.DONE and row[1] == lease.fence

    # a cluster's processes

    def count_event(self, run_id: str, name: str, more: int = 1) -> None:
        """See :func:`autointerp.store.presence.count_event`."""
        with self.writing() as connection:
            presence.count_event(connection, run_id, name, more)

    def event_counts(self, run_id: str) -> dict[str, int]:
        """See :func:`autointerp.store.presence.event_counts`."""
        with self.reading() as connection:
            return presence.event_counts(connection, run_id)

    def appear(self, owner: str, name: str, queues: Sequence[str], code_version: str, rss_bytes: int) -> None:
        """See :func:`autointerp.store.presence.appear`."""
        with self.writing() as connection:
            presence.appear(connection, owner, name, queues, code_version, rss_bytes)

    def disappear(self, owner: str) -> None:
        """See :func:`autointerp.store.presence.disappear`."""
        with self.writing() as connection:
            presence.disappear(connection, owner)

    def live_workers(self) -> list[presence.LiveWorker]:
        """See :func:`autointerp.store.presence.live_workers`."""
        with self.reading() as connection:
            return presence.live_workers(connection)

    def take_duty(self, name: str, owner: str, for_s: float) -> bool:
        """See :func:`autointerp.store.presence.take_duty`."""
        with self.writing() as connection:
            return presence.take_duty(connection, name, owner, for_s)

    def end_duty(self, name: str, owner: str) -> None:
        """See :func:`autointerp.store.presence.end_duty`."""
        with self.writing() as connection:
            presence.end_duty(connection, name, owner)

    def holds_chunk(self, owner: str) -> bool:
        """Whether a process holds a chunk whose lease has not run out."""
        with self.reading() as connection:
            return chunks.holds(connection, owner)

    def halted_with_reservations(self) -> list[str]:
        """Ids of runs that do not go on while something is still reserved of their budget that nobody will settle.

        Calls that outlive their process wait for a run to go on, unless it has ended.
        """
        with self.reading() as connection:
            rows = connection.execute(
                select(LLMReservation.run_id)
                .join(Run, Run.id == LLMReservation.run_id)
                .where(
                    Run.state != "running",
                    or_(LLMReservation.tokens > 0, LLMReservation.nano_usd > 0),
                    or_(Run.state.in_(ENDED), LLMReservation.owner.not_like(f"{CALL_OWNER}%")),
                )
                .distinct()
            )
            return [str(run_id) for run_id in rows.scalars()]

    def ready_by_queue(self) -> dict[str, int]:
        """Ready chunks of the running runs by queue, those that rest not counted."""
        with self.reading() as connection:
            return chunks.ready_by_queue(connection)

    def put_back(
        self,
        lease: Lease,
        state: ChunkState = ChunkState.READY,
        error: str | None = None,
        *,
        counts: bool,
        seconds: float = 0.0,
        wait_s: float = 0.0,
    ) -> None:
        """See :func:`autointerp.store.chunks.put_back`."""
        with self.writing() as connection:
            chunks.put_back(connection, lease, state, error, counts=counts, seconds=seconds, wait_s=wait_s)

    def fail(self, lease: Lease, error: str) -> None:
        """Leave a chunk failed until somebody has mended the cause; nothing where it has been given up already."""
        self.put_back(lease, ChunkState.FAILED, error, counts=True)

    def hold_back(self, run_id: str, stage: str, wait_s: float) -> int:
        """See :func:`autointerp.store.chunks.hold_back`."""
        with self.writing() as connection:
            return chunks.hold_back(connection, run_id, stage, wait_s)

    def free_expired(self, run_id: str) -> int:
        """See :func:`autointerp.store.chunks.free_expired`; how many are counted as ``lease_expired``."""
        with self.writing() as connection:
            freed = chunks.free_expired(connection, run_id)
            if freed:
                presence.count_event(connection, run_id, "lease_expired", freed)
        return freed

    def free_dead(self, run_id: str, is_dead: Callable[[str], bool]) -> int:
        """See :func:`autointerp.store.chunks.free_dead`."""
        with self.writing() as connection:
            return chunks.free_dead(connection, run_id, is_dead)

    def poison(self, run_id: str, max_attempts: int = chunks.MAX_ATTEMPTS) -> int:
        """See :func:`autointerp.store.chunks.poison`."""
        with self.writing() as connection:
            return chunks.poison(connection, run_id, max_attempts)

    def revive(self, run_id: str, states: Sequence[ChunkState]) -> int:
        """See :func:`autointerp.store.chunks.revive`."""
        with self.writing() as connection:
            return chunks.revive(connection, run_id, states)

    def release_successors(self, run_id: str, successor: Successor) -> int:
        """See :func:`autointerp.store.chunks.release_successors`."""
        with self.writing() as connection:
            return chunks.release_successors(connection, run_id, successor)

    def chunks(self, run_id: str, *states: ChunkState) -> list[Chunk]:
        """A run's chunks (in the given states) by stage, source and ordinal."""
        query = select(Chunk).where(Chunk.run_id == run_id).order_by(Chunk.stage, Chunk.source, Chunk.ordinal)
        return self._all(query.where(Chunk.state.in_(states)) if states else query)

    def chunk_state(self, run_id: str, key: ChunkKey) -> ChunkState | None:
        """Where one chunk stands, None where it is not planned."""
        with self.reading() as connection:
            state = connection.execute(
                select(Chunk.state).where(
                    Chunk.run_id == run_id,
                    Chunk.stage == key.stage,
                    Chunk.source == key.source,
                    Chunk.ordinal == key.ordinal,
                )
            ).scalar()
        return None if state is None else ChunkState(state)

    def ready(self, run_id: str, stages: Sequence[str]) -> list[int]:
        """Ids of the ready chunks in the order of ``stages``, then source and ordinal."""
        with self.reading() as connection:
            rows = connection.execute(
                select(Chunk.id, Chunk.stage)
                .where(Chunk.run_id == run_id, Chunk.state == ChunkState.READY)
                .order_by(Chunk.source, Chunk.ordinal)
            ).all()
        place = {stage: number for number, stage in enumerate(stages)}
        return [row.id for row in sorted(rows, key=lambda row: place[row.stage])]

    def counts(self, run_id: str) -> list[StageCount]:
        """Chunks, units and seconds of a run by stage and state."""
        with self.reading() as connection:
            rows = connection.execute(
                select(Chunk.stage, Chunk.state, func.count(), func.sum(Chunk.planned_units), func.sum(Chunk.seconds))
                .where(Chunk.run_id == run_id)
                .group_by(Chunk.stage, Chunk.state)
            ).all()
        return [StageCount(r[0], ChunkState(r[1]), int(r[2]), int(r[3] or 0), float(r[4] or 0.0)) for r in rows]

    def errors_of_ready(self, run_id: str, most: int = 20) -> list[str]:
        """What ready chunks ended with the last time, with their places."""
        with self.reading() as connection:
            rows = connection.execute(
                select(Chunk.stage, Chunk.ordinal, Chunk.error)
                .where(Chunk.run_id == run_id, Chunk.state == ChunkState.READY, Chunk.error.is_not(None))
                .order_by(Chunk.stage, Chunk.ordinal)
                .limit(most)
            ).all()
        return [f"{row[0]} {row[1]}: {row[2]}" for row in rows]

    # results

    def explanations(self, run_id: str, source: str, latents: Sequence[int] | None = None) -> list[Explanation]:
        """Explanations of a source (of some latents), by latent and explainer."""
        query = select(ExplanationRow).where(ExplanationRow.run_id == run_id, ExplanationRow.source == source)
        query = query.order_by(ExplanationRow.latent, ExplanationRow.explainer, ExplanationRow.side)
        return [read_explanation(row) for row in self._of_latents(query, ExplanationRow, latents)]

    def texts(self, run_id: str, source: str, latents: Sequence[int]) -> dict[int, str]:
        """By latent the text of its explanation, for runs that have one of each; the last one where there are several."""
        if not latents:
            return {}
        query = select(ExplanationRow.latent, ExplanationRow.text).where(
            ExplanationRow.run_id == run_id,
            ExplanationRow.source == source,
            ExplanationRow.latent.between(min(latents), max(latents)),
        )
        query, wanted = (
            query.order_by(ExplanationRow.latent, ExplanationRow.explainer, ExplanationRow.side),
            set(latents),
        )
        with self.reading() as connection:
            return {int(latent): text for latent, text in connection.execute(query) if latent in wanted}

    def explained_latents(self, run_id: str, source: str, explainers: Sequence[str]) -> list[int]:
        """Latents of a source with a text of one of these explainers on the input side, ascending."""
        query = select(ExplanationRow.latent).distinct()
        query = query.where(ExplanationRow.run_id == run_id, ExplanationRow.source == source)
        query = query.where(ExplanationRow.failure_kind.is_(None), ExplanationRow.side == "input")
        query = query.where(ExplanationRow.explainer.in_(explainers)).order_by(ExplanationRow.latent)
        with self.reading() as connection:
            return [int(latent) for latent in connection.execute(query).scalars()]

    def scores(self, run_id: str, source: str, latents: Sequence[int] | None = None) -> list[Score]:
        """Scores of a source (of some latents), by latent, scorer and explainer."""
        query = select(ScoreRow).where(ScoreRow.run_id == run_id, ScoreRow.source == source)
        query = query.order_by(ScoreRow.latent, ScoreRow.scorer, ScoreRow.explainer)
        return [read_score(row) for row in self._of_latents(query, ScoreRow, latents)]

    def values_of_judge(self, run_id: str, source: str, scorer: str) -> Iterator[tuple[int, str, dict[str, Any], bool]]:
        """Latent, explainer ("" for none), values and whether it failed of each score of one scorer, by latent and explainer; never all
        in memory."""
        query = select(ScoreRow.latent, ScoreRow.explainer, ScoreRow.values, ScoreRow.failure_kind).where(
            ScoreRow.run_id == run_id, ScoreRow.source == source, ScoreRow.scorer == scorer
        )
        query = query.order_by(ScoreRow.latent, ScoreRow.explainer)
        with self.reading() as connection:
            for row in connection.execute(query, execution_options={"yield_per": 1000}):
                yield int(row[0]), row[1], row[2], row[3] is not None

    def values_of_scorer(self, run_id: str, source: str, scorer: str) -> Iterator[tuple[int, dict[str, Any]]]:
        """Latent and values of each score that one scorer gave latents themselves, ascending; never all in memory."""
        query = select(ScoreRow.latent, ScoreRow.values).where(
            ScoreRow.run_id == run_id, ScoreRow.source == source, ScoreRow.scorer == scorer, ScoreRow.explainer == ""
        )
        with self.reading() as connection:
            for row in connection.execute(query.order_by(ScoreRow.latent), execution_options={"yield_per": 1000}):
                yield int(row[0]), row[1]

    def choices(self, run_id: str, source: str, latents: Sequence[int] | None = None) -> list[Score]:
        """Scores on the choose side of a source (of some latents), by latent, scorer and explainer."""
        query = select(ChoiceRow).where(ChoiceRow.run_id == run_id, ChoiceRow.source == source)
        query = query.order_by(ChoiceRow.latent, ChoiceRow.scorer, ChoiceRow.explainer)
        return [read_score(row) for row in self._of_latents(query, ChoiceRow, latents)]

    def verdicts(self, run_id: str, source: str, latents: Sequence[int] | None = None) -> list[VerdictRow]:
        """What was judged window by window, by latent, scorer and explainer."""
        query = select(VerdictRow).where(VerdictRow.run_id == run_id, VerdictRow.source == source)
        query = query.order_by(VerdictRow.latent, VerdictRow.scorer, VerdictRow.explainer)
        return self._of_latents(query, VerdictRow, latents)

    def screens(
        self, run_id: str, source: str, latents: Sequence[int] | None = None, stage: str | None = None
    ) -> list[ScreenRow]:
        """What screens (of one stage) said of labels, by latent, explainer and stage."""
        query = select(ScreenRow).where(ScreenRow.run_id == run_id, ScreenRow.source == source)
        query = query.order_by(ScreenRow.latent, ScreenRow.explainer, ScreenRow.stage)
        if stage is not None:
            query = query.where(ScreenRow.stage == stage)
        return self._of_latents(query, ScreenRow, latents)

    def estimates(
        self, run_id: str, source: str, latents: Sequence[int] | None = None, stage: str | None = None
    ) -> list[EstimateRow]:
        """Precision and recall of labels, by latent, explainer and stage."""
        query = select(EstimateRow).where(EstimateRow.run_id == run_id, EstimateRow.source == source)
        query = query.order_by(EstimateRow.latent, EstimateRow.explainer, EstimateRow.stage)
        if stage is not None:
            query = query.where(EstimateRow.stage == stage)
        return self._of_latents(query, EstimateRow, latents)

    def labels(self, run_id: str, source: str, latents: Sequence[int] | None = None) -> list[LabelRow]:
        """Labels of a source (of some latents), by latent."""
        query = select(LabelRow).where(LabelRow.run_id == run_id, LabelRow.source == source).order_by(LabelRow.latent)
        return self._of_latents(query, LabelRow, latents)

    def controls(self, run_id: str, source: str | None = None, kind: str | None = None) -> list[ControlRow]:
        """Rows of the controls, by source, kind, component and latent."""
        query = select(ControlRow).where(ControlRow.run_id == run_id)
        query = query.order_by(ControlRow.source, ControlRow.kind, ControlRow.component, ControlRow.latent)
        if source is not None:
            query = query.where(ControlRow.source == source)
        if kind is not None:
            query = query.where(ControlRow.kind == kind)
        return self._all(query)

    def artefact(self, run_id: str, kind: str, version: int = 1) -> dict[str, Any] | None:
        """A stored artefact's value, None where it is not there."""
        with self.reading() as connection:
            query = select(Artefact.value).where(
                Artefact.run_id == run_id, Artefact.kind == kind, Artefact.version == version
            )
            return connection.execute(query).scalar_one_or_none()

    def add_artefact(self, run_id: str, kind: str, value: dict[str, Any]) -> None:
        """Keep a value that was computed once; what is there already stays."""
        with suppress(IntegrityError):
            self._add([Artefact(run_id=run_id, kind=kind, version=1, value=value)])

    def add_timing(self, run_id: str, name: str, seconds: float) -> None:
        """Note wall time that belongs to no chunk."""
        self._add([Timing(run_id=run_id, name=name, seconds=seconds)])

    def timings(self, run_id: str) -> dict[str, float]:
        """Seconds by name, chunks and other times added up; stages in the order of their first chunk."""
        with self.reading() as connection:
            stages = connection.execute(
                select(Chunk.stage, func.sum(Chunk.seconds))
                .where(Chunk.run_id == run_id)
                .group_by(Chunk.stage)
                .order_by(func.min(Chunk.id))
            ).all()
            others = connection.execute(
                select(Timing.name, func.sum(Timing.seconds))
                .where(Timing.run_id == run_id)
                .group_by(Timing.name)
                .order_by(func.min(Timing.id))
            ).all()
        return {str(name): float(seconds) for name, seconds in [*others, *stages]}

    # helpers

    def _add(self, rows: Sequence[Base]) -> None:
        with self.writing() as connection, Session(bind=connection) as session:
            session.add_all(rows)
            session.flush()

    def _all(self, query: Any) -> list[Any]:
        with self.reading() as connection, Session(bind=connection, expire_on_commit=False) as session:
            rows = list(session.scalars(query))
            session.expunge_all()
        return rows

    def _of_latents(self, query: Any, table: Any, latents: Sequence[int] | None) -> list[Any]:
        if latents is None:
            return self._all(query)
        if not latents:
            return []
        wanted = set(latents)  # a range in the query, not a list: databases limit the number of parameters
        rows = self._all(query.where(table.latent.between(min(wanted), max(wanted))))
        return [row for row in rows if row.latent in wanted]
