"""Chooses the label of every latent, or says why it has none."""

from __future__ import annotations

from collections.abc import Sequence

from autointerp.explanation import Explanation
from autointerp.failure import Failure, FailureKind, LatentStatus
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.stage import ChunkResult, ChunkSpec, Progress, Stage, decode_latents, latent_chunks
from autointerp.store.models import Base, LabelRow


class Label(Stage):
    """Explanations to one label row a latent."""

    name = "label"
    queue = "control"
    unit = "latents"
    after_all = ("score", "controls")

    def plan(self, context: RunContext) -> list[ChunkSpec]:
        return latent_chunks(context)

    def run(self, context: RunContext, spec: ChunkSpec, progress: Progress) -> ChunkResult:
        latents = decode_latents(spec)
        candidates: dict[int, list[Explanation]] = {latent: [] for latent in latents}
        for explanation in context.store.explanations(context.run_id, spec.source, latents):
            candidates[explanation.latent].append(explanation)
        order = [explainer.kind for explainer in context.explainers]
        rows: list[Base] = [
            label_row(context.run_id, spec.source, latent, candidates[latent], order) for latent in latents
        ]
        return ChunkResult(rows)


def label_row(
    run_id: str, source: str, latent: int, candidates: Sequence[Explanation], order: Sequence[str]
) -> LabelRow:
    """The label of one latent: the first explainer of the configuration (``order``) that found a text.

    The published scores play no part, so that they stay free of the winner's curse (METHODS 2).
    """
    ranked = sorted(candidates, key=lambda explanation: order.index(explanation.explainer))
    inputs = [explanation for explanation in ranked if explanation.side == "input"]
    outputs = [explanation for explanation in ranked if explanation.side == "output" and explanation.failure is None]
    chosen = next((explanation for explanation in inputs if explanation.failure is None), None)
    row = LabelRow(
        run_id=run_id,
        source=source,
        latent=latent,
        status=LatentStatus.LABELLED.value,
        text_output=outputs[0].text if outputs else None,
        decided_by="configuration order",
    )
    if chosen is not None:
        row.text, row.explainer = chosen.text, chosen.explainer
        return row
    failure = next((explanation.failure for explanation in inputs if explanation.failure is not None), None)
    if failure is None:
        failure = Failure(
            kind=FailureKind.POISONED, message="its chunk ended the process again and again and was left out."
        )
    row.status = failure.status.value
    row.failure_kind, row.failure_message = failure.kind.value, failure.message
    return row
