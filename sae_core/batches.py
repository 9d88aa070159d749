"""Which contexts go through the subject together."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sae_core.tokens import TokenCorpus

BLOCK_CONTEXTS = 256
"""Batches are made within aligned blocks of so many contexts, so that shards that are cut at blocks have the batches of the whole."""


def context_batches(corpus: TokenCorpus, ordinals: NDArray[np.int64], batch_tokens: int) -> list[NDArray[np.int64]]:
    """Contexts grouped so that a batch holds about ``batch_tokens``; equal lengths together, to pad little."""
    lengths = np.diff(corpus.context_start)[ordinals]
    order = np.argsort(-lengths, kind="stable")
    ordinals, lengths = ordinals[order], lengths[order]
    batches: list[NDArray[np.int64]] = []
    start = 0
    while start < len(ordinals):
        size = max(1, batch_tokens // int(lengths[start]))
        batches.append(ordinals[start : start + size])
        start += size
    return batches


def block_batches(corpus: TokenCorpus, contexts: range, batch_tokens: int) -> list[NDArray[np.int64]]:
    """The batches of a range of contexts, block after block."""
    batches: list[NDArray[np.int64]] = []
    start = contexts.start
    while start < contexts.stop:
        stop = min(contexts.stop, (start // BLOCK_CONTEXTS + 1) * BLOCK_CONTEXTS)
        batches += context_batches(corpus, np.arange(start, stop), batch_tokens)
        start = stop
    return batches


def padded(rows: list[NDArray[np.int32]]) -> NDArray[np.int32]:
    """[B, T], right-padded with -1."""
    out = np.full((len(rows), max(len(row) for row in rows)), -1, dtype=np.int32)
    for index, row in enumerate(rows):
        out[index, : len(row)] = row
    return out
