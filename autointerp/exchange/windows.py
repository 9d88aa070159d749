"""A latent's windows and activations as other tools show them, out of the exemplar store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autointerp.exchange.strict_json import plain_text, short_float
from sae_core.exemplar_store import ExemplarStore
from sae_core.lens_evidence import LensEvidence
from sae_core.records import Exemplar, Origin, Side

MOST_TOP = 20
"""Strongest windows of a latent, over all sides."""
MOST_SAMPLED: Mapping[Side, int] = {Side.EXPLAIN: 8, Side.CHOOSE: 4, Side.SCORE: 8}
"""Randomly drawn windows of each side, in the shares of the sides, so that together they are a random sample of all text."""


@dataclass(frozen=True, slots=True)
class ShownWindow:
    """One window, as JSON has it. What the latent did on the tokens before it is not kept, so they are not shown."""

    tokens: list[str]
    """Texts of the window's tokens; joined they are its text. One that only ends a character is ""."""
    values: list[float]
    """The latent's activation at each; 0 at a BOS, where none counts."""
    peak: int
    """Place of the strongest activation by magnitude."""
    place: tuple[int, int]
    """Ordinal of the context and position in it, which say whether two windows are the same."""

    @property
    def at_peak(self) -> float:
        """The activation there."""
        return self.values[self.peak]


@dataclass(frozen=True, slots=True)
class LatentWindows:
    """What is shown of one latent; both are empty for a dead one."""

    top: list[ShownWindow]
    """Strongest first."""
    sampled: list[ShownWindow]
    """Uniformly drawn among the windows in which it fires, strongest first."""

    @classmethod
    def of(cls, store: ExemplarStore, latent: int) -> LatentWindows:
        """Read from the store."""
        top = [exemplar for side in Side for exemplar in store.exemplars(latent, side, Origin.TOP)]
        sampled = [
            e for side, most in MOST_SAMPLED.items() for e in store.exemplars(latent, side, Origin.SAMPLED)[:most]
        ]
        return cls(_strongest(store, top)[:MOST_TOP], _strongest(store, sampled))


def _strongest(store: ExemplarStore, exemplars: list[Exemplar]) -> list[ShownWindow]:
    ordered = sorted(exemplars, key=lambda e: (-abs(e.max_activation), e.context, e.position))
    return [_shown(store, exemplar) for exemplar in ordered]


def _shown(store: ExemplarStore, exemplar: Exemplar) -> ShownWindow:
    return ShownWindow(
        [plain_text(piece) for piece in store.pieces.pieces(exemplar.token_ids.tolist())],
        [short_float(value) for value in exemplar.activations.tolist()],
        exemplar.peak,
        (exemplar.context, exemplar.position),
    )


@dataclass(frozen=True, slots=True)
class ActivationCounts:
    """How often a latent's activation lies where, over all tokens that count: exact where the window pool is a census, else
    estimated from the pool's windows."""

    low: float
    """0, or the most negative activation."""
    high: float
    """The largest activation, or 0."""
    values: NDArray[np.float32]
    """[n] activations that are not 0."""
    weights: NDArray[np.float64]
    """[n] tokens of the corpus that each of them stands for."""
    num_tokens: int
    """Tokens that count."""

    @classmethod
    def of(cls, store: ExemplarStore, latent: int) -> ActivationCounts:
        """Read from the pools of all sides."""
        values, weights = [np.zeros(0, np.float32)], [np.zeros(0)]
        for side in Side:
            pool = store.pool(side)
            found = np.asarray(pool.activations(latent)[2])
            values.append(found)
            weights.append(np.full(len(found), pool.num_windows_side / max(len(pool.tokens), 1)))
        every = np.concatenate(values)
        peaks = store.statistics.max_activation[:, latent]
        low = min(0.0, float(every.min(initial=0)), float(peaks.min(initial=0)))
        high = max(0.0, float(every.max(initial=0)), float(peaks.max(initial=0)))
        return cls(low, high, every, np.concatenate(weights), int(store.statistics.num_tokens.sum()))

    def histogram(self, cells: int) -> tuple[list[float], list[float]]:
        """Tokens in ``cells`` cells of equal width between low and high, and the cells' middles; both empty where it never fires."""
        if self.low == self.high or not len(self.values):
            return [], []
        heights, edges = np.histogram(self.values, bins=cells, range=(self.low, self.high), weights=self.weights)
        middles = (edges[:-1] + edges[1:]) / 2
        return [short_float(v) for v in heights.tolist()], [short_float(v) for v in middles.tolist()]

    def share(self, low: float, high: float) -> float | None:
        """Share of all tokens whose activation is from ``low`` to ``high``, silent tokens among them where 0 is; None without tokens."""
        if not self.num_tokens:
            return None
        inside = float(self.weights[(self.values >= low) & (self.values <= high)].sum())
        if low <= 0 <= high:
            inside += max(self.num_tokens - float(self.weights.sum()), 0.0)
        return short_float(min(inside / self.num_tokens, 1.0))


@dataclass(frozen=True, slots=True)
class LensTokens:
    """What a latent's direction writes; all lists are empty where the lens stage did not run."""

    promoted: list[str]
    promoted_logits: list[float]
    suppressed: list[str]
    suppressed_logits: list[float]
    neighbours: list[int]
    cosines: list[float]

    @classmethod
    def of(cls, store: ExemplarStore, lens: LensEvidence | None, latent: int) -> LensTokens:
        """Read from the evidence."""
        if lens is None:
            return cls([], [], [], [], [], [])
        raised, raised_by = _there(lens.promoted[latent], lens.promoted_logits[latent])
        lowered, lowered_by = _there(lens.suppressed[latent], lens.suppressed_logits[latent])
        near, cosines = _there(lens.neighbours[latent], lens.cosines[latent])
        texts = [[plain_text(store.pieces.piece(token)) for token in tokens] for tokens in (raised, lowered)]
        return cls(texts[0], raised_by, texts[1], lowered_by, near, cosines)


def _there(numbers: NDArray[Any], figures: NDArray[Any]) -> tuple[list[int], list[float]]:
    """Entries that are no -1, with their figures."""
    kept = numbers >= 0
    return [int(n) for n in numbers[kept]], [short_float(v) for v in figures[kept].tolist()]
