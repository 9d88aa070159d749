"""The labelled dictionary row by row and cell by cell, by the store's own objects: slow, plain, and what exports are held to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from autointerp.explanation import Explanation
from autointerp.pipeline.causal_columns import CausalColumns, causal_columns
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.natural_rate.labels import last_estimates
from autointerp.pipeline.substitution_record import substitution_scores
from autointerp.review.effective import EffectiveLabel, effective_labels
from autointerp.review.recording import is_human
from autointerp.score import Score, ScoreValue
from autointerp.store.ledger import spend_by_latent
from autointerp.store.models import EstimateRow
from sae_core.lens_evidence import LensEvidence
from sae_core.records import LatentStatistics, Source
from sae_core.token_text import TokenText

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


def dictionary_rows(context: RunContext, columns: Sequence[str], code_version: str) -> Iterator[list[dict[str, Any]]]:
    """Rows of every source that is no control, ``chunk_latents`` at a time, with those ``columns`` that are known."""
    size = context.config.chunk_latents
    for source in context.sources:
        if source.control:
            continue
        latents = context.latents(source.name)
        causal = causal_columns(context, source.name)
        for start in range(0, len(latents), size):
            yield _batch(context, source, latents[start : start + size], frozenset(columns), code_version, causal)


def score_values(scores: Sequence[Score], explainer: str | None, otherwise: str | None = None) -> dict[str, ScoreValue]:
    """The values of a latent's scores by column: those of the latent itself, and those of ``explainer``'s text.

    Where no text was chosen (``explainer`` is None), what ``otherwise``'s scores say that is not about a text, such as
    the windows counted and the token rule. Of two scorers with the same column the first by name that defines it counts.
    """
    values: dict[str, ScoreValue] = {}
    for score in scores:
        if score.explainer in (None, explainer or otherwise):
            for name, value in score.values.items():
                about_text = score.explainer is not None and name.startswith((*_OF_A_TEXT, f"{score.scorer}_"))
                if values.get(name) is None and (explainer is not None or not about_text):
                    values[name] = value
    return values


def estimate_values(row: EstimateRow) -> dict[str, ScoreValue]:
    """The values of a label's estimate by column; of one that could not be made, why (``precision_failure``)."""
    if row.failure_kind is not None:
        return {"precision_failure": row.failure_kind, "precision_failure_message": row.failure_message}
    return dict(row.values)


def output_values(scores: Sequence[Score], explainer: str | None) -> dict[str, ScoreValue]:
    """Values of a latent's scores about ``explainer``'s output label, and why a scorer has none, by column."""
    values: dict[str, ScoreValue] = {}
    for score in scores:
        if explainer is None or score.explainer != explainer:
            continue
        values |= {name: value for name, value in score.values.items() if name.startswith("output_label_")}
        if score.failure is not None:
            values[f"output_label_{score.scorer}_failure"] = score.failure.kind.value
            values[f"output_label_{score.scorer}_failure_message"] = score.failure.message
    return values


def score_failures(scores: Sequence[Score], explainer: str | None, otherwise: str | None = None) -> dict[str, str]:
    """Why scorers have no figure, of the scores that :func:`score_values` reads: kind and sentence by column."""
    found: dict[str, str] = {}
    for score in scores:
        if score.explainer in (None, explainer or otherwise) and score.failure is not None:
            found.setdefault(f"{score.scorer}_failure", score.failure.kind.value)
            found.setdefault(f"{score.scorer}_failure_message", score.failure.message)
    return found


def output_explainer(text: str | None, explanations: Iterable[Explanation]) -> str | None:
    return next((e.explainer for e in explanations if e.side == "output" and e.text == text), None) if text else None


def _first_explainer(context: RunContext) -> str | None:
    return context.explainers[0].kind if context.explainers else None


