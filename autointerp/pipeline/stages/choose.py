"""Compares a latent's explanations on the choose side, so that what chose a label is not what scores it (METHODS 2)."""

from __future__ import annotations

from dataclasses import replace

from autointerp.evidence import LatentEvidence
from autointerp.llm.asking import LLMs
from autointerp.pipeline.asking import chunks_at_once, over_latents
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.latent_evidence import chunk_evidence
from autointerp.pipeline.stage import ChunkResult, ChunkSpec, Progress, Stage, latent_chunks
from autointerp.pipeline.stages.score import explanations_of, score_latent
from autointerp.score import Score
from autointerp.scorers.base import Scorer
from autointerp.scorers.comparing import comparing_scorer
from autointerp.store.models import Base, ChoiceRow
from autointerp.store.rows import choice_row
from sae_core.records import Side


class Choose(Stage):
    """Explanations to scores on the choose side, where the configuration wants the best one."""

    name = "choose"
    queue = "llm"
    unit = "latents"
    writes = (ChoiceRow,)
    after_all = ("merge", "lens")
    after_same = ("explain", "revise_1", "revise_2", "revise_3", "revise_4")
    essential = False

    def plan(self, context: RunContext) -> list[ChunkSpec]:
        return latent_chunks(context) if choosing_scorer(context) else []

    def at_once(self, context: RunContext) -> int:
        return chunks_at_once(context.scorers)

    def run(self, context: RunContext, spec: ChunkSpec, progress: Progress) -> ChunkResult:
        scorer = choosing_scorer(context)
        assert scorer is not None, "where nothing is compared no chunk is planned"
        explanations = explanations_of(context, spec)

        async def work(evidence: LatentEvidence, llms: LLMs) -> list[Score]:
            texts = [e for e in explanations.get(evidence.latent, []) if e.side == "input" and e.failure is None]
            if len(texts) < 2:
                return []  # nothing to choose between
            return await score_latent([scorer], texts, evidence, llms)

        asks = bool(scorer.llm_needs())
        evidence = (replace(e, scored_side=Side.CHOOSE) for e in chunk_evidence(context, spec, causal=False))
        scores = over_latents(context, spec.source, evidence, work, progress, asks=asks)
        rows: list[Base] = [choice_row(context.run_id, spec.source, score) for score in scores]
        return ChunkResult(rows)


def choosing_scorer(context: RunContext) -> Scorer | None:
    """The scorer that compares explanations, None where they are not compared."""
    labels = context.config.labels
    return comparing_scorer(context.explainers, context.scorers, labels.choose, labels.by)
