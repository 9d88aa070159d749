"""Works out precision and recall at the natural rate: a barrier, since every label borrows from all others (METHODS 4)."""

from __future__ import annotations

from autointerp.pipeline.context import RunContext
from autointerp.pipeline.natural_rate.estimates import estimate_rows
from autointerp.pipeline.natural_rate.labels import AUDIT, estimated_judge
from autointerp.pipeline.stage import ChunkResult, ChunkSpec, Progress, Stage
from autointerp.store.models import EstimateRow


class Estimate(Stage):
    """Verdicts to precision, recall and F1 of every judged label, with intervals."""

    queue = "control"
    unit = "sources"
    writes = (EstimateRow,)

    def __init__(self, number: int) -> None:
        self.number = number
        """Ordinal of the round, from 1."""
        self.name = f"estimate_{number}"
        self.after_all = ("screen_1", "score", "controls", AUDIT) if number == 1 else (f"screen_{number}",)

    def plan(self, context: RunContext) -> list[ChunkSpec]:
        if estimated_judge(context) is None:
            return []
        if self.number > 1 and not any(
            count.stage == f"screen_{self.number}" for count in context.store.counts(context.run_id)
        ):
            return []
        return [ChunkSpec(0, source.name) for source in context.sources]

    def run(self, context: RunContext, spec: ChunkSpec, progress: Progress) -> ChunkResult:
        return ChunkResult(estimate_rows(context, spec.source, self.name))
