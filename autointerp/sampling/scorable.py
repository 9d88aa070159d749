"""Which windows of a side may be judged: none that an explainer was shown in another document, none that a person has seen.

Letters in shapes: W windows of the pool, P + T columns of its tokens.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from autointerp.evidence import LatentEvidence
from autointerp.patterns.overlap import overlap_mask, repeats, runs_of
from sae_core.records import Exemplar, Side, WindowPool


def kept_windows(evidence: LatentEvidence, side: Side) -> NDArray[np.bool_]:
    """[W] windows of the side's pool that may be judged: those that share no run of 13 tokens with the explain side's
    text and are not excluded. On the explain side itself nothing is held back but what is excluded.
    """
    pool = evidence.store.pool(side)
    if side is Side.EXPLAIN:
        kept = np.ones(len(pool.tokens), dtype=np.bool_)
    else:
        kept = overlap_mask(evidence.store.pool(Side.EXPLAIN), pool).kept
    if evidence.excluded:
        places = np.asarray(sorted(evidence.excluded), dtype=np.int64)
        kept = kept & ~np.isin(_place(pool.context, pool.position), _place(places[:, 0], places[:, 1]))
    return kept


def kept_exemplars(evidence: LatentEvidence, side: Side, exemplars: Sequence[Exemplar]) -> list[Exemplar]:
    """Those of stored exemplars that may be judged, by the same rule as windows of the pool."""
    found = [e for e in exemplars if (e.context, e.position) not in evidence.excluded]
    if side is Side.EXPLAIN or not found:
        return found
    before = max(len(e.context_ids) for e in found)
    tokens = np.full((len(found), before + max(len(e.token_ids) for e in found)), -1, dtype=np.int32)
    for row, exemplar in enumerate(found):
        tokens[row, before - len(exemplar.context_ids) : before] = exemplar.context_ids
        tokens[row, before : before + len(exemplar.token_ids)] = exemplar.token_ids
    special = evidence.store.pieces.special
    first = [before + int(e.position == 0 and len(e.token_ids) > 0 and int(e.token_ids[0]) in special) for e in found]
    repeated = repeats(tokens, np.asarray(first, dtype=np.int32), _shown_runs(evidence.store.pool(Side.EXPLAIN)))
    return [exemplar for exemplar, skip in zip(found, repeated, strict=True) if not skip]


def _place(context: NDArray[np.integer], position: NDArray[np.integer]) -> NDArray[np.int64]:
    """One number for each (context, position)."""
    return (context.astype(np.int64) << 32) | position.astype(np.int64)


_RUNS: OrderedDict[int, tuple[NDArray[np.uint64], WindowPool]] = OrderedDict()
_LOCK = threading.Lock()


def _shown_runs(shown: WindowPool) -> NDArray[np.uint64]:
    """Runs of a pool's text, made once a pool: 8 bytes for each token of it, so few are kept."""
    with _LOCK:
        if id(shown) not in _RUNS:
            # The pool is kept beside its runs, so that its id is not used again.
            _RUNS[id(shown)] = runs_of(shown), shown
        _RUNS.move_to_end(id(shown))
        while len(_RUNS) > 2:
            _RUNS.popitem(last=False)
        return _RUNS[id(shown)][0]