def _batch(
    context: RunContext,
    source: Source,
    latents: Sequence[int],
    columns: frozenset[str],
    code_version: str,
    causal: CausalColumns,
) -> list[dict[str, Any]]:
    store, run_id = context.store, context.run_id
    scores: dict[int, list[Score]] = {latent: [] for latent in latents}
    for score in [*store.scores(run_id, source.name, latents), *substitution_scores(context, source.name, latents)]:
        scores[score.latent].append(score)
    written = store.explanations(run_id, source.name, latents)
    explanations = {(e.latent, e.explainer): e for e in written if e.side == "input"}
    outputs: dict[int, list[Explanation]] = {}
    for one in written:
        if one.side == "output":
            outputs.setdefault(one.latent, []).append(one)
    exemplars = context.exemplars(source.name)
    lens = context.lens(source.name)
    spend = spend_by_latent(store, run_id, source.name, latents)
    common = {
        "source": source.name,
        "subject": source.subject,
        "subject_revision": source.subject_revision,
        "hookpoint": source.hookpoint,
        "coder_fingerprint": source.coder_fingerprint,
        "corpus_fingerprint": exemplars.corpus_fingerprint,
        "run_id": run_id,
        "code_version": code_version,
    }
    rows: list[dict[str, Any]] = []
    otherwise = _first_explainer(context)
    estimates = last_estimates(context, source.name, latents)
    for label in effective_labels(store, run_id, source.name, latents):
        own = scores[label.latent]
        values = score_values(own, label.explainer, otherwise)
        estimate = estimates.get((label.latent, label.explainer or ""))
        # a label has one method: what was counted over the corpus is not mixed with what was judged
        if estimate is not None and values.get("precision_method") is None:
            values = estimate_values(estimate) | {name: v for name, v in values.items() if v is not None}
        said = {**score_failures(own, label.explainer, otherwise), **values, **causal.of(label.latent)}
        said |= output_values(own, output_explainer(label.text_output, outputs.get(label.latent, ())))
        row = {name: value for name, value in said.items() if name in columns}
        explanation = explanations.get((label.latent, label.explainer or ""))
        row |= common | _statistics(exemplars.statistics, label.latent) | _label(label, explanation)
        row["label_sides"] = _sides(label, explanations.get((label.latent, TAKEN_OVER)))
        row |= _judges(values, row.get("num_judged"))
        if (models := models_of(score for score in own if score.explainer in (None, label.explainer))) is not None:
            row["judge_model"] = models
        if lens is not None:
            row |= _lens(lens, exemplars.pieces, label.latent, row)
        if label.latent in spend:
            spent = spend[label.latent]
            row |= {name: getattr(spent, name) for name in ("input_tokens", "output_tokens", "cost_usd")}
        rows.append(row)
    return rows


def _judges(values: Mapping[str, ScoreValue], counted: Any) -> dict[str, Any]:
    """Windows that language models judged, where none were counted."""
    kinds = [name.removesuffix("_judged") for name in values if name.endswith("_judged")]
    judged, failed = (
        [value for kind in kinds if isinstance(value := values.get(f"{kind}_{what}"), int)]
        for what in ("judged", "failed")
    )
    if not judged:
        return {}
    return {
        "num_judged": sum(judged) if counted is None else counted,
        "num_failed": sum(failed),
    }


def models_of(scores: Iterable[Score]) -> str | None:
    """Models that judged for some scores, as they name themselves, joined by ", "; None where none did."""
    said = (str(score.values["judge_model"]) for score in scores if score.values.get("judge_model"))
    return ", ".join(sorted({name for names in said for name in names.split(", ")})) or None


def _lens(lens: LensEvidence, pieces: TokenText, latent: int, row: Mapping[str, Any]) -> dict[str, Any]:
    """Neighbours, and the tokens of the direction where no intervention has measured them."""
    found: dict[str, Any] = {"neighbours": [int(n) for n in lens.neighbours[latent] if n >= 0]}
    for name, tokens in (("top_promoted_tokens", lens.promoted), ("top_suppressed_tokens", lens.suppressed)):
        if row.get(name) is None:
            found[name] = [pieces.visible(int(token)) for token in tokens[latent] if token >= 0]
    return found


def _statistics(statistics: LatentStatistics, latent: int) -> dict[str, Any]:
    num_tokens = int(statistics.num_tokens.sum())
    fire_count = int(statistics.fire_count[:, latent].sum())
    peaks = statistics.max_activation[:, latent]
    return {
        "num_tokens": num_tokens,
        "fire_count": fire_count,
        "fire_rate": fire_count / num_tokens if num_tokens else None,
        "num_windows": int(statistics.num_windows.sum()),
        "num_windows_firing": int(statistics.num_windows_firing[:, latent].sum()),
        "max_activation": float(peaks[int(np.argmax(np.abs(peaks)))]),
    }


def _label(label: EffectiveLabel, explanation: Explanation | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "latent": label.latent,
        "status": label.status,
        "failure": label.failure_kind if label.status == "failed" else None,
        "failure_message": label.failure_message,
        "label": label.text,
        "label_output": label.text_output,
        "explainer": label.explainer,
        "created_at": label.created_at,
    }
    if explanation is not None:
        row |= {
            "explainer_model": explanation.model,
            "prompt_hash": explanation.prompt_hash,
            "input_tokens": explanation.input_tokens,
            "output_tokens": explanation.output_tokens,
            "cost_usd": explanation.cost_usd,
        }
    return row


def _sides(label: EffectiveLabel, taken_over: Explanation | None) -> str | None:
    """How a label from elsewhere stands to the run's sides; an edit of one stands as it does."""
    if label.text is None or taken_over is None or taken_over.failure is not None:
        return None
    if label.explainer != TAKEN_OVER and not is_human(label.explainer or ""):
        return None
    return str(taken_over.payload.get("imported", {}).get("sides", "unknown"))
