"""Chooses the label of every latent, or says why it has none."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from autointerp.explanation import Explanation
from autointerp.failure import Failure, FailureKind, LatentStatus
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.stage import ChunkResult, ChunkSpec, Progress, Stage, decode_latents, latent_chunks
from autointerp.pipeline.stages.choose import choosing_scorer
from autointerp.store import ChunkState
from autointerp.store.chunks import ChunkKey
from autointerp.store.models import Base, LabelRow
from sae_core.records import Side

NO_CHOICES: Mapping[str, float] = MappingProxyType({})


class Label(Stage):
    """Explanations to one label row a latent."""

    name = "label"
    queue = "control"
    unit = "latents"
    writes = (LabelRow,)
    # its own chunk's texts, what chose among them, and how many of its windows were counted: nobody waits for other latents
    after_same = ("explain", "revise_1", "revise_2", "revise_3", "revise_4", "choose", "score")

    def plan(self, context: RunContext) -> list[ChunkSpec]:
        return latent_chunks(context)

    def run(self, context: RunContext, spec: ChunkSpec, progress: Progress) -> ChunkResult:
        latents = decode_latents(spec)
        order = [explainer.kind for explainer in context.explainers]
        candidates: dict[int, list[Explanation]] = {latent: [] for latent in latents}
        for explanation in context.store.explanations(context.run_id, spec.source, latents):
            if explanation.explainer in order:  # a person's text is laid over the label as a review
                candidates[explanation.latent].append(explanation)
        choices = _choices(context, spec.source, latents)
        explained = ChunkKey("explain", spec.source, spec.ordinal)
        poisoned = context.store.chunk_state(context.run_id, explained) == ChunkState.POISONED
        windows = _scored_windows(context, spec.source, latents)
        rows: list[Base] = [
            label_row(
                context.run_id,
                spec.source,
                latent,
                candidates[latent],
                order,
                windows[latent],
                choices=choices.get(latent, {}),
                poisoned=poisoned,
            )
            for latent in latents
        ]
        return ChunkResult(rows)


def _choices(context: RunContext, source: str, latents: Sequence[int]) -> dict[int, dict[str, float]]:
    """Scores on the choose side by latent and explainer; none where explanations are not compared."""
    scorer = choosing_scorer(context)
    if scorer is None:
        return {}
    headline = scorer.headline
    found: dict[int, dict[str, float]] = {}
    for score in context.store.choices(context.run_id, source, latents):
        value = score.values.get(headline)
        if score.explainer is not None and score.failure is None and isinstance(value, (int, float)):
            found.setdefault(score.latent, {})[score.explainer] = float(value)
    return found


def _scored_windows(context: RunContext, source: str, latents: Sequence[int]) -> dict[int, tuple[int, int]]:
    """``(firing, all)`` windows of the score side by latent: those that were counted, else those of the corpus."""
    statistics = context.exemplars(source).statistics
    side = int(Side.SCORE)
    found = {
        latent: (int(statistics.num_windows_firing[side, latent]), int(statistics.num_windows[side]))
        for latent in latents
    }
    for score in context.store.scores(context.run_id, source, latents):
        firing, total = score.values.get("num_windows_firing_scored"), score.values.get("num_windows_scored")
        if isinstance(firing, int) and isinstance(total, int):
            found[score.latent] = (firing, total)
    return found


def label_row(
    run_id: str,
    source: str,
    latent: int,
    candidates: Sequence[Explanation],
    order: Sequence[str],
    windows: tuple[int, int],
    *,
    choices: Mapping[str, float] = NO_CHOICES,
    poisoned: bool,
) -> LabelRow:
    """The label of one latent: the text that scored best on the choose side (``choices``, by explainer), else the one of the first
    explainer of the configuration (``order``) that found a text.

    ``windows`` are the firing windows of the score side and all of them: with no firing one nothing can be said of how far a
    text holds, and the latent is rare. ``poisoned`` is whether its chunk was given up before it was explained. The published scores play no part, so that they stay free of the winner's curse (METHODS 2).
    """
    ranked = sorted(
        candidates,
        key=lambda explanation: (-choices.get(explanation.explainer, -math.inf), order.index(explanation.explainer)),
    )
    inputs = [explanation for explanation in ranked if explanation.side == "input"]
    outputs = [explanation for explanation in ranked if explanation.side == "output" and explanation.failure is None]
    chosen = next((explanation for explanation in inputs if explanation.failure is None), None)
    row = LabelRow(
        run_id=run_id,
        source=source,
        latent=latent,
        status=LatentStatus.LABELLED.value,
        text_output=outputs[0].text if outputs else None,
        decided_by="score on the choose side" if choices else "configuration order",
    )
    if chosen is not None and windows[0]:
        row.text, row.explainer = chosen.text, chosen.explainer
        return row
    failure = next((explanation.failure for explanation in inputs if explanation.failure is not None), None)
    if chosen is not None:
        failure = Failure(
            kind=FailureKind.TOO_FEW_WINDOWS,
            message=f"fires in 0 of {windows[1]:,} windows of the score side; 1 is needed to say how far a label holds",
        )
    elif failure is None and poisoned:
        failure = Failure(
            kind=FailureKind.POISONED, message="its chunk ended the process again and again and was left out."
        )
    elif failure is None:
        failure = Failure(kind=FailureKind.NO_EXPLANATION, message="no explainer wrote a label of what it fires on.")
    row.status = failure.status.value
    row.failure_kind, row.failure_message = failure.kind.value, failure.message
    return row
