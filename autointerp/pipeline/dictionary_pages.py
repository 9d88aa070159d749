"""Reads what stands in the labelled dictionary's rows from the store, some thousand latents at a time. Torch-free.

A page of labels is read by its latents' order, then everything else of these latents by queries between the first and the
last of them, so memory does not depend on the run. What of it stands in a row, ``dictionary_table`` decides, for many latents and for one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import BigInteger, Integer, Select, bindparam, case, cast, func, select, type_coerce
from sqlalchemy.types import String, Text

from autointerp.pipeline.causal_columns import CausalColumns, causal_columns
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.label_figures import TAKEN_OVER, first_explainer
from autointerp.pipeline.substitution_record import substitution_scores
from autointerp.review.effective import EffectiveLabel, effective
from autointerp.review.recording import Review, reviews
from autointerp.score import Score
from autointerp.store.models import EstimateRow, ExplanationRow, LabelRow, LLMCall, ScoreRow
from sae_core.exemplar_store import ExemplarStore
from sae_core.lens_evidence import LensEvidence
from sae_core.records import Source

PAGE = 2_048
"""Latents of a page."""
_NANO = 10**9
Row = dict[str, Any]


class StoredLabel(NamedTuple):
    """A label after all reviews, as columns."""

    latent: int
    status: str
    text: str | None
    text_output: str | None
    explainer: str | None
    failure_kind: str | None
    failure_message: str | None
    created_at: str
    """ISO 8601 in UTC."""


class PlacedScore(NamedTuple):
    """One row of the table ``score`` without the checks that it passed when it was written; a million are made for an export."""

    place: int
    scorer: str
    explainer: str | None
    """None for a score of the latent itself."""
    values: str
    """The JSON of an object."""
    failure_kind: str | None
    failure_message: str | None


@dataclass(frozen=True)
class SourceReading:
    """What is read once a source."""

    context: RunContext
    """Its store is what the rows are read from."""
    source: Source
    code_version: str
    causal: CausalColumns
    substituted: Mapping[int, Sequence[Score]]
    reviewed: Mapping[int, Sequence[Review]]
    """By latent, oldest first."""
    estimates: str | None
    """Stage whose estimates are published."""
    otherwise: str | None
    """Explainer whose scores say what is not about a text, where no label was chosen."""
    exemplars: ExemplarStore
    lens: LensEvidence | None

    @classmethod
    def of(cls, context: RunContext, source: Source, code_version: str) -> SourceReading:
        """Everything but the rows themselves. Errors: StoreError."""
        reviewed: dict[int, list[Review]] = {}
        for review in reviews(context.store, context.run_id, source.name):
            reviewed.setdefault(review.latent, []).append(review)
        substituted: dict[int, list[Score]] = {}
        for score in substitution_scores(context, source.name, range(source.num_latents)):
            substituted.setdefault(score.latent, []).append(score)
        return cls(
            context,
            source,
            code_version,
            causal_columns(context, source.name),
            substituted,
            reviewed,
            _published_stage(context, source.name),
            first_explainer(context),
            context.exemplars(source.name),
            context.lens(source.name),
        )

    @classmethod
    def of_few(cls, context: RunContext, source: Source, code_version: str, causal: CausalColumns) -> SourceReading:
        """For rows of a few latents: what all latents of the source are read for (``causal``, what labels keep in their latents'
        place, reviews) is left to the caller. Errors: StoreError.
        """
        estimates, otherwise = _published_stage(context, source.name), first_explainer(context)
        store, lens = context.exemplars(source.name), context.lens(source.name)
        return cls(context, source, code_version, causal, {}, {}, estimates, otherwise, store, lens)

    @property
    def common(self) -> Row:
        """The columns that are the same in every row."""
        return {
            "source": self.source.name,
            "subject": self.source.subject,
            "subject_revision": self.source.subject_revision,
            "hookpoint": self.source.hookpoint,
            "coder_fingerprint": self.source.coder_fingerprint,
            "corpus_fingerprint": self.exemplars.corpus_fingerprint,
            "run_id": self.context.run_id,
            "code_version": self.code_version,
        }


@dataclass(frozen=True)
class Page:
    """What the store says of some latents; a *place* is a label's number in the page."""

    reading: SourceReading
    labels: Sequence[StoredLabel]
    """Ascending by latent."""
    scores: Sequence[PlacedScore]
    """Those of the latents and of the texts that are published, by place, scorer and explainer."""
    explained: Sequence[tuple[int, Any]]
    """Place and row of every explanation, by place, explainer and side."""
    outputs: Mapping[int, str]
    """Kind of the explainer that wrote the output label, by place."""
    estimates: Mapping[int, str]
    """The values of each published label's estimate by place, as JSON; of one that could not be made, why."""
    spend: Mapping[int, Row]
    """What each latent took, by place; those that nobody was asked about are left out."""

    @property
    def latents(self) -> NDArray[np.int64]:
        """[R] the labels' latents."""
        return np.fromiter((label.latent for label in self.labels), np.int64, len(self.labels))


