"""Scores every explanation, and every latent itself, with every scorer."""

from __future__ import annotations

from collections.abc import Sequence

from autointerp.evidence import LatentEvidence
from autointerp.explanation import Explanation
from autointerp.failure import Failure, FailureKind
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.latent_evidence import chunk_evidence
from autointerp.pipeline.stage import ChunkResult, ChunkSpec, Progress, Stage, decode_latents, latent_chunks
from autointerp.score import Score
from autointerp.scorers.base import Scorer
from autointerp.store.models import Base, ScoreRow
from autointerp.store.rows import score_row
from sae_core.errors import NonFiniteError


class ScoreStage(Stage):
    """Explanations and evidence to scores."""

    name = "score"
    queue = "llm"
    unit = "latents"
    writes = (ScoreRow,)
    after_all = ("merge",)
    after_same = ("explain", "intervene")
    essential = False

    def plan(self, context: RunContext) -> list[ChunkSpec]:
        return latent_chunks(context)

    def run(self, context: RunContext, spec: ChunkSpec, progress: Progress) -> ChunkResult:
        explanations: dict[int, list[Explanation]] = {}
        for explanation in context.store.explanations(context.run_id, spec.source, decode_latents(spec)):
            explanations.setdefault(explanation.latent, []).append(explanation)
        rows: list[Base] = []
        for done, evidence in enumerate(chunk_evidence(context, spec, causal=True), start=1):
            for score in score_latent(context.scorers, explanations.get(evidence.latent, []), evidence):
                rows.append(score_row(context.run_id, spec.source, score))
            progress(done)
        return ChunkResult(rows)


def score_latent(
    scorers: Sequence[Scorer], explanations: Sequence[Explanation], evidence: LatentEvidence
) -> list[Score]:
    """One score for each scorer and, where it judges explanations, each explanation of the input."""
    scores: list[Score] = []
    for scorer in scorers:
        if scorer.judges_explanation:
            inputs = [explanation for explanation in explanations if explanation.side == "input"]
            scores += [score_one(scorer, explanation, evidence) for explanation in inputs]
        else:
            scores.append(score_one(scorer, None, evidence))
    return scores


def score_one(scorer: Scorer, explanation: Explanation | None, evidence: LatentEvidence) -> Score:
    """The scorer's verdict; non-finite evidence is a failure of this latent, everything else is the run's."""
    try:
        return scorer.score(explanation, evidence, None)
    except NonFiniteError as error:
        return Score(
            latent=evidence.latent,
            scorer=scorer.kind,
            explainer=None if explanation is None else explanation.explainer,
            failure=Failure(kind=FailureKind.NAN_INPUT, message=str(error)),
        )
