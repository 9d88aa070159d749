"""All sides as one, for protocols that score what an explainer was shown: only where a configuration asks for it.

Letters in shapes: W windows of the three pools together, L latents, S sides.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autointerp.evidence import EvidenceStore, LatentEvidence
from sae_core.records import Exemplar, LatentStatistics, Origin, Side, Source, WindowPool
from sae_core.token_text import TokenText


@dataclass(frozen=True, slots=True)
class JoinedPool(WindowPool):
    """The windows of several pools, one after the other; activations are looked up in these, the entry arrays are empty."""

    parts: tuple[WindowPool, ...] = ()
    """The pools."""

    def activations(self, latent: int) -> tuple[NDArray[np.int32], NDArray[np.uint8], NDArray[np.float32]]:
        """``(window, column, value)`` of one latent's activations, sorted by window, then column."""
        found = [part.activations(latent) for part in self.parts]
        starts = np.cumsum([0, *(len(part.tokens) for part in self.parts[:-1])])
        windows = [(window + start).astype(np.int32) for (window, _, _), start in zip(found, starts, strict=True)]
        return (
            np.concatenate(windows),
            np.concatenate([column for _, column, _ in found]),
            np.concatenate([value for _, _, value in found]),
        )


class AllSides:
    """An evidence store whose explain side is all sides together, and which has no other."""

    def __init__(self, store: EvidenceStore) -> None:
        self._store = store
        self._pool = _joined([store.pool(side) for side in Side])
        self._statistics = _summed(store.statistics)

    @property
    def source(self) -> Source:
        return self._store.source

    @property
    def corpus_fingerprint(self) -> str:
        return self._store.corpus_fingerprint

    @property
    def statistics(self) -> LatentStatistics:
        """With the sums over all sides as the explain side's row."""
        return self._statistics

    @property
    def pieces(self) -> TokenText:
        return self._store.pieces

    def exemplars(self, latent: int, side: Side, origin: Origin) -> list[Exemplar]:
        """Of all sides: TOP strongest first, SAMPLED in the order of the sides."""
        found = [exemplar for each in Side for exemplar in self._store.exemplars(latent, each, origin)]
        if origin is Origin.TOP:
            found.sort(key=lambda exemplar: -abs(exemplar.max_activation))
        return found

    def pool(self, side: Side) -> WindowPool:
        return self._pool


_STORES: OrderedDict[int, tuple[AllSides, EvidenceStore]] = OrderedDict()
_LOCK = threading.Lock()
_MOST_STORES = 2


def without_sides(evidence: LatentEvidence) -> LatentEvidence:
    """The evidence with all sides as the scored one, where the score side is scored; what chooses keeps to its side."""
    if evidence.scored_side is not Side.SCORE:
        return evidence
    with _LOCK:
        store = evidence.store
        if id(store) not in _STORES:
            # the store is kept beside what was made of it, so that its id is not used again
            _STORES[id(store)] = AllSides(store), store
        _STORES.move_to_end(id(store))
        while len(_STORES) > _MOST_STORES:
            _STORES.popitem(last=False)
        # nothing is held back on the explain side: see scorable.kept_windows
        return replace(evidence, store=_STORES[id(store)][0], scored_side=Side.EXPLAIN)


def _joined(pools: list[WindowPool]) -> JoinedPool:
    first = pools[0]
    exemplars = [pool.exemplar_tokens for pool in pools if pool.exemplar_tokens is not None]
    return JoinedPool(
        side=Side.EXPLAIN,
        num_windows_side=sum(pool.num_windows_side for pool in pools),
        tokens=np.concatenate([pool.tokens for pool in pools]),
        first_token=np.concatenate([pool.first_token for pool in pools]),
        document=np.concatenate([pool.document for pool in pools]),
        context=np.concatenate([pool.context for pool in pools]),
        position=np.concatenate([pool.position for pool in pools]),
        latent_start=np.zeros(len(first.latent_start), dtype=np.int64),
        entry_window=np.zeros(0, dtype=np.int32),
        entry_column=np.zeros(0, dtype=np.uint8),
        entry_value=np.zeros(0, dtype=np.float32),
        context_tokens=first.context_tokens,
        exemplar_tokens=np.concatenate(exemplars) if exemplars else None,
        parts=tuple(pools),
    )


def _summed(statistics: LatentStatistics) -> LatentStatistics:
    """[S, ...] with the sums over the sides in the explain side's row and nothing in the others."""

    def row(values: NDArray[Any], joined: NDArray[Any] | np.generic) -> NDArray[Any]:
        out = np.zeros_like(values)
        out[Side.EXPLAIN] = joined
        return out

    peaks = statistics.max_activation
    strongest = np.take_along_axis(peaks, np.abs(peaks).argmax(axis=0)[None], axis=0)[0]
    return LatentStatistics(
        num_tokens=row(statistics.num_tokens, statistics.num_tokens.sum()),
        num_windows=row(statistics.num_windows, statistics.num_windows.sum()),
        fire_count=row(statistics.fire_count, statistics.fire_count.sum(axis=0)),
        num_windows_firing=row(statistics.num_windows_firing, statistics.num_windows_firing.sum(axis=0)),
        max_activation=row(peaks, strongest),
        sum_activation=row(statistics.sum_activation, statistics.sum_activation.sum(axis=0)),
        histogram=row(statistics.histogram, statistics.histogram.sum(axis=0)),
    )
