"""Text that an explainer of another run was shown counts as shown here too, so that hold-back leaves it out (METHODS 1).

Letters in shapes: X rows of text, P + T columns of a window with the tokens before it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from autointerp.evidence import EvidenceStore, LatentEvidence
from autointerp.patterns.overlap import RUN_LENGTH
from autointerp.sampling.scorable import kept_exemplars, kept_windows
from sae_core.records import Exemplar, LatentStatistics, Origin, Side, Source, WindowPool
from sae_core.token_text import TokenText

Place = tuple[int, int]
"""Context and position of a window."""


class WithShown:
    """An evidence store whose explain side was shown more text than its own."""

    def __init__(self, store: EvidenceStore, shown: Sequence[NDArray[np.int32]]) -> None:
        """``shown`` is [X, P + T] token ids, -1 for none, of the same tokenizer; of any width."""
        self._store = store
        pool = store.pool(Side.EXPLAIN)
        rows = [] if pool.exemplar_tokens is None else [pool.exemplar_tokens]
        rows += [_of_width(tokens, pool.tokens.shape[1]) for tokens in shown]
        self._pool = replace(pool, exemplar_tokens=np.concatenate(rows)) if rows else pool

    @property
    def source(self) -> Source:
        return self._store.source

    @property
    def corpus_fingerprint(self) -> str:
        return self._store.corpus_fingerprint

    @property
    def statistics(self) -> LatentStatistics:
        return self._store.statistics

    @property
    def pieces(self) -> TokenText:
        return self._store.pieces

    def exemplars(self, latent: int, side: Side, origin: Origin) -> list[Exemplar]:
        return self._store.exemplars(latent, side, origin)

    def pool(self, side: Side) -> WindowPool:
        return self._pool if side is Side.EXPLAIN else self._store.pool(side)


_STORES: OrderedDict[tuple[int, int], tuple[WithShown, EvidenceStore, EvidenceStore]] = OrderedDict()
_LOCK = threading.Lock()
_MOST_STORES = 2


def holding_back(store: EvidenceStore, other: EvidenceStore) -> WithShown:
    """The store with all that explainers of ``other`` may have been shown, which is the text of its explain and choose
    sides; made once for a pair of stores. Both have the same tokenizer."""
    key = id(store), id(other)
    with _LOCK:
        if key not in _STORES:
            pools = [other.pool(side) for side in (Side.EXPLAIN, Side.CHOOSE)]
            shown = [rows for pool in pools for rows in (pool.tokens, pool.exemplar_tokens) if rows is not None]
            # the stores are kept beside what was made of them, so that their ids are not used again
            _STORES[key] = WithShown(store, shown), store, other
        _STORES.move_to_end(key)
        while len(_STORES) > _MOST_STORES:
            _STORES.popitem(last=False)
        return _STORES[key][0]


def places_of_text(store: EvidenceStore, latent: int, other: EvidenceStore, seen: frozenset[Place]) -> frozenset[Place]:
    """Windows of the score side that repeat text of the windows ``seen`` of ``other``'s score side, but for those that
    are held back anyway."""
    pool = other.pool(Side.SCORE)
    chosen = [(int(c), int(p)) in seen for c, p in zip(pool.context, pool.position, strict=True)]
    rows = [pool.tokens[np.asarray(chosen, dtype=np.bool_)]]
    rows += [
        np.concatenate([exemplar.context_ids, exemplar.token_ids])[None].astype(np.int32)
        for origin in Origin
        for exemplar in other.exemplars(latent, Side.SCORE, origin)
        if (exemplar.context, exemplar.position) in seen
    ]
    before, after = LatentEvidence(latent, store), LatentEvidence(latent, WithShown(store, rows))
    own = store.pool(Side.SCORE)
    lost = np.flatnonzero(kept_windows(before, Side.SCORE) & ~kept_windows(after, Side.SCORE))
    places = {(int(own.context[row]), int(own.position[row])) for row in lost}
    for origin in Origin:
        exemplars = kept_exemplars(before, Side.SCORE, store.exemplars(latent, Side.SCORE, origin))
        kept = {(e.context, e.position) for e in kept_exemplars(after, Side.SCORE, exemplars)}
        places |= {(e.context, e.position) for e in exemplars} - kept
    return frozenset(places)


def _of_width(tokens: NDArray[np.int32], width: int) -> NDArray[np.int32]:
    """[X', width] the same rows: padded with -1, or cut so that each run of :data:`RUN_LENGTH` tokens stays whole in a piece."""
    have = tokens.shape[1]
    if have <= width:
        return np.pad(tokens, ((0, 0), (0, width - have)), constant_values=-1).astype(np.int32)
    step = max(width - RUN_LENGTH + 1, 1)
    starts = range(0, max(have - RUN_LENGTH + 1, 1), step)
    return np.concatenate([_of_width(tokens[:, start : start + width], width) for start in starts])
