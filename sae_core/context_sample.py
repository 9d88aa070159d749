"""A random sample of one side's contexts, as many documents in it as there can be. Torch-free."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sae_core.hashing import hash64, seed_for
from sae_core.records import Side
from sae_core.token_corpus import TokenCorpus


def sample_contexts(corpus: TokenCorpus, side: Side, num_tokens: int, seed: int) -> NDArray[np.int64]:
    """Ordinals of random contexts of ``side`` that hold ``num_tokens`` tokens or a little more, BOS counted, in random order.

    The first context of every document (by the draw, not by its place) comes before any document's second one, so that the
    sample is of documents as long as there are documents. All contexts of the side, where it has no more tokens.
    """
    ordinals = np.flatnonzero(np.asarray(corpus.context_side) == int(side))
    document = np.asarray(corpus.context_document)[ordinals]
    own_seed = seed_for(seed, "contexts of a sample", int(side))
    key = hash64(own_seed, np.asarray(corpus.context_uid)[ordinals].view(np.int64))
    order = np.lexsort((key, document))
    # how many contexts of the same document come before this one
    first = np.flatnonzero(np.diff(document[order], prepend=-1))
    place = np.arange(len(order)) - np.repeat(first, np.diff(np.append(first, len(order))))
    turn = np.empty(len(order), dtype=np.int64)
    turn[order] = place
    drawn = ordinals[np.lexsort((key, turn))]
    lengths = np.diff(np.asarray(corpus.context_start))[drawn]
    return drawn[: int(np.searchsorted(np.cumsum(lengths), num_tokens)) + 1].astype(np.int64)
