"""One latent: its label, what is known of it, where it fires, and what people and nights said of it."""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

import numpy as np
import pandas as pd

from autointerp.export.schema import COLUMNS
from autointerp.pipeline.causal_columns import CAUSAL_COLUMNS
from autointerp.pipeline.dictionary_rows import NotLabelledError, row_read
from autointerp.report.highlight import plain_line
from autointerp.report.show import figure_lines, quotable_sentence
from autointerp.review.proposing import proposers
from autointerp.review.recording import Review, reviews
from autointerp.server.shelf import ServedRun
from autointerp.server.views.base import View
from autointerp.server.views.mistakes import MistakeGroup, mistakes_of
from autointerp.server.views.steered import SteeredPromptView, steered_view
from autointerp.server.views.tokens import ExemplarGroup, HistogramView, exemplar_groups, histogram_view
from sae_core.errors import ConfigError, InputError, UnknownNameError

_MEANINGS = {column.name: column.description for column in COLUMNS}
NOT_LABELLED = "not labelled"
"""Status of a latent that has no row in the run."""
_SUBSTITUTION = "substitution"
_COLUMN_OF = {
    "ablation kl": "ablation_kl_typical",
    "later tokens": "ablation_kl_rest",
    "cross-entropy": "delta_ce",
    "fires on": "fire_rate",
    "on written texts": "written_precision",
    "logit lens tokens": "lens_auroc",
    "output label tokens": "output_tokens_auroc",
}
"""Columns of figures that reports call otherwise."""


class FigureView(View):
    """One figure as it is written, with its interval and what it is to be compared with."""

    name: str
    value: str
    bounds: str
    note: str
    meaning: str
    """One sentence on what it is; empty where its name says it."""


class NeighbourView(View):
    """A latent whose direction is near."""

    latent: int
    cosine: float | None
    label: str | None


class CandidateView(View):
    """A text that one explainer wrote, chosen or not."""

    explainer: str
    side: Literal["input", "output"]
    """Whether it is about what the latent fires on or what it does."""
    text: str | None
    failure: str | None
    """Why it wrote none."""
    chosen: bool
    model: str | None


class HistoryView(View):
    """What somebody said of the label."""

    at: datetime
    by: str
    action: str
    text: str | None
    note: str | None


class NightView(View):
    """The newest score that a schedule's nights gave the label."""

    schedule: str
    scorer: str
    night: str
    values: dict[str, Any]
    failure: str | None


class LatentView(View):
    """Everything of one latent."""

    run_id: str
    source: str
    latent: int
    num_latents: int
    """Of its source."""
    previous: int | None
    next: int | None
    """Latents beside it in the dictionary."""
    status: str
    """As in the dictionary, or :data:`NOT_LABELLED`."""
    label: str | None
    label_output: str | None
    explainer: str | None
    why_none: str | None
    """One sentence on why there is no label."""
    sentence: str
    """What is known of it, in a sentence that can be quoted."""
    figures: tuple[FigureView, ...]
    promoted: tuple[str, ...]
    suppressed: tuple[str, ...]
    neighbours: tuple[NeighbourView, ...]
    histogram: HistogramView | None
    exemplars: tuple[ExemplarGroup, ...]
    mistakes: tuple[MistakeGroup, ...]
    steered: tuple[SteeredPromptView, ...]
    """What steering it does to text; empty where the run had no texts written with it steered."""
    candidates: tuple[CandidateView, ...]
    proposers: tuple[str, ...]
    """Explainers that can be asked for another label; empty where the run has none."""
    history: tuple[HistoryView, ...]
    nights: tuple[NightView, ...]
    judges: tuple[str, ...]
    """Scorers that judge a person's text."""
    row: dict[str, Any]
    """Its row of the dictionary, and values of scores that are no columns."""


def latent_view(run: ServedRun, source: str, latent: int) -> LatentView:
    """A latent that the run has no label for, since it labels others or has not come to it yet, is shown with its exemplars alone.

    Errors: UnknownNameError for a source or a latent that is not there, StoreError before its source has been extracted.
    """
    record = run.context.source(source)
    if record.control:
        raise InputError(f"{source!r} is a control of random directions: look at the coder beside it.")
    if not 0 <= latent < record.num_latents:
        raise UnknownNameError(
            f"{source!r} has {record.num_latents} latents, 0 to {record.num_latents - 1}: there is no latent {latent}."
        )
    said = reviews(run.store, run.run_id, source, [latent])
    try:
        row = latent_row_of(run, source, latent, said)
    except NotLabelledError:
        row = {}
    series = pd.Series(row, dtype=object)
    status, label = str(row.get("status", NOT_LABELLED)), row.get("label")
    folder = run.exemplar_folder(source)
    store = run.context.exemplars(source) if folder is not None else None
    before, behind = _beside(run, source, latent)
    return LatentView(
        run_id=run.run_id,
        source=source,
        latent=latent,
        num_latents=record.num_latents,
        previous=before,
        next=behind,
        status=status,
        label=plain_line(label) if label else None,
        label_output=plain_line(row["label_output"]) if row.get("label_output") else None,
        explainer=row.get("explainer"),
        why_none=plain_line(row["failure_message"]) if row.get("failure_message") else None,
        sentence=quotable_sentence(series) if row else f"This run has not labelled latent {latent} of {source}.",
        figures=tuple(
            FigureView(**line._asdict(), meaning=_meaning(line.name))
            for line in figure_lines(series)
            if row and status != "dead"
        ),
        promoted=tuple(plain_line(repr(str(token))) for token in row.get("top_promoted_tokens") or ()),
        suppressed=tuple(plain_line(repr(str(token))) for token in row.get("top_suppressed_tokens") or ()),
        neighbours=_neighbours(run, source, latent),
        histogram=histogram_view(store, latent) if store is not None else None,
        exemplars=exemplar_groups(store, latent) if store is not None else (),
        mistakes=mistakes_of(run, store, source, latent, row.get("explainer")) if store is not None else (),
        steered=steered_view(run, source, latent) if store is not None else (),
        candidates=_candidates(run, source, latent, row),
        proposers=_proposers(run) if store is not None and status != "dead" else (),
        history=tuple(
            HistoryView(at=one.created_at, by=one.by, action=one.action, text=one.text, note=one.note) for one in said
        ),
        nights=_nights(run, source, latent),
        judges=tuple(
            scorer.kind for scorer in run.context.scorers if scorer.judges_explanation and scorer.sample is None
        ),
        row=row,
    )


