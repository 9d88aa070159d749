"""Between the types of the pipeline and the rows of the store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

from autointerp.explanation import Explanation
from autointerp.failure import Failure, FailureKind
from autointerp.score import Score
from autointerp.store.models import ChoiceRow, ControlRow, ExplanationRow, ScoreRow, SourceRow, VerdictRow
from sae_core.records import Source


def explanation_row(run_id: str, source: str, explanation: Explanation) -> ExplanationRow:
    """The row of an explanation."""
    kind, message = _failure_columns(explanation.failure)
    return ExplanationRow(
        run_id=run_id,
        source=source,
        latent=explanation.latent,
        explainer=explanation.explainer,
        side=explanation.side,
        text=explanation.text,
        payload=explanation.payload,
        exemplar_ids=list(explanation.exemplar_ids),
        prompt_hash=explanation.prompt_hash,
        model=explanation.model,
        input_tokens=explanation.input_tokens,
        output_tokens=explanation.output_tokens,
        cost_usd=explanation.cost_usd,
        failure_kind=kind,
        failure_message=message,
    )


def read_explanation(row: ExplanationRow) -> Explanation:
    """The explanation of a row."""
    return Explanation(
        latent=row.latent,
        explainer=row.explainer,
        side=cast(Literal["input", "output"], row.side),
        text=row.text,
        payload=row.payload,
        exemplar_ids=tuple(row.exemplar_ids),
        prompt_hash=row.prompt_hash,
        model=row.model,
        input_tokens=row.input_tokens,
        output_tokens=row.output_tokens,
        cost_usd=row.cost_usd,
        failure=_read_failure(row.failure_kind, row.failure_message),
    )


def _score_columns(run_id: str, source: str, score: Score) -> dict[str, Any]:
    """A score as columns, on whichever side it was counted."""
    kind, message = _failure_columns(score.failure)
    return {
        "run_id": run_id,
        "source": source,
        "latent": score.latent,
        "scorer": score.scorer,
        "explainer": score.explainer or "",
        "values": dict(score.values),
        "failure_kind": kind,
        "failure_message": message,
    }


def score_row(run_id: str, source: str, score: Score) -> ScoreRow:
    """The row of a score."""
    return ScoreRow(**_score_columns(run_id, source, score))


def choice_row(run_id: str, source: str, score: Score) -> ChoiceRow:
    """The row of a score on the choose side."""
    return ChoiceRow(**_score_columns(run_id, source, score))


def verdict_rows(run_id: str, source: str, scores: Sequence[Score]) -> list[VerdictRow]:
    """The rows of what was judged window by window, of those scores that have it."""
    return [
        VerdictRow(
            run_id=run_id,
            source=source,
            latent=score.latent,
            scorer=score.scorer,
            explainer=score.explainer or "",
            items=score.verdicts,
        )
        for score in scores
        if score.verdicts
    ]


def read_score(row: ScoreRow | ChoiceRow) -> Score:
    """The score of a row."""
    return Score(
        latent=row.latent,
        scorer=row.scorer,
        explainer=row.explainer or None,
        values=row.values,
        failure=_read_failure(row.failure_kind, row.failure_message),
    )


def control_row(run_id: str, source: str, kind: str, score: Score) -> ControlRow:
    """The row of a score under a control."""
    failure_kind, message = _failure_columns(score.failure)
    return ControlRow(
        run_id=run_id,
        source=source,
        kind=kind,
        component=f"{score.scorer}/{score.explainer}" if score.explainer else score.scorer,
        latent=score.latent,
        values=dict(score.values),
        failure_kind=failure_kind,
        failure_message=message,
    )


def source_row(run_id: str, source: Source) -> SourceRow:
    """The row of a source."""
    return SourceRow(
        run_id=run_id,
        name=source.name,
        subject=source.subject,
        subject_revision=source.subject_revision,
        hookpoint=source.hookpoint,
        coder=source.coder,
        coder_fingerprint=source.coder_fingerprint,
        num_latents=source.num_latents,
        control=source.control,
    )


def read_source(row: SourceRow) -> Source:
    """The source of a row."""
    return Source(
        name=row.name,
        subject=row.subject,
        subject_revision=row.subject_revision,
        hookpoint=row.hookpoint,
        coder=row.coder,
        coder_fingerprint=row.coder_fingerprint,
        num_latents=row.num_latents,
        control=row.control,
    )


def _failure_columns(failure: Failure | None) -> tuple[str | None, str | None]:
    return (None, None) if failure is None else (failure.kind.value, failure.message)


def _read_failure(kind: str | None, message: str | None) -> Failure | None:
    return None if kind is None else Failure(kind=FailureKind(kind), message=message or "")
