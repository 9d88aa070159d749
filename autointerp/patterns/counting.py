"""Counts of a prediction against a latent's firing, by document, over the windows of a pool that may be scored.

Letters in shapes: N counting positions, W windows, D documents of the pool, M matched positions.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autointerp.patterns.index import Ints, PoolIndex, pool_index
from autointerp.patterns.overlap import overlap_mask
from autointerp.patterns.trie import PatternTrie
from sae_core.records import WindowPool

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class ScoredWindows:
    """The windows of a pool that may be scored, with what all latents share."""

    index: PoolIndex
    """The pool's index."""
    kept: Bools
    """[W] whether a window is scored."""
    share_skipped: float
    """Share of the windows that repeats what was shown."""
    position_kept: Bools
    """[N] whether a counting position lies in a kept window."""
    position_document: Ints
    """[N] document of each position."""
    positions_D: Floats
    """[D] kept counting positions of each document."""
    num_documents: int
    """Documents with a kept window."""


@dataclass(frozen=True, slots=True)
class WindowCounts:
    """Windows and tokens of one prediction against one latent."""

    both_D: Ints
    """[D] windows in which the prediction holds and the latent fires."""
    predicted_D: Ints
    """[D] windows in which the prediction holds."""
    firing_D: Ints
    """[D] windows in which the latent fires."""
    num_windows: int
    """Windows that were counted."""
    token_both: int
    """Tokens that are predicted to fire and do."""
    token_predicted: int
    """Tokens that are predicted to fire."""
    token_firing: int
    """Tokens on which the latent fires."""
    sum_p_D: Floats
    """[D] sum of the predicted activations over tokens; below of the true ones, squares and products."""
    sum_t_D: Floats
    sum_pp_D: Floats
    sum_tt_D: Floats
    sum_pt_D: Floats

    @property
    def num_both(self) -> int:
        """True positive windows."""
        return int(self.both_D.sum())

    @property
    def num_predicted(self) -> int:
        """Windows in which the prediction holds."""
        return int(self.predicted_D.sum())

    @property
    def num_firing(self) -> int:
        """Windows in which the latent fires."""
        return int(self.firing_D.sum())

    @property
    def rate(self) -> float:
        """pi, the share of firing windows; 0 without windows."""
        return self.num_firing / self.num_windows if self.num_windows else 0.0


_SCORED: OrderedDict[tuple[int, int | None], tuple[ScoredWindows, WindowPool, WindowPool | None]] = OrderedDict()
_LOCK = threading.Lock()


def scored_windows(pool: WindowPool, shown: WindowPool | None = None) -> ScoredWindows:
    """Windows of ``pool`` without those that repeat a run of 13 tokens of ``shown``; made once for a pair of pools."""
    key = id(pool), None if shown is None else id(shown)
    with _LOCK:
        if key not in _SCORED:
            # The pools are kept beside it, so that their ids are not used again.
            _SCORED[key] = _scored_windows(pool, shown), pool, shown
        _SCORED.move_to_end(key)
        while len(_SCORED) > 4:
            _SCORED.popitem(last=False)
        return _SCORED[key][0]


def _scored_windows(pool: WindowPool, shown: WindowPool | None) -> ScoredWindows:
    index = pool_index(pool)
    kept, skipped = np.ones(len(pool.tokens), dtype=np.bool_), 0.0
    if shown is not None:
        kept, skipped = overlap_mask(shown, pool)
    position_kept = kept[index.window]
    document = index.document_of_window[index.window]
    positions = np.bincount(document[position_kept], minlength=index.num_documents).astype(np.float64)
    num_documents = len(np.unique(index.document_of_window[kept]))
    return ScoredWindows(index, kept, skipped, position_kept, document, positions, num_documents)


def count_windows(trie: PatternTrie, latent: int, windows: ScoredWindows) -> WindowCounts:
    """Counts of a trie's prediction."""
    prediction = trie.predict_indexed(windows.index)
    return _count(prediction.ordinal, prediction.activation, prediction.fires, latent, windows)


def count_supposed(holds: Bools, latent: int, windows: ScoredWindows) -> WindowCounts:
    """Counts of a label of which no more is known than the windows of the pool in which it ``holds`` [W].

    Where it holds rightly it is taken to foretell the activations as they are, where wrongly their median at the first token.
    """
    index = windows.index
    firing, values = index.firing(latent)
    right = holds[index.window[firing]]
    fires = index.windows_firing(latent)
    wrong = index.first_in(holds & ~fires)
    typical = float(np.median(values)) if len(values) else 0.0
    matched = np.concatenate([firing[right], wrong])
    activation = np.concatenate([np.asarray(values[right], dtype=np.float64), np.full(len(wrong), typical)])
    order = np.argsort(matched, kind="stable")
    return _count(matched[order], activation[order], np.ones(len(matched), dtype=np.bool_), latent, windows)


def _count(
    matched: NDArray[np.int32], activation: Floats, fires: Bools, latent: int, windows: ScoredWindows
) -> WindowCounts:
    index = windows.index
    kept = windows.position_kept[matched]
    matched, activation, fires = matched[kept], activation[kept], fires[kept]
    firing, values = index.firing(latent)
    kept = windows.position_kept[firing]
    firing, true_values = firing[kept], np.asarray(values[kept], dtype=np.float64)

    predicted = np.zeros(index.num_windows, dtype=np.bool_)
    predicted[index.window[matched[fires]]] = True
    true = np.zeros(index.num_windows, dtype=np.bool_)
    true[index.window[firing]] = True

    # Both lists of positions are ascending and hold each position once.
    at = np.searchsorted(firing, matched)
    both = np.zeros(len(matched), dtype=np.bool_)
    inside = at < len(firing)
    both[inside] = firing[at[inside]] == matched[inside]
    truth = np.zeros(len(matched))
    truth[both] = true_values[at[both]]

    def by_window(chosen: Bools) -> Ints:
        return np.bincount(index.document_of_window[chosen], minlength=index.num_documents)

    def by_token(positions: NDArray[np.int32], weights: Floats) -> Floats:
        document = windows.position_document[positions]
        return np.bincount(document, weights=weights, minlength=index.num_documents).astype(np.float64)

    return WindowCounts(
        both_D=by_window(predicted & true),
        predicted_D=by_window(predicted),
        firing_D=by_window(true),
        num_windows=int(windows.kept.sum()),
        token_both=int((both & fires).sum()),
        token_predicted=int(fires.sum()),
        token_firing=len(firing),
        sum_p_D=by_token(matched, activation),
        sum_t_D=by_token(firing, true_values),
        sum_pp_D=by_token(matched, activation * activation),
        sum_tt_D=by_token(firing, true_values * true_values),
        sum_pt_D=by_token(matched, activation * truth),
    )