def latent_row_of(run: ServedRun, source: str, latent: int, said: Sequence[Review]) -> dict[str, Any]:
    """The latent's row as the store has it now, JSON-ready, null left out; what needs all latents of the source comes from the last export."""
    exported = _exported(run, source, latent)
    row = {
        name: value for name, value in row_read(run.reading(source, latent, said), latent).items() if value is not None
    }
    for name, value in exported.items():
        own = name in CAUSAL_COLUMNS or (
            name.startswith(_SUBSTITUTION) and exported.get("explainer") == row.get("explainer")
        )
        if own:
            row.setdefault(name, value)
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in row.items()}


def _exported(run: ServedRun, source: str, latent: int) -> Mapping[str, Any]:
    columns = run.columns()
    if columns is None or source not in [rows.name for rows in columns.outline.sources]:
        return {}
    place = columns.row_of(source, latent)
    return {} if place is None else columns.rows(np.array([place], np.int64))[0]


def _beside(run: ServedRun, source: str, latent: int) -> tuple[int | None, int | None]:
    latents = run.context.latents(source)
    place = bisect.bisect_left(latents, latent)
    behind = place + 1 if place < len(latents) and latents[place] == latent else place
    return (
        int(latents[place - 1]) if place > 0 else None,
        int(latents[behind]) if behind < len(latents) else None,
    )


def _meaning(name: str) -> str:
    name = name.strip().lower()
    return _MEANINGS.get(_COLUMN_OF.get(name, name.replace(" ", "_")), "")


def _neighbours(run: ServedRun, source: str, latent: int) -> tuple[NeighbourView, ...]:
    lens = run.context.lens(source)
    if lens is None:
        return ()
    found = [
        (int(near), float(cosine))
        for near, cosine in zip(lens.neighbours[latent], lens.cosines[latent], strict=True)
        if near >= 0
    ]
    columns = run.columns()
    labels: dict[int, str | None] = {}
    if columns is not None and source in [rows.name for rows in columns.outline.sources]:
        places = {near: columns.row_of(source, near) for near, _ in found}
        there = [near for near, place in places.items() if place is not None]
        rows = columns.rows(np.array([places[near] for near in there], np.int64))
        labels = {near: row.get("label") for near, row in zip(there, rows, strict=True)}
    else:
        labels.update(run.store.texts(run.run_id, source, [near for near, _ in found]))
    return tuple(NeighbourView(latent=near, cosine=cosine, label=labels.get(near)) for near, cosine in found)


def _proposers(run: ServedRun) -> tuple[str, ...]:
    try:
        return tuple(dict.fromkeys(found.kind for found in proposers(run.context)))
    except ConfigError:  # a component that is not installed here: the page has the rest
        return ()


def _candidates(run: ServedRun, source: str, latent: int, row: Mapping[str, Any]) -> tuple[CandidateView, ...]:
    found = []
    for said in run.store.explanations(run.run_id, source, [latent]):
        text = said.text or None
        failure = said.failure.message if said.failure is not None else None
        chosen = text is not None and (
            (said.side == "input" and said.explainer == row.get("explainer") and text == row.get("label"))
            or (said.side == "output" and text == row.get("label_output"))
        )
        found.append(
            CandidateView(
                explainer=said.explainer,
                side=said.side,
                text=plain_line(text) if text else None,
                failure=failure,
                chosen=chosen,
                model=said.model,
            )
        )
    return tuple(sorted(found, key=lambda one: (one.side, not one.chosen, one.explainer)))


def _nights(run: ServedRun, source: str, latent: int) -> tuple[NightView, ...]:
    from sqlalchemy import select

    from autointerp.store.models import LatestScore

    query = (
        select(LatestScore)
        .where(LatestScore.run_id == run.run_id, LatestScore.source == source, LatestScore.latent == latent)
        .order_by(LatestScore.night)
    )
    with run.store.reading() as connection:
        rows = connection.execute(query).all()
    return tuple(
        NightView(
            schedule=row.schedule, scorer=row.scorer, night=row.night, values=row.values, failure=row.failure_kind
        )
        for row in rows
    )
