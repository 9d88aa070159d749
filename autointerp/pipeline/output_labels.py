"""What scorers say of the label of what a latent does, in columns of its own: it is never mixed with that of what it fires on."""

from __future__ import annotations

from collections.abc import Sequence

from autointerp.judging.steered_judge import OUTPUT_LABEL
from autointerp.pipeline.stored_scores import Scored
from autointerp.score import ScoreValue


def output_values(scores: Sequence[Scored], explainer: str | None) -> dict[str, ScoreValue]:
    """Values of a latent's scores about ``explainer``'s output label, and why a scorer has none, by column."""
    values: dict[str, ScoreValue] = {}
    for score in scores:
        if explainer is None or score.explainer != explainer:
            continue
        values |= {name: value for name, value in score.values.items() if name.startswith(OUTPUT_LABEL)}
        if score.failure is not None:
            values[f"{OUTPUT_LABEL}{score.scorer}_failure"] = score.failure.kind.value
            values[f"{OUTPUT_LABEL}{score.scorer}_failure_message"] = score.failure.message
    return values
