"""Makes the fake coder of random directions that stands beside each real one (METHODS 6)."""

from __future__ import annotations

from autointerp.pipeline.atomic_files import sync
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.control_sources import real_name
from autointerp.pipeline.shards import is_there, note_text, read_shard
from autointerp.pipeline.stage import ChunkResult, ChunkSpec, Progress, Stage


class Directions(Stage):
    """Norm-matched random directions with thresholds set to like firing rates on the first shard of the corpus."""

    name = "directions"
    queue = "gpu"
    unit = "directions"

    def plan(self, context: RunContext) -> list[ChunkSpec]:
        if context.folder.reused is not None:
            return []
        controls = [source for source in context.sources if source.control]
        return [ChunkSpec(0, source.name, units=source.num_latents) for source in controls]

    def can_begin(self, context: RunContext, spec: ChunkSpec) -> bool:
        return is_there(context, 0)

    def run(self, context: RunContext, spec: ChunkSpec, progress: Progress) -> ChunkResult:
        from sae_core.random_directions import fit_directions, save_directions

        corpus, contexts = read_shard(context, 0)
        attached = context.attached(real_name(spec.source))
        coder = fit_directions(
            context.subject,
            attached,
            corpus,
            contexts,
            num_directions=context.source(spec.source).num_latents,
            seed=context.config.seed,
            batch_tokens=context.batch_tokens,
        )
        path = context.folder.directions(spec.source)
        note_text(path, corpus, contexts)
        save_directions(path, coder)
        sync(path)
        return ChunkResult()
