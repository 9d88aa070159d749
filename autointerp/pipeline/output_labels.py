"""What scorers say of the label of what a latent does, in columns of its own: it is never mixed with that of what it fires on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from autointerp.explanation import Explanation
from autointerp.judging.steered_judge import OUTPUT_LABEL
from autointerp.score import Score, ScoreValue


def output_explainer(text: str | None, explanations: Iterable[Explanation]) -> str | None:
    """Kind of the explainer that wrote the output label ``text``; None where there is none."""
    return next((e.explainer for e in explanations if e.side == "output" and e.text == text), None) if text else None


def output_values(scores: Sequence[Score], explainer: str | None) -> dict[str, ScoreValue]:
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
