"""Mergeable samples of firing windows and of windows, in memory that does not grow with the corpus. Torch-free.

Both reservoirs keep, in each group, the items that come first in a total order, so that the result does not depend
on the order of arrival: shards of a corpus merge to exactly what one pass gives (METHODS 1).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Firings:
    """Firing windows of latents: M rows, and the R activations of all rows behind one another."""

    group: NDArray[np.int64]
    """[M] side * L + latent."""
    window: NDArray[np.int64]
    """[M] ordinal of the window in the corpus."""
    rank: NDArray[np.float32]
    """[M] items of a group are ordered by descending rank, ..."""
    key: NDArray[np.uint64]
    """[M] ... then by ascending key."""
    row_length: NDArray[np.int32]
    """[M] activations of the window that are not zero."""
    position: NDArray[np.uint8]
    """[R] position in the window."""
    value: NDArray[np.float32]
    """[R] activation."""

    @staticmethod
    def empty() -> Firings:
        return Firings(
            np.empty(0, np.int64),
            np.empty(0, np.int64),
            np.empty(0, np.float32),
            np.empty(0, np.uint64),
            np.empty(0, np.int32),
            np.empty(0, np.uint8),
            np.empty(0, np.float32),
        )

    @staticmethod
    def concatenate(parts: list[Firings]) -> Firings:
        return Firings(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Firings)))

    def take(self, rows: NDArray[np.int64]) -> Firings:
        """The given rows, in the given order."""
        starts = np.cumsum(self.row_length, dtype=np.int64) - self.row_length
        entries = ranges(starts[rows], self.row_length[rows])
        return Firings(
            self.group[rows],
            self.window[rows],
            self.rank[rows],
            self.key[rows],
            self.row_length[rows],
            self.position[entries],
            self.value[entries],
        )


def ranges(starts: NDArray[np.int64], lengths: NDArray[np.integer]) -> NDArray[np.int64]:
    """``concatenate([arange(s, s + n) for s, n in zip(starts, lengths)])``."""
    ends = np.cumsum(lengths, dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total, dtype=np.int64) + np.repeat(starts - (ends - lengths), lengths)


class FiringReservoir:
    """The first ``capacity`` firing windows of every group."""

    def __init__(self, num_groups: int, capacity: int, merge_at: int | None = None) -> None:
        """``merge_at``: items that wait before they are merged; more cost memory, fewer cost time."""
        self.capacity = capacity
        self._worst_rank = np.full(num_groups, -np.inf, dtype=np.float32)
        self._worst_key = np.full(num_groups, np.iinfo(np.uint64).max, dtype=np.uint64)
        self._kept = Firings.empty()
        self._waiting: list[Firings] = []
        self._num_waiting = 0
        self._merge_at = merge_at or max(num_groups * capacity, 262_144)

    def admits(self, group: NDArray[np.int64], rank: NDArray[np.float32], key: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """[M] whether each item comes before the last one that its group keeps by now."""
        worst = self._worst_rank[group]
        first: NDArray[np.bool_] = (rank > worst) | ((rank == worst) & (key <= self._worst_key[group]))
        return first

    def add(self, firings: Firings) -> None:
        """Offer firing windows."""
        if len(firings.group) == 0:
            return
        self._waiting.append(firings)
        self._num_waiting += len(firings.group)
        if self._num_waiting > self._merge_at:
            self._merge()

    def result(self) -> Firings:
        """What is kept, ordered by group, then rank and key."""
        self._merge()
        return self._kept

    def _merge(self) -> None:
        if not self._waiting:
            return
        everything = Firings.concatenate([self._kept, *self._waiting])
        self._waiting, self._num_waiting = [], 0
        order = np.lexsort((everything.key, -everything.rank, everything.group))
        group = everything.group[order]
        starts = np.flatnonzero(np.r_[True, group[1:] != group[:-1]])
        place = np.arange(len(group)) - np.repeat(starts, np.diff(np.r_[starts, len(group)]))
        self._kept = everything.take(order[place < self.capacity])
        last = order[place == self.capacity - 1]
        full = everything.group[last]
        self._worst_rank[full] = everything.rank[last]
        self._worst_key[full] = everything.key[last]


@dataclass(frozen=True)
class PoolRows:
    """Windows with all their activations: W windows, nnz entries behind one another."""

    window: NDArray[np.int64]
    """[W] ordinal of the window in the corpus."""
    key: NDArray[np.uint64]
    """[W] items are ordered by ascending key."""
    row_length: NDArray[np.int32]
    """[W] entries of the window."""
    latent: NDArray[np.int32]
    """[nnz]"""
    position: NDArray[np.uint8]
    """[nnz] position in the window."""
    value: NDArray[np.float32]
    """[nnz]"""

    @staticmethod
    def empty() -> PoolRows:
        return PoolRows(
            np.empty(0, np.int64),
            np.empty(0, np.uint64),
            np.empty(0, np.int32),
            np.empty(0, np.int32),
            np.empty(0, np.uint8),
            np.empty(0, np.float32),
        )

    @staticmethod
    def concatenate(parts: list[PoolRows]) -> PoolRows:
        return PoolRows(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(PoolRows)))

    def take(self, rows: NDArray[np.int64]) -> PoolRows:
        """The given windows, in the given order."""
        starts = np.cumsum(self.row_length, dtype=np.int64) - self.row_length
        entries = ranges(starts[rows], self.row_length[rows])
        return PoolRows(
            self.window[rows],
            self.key[rows],
            self.row_length[rows],
            self.latent[entries],
            self.position[entries],
            self.value[entries],
        )


class PoolReservoir:
    """A uniform sample of at most ``capacity`` windows: those with the smallest keys."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._worst = np.uint64(np.iinfo(np.uint64).max)
        self._parts: list[PoolRows] = [PoolRows.empty()]
        self._size = 0

    def admits(self, key: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """[W] whether each window comes before the last one that is kept by now."""
        return key <= self._worst

    def add(self, rows: PoolRows) -> None:
        """Offer windows."""
        self._parts.append(rows)
        self._size += len(rows.window)
        if self._size > 2 * self.capacity:
            self._merge()

    def result(self) -> PoolRows:
        """What is kept, ordered by key."""
        self._merge()
        return self._parts[0]

    def _merge(self) -> None:
        everything = PoolRows.concatenate(self._parts)
        order = np.argsort(everything.key, kind="stable")[: self.capacity]
        kept = everything.take(order)
        self._parts, self._size = [kept], len(kept.window)
        if len(kept.window) == self.capacity:
            self._worst = kept.key[-1]
