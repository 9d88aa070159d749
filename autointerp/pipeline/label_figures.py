"""Which of a latent's figures stand for its label: scores of the chosen text and of the latent itself. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

from autointerp.pipeline.context import RunContext
from autointerp.pipeline.stored_scores import Scored
from autointerp.score import ScoreValue
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


def score_values(
    scores: Sequence[Scored], explainer: str | None, otherwise: str | None = None
) -> dict[str, ScoreValue]:
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
            left_out = (*_OF_A_TEXT, f"{score.scorer}_") if explainer is None and score.explainer is not None else ()
            for name, value in score.values.items():
                if values.get(name) is None and not (left_out and name.startswith(left_out)):
                    values[name] = value
    return values


def estimate_values(row: EstimateRow) -> dict[str, ScoreValue]:
    """The values of a label's estimate by column; of one that could not be made, why (``precision_failure``)."""
    if row.failure_kind is not None:
        return {"precision_failure": row.failure_kind, "precision_failure_message": row.failure_message}
    return dict(row.values)


def score_failures(scores: Sequence[Scored], explainer: str | None, otherwise: str | None = None) -> dict[str, str]:
    """Why scorers have no figure, of the scores that :func:`score_values` reads: kind and sentence by column."""
    found: dict[str, str] = {}
    for score in scores:
        if score.explainer in (None, explainer or otherwise) and score.failure is not None:
            found.setdefault(f"{score.scorer}_failure", score.failure.kind.value)
            found.setdefault(f"{score.scorer}_failure_message", score.failure.message)
    return found


def models_of(scores: Iterable[Scored]) -> str | None:
    """Models that judged for some scores, as they name themselves, joined by ", "; None where none did."""
    said = {str(name) for score in scores if (name := score.values.get("judge_model"))}
    return _joined(frozenset(said)) if said else None


@lru_cache(maxsize=64)
def _joined(said: frozenset[str]) -> str | None:
    return ", ".join(sorted({name for names in said for name in names.split(", ")})) or None


def first_explainer(context: RunContext) -> str | None:
    """Kind of the explainer that is configured first; None where there is none."""
    return context.explainers[0].kind if context.explainers else None
