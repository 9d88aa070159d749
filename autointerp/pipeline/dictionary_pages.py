"""Reads the labelled dictionary's rows from the store, some thousand latents at a time, as columns. Torch-free.

A page of labels is read by its latents' order, then everything else of these latents by queries between the first and the
last of them, so memory does not depend on the run. What stands in a row is decided latent by latent (``_said``); what is the
same for a source, or comes from arrays, is made a page at a time.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic_core import from_json
from sqlalchemy import BigInteger, case, cast, func, select, type_coerce
from sqlalchemy.types import String, Text

from autointerp.failure import FailureKind
from autointerp.pipeline.causal_columns import CausalColumns, causal_columns
from autointerp.pipeline.context import RunContext
from autointerp.pipeline.label_figures import TAKEN_OVER, first_explainer, models_of, score_failures, score_values
from autointerp.pipeline.output_labels import output_values
from autointerp.pipeline.stored_scores import Scored, StoredFailure, StoredScore
from autointerp.pipeline.substitution_record import substitution_scores
from autointerp.review.effective import EffectiveLabel, effective
from autointerp.review.recording import Review, is_human, reviews
from autointerp.store.models import EstimateRow, ExplanationRow, LabelRow, LLMCall, ScoreRow
from sae_core.exemplar_store import ExemplarStore
from sae_core.lens_evidence import LensEvidence
from sae_core.records import Source

if TYPE_CHECKING:
    import pyarrow as pa

PAGE = 2_048
"""Latents of a page."""
_NANO = 10**9
_TOKENS = (("top_promoted_tokens", "promoted"), ("top_suppressed_tokens", "suppressed"))
_EXPLAINED = ("explainer_model", "prompt_hash", "input_tokens", "output_tokens", "cost_usd")
_ALWAYS = frozenset(("label_sides", "judge_model", "num_judged", "num_failed", *_EXPLAINED))
"""Columns that a row has beside its scores' values."""
Row = dict[str, Any]


class _Label(NamedTuple):
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


class _Explained(NamedTuple):
    """What of an explanation stands in a row."""

    explainer: str
    side: str
    output_text: str | None
    """Of an output label its text."""
    imported: str | None
    """Of a label from elsewhere its payload as JSON."""
    failed: bool
    columns: Row


@dataclass(frozen=True)
class SourceReading:
    """What is read once a source."""

    context: RunContext
    """Its store is what the rows are read from."""
    source: Source
    code_version: str
    causal: CausalColumns
    substituted: Mapping[int, Sequence[Scored]]
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
        substituted: dict[int, list[Scored]] = {}
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
    """The rows of some latents."""

    reading: SourceReading
    labels: Sequence[_Label]
    """Ascending by latent."""
    said: Sequence[Row]
    """What scores, estimates, explanations and the ledger say of each."""

    @property
    def latents(self) -> NDArray[np.int64]:
        """[R] the rows' latents."""
        return np.fromiter((label.latent for label in self.labels), np.int64, len(self.labels))

    def row(self, at: int, columns: Collection[str]) -> Row:
        """One row with those of its scores' values that are among ``columns``."""
        label, reading = self.labels[at], self.reading
        said = self.said[at]
        row: Row = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in said.items()
            if name in columns or name in _ALWAYS
        }
        row = {
            **row,
            **reading.common,
            **dict(zip(_LABEL_COLUMNS, _label_values(label), strict=True)),
            "fire_rate": None,
        }
        row |= {name: array[0].item() for name, array in _statistics(reading, self.latents[at : at + 1]).items()}
        row["created_at"] = datetime.fromisoformat(label.created_at)
        if reading.lens is not None:
            row["neighbours"] = [int(n) for n in reading.lens.neighbours[label.latent] if n >= 0]
            for name, field in _TOKENS:
                tokens = getattr(reading.lens, field)[label.latent]
                if row.get(name) is None:
                    row[name] = [reading.exemplars.pieces.visible(int(token)) for token in tokens if token >= 0]
        return row

    def table(self, schema: pa.Schema) -> pa.Table:
        """The rows as a table of this schema. Errors: InputError for a value that does not fit its column."""
        import pyarrow as pa

        columns = self._columns(schema)
        num = len(self.labels)
        return pa.table([columns.get(f.name) or pa.nulls(num, f.type) for f in schema], schema=schema)

    def _columns(self, schema: pa.Schema) -> dict[str, pa.Array]:
        import pyarrow as pa

        from autointerp.export.checks import columns_of, fitting_array

        num, latents = len(self.labels), self.latents
        columns = {
            name: pa.repeat(pa.scalar(value), num) for name, value in self.reading.common.items() if value is not None
        }
        columns["created_at"] = pa.array([label.created_at for label in self.labels]).cast(
            schema.field("created_at").type
        )
        for name, values in zip(_LABEL_COLUMNS, zip(*map(_label_values, self.labels), strict=True), strict=True):
            columns[name] = fitting_array(values, schema.field(name))
        for name, array in _statistics(self.reading, latents).items():
            columns[name] = pa.array(array, schema.field(name).type)
        names = set().union(*self.said)
        columns |= columns_of(self.said, [f for f in schema if f.name in names and f.name not in columns])
        if self.reading.lens is not None:
            columns |= _lens_columns(self.reading, self.reading.lens, latents, columns)
        return columns


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


