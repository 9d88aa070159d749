"""Where every short token pattern stands in a pool: built once a pool, shared by all latents.

Letters in shapes: N counting positions of the pool in reading order, W windows, C columns (P + T), G grams of a
template.

A *template* is the tuple of offsets back from the firing token at which a pattern has a literal token, ascending:
``(0,)`` the firing token, ``(0, 1)`` it and the one before, ``(0, 2)`` with a wildcard between, ``(1,)`` any token
after a literal one. A *gram* of a template is one combination of literals that stands somewhere in the pool; grams are
numbered densely, so that counting is ``bincount`` and matching is a look-up instead of a search through the text.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sae_core.records import WindowPool

Template = tuple[int, ...]
Ints = NDArray[np.int64]

START = -1
"""Literal that stands before the first token of a sequence (in subjects without BOS)."""
UNKNOWN = -2
"""Token of a column that the pool does not hold; no literal equals it."""


@dataclass(frozen=True, slots=True)
class GramTable:
    """The grams of one template in one pool."""

    gram: NDArray[np.int32]
    """[N] gram at each counting position."""
    count: Ints
    """[G] counting positions of each gram."""
    keys: Ints
    """[G] ascending: gram of the template without its last offset, times the span, plus the last literal's code."""
    order: NDArray[np.int32]
    """[N] ordinals of counting positions, by gram, then ascending."""
    start: Ints
    """[G + 1] gram g's positions are ``order[start[g]:start[g + 1]]``."""

    def positions(self, grams: Ints) -> tuple[NDArray[np.int32], Ints]:
        """``(ordinals, which)``: all positions of ``grams`` [K], and for each the index into ``grams``."""
        counts = self.count[grams]
        which = np.repeat(np.arange(len(grams)), counts)
        inside = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
        return self.order[self.start[grams][which] + inside], which


