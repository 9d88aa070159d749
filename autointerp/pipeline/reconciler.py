"""The reconciler: looks at the store, and at nothing else, to plan what can be planned and release what can be released.

Everything it does may be done twice or by two processes at once without harm, so any driver may run it at any time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autointerp.pipeline.context import RunContext
from autointerp.pipeline.execution import successors_of
from autointerp.pipeline.owner import is_dead
from autointerp.pipeline.stage import Stage
from autointerp.store import ChunkState, NewChunk
from autointerp.store.models import Chunk


@dataclass(frozen=True, slots=True)
class RunProgress:
    """Where a run stands after a round of the reconciler."""

    finished: bool
    """Every stage is planned and every chunk has settled."""
    blocked_by: Chunk | None
    """An essential chunk that is poisoned or failed, if there is one."""


class Reconciler:
    """Plans and releases the chunks of one run."""

    def __init__(self, context: RunContext, stages: Sequence[Stage]) -> None:
        self._context = context
        self._stages = stages

    def release(self) -> RunProgress:
        """One round: take chunks of dead processes back, mark the poisoned, plan stages, ready their chunks."""
        store, run_id = self._context.store, self._context.run_id
        store.free_dead(run_id, is_dead)
        store.poison(run_id)
        planned = {kind.removeprefix("plan/") for kind in store.planned(run_id)}
        settled = self._settled(planned)
        for stage in self._stages:
            if (
                stage.name not in planned
                and settled.issuperset(stage.after_all)
                and planned.issuperset(stage.after_same)
            ):
                self._plan(stage)
                planned.add(stage.name)
                settled = self._settled(planned)  # a stage without chunks settles at once
        waiting = {count.stage for count in store.counts(run_id) if count.state == ChunkState.WAITING}
        for successor in successors_of(self._stages):
            if successor.stage in waiting:
                store.release_successors(run_id, successor)
        return RunProgress(
            finished=settled.issuperset(stage.name for stage in self._stages), blocked_by=self._blocked()
        )

    def _plan(self, stage: Stage) -> None:
        if self._context.exchange is not None:
            self._context.exchange.fetch(stage, None)
        # a successor waits even where everything before it is done: the release below is the one place that decides
        state = ChunkState.WAITING if stage.after_same else ChunkState.READY
        place = next(number for number, other in enumerate(self._stages) if other is stage)
        chunks = [  # on a cluster what is further on comes first, so that what was begun is finished
            NewChunk(stage.name, stage.queue, spec.ordinal, spec.payload, spec.source, spec.units, state, -place)
            for spec in stage.plan(self._context)
        ]
        self._context.store.plan(self._context.run_id, stage.name, chunks)

    def _settled(self, planned: set[str]) -> set[str]:
        """Planned stages in which nothing is left to do."""
        skippable = {stage.name for stage in self._stages if not stage.essential}
        unsettled = {
            count.stage
            for count in self._context.store.counts(self._context.run_id)
            if count.state != ChunkState.DONE and not (count.state == ChunkState.POISONED and count.stage in skippable)
        }
        return planned - unsettled

    def _blocked(self) -> Chunk | None:
        essential = {stage.name for stage in self._stages if stage.essential}
        for chunk in self._context.store.chunks(self._context.run_id, ChunkState.FAILED, ChunkState.POISONED):
            if chunk.state == ChunkState.FAILED or chunk.stage in essential:
                return chunk
        return None
