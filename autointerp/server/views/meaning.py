"""Latents whose labels mean the like of some words."""

from __future__ import annotations

from collections.abc import Sequence

from autointerp.browsing import RowQuery
from autointerp.browsing.querying import fitting_rows
from autointerp.server.meanings import Meanings, MeaningState
from autointerp.server.shelf import ServedRun
from autointerp.server.views.base import View
from autointerp.server.views.dictionary import LatentLine, latent_line, row_query, said_since
from sae_core.errors import StoreError

MOST_FOUND = 50
SHOWN = ("precision", "recall", "f1")


class FoundByMeaning(LatentLine):
    """A row of the dictionary, and how near its label is."""

    cosine: float
    """Between the vectors of the words and of the label as it was exported; 1 for the same text."""


class MeaningSearchView(View):
    """The latents whose labels are nearest to some words, the nearest first."""

    run_id: str
    meaning: MeaningState
    """Whether there can be an answer."""
    words: str
    source: str | None
    sources: tuple[str, ...]
    """All that can be chosen."""
    shown: tuple[str, ...]
    """Figures that stand in the rows."""
    rows: tuple[FoundByMeaning, ...]


def meaning_query(source: str | None, status: Sequence[str], where: Sequence[str]) -> RowQuery:
    """Which rows may be found. Errors: InputError."""
    return row_query(source, status, where, "", "latent", False, MOST_FOUND, None)


def meaning_search_view(
    run: ServedRun, meanings: Meanings, words: str, query: RowQuery, limit: int = MOST_FOUND
) -> MeaningSearchView:
    """An answer; without words only whether there can be one.

    Errors: StoreError before the labels can be searched; what :func:`~autointerp.browsing.query_rows` raises.
    """
    state = meanings.state(run)
    shown: tuple[str, ...] = ()
    found: tuple[FoundByMeaning, ...] = ()
    if words.strip():
        columns, manifest = run.columns(), run.manifest()
        if columns is None or manifest is None:
            raise StoreError(str(state.why))
        among = fitting_rows(columns, query)
        all_fit = len(among) == columns.num_rows
        nearest = meanings.nearest(run, columns.outline.made_of, words, limit, None if all_fit else among)
        shown = tuple(name for name in SHOWN if name in columns.outline.numbers)
        rows = columns.rows(nearest.rows)
        said = said_since(run, rows, manifest.created_at)
        lines = [latent_line(row, shown, said.get((row["source"], row["latent"]), ())) for row in rows]
        found = tuple(
            FoundByMeaning(**dict(line), cosine=cosine)
            for line, cosine in zip(lines, nearest.cosines.tolist(), strict=True)
        )
    return MeaningSearchView(
        run_id=run.run_id,
        meaning=state,
        words=words,
        source=query.source,
        sources=tuple(run.real_sources()),
        shown=shown,
        rows=found,
    )
