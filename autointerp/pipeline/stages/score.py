"""Scores every explanation, and every latent itself, with every scorer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from autointerp.evidence import LatentEvidence
from autointerp.explanation import Explanation
from autointerp.failure import Failure, FailureKind
from autointerp.llm.asking import NO_LLMS, AskFailed, LLMs
from autointerp.pipeline.asking import chunks_at_once, over_latents
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.latent_evidence import chunk_evidence
from autointerp.pipeline.stage import ChunkResult, ChunkSpec, Progress, Stage, decode_latents, latent_chunks
from autointerp.pipeline.steered_texts import scorable, with_steered
from autointerp.pipeline.written_texts import with_written
from autointerp.prompting.prompt import load_prompt
from autointerp.score import Score
from autointerp.scorers.base import Scorer
from autointerp.store.models import Base, ScoreRow, VerdictRow
from autointerp.store.rows import score_row, verdict_rows
from sae_core.errors import NonFiniteError


class ScoreStage(Stage):
    """Explanations and evidence to scores."""

    name = "score"
    queue = "llm"
    unit = "latents"
    writes = (ScoreRow, VerdictRow)
    after_all = ("merge", "lens", "attribute", "attribute_rare")
    after_same = (
        "explain",
        "intervene",
        "steer_texts",
        "revise_1",
        "revise_2",
        "revise_3",
        "revise_4",
        "try_written",
        "screen_1",
    )
    essential = False

    def plan(self, context: RunContext) -> list[ChunkSpec]:
        return latent_chunks(context)

    def can_begin(self, context: RunContext, spec: ChunkSpec) -> bool:
        return scorable(context)

    def at_once(self, context: RunContext) -> int:
        return chunks_at_once(context.scorers)

    def run(self, context: RunContext, spec: ChunkSpec, progress: Progress) -> ChunkResult:
        explanations = explanations_of(context, spec)
        scores: list[Score] = []
        for asks in (False, True):
            scorers = [scorer for scorer in context.scorers if bool(scorer.llm_needs()) is asks]
            if not scorers:
                continue

            async def work(evidence: LatentEvidence, llms: LLMs, chosen: list[Scorer] = scorers) -> list[Score]:
                return await score_latent(chosen, explanations.get(evidence.latent, []), evidence, llms)

            evidence = with_written(context, spec, "labels", chunk_evidence(context, spec, causal=True, screened=True))
            evidence = with_steered(context, spec.source, evidence)
            scores += over_latents(context, spec.source, evidence, work, progress, asks=asks)
        rows: list[Base] = [score_row(context.run_id, spec.source, score) for score in scores]
        return ChunkResult([*rows, *verdict_rows(context.run_id, spec.source, scores)])


def explanations_of(context: RunContext, spec: ChunkSpec) -> dict[int, list[Explanation]]:
    """The explanations of a chunk's latents; a person's text is judged when it is written."""
    kinds = {explainer.kind for explainer in context.explainers}
    found: dict[int, list[Explanation]] = {}
    for explanation in context.store.explanations(context.run_id, spec.source, decode_latents(spec)):
        if explanation.explainer not in kinds:
            continue
        found.setdefault(explanation.latent, []).append(explanation)
    return found


async def score_latent(
    scorers: Sequence[Scorer],
    explanations: Sequence[Explanation],
    evidence: LatentEvidence,
    llms: LLMs = NO_LLMS,
) -> list[Score]:
    """One score for each scorer that looks at the latent and, where it judges explanations, each explanation that it can judge."""
    pairs: list[tuple[Scorer, Explanation | None]] = []
    for scorer in scorers:
        if not scorer.looks_at(evidence):
            continue
        if scorer.judges_explanation:
            pairs += [(scorer, explanation) for explanation in explanations if scorer.can_judge(explanation)]
        else:
            pairs.append((scorer, None))
    return await asyncio.gather(*(score_one(scorer, explanation, evidence, llms) for scorer, explanation in pairs))


async def score_one(
    scorer: Scorer, explanation: Explanation | None, evidence: LatentEvidence, llms: LLMs = NO_LLMS
) -> Score:
    """The scorer's verdict; what goes wrong with this latent is its failure, everything else is the run's."""
    try:
        score = await scorer.score(explanation, evidence, llms)
        hashes = {load_prompt(name).hash for need in scorer.llm_needs() for name in need.prompts}
        said = {f"{scorer.kind}_prompt_hash": ",".join(sorted(hashes))} if hashes else {}
        return score.model_copy(update={"values": score.values | said})
    except NonFiniteError as error:
        failure = Failure(kind=FailureKind.NAN_INPUT, message=str(error))
    except AskFailed as error:
        failure = error.failure
    return Score(
        latent=evidence.latent,
        scorer=scorer.kind,
        explainer=None if explanation is None else explanation.explainer,
        failure=failure,
    )
