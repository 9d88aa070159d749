"""What latents do on passages that a person gives: activations at tokens, and one value for each passage. Torch-free.

Letters: P passages, T tokens of one, L latents of the coder, F latents that fire somewhere in them, C latents of a tile,
nnz activations.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Measure = Literal["max", "mean"]
"""One value of a latent on a passage: its activation that is largest by magnitude, or the mean over the tokens that count."""


@dataclass(frozen=True, slots=True, eq=False)
class Passage:
    """A passage as the subject reads it."""

    name: str
    """What a sentence about it calls it: ``passage 3``."""
    token_ids: NDArray[np.int32]
    """[T] what is read after the BOS, which is not among them."""
    cut_ids: NDArray[np.int32]
    """What stands beyond the context length and is not read."""
    counts: NDArray[np.bool_]
    """[T] whether activations there count: not at special tokens, as in the corpus."""


class PassageActivations(NamedTuple):
    """The activations on some passages that are not 0, ordered by latent, then passage, then token."""

    passage: NDArray[np.int32]
    """[nnz]"""
    token: NDArray[np.int32]
    """[nnz] place in the passage's ``token_ids``."""
    latent: NDArray[np.int32]
    """[nnz]"""
    value: NDArray[np.float32]
    """[nnz]"""

    @property
    def latents(self) -> NDArray[np.int32]:
        """[F] those that fire, ascending."""
        return self.latent[self._first]

    @property
    def maxima(self) -> NDArray[np.float32]:
        """[F] the activation of each that is largest by magnitude."""
        return largest(self.value, self._first)

    def of(self, latent: int) -> PassageActivations:
        """One latent's."""
        part = slice(*np.searchsorted(self.latent, [latent, latent + 1]))
        return PassageActivations(self.passage[part], self.token[part], self.latent[part], self.value[part])

    @property
    def _first(self) -> NDArray[np.int64]:
        return run_starts(self.latent)


@dataclass(frozen=True, slots=True, eq=False)
class PassageValues:
    """One value a latent and passage, without the zeros."""

    num_passages: int
    """P"""
    latents: NDArray[np.int32]
    """[F] those that are not 0 on all passages, ascending."""
    start: NDArray[np.int64]
    """[F + 1] where the entries of each begin."""
    passage: NDArray[np.int32]
    """[nnz] ascending within a latent."""
    value: NDArray[np.float32]
    """[nnz] never 0."""

    def tiles(self, cells: int) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """The values with their zeros, some latents at a time: ``(which of the F, [P, C])`` of at most about ``cells`` cells."""
        width = max(1, cells // max(self.num_passages, 1))
        for first in range(0, len(self.latents), width):
            last = min(first + width, len(self.latents))
            entries = slice(int(self.start[first]), int(self.start[last]))
            column = np.repeat(np.arange(last - first), np.diff(self.start[first : last + 1]))
            tile = np.zeros((self.num_passages, last - first), dtype=np.float32)
            tile[self.passage[entries], column] = self.value[entries]
            yield slice(first, last), tile


def run_starts(ordered: NDArray[np.integer]) -> NDArray[np.int64]:
    """Where each run of equal numbers begins."""
    if not len(ordered):
        return np.empty(0, dtype=np.int64)
    return np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))


def largest(value: NDArray[np.float32], starts: NDArray[np.int64]) -> NDArray[np.float32]:
    """The value of each run that is largest by magnitude, with its sign (the positive one of two equal ones)."""
    if not len(starts):
        return np.empty(0, dtype=np.float32)
    high, low = np.maximum.reduceat(value, starts), np.minimum.reduceat(value, starts)
    return np.where(high >= -low, high, low)


def ordered_activations(parts: list[PassageActivations]) -> PassageActivations:
    """Activations of different passages, put in order."""
    passage, token, latent, value = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    order = np.lexsort((token, passage, latent))
    return PassageActivations(passage[order], token[order], latent[order], value[order])


def reduced(acts: PassageActivations, num_counting: NDArray[np.int64], measure: Measure) -> PassageActivations:
    """One entry a latent and passage (its token is the first that fires); ``num_counting`` [P] tokens that count."""
    starts = run_starts(acts.latent.astype(np.int64) * len(num_counting) + acts.passage)
    passage = acts.passage[starts]
    if measure == "max" or not len(starts):
        value = largest(acts.value, starts)
    else:
        total = np.add.reduceat(acts.value.astype(np.float64), starts)
        value = (total / num_counting[passage]).astype(np.float32)
    return PassageActivations(passage, acts.token[starts], acts.latent[starts], value)


def passage_values(acts: PassageActivations, num_passages: int) -> PassageValues:
    """Activations that have been :func:`reduced` as values of passages."""
    kept = acts.value != 0  # activations of two signs can have the mean 0
    latent = acts.latent[kept]
    first = run_starts(latent)
    start = np.append(first, len(latent))
    return PassageValues(num_passages, latent[first], start, acts.passage[kept], acts.value[kept])
