"""Which of a latent's figures stand for its label: scores of the chosen text and of the latent itself. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence

from autointerp.pipeline.context import RunContext
from autointerp.score import Score, ScoreValue
from autointerp.store.models import EstimateRow

TAKEN_OVER = "imported"
"""Kind of the explainer that takes labels from elsewhere."""
_OF_A_TEXT = (
    "precision",
    "recall",
    "f1",
    "correlation",
    "balanced_accuracy",
    "predicts_nothing",
    "num_windows_predicted",
    "token_precision",
    "token_recall",
)
"""Beginnings of the names of values that are about a label's text."""


def score_values(scores: Sequence[Score], explainer: str | None, otherwise: str | None = None) -> dict[str, ScoreValue]:
    """The values of a latent's scores by column: those of the latent itself, and those of ``explainer``'s text.

    Where no text was chosen (``explainer`` is None), what ``otherwise``'s scores say that is not about a text, such as
    the windows counted and the token rule. Of two scorers with the same column the first by name that defines it counts.
    """
    values: dict[str, ScoreValue] = {}
    for score in scores:
        if score.explainer in (None, explainer or otherwise):
            if explainer is not None and None not in values.values():
                values = {**score.values, **values}  # the same as below, several times as fast
                continue
            untold = explainer is None and score.explainer is not None
            for name, value in score.values.items():
                if values.get(name) is None and not (untold and is_about_a_text(name, score.scorer)):
                    values[name] = value
    return values


def is_about_a_text(name: str, scorer: str) -> bool:
    """Whether a value of a scorer's is about the label's text, and not about the latent alone."""
    return name.startswith((*_OF_A_TEXT, f"{scorer}_"))


def estimate_values(row: EstimateRow) -> dict[str, ScoreValue]:
    """The values of a label's estimate by column; of one that could not be made, why (``precision_failure``)."""
    if row.failure_kind is not None:
        return {"precision_failure": row.failure_kind, "precision_failure_message": row.failure_message}
    return dict(row.values)


def first_explainer(context: RunContext) -> str | None:
    """Kind of the explainer that is configured first; None where there is none."""
    return context.explainers[0].kind if context.explainers else None