class PoolIndex:
    """Counting positions of a pool and the gram tables over them; tables are made on first use."""

    def __init__(self, pool: WindowPool) -> None:
        self.pool = pool
        num_windows, width = pool.tokens.shape
        counts = pool.counts
        self.cell: Ints = np.flatnonzero(counts.reshape(-1))
        """[N] flat cell of ``pool.tokens`` of each counting position, ascending."""
        self.window: NDArray[np.int32] = (self.cell // width).astype(np.int32)
        """[N] row of ``pool.tokens``."""
        self._column: Ints = self.cell % width
        self._ordinal: NDArray[np.int32] = np.full(num_windows * width, -1, dtype=np.int32)
        self._ordinal[self.cell] = np.arange(len(self.cell), dtype=np.int32)
        self._width = width
        self._span = int(pool.tokens.max(initial=0)) + 3
        self._tables: dict[Template, GramTable] = {}
        self._lock = threading.RLock()
        documents, rows = np.unique(pool.document, return_inverse=True)
        self.num_documents: int = len(documents)
        """D, documents that have a window in the pool."""
        self.document_of_window: Ints = rows.reshape(-1)
        """[W] row among the pool's documents of each window."""
        self._first_of_window: Ints = np.flatnonzero(np.diff(self.window, prepend=-1))

    @property
    def num_positions(self) -> int:
        """N."""
        return len(self.cell)

    @property
    def num_windows(self) -> int:
        """W."""
        return len(self.pool.tokens)

    def tokens_back(self, offset: int) -> NDArray[np.int32]:
        """[N] token ``offset`` columns before each counting position; START or UNKNOWN where there is none."""
        column = self._column - offset
        tokens = self.pool.tokens.reshape(-1)[self.cell - np.minimum(offset, self._column)]
        return np.where(column < 0, UNKNOWN, tokens).astype(np.int32)

    def tokens_at(self, ordinals: NDArray[np.int32], offset: int) -> NDArray[np.int32]:
        """Token ``offset`` columns before each of some counting positions; START or UNKNOWN where there is none."""
        column = self._column[ordinals]
        tokens = self.pool.tokens.reshape(-1)[self.cell[ordinals] - np.minimum(offset, column)]
        return np.where(column < offset, UNKNOWN, tokens).astype(np.int32)

    def any_in_window(self, chosen: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """[W] windows that hold one of the ``chosen`` [N] positions."""
        out = np.zeros(self.num_windows, dtype=np.bool_)
        out[self.window[chosen]] = True
        return out

    def max_in_window(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """[W] largest of ``values`` [N] in each window; 0 where a window has no counting position."""
        out = np.zeros(self.num_windows)
        if len(values):
            out[self.window[self._first_of_window]] = np.maximum.reduceat(values, self._first_of_window)
        return out

    def windows_firing(self, latent: int) -> NDArray[np.bool_]:
        """[W] windows in which the latent fires on a counting position."""
        ordinals, _ = self.firing(latent)
        out = np.zeros(self.num_windows, dtype=np.bool_)
        out[self.window[ordinals]] = True
        return out

    def first_in(self, chosen: NDArray[np.bool_]) -> NDArray[np.int32]:
        """First counting position of each of the ``chosen`` [W] windows that has one, ascending."""
        first = self._first_of_window
        return first[chosen[self.window[first]]].astype(np.int32)

    @property
    def start_literal(self) -> int:
        """Literal that stands before the first real token of a context: the BOS where there is one, else START."""
        pool = self.pool
        opening = np.flatnonzero((pool.position == 0) & (pool.first_token == pool.context_tokens + 1))
        return int(pool.tokens[opening[0], pool.context_tokens]) if len(opening) else START

    def firing(self, latent: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """``(ordinals, activations)`` of the counting positions on which the latent fires, ascending."""
        window, column, value = self.pool.activations(latent)
        ordinal = self._ordinal[window.astype(np.int64) * self._width + column]
        counting = ordinal >= 0
        return ordinal[counting], value[counting]

    def table(self, template: Template) -> GramTable:
        """Grams of a template (offsets ascending, not empty)."""
        with self._lock:
            if template not in self._tables:
                self._tables[template] = self._build(template)
            return self._tables[template]

    def _build(self, template: Template) -> GramTable:
        codes = self.tokens_back(template[-1]).astype(np.int64) + 2
        if len(template) > 1:
            codes += self.table(template[:-1]).gram.astype(np.int64) * self._span
        keys, gram, count = np.unique(codes, return_inverse=True, return_counts=True)
        order = np.argsort(gram, kind="stable").astype(np.int32)
        start = np.concatenate([[0], np.cumsum(count)])
        return GramTable(gram.astype(np.int32), count.astype(np.int64), keys, order, start.astype(np.int64))

    def find(self, template: Template, literals: Ints) -> Ints:
        """Grams [K] of ``literals`` [K, len(template)], firing token first; -1 where one stands nowhere in the pool."""
        found = np.zeros(len(literals), dtype=np.int64)
        for depth in range(len(template)):
            keys = self.table(template[: depth + 1]).keys
            codes = literals[:, depth].astype(np.int64) + 2
            # A code beyond the span would read as another gram's; the pool holds no such token.
            known = (found >= 0) & (codes >= 1) & (codes < self._span)
            if depth:
                codes = codes + found * self._span
            at = np.minimum(np.searchsorted(keys, codes), len(keys) - 1)
            known &= keys[at] == codes if len(keys) else False
            found = np.where(known, at, -1)
        return found

    def literals(self, template: Template, grams: Ints) -> Ints:
        """[K, len(template)] literals of ``grams`` [K], firing token first: the inverse of :meth:`find`."""
        out = np.empty((len(grams), len(template)), dtype=np.int64)
        current = grams
        for depth in range(len(template) - 1, -1, -1):
            keys = self.table(template[: depth + 1]).keys[current]
            out[:, depth] = keys % self._span - 2
            current = keys // self._span
        return out

    def prefix(self, template: Template, grams: Ints) -> Ints:
        """Grams [K] of ``template[:-1]`` that ``grams`` [K] of ``template`` extend."""
        return self.table(template).keys[grams] // self._span


_INDEXES: OrderedDict[int, PoolIndex] = OrderedDict()
_INDEXES_LOCK = threading.Lock()
_MOST_INDEXES = 8
"""Pools of two sources with three sides each, and some; an index holds its pool, so that ids are not used again."""


def pool_index(pool: WindowPool) -> PoolIndex:
    """The index of a pool, made once as long as few pools are in use at a time."""
    with _INDEXES_LOCK:
        index = _INDEXES.pop(id(pool), None)
        if index is None:
            index = PoolIndex(pool)
        _INDEXES[id(pool)] = index
        while len(_INDEXES) > _MOST_INDEXES:
            _INDEXES.popitem(last=False)
        return index
