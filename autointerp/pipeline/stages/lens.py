"""Reads what every latent's direction writes, and which lie near each other: evidence for explainers and scorers."""

from __future__ import annotations

from autointerp.evidence import LensRequest
from autointerp.pipeline.atomic_files import sync
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.reusing import reuses_lens
from autointerp.pipeline.stage import ChunkResult, ChunkSpec, Progress, Stage

EVIDENCE = "lens"


class Lens(Stage):
    """Decoder rows to promoted tokens and nearest neighbours."""

    name = "lens"
    queue = "gpu"
    unit = "latents"
    after_all = ("merge",)
    essential = False

    def plan(self, context: RunContext) -> list[ChunkSpec]:
        if context.request(LensRequest) is None:
            return []
        sources = context.sources
        if context.folder.reused is not None:
            sources = [source for source in sources if not reuses_lens(context.config, context.folder, source.name)]
        return [ChunkSpec(0, source.name, units=source.num_latents) for source in sources]

    def run(self, context: RunContext, spec: ChunkSpec, progress: Progress) -> ChunkResult:
        from sae_core.lens import lens

        request = context.request(LensRequest) or LensRequest()
        evidence = lens(
            context.subject,
            context.attached(spec.source),
            neighbours=request.neighbours,
            tokens=request.tokens,
            progress=progress,
        )
        path = context.folder.evidence(spec.source, EVIDENCE, spec.ordinal)
        evidence.save(path)
        sync(path)
        return ChunkResult()
