"""Windows of one side that repeat a run of text from another one: headers and boilerplate are no test (METHODS 1)."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae_core.hashing import hash64
from sae_core.records import WindowPool

RUN_LENGTH = 13
"""Tokens of a run that counts as repeated."""


class OverlapMask(NamedTuple):
    """Which windows of a pool may be scored."""

    kept: NDArray[np.bool_]
    """[W] windows that share no run of tokens with the pool that was shown."""
    share_skipped: float
    """Share of the windows that do."""


def _runs(tokens: NDArray[np.int32], length: int) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """Hash of the run that starts at each column [W, C - length + 1], and whether it holds tokens only."""
    starts = max(tokens.shape[1] - length + 1, 0)
    columns = [tokens[:, i : i + starts] for i in range(length)]
    whole = np.all([column >= 0 for column in columns], axis=0)
    return hash64(*columns), whole


def runs_of(shown: WindowPool, length: int = RUN_LENGTH) -> NDArray[np.uint64]:
    """Hashes of all runs of a pool's text, its context and, where it is a sample, its side's exemplars included; sorted."""
    known = np.empty(0, dtype=np.uint64)
    for tokens in (shown.tokens, shown.exemplar_tokens):
        if tokens is not None:
            hashes, whole = _runs(tokens, length)
            known = np.union1d(known, hashes[whole])
    return known


def repeats(
    tokens: NDArray[np.int32], first_token: NDArray[np.int32], known: NDArray[np.uint64], length: int = RUN_LENGTH
) -> NDArray[np.bool_]:
    """[W] which rows of ``tokens`` [W, C] (-1 for none) hold a run of ``known`` that starts at ``first_token`` [W] or later.

    Of a row with fewer tokens than a run from there on it is the run that ends with its last one, so that short windows
    (footers, the last one of a context) are held back with what stands before them.
    """
    hashes, whole = _runs(tokens, length)
    starts = np.arange(hashes.shape[1])
    end = tokens.shape[1] - np.argmax(tokens[:, ::-1] >= 0, axis=1)  # after the last token
    short = end - first_token < length
    inside = whole & ((starts >= first_token[:, None]) | (short[:, None] & (starts == (end - length)[:, None])))
    repeated = np.zeros(hashes.shape, dtype=np.bool_)
    repeated[inside] = np.isin(hashes[inside], known)
    return np.asarray(repeated.any(axis=1), dtype=np.bool_)


def _mask(shown: WindowPool, scored: WindowPool, length: int) -> OverlapMask:
    skipped = repeats(scored.tokens, scored.first_token, runs_of(shown, length), length)
    return OverlapMask(~skipped, float(skipped.mean()) if len(skipped) else 0.0)


_MASKS: OrderedDict[tuple[int, int, int], tuple[OverlapMask, WindowPool, WindowPool]] = OrderedDict()
_LOCK = threading.Lock()


def overlap_mask(shown: WindowPool, scored: WindowPool, length: int = RUN_LENGTH) -> OverlapMask:
    """Windows of ``scored`` whose own tokens repeat a run of ``length`` tokens of ``shown``, its context included.

    Where ``shown`` is a sample, the windows of its side's exemplars count as shown too.

    Computed once for a pair of pools, which all latents of a source share.
    """
    key = id(shown), id(scored), length
    with _LOCK:
        if key not in _MASKS:
            # The pools are kept beside the mask, so that their ids are not used again.
            _MASKS[key] = _mask(shown, scored, length), shown, scored
        _MASKS.move_to_end(key)
        while len(_MASKS) > 4:
            _MASKS.popitem(last=False)
        return _MASKS[key][0]