def pages(reading: SourceReading, after: int = -1, size: int = PAGE) -> Iterator[Page]:
    """The rows of a source whose latent is greater than ``after``, ascending."""
    while labels := _labels(reading, after, size):
        yield _page(reading, labels)
        after = labels[-1].latent


def page_of(reading: SourceReading, latent: int) -> Page | None:
    """The row of one latent; None where it has no label."""
    labels = _labels(reading, latent - 1, 1)
    return _page(reading, labels) if labels and labels[0].latent == latent else None


def _published_stage(context: RunContext, source: str) -> str | None:
    """The last round's: every round estimates all labels anew."""
    query = select(EstimateRow.stage).where(EstimateRow.run_id == context.run_id, EstimateRow.source == source)
    with context.store.reading() as connection:
        stages = [str(stage) for stage in connection.execute(query.distinct()).scalars()]
    return max(stages, key=lambda stage: int(stage.rpartition("_")[2]), default=None)


@cache
def _label_query() -> Select[*tuple[Any, ...]]:
    return (
        select(
            LabelRow.latent,
            LabelRow.status,
            LabelRow.text,
            LabelRow.text_output,
            LabelRow.explainer,
            LabelRow.failure_kind,
            LabelRow.failure_message,
            type_coerce(LabelRow.created_at, String).label("created_at"),
            LabelRow.decided_by,
        )
        .where(
            LabelRow.run_id == bindparam("run"),
            LabelRow.source == bindparam("source"),
            LabelRow.latent > bindparam("after"),
        )
        .order_by(LabelRow.latent)
        .limit(bindparam("limit", type_=Integer))
    )


def _labels(reading: SourceReading, after: int, limit: int) -> list[StoredLabel]:
    asked = {"run": reading.context.run_id, "source": reading.source.name, "after": after, "limit": limit}
    with reading.context.store.reading() as connection:
        rows = connection.execute(_label_query(), asked).all()
    reviewed = reading.reviewed
    return [_reviewed(reviewed[row[0]], row) if row[0] in reviewed else StoredLabel(*row[:8]) for row in rows]


def _reviewed(said: Sequence[Review], row: Any) -> StoredLabel:
    label = EffectiveLabel(
        row.latent,
        row.status,
        row.text,
        row.text_output,
        row.explainer,
        row.decided_by,
        row.failure_kind,
        row.failure_message,
        datetime.fromisoformat(row.created_at),
    )
    now = effective(said, label)
    return StoredLabel(
        now.latent,
        now.status,
        now.text,
        now.text_output,
        now.explainer,
        now.failure_kind,
        now.failure_message,
        now.created_at.isoformat(timespec="microseconds"),
    )


def _page(reading: SourceReading, labels: Sequence[StoredLabel]) -> Page:
    place = {label.latent: number for number, label in enumerate(labels)}
    explained = _explanations(reading, labels, place)
    outputs: dict[int, str] = {}
    for at, row in explained:
        # the text of a latent's output label, and never of another side
        if row[3] is not None and row[3] == labels[at].text_output:
            outputs.setdefault(at, row[1])
    scores = _scores(reading, labels, place, outputs)
    for latent in sorted(reading.substituted.keys() & place.keys()):
        at = place[latent]
        published = (None, labels[at].explainer or reading.otherwise, outputs.get(at))
        scores += [_placed(at, score) for score in reading.substituted[latent] if score.explainer in published]
    return Page(
        reading, labels, scores, explained, outputs, _estimates(reading, labels, place), _spend(reading, labels, place)
    )


def _placed(place: int, score: Score) -> PlacedScore:
    failure = score.failure
    why = (None, None) if failure is None else (failure.kind.value, failure.message)
    return PlacedScore(place, score.scorer, score.explainer, json.dumps(score.values), *why)


def _between(table: Any) -> tuple[Any, ...]:
    """Rows of the asked latents; building a query anew for each page of one latent would take as long as the database does."""
    return (
        table.run_id == bindparam("run"),
        table.source == bindparam("source"),
        table.latent.between(bindparam("first"), bindparam("last")),
    )


