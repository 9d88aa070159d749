"""Writes the labelled dictionary as parquet."""

from __future__ import annotations

from autointerp.pipeline.context import RunContext
from autointerp.pipeline.exporting import export_run
from autointerp.pipeline.natural_rate.labels import MOST_ROUNDS
from autointerp.pipeline.stage import ChunkResult, ChunkSpec, Progress, Stage


class Export(Stage):
    """The store's rows to parquet."""

    name = "export"
    queue = "export"
    unit = "dictionaries"
    after_all = ("label", "substitute", *(f"estimate_{number}" for number in range(1, MOST_ROUNDS + 1)))

    def plan(self, context: RunContext) -> list[ChunkSpec]:
        return [ChunkSpec(0)]

    def run(self, context: RunContext, spec: ChunkSpec, progress: Progress) -> ChunkResult:
        export_run(context, context.folder.dictionary)
        return ChunkResult()
