"""Ablates every latent and steers a random sample of them: evidence for the intervention scorer (METHODS 5)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from autointerp.evidence import AblationRequest, SteeringRequest
from autointerp.pipeline.ablation_budget import ablated_latents
from autointerp.pipeline.atomic_files import sync
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.stage import ChunkResult, ChunkSpec, Progress, Stage, decode_latents, latent_chunks
from sae_core.hashing import seed_for
from sae_core.lens_evidence import TokenChangeEvidence
from sae_core.records import Side


class Intervene(Stage):
    """Firing windows to effects on the subject's predictions."""

    name = "intervene"
    queue = "gpu"
    unit = "latents"
    after_all = ("merge", "attribute", "attribute_rare")
    after_same = ("token_change",)  # whose lists of tokens steering compares with what rises
    leaves = ("ablation", "steering")
    essential = False

    def plan(self, context: RunContext) -> list[ChunkSpec]:
        wanted = context.request(AblationRequest) is not None or context.request(SteeringRequest) is not None
        return latent_chunks(context) if wanted else []

    def run(self, context: RunContext, spec: ChunkSpec, progress: Progress) -> ChunkResult:

        from sae_core.intervention.ablation import AblationSettings, run_ablation
        from sae_core.intervention.windows import choose_windows

        latents = decode_latents(spec)
        coder, corpus, seed = context.attached(spec.source).coder, context.corpus, context.config.seed
        store = context.exemplars(spec.source)
        ablation = context.request(AblationRequest)
        ablated = ablated_latents(context, spec.source, latents)
        if ablation is not None and ablated:
            windows = choose_windows(store, ablated, Side.SCORE, ablation.windows, shared_order_seed=seed)
            per_latent = max(1, sum(map(len, windows.values())) // len(latents))
            evidence = run_ablation(
                context.subject,
                coder,
                corpus.context,
                corpus.num_contexts,
                windows,
                settings=AblationSettings(
                    control_directions=ablation.control_directions, max_positions=ablation.max_positions
                ),
                seed=seed,
                progress=lambda done: progress(done // per_latent),  # it counts windows, the bar counts latents
            )
            path = context.folder.evidence(spec.source, "ablation", spec.ordinal)
            path.parent.mkdir(parents=True, exist_ok=True)
            evidence.save(path)
            sync(path)
        steering = context.request(SteeringRequest)
        sample = sorted(set(latents) & steered_latents(context, spec.source))
        if steering is not None and sample:
            from sae_core.intervention.steering import SteeringSettings, run_steering

            fit, held_out = (
                choose_windows(store, sample, side, steering.prompts, shared_order_seed=seed)
                for side in (Side.EXPLAIN, Side.SCORE)
            )
            steered = run_steering(
                context.subject,
                coder,
                corpus.context,
                corpus.num_contexts,
                fit,
                held_out,
                promised=promised_tokens(context, spec),
                settings=SteeringSettings(targets=steering.targets, control_directions=steering.control_directions),
                seed=seed,
                progress=lambda done: progress(len(latents)),  # the ablation moved the bar; this only asks to stop
            )
            path = context.folder.evidence(spec.source, "steering", spec.ordinal)
            path.parent.mkdir(parents=True, exist_ok=True)
            steered.save(path)
            sync(path)
        return ChunkResult()


def promised_tokens(context: RunContext, spec: ChunkSpec) -> dict[int, NDArray[np.int32]]:
    """Tokens that each latent of a chunk raises on random prompts, what its output label is written from; empty where the
    stage that finds them did not run."""
    path = context.folder.evidence(spec.source, "token_change", spec.ordinal)
    if not path.is_file():
        return {}
    found = TokenChangeEvidence.load(path)
    return dict(zip(found.latents.tolist(), found.raised, strict=True))


def steered_latents(context: RunContext, source: str) -> frozenset[int]:
    """The stated random sample of a source's selected latents that fire on both sides; the same in every chunk."""
    return frozenset(context.steering_order(source))


def draw_steered(context: RunContext, source: str) -> list[int]:
    """The sample in random order, so that its beginning is a smaller sample; :meth:`RunContext.steering_order` keeps it."""
    request = context.request(SteeringRequest)
    # random directions stand beside every steered latent already; steering them as latents would tell nothing new
    if request is None or context.source(source).control:
        return []
    selected = np.asarray(context.latents(source), dtype=np.int64)
    count = context.exemplars(source).statistics.fire_count  # [sides, latents]
    alive = selected[(count[Side.EXPLAIN][selected] > 0) & (count[Side.SCORE][selected] > 0)]
    rng = np.random.default_rng(seed_for(context.config.seed, "steered latents", source))
    return [int(latent) for latent in rng.permutation(alive)[: request.latents]]
