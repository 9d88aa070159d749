"""Rows of a dictionary by sources, statuses, bounds and words, in the order of any figure, a page at a time.

A page begins behind a cursor (the last row's figure and number), never at a number of rows to skip: the thousandth page costs what
the first one does, and rows that come or go in between shift nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autointerp.browsing.columns import DictionaryColumns
from autointerp.export.filters import Bound
from sae_core.errors import InputError, UnknownNameError, did_you_mean

MOST_ROWS = 200
"""Of a page."""
BY_LATENT = "latent"
"""The order of the dictionary itself."""
_COMPARE: dict[str, Any] = {
    ">=": np.greater_equal,
    "<=": np.less_equal,
    "==": np.equal,
    "!=": np.not_equal,
    "<": np.less,
    ">": np.greater,
}


@dataclass(frozen=True, slots=True)
class Cursor:
    """A row, and what it is sorted by."""

    value: float
    """NaN where it is null; 0 where the order is the dictionary's own."""
    row: int

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """Of what :meth:`__str__` gave. Errors: InputError."""
        try:
            value, _, row = text.partition("~")
            cursor = cls(float(value), int(row))
        except ValueError as error:
            raise InputError(
                f"{text!r} is no place in a table: follow the links of a page, or leave it out."
            ) from error
        if cursor.row < 0 or math.isinf(cursor.value):
            raise InputError(f"{text!r} is no place in a table: follow the links of a page, or leave it out.")
        return cursor

    def __str__(self) -> str:
        return f"{self.value!r}~{self.row}"


@dataclass(frozen=True, slots=True)
class RowQuery:
    """What is asked for; empty fields let everything through."""

    source: str | None = None
    statuses: tuple[str, ...] = ()
    bounds: tuple[Bound, ...] = ()
    words: str = ""
    """All of these stand in the label or the output label."""
    sort: str = BY_LATENT
    """``latent``, or a figure; rows without it come last in either direction."""
    descending: bool = False
    limit: int = 50
    after: Cursor | None = None
    count_to: int | None = None
    """Where counting may stop: a word of every label is found a million times, and nobody reads that."""

    @property
    def is_words_alone(self) -> bool:
        """Whether the word index alone says which rows come next."""
        plain = self.source is None and not self.statuses and not self.bounds
        return bool(self.words.strip()) and plain and self.sort == BY_LATENT and not self.descending


@dataclass(frozen=True, slots=True)
class RowPage:
    """An answer."""

    rows: NDArray[np.int64]
    """[at most limit] in order."""
    num_found: int
    """Rows of the whole table that fit, on this page or not; counting may have stopped at ``count_to``."""
    next: Cursor | None
    """For the rows behind these; None where there are none."""


def query_rows(columns: DictionaryColumns, query: RowQuery) -> RowPage:
    """The page. Errors: UnknownNameError for a source, status or figure that is not there, InputError for limits."""
    if not 1 <= query.limit <= MOST_ROWS:
        raise InputError(f"{query.limit} rows a page were asked for: ask for 1 to {MOST_ROWS}.")
    if query.is_words_alone and query.count_to is not None:
        return _by_words(columns, query, query.count_to)
    found = fitting_rows(columns, query)
    if query.sort == BY_LATENT:
        rows = found[::-1] if query.descending else found
        start = 0
        if query.after is not None:
            side = np.searchsorted(found, query.after.row, "left" if query.descending else "right")
            start = len(found) - int(side) if query.descending else int(side)
        page = np.ascontiguousarray(rows[start : start + query.limit])
        more = start + len(page) < len(rows)
        return RowPage(page, len(found), Cursor(0.0, int(page[-1])) if more and len(page) else None)
    values = columns.numbers(query.sort)[found]
    if query.descending:
        values = -values
    left, left_values = found, values
    if query.after is not None:
        behind = _behind(found, values, query.after, query.descending)
        left, left_values = found[behind], values[behind]
    order = _first(left_values, query.limit)
    page = left[order]
    if len(page) < len(left) and len(page):
        last = float(left_values[order[-1]])
        return RowPage(page, len(found), Cursor(-last if query.descending else last, int(page[-1])))
    return RowPage(page, len(found), None)


def _by_words(columns: DictionaryColumns, query: RowQuery, count_to: int) -> RowPage:
    counted = columns.words.find(query.words, limit=count_to)
    after = -1 if query.after is None else query.after.row
    rows = columns.words.find(query.words, after=after, limit=query.limit + 1)
    page = rows[: query.limit]
    return RowPage(page, len(counted), Cursor(0.0, int(page[-1])) if len(rows) > len(page) else None)


def fitting_rows(columns: DictionaryColumns, query: RowQuery) -> NDArray[np.int64]:
    """Numbers of all rows that fit, ascending."""
    if query.source is None:
        first, end = 0, columns.num_rows
    else:
        rows = columns.source_rows(query.source)
        first, end = rows.first, rows.end
    mask: NDArray[np.bool_] | None = None
    if query.statuses:
        known = columns.outline.categories.get("status", ())
        codes = []
        for status in query.statuses:
            if status not in known and status not in ("labelled", "dead", "rare", "failed"):
                raise UnknownNameError(f"no latent has the status {status!r}: {did_you_mean(status, list(known))}")
            codes += [known.index(status) + 1] if status in known else []
        mask = np.isin(columns.codes("status")[first:end], codes)
    for bound in query.bounds:
        with np.errstate(invalid="ignore"):
            fits = _COMPARE[bound.op](columns.numbers(bound.column)[first:end], bound.number)
        if bound.op == "!=":  # a null never fits
            fits &= ~np.isnan(columns.numbers(bound.column)[first:end])
        mask = fits if mask is None else mask & fits
    if query.words.strip():
        found = columns.words.find(query.words)
        found = found[(found >= first) & (found < end)]
        return found if mask is None else found[mask[found - first]]
    if mask is None:
        return np.arange(first, end)
    return first + np.flatnonzero(mask)


def _behind(rows: NDArray[np.int64], values: NDArray[np.float64], after: Cursor, descending: bool) -> NDArray[np.bool_]:
    """[F] which rows come after the cursor; values are negated where the order descends, null is last."""
    value = -after.value if descending else after.value
    if math.isnan(value):
        return np.isnan(values) & (rows > after.row)
    behind: NDArray[np.bool_] = (values > value) | np.isnan(values) | ((values == value) & (rows > after.row))
    return behind


def _first(values: NDArray[np.float64], limit: int) -> NDArray[np.int64]:
    """Places of the first ``limit`` values, ascending, null last, equal ones in their order."""
    if len(values) <= limit:
        return np.argsort(values, kind="stable")
    border = np.partition(values, limit - 1)[limit - 1]  # NaN counts as the largest
    if math.isnan(border):
        before = np.flatnonzero(~np.isnan(values))
        equal = np.flatnonzero(np.isnan(values))
    else:
        before, equal = np.flatnonzero(values < border), np.flatnonzero(values == border)
    places = np.concatenate([before, equal[: limit - len(before)]])
    return places[np.argsort(values[places], kind="stable")]
