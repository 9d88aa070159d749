"""Ablates every latent and steers a random sample of them: evidence for the intervention scorer (METHODS 5)."""

from __future__ import annotations

import numpy as np

from autointerp.evidence import AblationRequest, SteeringRequest
from autointerp.pipeline.atomic_files import sync
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.stage import ChunkResult, ChunkSpec, Progress, Stage, decode_latents, latent_chunks
from sae_core.hashing import seed_for


class Intervene(Stage):
    """Firing windows to effects on the subject's predictions."""

    name = "intervene"
    queue = "gpu"
    unit = "latents"
    after_all = ("merge",)
    essential = False

    def plan(self, context: RunContext) -> list[ChunkSpec]:
        wanted = context.request(AblationRequest) is not None or context.request(SteeringRequest) is not None
        return latent_chunks(context) if wanted else []

    def run(self, context: RunContext, spec: ChunkSpec, progress: Progress) -> ChunkResult:
        from sae_core.intervention.ablation import AblationSettings, run_ablation
        from sae_core.intervention.steering import SteeringSettings, run_steering

        latents = decode_latents(spec)
        subject, attached = context.subject, context.attached(spec.source)
        store = context.exemplars(spec.source)
        batch_tokens = context.config.extraction.batch_tokens
        ablation = context.request(AblationRequest)
        if ablation is not None:
            settings = AblationSettings(
                windows=ablation.windows,
                control_directions=ablation.control_directions,
                batch_tokens=batch_tokens,
                seed=context.config.seed,
            )
            path = context.folder.evidence(spec.source, "ablation", spec.ordinal)
            path.parent.mkdir(parents=True, exist_ok=True)
            run_ablation(subject, attached, store, context.corpus, latents, settings, progress).save(path)
            sync(path)
        steering = context.request(SteeringRequest)
        sample = sorted(set(latents) & steered_latents(context, spec.source))
        if steering is not None and sample:
            path = context.folder.evidence(spec.source, "steering", spec.ordinal)
            path.parent.mkdir(parents=True, exist_ok=True)
            run_steering(
                subject,
                attached,
                store,
                context.corpus,
                sample,
                SteeringSettings(
                    targets=steering.targets,
                    prompts=steering.prompts,
                    control_directions=steering.control_directions,
                    batch_tokens=batch_tokens,
                    seed=context.config.seed,
                ),
                lambda done: progress(0),
            ).save(path)
            sync(path)
        return ChunkResult()


def steered_latents(context: RunContext, source: str) -> frozenset[int]:
    """The stated random sample of a source's selected latents that fire somewhere; the same in every chunk."""
    request = context.request(SteeringRequest)
    if request is None:
        return frozenset()
    fire_count = context.exemplars(source).statistics.fire_count.sum(axis=0)
    alive = [latent for latent in context.latents(source) if fire_count[latent] > 0]
    rng = np.random.default_rng(seed_for(context.config.seed, "steered latents", source))
    return frozenset(rng.permutation(alive)[: request.latents].tolist())