def _labels(reading: SourceReading, after: int, limit: int) -> list[_Label]:
    query = (
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
            LabelRow.run_id == reading.context.run_id,
            LabelRow.source == reading.source.name,
            LabelRow.latent > after,
        )
        .order_by(LabelRow.latent)
        .limit(limit)
    )
    with reading.context.store.reading() as connection:
        rows = connection.execute(query).all()
    reviewed = reading.reviewed
    return [_reviewed(reviewed[row[0]], row) if row[0] in reviewed else _Label(*row[:8]) for row in rows]


def _reviewed(said: Sequence[Review], row: Any) -> _Label:
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
    return _Label(
        now.latent,
        now.status,
        now.text,
        now.text_output,
        now.explainer,
        now.failure_kind,
        now.failure_message,
        now.created_at.isoformat(timespec="microseconds"),
    )


def _page(reading: SourceReading, labels: Sequence[_Label]) -> Page:
    explained = _explanations(reading, labels)
    outputs = {
        label.latent: _output_explainer(label, explained.get(label.latent, ())) for label in labels if label.text_output
    }
    scores = _scores(reading, labels, outputs)
    estimates = _estimates(reading, labels)
    spend = _spend(reading, labels)
    said = [
        _said(
            reading,
            label,
            (*scores.get(label.latent, ()), *reading.substituted.get(label.latent, ())),
            estimates.get(label.latent),
            explained.get(label.latent, ()),
            outputs.get(label.latent),
            spend.get(label.latent),
        )
        for label in labels
    ]
    rows = [row for _, row in said]
    _add_judged(said)
    _add_causal(reading, labels, rows)
    return Page(reading, labels, rows)


def _said(
    reading: SourceReading,
    label: _Label,
    own: Sequence[Scored],
    estimate: Row | None,
    explained: Sequence[_Explained],
    output_explainer: str | None,
    spend: Row | None,
) -> tuple[Row, Row]:
    """What scores say of the label, and the row with everything else of it."""
    values: Row = score_values(own, label.explainer, reading.otherwise)
    # a label has one method: what was counted over the corpus is not mixed with what was judged
    if estimate is not None and values.get("precision_method") is None:
        if None in values.values():
            values = {name: value for name, value in values.items() if value is not None}
        values = estimate | values
    broken = [score for score in own if score.failure is not None]
    failures = score_failures(broken, label.explainer, reading.otherwise) if broken else {}
    said = {**failures, **values} if failures or output_explainer is not None else values
    if output_explainer is not None:
        said |= output_values(own, output_explainer)
    models = models_of(score for score in own if score.explainer in (None, label.explainer))
    if models is not None:
        said["judge_model"] = models
    taken_over: _Explained | None = None
    for one in explained:
        if one.side == "input" and one.explainer == (label.explainer or ""):
            said |= one.columns
        if one.side == "input" and one.explainer == TAKEN_OVER:
            taken_over = one
    said["label_sides"] = None if taken_over is None else _sides(label, taken_over)
    if spend is not None:
        said |= spend
    return values, said


def _add_causal(reading: SourceReading, labels: Sequence[_Label], rows: Sequence[Row]) -> None:
    causal = reading.causal
    first, last = np.searchsorted(causal.latents, [labels[0].latent, labels[-1].latent + 1])
    known = set(causal.latents[first:last].tolist())
    for label, row in zip(labels, rows, strict=True):
        if label.latent in known:
            row |= causal.of(label.latent)


