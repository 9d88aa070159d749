"""Adds the shards' partials up to one exemplar store a source."""

from __future__ import annotations

from autointerp.pipeline.context import RunContext
from autointerp.pipeline.shards import check_text, shard_units
from autointerp.pipeline.stage import ChunkResult, ChunkSpec, Progress, Stage


class Merge(Stage):
    """Partials to an exemplar store."""

    name = "merge"
    queue = "gpu"
    unit = "sources"
    after_all = ("tokenize", "extract")

    def plan(self, context: RunContext) -> list[ChunkSpec]:
        if context.folder.reused is not None:
            return []
        first = [c.spec["latents"][0] for c in context.store.chunks(context.run_id) if c.stage == "extract"]
        return [
            ChunkSpec(0, source.name, {"partials": sum(latent < source.num_latents for latent in first)})
            for source in context.sources
        ]

    def run(self, context: RunContext, spec: ChunkSpec, progress: Progress) -> ChunkResult:
        from sae_core.merging import merge_partials
        from sae_core.pool_sample import PoolSample

        context.drop_extractor()
        paths = [context.folder.partial(spec.source, ordinal) for ordinal in range(spec.payload["partials"])]
        shards = len(shard_units(context.config))
        for ordinal, path in enumerate(paths):
            check_text(path, context, ordinal % shards)
        if context.source(spec.source).control:
            check_text(context.folder.directions(spec.source), context, 0)
        settings = context.extraction_settings
        merge_partials(
            paths,
            context.source(spec.source),
            settings,
            context.corpus,
            context.folder.exemplars(spec.source),
            PoolSample(context.corpus, settings, context.subject.special_ids),
        )
        return ChunkResult()

    def remark(self, context: RunContext) -> str | None:
        lost = {source.name: context.exemplars(source.name).skipped for source in context.sources if not source.control}
        if not any(contexts for contexts, _ in lost.values()):
            return None
        counts = ", ".join(
            f"{name}: {contexts:,} contexts with {tokens:,} tokens" for name, (contexts, tokens) in lost.items()
        )
        return f"left out because activations were NaN or infinite: {counts}"
