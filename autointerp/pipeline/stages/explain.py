"""Writes one candidate text for each latent and explainer."""

from __future__ import annotations

from autointerp.evidence import LatentEvidence
from autointerp.explainers.base import Explainer
from autointerp.explanation import Explanation
from autointerp.failure import Failure, FailureKind
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.latent_evidence import chunk_evidence
from autointerp.pipeline.stage import ChunkResult, ChunkSpec, Progress, Stage, latent_chunks
from autointerp.store.models import Base, ExplanationRow
from autointerp.store.rows import explanation_row
from sae_core.errors import NonFiniteError


class Explain(Stage):
    """Evidence to explanations."""

    name = "explain"
    queue = "llm"
    unit = "latents"
    writes = (ExplanationRow,)
    after_all = ("merge",)
    after_same = ("probe",)
    essential = False

    def plan(self, context: RunContext) -> list[ChunkSpec]:
        return latent_chunks(context)

    def run(self, context: RunContext, spec: ChunkSpec, progress: Progress) -> ChunkResult:
        rows: list[Base] = []
        for done, evidence in enumerate(chunk_evidence(context, spec, causal=False), start=1):
            for explainer in context.explainers:
                rows.append(explanation_row(context.run_id, spec.source, explain_latent(explainer, evidence)))
            progress(done)
        return ChunkResult(rows)


def explain_latent(explainer: Explainer, evidence: LatentEvidence) -> Explanation:
    """The explainer's answer; non-finite evidence is a failure of this latent, everything else is the run's."""
    try:
        return explainer.explain(evidence, None)
    except NonFiniteError as error:
        failure = Failure(kind=FailureKind.NAN_INPUT, message=str(error))
        return Explanation(latent=evidence.latent, explainer=explainer.kind, failure=failure)
