"""Adds the shards' partials up to one exemplar store a source."""

from __future__ import annotations

from autointerp.pipeline.context import RunContext
from autointerp.pipeline.stage import ChunkResult, ChunkSpec, Progress, Stage
from sae_core.exemplar_store import merge_partials


class Merge(Stage):
    """Partials to an exemplar store."""

    name = "merge"
    queue = "gpu"
    unit = "sources"
    after_all = ("extract",)

    def plan(self, context: RunContext) -> list[ChunkSpec]:
        shards = sum(count.chunks for count in context.store.counts(context.run_id) if count.stage == "extract")
        return [ChunkSpec(0, source.name, {"shards": shards}) for source in context.sources]

    def run(self, context: RunContext, spec: ChunkSpec, progress: Progress) -> ChunkResult:
        paths = [context.folder.partial(spec.source, ordinal) for ordinal in range(spec.payload["shards"])]
        merge_partials(
            paths,
            context.source(spec.source),
            context.extraction_settings,
            context.corpus,
            context.folder.exemplars(spec.source),
        )
        return ChunkResult()