def _add_judged(said: Sequence[tuple[Row, Row]]) -> None:
    """Windows that language models judged, where none were counted."""
    judged = [name for name in set().union(*(values for values, _ in said)) if name.endswith("_judged")]
    counts = [(name, f"{name.removesuffix('_judged')}_failed") for name in judged]
    for values, row in said:
        answered = failed = 0
        any_judged = False
        for judged_name, failed_name in counts:
            value, failures = values.get(judged_name), values.get(failed_name)
            if isinstance(value, int):
                answered, any_judged = answered + value, True
            if isinstance(failures, int):
                failed += failures
        if any_judged:
            if row.get("num_judged") is None:
                row["num_judged"] = answered
            row["num_failed"] = failed


def _between(reading: SourceReading, labels: Sequence[_Label], table: Any) -> tuple[Any, ...]:
    return (
        table.run_id == reading.context.run_id,
        table.source == reading.source.name,
        table.latent.between(labels[0].latent, labels[-1].latent),
    )


def _explanations(reading: SourceReading, labels: Sequence[_Label]) -> dict[int, list[_Explained]]:
    table = ExplanationRow
    query = select(
        table.latent,
        table.explainer,
        table.side,
        case((table.side == "output", table.text)),
        case((table.explainer == TAKEN_OVER, type_coerce(table.payload, Text))),
        table.failure_kind,
        table.model,
        table.prompt_hash,
        table.input_tokens,
        table.output_tokens,
        table.cost_usd,
    ).where(*_between(reading, labels, table))
    query = query.order_by(table.latent, table.explainer, table.side)
    found: dict[int, list[_Explained]] = {}
    with reading.context.store.reading() as connection:
        rows = connection.execute(query).all()
    for latent, explainer, side, output_text, imported, failure, model, prompt, read, written, cost in rows:
        columns = {
            "explainer_model": model,
            "prompt_hash": prompt,
            "input_tokens": read,
            "output_tokens": written,
            "cost_usd": cost,
        }
        one = _Explained(explainer, side, output_text, imported, failure is not None, columns)
        found.setdefault(latent, []).append(one)
    return found


def _output_explainer(label: _Label, explained: Sequence[_Explained]) -> str | None:
    """Kind of the explainer that wrote the output label."""
    return next(
        (one.explainer for one in explained if one.side == "output" and one.output_text == label.text_output), None
    )


def _scores(
    reading: SourceReading, labels: Sequence[_Label], outputs: Mapping[int, str | None]
) -> dict[int, list[StoredScore]]:
    """Scores of the latents and of the texts that are published, by scorer and explainer; of others the JSON is not read."""
    query = select(
        ScoreRow.latent,
        ScoreRow.scorer,
        ScoreRow.explainer,
        type_coerce(ScoreRow.values, Text),
        ScoreRow.failure_kind,
        ScoreRow.failure_message,
    ).where(*_between(reading, labels, ScoreRow))
    query = query.order_by(ScoreRow.latent, ScoreRow.scorer, ScoreRow.explainer)
    chosen = {label.latent: label.explainer or reading.otherwise for label in labels}
    with reading.context.store.reading() as connection:
        rows = [
            row
            for row in connection.execute(query).all()
            if not row[2] or row[2] == chosen.get(row[0]) or row[2] == outputs.get(row[0])
        ]
    found: dict[int, list[StoredScore]] = {}
    for row, values in zip(rows, _parsed([row[3] for row in rows]), strict=True):
        failure = None if row[4] is None else StoredFailure(FailureKind(row[4]), row[5] or "")
        found.setdefault(row[0], []).append(StoredScore(row[1], row[2] or None, values, failure))
    return found


def _estimates(reading: SourceReading, labels: Sequence[_Label]) -> dict[int, Row]:
    """The values of each published label's estimate by column; of one that could not be made, why."""
    if reading.estimates is None:
        return {}
    query = select(
        EstimateRow.latent,
        EstimateRow.explainer,
        type_coerce(EstimateRow.values, Text),
        EstimateRow.failure_kind,
        EstimateRow.failure_message,
    ).where(*_between(reading, labels, EstimateRow), EstimateRow.stage == reading.estimates)
    chosen = {label.latent: label.explainer or "" for label in labels}
    with reading.context.store.reading() as connection:
        rows = [row for row in connection.execute(query).all() if row[1] == chosen.get(row[0])]
    return {
        row[0]: values if row[3] is None else {"precision_failure": row[3], "precision_failure_message": row[4]}
        for row, values in zip(rows, _parsed([row[2] for row in rows]), strict=True)
    }


