"""Steers latents on random prompts: evidence for explanations of what they do to the next token."""

from __future__ import annotations

from autointerp.evidence import TokenChangeRequest
from autointerp.pipeline.atomic_files import sync
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.stage import ChunkResult, ChunkSpec, Progress, Stage, decode_latents, latent_chunks

EVIDENCE = "token_change"


class TokenChange(Stage):
    """Directions to the tokens that they raise and lower."""

    name = "token_change"
    queue = "gpu"
    unit = "latents"
    after_all = ("merge",)
    essential = False

    def plan(self, context: RunContext) -> list[ChunkSpec]:
        return latent_chunks(context) if context.request(TokenChangeRequest) else []

    def run(self, context: RunContext, spec: ChunkSpec, progress: Progress) -> ChunkResult:
        from sae_core.token_change import token_change

        request = context.request(TokenChangeRequest) or TokenChangeRequest()
        evidence = token_change(
            context.subject,
            context.attached(spec.source),
            decode_latents(spec),
            prompts=request.prompts,
            tokens=request.tokens,
            seed=context.config.seed,
            progress=progress,
        )
        path = context.folder.evidence(spec.source, EVIDENCE, spec.ordinal)
        evidence.save(path)
        sync(path)
        return ChunkResult()
