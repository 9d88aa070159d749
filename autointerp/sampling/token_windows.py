"""Which windows of a pool hold a token: an index that all latents of a source share.

Letters in shapes: W windows, N counting cells of the pool, V tokens of the vocabulary.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

from sae_core.records import WindowPool


class TokenWindows:
    """Windows by the tokens that count in them."""

    def __init__(self, pool: WindowPool) -> None:
        row, column = np.nonzero(pool.counts)
        tokens = pool.tokens[row, column]
        order = np.argsort(tokens, kind="stable")
        self._row: NDArray[np.int32] = row[order].astype(np.int32)
        """[N] window of each cell, by token."""
        self._start: NDArray[np.int64] = np.concatenate([[0], np.cumsum(np.bincount(tokens))]).astype(np.int64)
        """[V + 1] token t's cells are ``_row[start[t]:start[t + 1]]``."""

    def holding(self, token: int) -> NDArray[np.int32]:
        """Rows of the windows that hold ``token``, ascending; a window that holds it n times stands n times."""
        if not 0 <= token < len(self._start) - 1:
            return np.empty(0, dtype=np.int32)
        return self._row[self._start[token] : self._start[token + 1]]


_INDEXES: OrderedDict[int, tuple[TokenWindows, WindowPool]] = OrderedDict()
_LOCK = threading.Lock()
_MOST_INDEXES = 8


def token_windows(pool: WindowPool) -> TokenWindows:
    """The index of a pool, made once as long as few pools are in use at a time."""
    with _LOCK:
        if id(pool) not in _INDEXES:
            # The pool is kept beside its index, so that its id is not used again.
            _INDEXES[id(pool)] = TokenWindows(pool), pool
        _INDEXES.move_to_end(id(pool))
        while len(_INDEXES) > _MOST_INDEXES:
            _INDEXES.popitem(last=False)
        return _INDEXES[id(pool)][0]
