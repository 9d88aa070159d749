"""Asks every scorer about labels with known errors, so that one that cannot see an error is named; no language model is asked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autointerp.pipeline.context import RunContext
from autointerp.pipeline.latent_evidence import evidence_of
from autointerp.pipeline.natural_rate.labels import estimated_judge
from autointerp.pipeline.self_testing import self_test
from autointerp.pipeline.stage import ChunkResult, ChunkSpec, Progress, Stage, decode_latents, encode_latents
from autointerp.store.models import Artefact
from sae_core.hashing import seed_for
from sae_core.records import Side

MOST_LATENTS = 400
"""Random latents of a source that it is done with: enough for a mean in each decade of their firing rates."""


class SelfTest(Stage):
    """Scorers to the errors of labels that they see, a chunk a source."""

    name = "self_test"
    queue = "control"
    unit = "latents"
    after_all = ("merge", "lens", "score")
    essential = False

    def plan(self, context: RunContext) -> list[ChunkSpec]:
        chunks = []
        for source in context.sources:
            latents = [] if source.control else tested_latents(context, source.name)
            if latents:
                chunks.append(ChunkSpec(0, source.name, {"latents": encode_latents(latents)}, len(latents)))
        return chunks

    def run(self, context: RunContext, spec: ChunkSpec, progress: Progress) -> ChunkResult:
        latents = decode_latents(spec)
        found = self_test(
            context.scorers,
            (evidence_of(context, spec.source, latent) for latent in latents),
            context.config.precision,
            seed_for(context.config.seed, "self-test", spec.source),
            progress,
            estimated_judge(context),
        )
        return ChunkResult([Artefact(run_id=context.run_id, kind=artefact_kind(spec.source), version=1, value=found)])


def artefact_kind(source: str) -> str:
    """Under which the outcome of a source is stored."""
    return f"{SelfTest.name}/{source}"


def tested_latents(context: RunContext, source: str) -> Sequence[int]:
    """Those that fire on the score side (all, or a random part), ascending."""
    firing = context.exemplars(source).statistics.num_windows_firing[Side.SCORE]
    alive = [latent for latent in context.latents(source) if firing[latent]]
    rng = np.random.default_rng(seed_for(context.config.seed, "self-test latents", source))
    return sorted(int(latent) for latent in rng.permutation(alive)[:MOST_LATENTS])
