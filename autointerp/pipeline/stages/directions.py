"""Makes the fake coder of random directions that stands beside each real one (METHODS 6)."""

from __future__ import annotations

from autointerp.pipeline.atomic_files import sync
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.control_sources import real_name
from autointerp.pipeline.stage import ChunkResult, ChunkSpec, Progress, Stage


class Directions(Stage):
    """Norm-matched random directions with thresholds set to like firing rates."""

    name = "directions"
    queue = "gpu"
    unit = "directions"
    after_all = ("tokenize",)

    def plan(self, context: RunContext) -> list[ChunkSpec]:
        controls = [source for source in context.sources if source.control]
        return [ChunkSpec(0, source.name, units=source.num_latents) for source in controls]

    def run(self, context: RunContext, spec: ChunkSpec, progress: Progress) -> ChunkResult:
        from sae_core.random_directions import fit_directions, save_directions

        attached = context.attached(real_name(spec.source))
        coder = fit_directions(
            context.subject,
            attached,
            context.corpus,
            num_directions=context.source(spec.source).num_latents,
            seed=context.config.seed,
            batch_tokens=context.batch_tokens,
        )
        path = context.folder.source(spec.source) / "directions.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_directions(path, coder)
        sync(path)
        return ChunkResult()
