"""The table of latents: any sort, any filter, words; a page at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autointerp.browsing import Cursor, DictionaryColumns, RowQuery, query_rows
from autointerp.export.filters import Bound
from autointerp.export.schema import COLUMNS
from autointerp.review.effective import effective
from autointerp.review.recording import Review, reviews
from autointerp.server.shelf import ServedRun
from autointerp.server.views.base import View
from sae_core.errors import StoreError

CAP = 10_000
"""More rows than these are said to be "more than 10,000"."""
SHOWN = ("precision", "recall", "f1", "detection_score", "fuzz_score", "causal_effect", "fire_rate")
"""Figures that the table shows where the dictionary has them."""
_MEANINGS = {column.name: column.description for column in COLUMNS}


class CellView(View):
    """One figure of a row."""

    value: float | None
    low: float | None
    high: float | None


class LatentLine(View):
    """A row of the table."""

    source: str
    latent: int
    status: str
    label: str | None
    why_none: str | None
    reviewed: str | None
    """What a person did with the label since the dictionary was made; the figures are those of the label before."""
    figures: dict[str, CellView]


class FigureName(View):
    """A figure by which rows can be sorted and bounded."""

    name: str
    meaning: str


class DictionaryView(View):
    """One page of the table."""

    run_id: str
    sources: tuple[str, ...]
    statuses: tuple[str, ...]
    figures: tuple[FigureName, ...]
    """All by which rows can be sorted and bounded."""
    shown: tuple[str, ...]
    """Those that stand in the rows."""
    rows: tuple[LatentLine, ...]
    num_found: int
    """Rows that fit, at most :data:`CAP` + 1."""
    num_rows: int
    """Of the whole dictionary."""
    next: str | None
    """Cursor of the page behind this one."""
    made_at: str
    """When the dictionary was exported, ISO 8601, UTC."""
    num_reviewed: int
    """Labels that people have spoken of since."""


def dictionary_view(run: ServedRun, query: RowQuery) -> DictionaryView:
    """Errors: StoreError where the run has no dictionary yet; what :func:`query_rows` raises."""
    columns, manifest = run.columns(), run.manifest()
    if columns is None or manifest is None:
        raise StoreError(f"the run {run.run_id} has made no dictionary yet: look at how far it is, and come back.")
    page = query_rows(columns, query)
    shown = _shown(columns, query)
    rows = columns.rows(page.rows)
    said = said_since(run, rows, manifest.created_at)
    return DictionaryView(
        run_id=run.run_id,
        sources=tuple(rows.name for rows in columns.outline.sources),
        statuses=tuple(columns.outline.categories.get("status", ())),
        figures=tuple(FigureName(name=name, meaning=_MEANINGS.get(name, "")) for name in columns.outline.numbers),
        shown=shown,
        rows=tuple(latent_line(row, shown, said.get((row["source"], row["latent"]), ())) for row in rows),
        num_found=min(page.num_found, CAP + 1),
        num_rows=columns.num_rows,
        next=str(page.next) if page.next is not None else None,
        made_at=manifest.created_at,
        num_reviewed=num_reviewed(run, manifest.created_at),
    )


def row_query(
    source: str | None,
    status: Sequence[str],
    where: Sequence[str],
    words: str,
    sort: str,
    descending: bool,
    limit: int,
    after: str | None,
) -> RowQuery:
    """Of what a link says. Errors: InputError."""
    bounds: tuple[Bound, ...] = tuple(Bound.parse(text) for text in where if text.strip())
    return RowQuery(
        source=source or None,
        statuses=tuple(name for name in status if name),
        bounds=bounds,
        words=words,
        sort=sort or "latent",
        descending=descending,
        limit=limit,
        after=Cursor.parse(after) if after else None,
        count_to=CAP + 1,
    )


def num_reviewed(run: ServedRun, since: str) -> int:
    """Latents of which people have spoken since a time (ISO 8601)."""
    from datetime import datetime

    from sqlalchemy import func, select

    from autointerp.store.models import ReviewRow

    spoken_of = (
        select(ReviewRow.source, ReviewRow.latent)
        .where(ReviewRow.run_id == run.run_id, ReviewRow.created_at > datetime.fromisoformat(since))
        .distinct()
        .subquery()
    )
    with run.store.reading() as connection:
        return int(connection.execute(select(func.count()).select_from(spoken_of)).scalar_one())


def _shown(columns: DictionaryColumns, query: RowQuery) -> tuple[str, ...]:
    asked = [query.sort, *(bound.column for bound in query.bounds)]
    names = [name for name in (*SHOWN, *asked) if name in columns.outline.numbers]
    return tuple(dict.fromkeys(names))


def said_since(run: ServedRun, rows: Sequence[Mapping[str, Any]], since: str) -> dict[tuple[str, int], list[Review]]:
    """The words of people on these latents, where one came after the export; by source and latent."""
    found: dict[tuple[str, int], list[Review]] = {}
    for source in {row["source"] for row in rows}:
        latents = [row["latent"] for row in rows if row["source"] == source]
        for review in reviews(run.store, run.run_id, source, latents):
            found.setdefault((source, review.latent), []).append(review)
    return {key: said for key, said in found.items() if said[-1].created_at.isoformat() > since}


def latent_line(row: Mapping[str, Any], shown: Sequence[str], said: Sequence[Review]) -> LatentLine:
    status, label, why = row["status"], row.get("label"), row.get("failure_message")
    if said:
        status, label, why = _after(row, said)
    return LatentLine(
        source=row["source"],
        latent=row["latent"],
        status=status,
        label=label,
        why_none=why,
        reviewed=f"{said[-1].action}ed by {said[-1].by}" if said else None,
        figures={
            name: CellView(value=row.get(name), low=row.get(_bound(name, "low")), high=row.get(_bound(name, "high")))
            for name in shown
        },
    )


def _bound(name: str, end: str) -> str:
    return f"{name.removesuffix('_score')}_{end}"


def _after(row: Mapping[str, Any], said: Sequence[Review]) -> tuple[str, str | None, str | None]:
    """Status, label and reason after the reviews."""
    from datetime import UTC, datetime

    from autointerp.review.effective import EffectiveLabel

    before = EffectiveLabel(
        row["latent"], row["status"], row.get("label"), None, row.get("explainer"), "", row.get("failure"),
        row.get("failure_message"), datetime.min.replace(tzinfo=UTC),
    )  # fmt: skip
    now = effective(said, before)
    return now.status, now.text, now.failure_message
