"""Writes one candidate text for each latent and explainer."""

from __future__ import annotations

import asyncio

from autointerp.evidence import LatentEvidence
from autointerp.explainers.base import Explainer
from autointerp.explanation import Explanation
from autointerp.failure import Failure, FailureKind
from autointerp.llm.asking import NO_LLMS, AskFailed, LLMs
from autointerp.pipeline.asking import chunks_at_once, over_latents
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.drafts import save_drafts
from autointerp.pipeline.latent_evidence import chunk_evidence
from autointerp.pipeline.stage import ChunkResult, ChunkSpec, Progress, Stage, latent_chunks
from autointerp.store.models import Base, ExplanationRow
from autointerp.store.rows import explanation_row
from sae_core.errors import NonFiniteError


class Explain(Stage):
    """Evidence to explanations; those of explainers that go on in rounds are drafts until their last one."""

    name = "explain"
    queue = "llm"
    unit = "latents"
    writes = (ExplanationRow,)
    after_all = ("merge", "lens")
    after_same = ("probe", "token_change")
    leaves = ("drafts-0",)
    essential = False

    def plan(self, context: RunContext) -> list[ChunkSpec]:
        return latent_chunks(context)

    def at_once(self, context: RunContext) -> int:
        return chunks_at_once(context.explainers)

    def run(self, context: RunContext, spec: ChunkSpec, progress: Progress) -> ChunkResult:
        found: list[Explanation] = []
        for asks in (False, True):
            explainers = [explainer for explainer in context.explainers if bool(explainer.llm_needs()) is asks]
            if not explainers:
                continue

            async def work(
                evidence: LatentEvidence, llms: LLMs, chosen: list[Explainer] = explainers
            ) -> list[Explanation]:
                return await asyncio.gather(*(explain_latent(explainer, evidence, llms) for explainer in chosen))

            evidence = chunk_evidence(context, spec, causal=False)
            found += over_latents(context, spec.source, evidence, work, progress, asks=asks)
        in_rounds = {explainer.kind for explainer in context.explainers if explainer.rounds_of_tests}
        drafts = [explanation for explanation in found if explanation.explainer in in_rounds]
        if drafts:
            save_drafts(context.folder.drafts(spec.source, 0, spec.ordinal), drafts)
        rows: list[Base] = [
            explanation_row(context.run_id, spec.source, explanation)
            for explanation in found
            if explanation.explainer not in in_rounds
        ]
        return ChunkResult(rows)


async def explain_latent(explainer: Explainer, evidence: LatentEvidence, llms: LLMs = NO_LLMS) -> Explanation:
    """The explainer's answer; what goes wrong with this latent is its failure, everything else is the run's."""
    try:
        return await explainer.explain(evidence, llms)
    except NonFiniteError as error:
        failure = Failure(kind=FailureKind.NAN_INPUT, message=str(error))
    except AskFailed as error:
        failure = error.failure
    return Explanation(latent=evidence.latent, explainer=explainer.kind, side=explainer.side, failure=failure)
