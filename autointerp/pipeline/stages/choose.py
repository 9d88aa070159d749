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
from autointerp.store.models import Base, ChoiceRow
from autointerp.store.rows import choice_row
from sae_core.errors import ConfigError, did_you_mean
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
        return latent_chunks(context) if compares(context) else []

    def at_once(self, context: RunContext) -> int:
        return chunks_at_once(context.scorers)

    def run(self, context: RunContext, spec: ChunkSpec, progress: Progress) -> ChunkResult:
        scorer = choosing_scorer(context)
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


def compares(context: RunContext) -> bool:
    """Whether explanations are compared at all."""
    inputs = [explainer for explainer in context.explainers if explainer.side == "input"]
    return context.config.labels.choose == "best" and len(inputs) > 1


def choosing_scorer(context: RunContext) -> Scorer:
    """The scorer that compares explanations. Errors: ConfigError where there is none of that kind."""
    judges = {scorer.kind: scorer for scorer in context.scorers if scorer.judges_explanation}
    wanted = context.config.labels.by
    if wanted and wanted not in judges:
        raise ConfigError(f"labels.by is {wanted!r}: {did_you_mean(wanted, judges)}")
    if not judges:
        raise ConfigError('labels.choose is "best" and no scorer judges explanations: add one to [[scorers]].')
    return judges[wanted] if wanted else next(iter(judges.values()))