def _spend(reading: SourceReading, labels: Sequence[_Label]) -> dict[int, Row]:
    """What each latent took, lost calls among it; those that nobody was asked about are left out."""
    query = select(
        LLMCall.latent,
        cast(func.sum(LLMCall.input_tokens), BigInteger),
        cast(func.sum(LLMCall.output_tokens), BigInteger),
        cast(func.sum(LLMCall.cost_nano_usd), BigInteger),
        func.sum(case((LLMCall.cost_nano_usd.is_(None), 1), else_=0)),
    ).where(*_between(reading, labels, LLMCall))
    with reading.context.store.reading() as connection:
        rows = connection.execute(query.group_by(LLMCall.latent)).all()
    return {
        row[0]: {
            "input_tokens": int(row[1] or 0),
            "output_tokens": int(row[2] or 0),
            "cost_usd": None if row[4] else (row[3] or 0) / _NANO,
        }
        for row in rows
    }


def _parsed(texts: Collection[str]) -> list[Any]:
    """JSON texts parsed as one, so that their keys are kept once, by a parser that takes a third of json's time."""
    found: list[Any] = from_json(f"[{','.join(texts)}]", cache_strings="keys")
    return found


_LABEL_COLUMNS = ("latent", "status", "failure", "failure_message", "label", "label_output", "explainer")


def _label_values(label: _Label) -> tuple[Any, ...]:
    return (
        label.latent,
        label.status,
        label.failure_kind if label.status == "failed" else None,
        label.failure_message,
        label.text,
        label.text_output,
        label.explainer,
    )


def _sides(label: _Label, taken_over: _Explained) -> str | None:
    """How a label from elsewhere stands to the run's sides; an edit of one stands as it does."""
    if label.text is None or taken_over.failed:
        return None
    if label.explainer != TAKEN_OVER and not is_human(label.explainer or ""):
        return None
    return str(json.loads(taken_over.imported or "{}").get("imported", {}).get("sides", "unknown"))


def _statistics(reading: SourceReading, latents: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """[R] columns of the firing statistics; no rate where no token counts."""
    statistics = reading.exemplars.statistics
    first, last = int(latents[0]), int(latents[-1]) + 1
    at, num = latents - first, len(latents)
    num_tokens = int(statistics.num_tokens.sum())
    fire_count = statistics.fire_count[:, first:last].sum(axis=0)[at]
    peaks = statistics.max_activation[:, first:last][:, at]
    return {
        "num_tokens": np.full(num, num_tokens),
        "fire_count": fire_count,
        **({"fire_rate": fire_count / num_tokens} if num_tokens else {}),
        "num_windows": np.full(num, int(statistics.num_windows.sum())),
        "num_windows_firing": statistics.num_windows_firing[:, first:last].sum(axis=0)[at],
        "max_activation": peaks[np.argmax(np.abs(peaks), axis=0), np.arange(num)].astype(np.float64),
    }


def _lens_columns(
    reading: SourceReading, lens: LensEvidence, latents: NDArray[np.int64], columns: Mapping[str, pa.Array]
) -> dict[str, pa.Array]:
    """The same for all rows of a page."""
    import pyarrow as pa
    import pyarrow.compute as pc

    found = {"neighbours": _lists(lens.neighbours[latents], lambda ids: pa.array(ids.astype(np.int64)))}
    pieces = reading.exemplars.pieces

    def texts(tokens: NDArray[np.int64]) -> pa.Array:
        distinct, place = np.unique(tokens, return_inverse=True)
        return pa.array([pieces.visible(int(token)) for token in distinct], pa.string()).take(pa.array(place))

    for name, field in _TOKENS:
        own = _lists(getattr(lens, field)[latents], texts)
        found[name] = own if name not in columns else pc.coalesce(columns[name], own)
    return found


def _lists(table_RK: NDArray[Any], values: Any) -> pa.Array:
    """[R] lists of the entries that are no -1."""
    import pyarrow as pa

    there = table_RK >= 0
    offsets = np.concatenate([[0], np.cumsum(there.sum(axis=1))]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values(table_RK[there]))