def _asked(reading: SourceReading, labels: Sequence[StoredLabel]) -> dict[str, Any]:
    first, last = labels[0].latent, labels[-1].latent
    return {"run": reading.context.run_id, "source": reading.source.name, "first": first, "last": last}


@cache
def _explanation_query() -> Select[*tuple[Any, ...]]:
    table = ExplanationRow
    return (
        select(
            table.latent,
            table.explainer,
            table.side,
            case((table.side == "output", table.text)).label("output_text"),
            case((table.explainer == TAKEN_OVER, type_coerce(table.payload, Text))).label("imported"),
            table.failure_kind,
            table.model,
            table.prompt_hash,
            table.input_tokens,
            table.output_tokens,
            table.cost_usd,
        )
        .where(*_between(table))
        .order_by(table.latent, table.explainer, table.side)
    )


def _explanations(
    reading: SourceReading, labels: Sequence[StoredLabel], place: Mapping[int, int]
) -> list[tuple[int, Any]]:
    with reading.context.store.reading() as connection:
        rows = connection.execute(_explanation_query(), _asked(reading, labels)).all()
    return [(place[row[0]], row) for row in rows if row[0] in place]


@cache
def _score_query() -> Select[*tuple[Any, ...]]:
    return (
        select(
            ScoreRow.latent,
            ScoreRow.scorer,
            ScoreRow.explainer,
            type_coerce(ScoreRow.values, Text),
            ScoreRow.failure_kind,
            ScoreRow.failure_message,
        )
        .where(*_between(ScoreRow))
        .order_by(ScoreRow.latent, ScoreRow.scorer, ScoreRow.explainer)
    )


def _scores(
    reading: SourceReading, labels: Sequence[StoredLabel], place: Mapping[int, int], outputs: Mapping[int, str]
) -> list[PlacedScore]:
    """Of other texts than the published ones the JSON is not read."""
    chosen = {label.latent: label.explainer or reading.otherwise for label in labels}
    written = {labels[at].latent: explainer for at, explainer in outputs.items()}
    with reading.context.store.reading() as connection:
        return [
            PlacedScore(place[latent], scorer, explainer or None, text, failure, message)
            for latent, scorer, explainer, text, failure, message in connection.execute(
                _score_query(), _asked(reading, labels)
            ).all()
            if latent in place and (not explainer or explainer == chosen[latent] or explainer == written.get(latent))
        ]


@cache
def _estimate_query() -> Select[*tuple[Any, ...]]:
    return select(
        EstimateRow.latent,
        EstimateRow.explainer,
        type_coerce(EstimateRow.values, Text),
        EstimateRow.failure_kind,
        EstimateRow.failure_message,
    ).where(*_between(EstimateRow), EstimateRow.stage == bindparam("stage"))


def _estimates(reading: SourceReading, labels: Sequence[StoredLabel], place: Mapping[int, int]) -> dict[int, str]:
    if reading.estimates is None:
        return {}
    chosen = {label.latent: label.explainer or "" for label in labels}
    with reading.context.store.reading() as connection:
        return {
            place[latent]: values
            if failure is None
            else json.dumps({"precision_failure": failure, "precision_failure_message": message})
            for latent, explainer, values, failure, message in connection.execute(
                _estimate_query(), _asked(reading, labels) | {"stage": reading.estimates}
            ).all()
            if explainer == chosen.get(latent)
        }


@cache
def _spend_query() -> Select[*tuple[Any, ...]]:
    return (
        select(
            LLMCall.latent,
            cast(func.sum(LLMCall.input_tokens), BigInteger),
            cast(func.sum(LLMCall.output_tokens), BigInteger),
            cast(func.sum(LLMCall.cost_nano_usd), BigInteger),
            func.sum(case((LLMCall.cost_nano_usd.is_(None), 1), else_=0)),
        )
        .where(*_between(LLMCall))
        .group_by(LLMCall.latent)
    )


def _spend(reading: SourceReading, labels: Sequence[StoredLabel], place: Mapping[int, int]) -> dict[int, Row]:
    """Lost calls count."""
    with reading.context.store.reading() as connection:
        rows = connection.execute(_spend_query(), _asked(reading, labels)).all()
    return {
        place[row[0]]: {
            "input_tokens": int(row[1] or 0),
            "output_tokens": int(row[2] or 0),
            "cost_usd": None if row[4] else (row[3] or 0) / _NANO,
        }
        for row in rows
        if row[0] in place
    }
