"""Adds the shards' partials up to one exemplar store a source."""

from __future__ import annotations

from autointerp.pipeline.context import RunContext
from autointerp.pipeline.stage import ChunkResult, ChunkSpec, Progress, Stage


class Merge(Stage):
    """Partials to an exemplar store."""

    name = "merge"
    queue = "gpu"
    unit = "sources"
    after_all = ("extract",)

    def plan(self, context: RunContext) -> list[ChunkSpec]:
        first = [c.spec["latents"][0] for c in context.store.chunks(context.run_id) if c.stage == "extract"]
        return [
            ChunkSpec(0, source.name, {"partials": sum(latent < source.num_latents for latent in first)})
            for source in context.sources
        ]

    def run(self, context: RunContext, spec: ChunkSpec, progress: Progress) -> ChunkResult:
        from sae_core.merging import merge_partials

        context.drop_extractor()
        paths = [context.folder.partial(spec.source, ordinal) for ordinal in range(spec.payload["partials"])]
        merge_partials(
            paths,
            context.source(spec.source),
            context.extraction_settings,
            context.corpus,
            context.folder.exemplars(spec.source),
        )
        return ChunkResult()
