"""Which labels get a precision and a recall from a judge's verdicts, and by whose verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from autointerp.explanation import Explanation
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.control_kinds import SHUFFLED
from autointerp.scorers.detection import DetectionScorer
from autointerp.statistics.natural_rate import PrecisionBasis
from autointerp.store.models import EstimateRow

AUDIT = "audit"
"""Name of the stage that judges many windows of a few labels."""
MOST_ROUNDS = 4
"""Of screening, each with an estimate after it."""


def estimated_judge(context: RunContext) -> DetectionScorer | None:
    """The judge whose verdicts are turned into precision and recall; None where there is none.

    One that judges windows which the explainer has seen (``leak_free = false``) is for comparison with others' figures alone.
    """
    scorer = context.config.estimated_scorer()
    return scorer if scorer is not None and scorer.leak_free else None


def judged_sources(context: RunContext) -> list[str]:
    """Sources whose labels get more than their scores' windows; random directions are a floor, which needs no more."""
    return [source.name for source in context.sources if not source.control]


def estimated_labels(context: RunContext, source: str, latents: Sequence[int] | None = None) -> list[Explanation]:
    """The texts of a source that are judged: all on the input side but those that a scorer counts over the corpus."""
    counting = [scorer for scorer in context.scorers if scorer.COUNTS]
    kinds = {explainer.kind for explainer in context.explainers}
    return [
        explanation
        for explanation in context.store.explanations(context.run_id, source, latents)
        if explanation.side == "input"
        and explanation.failure is None
        and explanation.explainer in kinds  # a person's text is judged when it is written
        and not any(scorer.can_judge(explanation) for scorer in counting)
    ]


@dataclass(frozen=True, slots=True)
class Estimated:
    """What one round says of one label."""

    latent: int
    explainer: str
    width: float
    """Of the 95% interval of precision."""
    near_width: float
    """Of that among windows near the label alone."""
    basis: PrecisionBasis


def estimates_of(
    context: RunContext, source: str, number: int, latents: Sequence[int] | None = None
) -> list[Estimated]:
    """The labels (of some latents) that a round has estimated."""
    rows = context.store.estimates(context.run_id, source, latents, stage=f"estimate_{number}")
    return [
        Estimated(
            row.latent,
            row.explainer,
            row.values["precision_high"] - row.values["precision_low"],
            row.values["near_precision_high"] - row.values["near_precision_low"],
            PrecisionBasis(row.values["precision_basis"]),
        )
        for row in rows
        if row.failure_kind is None and not row.explainer.startswith(f"{SHUFFLED}/")
    ]


def last_estimates(
    context: RunContext, source: str, latents: Sequence[int] | None = None
) -> dict[tuple[int, str], EstimateRow]:
    """The published rows of a source (of some latents) by latent and explainer: every round estimates all labels anew."""
    rows = context.store.estimates(context.run_id, source, latents)
    last = max((_round(row.stage) for row in rows), default=0)
    return {(row.latent, row.explainer): row for row in rows if _round(row.stage) == last}


def last_round(context: RunContext, source: str) -> str | None:
    """Name of the stage whose estimates of a source are published; None where nothing was estimated."""
    for number in range(MOST_ROUNDS, 0, -1):
        if context.store.artefact(context.run_id, f"estimate_{number}/{source}") is not None:
            return f"estimate_{number}"
    return None


def fit_of(context: RunContext, source: str) -> dict[str, Any] | None:
    """What the last round found of a source's labels together; None where nothing was estimated."""
    last = last_round(context, source)
    return None if last is None else context.store.artefact(context.run_id, f"{last}/{source}")


def _round(stage: str) -> int:
    return int(stage.rpartition("_")[2])


def goes_on(context: RunContext, label: Estimated) -> bool:
    """Whether more windows are shown with a label: its interval is wide, and the judge could make it narrower."""
    return label.width > context.config.precision.width and label.basis is not PrecisionBasis.JUDGE_LIMITED
