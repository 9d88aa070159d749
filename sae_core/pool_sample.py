"""Which windows of a side are in the pool: a uniform sample, known before the subject runs. Torch-free."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sae_core.hashing import hash64, seed_for
from sae_core.partial import ExtractionSettings
from sae_core.tokens import TokenCorpus

_CONTEXTS_AT_ONCE = 65_536
_ALL = np.uint64(0xFFFFFFFFFFFFFFFF)


def window_uids(corpus: TokenCorpus, contexts: NDArray[np.int64], windows_per_context: int) -> NDArray[np.uint64]:
    """[B, V] identity of each window of ``contexts``, the same wherever the text is read."""
    uids = np.asarray(corpus.context_uid[contexts])
    return hash64(uids[:, None].view(np.int64), np.arange(windows_per_context)[None, :])


def pool_keys(uids: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """What orders windows for the pool: those with the smallest keys are in it."""
    return hash64(seed_for(seed, "pool"), uids.view(np.int64))


class PoolSample:
    """Says of each window whether the pool of its side holds it.

    Of a corpus that grows it says so of all windows of the whole's pool, and of others beside them.
    """

    def __init__(self, corpus: TokenCorpus, settings: ExtractionSettings, special_ids: frozenset[int]) -> None:
        """``special_ids``: tokens that do not count; a window of nothing else is no window."""
        self._settings = settings
        self._special = np.asarray(sorted(special_ids), dtype=np.int64)
        self._last = np.full(3, _ALL, np.uint64)
        self._smallest = [np.empty(0, np.uint64) for _ in range(3)]
        self._seen = 0
        self.follow(corpus)

    def follow(self, corpus: TokenCorpus) -> None:
        """Count in the contexts that the corpus has more by now."""
        settings, capacity = self._settings, self._settings.pool_windows
        for start in range(self._seen, corpus.num_contexts, _CONTEXTS_AT_ONCE):
            contexts = np.arange(start, min(corpus.num_contexts, start + _CONTEXTS_AT_ONCE))
            keys = pool_keys(window_uids(corpus, contexts, settings.windows_per_context), settings.seed)
            exist = _windows_that_exist(corpus, contexts, settings, self._special)
            sides = np.asarray(corpus.context_side[contexts])
            for side in range(3):
                mine = sides == side
                found = np.concatenate([self._smallest[side], keys[mine][exist[mine]]])
                # one more than the pool holds, to see whether it holds all
                self._smallest[side] = np.partition(found, capacity)[: capacity + 1] if len(found) > capacity else found
        self._seen = max(self._seen, corpus.num_contexts)
        for side, found in enumerate(self._smallest):
            if len(found) > capacity:
                self._last[side] = np.sort(found)[capacity - 1]

    def holds(self, uids: NDArray[np.uint64], sides: NDArray[np.int64]) -> NDArray[np.bool_]:
        """[B, V] for windows ``uids`` [B, V] of contexts that stand on ``sides`` [B]."""
        found: NDArray[np.bool_] = pool_keys(uids, self._settings.seed) <= self._last[sides][:, None]
        return found

    def holds_ordinals(self, corpus: TokenCorpus, windows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """[W] for windows by their ordinals in the corpus."""
        contexts, index = np.divmod(windows, self._settings.windows_per_context)
        uids = hash64(np.asarray(corpus.context_uid[contexts]).view(np.int64), index)
        return self.holds(uids[:, None], np.asarray(corpus.context_side[contexts]))[:, 0]


def _windows_that_exist(
    corpus: TokenCorpus, contexts: NDArray[np.int64], settings: ExtractionSettings, special: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """[B, V] windows with a token that counts; ``contexts`` are neighbours."""
    starts = np.asarray(corpus.context_start[contexts[0] : contexts[-1] + 2])
    tokens = np.asarray(corpus.tokens[int(starts[0]) : int(starts[-1])])
    counted = np.flatnonzero(~np.isin(tokens, special)) + starts[0]
    context = np.searchsorted(starts, counted, side="right") - 1
    exist = np.zeros((len(contexts), settings.windows_per_context), dtype=bool)
    exist[context, (counted - starts[context]) // settings.window_length] = True
    return exist
